"""The processes of a distributed training: who one is, and what all of them saw in a step."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from tamis.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among several.

    Attributes:
        rank: Its number, from 0.
        size: How many there are (the world size).
    """

    rank: int = 0
    size: int = 1


def resolve(num_replicas: int | None, rank: int | None) -> Ranks:
    """Who this process is: as given, or as torch.distributed says where it is initialised, or alone.

    Raises:
        RecipeError: Only one of the two is given, or they do not fit together.
    """
    if (num_replicas is None) != (rank is None):
        raise RecipeError(f"num_replicas is {num_replicas} and rank {rank}; give both or neither")
    if num_replicas is not None and rank is not None:
        if not 0 <= rank < num_replicas:
            raise RecipeError(f"rank is {rank} of {num_replicas}; it must be in 0 .. {num_replicas - 1}")
        return Ranks(rank, num_replicas)
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the processes that torchrun started, for the body; does nothing alone, or where they are joined already.

    NCCL on a GPU, gloo on a CPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        dist.barrier()  # a process that ends first would take the connection from the others
    finally:
        dist.destroy_process_group()


def join(values: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """The values of all processes in the order of the samples: first each one's first, then each one's second.

    Processes take turns in the order of an epoch (see `PlanSampler`), so that this is the order of the epoch.

    Args:
        values: [m, ...], of the same shape and dtype in every process. int64 ids are gathered apart from losses:
            joined into one float32 tensor they would be inexact beyond 2^24.
        ranks: Who this process is.

    Returns:
        [m * size, ...], detached, on the device of the values.

    Raises:
        RecipeError: There are several processes, but torch.distributed is not initialised.
    """
    detached = values.detach()
    if ranks.size == 1:
        return detached
    own = detached.to(_common_device(ranks)).contiguous()
    parts = [torch.empty_like(own) for _ in range(ranks.size)]
    dist.all_gather(parts, own)
    return torch.stack(parts, dim=1).flatten(0, 1).to(detached.device)


@torch.no_grad()
def average(tensors: Sequence[torch.Tensor], ranks: Ranks) -> None:
    """Puts into each tensor its mean over all processes.

    Args:
        tensors: Of the same shapes and dtype in every process; gradients, for instance.
        ranks: Who this process is.
    """
    if ranks.size == 1:
        return
    together = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(_common_device(ranks))
    dist.all_reduce(together)
    parts = torch.split(together / ranks.size, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def _common_device(ranks: Ranks) -> torch.device:
    """Where the processes can exchange tensors: NCCL takes only what lies on a GPU, gloo only what does not."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RecipeError(
            f"the sampler is one of {ranks.size} processes, but torch.distributed is not initialised; "
            "call torch.distributed.init_process_group, or run under torchrun"
        )
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend() else torch.device("cpu")

"""What the libraries' checkpoints carry of a sampler, and the refusals that all adaptors share."""

from __future__ import annotations

from typing import Any

from tamis.errors import RecipeError
from tamis.training.samplers import PlanSampler


class SamplerState:
    """A sampler and its losses as one object with a state, as checkpoints take it.

    The state consists of numbers and tensors, so that `torch.load` reads it with ``weights_only=True``.

    Attributes:
        sampler: Whose state it is.
    """

    def __init__(self, sampler: PlanSampler) -> None:
        self.sampler = sampler

    def state_dict(self) -> dict[str, Any]:
        """Where the training is, and all losses; the same in every process. Grows with the dataset."""
        return {"sampler": self.sampler.state_dict(), "scores": self.sampler.scores.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken; do it before the loader is iterated.

        Raises:
            RecipeError: The state is of another version, seed or number of samples.
        """
        self.sampler.load_state_dict(state["sampler"])
        self.sampler.scores.load_state_dict(state["scores"])


def remaining(sampler: PlanSampler) -> int:
    """How many samples of the current epoch this process has still to train on."""
    return -((sampler.position - sampler.epoch_samples) // sampler.ranks.size)


def check_sampler(sampler: object, where: str) -> PlanSampler:
    """The sampler, if it is one of ours.

    Args:
        sampler: What was found.
        where: Where it was found, for the message.

    Raises:
        RecipeError: It is not.
    """
    if not isinstance(sampler, PlanSampler):
        raise RecipeError(
            f"{where} is {type(sampler).__name__}; it must be a sampler of tamis, such as SeTaSampler, "
            "InfoBatchSampler or ManifestSampler"
        )
    return sampler


def check_in_order(loader: object) -> None:
    """Refuses a loader that may give batches in another order than the sampler's.

    Raises:
        RecipeError: It has ``in_order=False``.
    """
    if not getattr(loader, "in_order", True):
        raise RecipeError(
            "the loader has in_order=False, but a training resumes by how much of the sampler's order was trained on; "
            "leave it out"
        )


def check_ranks(sampler: PlanSampler, rank: int, size: int, remedy: str) -> None:
    """Refuses a sampler that does not know of the processes that train.

    Args:
        sampler: One of ours.
        rank: Which process this is, as the library counts.
        size: How many there are.
        remedy: What to do, for the message.

    Raises:
        RecipeError: The sampler was made for another process, or for another number of processes.
    """
    ours = sampler.ranks
    if (ours.rank, ours.size) != (rank, size):
        raise RecipeError(
            f"the sampler was made for process {ours.rank} of {ours.size}, but this is process {rank} of {size}; "
            f"{remedy}"
        )

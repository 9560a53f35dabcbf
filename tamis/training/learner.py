"""What the reference trainer trains: samples in memory, and a learner that goes through them.

There is a module for each kind: `text`, `image` and `lm`. The trainer knows only what is here.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import torch

from tamis.errors import DataError
from tamis.training.ranks import Ranks, average

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tamis.training.trainer import TrainConfig


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model makes of m samples.

    Attributes:
        losses: float [m], with their graph where gradients are on.
        logits: float [m, classes]; None where there are no classes.
        token_counts: float32 [m], of how many tokens each loss is the mean; None where it is of one thing.
    """

    losses: torch.Tensor
    logits: torch.Tensor | None = None
    token_counts: torch.Tensor | None = None


class Samples(Protocol):
    """Samples of a training or of a test.

    Attributes:
        evaluated_at_once: So many of them are evaluated together, to bound the memory.
        LR: The learning rate that their model starts with where none is given.
        labels: int64 [n], positions in the classes; None where samples have none.
        classes: The classes' names; empty where only their numbers are known.
    """

    LR: ClassVar[float]

    @property
    def evaluated_at_once(self) -> int:
        """See above."""
        ...

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """See above."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """See above."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Some of the samples, in the order given."""
        ...

    def digest(self) -> str:
        """The identity of all that a model can see of them."""
        ...

    def learner(self, test: Self | None, config: TrainConfig, device: torch.device, ranks: Ranks) -> Learner:
        """A new model for samples like these and a test's, from the seed alone, with its optimiser."""
        ...


class Learner(Protocol):
    """A model with its optimiser; the samples are always of the kind that it was made for."""

    def outcome(
        self, samples: Any, rows: NDArray[np.int64], joined: NDArray[np.int64] | None = None, real: int = 0
    ) -> Outcome:
        """What the model makes of some samples.

        Args:
            samples: The training's or the test's.
            rows: int64 [m], which of them this process has.
            joined: int64 [m * processes], which of them all processes have in this step, if they are trained on.
            real: How many of `joined` count; the others are there to give every process as much.
        """
        ...

    def update(self, lr: float) -> None:
        """One step of the optimiser, from the mean of all processes' gradients, which are gone then."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that training changes."""
        ...

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Takes over what `tensors` gave."""
        ...


class DenseLearner:
    """A PyTorch model whose gradients are dense, with PyTorch's AdamW.

    Its samples have ``outcome(model, rows, device) -> Outcome``.
    """

    def __init__(self, model: torch.nn.Module, weight_decay: float, device: torch.device, ranks: Ranks) -> None:
        self.model = model.to(device)
        self._device = device
        self._ranks = ranks
        self._parameters = dict(self.model.named_parameters())
        self._optimiser = torch.optim.AdamW(self._parameters.values(), weight_decay=weight_decay)

    def outcome(
        self,
        samples: Any,
        rows: NDArray[np.int64],
        joined: NDArray[np.int64] | None = None,  # noqa: ARG002 - every parameter has a gradient in every step
        real: int = 0,  # noqa: ARG002
    ) -> Outcome:
        """See `Learner`."""
        outcome: Outcome = samples.outcome(self.model, rows, self._device)
        return outcome

    def update(self, lr: float) -> None:
        """See `Learner`."""
        average([p.grad for p in self._parameters.values() if p.grad is not None], self._ranks)
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Learner`."""
        found = {f"model.{name}": p.detach() for name, p in self._parameters.items()}
        for name, p in self._parameters.items():
            found |= {f"optimiser.{name}.{kind}": value for kind, value in self._optimiser.state.get(p, {}).items()}
        return found

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """See `Learner`."""
        for name, p in self._parameters.items():
            p.copy_(tensors[f"model.{name}"])
            prefix = f"optimiser.{name}."
            state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if state:
                self._optimiser.state[p] = {
                    kind: value if kind == "step" else value.to(p.device) for kind, value in state.items()
                }


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's generator of the CPU starts from the seed inside, and is the caller's again afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def unrounded(logits: torch.Tensor) -> torch.Tensor:
    """Logits as a loss should have them: not in the 8 bits that mixed precision computes with."""
    return logits.float() if logits.dtype == torch.bfloat16 else logits


def check_labels(n: int, labels: NDArray[np.int64], what: str) -> None:
    """Refuses labels that do not fit.

    Raises:
        DataError: There are no samples, or not one label from 0 for each.
    """
    if n == 0:
        raise DataError(f"there are 0 {what}; at least one is needed")
    if labels.shape != (n,):
        raise DataError(f"{n} {what} and labels of shape {labels.shape}; one label each is needed")
    if labels.dtype != np.int64 or labels.min() < 0:
        raise DataError(f"labels must be int64 from 0, got {labels.dtype} from {labels.min()}")


def count_classes(samples: Samples, test: Samples | None) -> int:
    """How many classes a model of both tells apart; 0 where samples have no labels."""
    parts = [part.labels for part in (samples, test) if part is not None and part.labels is not None]
    return 1 + max((int(labels.max()) for labels in parts), default=-1)


def digest_of(*arrays: NDArray[np.generic]) -> str:
    """The sha256 over dtypes, shapes and bytes of arrays."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(f"{array.dtype.str}{array.shape}".encode())
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """n lists of numbers of different lengths, one after the other.

    Attributes:
        values: int32 [m].
        offsets: int64 [n + 1]; list i is ``values[offsets[i]:offsets[i + 1]]``, possibly empty.
    """

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """The number of lists."""
        return self.offsets.size - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [n]."""
        return self.offsets[1:] - self.offsets[:-1]

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        """Some of the lists, in the order given."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        where = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(self.values[where], offsets)

"""The losses that a training run has seen so far, one per sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tamis.errors import DataError, NonFiniteLossError
from tamis.training._table import take

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_VERSION = 1
_TABLES = ("live", "seen", "frozen", "frozen_seen")


class ScoreTable:
    """Last observed loss and number of observations of each of n samples.

    There are two copies: the live one takes every batch's losses at once, the frozen one is what the current
    epoch was planned from. So a plan can be made again, after a restart in mid-epoch, exactly as it was.

    Attributes:
        live: float32 [n], the last observed loss; NaN where never seen.
        seen: int64 [n], how often each sample was observed.
        frozen: float32 [n], `live` as it was at the last `freeze`.
        frozen_seen: int64 [n], `seen` as it was at the last `freeze`.
    """

    def __init__(self, n: int) -> None:
        self.live: NDArray[np.float32] = np.full(n, np.nan, dtype=np.float32)
        self.seen: NDArray[np.int64] = np.zeros(n, dtype=np.int64)
        self.freeze()

    def __len__(self) -> int:
        """The number of samples."""
        return self.live.size

    def record(self, ids: ArrayLike, losses: ArrayLike) -> None:
        """Takes one batch's losses into the live table.

        Args:
            ids: int [m], positions in the dataset. One that occurs twice is counted twice and keeps its later
                loss.
            losses: float [m], finite in float32.

        Raises:
            NonFiniteLossError: A loss is NaN or infinite; nothing of the batch is recorded.
            DataError: The shapes differ, or an id is outside 0 .. n - 1.
        """
        where, values = np.asarray(ids), np.asarray(losses)
        if values.dtype != np.float32:
            with np.errstate(over="ignore"):
                values = values.astype(np.float32)
        if where.ndim != 1 or where.shape != values.shape:
            raise DataError(f"ids have shape {where.shape} and losses {values.shape}; both must be [m]")
        if where.size == 0:
            return
        if where.dtype.kind in "iu" and take(where.astype(np.int64, copy=False), values, self.live, self.seen):
            return
        if where.dtype.kind not in "iu" or where.min() < 0 or where.max() >= len(self):
            raise DataError(f"ids must be integers in 0 .. {len(self) - 1}, got {where[:10].tolist()} ({where.dtype})")
        bad = where[~np.isfinite(values)]
        raise NonFiniteLossError(
            f"the loss of {bad.size} samples is NaN or infinite, of ids {bad[:10].tolist()}; "
            "lower the learning rate, or look at these samples",
            tuple(bad.tolist()),
        )

    def freeze(self) -> None:
        """Copies the live losses and counts to the frozen ones; samplers do so when an epoch starts."""
        self.frozen = self.live.copy()
        self.frozen_seen = self.seen.copy()

    def state_dict(self) -> dict[str, Any]:
        """Everything, as a number and tensors (copies), which `torch.load` reads with weights_only; grows with n."""
        return {"version": _VERSION, **{name: torch.from_numpy(getattr(self, name).copy()) for name in _TABLES}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave.

        Raises:
            DataError: The state is of another version, or of another number of samples.
        """
        if state["version"] != _VERSION:
            raise DataError(f"score table of version {state['version']}; this version reads {_VERSION}")
        arrays: dict[str, NDArray[Any]] = {
            name: torch.as_tensor(state[name]).cpu().numpy().astype(getattr(self, name).dtype)  # a copy
            for name in _TABLES
        }
        for name, array in arrays.items():
            if array.shape != (len(self),):
                raise DataError(f"score table of {len(self)} samples cannot load {name!r} of shape {array.shape}")
        self.live, self.seen = arrays["live"], arrays["seen"]
        self.frozen, self.frozen_seen = arrays["frozen"], arrays["frozen_seen"]

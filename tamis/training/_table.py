"""The compiled part of the score table: a batch meets it right after a forward pass, when nothing is in the caches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit


@njit(cache=True, nogil=True)
def take(
    ids: npt.NDArray[np.int64],
    losses: npt.NDArray[np.float32],
    live: npt.NDArray[np.float32],
    seen: npt.NDArray[np.int64],
) -> bool:
    """Record a batch's losses, if all of them can be; else nothing, and False."""
    n = live.shape[0]
    for i in range(ids.shape[0]):
        if ids[i] < 0 or ids[i] >= n or not np.isfinite(losses[i]):
            return False
    for i in range(ids.shape[0]):
        live[ids[i]] = losses[i]
        seen[ids[i]] += 1
    return True

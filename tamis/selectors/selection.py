"""What every selector takes and gives: checked embeddings, a resolved budget, a Selection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tamis.errors import DataError, RecipeError, first_of

# faiss aborts the process near 1e19; nothing that an encoder writes comes close to this.
LARGEST_COMPONENT = 1e6
# Below this length a float32 row has too few significant bits left to have a direction.
SHORTEST_ROW = 1e-30
# A float32 row that was normalised before is this close to length 1, and is then left bit for bit.
UNIT_TOLERANCE = 2.0**-22
_BLOCK_ROWS = 256  # in cache


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows that a selector chose.

    Attributes:
        indices: int64[k], positions in the selector's input, best first.
        gains: float64[k], what each row added to the objective when it was chosen; None without an objective.
        weights: float32[k] > 0, how many input rows each chosen row stands for; None where all count the
            same.
        certificate: Named figures that say how good the selection is; None where nothing is certified.
        engine: Which engine made it, where there are several; None otherwise.
    """

    indices: npt.NDArray[np.int64]
    gains: npt.NDArray[np.float64] | None
    weights: npt.NDArray[np.float32] | None
    certificate: dict[str, float] | None
    engine: str | None = None


def floor_share(fraction: float, n: int) -> int:
    """Whole rows in a fraction of n rows: floor(fraction * n), safe against binary rounding.

    0.29 of 100 rows is 29, although 0.29 * 100 is 28.999999999999996 in float64.

    Args:
        fraction: Share in [0, 1].
        n: Number of rows.

    Returns:
        An integer in [0, n].

    >>> floor_share(0.29, 100)
    29
    """
    return min(n, math.floor(fraction * n * (1.0 + 2.0**-50) + 1e-9))


def resolve_budget(budget: int | float, n: int) -> int:
    """Turn a budget into a number of rows.

    Args:
        budget: A fraction as a float in (0, 1], or a count as an integer in [1, n].
        n: Number of rows that the budget is taken from.

    Returns:
        The count, in [1, n]. A fraction gives floor(budget * n), but at least 1.

    Raises:
        RecipeError: The budget is neither, or there is no row to choose from.

    >>> resolve_budget(0.25, 10), resolve_budget(3, 10), resolve_budget(0.01, 10)
    (2, 3, 1)
    """
    allowed = "give a fraction as a float in (0, 1] or a count as an integer of at least 1"
    if n < 1:
        raise RecipeError(f"budget {budget!r} of {n} rows: there is nothing to choose from")
    if isinstance(budget, (bool, np.bool_)) or not isinstance(budget, (int, float, np.integer, np.floating)):
        raise RecipeError(f"budget {budget!r} is a {type(budget).__name__}; {allowed}")
    if isinstance(budget, (int, np.integer)):
        count = int(budget)
        if count < 1:
            raise RecipeError(f"budget {count} of {n} rows keeps nothing; {allowed}")
        if count > n:
            raise RecipeError(
                f"budget {count} of {n} rows is {count - n} more than there are; give an integer in [1, {n}]"
            )
        return count
    fraction = float(budget)
    if not 0.0 < fraction <= 1.0:
        asked = f" = {fraction * n:g} rows" if math.isfinite(fraction) else ""
        raise RecipeError(f"budget {fraction!r} x {n} rows{asked}: a float is a fraction; {allowed}")
    return max(1, floor_share(fraction, n))


def as_unit_rows(X: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Check embeddings and scale every row to length 1.

    Lengths are computed in float64. Rows that have length 1 already (to float32 accuracy) are kept bit for
    bit, so the function is idempotent. The input is never modified; when nothing needs changing it is
    returned itself.

    Args:
        X: float16, float32 or float64 [n, d], n >= 1, d >= 1, of any strides and byte order.

    Returns:
        float32 [n, d], C-contiguous, rows of length 1.

    Raises:
        DataError: Another dtype or shape, or rows that hold NaN, infinities, values beyond 1e6, or only zeros
            (the first 10 rows are named).
    """
    try:
        given = np.asarray(X)
    except ValueError as error:
        raise DataError(f"embeddings are not a rectangular array ({error}); give float32 [rows, dim]") from error
    if given.dtype.kind != "f" or given.dtype.itemsize > 8:
        raise DataError(f"embeddings have dtype {given.dtype}; give float16, float32 or float64")
    if given.ndim != 2 or 0 in given.shape:
        raise DataError(f"embeddings have shape {given.shape}; give [rows, dim] with at least one row and column")
    n = given.shape[0]
    lengths = np.empty(n, np.float64)
    bad = np.zeros(n, np.bool_)
    large = np.zeros(n, np.bool_)
    for start in range(0, n, _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        block = given[rows].astype(np.float64)
        bad[rows] = ~np.isfinite(block).all(axis=1)
        large[rows] = ~bad[rows] & (np.abs(block) > LARGEST_COMPONENT).any(axis=1)
        block[bad[rows] | large[rows]] = 0.0
        lengths[rows] = np.sqrt(np.einsum("ij,ij->i", block, block))
    zero = ~bad & ~large & (lengths < SHORTEST_ROW)
    for mask, what in (
        (bad, "NaN or infinite values"),
        (large, f"values beyond {LARGEST_COMPONENT:g}"),
        (zero, "only zeros, so they have no direction"),
    ):
        if mask.any():
            raise DataError(
                f"{int(mask.sum())} of {n} embedding rows hold {what}: row {first_of(np.flatnonzero(mask).tolist())}; "
                "drop or re-encode them"
            )
    rescale = np.abs(lengths - 1.0) > UNIT_TOLERANCE
    if not rescale.any():
        return np.ascontiguousarray(given, dtype=np.float32)
    unit = np.array(given, dtype=np.float32, order="C", copy=True)
    for start in range(0, n, _BLOCK_ROWS):
        chosen = start + np.flatnonzero(rescale[start : start + _BLOCK_ROWS])
        unit[chosen] = given[chosen].astype(np.float64) / lengths[chosen, None]
    return unit

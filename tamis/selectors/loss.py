"""Pruning by loss: drop the hardest rows (often mislabelled), the easiest (often redundant), or both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tamis.errors import DataError, RecipeError
from tamis.selectors.selection import floor_share

if TYPE_CHECKING:
    import numpy.typing as npt


def drop_by_loss(
    losses: npt.NDArray[np.floating], *, drop_highest: float = 0.0, drop_lowest: float = 0.0
) -> npt.NDArray[np.int64]:
    """Drop fractions of the rows at the two ends of the loss.

    Args:
        losses: Float [n], one loss a row; infinite ones count as the highest or lowest.
        drop_highest: Fraction of the rows to drop from the top, in [0, 1).
        drop_lowest: Fraction of the rows to drop from the bottom, in [0, 1); the two together below 1.

    Returns:
        int64, the kept rows, ascending. Exactly floor(fraction * n) rows are dropped at each end; of equal
        losses the lowest index is kept.

    Raises:
        RecipeError: The fractions are outside their range.
        DataError: A loss is NaN, or the losses are not a 1-D array of numbers.
    """
    for name, fraction in (("drop_highest", drop_highest), ("drop_lowest", drop_lowest)):
        if isinstance(fraction, bool) or not (isinstance(fraction, (int, float)) and 0.0 <= fraction < 1.0):
            raise RecipeError(f"{name} {fraction!r}: give a fraction in [0, 1)")
    if drop_highest + drop_lowest >= 1.0:
        raise RecipeError(
            f"drop_highest {drop_highest} + drop_lowest {drop_lowest} = {drop_highest + drop_lowest:g} "
            "leaves no row; the two together must be below 1"
        )
    values = np.asarray(losses)
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise DataError(f"losses: {values.dtype} of shape {values.shape}; give one number for each row")
    missing = np.flatnonzero(np.isnan(values))
    if len(missing):
        named = ", ".join(map(str, missing[:10].tolist()))
        raise DataError(f"{len(missing)} of {len(values)} losses are NaN: row {named}; score or drop these rows first")
    n = len(values)
    index = np.arange(n)
    kept = np.lexsort((index, values))[: n - floor_share(drop_highest, n)]
    kept = kept[np.lexsort((-kept, values[kept]))][floor_share(drop_lowest, n) :]
    return np.sort(kept).astype(np.int64)

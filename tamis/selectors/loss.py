"""Pruning by what a proxy makes of the rows out of fold: the highest losses, the lowest, labels likely wrong."""

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


def confidence_thresholds(
    labels: npt.NDArray[np.integer], self_confidence: npt.NDArray[np.floating], classes: int
) -> npt.NDArray[np.float64]:
    """How confident a model is, on average, of the rows that have a class (arXiv 1911.00068, equation 2).

    Args:
        labels: int [n], from 0.
        self_confidence: Float [n], the probability of each row's own label, out of fold.
        classes: How many classes there are.

    Returns:
        float64 [classes], t_j, the mean over the rows labelled j; infinity for a class without rows.

    >>> confidence_thresholds(np.array([0, 0, 2]), np.array([0.9, 0.5, 0.6]), 3)
    array([0.7, inf, 0.6])
    """
    count = np.bincount(labels, minlength=classes)
    total = np.bincount(labels, weights=self_confidence, minlength=classes)
    return np.where(count > 0, total / np.maximum(count, 1), np.inf)


def suspects(
    labels: npt.NDArray[np.integer],
    probabilities: npt.NDArray[np.floating],
    thresholds: npt.NDArray[np.floating],
) -> npt.NDArray[np.bool_]:
    """Rows whose label is likely wrong: a model that has not seen them is confident of another class.

    Of the classes j with p(j | x) >= t_j, the likeliest is another than the label: confident learning (Northcutt, Jiang
    and Chuang, arXiv 1911.00068, equation 1). How many rows are wrong need not be known: the thresholds follow the
    model's own confidence in each class. A row for which no class reaches its threshold is no suspect.

    Args:
        labels: int [n], columns of the probabilities.
        probabilities: Float [n, k], out of fold.
        thresholds: Float [k], as from `confidence_thresholds`.

    Returns:
        bool [n].

    Raises:
        DataError: The shapes do not fit.

    >>> suspects(np.array([0, 0]), np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([0.6, 0.5]))
    array([False,  True])
    """
    shape = np.shape(probabilities)
    if len(shape) != 2 or np.shape(labels) != shape[:1] or np.shape(thresholds) != shape[1:]:
        raise DataError(
            f"labels {np.shape(labels)}, probabilities {shape} and thresholds {np.shape(thresholds)} do not fit "
            "together; give [n], [n, k] and [k]"
        )
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    found: npt.NDArray[np.bool_] = (confident.max(axis=1, initial=-1.0) >= 0) & (confident.argmax(axis=1) != labels)
    return found

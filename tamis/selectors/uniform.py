"""Random selection, plain and stratified: the baselines that stand beside every other selector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tamis.errors import DataError
from tamis.selectors.selection import Selection, resolve_budget
from tamis.selectors.shares import largest_remainder

if TYPE_CHECKING:
    import numpy.typing as npt


def random(n: int, *, budget: int | float, rng: np.random.Generator) -> Selection:
    """Choose rows uniformly without replacement.

    Args:
        n: Number of rows.
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n].
        rng: The only source of randomness. From one state a smaller budget gives the first rows of a larger
            one.

    Returns:
        A Selection in random order, without gains, weights or certificate.

    Raises:
        RecipeError: An unusable budget.
    """
    count = resolve_budget(budget, n)
    return Selection(rng.permutation(n)[:count].astype(np.int64), None, None, None)


def stratified(strata: npt.ArrayLike, *, budget: int | float, rng: np.random.Generator) -> Selection:
    """Choose from every stratum its share in proportion to its size, uniformly inside it.

    Args:
        strata: The stratum of each row: integers, booleans or strings [n].
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n]. Shares are exact by
            largest remainder, ties to the stratum that sorts first; a small stratum may get none.
        rng: The only source of randomness.

    Returns:
        A Selection in random order, without gains, weights or certificate.

    Raises:
        RecipeError: An unusable budget.
        DataError: The strata are not a 1-D array of integers, booleans or strings.
    """
    labels = np.asarray(strata)
    if labels.ndim != 1 or labels.dtype.kind not in "iubUST":
        raise DataError(
            f"strata: {labels.dtype} of shape {labels.shape}; give one integer, boolean or string for each row"
        )
    count = resolve_budget(budget, len(labels))
    _, stratum, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shares = largest_remainder(sizes.astype(np.float64), count, sizes.astype(np.int64))
    shuffled = rng.permutation(len(labels))
    by_stratum = np.argsort(stratum[shuffled], kind="stable")
    place = np.empty(len(labels), np.int64)
    place[by_stratum] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = shuffled[place < shares[stratum[shuffled]]]
    return Selection(chosen.astype(np.int64), None, None, None)

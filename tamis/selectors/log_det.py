"""Log-determinant: rows that span as much of the space as they can.

The objective is f(S) = log det(K_S + ridge I), K the cosines: the greedy mode of a determinantal point process
(Chen et al., 2018, arXiv 1709.05135).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tamis.errors import RecipeError
from tamis.selectors.selection import Selection, as_unit_rows, resolve_budget

if TYPE_CHECKING:
    import numpy.typing as npt

# _objectives is imported where it is used: loading numba takes half a second that a recipe check should not.

# Below this a row that the chosen ones span already differs from rounding in its last digits only.
SMALLEST_RIDGE = 1e-6
LARGEST_RIDGE = 1e6


def log_det(X: npt.ArrayLike, *, budget: int | float, ridge: float = 1.0) -> Selection:
    """Choose rows by greedy maximisation of a log-determinant, without a kernel of all pairs.

    A row counts by what it adds in directions that the chosen rows do not span; copies of a chosen row add
    next to nothing. All rows are alike at first, so the first is row 0.

    Args:
        X: Embeddings, float16, float32 or float64 [n, d]; need not be normalised.
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n].
        ridge: What is added to the diagonal, in [1e-6, 1e6]. The smaller, the less a row is worth that
            others span nearly.

    Returns:
        A Selection in the order of choice, ties to the lowest index, without weights. Gains are in nats,
        never increase, and lie in [log ridge, log(1 + ridge)]: below 0 possibly where ridge < 1. The
        certificate holds:

        - `objective`: f(S).
        - `upper_bound`: what no set of this size can exceed: the least of f(S) plus the k largest of the
          remaining gains, each less log ridge (f(S) less k log ridge is submodular and never decreases); of
          k log(1 + ridge); and of k log ridge + d log(1 + k / (d ridge)), as the rank is at most d.
        - `ratio`: objective / upper_bound, of both less k log ridge; greedy reaches at least 1 - 1/e of the
          best value so measured.

    Raises:
        RecipeError: An unusable budget or ridge.
        DataError: Unusable embeddings (see `as_unit_rows`).
    """
    if (
        isinstance(ridge, (bool, np.bool_))
        or not isinstance(ridge, (int, float, np.integer, np.floating))
        or not SMALLEST_RIDGE <= ridge <= LARGEST_RIDGE
    ):
        raise RecipeError(
            f"ridge {ridge!r}: give a number from {SMALLEST_RIDGE:g} to {LARGEST_RIDGE:g}; below, float64 cannot "
            "tell what nearly dependent rows add"
        )
    unit = as_unit_rows(X)
    n, d = unit.shape
    count = resolve_budget(budget, n)

    from tamis.selectors import _objectives

    diagonal = float(ridge)
    chosen, values, upper = _objectives.log_det_greedy(unit, _objectives.unit_factors(unit), diagonal, count)
    gains = np.log(values)
    objective = float(gains.sum())
    base = count * math.log(diagonal)
    remaining = np.sort(np.log(np.maximum(upper, diagonal) / diagonal))
    reached = max(0.0, objective - base)
    most = min(
        reached + float(remaining[-count:].sum()),
        count * math.log1p(1.0 / diagonal),
        d * math.log1p(count / (d * diagonal)),
    )
    bound = max(base + most, objective)
    certificate = {"objective": objective, "upper_bound": bound, "ratio": min(1.0, reached / max(most, reached))}
    return Selection(chosen, gains, None, certificate)

"""Disparity sum: rows that are far from each other on average.

The objective is f(S) = sum over the pairs of S of 1 - cos(i, j) (max-sum dispersion). With cosines the gain of
a row beside k chosen ones is k - <x, sum_S x>, so no kernel of all pairs is needed. (The rows that are far from the
nearest of the others, max-min dispersion, are those of `k_center`.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tamis.selectors.selection import Selection, as_unit_rows, resolve_budget

if TYPE_CHECKING:
    import numpy.typing as npt

# _objectives is imported where it is used: loading numba takes half a second that a recipe check should not.


def disparity_sum(X: npt.ArrayLike, *, budget: int | float) -> Selection:
    """Choose rows by greedy maximisation of their cosine distances, in O(n d) memory.

    The first row is the one farthest from the mean direction (its own gain is 0). The choice favours the rim
    of the data, outliers first.

    Args:
        X: Embeddings, float16, float32 or float64 [n, d]; need not be normalised.
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n].

    Returns:
        A Selection in the order of choice, ties to the lowest index, without weights. A gain is the sum of
        the distances to the rows chosen before: gains rise with the number of rows, so two gains say
        nothing of the worth of two rows. The certificate holds:

        - `objective`: f(S).
        - `upper_bound`: what no set of this size can exceed: k^2 / 2, or where it is smaller
          (k^2 + <y, y>) / 2 minus the k smallest <x, y> of all rows, with y = sum_S x (f is concave in y).
        - `ratio`: objective / upper_bound, only where the objective is above 0.

    Raises:
        RecipeError: An unusable budget.
        DataError: Unusable embeddings (see `as_unit_rows`).
    """
    unit = as_unit_rows(X)
    count = resolve_budget(budget, len(unit))

    from tamis.selectors import _objectives

    factors = _objectives.unit_factors(unit)
    everything = _objectives.sum_rows(unit, factors)
    first = int(np.argmin(_objectives.products(unit, factors, everything)))
    chosen, scores = _objectives.linear_greedy(
        unit, factors, np.zeros(unit.shape[1]), 1.0, everything, count, first=first
    )
    together = _objectives.sum_rows(unit[chosen], factors[chosen])
    squared = float(together @ together)
    objective = max(0.0, (count * count - squared) / 2)
    slopes = np.sort(_objectives.products(unit, factors, together))
    bound = min(count * count / 2, (count * count + squared) / 2 - float(slopes[:count].sum()))
    bound = max(bound, objective)
    certificate = {"objective": objective, "upper_bound": bound}
    if objective > 0:
        certificate["ratio"] = objective / bound
    return Selection(chosen, np.arange(count) + scores, None, certificate)

"""Graph cut: rows that are like all rows and unlike each other.

The objective is f(S) = sum_{i in V, j in S} cos(i, j) - trade_off * sum_{i, j in S} cos(i, j) (Iyer et al.,
2021, arXiv 2006.15412). With cosines the gain of a row is linear in it,
<x, sum_V x - 2 trade_off sum_S x> - trade_off, so no kernel of all pairs is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tamis.errors import RecipeError
from tamis.selectors.selection import Selection, as_unit_rows, resolve_budget

if TYPE_CHECKING:
    import numpy.typing as npt

# _objectives is imported where it is used: loading numba takes half a second that a recipe check should not.

LARGEST_TRADE_OFF = 1e6


def graph_cut(X: npt.ArrayLike, *, budget: int | float, trade_off: float = 0.5) -> Selection:
    """Choose rows by greedy graph cut over cosine similarities, of any sign, in O(n d) memory.

    Up to trade_off = 0.5, and without negative cosines, f never falls as rows are added. Above it gains may
    turn negative; the budget is met all the same.

    Args:
        X: Embeddings, float16, float32 or float64 [n, d]; need not be normalised.
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n].
        trade_off: How much similarity among the chosen rows costs, in [0, 1e6]; lambda in the paper.

    Returns:
        A Selection in the order of choice, ties to the lowest index, without weights. Gains never increase
        where no two rows have a negative cosine; elsewhere they may rise a little. The certificate holds:

        - `objective`: f(S).
        - `upper_bound`: what no set of this size can exceed. f is concave in sum_S x, so that is
          f(S) - <sum_S x, g> plus the k largest <x, g> of all rows, with g = sum_V x - 2 trade_off sum_S x.
        - `ratio`: objective / upper_bound, only where the objective is above 0.

        Where no cosine is negative and trade_off is at most 0.5, greedy reaches 1 - 1/e of the best value.

    Raises:
        RecipeError: An unusable budget or trade_off.
        DataError: Unusable embeddings (see `as_unit_rows`).
    """
    if (
        isinstance(trade_off, (bool, np.bool_))
        or not isinstance(trade_off, (int, float, np.integer, np.floating))
        or not 0 <= trade_off <= LARGEST_TRADE_OFF
    ):
        raise RecipeError(f"trade_off {trade_off!r}: give a number in [0, {LARGEST_TRADE_OFF:g}], such as 0.5")
    unit = as_unit_rows(X)
    count = resolve_budget(budget, len(unit))

    from tamis.selectors import _objectives

    penalty = float(trade_off)
    factors = _objectives.unit_factors(unit)
    everything = _objectives.sum_rows(unit, factors)
    chosen, scores = _objectives.linear_greedy(unit, factors, everything, 2.0 * penalty, everything, count)
    together = _objectives.sum_rows(unit[chosen], factors[chosen])
    objective = float(everything @ together - penalty * (together @ together))
    gradient = everything - 2.0 * penalty * together
    slopes = np.sort(_objectives.products(unit, factors, gradient))
    bound = max(objective, objective - float(together @ gradient) + float(slopes[-count:].sum()))
    certificate = {"objective": objective, "upper_bound": bound}
    if objective > 0:
        certificate["ratio"] = objective / bound
    return Selection(chosen, scores - penalty, None, certificate)

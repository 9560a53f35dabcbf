"""k-center: rows such that no row is far from the nearest chosen one.

Farthest-first traversal (Gonzalez, 1985): each choice is the row that is farthest from those chosen before, and
after every choice the largest angle between a row and its nearest chosen one is at most twice the best
possible. The same rule is the greedy one for max-min dispersion (disparity min).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tamis.embeddings.kmeans import assign
from tamis.errors import RecipeError
from tamis.selectors.selection import Selection, as_unit_rows, resolve_budget
from tamis.threads import one_blas_thread

if TYPE_CHECKING:
    import numpy.typing as npt

# _objectives is imported where it is used: loading numba takes half a second that a recipe check should not.

_MEAN_GRID = 2.0**40  # nearness to the mean is compared on this grid, coarser than its rounding


def k_center(X: npt.ArrayLike, *, budget: int | float, start: int | None = None) -> Selection:
    """Choose rows by farthest-first traversal over cosine distances, in O(n d) memory.

    Outliers come early: they are what is far from everything. Distances are rounded to multiples of 2^-40, so
    that equal ones are equal and a copy of a chosen row is at distance 0.

    Args:
        X: Embeddings, float16, float32 or float64 [n, d]; need not be normalised.
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n].
        start: The first row; None for the one nearest to the mean direction.

    Returns:
        A Selection in the order of choice, ties to the lowest index. A gain is the cosine distance of the row
        to its nearest chosen one at the time; the first row, which has none, gets the distance of the row
        farthest from it (the gain of the second). Gains never increase. `weights` are the numbers of rows
        that are nearest to each chosen one, by float32 cosines, of equally near ones to the first chosen; a
        chosen row counts for itself. They sum to n. The certificate holds, in cosine distance:

        - `radius`: the largest distance from a row to its nearest chosen one.
        - `radius_lower_bound`: what no set of this size can go below. `radius` is the distance r, of angle a,
          of k + 1 rows at least that far apart, two of which share a chosen row at an angle of a/2 or more.
        - `coverage_mean`, `coverage_p95`: distance from a row to its nearest chosen one, mean and 95th
          percentile.

    Raises:
        RecipeError: An unusable budget or start.
        DataError: Unusable embeddings (see `as_unit_rows`).
    """
    unit = as_unit_rows(X)
    n = len(unit)
    count = resolve_budget(budget, n)
    if start is not None and (
        isinstance(start, (bool, np.bool_)) or not isinstance(start, (int, np.integer)) or not 0 <= start < n
    ):
        raise RecipeError(f"start {start!r}: give a row as an integer in [0, {n - 1}], or None for the most central")

    from tamis.selectors import _objectives

    factors = _objectives.unit_factors(unit)
    if start is None:
        nearness = _objectives.products(unit, factors, _objectives.sum_rows(unit, factors)) / n
        first = int(np.argmax(np.rint(nearness * _MEAN_GRID)))
    else:
        first = int(start)
    # One row more than asked for: its distance is the radius.
    chosen, distances = _objectives.farthest_first(unit, factors, first, min(n, count + 1))
    radius = float(distances[count]) if count < n else 0.0
    chosen, gains = chosen[:count].copy(), distances[:count].copy()
    gains[0] = gains[1] if count > 1 else radius
    with one_blas_thread():
        near, distance = assign(unit, unit[chosen])
        nearest = near[:, 0]
    nearest[chosen] = np.arange(count)
    distance[chosen] = 0.0
    weights = np.bincount(nearest, minlength=count).astype(np.float32)
    covered = np.sort(distance.astype(np.float64))
    certificate = {
        "radius": radius,
        "radius_lower_bound": 1.0 - math.cos(math.acos(max(-1.0, 1.0 - radius)) / 2),
        "coverage_mean": float(covered.mean()),
        "coverage_p95": float(np.percentile(covered, 95)),
    }
    return Selection(chosen, gains, weights, certificate)

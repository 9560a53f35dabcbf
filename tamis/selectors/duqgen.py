"""DUQGen's sample (arXiv 2404.02489): every cluster in proportion to its size, rows near its centre more often."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from tamis.embeddings.kmeans import assign, fit_spherical
from tamis.errors import RecipeError
from tamis.selectors.selection import Selection, as_unit_rows, resolve_budget
from tamis.selectors.shares import largest_remainder
from tamis.threads import one_blas_thread

if TYPE_CHECKING:
    import numpy.typing as npt

COLDEST = 1e-9
_ITERATIONS = 20
_SAMPLE_PER_CLUSTER = 256


def duqgen(
    X: npt.ArrayLike,
    *,
    budget: int | float,
    rng: np.random.Generator,
    n_clusters: int | Literal["auto"] = "auto",
    temperature: float = 1.0,
) -> Selection:
    """Draw rows from k-means clusters, one each and the rest in proportion to their sizes (arXiv 2404.02489).

    Inside a cluster of centre c, rows are drawn one after another without replacement with probabilities
    proportional to exp(cos(x, c) / temperature).

    Args:
        X: Embeddings, float16, float32 or float64 [n, d]; need not be normalised.
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n].
        rng: The only source of randomness.
        n_clusters: Clusters of spherical k-means, fitted on at most 256 rows a cluster; at most n. "auto" is
            round(sqrt(n)), but at most the budget, so that every cluster is drawn from. (The paper sets it
            by hand for each corpus.)
        temperature: At least 1e-9. Small values take the rows nearest to the centres, large ones draw uniformly;
            1 in the paper.

    Returns:
        A Selection without gains, weights or certificate: the first draw of every cluster, larger clusters
        first, then the second draws, and so on. Shares are exact by largest remainder; with more clusters
        than rows to draw, the largest clusters give one each.

    Raises:
        RecipeError: An unusable budget, n_clusters or temperature.
        DataError: Unusable embeddings (see `as_unit_rows`).
    """
    if n_clusters != "auto" and (
        isinstance(n_clusters, (bool, np.bool_)) or not isinstance(n_clusters, (int, np.integer)) or n_clusters < 1
    ):
        raise RecipeError(f"n_clusters {n_clusters!r}: give an integer of at least 1, or 'auto'")
    if (
        isinstance(temperature, (bool, np.bool_))
        or not isinstance(temperature, (int, float, np.integer, np.floating))
        or not (math.isfinite(temperature) and temperature >= COLDEST)
    ):
        raise RecipeError(f"temperature {temperature!r}: give a finite number of at least {COLDEST:g}")
    unit = as_unit_rows(X)
    n = len(unit)
    count = resolve_budget(budget, n)
    wanted = min(count, round(math.sqrt(n))) if n_clusters == "auto" else min(n, int(n_clusters))
    sample = unit
    if n > _SAMPLE_PER_CLUSTER * wanted:
        sample = unit[np.sort(rng.choice(n, _SAMPLE_PER_CLUSTER * wanted, replace=False))]
    seed = int(rng.integers(2**31 - 2))
    with one_blas_thread():
        near, distance = assign(unit, fit_spherical(sample, wanted, iterations=_ITERATIONS, seed=seed))
    _, cluster, sizes = np.unique(near[:, 0], return_inverse=True, return_counts=True)
    shares = cluster_shares(sizes, count)

    # The largest of logit + Gumbel noise, then the next, are draws without replacement from the softmax.
    noisy = (1.0 - distance.astype(np.float64)) / temperature + rng.gumbel(size=n)
    by_cluster = np.lexsort((-noisy, cluster))
    place = np.empty(n, np.int64)
    place[by_cluster] = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    drawn = np.flatnonzero(place < shares[cluster])
    order = np.lexsort((cluster[drawn], -sizes[cluster[drawn]], place[drawn]))
    return Selection(drawn[order].astype(np.int64), None, None, None)


def cluster_shares(sizes: npt.NDArray[np.int64], budget: int) -> npt.NDArray[np.int64]:
    """How many rows to draw from each cluster: one, and the rest in proportion to size (arXiv 2404.02489).

    Args:
        sizes: int64[k] >= 1.
        budget: How many rows in all, in [1, sum of the sizes].

    Returns:
        int64[k], summing to the budget exactly, never above the sizes: 1 + (budget - k) size / n, rounded by
        largest remainder. With a budget below k the largest clusters get 1, ties to the lowest index.

    Raises:
        RecipeError: The budget is above the sum of the sizes.

    >>> cluster_shares(np.array([6, 3, 1]), 5).tolist(), cluster_shares(np.array([3, 6, 1]), 2).tolist()
    ([2, 2, 1], [1, 1, 0])
    """
    shares = np.zeros(len(sizes), np.int64)
    if budget < len(sizes):
        shares[np.argsort(-sizes, kind="stable")[:budget]] = 1
        return shares
    return 1 + largest_remainder(sizes.astype(np.float64), budget - len(sizes), sizes - 1)

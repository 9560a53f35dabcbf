"""Facility location: the rows that together stand closest to all rows.

The objective is f(S) = sum_i max(0, max_{j in S} cos(i, j)). Greedy selection reaches (1 - 1/e) of the best
value (Nemhauser, Wolsey and Fisher, 1978). Cosines are rounded to multiples of 2^-23, on which every gain is
exact, so that a selection does not depend on threads or on the order of summation, and ties go to the lowest
index.
"""

from __future__ import annotations

import heapq
import math
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tamis.embeddings.kmeans import assign, fit_spherical
from tamis.errors import RecipeError
from tamis.selectors._blas import one_blas_thread
from tamis.selectors.selection import Selection, as_unit_rows, resolve_budget

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Int32 = npt.NDArray[np.int32]
    Int64 = npt.NDArray[np.int64]
    Float32 = npt.NDArray[np.float32]
    Float64 = npt.NDArray[np.float64]
    Ranking = tuple[Int64, Float64]

# _greedy is imported where it is used: loading numba takes half a second that a recipe check should not.

DEFAULT_MEMORY_BYTES = 2 << 30
ROWS_PER_CELL = 1024
_KERNEL_TILE = 1024
_KMEANS_ITERATIONS = 8
_KMEANS_SAMPLE_PER_CELL = 64
_LARGEST_CELL = 4 * ROWS_PER_CELL


def facility_location(
    X: npt.ArrayLike,
    *,
    budget: int | float,
    engine: Literal["auto", "exact", "partitioned"] = "auto",
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> Selection:
    """Choose rows by greedy facility location over cosine similarities.

    `exact` runs greedy on the n x n kernel. `partitioned` splits the rows into cells of about 1,000 by
    spherical k-means, ranks each cell exactly and merges the rankings by gain, which is greedy on the
    objective in which rows are only represented inside their own cell. `auto` is exact where the kernel fits
    `memory_bytes`.

    Args:
        X: Embeddings, float16, float32 or float64 [n, d]; need not be normalised.
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n].
        engine: Which engine to use.
        memory_bytes: What one int32 kernel may take, 4 bytes a pair. (Lists of the pairs that still matter
            take up to a quarter more.)

    Returns:
        A Selection ranked by gain. `weights` are the numbers of rows that each chosen row represents (its
        nearest, of equally near ones the first ranked; a chosen row represents itself) and sum to n; in the
        partitioned engine the nearest is sought inside the row's cell if anything was chosen there.
        The certificate holds, with cosines clamped to [0, 1]:

        - `objective`: f(S); in the partitioned engine a lower bound of it (nearest as above).
        - `upper_bound`: what no set of this size can exceed: f(S) plus the k largest remaining gains in the
          exact engine, and n in the partitioned one. `ratio` is objective / upper_bound.
        - `block_objective`, `block_upper_bound`, `block_ratio`: the same three for the objective that the
          partitioned engine maximises, with its own remaining gains (only there).
        - `coverage_mean`, `coverage_p95`: cosine distance from a row to its nearest chosen row, mean and 95th
          percentile.

    Raises:
        RecipeError: An unusable budget, engine or memory limit.
        DataError: Unusable embeddings (see `as_unit_rows`).
    """
    if engine not in ("auto", "exact", "partitioned"):
        raise RecipeError(f"engine {engine!r} is not one of 'auto', 'exact', 'partitioned'")
    if isinstance(memory_bytes, bool) or not isinstance(memory_bytes, (int, np.integer)) or memory_bytes < 4:
        raise RecipeError(f"memory_bytes {memory_bytes!r}: give the bytes that a kernel may take, an integer >= 4")
    unit = as_unit_rows(X)
    n = len(unit)
    count = resolve_budget(budget, n)
    needed = 4 * n * n
    if engine == "exact" and needed > memory_bytes:
        raise RecipeError(
            f"engine='exact' needs a kernel of 4 x {n} x {n} = {needed} bytes, more than memory_bytes "
            f"{memory_bytes}; use engine='partitioned', or raise memory_bytes"
        )
    if engine == "partitioned" or needed > memory_bytes:
        with one_blas_thread():
            return _partitioned(unit, count, max_cell_rows=math.isqrt(memory_bytes // 4))
    with one_blas_thread():
        return _exact(unit, count)


def rank_partition(X_unit: Float32, budget: int) -> Ranking:
    """Rank the rows of one partition by exact greedy facility location.

    Takes 4 bytes of memory a pair of rows, and one thread.

    Args:
        X_unit: float32[n, d], C-contiguous, rows of length 1 (see `as_unit_rows`; not checked again here).
        budget: How many rows to rank, in [1, n]; n ranks all, the last one included.

    Returns:
        Positions in the partition, int64[budget], and their gains when chosen, float64[budget], in units of f
        and never increasing.

    Raises:
        RecipeError: The budget is not in [1, n].
    """
    if not 1 <= budget <= len(X_unit):
        raise RecipeError(f"cannot rank {budget} rows of a partition of {len(X_unit)}; give 1 to {len(X_unit)}")
    with one_blas_thread():
        return _rank(_kernel(X_unit), budget)


def merge_rankings(rankings: Sequence[Ranking], budget: int) -> Ranking:
    """Merge the rankings of disjoint partitions by gain.

    With full rankings (or rankings of at least `budget` rows) this is greedy on the objective in which rows
    are only represented inside their own partition.

    Args:
        rankings: Of each partition the indices, int64 (global ones, no row twice), and gains, float64.
        budget: How many rows to return, at least 1.

    Returns:
        The indices and gains of the first `budget` rows: largest gain first, ties to the lowest index, and
        the rows of one partition always in the order of its ranking.

    Raises:
        RecipeError: The rankings hold fewer rows than the budget.
    """
    ranked = sum(len(indices) for indices, _ in rankings)
    if not 1 <= budget <= ranked:
        raise RecipeError(f"cannot take {budget} rows of {len(rankings)} rankings that hold {ranked} rows in all")
    merged = heapq.merge(*(zip((-gains).tolist(), indices.tolist(), strict=True) for indices, gains in rankings))
    first = list(islice(merged, budget))
    return np.array([index for _, index in first], np.int64), -np.array([lost for lost, _ in first], np.float64)


def split_into_cells(X_unit: Float32, *, max_cell_rows: int = _LARGEST_CELL) -> list[Int64]:
    """Split rows into cells of neighbours by spherical k-means, about 1,000 rows a cell.

    The same rows give the same cells for any thread count: faiss computes its distances without BLAS on one
    thread, on a sample with a fixed seed.

    Args:
        X_unit: float32[n, d], C-contiguous, rows of length 1.
        max_cell_rows: A larger cell is cut, in index order, into the fewest nearly equal parts of at most
            this.

    Returns:
        The rows of each cell, int64, ascending; no cell is empty, and every row is in exactly one.
    """
    n = len(X_unit)
    cells = max(1, round(n / ROWS_PER_CELL), -(-n // max_cell_rows))
    if cells == 1:
        labels = np.zeros(n, np.int32)
    else:
        count = min(n, _KMEANS_SAMPLE_PER_CELL * cells)
        sample = X_unit[np.arange(count) * n // count]
        with one_blas_thread():
            centroids = fit_spherical(sample, cells, iterations=_KMEANS_ITERATIONS, seed=0)
            labels, _ = assign(X_unit, centroids)
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=cells))
    members = (rows for rows in np.split(order, ends[:-1]) if len(rows))
    return [part for rows in members for part in np.array_split(rows, -(-len(rows) // max_cell_rows))]


def _kernel(X_unit: Float32) -> Int32:
    """Cosines as int32[n, n] in units of 2^-23, clamped to [0, 1], exactly symmetric, diagonal 1."""
    from tamis.selectors import _greedy

    n = len(X_unit)
    kernel = np.empty((n, n), np.int32)
    for row in range(0, n, _KERNEL_TILE):
        for column in range(row, n, _KERNEL_TILE):
            tile = X_unit[row : row + _KERNEL_TILE] @ X_unit[column : column + _KERNEL_TILE].T
            _greedy.quantise_tile(tile, kernel, row, column)
    np.fill_diagonal(kernel, _greedy.UNIT)
    return kernel


def _rank(kernel: Int32, budget: int) -> Ranking:
    from tamis.selectors import _greedy

    chosen, gains = _greedy.greedy(kernel, budget)
    return chosen, gains / _greedy.UNIT


def _exact(unit: Float32, budget: int) -> Selection:
    from tamis.selectors import _greedy

    n = len(unit)
    kernel = _kernel(unit)
    chosen, gains = _rank(kernel, budget)
    nearest, best = _greedy.nearest_chosen(kernel, chosen)
    objective, bound = _objective_and_bound([best], [_greedy.remaining_gains(kernel, best)], budget)
    bound = min(bound, float(n))
    certificate = {"objective": objective, "upper_bound": bound, "ratio": objective / bound}
    weights = np.bincount(nearest, minlength=budget).astype(np.float32)
    return Selection(chosen, gains, weights, certificate | _coverage(best / _greedy.UNIT))


def _partitioned(unit: Float32, budget: int, max_cell_rows: int) -> Selection:
    from tamis.selectors import _greedy

    n = len(unit)
    cells = split_into_cells(unit, max_cell_rows=min(max_cell_rows, _LARGEST_CELL))
    rankings = []
    for rows in cells:
        local, gains = _rank(_kernel(unit[rows]), min(budget, len(rows)))
        rankings.append((rows[local], gains))
    indices, gains = merge_rankings(rankings, budget)

    position = np.full(n, -1, np.int64)
    position[indices] = np.arange(budget)
    nearest = np.empty(n, np.int64)
    similarity = np.empty(n, np.float64)
    bests, remaining = [], []
    for rows, (ranked, _) in zip(cells, rankings, strict=True):
        taken = ranked[position[ranked] >= 0]
        # The kernel again: all kernels together would not fit, and a cell's own is cheap.
        kernel = _kernel(unit[rows])
        if len(taken):
            local, best = _greedy.nearest_chosen(kernel, np.searchsorted(rows, taken))
            nearest[rows] = position[taken[local]]
            similarity[rows] = best / _greedy.UNIT
        else:
            best = np.zeros(len(rows), np.int32)
            nearest[rows], distance = assign(unit[rows], unit[indices])
            similarity[rows] = (1.0 - distance.astype(np.float64)).clip(0.0, 1.0)
        bests.append(best)
        remaining.append(_greedy.remaining_gains(kernel, best))

    block_objective, block_bound = _objective_and_bound(bests, remaining, budget)
    objective = float(similarity.sum())
    certificate = {
        "objective": objective,
        "upper_bound": float(n),
        "ratio": objective / n,
        "block_objective": block_objective,
        "block_upper_bound": block_bound,
        "block_ratio": block_objective / block_bound,
    }
    weights = np.bincount(nearest, minlength=budget).astype(np.float32)
    return Selection(indices, gains, weights, certificate | _coverage(similarity))


def _objective_and_bound(bests: list[Int32], remaining: list[Int64], budget: int) -> tuple[float, float]:
    """The value f(S), and f(S) + the k largest remaining gains: no set of k has more (f is submodular)."""
    from tamis.selectors import _greedy

    gains = np.concatenate(remaining)
    objective = sum(int(best.sum(dtype=np.int64)) for best in bests)
    # The largest k as an integer sum: exact, so independent of the order that the partial sort leaves.
    largest = int(np.partition(gains, len(gains) - budget)[len(gains) - budget :].sum())
    return objective / _greedy.UNIT, (objective + largest) / _greedy.UNIT


def _coverage(similarity: npt.NDArray[Any]) -> dict[str, float]:
    distance = 1.0 - similarity
    return {"coverage_mean": float(distance.mean()), "coverage_p95": float(np.percentile(distance, 95))}

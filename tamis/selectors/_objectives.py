"""The loops of the objectives beside facility location: greedy without a kernel of all pairs.

Rows are float32 and come with the float64 factor that makes their length 1, so that every product is one of
unit vectors to float64 accuracy. A row gives the same bits wherever it stands: identical rows tie exactly, and
ties go to the lowest index. Every compiled loop is serial and releases the GIL.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from tamis.selectors._greedy import make_heap, sift_down
from tamis.threads import one_blas_thread

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

# Sums of rows are taken on this grid, where they are exact (below 2^27 rows), so the order of the rows is free.
_SUM_GRID = 2.0**36
# Cosines are compared on this grid, coarser than their rounding: equal ones are equal, and that of a copy is 1.
_COSINE_GRID = 2.0**40
# Steps of log-det between two updates of all bounds. More make the product faster and leave looser bounds.
_LOG_DET_STEPS = 16
_TILE_ROWS = 65_536
# When more than this part of the heap is scored in a step, scoring all rows for some steps is faster.
_DENSE_SHARE = 3
_DENSE_STEPS = 16


# Only the order of the sums is left to the compiler: it takes one for all rows.
@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _dot(x: Float32, v: Float64) -> float:
    total = 0.0
    for e in range(x.shape[0]):
        total += x[e] * v[e]
    return total


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _dot32(x: Float32, v: Float32) -> np.float32:
    total = np.float32(0.0)
    for e in range(x.shape[0]):
        total += x[e] * v[e]
    return total


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def unit_factors(X: Float32) -> Float64:
    """The factor that makes the length of each row of float32[n, d] exactly 1, float64[n]."""
    factors = np.empty(X.shape[0], np.float64)
    for i in range(X.shape[0]):
        total = 0.0
        for e in range(X.shape[1]):
            total += np.float64(X[i, e]) * np.float64(X[i, e])
        factors[i] = 1.0 / np.sqrt(total)
    return factors


@njit(cache=True, nogil=True)
def sum_rows(X: Float32, factors: Float64) -> Float64:
    """Sum of the unit rows, float64[d]: the same bits for any order of the rows."""
    total = np.zeros(X.shape[1], np.int64)
    for i in range(X.shape[0]):
        scale = factors[i] * _SUM_GRID
        for e in range(X.shape[1]):
            total[e] += np.int64(np.rint(X[i, e] * scale))
    return total / _SUM_GRID


@njit(cache=True, nogil=True)
def products(X: Float32, factors: Float64, v: Float64) -> Float64:
    """Inner products of the unit rows with a vector of float64[d], float64[n]."""
    out = np.empty(X.shape[0], np.float64)
    for i in range(X.shape[0]):
        out[i] = factors[i] * _dot(X[i], v)
    return out


@njit(cache=True, nogil=True)
def _heap(scores: Float64, taken: Bool, keys: Float64, items: Int64) -> int:
    """Make the heap of the rows that are not taken; returns its size."""
    size = 0
    for j in range(len(scores)):
        if not taken[j]:
            keys[size] = scores[j]
            items[size] = j
            size += 1
    make_heap(keys[:size], items[:size], False)
    return size


@njit(cache=True, nogil=True)
def _drop_first(keys: Float64, items: Int64, size: int) -> None:
    """Remove the first of `size` entries from the heap."""
    keys[0] = keys[size - 1]
    items[0] = items[size - 1]
    sift_down(keys, items, 0, size - 1, False)


def linear_greedy(
    X: Float32, factors: Float64, total: Float64, weight: float, direction: Float64, budget: int, first: int = -1
) -> tuple[Int64, Float64]:
    """Choose again and again the row of the largest <x, total - weight * (sum of the chosen rows)>.

    A row's score changes by -weight * cos(row, chosen) a step: it rises where the cosine is negative, so a
    stale score is no upper bound. A stale score plus a bound of the rise since is one, and as the bound is
    the same for all rows it does not disturb the order of a heap: exact for cosines of any sign, at the cost
    of a few products a step. By the angles to any direction, cos(i, j) >= cos(angle_i + angle_j).

    Args:
        X: float32[n, d], C-contiguous, no row zero.
        factors: float64[n], see `unit_factors`.
        total: float64[d].
        weight: At least 0.
        direction: float64[d], what the rows point to on the whole; it decides only the speed.
        budget: How many rows to choose, in [1, n].
        first: The row to begin with whatever its score; -1 for the one of the largest.

    Returns:
        The chosen rows, int64[budget], ties to the lowest index, and their scores when chosen,
        float64[budget].
    """
    length = float(np.linalg.norm(direction))
    if length > 0.0:
        cosine = np.clip(products(X, factors, direction) / length, -1.0, 1.0)
        lowest = cosine.min()
        least = cosine * lowest - np.sqrt((1.0 - cosine**2) * (1.0 - lowest**2))
        least[cosine < -lowest] = -1.0
    else:
        least = np.full(len(X), -1.0)
    rounding = 2.0**-50 * X.shape[1] * (float(np.linalg.norm(total)) + weight * budget)
    rise = weight * (np.maximum(0.0, -least) + 2.0**-24) + rounding
    chosen, when_chosen = _linear_greedy(X, factors, total, weight, rise, budget, first)
    return chosen, when_chosen


@njit(cache=True, nogil=True)
def _linear_greedy(
    X: Float32, factors: Float64, total: Float64, weight: float, rise: Float64, budget: int, first: int
) -> tuple[Int64, Float64]:
    """The loop of `linear_greedy`; `rise` bounds by how much the choice of a row can raise any score.

    The heap is ordered by score less the bounds summed up to then: plus their sum now, an upper bound. After a
    step in which much of the heap had to be scored, all rows are for some steps, in order and without the heap.
    Either way a score is the same product.
    """
    n, d = X.shape
    v = total.copy()
    scores = products(X, factors, v)
    taken = np.zeros(n, np.bool_)
    seen = np.zeros(n, np.int64)
    keys = np.empty(n, np.float64)
    items = np.empty(n, np.int64)
    chosen = np.empty(budget, np.int64)
    when_chosen = np.empty(budget, np.float64)
    risen = 0.0
    size = 0
    dense = 1
    for step in range(budget):
        if dense > 0:
            dense -= 1
            j = -1
            for i in range(n):
                if taken[i]:
                    continue
                if step > 0:
                    scores[i] = factors[i] * _dot(X[i], v)
                    seen[i] = step
                if j < 0 or scores[i] > scores[j]:
                    j = i
            if step == 0 and first >= 0:
                j = first
        else:
            scored = 0
            while seen[items[0]] != step:
                j = items[0]
                scores[j] = factors[j] * _dot(X[j], v)
                seen[j] = step
                keys[0] = scores[j] - risen
                sift_down(keys, items, 0, size, False)
                scored += 1
            j = items[0]
            _drop_first(keys, items, size)
            size -= 1
            if scored > size // _DENSE_SHARE:
                dense = _DENSE_STEPS
        taken[j] = True
        chosen[step] = j
        when_chosen[step] = scores[j]
        if dense == 0 and size != n - step - 1:
            size = _heap(scores - risen, taken, keys, items)
        scale = weight * factors[j]
        for e in range(d):
            v[e] -= scale * X[j, e]
        risen += rise[j]
    return chosen, when_chosen


@njit(cache=True, nogil=True)
def farthest_first(X: Float32, factors: Float64, first: int, budget: int) -> tuple[Int64, Float64]:
    """Choose again and again the row that is farthest from its nearest chosen one (Gonzalez, 1985).

    The distance to the nearest chosen row only falls, so a stale one is an upper bound: a row meets the
    chosen ones that it has missed only when it is first in the heap, and only until it no longer is.

    Args:
        X: float32[n, d], C-contiguous, no row zero.
        factors: float64[n], see `unit_factors`.
        first: The row to begin with.
        budget: How many rows to choose, in [1, n].

    Returns:
        The chosen rows, int64[budget], ties to the lowest index, and the cosine distance of each to the
        nearest row chosen before, float64[budget], in multiples of 2^-40; that of the first is infinite.
    """
    n, d = X.shape
    keys = np.full(n, np.inf)
    items = np.arange(n)
    for place in range(first, 0, -1):
        items[place] = items[place - 1]
    items[0] = first
    seen = np.zeros(n, np.int64)
    chosen = np.empty(budget, np.int64)
    distances = np.empty(budget, np.float64)
    centres = np.empty((budget, d), np.float64)
    size = n
    for step in range(budget):
        while seen[items[0]] != step:
            j = items[0]
            second = -np.inf
            if size > 1:
                second = keys[1]
            if size > 2:
                second = max(second, keys[2])
            distance = keys[0]
            s = seen[j]
            while s < step and distance >= second:
                cosine = np.rint(factors[j] * _dot(X[j], centres[s]) * _COSINE_GRID) / _COSINE_GRID
                distance = min(distance, max(0.0, 1.0 - cosine))
                s += 1
            seen[j] = s
            keys[0] = distance
            sift_down(keys, items, 0, size, False)
        j = items[0]
        chosen[step] = j
        distances[step] = keys[0]
        for e in range(d):
            centres[step, e] = factors[j] * X[j, e]
        _drop_first(keys, items, size)
        size -= 1
    return chosen, distances


def log_det_greedy(X: Float32, factors: Float64, ridge: float, budget: int) -> tuple[Int64, Float64, Float64]:
    """Greedy maximisation of log det(K_S + ridge I), K the cosines (Chen et al., 2018, arXiv 1709.05135).

    In the dual form, with M = I + X_S^T X_S / ridge and unit rows, a row adds log q with
    q = ridge + x^T M^-1 x, and the choice of s takes <x, w>^2 from every q, with w = M^-1 x_s / sqrt(q_s). All
    rows get float32 upper bounds of q, from a matrix product every few steps, and only the first in line is
    computed exactly. Memory is O(n d + d min(d, budget)).

    Args:
        X: float32[n, d], C-contiguous, no row zero.
        factors: float64[n], see `unit_factors`.
        ridge: Above 0.
        budget: How many rows to choose, in [1, n].

    Returns:
        The chosen rows, int64[budget], ties to the lowest index; their q when chosen, float64[budget]; and
        an upper bound of the q of every row after the last choice, float64[n], -inf for the chosen.
    """
    n, d = X.shape
    steps = _LOG_DET_STEPS
    upper = np.full(n, 1.0 + ridge)
    seen = np.zeros(n, np.int64)
    exact = np.zeros(n, np.int64)
    chosen = np.empty(budget, np.int64)
    values = np.empty(budget, np.float64)
    # M^-1 = inverse - W^T W. One product with W is cheaper than one with M^-1 up to d / 2 rows.
    W = np.empty((min(budget, d // 2 + steps), d), np.float64)
    inverse = np.empty((0, 0), np.float64)
    rows = 0
    block = np.empty((steps, d), np.float32)
    slack = np.empty(steps, np.float64)
    with one_blas_thread():
        for start in range(0, budget, steps):
            stop = min(budget, start + steps)
            _log_det_steps(
                X, factors, ridge, upper, seen, exact, inverse, W, rows, block, slack, chosen, values, start, stop
            )
            rows += stop - start
            for row in range(0, n, _TILE_ROWS):
                tile = X[row : row + _TILE_ROWS] @ block[: stop - start].T
                _lower_bounds(tile, slack, ridge, upper, seen, row, start)
            if stop < budget and (len(inverse) or rows >= d // 2):
                if not len(inverse):
                    inverse = np.eye(d)
                inverse -= W[:rows].T @ W[:rows]
                rows = 0
    return chosen, values, upper


@njit(cache=True, nogil=True)
def _times_inverse(
    x: Float32, factor: float, ridge: float, inverse: Float64, W: Float64, rows: int, u: Float64
) -> float:
    """Write u = M^-1 x for the unit row x, and return ridge + <x, u>; see `log_det_greedy`."""
    d = x.shape[0]
    for e in range(d):
        u[e] = factor * _dot(x, inverse[e]) if len(inverse) else factor * x[e]
    for s in range(rows):
        a = factor * _dot(x, W[s])
        for e in range(d):
            u[e] -= a * W[s, e]
    return float(max(ridge, ridge + factor * _dot(x, u)))


@njit(cache=True, nogil=True)
def _less(value: float, product: np.float32, slack: float) -> float:
    """What is certainly left of q after a step, by a float32 product whose error is below `slack`."""
    a = abs(np.float64(product)) - slack
    return value - a * a if a > 0.0 else value


@njit(cache=True, nogil=True)
def _log_det_steps(
    X: Float32,
    factors: Float64,
    ridge: float,
    upper: Float64,
    seen: Int64,
    exact: Int64,
    inverse: Float64,
    W: Float64,
    rows: int,
    block: Float32,
    slack: Float64,
    chosen: Int64,
    values: Float64,
    start: int,
    stop: int,
) -> None:
    """Steps start to stop of `log_det_greedy`.

    `upper` holds a bound of each q that counts the first `seen` steps (-1: chosen), exact where `exact` is the
    current step. W gets a row a step, `block` the same row in float32, and `slack` the error of products with
    it: 2^-24 times its length for each term of the sum, in any order, and for the factor and the row's rounding.
    """
    n, d = X.shape
    keys = np.empty(n, np.float64)
    items = np.empty(n, np.int64)
    size = _heap(upper, seen < 0, keys, items)
    u = np.empty(d, np.float64)
    for step in range(start, stop):
        solved = -1
        while exact[items[0]] != step:
            j = items[0]
            if seen[j] < step:
                value = keys[0]
                for s in range(seen[j] - start, step - start):
                    value = _less(value, _dot32(X[j], block[s]), slack[s])
                keys[0] = max(ridge, value)
                seen[j] = step
            else:
                keys[0] = _times_inverse(X[j], factors[j], ridge, inverse, W, rows, u)
                exact[j] = step
                solved = j
            upper[j] = keys[0]
            sift_down(keys, items, 0, size, False)
        j = items[0]
        value = keys[0]
        if solved != j:
            _times_inverse(X[j], factors[j], ridge, inverse, W, rows, u)
        chosen[step] = j
        values[step] = value
        seen[j] = -1
        upper[j] = -np.inf
        _drop_first(keys, items, size)
        size -= 1
        scale = 1.0 / np.sqrt(value)
        length = 0.0
        for e in range(d):
            w = u[e] * scale
            W[rows, e] = w
            block[step - start, e] = w
            length += w * w
        slack[step - start] = np.sqrt(length) * (1.01 * d + 8.0) * 2.0**-24
        rows += 1


@njit(cache=True, nogil=True)
def _lower_bounds(
    tile: Float32, slack: Float64, ridge: float, upper: Float64, seen: Int64, row: int, start: int
) -> None:
    """Lower the bounds of the rows from `row` on by the steps that they have not seen; tile: [rows, steps]."""
    height, steps = tile.shape
    for i in range(height):
        j = row + i
        if seen[j] >= 0:
            value = upper[j]
            for s in range(seen[j] - start, steps):
                value = _less(value, tile[i, s], slack[s])
            upper[j] = max(ridge, value)
            seen[j] = start + steps

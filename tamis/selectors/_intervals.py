"""The compiled loops of exact 1-D k-means: dynamic programming over intervals of sorted points.

Of many points only few can be where an interval of the optimum begins. `_narrow` finds windows that hold all of
them, by branch and bound on a coarse grid; the programme itself then runs over what is left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Float = npt.NDArray[np.floating[Any]]

_CELLS = 256  # of a window
_SMALL = 4096  # positions in windows that need no narrowing
_LLOYD = 64


@njit(cache=True, nogil=True)
def _best_split(
    before: Float64, first: Float64, weight: Float64, low: int, high: int, base: int, j: int
) -> tuple[float, int]:
    """The largest before[i - base] + (sum of i .. j - 1)^2 / mass, low <= i <= high, and the lowest such i."""
    best = -np.inf
    split = low
    for i in range(low, high + 1):
        total = first[j] - first[i]
        value = before[i - base] + total * total / (weight[j] - weight[i])
        if value > best:
            best = value
            split = i
    return best, split


@njit(cache=True, nogil=True)
def _layer(
    before: Float64, first: Float64, weight: Float64, earlier: Int64, window: Int64, after: Float64, split: Int64
) -> None:
    """One layer: after[j] = max over i < j of before[i] + gain(i, j) for j in a window, and the lowest such i.

    The best i never falls as j rises, so the middle j of a stretch bounds both halves: m log m steps. Arrays begin at
    their windows' first positions: earlier = (lowest i, highest i), window = (lowest j, highest j).
    """
    stack = np.empty((64, 4), np.int64)  # halving: no deeper than the bits of m
    depth = 1
    stack[0] = (window[0], window[1], earlier[0], earlier[1])
    while depth:
        depth -= 1
        start, stop, low, high = stack[depth]
        middle = (start + stop) // 2
        best, at = _best_split(before, first, weight, low, min(high, middle - 1), earlier[0], middle)
        after[middle - window[0]] = best
        split[middle - window[0]] = at
        if middle < stop:
            stack[depth] = (middle + 1, stop, at, high)
            depth += 1
        if start < middle:
            stack[depth] = (start, middle - 1, low, min(at, middle - 1))
            depth += 1


@njit(cache=True, nogil=True)
def _error(weight: Float64, first: Float64, second: Float64, i: int, j: int) -> float:
    """The squared error of points i .. j - 1 to their mean; 0 where there are none."""
    if i >= j:
        return 0.0
    total = first[j] - first[i]
    error: float = second[j] - second[i] - total * total / (weight[j] - weight[i])
    return max(error, 0.0)


@njit(cache=True, nogil=True)
def _polished(points: Float64, weight: Float64, first: Float64, second: Float64, starts: Int64) -> float:
    """The squared error after Lloyd's steps from these starts: what the optimum does not exceed."""
    groups, m = starts.shape[0], points.shape[0]
    ends = np.append(starts[1:], m)
    for _ in range(_LLOYD):
        moved = False
        for g in range(1, groups):
            left = (first[ends[g - 1]] - first[starts[g - 1]]) / (weight[ends[g - 1]] - weight[starts[g - 1]])
            right = (first[ends[g]] - first[starts[g]]) / (weight[ends[g]] - weight[starts[g]])
            border = np.searchsorted(points, (left + right) / 2)
            border = min(max(border, starts[g - 1] + 1), ends[g] - 1)
            if border != starts[g]:
                moved = True
                starts[g] = border
                ends[g - 1] = border
        if not moved:
            break
    error = 0.0
    for g in range(groups):
        error += _error(weight, first, second, starts[g], ends[g])
    return error


@njit(cache=True, nogil=True)
def _narrow(points: Float64, weight: Float64, first: Float64, second: Float64, windows: Int64) -> Int64:
    """Windows of the borders between groups, narrowed to the cells that a best solution can have a border in.

    A group whose borders lie in two cells holds at least the points between the cells, whose squared error is
    therefore no more than its own. So the least sum of those over all choices of cells, found from both sides,
    bounds from below what any solution costs that has a border in a cell; a solution bounds it from above.

    Args:
        points: float64[m], ascending.
        weight: float64[m + 1], sums of mass before each position.
        first: float64[m + 1], sums of mass times point.
        second: float64[m + 1], sums of mass times squared point.
        windows: int64[groups + 1, 2], the lowest and highest position of each border, the outer ones (0, 0) and
            (m, m) included.

    Returns:
        The same, narrower.
    """
    borders = windows.shape[0]
    cells = np.ones(borders, np.int64)
    edges = np.empty((borders, _CELLS + 1), np.int64)
    for t in range(borders):
        low, high = windows[t]
        cells[t] = max(1, min(_CELLS, high - low))
        for c in range(cells[t] + 1):
            edges[t, c] = low + (high - low) * c // cells[t]
    ahead = np.full((borders, _CELLS), np.inf)
    behind = np.full((borders, _CELLS), np.inf)
    path = np.zeros((borders, _CELLS), np.int64)
    ahead[0, 0] = 0.0
    behind[borders - 1, 0] = 0.0
    for t in range(1, borders):
        for c in range(cells[t]):
            for a in range(cells[t - 1]):
                if edges[t - 1, a] >= edges[t, c + 1]:
                    break
                cost = ahead[t - 1, a] + _error(weight, first, second, edges[t - 1, a + 1], edges[t, c])
                if cost < ahead[t, c]:
                    ahead[t, c] = cost
                    path[t, c] = a
    for t in range(borders - 2, -1, -1):
        for c in range(cells[t]):
            for a in range(cells[t + 1] - 1, -1, -1):
                if edges[t, c] >= edges[t + 1, a + 1]:
                    break
                cost = behind[t + 1, a] + _error(weight, first, second, edges[t, c + 1], edges[t + 1, a])
                behind[t, c] = min(behind[t, c], cost)
    m = points.shape[0]
    starts = np.empty(borders - 1, np.int64)
    c = 0
    end = m
    for t in range(borders - 1, 0, -1):
        c = path[t, c]
        starts[t - 1] = min((edges[t - 1, c] + edges[t - 1, c + 1]) // 2, end - 1)
        end = starts[t - 1]
    starts[0] = 0
    for t in range(1, borders - 1):
        starts[t] = max(starts[t], starts[t - 1] + 1)
    # Rounding of the sums must not cut off the optimum.
    most = _polished(points, weight, first, second, starts) * (1 + 1e-9) + 1e-12 * second[m]
    narrowed = windows.copy()
    for t in range(1, borders - 1):
        low, high = -1, -1
        for c in range(cells[t]):
            if ahead[t, c] + behind[t, c] <= most:
                if low < 0:
                    low = c
                high = c
        if low >= 0:
            narrowed[t, 0] = edges[t, low]
            narrowed[t, 1] = edges[t, high + 1]
    return narrowed


@njit(cache=True, nogil=True)
def interval_starts(ordered: Float, groups: int) -> Int64:
    """Intervals of values of least squared distance to their means; equal values never part.

    The squared error is sum w x^2 - sum over intervals of (sum w x)^2 / (sum w); the first term is the same for
    all, so the second is maximised.

    Args:
        ordered: float[n], ascending, finite, at least one.
        groups: How many intervals, at least 1.

    Returns:
        int64[groups], the position of each interval's first value; fewer where there are fewer distinct values. Of
        equally good ones, the lower are the shorter.
    """
    # Squares of centred, scaled values neither overflow nor cancel.
    n = ordered.shape[0]
    scale = max(abs(np.float64(ordered[0])), abs(np.float64(ordered[n - 1])), np.finfo(np.float64).tiny)
    points = np.empty(n)
    weight = np.empty(n + 1)  # values before each distinct one: its position too
    m = 0
    total = 0.0
    for p in range(n):
        value = np.float64(ordered[p]) / scale
        total += value
        if p == 0 or ordered[p] != ordered[p - 1]:
            points[m] = value
            weight[m] = p
            m += 1
    weight[m] = n
    if m <= groups:
        return weight[:m].astype(np.int64)
    points, weight = points[:m], weight[: m + 1]
    centre = total / n
    first = np.empty(m + 1)
    second = np.empty(m + 1)
    first[0] = second[0] = 0.0
    for p in range(m):
        points[p] -= centre
        moment = (weight[p + 1] - weight[p]) * points[p]
        first[p + 1] = first[p] + moment
        second[p + 1] = second[p] + moment * points[p]
    windows = np.empty((groups + 1, 2), np.int64)
    for t in range(groups + 1):
        windows[t] = (t, m - groups + t)
    windows[0] = (0, 0)
    windows[groups] = (m, m)
    size = np.sum(windows[:, 1] - windows[:, 0])
    while size > _SMALL:
        windows = _narrow(points, weight, first, second, windows)
        smaller = np.sum(windows[:, 1] - windows[:, 0])
        if smaller > size - size // 8:
            break
        size = smaller
    before = np.zeros(1)
    splits = np.empty(np.sum(windows[:, 1] - windows[:, 0] + 1), np.int64)
    at = np.zeros(groups + 2, np.int64)
    for t in range(1, groups + 1):
        width = windows[t, 1] - windows[t, 0] + 1
        at[t + 1] = at[t] + width
        after = np.empty(width)
        _layer(before, first, weight, windows[t - 1], windows[t], after, splits[at[t] : at[t + 1]])
        before = after
    starts = np.zeros(groups, np.int64)
    end = m
    for t in range(groups, 1, -1):
        end = splits[at[t] + end - windows[t, 0]]
        starts[t - 1] = end
    return weight[starts].astype(np.int64)

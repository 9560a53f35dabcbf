"""The compiled loops of exact 1-D k-means: dynamic programming over intervals of sorted points."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@njit(cache=True, nogil=True)
def _best_split(before: Float64, first: Float64, weight: Float64, low: int, high: int, j: int) -> tuple[float, int]:
    """The largest before[i] + (sum of i .. j - 1)^2 / mass, low <= i <= high, and the lowest i that has it."""
    best = -np.inf
    split = low
    for i in range(low, high + 1):
        total = first[j] - first[i]
        value = before[i] + total * total / (weight[j] - weight[i])
        if value > best:
            best = value
            split = i
    return best, split


@njit(cache=True, nogil=True)
def _layer(before: Float64, first: Float64, weight: Float64, groups: int, after: Float64, split: Int32) -> None:
    """One layer: after[j] = max over i of before[i] + gain(i, j) for j >= groups, and the lowest such i.

    The best i never falls as j rises, so the middle j of a stretch bounds both halves: m log m steps.
    """
    m = after.shape[0] - 1
    stack = np.empty((64, 4), np.int64)  # halving: no deeper than the bits of m
    depth = 1
    stack[0] = (groups, m, groups - 1, m - 1)
    while depth:
        depth -= 1
        start, stop, low, high = stack[depth]
        middle = (start + stop) // 2
        best, at = _best_split(before, first, weight, low, min(high, middle - 1), middle)
        after[middle] = best
        split[middle] = at
        if middle < stop:
            stack[depth] = (middle + 1, stop, at, high)
            depth += 1
        if start < middle:
            stack[depth] = (start, middle - 1, low, at)
            depth += 1


@njit(cache=True, nogil=True)
def interval_starts(points: Float64, mass: Float64, groups: int) -> Int64:
    """Intervals of least squared distance to their means.

    The squared error is sum w x^2 - sum over intervals of (sum w x)^2 / (sum w); the first term is the same for
    all, so the second is maximised.

    Args:
        points: float64[m], ascending, about 0 (so that sums do not cancel).
        mass: float64[m] > 0.
        groups: How many intervals, in [1, m].

    Returns:
        int64[groups], the first position of each interval. Of equally good ones, the lower are the shorter.
    """
    m = points.shape[0]
    weight = np.zeros(m + 1)
    first = np.zeros(m + 1)
    for p in range(m):
        weight[p + 1] = weight[p] + mass[p]
        first[p + 1] = first[p] + mass[p] * points[p]
    before = np.empty(m + 1)
    for j in range(1, m + 1):
        before[j] = first[j] * first[j] / weight[j]
    after = np.empty(m + 1)
    splits = np.empty((max(0, groups - 2), m + 1), np.int32)
    for layer in range(2, groups):
        _layer(before, first, weight, layer, after, splits[layer - 2])
        before, after = after, before
    starts = np.zeros(groups, np.int64)
    end = m
    for group in range(groups - 1, 0, -1):
        if group == groups - 1:
            _, end = _best_split(before, first, weight, group, m - 1, m)
        else:
            end = splits[group - 1, end]
        starts[group] = end
    return starts

"""The compiled loops: greedy facility location on an integer kernel, and greedy de-duplication of pairs.

Similarities are clamped to [0, 1] and rounded to int32 in units of 2^-23, and gains are their exact int64
sums: they do not depend on the order of summation, and a gain that was updated step by step equals one
    computed afresh. Every
loop is serial and releases the GIL; parallelism is across calls.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

UNIT = 1 << 23  # the integer that stands for similarity 1

_SCALE = np.float32(UNIT)
_TILE = 32  # rows and columns of a tile that is transposed in cache
_CHUNK = 4096  # columns of the accumulator that stays in cache
_FLUSH = 250  # 250 * 2^23 < 2^31: so many decrements fit an int32 accumulator
_FIRST_CHECK = 8  # steps before the pairs still active are counted for the first time
_SPARSE_SHARE = 0.03  # changed rows a step, as a share of n, below which counting is worth it
_PAIRS_DIVISOR = 8  # the pair lists take 8 bytes a pair: at most n^2 / 8 of them, a quarter of the kernel

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@njit(cache=True, nogil=True)
def quantise_tile(tile: Float32, kernel: Int32, row: int, column: int) -> None:
    """Write a block of cosines into the kernel at (row, column), and its transpose at (column, row).

    Args:
        tile: float32[a, b] cosines.
        kernel: int32[n, n], changed in place.
        row: First row of the block.
        column: First column of the block.
    """
    height, width = tile.shape
    for i0 in range(0, height, _TILE):
        i1 = min(height, i0 + _TILE)
        for j0 in range(0, width, _TILE):
            j1 = min(width, j0 + _TILE)
            for i in range(i0, i1):
                for j in range(j0, j1):
                    v = tile[i, j]
                    v = v if v > np.float32(0) else np.float32(0)
                    v = v if v < np.float32(1) else np.float32(1)
                    kernel[row + i, column + j] = np.int32(v * _SCALE + np.float32(0.5))
            for j in range(j0, j1):
                for i in range(i0, i1):
                    kernel[column + j, row + i] = kernel[row + i, column + j]


@njit(cache=True, nogil=True)
def _before(key1: int, item1: int, key2: int, item2: int) -> bool:
    """Heap order: the larger key first, and of equal keys the lower item."""
    if key1 != key2:
        return key1 > key2
    return item1 < item2


@njit(cache=True, nogil=True)
def _sift_down(keys: Int64, items: Int64, place: int, size: int) -> None:
    key = keys[place]
    item = items[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and _before(keys[child + 1], items[child + 1], keys[child], items[child]):
            child += 1
        if not _before(keys[child], items[child], key, item):
            break
        keys[place] = keys[child]
        items[place] = items[child]
        place = child
    keys[place] = key
    items[place] = item


@njit(cache=True, nogil=True)
def _pop_best(keys: Int64, items: Int64, size: int, gain: Int64) -> np.int64:
    """Remove the item of largest gain (the lowest of several) from the heap, and return it.

    Keys are earlier gains, so upper bounds (submodularity); `gain` holds the exact ones. An item whose exact
    gain still comes before the second best key is the best of all.
    """
    while True:
        item: np.int64 = items[0]
        exact = gain[item]
        accepted = size == 1 or exact == keys[0]
        if not accepted:
            second = 1
            if size > 2 and _before(keys[2], items[2], keys[1], items[1]):
                second = 2
            accepted = _before(exact, item, keys[second], items[second])
        if accepted:
            keys[0] = keys[size - 1]
            items[0] = items[size - 1]
            _sift_down(keys, items, 0, size - 1)
            return item
        keys[0] = exact
        _sift_down(keys, items, 0, size)


@njit(cache=True, nogil=True)
def _raise_best(row: Int32, best: Int32, changed: Int64, old: Int32, new: Int32) -> int:
    """Raise best to the chosen row where that is larger; list what changed, and return how many."""
    count = 0
    for i in range(row.shape[0]):
        w = row[i]
        if w > best[i]:
            changed[count] = i
            old[count] = best[i]
            new[count] = w
            best[i] = w
            count += 1
    return count


@njit(cache=True, nogil=True)
def _decrement_dense(
    kernel: Int32, changed: Int64, count: int, old: Int32, new: Int32, gain: Int64, acc: Int32
) -> None:
    """Take from every gain what the changed rows no longer offer: min(k_ij, new_i) - old_i where positive."""
    n = kernel.shape[1]
    for j0 in range(0, n, _CHUNK):
        j1 = min(n, j0 + _CHUNK)
        width = j1 - j0
        for j in range(width):
            acc[j] = 0
        pending = 0
        for u in range(count):
            row = kernel[changed[u], j0:j1]
            o = old[u]
            w = new[u]
            for j in range(width):
                v = row[j]
                v = v if v < w else w
                v = v if v > o else o
                acc[j] += v - o
            pending += 1
            if pending == _FLUSH:
                for j in range(width):
                    gain[j0 + j] -= acc[j]
                    acc[j] = 0
                pending = 0
        for j in range(width):
            gain[j0 + j] -= acc[j]


@njit(cache=True, nogil=True)
def _active_starts(kernel: Int32, best: Int32, start: Int64) -> None:
    """Count the pairs with k_ij > best_i into the starts of their rows in one list, int64[n + 1]."""
    n = kernel.shape[0]
    start[0] = 0
    for i in range(n):
        row = kernel[i]
        threshold = best[i]
        count = 0
        for j in range(n):
            count += 1 if row[j] > threshold else 0
        start[i + 1] = start[i] + count


@njit(cache=True, nogil=True)
def greedy(kernel: Int32, budget: int) -> tuple[Int64, Int64]:
    """Exact greedy maximisation of f(S) = sum_i max(0, max_{j in S} k_ij); ties go to the lowest index.

    All gains are kept exact at all times. First densely: adding s changes a gain only through the rows whose
    best similarity rises. Pairs with k_ij <= best_i never matter again, so once few rows change a step, the
    other pairs are listed by row, and the lists shrink from then on.

    Args:
        kernel: int32[n, n], symmetric, in [0, UNIT], diagonal UNIT. Not changed.
        budget: How many to choose, in [1, n].

    Returns:
        The chosen indices in order, int64[budget], and their gains, int64[budget] in units of 1 / UNIT.
    """
    n = kernel.shape[0]
    gain = np.zeros(n, np.int64)
    for j in range(n):
        total = np.int64(0)
        for i in range(n):
            total += kernel[j, i]
        gain[j] = total
    keys = gain.copy()
    items = np.arange(n)
    for place in range(n // 2 - 1, -1, -1):
        _sift_down(keys, items, place, n)

    chosen = np.empty(budget, np.int64)
    gains = np.empty(budget, np.int64)
    best = np.zeros(n, np.int32)
    changed = np.empty(n, np.int64)
    old = np.empty(n, np.int32)
    new = np.empty(n, np.int32)
    acc = np.empty(_CHUNK, np.int32)
    start = np.empty(n + 1, np.int64)
    smoothed = float(n)
    check_at = _FIRST_CHECK
    step = 0
    while step < budget:
        s = _pop_best(keys, items, n - step, gain)
        chosen[step] = s
        gains[step] = gain[s]
        step += 1
        count = _raise_best(kernel[s], best, changed, old, new)
        _decrement_dense(kernel, changed, count, old, new, gain, acc)
        smoothed = 0.7 * smoothed + 0.3 * count
        if step >= check_at and smoothed < _SPARSE_SHARE * n:
            _active_starts(kernel, best, start)
            if start[n] <= n * n // _PAIRS_DIVISOR:
                break
            check_at = 2 * step
    if step == budget:
        return chosen, gains

    column = np.empty(start[n], np.int32)
    value = np.empty(start[n], np.int32)
    length = np.empty(n, np.int64)
    for i in range(n):
        p = start[i]
        for j in range(n):
            if kernel[i, j] > best[i]:
                column[p] = j
                value[p] = kernel[i, j]
                p += 1
        length[i] = p - start[i]

    while step < budget:
        s = _pop_best(keys, items, n - step, gain)
        chosen[step] = s
        gains[step] = gain[s]
        step += 1
        row = kernel[s]
        for i in range(n):
            w = row[i]
            o = best[i]
            if w > o:
                kept = start[i]
                for p in range(start[i], start[i] + length[i]):
                    v = value[p]
                    j = column[p]
                    if v > w:
                        gain[j] -= w - o
                        value[kept] = v
                        column[kept] = j
                        kept += 1
                    else:
                        gain[j] -= v - o
                length[i] = kept - start[i]
                best[i] = w
    return chosen, gains


@njit(cache=True, nogil=True)
def nearest_chosen(kernel: Int32, chosen: Int64) -> tuple[Int64, Int32]:
    """For each row the chosen one most similar to it (the earliest of several; a chosen row is its own).

    Args:
        kernel: int32[n, n], symmetric.
        chosen: int64[k], k >= 1.

    Returns:
        Positions in `chosen`, int64[n], and the similarities, int32[n].
    """
    n = kernel.shape[0]
    nearest = np.zeros(n, np.int64)
    best = np.full(n, -1, np.int32)
    for r in range(chosen.shape[0]):
        row = kernel[chosen[r]]
        for i in range(n):
            if row[i] > best[i]:
                best[i] = row[i]
                nearest[i] = r
    for r in range(chosen.shape[0]):
        nearest[chosen[r]] = r
    return nearest, best


@njit(cache=True, nogil=True)
def remaining_gains(kernel: Int32, best: Int32) -> Int64:
    """What each row would still add: sum_i max(0, k_ij - best_i), int64[n]; 0 for rows already chosen."""
    n = kernel.shape[0]
    gain = np.empty(n, np.int64)
    for j in range(n):
        row = kernel[j]
        total = np.int64(0)
        for i in range(n):
            rise = row[i] - best[i]
            total += rise if rise > 0 else 0
        gain[j] = total
    return gain


@njit(cache=True, nogil=True)
def resolve_ranked(n: int, first: Int64, second: Int64, cosine: Float64) -> tuple[Int64, Float64]:
    """Greedy de-duplication of items 0 .. n - 1, visited in this order.

    Args:
        n: Number of items.
        first: int64[p], one item of each pair.
        second: int64[p], the other item.
        cosine: float64[p], similarities, all at or above the threshold.

    Returns:
        int64[n], the kept item that stands for each (itself if kept), and float64[n], the similarity to it.
    """
    start = np.zeros(n + 1, np.int64)
    for p in range(first.shape[0]):
        start[max(first[p], second[p]) + 1] += 1
    for r in range(n):
        start[r + 1] += start[r]
    filled = start[:-1].copy()
    earlier = np.empty(first.shape[0], np.int64)
    similar = np.empty(first.shape[0], np.float64)
    for p in range(first.shape[0]):
        later = max(first[p], second[p])
        earlier[filled[later]] = min(first[p], second[p])
        similar[filled[later]] = cosine[p]
        filled[later] += 1

    kept_of = np.empty(n, np.int64)
    similarity = np.empty(n, np.float64)
    for r in range(n):
        representative = r
        highest = 1.0
        for p in range(start[r], start[r + 1]):
            e = earlier[p]
            if kept_of[e] == e:
                c = similar[p]
                if representative == r or c > highest or (c == highest and e < representative):
                    representative = e
                    highest = c
        kept_of[r] = representative
        similarity[r] = highest
    return kept_of, similarity

"""The compiled loops of greedy facility location, on cosines as uint16 in units of 2^-15 (see `grid`).

Every loop is serial and releases the GIL; parallelism is across calls. Gains are exact int64 sums, so that a gain
that was updated step by step equals one computed afresh, in any order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_CHUNK = 8192  # columns of the accumulator that stays in cache
_FLUSH = 1 << 16  # rows whose differences, 2^15 at most, fit an accumulator of 32 bits
_TILE = 64  # rows and columns of a tile that is transposed in cache
_HALF, _LOW, _HIGH = np.float32(0.5), np.float32(0), np.float32(1 << 15)

Bool = npt.NDArray[np.bool_]
UInt16 = npt.NDArray[np.uint16]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@intrinsic
def _lowest_bit(typing_context: Any, word: Any) -> Any:  # noqa: ARG001
    """The place of the lowest set bit of a uint64."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), build


@njit(cache=True, nogil=True)
def quantise(tile: Float32, row_scale: Float32, column_scale: Float32, out: UInt16) -> None:
    """Turn a tile of products into uint16 cosines.

    Args:
        tile: float32[a, b] products of grid rows.
        row_scale: float32[a], `grid.cosine_scale` of the rows.
        column_scale: float32[b], the same of the columns.
        out: uint16[a, b], written.
    """
    for i in range(tile.shape[0]):
        products = tile[i]
        row = out[i]
        scale = row_scale[i]
        for j in range(products.shape[0]):
            v = products[j] * (scale * column_scale[j]) + _HALF
            row[j] = np.uint16(np.int32(min(max(v, _LOW), _HIGH)))


@njit(cache=True, nogil=True)
def quantise_symmetric(tile: Float32, scale: Float32, kernel: UInt16, row: int, column: int) -> None:
    """Write a tile of products as cosines into a symmetric kernel at (row, column), and its transpose.

    Args:
        tile: float32[a, b] products of grid rows.
        scale: float32[n], `grid.cosine_scale` of all rows.
        kernel: uint16[n, n], written.
        row: First row of the tile.
        column: First column of the tile.
    """
    height, width = tile.shape
    square = np.empty((_TILE, _TILE), np.uint16)
    for i0 in range(0, height, _TILE):
        i1 = min(height, i0 + _TILE)
        for j0 in range(0, width, _TILE):
            j1 = min(width, j0 + _TILE)
            for i in range(i0, i1):
                products = tile[i, j0:j1]
                target = kernel[row + i, column + j0 : column + j1]
                copied = square[i - i0]
                row_scale = scale[row + i]
                column_scale = scale[column + j0 : column + j1]
                for j in range(j1 - j0):
                    v = products[j] * (row_scale * column_scale[j]) + _HALF
                    q = np.uint16(np.int32(min(max(v, _LOW), _HIGH)))
                    target[j] = q
                    copied[j] = q
            for j in range(j0, j1):
                target = kernel[column + j, row + i0 : row + i1]
                for i in range(i1 - i0):
                    target[i] = square[i, j - j0]


@njit(cache=True, nogil=True)
def add_clipped(block: UInt16, rows: Int64, low: UInt16, high: UInt16, sign: int, total: Int64) -> None:
    """Add to each column j: sign * sum_u (clip(block[rows_u, j], low_u, high_u) - low_u).

    With low the best similarity so far and high the largest there can be, this is every column's gain; with low
    the best before and high the best after a choice, it is what the choice takes from every gain.

    Args:
        block: uint16[m, w].
        rows: int64[r], rows of the block.
        low: uint16[r].
        high: uint16[r], nowhere below `low`.
        sign: 1 or -1.
        total: int64[w], changed in place.
    """
    width = block.shape[1]
    for j0 in range(0, width, _CHUNK):
        j1 = min(width, j0 + _CHUNK)
        size = j1 - j0
        acc = np.zeros(size, np.uint32)
        u = 0
        while u < rows.shape[0]:
            end = min(rows.shape[0], u + _FLUSH)
            while u + 4 <= end:  # four rows at a time: the accumulator is read and written once for them
                a = block[rows[u], j0:j1]
                b = block[rows[u + 1], j0:j1]
                c = block[rows[u + 2], j0:j1]
                d = block[rows[u + 3], j0:j1]
                la, lb, lc, ld = low[u], low[u + 1], low[u + 2], low[u + 3]
                ha, hb, hc, hd = high[u], high[u + 1], high[u + 2], high[u + 3]
                for j in range(size):
                    acc[j] += (
                        np.uint32(np.uint16(min(max(a[j], la), ha) - la))
                        + np.uint32(np.uint16(min(max(b[j], lb), hb) - lb))
                        + np.uint32(np.uint16(min(max(c[j], lc), hc) - lc))
                        + np.uint32(np.uint16(min(max(d[j], ld), hd) - ld))
                    )
                u += 4
            while u < end:
                a = block[rows[u], j0:j1]
                la, ha = low[u], high[u]
                for j in range(size):
                    acc[j] += np.uint32(np.uint16(min(max(a[j], la), ha) - la))
                u += 1
            sums = total[j0:j1]
            for j in range(size):
                sums[j] += sign * np.int64(acc[j])
                acc[j] = 0


@njit(cache=True, nogil=True)
def add_clipped_transposed(block: UInt16, low: UInt16, high: UInt16, total: Int64) -> None:
    """Add to each row i of a block: sum_j (clip(block[i, j], low_j, high_j) - low_j).

    The same as `add_clipped` on the block's transpose, which a symmetric kernel gives for nothing.

    Args:
        block: uint16[m, w], w < 2^16.
        low: uint16[w].
        high: uint16[w], nowhere below `low`.
        total: int64[m], changed in place.
    """
    for i in range(block.shape[0]):
        row = block[i]
        acc = np.uint32(0)
        for j in range(row.shape[0]):
            acc += np.uint32(np.uint16(min(max(row[j], low[j]), high[j]) - low[j]))
        total[i] += np.int64(acc)


@njit(cache=True, nogil=True)
def count_above(block: UInt16, low: UInt16) -> np.int64:
    """How many block[i, j] exceed low_i."""
    count: np.int64 = np.int64(0)
    for i in range(block.shape[0]):
        row = block[i]
        threshold = low[i]
        for j0 in range(0, row.shape[0], 1 << 15):
            part = row[j0 : j0 + (1 << 15)]
            above = np.uint16(0)
            for j in range(part.shape[0]):
                above += np.uint16(part[j] > threshold)
            count += np.int64(above)
    return count


@njit(cache=True, nogil=True)
def list_above(block: UInt16, low: UInt16, high: UInt16, column: Int32, value: UInt16, length: Int64) -> np.int64:
    """List the entries of each row i that exceed low_i, cut to high_i, one row after another.

    Args:
        block: uint16[m, w].
        low: uint16[m].
        high: uint16[m]; a row with low_i >= high_i lists nothing.
        column: int32[c], c large enough, written: the entries' columns, ascending in each row.
        value: uint16[c], written: their values.
        length: int64[m], written: how many each row lists.

    Returns:
        How many are listed in all.
    """
    width = block.shape[1]
    above = np.zeros((width + 7) // 8 * 8, np.uint8)
    words = above.view(np.uint64)
    place: np.int64 = np.int64(0)
    for i in range(block.shape[0]):
        begin = place
        threshold, top = low[i], high[i]
        if threshold < top:
            row = block[i]
            for j in range(width):
                above[j] = np.uint8(row[j] > threshold)
            for w in range(words.shape[0]):
                word = words[w]
                while word:
                    at = 8 * w + np.int64(_lowest_bit(word) >> np.uint64(3))
                    column[place] = at
                    value[place] = min(row[at], top)
                    place += np.int64(1)
                    word &= word - np.uint64(1)
        length[i] = place - begin
    return place


@njit(cache=True, nogil=True)
def transpose_lists(start: Int64, column: Int32, value: UInt16, columns: int) -> tuple[Int64, Int32, UInt16]:
    """Lists by row as lists by column: starts int64[columns + 1], rows int32 ascending, values uint16."""
    begin = np.zeros(columns + 1, np.int64)
    for p in range(column.shape[0]):
        begin[column[p] + 1] += 1
    for j in range(columns):
        begin[j + 1] += begin[j]
    place = begin[:-1].copy()
    rows = np.empty(column.shape[0], np.int32)
    values = np.empty(column.shape[0], np.uint16)
    for i in range(start.shape[0] - 1):
        for p in range(start[i], start[i + 1]):
            q = place[column[p]]
            rows[q] = i
            values[q] = value[p]
            place[column[p]] = q + 1
    return begin, rows, values


@njit(cache=True, nogil=True)
def sum_lists(start: Int64, row: Int32, value: UInt16, low: UInt16, high: UInt16) -> Int64:
    """The gain of each list's candidate: the sum of clip(value, low_i, high_i) - low_i over its rows i, int64."""
    total = np.zeros(start.shape[0] - 1, np.int64)
    for j in range(total.shape[0]):
        for p in range(start[j], start[j + 1]):
            i = row[p]
            total[j] += np.int64(min(max(value[p], low[i]), high[i])) - np.int64(low[i])
    return total


@njit(cache=True, nogil=True)
def lists_above(start: Int64, column: Int32, value: UInt16, low: UInt16, high: UInt16) -> tuple[Int64, Int32, UInt16]:
    """Copy the entries of each row i's list that exceed low_i, cut to high_i."""
    n = start.shape[0] - 1
    begin = np.zeros(n + 1, np.int64)
    for i in range(n):
        count = 0
        if low[i] < high[i]:
            for p in range(start[i], start[i + 1]):
                count += value[p] > low[i]
        begin[i + 1] = begin[i] + count
    columns = np.empty(begin[n], np.int32)
    values = np.empty(begin[n], np.uint16)
    for i in range(n):
        if low[i] < high[i]:
            q = begin[i]
            for p in range(start[i], start[i + 1]):
                if value[p] > low[i]:
                    columns[q] = column[p]
                    values[q] = min(value[p], high[i])
                    q += 1
    return begin, columns, values


@njit(cache=True, nogil=True)
def _before(key1: float, item1: int, key2: float, item2: int, last_of_ties: bool) -> bool:
    """Heap order: the larger key first, and of equal keys the lower item (or the higher one)."""
    if key1 != key2:
        return key1 > key2
    return item1 > item2 if last_of_ties else item1 < item2


@njit(cache=True, nogil=True)
def sift_down(keys: Float64, items: Int64, place: int, size: int, last_of_ties: bool) -> None:
    """Restore the heap below an entry that has become smaller."""
    key = keys[place]
    item = items[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and _before(keys[child + 1], items[child + 1], keys[child], items[child], last_of_ties):
            child += 1
        if not _before(keys[child], items[child], key, item, last_of_ties):
            break
        keys[place] = keys[child]
        items[place] = items[child]
        place = child
    keys[place] = key
    items[place] = item


@njit(cache=True, nogil=True)
def make_heap(keys: Float64, items: Int64, last_of_ties: bool) -> None:
    """Order keys and items, in place, into a heap with the best on top."""
    for place in range(keys.shape[0] // 2 - 1, -1, -1):
        sift_down(keys, items, place, keys.shape[0], last_of_ties)


@njit(cache=True, nogil=True)
def pop_best(keys: Float64, items: Int64, size: int, gain: Int64, cost: Float64, last_of_ties: bool) -> np.int64:
    """Remove the item of the largest gain per cost from the heap, and return it.

    Keys are earlier values of gain / cost, so upper bounds (submodularity); `gain` holds the exact gains, below
    2^53. An item whose exact key still comes before the second best is the best of all. With `last_of_ties` it
    need only equal the second best key: the rule of submodlib's LazyGreedy.
    """
    while True:
        item: np.int64 = items[0]
        exact = np.float64(gain[item]) / cost[item]
        accepted = size == 1 or exact == keys[0]
        if not accepted:
            second = 1
            if size > 2 and _before(keys[2], items[2], keys[1], items[1], last_of_ties):
                second = 2
            if last_of_ties:
                accepted = exact >= keys[second]
            else:
                accepted = _before(exact, item, keys[second], items[second], False)
        if accepted:
            keys[0] = keys[size - 1]
            items[0] = items[size - 1]
            sift_down(keys, items, 0, size - 1, last_of_ties)
            return item
        keys[0] = exact
        sift_down(keys, items, 0, size, last_of_ties)


@njit(cache=True, nogil=True)
def raise_best(
    row: UInt16, high: UInt16, rank: int, best: UInt16, owner: Int32, changed: Int64, old: UInt16, new: UInt16
) -> int:
    """Raise best_i to min(row_i, high_i) where that is larger, name the owner, list what changed; return how many."""
    count = 0
    for i0 in range(0, row.shape[0], _TILE):
        r, h, b = row[i0 : i0 + _TILE], high[i0 : i0 + _TILE], best[i0 : i0 + _TILE]
        rises = np.uint16(0)
        for i in range(r.shape[0]):  # vectorised: almost no stretch of rows rises late in a run
            rises |= np.uint16(min(r[i], h[i]) > b[i])
        if rises:
            for i in range(r.shape[0]):
                w = min(r[i], h[i])
                if w > b[i]:
                    changed[count] = i0 + i
                    old[count] = b[i]
                    new[count] = w
                    b[i] = w
                    owner[i0 + i] = rank
                    count += 1
    return count


@njit(cache=True, nogil=True)
def _shrink_list(
    i: int, old: int, new: int, start: Int64, length: Int64, column: Int32, value: UInt16, gain: Int64
) -> None:
    """Row i's best rises from old to new: take that from the gains in its list, and drop what no longer matters."""
    begin = start[i]
    kept = begin
    for p in range(begin, begin + length[i]):
        v = np.int64(value[p])
        j = column[p]
        if v > new:
            gain[j] -= new - old
            value[kept] = value[p]
            column[kept] = j
            kept += 1
        else:
            gain[j] -= v - old
    length[i] = kept - begin


@njit(cache=True, nogil=True)
def continue_greedy(
    kernel: UInt16,
    column_start: Int64,
    column_row: Int32,
    column_value: UInt16,
    start: Int64,
    length: Int64,
    column: Int32,
    value: UInt16,
    gain: Int64,
    best: UInt16,
    owner: Int32,
    high: UInt16,
    keys: Float64,
    items: Int64,
    size: int,
    cost: Float64,
    money: float,
    least_gain: int,
    enough: int,
    reached: int,
    chosen: Int64,
    gains: Int64,
    step: int,
    until: int,
    last_of_ties: bool,
) -> tuple[int, int, float, int]:
    """Greedy steps on the lists of the pairs that still matter, until chosen[until - 1] or a limit.

    Args:
        kernel: uint16[n, n] symmetric, from which the rows that a choice raises are read; uint16[0, 0] to read
            them from the lists by column instead.
        column_start: int64[m + 1], where each candidate's list begins.
        column_row: int32, its rows.
        column_value: uint16, its similarities.
        start: int64[n + 1], where each row's list begins.
        length: int64[n], how much of it is left; changed.
        column: int32, its candidates; changed.
        value: uint16, its similarities, above best_i; changed.
        gain: int64[m], exact gains; changed.
        best: uint16[n], the best similarity so far; changed.
        owner: int32[n], the rank of the choice that gave it; changed.
        high: uint16[n], the most that best can be.
        keys: float64[m], heap of upper bounds of gain / cost; changed.
        items: int64[m], their candidates; changed.
        size: Size of the heap.
        cost: float64[m] > 0.
        money: What the costs of further choices may sum to.
        least_gain: Stop before a gain below this.
        enough: Stop once the objective has reached this.
        reached: The objective so far.
        chosen: int64[k], written from `step` on.
        gains: int64[k], likewise.
        step: Choices made before.
        until: Choices after which to return.
        last_of_ties: See `pop_best`.

    Returns:
        Choices made, size of the heap, money left, objective. Fewer choices than `until` mean that a limit was met.
    """
    n = best.shape[0]
    changed = np.empty(n, np.int64)
    old = np.empty(n, np.uint16)
    new = np.empty(n, np.uint16)
    by_kernel = kernel.shape[0] > 0
    while step < until and size > 0 and reached < enough:
        s = pop_best(keys, items, size, gain, cost, last_of_ties)
        size -= 1
        if cost[s] > money:
            continue
        if gain[s] < least_gain:
            break
        money -= cost[s]
        chosen[step] = s
        gains[step] = gain[s]
        reached += gain[s]
        if by_kernel:
            count = raise_best(kernel[s], high, step, best, owner, changed, old, new)
            for u in range(count):
                _shrink_list(changed[u], np.int64(old[u]), np.int64(new[u]), start, length, column, value, gain)
        else:
            for p in range(column_start[s], column_start[s + 1]):
                i = column_row[p]
                w = min(column_value[p], high[i])
                before = best[i]
                if w > before:
                    best[i] = w
                    owner[i] = step
                    _shrink_list(i, np.int64(before), np.int64(w), start, length, column, value, gain)
        step += 1
    return step, size, money, reached

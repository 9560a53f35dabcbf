"""The compiled loops over blocks of cosines: near pairs, sweeps against kept rows, nearest neighbours.

A float32 product has other last bits for another block or processor. So it only says which pairs to look at; what
decides is their cosine in float64, summed in one fixed order. Every loop is serial and releases the GIL.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_CHUNK = 32  # products that are compared at once, before any is looked at


@njit(cache=True, nogil=True)
def _dot(x: Float32, y: Float32) -> float:
    """Inner product in float64: eight partial sums in a fixed order (products of two float32 are exact)."""
    d = x.shape[0]
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = 0.0
    for c in range(0, d - 7, 8):
        a0 += np.float64(x[c]) * np.float64(y[c])
        a1 += np.float64(x[c + 1]) * np.float64(y[c + 1])
        a2 += np.float64(x[c + 2]) * np.float64(y[c + 2])
        a3 += np.float64(x[c + 3]) * np.float64(y[c + 3])
        a4 += np.float64(x[c + 4]) * np.float64(y[c + 4])
        a5 += np.float64(x[c + 5]) * np.float64(y[c + 5])
        a6 += np.float64(x[c + 6]) * np.float64(y[c + 6])
        a7 += np.float64(x[c + 7]) * np.float64(y[c + 7])
    total = ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7))
    for c in range(d - d % 8, d):
        total += np.float64(x[c]) * np.float64(y[c])
    return total


@njit(cache=True, nogil=True)
def _cosine(x: Float32, y: Float32, x_square: float, y_square: float) -> float:
    """Cosine of two rows, given their squared lengths: exactly 1 for equal rows, never above 1."""
    c = _dot(x, y) / np.sqrt(x_square * y_square)
    return c if c < 1.0 else 1.0


@njit(cache=True, nogil=True)
def _any_from(row: Float32, start: int, stop: int, cut: np.float32) -> bool:
    """Whether any value of row[start:stop] is at least the cut; without branches, so that it is vectorised."""
    hit = False
    for b in range(start, stop):
        hit |= row[b] >= cut
    return hit


@njit(cache=True, nogil=True)
def squared_lengths(X: Float32) -> Float64:
    """The squared length of each row, as `_cosine` wants it: float64[n]."""
    squares = np.empty(X.shape[0], np.float64)
    for i in range(X.shape[0]):
        squares[i] = _dot(X[i], X[i])
    return squares


@njit(cache=True, nogil=True)
def collect_pairs(
    tile: Float32,
    X: Float32,
    squares: Float64,
    Y: Float32,
    Y_squares: Float64,
    row: int,
    column: int,
    upper: bool,
    margin: float,
    floor: float,
    i: Int64,
    j: Int64,
    cosine: Float64,
) -> int:
    """List the pairs of one block whose cosine is at least the floor.

    Args:
        tile: float32[a, b], the products of rows row .. row + a - 1 of X with rows column .. column + b - 1 of Y.
        X: float32[m, d].
        squares: float64[m], squared lengths.
        Y: float32[k, d], the other side of the pairs; may be X.
        Y_squares: float64[k], squared lengths.
        row: First row of the block.
        column: First column.
        upper: Whether only the products above the diagonal are read: a block of rows with themselves.
        margin: How far a product may be from the cosine.
        floor: Lowest cosine to list.
        i: int64[a * b], the list, changed in place; so are `j` and `cosine`.
        j: int64[a * b].
        cosine: float64[a * b].

    Returns:
        How many were listed.
    """
    height, width = tile.shape
    cut = np.float32(floor - margin)
    found = 0
    for a in range(height):
        products = tile[a]
        for b0 in range(a + 1 if upper else 0, width, _CHUNK):
            b1 = min(width, b0 + _CHUNK)
            if not _any_from(products, b0, b1, cut):
                continue
            for b in range(b0, b1):
                if products[b] >= cut:
                    c = _cosine(X[row + a], Y[column + b], squares[row + a], Y_squares[column + b])
                    if c >= floor:
                        i[found] = row + a
                        j[found] = column + b
                        cosine[found] = c
                        found += 1
    return found


@njit(cache=True, nogil=True)
def nearest_kept(
    tile: Float32,
    rows: Float32,
    squares: Float64,
    kept: Float32,
    kept_squares: Float64,
    first: int,
    margin: float,
    lowest: float,
    highest: Float64,
    nearest: Int64,
) -> None:
    """Note for each row of a block the most similar of some kept rows, if its cosine is at least the lowest.

    Args:
        tile: float32[a, b], the products of the block's rows with the kept ones.
        rows: float32[a, d], the block.
        squares: float64[a], squared lengths.
        kept: float32[b, d], kept rows in the order in which they were kept.
        kept_squares: float64[b], squared lengths.
        first: How many were kept before those in `kept`.
        margin: How far a product may be from the cosine.
        lowest: Lowest cosine that counts.
        highest: float64[a], the highest cosine so far; changed in place.
        nearest: int64[a], the place among all kept rows of the one that has it, -1 where none has; changed in
            place. Of equally similar ones the first kept stays.
    """
    height, width = tile.shape
    for a in range(height):
        products = tile[a]
        cut = np.float32(max(lowest, highest[a]) - margin)
        for b0 in range(0, width, _CHUNK):
            b1 = min(width, b0 + _CHUNK)
            if not _any_from(products, b0, b1, cut):
                continue
            for b in range(b0, b1):
                if products[b] >= cut:
                    c = _cosine(rows[a], kept[b], squares[a], kept_squares[b])
                    if c >= lowest and c > highest[a]:
                        highest[a] = c
                        nearest[a] = first + b
                        cut = np.float32(c - margin)


@njit(cache=True, nogil=True)
def settle_block(
    tile: Float32,
    rows: Float32,
    squares: Float64,
    first: int,
    always: int,
    margin: float,
    lowest: float,
    highest: Float64,
    nearest: Int64,
) -> Int64:
    """Decide on the rows of a block, one after the other, after `nearest_kept` saw all rows kept before it.

    Args:
        tile: float32[a, a], the products of the block's rows with each other.
        rows: float32[a, d], the block, in the order of the visits.
        squares: float64[a], squared lengths.
        first: How many rows were kept before.
        always: The first so many rows are kept, whatever they are near to.
        margin: How far a product may be from the cosine.
        lowest: A row whose cosine to a kept one is at least this is dropped.
        highest: float64[a], as `nearest_kept` left it; changed in place.
        nearest: int64[a], likewise; -1 is left where the row is kept.

    Returns:
        int64, which rows of the block are kept, ascending.
    """
    kept = np.empty(tile.shape[0], np.int64)
    count = 0
    for a in range(tile.shape[0]):
        if a < always:
            nearest[a] = -1
            kept[count] = a
            count += 1
            continue
        cut = np.float32(max(lowest, highest[a]) - margin)
        for place in range(count):
            b = kept[place]
            if tile[a, b] >= cut:
                c = _cosine(rows[a], rows[b], squares[a], squares[b])
                if c >= lowest and c > highest[a]:
                    highest[a] = c
                    nearest[a] = first + place
                    cut = np.float32(c - margin)
        if nearest[a] < 0:
            kept[count] = a
            count += 1
    return kept[:count].copy()


@njit(cache=True, nogil=True)
def resolve_ranked(n: int, first: Int64, second: Int64, cosine: Float64, always: int) -> tuple[Int64, Float64]:
    """Greedy de-duplication of items 0 .. n - 1, visited in this order.

    Args:
        n: Number of items.
        first: int64[p], one item of each pair.
        second: int64[p], the other item.
        cosine: float64[p], similarities, all at or above the threshold.
        always: The first so many items are kept, whatever they are near to.

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
        for p in range(start[r], start[r + 1] if r >= always else start[r]):
            e = earlier[p]
            if kept_of[e] == e:
                c = similar[p]
                if representative == r or c > highest or (c == highest and e < representative):
                    representative = e
                    highest = c
        kept_of[r] = representative
        similarity[r] = highest
    return kept_of, similarity


@njit(cache=True, nogil=True)
def _replace_least(values: Float32, items: npt.NDArray[np.int32], value: np.float32, item: int) -> None:
    """Put a value in the place of the least one of a heap whose least value is at the front."""
    size = values.shape[0]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and values[child + 1] < values[child]:
            child += 1
        if values[child] >= value:
            break
        values[place] = values[child]
        items[place] = items[child]
        place = child
    values[place] = value
    items[place] = item


@njit(cache=True, nogil=True)
def note_nearest(
    tile: Float32, row: int, column: int, least: Float32, values: Float32, items: npt.NDArray[np.int32]
) -> None:
    """Offer the products of one block to the lists of the largest ones, of its rows and of its columns.

    Args:
        tile: float32[a, b], products of rows row .. with rows column ..; on the diagonal its upper half is read.
        row: First row of the block.
        column: First column, `row` or above.
        least: float32[k], values[:, 0] in one piece; changed in place.
        values: float32[k, l], heaps of the largest products of each row; changed in place.
        items: int32[k, l], whose they are; changed in place.
    """
    height, width = tile.shape
    bounds = least[column : column + width]
    for a in range(height):
        products = tile[a]
        r = row + a
        for b0 in range(a + 1 if row == column else 0, width, _CHUNK):
            b1 = min(width, b0 + _CHUNK)
            bound = least[r]
            hit = False
            for b in range(b0, b1):
                hit |= (products[b] > bound) | (products[b] > bounds[b])
            if not hit:
                continue
            for b in range(b0, b1):
                v = products[b]
                if v > least[r]:
                    _replace_least(values[r], items[r], v, column + b)
                    least[r] = values[r, 0]
                if v > bounds[b]:
                    _replace_least(values[column + b], items[column + b], v, r)
                    bounds[b] = values[column + b, 0]


@njit(cache=True, nogil=True)
def listed_cosines(X: Float32, items: npt.NDArray[np.int32]) -> Float64:
    """Cosines of each row to the rows listed for it: float64[k, l] for int32[k, l], each row descending."""
    squares = squared_lengths(X)
    cosines = np.empty(items.shape, np.float64)
    for i in range(items.shape[0]):
        for p in range(items.shape[1]):
            j = items[i, p]
            cosines[i, p] = _cosine(X[i], X[j], squares[i], squares[j])
        cosines[i] = np.sort(cosines[i])[::-1]
    return cosines

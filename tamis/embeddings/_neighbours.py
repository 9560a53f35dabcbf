"""The compiled loops of the neighbour graph. Serial, the GIL released; ties go to the candidate seen first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

_STRETCH = 32  # candidates that are passed over at once where none of them is near enough
_PLACES = (1 << 32) - 1
_HALF, _LOW, _HIGH = np.float32(0.5), np.float32(0), np.float32(1 << 15)

UInt16 = npt.NDArray[np.uint16]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@njit(cache=True, nogil=True)
def top_columns(tile: Float32, scale: Float32, out: Int32) -> None:
    """The columns of the largest products * scale in each row, largest first, ties to the lowest column.

    Args:
        tile: float32[m, w].
        scale: float32[w] > 0.
        out: int32[m, p], p <= w, written.
    """
    width, count = tile.shape[1], out.shape[1]
    scaled = np.empty(width, np.float32)
    top = np.empty(count, np.float32)
    for r in range(tile.shape[0]):
        row = tile[r]
        for j in range(width):
            scaled[j] = row[j] * scale[j]
        filled = 0
        least = np.float32(-np.inf)
        for j0 in range(0, width, _STRETCH):
            part = scaled[j0 : j0 + _STRETCH]
            largest = part[0]
            for j in range(1, part.shape[0]):
                largest = max(largest, part[j])
            if filled == count and largest <= least:
                continue
            for j in range(part.shape[0]):
                v = part[j]
                if filled < count or v > least:
                    place = filled if filled < count else count - 1
                    filled = min(count, filled + 1)
                    while place > 0 and top[place - 1] < v:
                        top[place] = top[place - 1]
                        out[r, place] = out[r, place - 1]
                        place -= 1
                    top[place] = v
                    out[r, place] = j0 + j
                    least = top[count - 1] if filled == count else least


@njit(cache=True, nogil=True)
def add_rows(rows: Float32, labels: Int32, first: int, sums: Float64) -> None:
    """Add each row to the sum of its cluster, in the order of the rows.

    Args:
        rows: float32[m, d].
        labels: int32[m] >= 0, the clusters.
        first: The cluster of the first sum.
        sums: float64[w, d] of the clusters first .. first + w - 1, added to.
    """
    for r in range(rows.shape[0]):
        c = labels[r] - first
        if 0 <= c < sums.shape[0]:
            for j in range(rows.shape[1]):
                sums[c, j] += rows[r, j]


@njit(cache=True, nogil=True)
def keep_nearest(
    tile: Float32, row_scale: Float32, column_scale: Float32, rows: Int64, places: Int64, nearest: Int64
) -> None:
    """Put a tile's cosines into the heaps of each row's nearest candidates so far.

    An entry is the cosine, in units of 2^-15, times 2^32, plus 2^32 - 1 less the candidate's place: of equally near
    candidates the lower place counts as nearer. Places must ascend from call to call.

    Args:
        tile: float32[m, w] products of grid rows.
        row_scale: float32[m], `grid.cosine_scale` of the rows.
        column_scale: float32[w], the same of the candidates.
        rows: int64[m], whose heaps to change.
        places: int64[w] < 2^32, of the candidates, ascending.
        nearest: int64[n, k] heaps with the least entry in front, changed; 0 where there is no neighbour. A cosine
            that rounds to 0 is none.
    """
    width, count = tile.shape[1], nearest.shape[1]
    cosine = np.empty(width, np.uint16)
    for r in range(tile.shape[0]):
        row = tile[r]
        scale = row_scale[r]
        for j in range(width):
            cosine[j] = np.uint16(np.int32(min(max(row[j] * (scale * column_scale[j]) + _HALF, _LOW), _HIGH)))
        heap = nearest[rows[r]]
        least = max(np.uint16(1), np.uint16(heap[0] >> 32))
        for j0 in range(0, width, _STRETCH):
            part = cosine[j0 : j0 + _STRETCH]
            nearer = np.uint16(0)
            for j in range(part.shape[0]):
                nearer |= np.uint16(part[j] >= least)
            if nearer:
                for j in range(part.shape[0]):
                    entry = (np.int64(part[j]) << 32) | (_PLACES - places[j0 + j])
                    if part[j] >= least and entry > heap[0]:
                        place, child = 0, 1
                        while child < count:
                            if child + 1 < count and heap[child + 1] < heap[child]:
                                child += 1
                            if heap[child] >= entry:
                                break
                            heap[place] = heap[child]
                            place, child = child, 2 * child + 1
                        heap[place] = entry
                        least = max(np.uint16(1), np.uint16(heap[0] >> 32))


@njit(cache=True, nogil=True)
def read_nearest(nearest: Int64, order: Int64, rows: Int64, neighbours: Int32, similarity: UInt16) -> None:
    """Read the entries of `keep_nearest`, nearest first.

    Args:
        nearest: int64[m, k], each row sorted ascending.
        order: int64[p], the row at each place.
        rows: int64[m], whose lists these are.
        neighbours: int32[n, k], written at these rows; -1 where there is none.
        similarity: uint16[n, k], likewise; 0 where there is none.
    """
    count = nearest.shape[1]
    for r in range(nearest.shape[0]):
        i = rows[r]
        for c in range(count):
            entry = nearest[r, count - 1 - c]
            similarity[i, c] = np.uint16(entry >> 32)
            neighbours[i, c] = order[_PLACES - (entry & _PLACES)] if entry else -1


@njit(cache=True, nogil=True)
def nearest_chosen(neighbours: Int32, similarity: UInt16, rank: Int32) -> tuple[Int32, UInt16]:
    """The nearest listed neighbour that is chosen, where there is one.

    Args:
        neighbours: int32[n, k], nearest first; -1 for none.
        similarity: uint16[n, k].
        rank: int32[n], of each row, -1 where it is not chosen.

    Returns:
        Its rank, int32[n], -1 for none, and its similarity, uint16[n].
    """
    n, count = neighbours.shape
    owner, best = np.full(n, -1, np.int32), np.zeros(n, np.uint16)
    for i in range(n):
        for c in range(count):
            j = neighbours[i, c]
            if j >= 0 and rank[j] >= 0:
                owner[i] = rank[j]
                best[i] = similarity[i, c]
                break
    return owner, best


@njit(cache=True, nogil=True)
def _looked_into(cells: Int32, size: Int64, enough: int) -> int:
    """How many of its cells a row looks into: cells differ in size, and where the first are large it has enough."""
    seen = 0
    for c in range(cells.shape[0]):
        if cells[c] < 0 or seen >= enough:
            return c
        seen += size[cells[c]]
    return len(cells)


@njit(cache=True, nogil=True)
def invert_probes(probes: Int32, size: Int64, enough: int, first: int, last: int) -> tuple[Int64, Int32]:
    """The rows that look into each cell, ascending.

    Args:
        probes: int32[n, p], each row's cells, nearest first; -1 for none.
        size: int64[c], rows of each cell.
        enough: A row that has seen as many rows looks into no other cell.
        first: Of each row's cells only probes[first:last] count.
        last: Likewise.

    Returns:
        Starts int64[c + 1] and rows int32.
    """
    start = np.zeros(size.shape[0] + 1, np.int64)
    for i in range(probes.shape[0]):
        for c in range(first, min(last, _looked_into(probes[i], size, enough))):
            start[probes[i, c] + 1] += 1
    for c in range(size.shape[0]):
        start[c + 1] += start[c]
    place = start[:-1].copy()
    rows = np.empty(start[-1], np.int32)
    for i in range(probes.shape[0]):
        for c in range(first, min(last, _looked_into(probes[i], size, enough))):
            cell = probes[i, c]
            rows[place[cell]] = i
            place[cell] += 1
    return start, rows


@njit(cache=True, nogil=True)
def mark_mutual(neighbours: Int32, first: int, last: int, mutual: Bool) -> None:
    """Whether each neighbour of rows first .. last - 1 lists the row too: bool[n, k], written."""
    count = neighbours.shape[1]
    for i in range(first, last):
        for c in range(count):
            j = neighbours[i, c]
            found = False
            if j >= 0:
                back = neighbours[j]
                for b in range(count):
                    found |= back[b] == i
            mutual[i, c] = found


@njit(cache=True, nogil=True)
def list_lengths(neighbours: Int32, mutual: Bool, first: int, last: int, length: Int64) -> None:
    """How long the union-symmetric lists of rows first .. last - 1 are, each with the row itself: int64[n], written."""
    n, count = neighbours.shape
    for i in range(first, last):
        length[i] = 1
    for i in range(n):
        own = first <= i < last
        for c in range(count):
            j = neighbours[i, c]
            if j < 0 or j == i:
                continue
            if own:
                length[i] += 1
            if first <= j < last and not mutual[i, c]:
                length[j] += 1


@njit(cache=True, nogil=True)
def fill_lists(
    neighbours: Int32,
    similarity: UInt16,
    mutual: Bool,
    unit: int,
    first: int,
    last: int,
    place: Int64,
    column: Int32,
    value: UInt16,
) -> None:
    """Write the union-symmetric lists of rows first .. last - 1, each with the row itself in front.

    Args:
        neighbours: int32[n, k], -1 for none.
        similarity: uint16[n, k].
        mutual: bool[n, k], of `mark_mutual`.
        unit: Similarity 1.
        first: Whose lists to write: from this row,
        last: to the one before this.
        place: int64[n], where each list begins; changed.
        column: int32, written.
        value: uint16, written.
    """
    n, count = neighbours.shape
    for i in range(first, last):
        column[place[i]] = i
        value[place[i]] = unit
        place[i] += 1
    for i in range(n):
        own = first <= i < last
        for c in range(count):
            j = neighbours[i, c]
            if j < 0 or j == i:
                continue
            if own:
                column[place[i]] = j
                value[place[i]] = similarity[i, c]
                place[i] += 1
            if first <= j < last and not mutual[i, c]:
                column[place[j]] = i
                value[place[j]] = similarity[i, c]
                place[j] += 1

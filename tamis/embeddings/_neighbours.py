"""The compiled loops of the neighbour graph. Serial, the GIL released; ties go to the candidate seen first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

_STRETCH = 32  # candidates that are passed over at once where none of them is near enough
_HALF, _LOW, _HIGH = np.float32(0.5), np.float32(0), np.float32(1 << 15)

UInt16 = npt.NDArray[np.uint16]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


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
def keep_nearest(
    tile: Float32,
    row_scale: Float32,
    column_scale: Float32,
    rows: Int64,
    candidates: Int32,
    neighbours: Int32,
    similarity: UInt16,
) -> None:
    """Put a tile's cosines into the lists of the nearest candidates so far, which are sorted, nearest first.

    Args:
        tile: float32[m, w] products of grid rows.
        row_scale: float32[m], `grid.cosine_scale` of the rows.
        column_scale: float32[w], the same of the candidates.
        rows: int64[m], whose lists to change.
        candidates: int32[w].
        neighbours: int32[n, k], changed; -1 where there is none yet.
        similarity: uint16[n, k], changed; 0 where there is none. A cosine that rounds to 0 is no neighbour.
    """
    width, count = tile.shape[1], neighbours.shape[1]
    cosine = np.empty(width, np.uint16)
    for r in range(tile.shape[0]):
        row = tile[r]
        scale = row_scale[r]
        for j in range(width):
            cosine[j] = np.uint16(np.int32(min(max(row[j] * (scale * column_scale[j]) + _HALF, _LOW), _HIGH)))
        top, names = similarity[rows[r]], neighbours[rows[r]]
        least = top[count - 1]
        for j0 in range(0, width, _STRETCH):
            part = cosine[j0 : j0 + _STRETCH]
            nearer = np.uint16(0)
            for j in range(part.shape[0]):
                nearer |= np.uint16(part[j] > least)
            if nearer:
                for j in range(part.shape[0]):
                    v = part[j]
                    if v > least:
                        place = count - 1
                        while place > 0 and top[place - 1] < v:
                            top[place] = top[place - 1]
                            names[place] = names[place - 1]
                            place -= 1
                        top[place] = v
                        names[place] = candidates[j0 + j]
                        least = top[count - 1]


@njit(cache=True, nogil=True)
def invert_probes(probes: Int32, cells: int) -> tuple[Int64, Int32]:
    """The rows that probe each cell (-1 for none), ascending: starts int64[cells + 1] and rows int32."""
    start = np.zeros(cells + 1, np.int64)
    for i in range(probes.shape[0]):
        for c in range(probes.shape[1]):
            if probes[i, c] >= 0:
                start[probes[i, c] + 1] += 1
    for c in range(cells):
        start[c + 1] += start[c]
    place = start[:-1].copy()
    rows = np.empty(start[cells], np.int32)
    for i in range(probes.shape[0]):
        for c in range(probes.shape[1]):
            cell = probes[i, c]
            if cell >= 0:
                rows[place[cell]] = i
                place[cell] += 1
    return start, rows


@njit(cache=True, nogil=True)
def union_symmetric(neighbours: Int32, similarity: UInt16, unit: int) -> tuple[Int64, Int32, UInt16]:
    """Lists in which i and j are each other's if either lists the other, and each row itself with similarity `unit`.

    Args:
        neighbours: int32[n, k], -1 for none.
        similarity: uint16[n, k].
        unit: Similarity 1.

    Returns:
        Starts int64[n + 1], neighbours int32 (the row itself first), similarities uint16.
    """
    n, k = neighbours.shape
    start = np.zeros(n + 1, np.int64)
    for i in range(n):
        start[i + 1] += 1
        for c in range(k):
            j = neighbours[i, c]
            if j >= 0 and j != i:
                start[i + 1] += 1
                start[j + 1] += 1
    for i in range(n):
        start[i + 1] += start[i]
    column = np.empty(start[n], np.int32)
    value = np.empty(start[n], np.uint16)
    place = start[:-1].copy()
    for i in range(n):
        column[place[i]] = i
        value[place[i]] = unit
        place[i] += 1
    for i in range(n):
        for c in range(k):
            j = neighbours[i, c]
            if j >= 0 and j != i:
                v = similarity[i, c]
                column[place[i]] = j
                value[place[i]] = v
                place[i] += 1
                column[place[j]] = i
                value[place[j]] = v
                place[j] += 1
    # Mutual neighbours stand twice, with one and the same similarity.
    seen = np.full(n, -1, np.int32)
    kept = 0
    for i in range(n):
        begin, end = start[i], start[i + 1]
        start[i] = kept
        for p in range(begin, end):
            j = column[p]
            if seen[j] != i:
                seen[j] = i
                column[kept] = j
                value[kept] = value[p]
                kept += 1
    start[n] = kept
    return start, column[:kept].copy(), value[:kept].copy()

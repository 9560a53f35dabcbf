"""The nearest neighbours of every row, sought in the cells nearest to it.

Rows are put into cells by spherical k-means; each row is compared with the rows of the `probes` cells whose
centroids are nearest to it (the inverted file of faiss, Johnson, Douze and Jegou, 2021), all its probes as one
matrix product a cell. Products are exact (see `grid`), so that the graph does not depend on threads or blocks.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tamis.embeddings.grid import UNIT, cosine_scale, to_grid
from tamis.embeddings.kmeans import evenly_spaced, fit_on_grid, nearest_on_grid
from tamis.threads import each, one_blas_thread

if TYPE_CHECKING:
    import scipy.sparse

Int16 = npt.NDArray[np.int16]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt16 = npt.NDArray[np.uint16]
Float32 = npt.NDArray[np.float32]
Lists = tuple[Int64, Int32, UInt16]

NEIGHBOURS = 32
PROBES = 24

_BLOCK_ROWS = 2048  # rows of a product
_SLAB_ROWS = 8192  # rows that are put on the grid at a time
_CELLS_PER_ROOT = 4  # cells: 4 sqrt(n)
_ITERATIONS = 3

_SAMPLE_PER_CELL = 20


@dataclass(frozen=True, slots=True)
class Cells:
    """Rows sorted by the cell that they are in.

    Attributes:
        centroids: int16[c, d], on the grid.
        order: int64[n], the rows cell by cell, ascending in each.
        start: int64[c + 1], where each cell begins.
        grid: int16[n, d], the rows on the grid, in this order.
        scale: float32[n], their `cosine_scale`, in this order.
        probes: int32[n, p], the cells nearest to each row, in this order, nearest (its own) first; all -1 for rows
            that look for nothing.
    """

    centroids: Int16
    order: Int64
    start: Int64
    grid: Int16
    scale: Float32
    probes: Int32

    def members(self) -> list[Int64]:
        """The rows of each cell that is not empty, ascending."""
        ends = self.start[1:-1]
        return [rows for rows in np.split(self.order, ends) if len(rows)]


def make_cells(
    X_unit: Float32, cells: int | None = None, *, probes: int = PROBES, threads: int = 1, device: str | None = None
) -> Cells:
    """Put rows into cells by spherical k-means, fitted on an evenly spaced sample.

    BLAS must be limited to one thread, as in all of this module.

    Args:
        X_unit: float32[n, d], C-contiguous, rows of length 1.
        cells: How many; None for 4 sqrt(n), at most n.
        probes: How many of the nearest cells to name for each row.
        threads: Threads to use.
        device: A torch device for the products; None for numpy.

    Returns:
        The cells; some may be empty.
    """
    n = len(X_unit)
    wanted = cell_count(n) if cells is None else cells
    centroids = fit_cells(X_unit[cell_sample(n, wanted)], wanted, threads=threads, device=device)
    near = np.empty((n, min(probes, len(centroids))), np.int32)

    def probe(start: int) -> None:  # the grid itself is only kept in the order of the cells
        rows = slice(start, start + _SLAB_ROWS)
        near[rows] = nearest_on_grid(to_grid(X_unit[rows]), centroids, near.shape[1], device=device)

    each(threads, probe, range(0, n, _SLAB_ROWS))
    order = np.argsort(near[:, 0], kind="stable")
    grid = np.empty(X_unit.shape, np.int16)

    def gather(start: int) -> None:
        rows = slice(start, start + _SLAB_ROWS)
        grid[rows] = to_grid(X_unit[order[rows]])

    each(threads, gather, range(0, n, _SLAB_ROWS))
    begin = np.concatenate(([0], np.cumsum(np.bincount(near[:, 0], minlength=len(centroids)))))
    return Cells(centroids, order, begin, grid, cosine_scale(grid), near[order])


def cell_count(n: int) -> int:
    """How many cells n rows are put into: 4 sqrt(n), at most n."""
    return min(n, round(_CELLS_PER_ROOT * math.sqrt(n)))


def cell_sample(n: int, cells: int) -> Int64:
    """The positions of the rows that so many cells are fitted on, int64[m], evenly spaced."""
    return evenly_spaced(n, _SAMPLE_PER_CELL * cells)


def fit_cells(sample_unit: Float32, cells: int, *, threads: int = 1, device: str | None = None) -> Int16:
    """Fit the centroids of cells; near ones get near numbers, so that consecutive cells probe much the same ones.

    Args:
        sample_unit: float32[m, d], rows of length 1, of `cell_sample`.
        cells: How many; at most m.
        threads: Threads to use.
        device: A torch device for the products; None for numpy.

    Returns:
        int16[c, d], on the grid.
    """
    how: dict[str, Any] = {"iterations": _ITERATIONS, "threads": threads, "device": device}
    centroids = fit_on_grid(to_grid(sample_unit), cells, **how)
    regions = fit_on_grid(centroids, round(math.sqrt(len(centroids))), **how)
    region = nearest_on_grid(centroids, regions, 1, threads, device)[:, 0]
    in_order: Int16 = centroids[np.argsort(region, kind="stable")]
    return in_order


def nearest_neighbours(
    cells: Cells,
    k: int,
    *,
    candidates: npt.NDArray[np.bool_] | None = None,
    asking: slice | None = None,
    enough: int | None = None,
    threads: int = 1,
    device: str | None = None,
) -> tuple[Int32, UInt16]:
    """The k nearest candidates of each row in the cells that it probes; a row that is a candidate finds itself.

    Args:
        cells: The rows.
        k: How many to find, at least 1.
        candidates: bool[n], in the rows' own order; None for all.
        asking: The positions in `cells.order` of the only rows that ask, for a result in that order; None for all
            rows, in their own order. The others' probes must be -1.
        enough: A row that has seen so many rows looks into no other cell; None for as many as its probes have on
            average.
        threads: Threads to use.
        device: A torch device for the products; None for numpy.

    Returns:
        int32[n, k] rows, nearest first, -1 for none, and uint16[n, k] cosines in units of 2^-15. Of equally near
        candidates those in the lowest cell, then of the lowest row, come first. A cosine of 0 is no neighbour.
    """
    from tamis.embeddings import _neighbours

    n, size, width = len(cells.order), np.diff(cells.start), cells.probes.shape[1]
    most = width * n // len(size) if enough is None else enough

    def inverted(first: int, last: int) -> tuple[Int64, Int32]:
        lists: tuple[Int64, Int32] = _neighbours.invert_probes(cells.probes, size, most, first, last)
        return lists

    def members(cell: int) -> Int64:
        places = np.arange(cells.start[cell], cells.start[cell + 1])
        return places if candidates is None else places[candidates[cells.order[places]]]

    if device is not None:
        from tamis.embeddings.on_device import search as search_on_device

        found = search_on_device(cells.grid, cells.scale, members, *inverted(0, width), k, device)
        return _read(found, cells.order, asking, threads)
    shares = [n * t // threads for t in range(threads + 1)]
    first = 0 if asking is None else asking.start
    found = np.zeros((n if asking is None else asking.stop - first, k), np.int64)

    def search(share: int, probing: Int64, queries: Int32) -> None:
        """All cells against one share of the rows, so that no two threads change one row's list."""
        for cell in range(len(size)):
            asking = queries[probing[cell] : probing[cell + 1]]
            asking = asking[slice(*np.searchsorted(asking, shares[share : share + 2]))]
            places = members(cell)
            if not len(places) or not len(asking):
                continue
            columns, scale = cells.grid[places].astype(np.float32).T, cells.scale[places]
            for start in range(0, len(asking), _BLOCK_ROWS):
                rows = asking[start : start + _BLOCK_ROWS]
                tile = cells.grid[rows].astype(np.float32) @ columns
                _neighbours.keep_nearest(tile, cells.scale[rows], scale, rows - first, places, found)

    # Its own cell first: after that, few of the others' rows are near enough to be put into a row's list.
    for some in (inverted(0, 1), inverted(1, width)):
        each(threads, functools.partial(search, probing=some[0], queries=some[1]), range(threads))
    return _read(found, cells.order, asking, threads)


def _read(found: Int64, order: Int64, asking: slice | None, threads: int) -> tuple[Int32, UInt16]:
    """Read the lists of `_neighbours.keep_nearest`, which are in the order of the cells."""
    from tamis.embeddings import _neighbours

    if asking is not None and len(found) == len(order):
        found = found[asking]
    target = order if asking is None else np.arange(len(found))

    neighbours, similarity = np.empty(found.shape, np.int32), np.empty(found.shape, np.uint16)

    def read(start: int) -> None:
        rows = slice(start, start + _SLAB_ROWS)
        _neighbours.read_nearest(np.sort(found[rows], axis=1), order, target[rows], neighbours, similarity)

    each(threads, read, range(0, len(found), _SLAB_ROWS))
    return neighbours, similarity


def symmetric_lists(neighbours: Int32, similarity: UInt16, threads: int = 1) -> Lists:
    """The union-symmetric graph of nearest neighbours: i and j are joined if either finds the other.

    Args:
        neighbours: int32[n, k] of `nearest_neighbours`.
        similarity: uint16[n, k] likewise.
        threads: Threads to use. The result does not depend on it.

    Returns:
        Starts int64[n + 1], neighbours int32 (the row itself first) and cosines, uint16 in units of 2^-15.
    """
    from tamis.embeddings import _neighbours

    n = len(neighbours)
    mutual, length = np.empty(neighbours.shape, np.bool_), np.empty(n, np.int64)

    def mine(share: int) -> tuple[int, int]:
        return n * share // threads, n * (share + 1) // threads

    each(threads, lambda share: _neighbours.mark_mutual(neighbours, *mine(share), mutual), range(threads))
    each(threads, lambda share: _neighbours.list_lengths(neighbours, mutual, *mine(share), length), range(threads))
    start = np.concatenate((np.zeros(1, np.int64), np.cumsum(length)))
    column, value, place = np.empty(start[-1], np.int32), np.empty(start[-1], np.uint16), start[:-1].copy()

    def fill(share: int) -> None:
        first, last = mine(share)
        _neighbours.fill_lists(neighbours, similarity, mutual, UNIT, first, last, place, column, value)

    each(threads, fill, range(threads))
    return start, column, value


def neighbour_graph(
    X_unit: Float32, k: int = NEIGHBOURS, *, probes: int = PROBES, threads: int = 1
) -> scipy.sparse.csr_matrix:
    """The union-symmetric graph of nearest neighbours as a matrix.

    Args:
        X_unit: float32[n, d], C-contiguous, rows of length 1 (see `as_unit_rows`).
        k: How many neighbours each row looks for, itself included.
        probes: How many of the nearest cells each row looks into.
        threads: Threads to use. The result does not depend on it.

    Returns:
        scipy CSR float32[n, n], symmetric, of cosines in (0, 1], 1 on the diagonal.
    """
    import scipy.sparse

    with one_blas_thread():
        found = nearest_neighbours(make_cells(X_unit, probes=probes, threads=threads), k, threads=threads)
        start, column, value = symmetric_lists(*found, threads)
    return scipy.sparse.csr_matrix(
        (value.astype(np.float32) / np.float32(UNIT), column, start), shape=(len(X_unit), len(X_unit))
    )

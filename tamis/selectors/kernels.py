"""The n x n kernel of cosines, in memory or recomputed block by block: one face, the same whole numbers.

Greedy selection asks few things of a kernel: everyone's gain, one row, what a choice takes from the gains, and the
lists of the pairs that still matter. All are exact, so their order, blocks and threads do not show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from tamis.embeddings.grid import cosine_scale, to_grid
from tamis.threads import each

if TYPE_CHECKING:
    from collections.abc import Callable

    UInt16 = npt.NDArray[np.uint16]
    Int16 = npt.NDArray[np.int16]
    Int32 = npt.NDArray[np.int32]
    Int64 = npt.NDArray[np.int64]
    Float32 = npt.NDArray[np.float32]
    Lists = tuple[Int64, Int32, UInt16]

# _greedy is imported where it is used: loading numba takes half a second that a recipe check should not.

_TILE = 1024  # rows and columns of a product that stays in cache
_COLUMNS = 4096  # columns of a recomputed block
_LIST_ROWS = 256  # rows listed at a time


class Kernel(Protocol):
    """Cosines of n rows as uint16 in units of 2^-15, symmetric; all arrays of limits are uint16[n]."""

    n: int

    @property
    def matrix(self) -> UInt16:
        """The kernel itself, uint16[n, n]; uint16[0, 0] where it is not in memory."""
        ...

    def row(self, index: int) -> UInt16:
        """One row, uint16[n]."""
        ...

    def gains(self, low: UInt16, high: UInt16) -> Int64:
        """sum_i (clip(k_ij, low_i, high_i) - low_i) of each column j, int64[n]."""
        ...

    def take(self, rows: Int64, low: UInt16, high: UInt16, gain: Int64) -> None:
        """Subtract the same, over the given rows alone, from `gain`; low and high have one entry a row given."""
        ...

    def count(self, rows: Int64, low: UInt16) -> int:
        """How many entries of the given rows exceed their low."""
        ...

    def lists(self, low: UInt16, high: UInt16) -> Lists:
        """Entries of each row i above low_i, cut to high_i: starts int64[n + 1], columns int32, values uint16."""
        ...


class DenseKernel:
    """A kernel in memory: 2 bytes a pair."""

    def __init__(self, matrix: UInt16, threads: int = 1) -> None:
        self.n = len(matrix)
        self.matrix = matrix
        self._threads = threads

    @staticmethod
    def of(X_unit: Float32, threads: int = 1) -> DenseKernel:
        """Build the kernel of unit rows, float32[n, d]; BLAS must be limited to one thread."""
        from tamis.selectors import _greedy

        grid = to_grid(X_unit)
        n, scale, rows = len(grid), cosine_scale(grid), grid.astype(np.float32)
        matrix = np.empty((n, n), np.uint16)

        def build(start: int) -> None:
            above = rows[start : start + _TILE]
            for column in range(start, n, _TILE):
                tile = above @ rows[column : column + _TILE].T
                _greedy.quantise_symmetric(tile, scale, matrix, start, column)

        each(threads, build, range(0, n, _TILE))
        return DenseKernel(matrix, threads)

    def row(self, index: int) -> UInt16:
        return np.asarray(self.matrix[index])

    def gains(self, low: UInt16, high: UInt16) -> Int64:
        gain = np.zeros(self.n, np.int64)
        self._add(np.arange(self.n), low, high, 1, gain)
        return gain

    def take(self, rows: Int64, low: UInt16, high: UInt16, gain: Int64) -> None:
        self._add(rows, low, high, -1, gain)

    def _add(self, rows: Int64, low: UInt16, high: UInt16, sign: int, gain: Int64) -> None:
        from tamis.selectors import _greedy

        width = -(-self.n // self._threads)

        def add(start: int) -> None:
            part = slice(start, start + width)
            _greedy.add_clipped(self.matrix[:, part], rows, low, high, sign, gain[part])

        each(self._threads, add, range(0, self.n, width))

    def count(self, rows: Int64, low: UInt16) -> int:
        from tamis.selectors import _greedy

        return int(_greedy.count_above(self.matrix[rows], low))

    def lists(self, low: UInt16, high: UInt16) -> Lists:
        return _lists(self.n, self._threads, lambda start: self.matrix[start : start + _LIST_ROWS], low, high)


class BlockKernel:
    """A kernel that is never there: its blocks are recomputed from the rows when they are needed."""

    def __init__(self, X_unit: Float32, threads: int = 1) -> None:
        grid = to_grid(X_unit)
        self.n = len(grid)
        self.matrix = np.empty((0, 0), np.uint16)
        self._rows = grid.astype(np.float32)
        self._scale = cosine_scale(grid)
        self._threads = threads

    def row(self, index: int) -> UInt16:
        return np.asarray(self._block(np.array([index]), slice(None))[0])

    def _block(self, rows: Int64 | slice, columns: slice) -> UInt16:
        from tamis.selectors import _greedy

        tile = self._rows[rows] @ self._rows[columns].T
        block = np.empty(tile.shape, np.uint16)
        _greedy.quantise(tile, self._scale[rows], self._scale[columns], block)
        return block

    def gains(self, low: UInt16, high: UInt16) -> Int64:
        from tamis.selectors import _greedy

        starts = range(0, self.n, 2 * _TILE)
        gain = np.zeros((len(starts), self.n), np.int64)  # one line a task: nothing is shared

        def add(part: int) -> None:
            above = slice(starts[part], starts[part] + 2 * _TILE)
            inside = np.arange(min(2 * _TILE, self.n - starts[part]))
            for begin in starts[part:]:
                columns = slice(begin, begin + 2 * _TILE)
                block = self._block(above, columns)
                _greedy.add_clipped(block, inside, low[above], high[above], 1, gain[part, columns])
                if begin != starts[part]:
                    _greedy.add_clipped_transposed(block, low[columns], high[columns], gain[part, above])

        each(self._threads, add, range(len(starts)))
        return np.asarray(gain.sum(axis=0))

    def take(self, rows: Int64, low: UInt16, high: UInt16, gain: Int64) -> None:
        from tamis.selectors import _greedy

        if 2 * len(rows) > self.n:  # half of all blocks, by symmetry, are fewer than these rows against all columns
            below, above = np.zeros(self.n, np.uint16), np.zeros(self.n, np.uint16)
            below[rows], above[rows] = low, high
            gain -= self.gains(below, above)
            return

        def subtract(start: int) -> None:
            columns = slice(start, start + _COLUMNS)
            for first in range(0, len(rows), _TILE):
                part = slice(first, first + _TILE)
                block = self._block(rows[part], columns)
                _greedy.add_clipped(block, np.arange(len(block)), low[part], high[part], -1, gain[columns])

        each(self._threads, subtract, range(0, self.n, _COLUMNS))

    def count(self, rows: Int64, low: UInt16) -> int:
        from tamis.selectors import _greedy

        return sum(
            int(_greedy.count_above(self._block(rows, slice(start, start + _COLUMNS)), low))
            for start in range(0, self.n, _COLUMNS)
        )

    def lists(self, low: UInt16, high: UInt16) -> Lists:
        def rows(start: int) -> UInt16:
            return self._block(slice(start, start + _LIST_ROWS), slice(None))

        return _lists(self.n, self._threads, rows, low, high)


def _lists(n: int, threads: int, rows: Callable[[int], UInt16], low: UInt16, high: UInt16) -> Lists:
    """List a kernel's entries by stretches of rows, then join the stretches."""
    from tamis.selectors import _greedy

    starts = range(0, n, _LIST_ROWS)
    parts: list[tuple[Int32, UInt16]] = [(np.empty(0, np.int32), np.empty(0, np.uint16))] * len(starts)
    length = np.empty(n, np.int64)

    def fill(part: int) -> None:
        block = rows(starts[part])
        stretch = slice(starts[part], starts[part] + len(block))
        # Room for all of it: the system gives a page only when it is written.
        column, value = np.empty(block.size, np.int32), np.empty(block.size, np.uint16)
        found = _greedy.list_above(block, low[stretch], high[stretch], column, value, length[stretch])
        parts[part] = (column[:found].copy(), value[:found].copy())

    each(threads, fill, range(len(starts)))
    start = np.concatenate(([0], np.cumsum(length)))
    columns, values = np.empty(start[-1], np.int32), np.empty(start[-1], np.uint16)
    for part in range(len(starts)):
        begin = start[starts[part]]
        column, value = parts[part]
        columns[begin : begin + len(column)] = column
        values[begin : begin + len(value)] = value
        parts[part] = (np.empty(0, np.int32), np.empty(0, np.uint16))  # joined: free it before the next
    return start, columns, values

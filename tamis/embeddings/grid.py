"""Cosines that every machine computes alike: rows on a grid, whose float32 products are exact.

A float32 sum of products depends on the order of summation, so a matrix product changes its last bits with the
shape of its blocks, the BLAS, the processor and the GPU. Here rows of length 1 are shrunk a little and rounded to
whole multiples of 2^-12. Products of two such rows are multiples of 2^-24, and by Cauchy-Schwarz no partial sum
exceeds 1, in any order of summation: each fits the 24 bits of a float32, so that the product is exact. Rounding
moves a cosine by about 1e-4 (standard deviation, for any number of dimensions).

Cosines are those products over the lengths of the rounded rows, clamped to [0, 1] and rounded to multiples of
2^-15, as uint16: the gains of facility location are sums of whole numbers.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

UNIT = 1 << 15  # the integer that stands for cosine 1

_ROW_UNIT = 1 << 12  # a row's component 1, before it is shrunk
_BLOCK_ROWS = 2048  # in cache

Int16 = npt.NDArray[np.int16]
Float32 = npt.NDArray[np.float32]


def shrink(dim: int) -> float:
    """Length of a row before rounding: rounding adds at most sqrt(dim) / 2 units, so it ends at 1 or below."""
    return 1.0 - math.sqrt(dim) / (2 * _ROW_UNIT)


def to_grid(X_unit: Float32) -> Int16:
    """Round unit rows to the grid.

    Args:
        X_unit: float32[n, d], rows of length 1 (see `as_unit_rows`), d <= 2^22.

    Returns:
        int16[n, d] in units of 2^-12, each row of Euclidean length at most 2^12.
    """
    grid = np.empty(X_unit.shape, np.int16)
    factor = np.float32(_ROW_UNIT * shrink(X_unit.shape[1]))
    for start in range(0, len(X_unit), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        grid[rows] = np.rint(X_unit[rows] * factor)
    return grid


def cosine_scale(grid: Int16) -> Float32:
    """What turns a product of grid rows into a cosine in units of 2^-15: product * (scale_i * scale_j).

    Args:
        grid: int16[n, d] from `to_grid`.

    Returns:
        float32[n], sqrt(2^15) / the row's length, so that a row's cosine with itself, or with an equal row, is 1.
    """
    scale = np.empty(len(grid), np.float32)
    for start in range(0, len(grid), _BLOCK_ROWS):
        rows = grid[start : start + _BLOCK_ROWS].astype(np.int32)
        scale[start : start + _BLOCK_ROWS] = np.sqrt(UNIT / np.einsum("ij,ij->i", rows, rows))
    return scale

"""The products of grid rows on a torch device: the same whole numbers as on the processor, so the same results.

Products of grid rows are exact in float32 in any order of summation (see `grid`), which a GPU's float32 units
honour. Its TF32 units do not: where torch allows them, products are taken in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from tamis.embeddings.grid import UNIT

if TYPE_CHECKING:
    from collections.abc import Callable

Int16 = npt.NDArray[np.int16]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt16 = npt.NDArray[np.uint16]
Float32 = npt.NDArray[np.float32]

_MOST_ELEMENTS = 1 << 27  # products at a time


def put(array: npt.NDArray[np.generic], device: str) -> torch.Tensor:
    """A copy of an array on the device; uint16, which torch hardly knows, becomes int32."""
    return torch.tensor(array.astype(np.int32) if array.dtype == np.uint16 else array, device=device)


def rows_at_a_time(columns: int) -> int:
    """Rows of a block of products with this many columns."""
    return max(1, _MOST_ELEMENTS // max(1, columns))


def cosines(
    rows: torch.Tensor, row_scale: torch.Tensor, columns: torch.Tensor, column_scale: torch.Tensor
) -> torch.Tensor:
    """Cosines in units of 2^-15, int32[a, b], of grid rows: int16[a, d] and int16[b, d], float32 scales."""
    scaled = _products(rows, columns) * (row_scale[:, None] * column_scale[None, :])
    return scaled.add_(0.5).clamp_(0, UNIT).to(torch.int32)


def _products(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    exact = torch.float64 if _tf32_allowed() else torch.float32
    return (rows.to(exact) @ columns.to(exact).T).to(torch.float32)


def _tf32_allowed() -> bool:
    try:
        return bool(torch.backends.cuda.matmul.allow_tf32)
    except RuntimeError:  # torch 2.9 and later refuse to say where TF32 was allowed by `fp32_precision`
        return True


def top_columns(rows: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor, count: int) -> torch.Tensor:
    """int32[a, count]: as `_neighbours.top_columns` of the products of the rows and the columns."""
    value = _products(rows, columns) * scale[None, :]
    bits = value.view(torch.int32).to(torch.int64)
    ordered = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # float32 bits, in the order of the floats
    place = torch.arange(len(columns), device=rows.device)
    return place[(ordered * (1 << 24) - place).topk(count, dim=1).indices].to(torch.int32)


def search(
    grid: Int16, scale: Float32, members: Callable[[int], Int64], probing: Int64, queries: Int32, k: int, device: str
) -> Int64:
    """The k nearest candidates of each row, as `neighbours.nearest_neighbours` seeks them, cell by cell.

    Args:
        grid: int16[n, d], the rows in the order of their cells.
        scale: float32[n], their `cosine_scale`.
        members: Gives the places, in this order, of a cell's candidates.
        probing: int64[c + 1], where the rows that look into each cell begin.
        queries: int32, these rows, as places in the order.
        k: Neighbours to find.
        device: The torch device.

    Returns:
        int64[n, k], the entries of `_neighbours.keep_nearest`.
    """
    rows, row_scale = put(grid, device), put(scale, device)
    best = torch.zeros((len(grid), k), dtype=torch.int64, device=device)
    for cell in range(len(probing) - 1):
        places = members(cell)
        asking = queries[probing[cell] : probing[cell + 1]]
        if not len(places):
            continue
        there = put(places, device)
        step = rows_at_a_time(len(places))
        for begin in range(0, len(asking), step):
            here = put(asking[begin : begin + step].astype(np.int64), device)
            near = cosines(rows[here], row_scale[here], rows[there], row_scale[there]).to(torch.int64)
            entry = torch.where(near > 0, (near << 32) | (0xFFFFFFFF - there)[None, :], 0)
            both = torch.cat((best[here], entry), dim=1)
            best[here] = both.topk(k, dim=1).values
    found: Int64 = best.cpu().numpy()
    return found

"""The kernel of cosines on a torch device: blocks are computed there when they are needed, the same whole numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from tamis.embeddings.grid import cosine_scale, to_grid
from tamis.embeddings.on_device import cosines, put, rows_at_a_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tamis.embeddings.neighbours import Lists

    UInt16 = npt.NDArray[np.uint16]
    Int64 = npt.NDArray[np.int64]
    Float32 = npt.NDArray[np.float32]


class TorchKernel:
    """A `kernels.Kernel` of unit rows whose products are taken on a device."""

    def __init__(self, X_unit: Float32, device: str) -> None:
        grid = to_grid(X_unit)
        self.n = len(grid)
        self.matrix = np.empty((0, 0), np.uint16)
        self._rows, self._scale = put(grid, device), put(cosine_scale(grid), device)
        self._device = device

    def _blocks(self, rows: Int64) -> Iterator[tuple[slice, torch.Tensor]]:
        """Cosines of some rows with all, a stretch of those rows at a time."""
        step = rows_at_a_time(self.n)
        for begin in range(0, len(rows), step):
            part = slice(begin, begin + step)
            here = put(rows[part], self._device)
            yield part, cosines(self._rows[here], self._scale[here], self._rows, self._scale)

    def row(self, index: int) -> UInt16:
        ((_, block),) = self._blocks(np.array([index]))
        return np.asarray(block[0].cpu().numpy().astype(np.uint16))

    def gains(self, low: UInt16, high: UInt16) -> Int64:
        return self._clipped(np.arange(self.n), low, high)

    def take(self, rows: Int64, low: UInt16, high: UInt16, gain: Int64) -> None:
        gain -= self._clipped(rows, low, high)

    def _clipped(self, rows: Int64, low: UInt16, high: UInt16) -> Int64:
        total = torch.zeros(self.n, dtype=torch.int64, device=self._device)
        for part, block in self._blocks(rows):
            floor, ceiling = put(low[part], self._device)[:, None], put(high[part], self._device)[:, None]
            total += (torch.clamp(block, floor, ceiling) - floor).sum(dim=0)
        return np.asarray(total.cpu().numpy())

    def count(self, rows: Int64, low: UInt16) -> int:
        return sum(int((block > put(low[part], self._device)[:, None]).sum()) for part, block in self._blocks(rows))

    def lists(self, low: UInt16, high: UInt16) -> Lists:
        length = np.zeros(self.n, np.int64)
        columns, values = [], []
        for part, block in self._blocks(np.arange(self.n)):
            floor, ceiling = put(low[part], self._device)[:, None], put(high[part], self._device)[:, None]
            above = (block > floor) & (floor < ceiling)
            length[part] = above.sum(dim=1).cpu().numpy()
            columns.append(above.nonzero()[:, 1].to(torch.int32).cpu().numpy())
            values.append(torch.minimum(block, ceiling)[above].cpu().numpy().astype(np.uint16))
        return np.concatenate(([0], np.cumsum(length))), np.concatenate(columns), np.concatenate(values)

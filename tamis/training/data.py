"""A dataset whose batches say which samples they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

if TYPE_CHECKING:
    from collections.abc import Sized


class WithIndex(Dataset[tuple[int, Any]]):
    """Any map-style dataset, with each sample's position beside it.

    Args:
        dataset: Has ``__len__`` and ``__getitem__``; stays reachable as the attribute `dataset`.

    >>> WithIndex(["a", "b"])[1]
    (1, 'b')
    """

    def __init__(self, dataset: Sized) -> None:
        self.dataset: Any = dataset

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        """The position and the sample; the position becomes an int64 tensor in a batch."""
        return int(index), self.dataset[index]

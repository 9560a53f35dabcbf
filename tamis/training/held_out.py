"""Rows to measure on where there is no test set: a part of the data that no training sees."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from tamis.errors import DataError, RecipeError
from tamis.selectors.shares import largest_remainder

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_SEED = b"tamis held out 1"


def hold_out(contents: pa.Array, labels: NDArray[np.int64] | None, share: float) -> NDArray[np.bool_]:
    """Chooses about a share of each class; rows of one content go together.

    A row's place in the draw follows from its content alone: neither the order of the rows nor what was selected of
    them changes it.

    Args:
        contents: fixed_size_binary[n], of each row, without its label.
        labels: int64 [n] from 0, or None where there are none.
        share: In (0, 1).

    Returns:
        bool [n], which rows are held out. Their number is the share's, or less where contents that occur often do
        not fit into it.

    Raises:
        RecipeError: The share is out of its range.
        DataError: Nothing can be held out, or nothing is left.

    >>> import pyarrow as pa
    >>> contents = pa.array([bytes([i // 2]) for i in range(20)], pa.binary(1))
    >>> held = hold_out(contents, np.arange(20) // 10, 0.4)
    >>> held.sum(), (held[::2] == held[1::2]).all()
    (np.int64(8), np.True_)
    """
    if not 0 < share < 1:
        raise RecipeError(f"the share to hold out is {share}; it must be above 0 and below 1")
    n = len(contents)
    encoded = contents.dictionary_encode()
    group = encoded.indices.to_numpy()
    sizes = np.bincount(group)
    classes = np.zeros(n, np.int64) if labels is None else labels
    stratum = np.empty(len(sizes), np.int64)
    stratum[group[::-1]] = classes[::-1]  # that of a content's first row
    members = np.bincount(classes)
    left = largest_remainder(members.astype(np.float64), min(max(round(share * n), 1), n - 1), members)
    keys = [hashlib.sha256(_SEED + content).digest() for content in encoded.dictionary.to_pylist()]
    held = np.zeros(len(sizes), bool)
    for one in sorted(range(len(keys)), key=keys.__getitem__):
        if sizes[one] <= left[stratum[one]]:
            held[one] = True
            left[stratum[one]] -= sizes[one]
    if not held.any():
        raise DataError(f"of {n} rows, {len(sizes)} of them different, none can be held out; give --test")
    rows: NDArray[np.bool_] = held[group]
    return rows

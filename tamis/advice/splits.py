"""Nested splits: a part of the rows to select from, and a part to measure on that no selection has seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Rows = npt.NDArray[np.int64]

FOLDS = 5
OVERLAP = 1 / (FOLDS - 1)
"""Rows measured on for each that is selected from: what the corrected test has to know."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Two parts of the rows.

    Attributes:
        number: From 0.
        pool: int64 [m], the rows to select from, ascending.
        test: int64 [k], the rows to measure on, ascending.
    """

    number: int
    pool: Rows
    test: Rows


def splits(contents: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], most: int, seed: int) -> Iterator[Split]:
    """Deal the rows to five parts, class by class; each in turn is measured on, and after five they are dealt anew.

    Parts that are measured on share no row within a deal, which says more than as many draws at random. Rows of one
    content go together, so that what is measured on is nowhere in what is selected from.

    Args:
        contents: int64 [n], the same number for rows of the same content without its label.
        labels: int64 [n].
        most: How many splits.
        seed: Of the deals.

    >>> contents, labels = np.arange(20) // 2, np.arange(20) // 10
    >>> [split.test.tolist() for split in splits(contents, labels, 5, 0)]
    [[8, 9, 12, 13], [4, 5, 14, 15], [6, 7, 10, 11], [0, 1, 18, 19], [2, 3, 16, 17]]
    """
    _, first, group = np.unique(contents, return_index=True, return_inverse=True)
    classes = labels[first]  # of a content that has several, that of its first row
    for number in range(most):
        rng = np.random.default_rng([seed, number // FOLDS])
        shuffled = rng.permutation(len(first))
        dealt = shuffled[np.argsort(classes[shuffled], kind="stable")]
        part = np.empty(len(first), np.int64)
        part[dealt] = np.arange(len(first)) % FOLDS
        measured = part[group] == number % FOLDS
        yield Split(number, np.flatnonzero(~measured), np.flatnonzero(measured))

"""Duplicates: exact ones by content hash, near ones by cosine in a group (SemDeDup, arXiv 2303.09540).

Near-duplicate pairs are found once, above a floor; deciding for another eps takes only the pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tamis.errors import DataError, RecipeError
from tamis.selectors._blas import one_blas_thread

if TYPE_CHECKING:
    import numpy.typing as npt

    Int64 = npt.NDArray[np.int64]
    Float32 = npt.NDArray[np.float32]
    Float64 = npt.NDArray[np.float64]

_KEY_BYTES = 16


def exact_duplicates(keys: npt.NDArray[np.bytes_] | npt.NDArray[np.uint8], order: Int64) -> Int64:
    """Find the representative of every row among the rows with the same key.

    Args:
        keys: 16-byte content hashes, `S16` or `V16` [n], or uint8 [n, 16].
        order: int64[n]; the row of lowest order stands for its duplicates (ties to the lowest index).

    Returns:
        int64[n], the position of each row's representative; its own where it is kept.

    Raises:
        DataError: Keys or order of another type or shape.

    >>> exact_duplicates(np.array([b"a", b"b", b"a"], "S16"), np.array([5, 6, 4])).tolist()
    [2, 1, 2]
    """
    given = np.ascontiguousarray(keys)
    strings = given.ndim == 1 and given.dtype.kind in "SV" and given.dtype.itemsize == _KEY_BYTES
    rows = given.ndim == 2 and given.dtype == np.uint8 and given.shape[1] == _KEY_BYTES
    ranks = np.asarray(order)
    if not (strings or rows) or ranks.shape != (len(given),) or ranks.dtype.kind not in "iu":
        raise DataError(
            f"keys {given.dtype} {given.shape} with order {ranks.dtype} {ranks.shape}; "
            "give 16-byte keys (S16 [n] or uint8 [n, 16]) and one integer for each"
        )
    n = len(given)
    halves = given.view(np.uint8).reshape(n, _KEY_BYTES).view(np.uint64)
    sorting = np.lexsort((ranks, halves[:, 1], halves[:, 0]))
    ordered = halves[sorting]
    starts = np.flatnonzero(np.concatenate((np.ones(min(n, 1), np.bool_), (ordered[1:] != ordered[:-1]).any(axis=1))))
    kept_of = np.empty(n, np.int64)
    kept_of[sorting] = np.repeat(sorting[starts], np.diff(np.append(starts, n)))
    return kept_of


def near_pairs(X_unit: Float32, floor: float, block: int = 1024) -> tuple[Int64, Int64, Float32]:
    """All pairs of rows of one group whose cosine is at least the floor.

    Cosines are float32 products: accurate to about 1e-6, so that equal rows may come out just below 1.

    Args:
        X_unit: float32[m, d], rows of length 1 (see `as_unit_rows`; not checked again here).
        floor: Lowest cosine to report, in [-1, 1].
        block: Rows a side of the blocks that the m x m products are computed in; memory is 4 * block^2 bytes
            and the pairs.

    Returns:
        i, j (int64, i < j) and their cosine (float32, at most 1), sorted by (i, j).

    Raises:
        RecipeError: The floor or the block is out of range.
    """
    if not -1.0 <= floor <= 1.0 or block < 1:
        raise RecipeError(f"floor {floor!r} must be a cosine in [-1, 1], and block {block!r} at least 1")
    found_i, found_j, found_c = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    m = len(X_unit)
    with one_blas_thread():
        for row in range(0, m, block):
            for column in range(row, m, block):
                cosines = X_unit[row : row + block] @ X_unit[column : column + block].T
                near = cosines >= floor
                if row == column:
                    near = np.triu(near, 1)
                i, j = np.nonzero(near)
                found_i.append(i + row)
                found_j.append(j + column)
                found_c.append(np.minimum(cosines[i, j], np.float32(1)))
    i, j, cosine = np.concatenate(found_i), np.concatenate(found_j), np.concatenate(found_c)
    order = np.lexsort((j, i))
    return i[order], j[order], cosine[order]


def resolve_pairs(
    n: int, i: Int64, j: Int64, cosine: npt.NDArray[np.floating], eps: float, priority: Int64
) -> tuple[Int64, Float64]:
    """Decide which items to drop, and who stands for them.

    Items are visited by ascending priority; an item is dropped iff its cosine to an earlier KEPT item is at
    least 1 - eps. The authors' release also drops an item for the sake of one that was itself dropped, which
    leaves items without a kept neighbour in a chain; here every dropped item is within eps of the kept item
    named for it. Time and memory grow with the pairs.

    Args:
        n: Number of items.
        i: int64[p], one item of each pair, in [0, n).
        j: int64[p], the other one, not equal to i. A pair may stand in either order.
        cosine: Float [p].
        eps: In [0, 2]; larger drops more.
        priority: int64[n], lowest first; ties to the lowest index.

    Returns:
        int64[n], the kept item that stands for each (the most similar one, ties to the lowest priority; the
        item itself where it is kept), and float64[n], the cosine to it (1 where it is kept).

    Raises:
        RecipeError: eps is out of range.
        DataError: Pairs or priorities that do not fit together.
    """
    if not 0.0 <= eps <= 2.0:
        raise RecipeError(f"eps {eps!r}: give a number in [0, 2]")
    first, second, similar = np.asarray(i, np.int64), np.asarray(j, np.int64), np.asarray(cosine, np.float64)
    ranks = np.asarray(priority)
    if ranks.shape != (n,) or not first.shape == second.shape == similar.shape or first.ndim != 1:
        raise DataError(
            f"priority {ranks.shape} for {n} items, pairs of {first.shape}, {second.shape}, {similar.shape}; "
            "give one priority an item, and i, j and cosine of one length"
        )
    if len(first) and (min(first.min(), second.min()) < 0 or max(first.max(), second.max()) >= n):
        raise DataError(f"a pair names an item outside 0 to {n - 1}")
    if (first == second).any() or np.isnan(similar).any():
        raise DataError("a pair joins an item with itself, or has a NaN cosine")

    from tamis.selectors import _greedy  # numba takes half a second to load

    near = similar >= 1.0 - eps
    visited = np.argsort(ranks, kind="stable")
    rank_of = np.empty(n, np.int64)
    rank_of[visited] = np.arange(n)
    ranked_kept, ranked_similarity = _greedy.resolve_ranked(
        n, rank_of[first[near]], rank_of[second[near]], similar[near]
    )
    kept_of = np.empty(n, np.int64)
    kept_of[visited] = visited[ranked_kept]
    similarity = np.empty(n, np.float64)
    similarity[visited] = ranked_similarity
    return kept_of, similarity

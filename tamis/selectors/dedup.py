"""Duplicates: exact ones by content hash, near ones by cosine in a group (SemDeDup, arXiv 2303.09540).

Near-duplicate pairs are found once, above a floor; deciding for another eps takes only the pairs. Where rows are so
much alike that their pairs would be too many, `resolve_rows` decides from the vectors, to the same result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tamis.errors import DataError, RecipeError
from tamis.threads import one_blas_thread

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


def near_pairs(
    X_unit: Float32, floor: float, block: int = 512, limit: int | None = None, others: Float32 | None = None
) -> tuple[Int64, Int64, Float64] | None:
    """All pairs of rows of one group, or of one group with another, whose cosine is at least the floor.

    Cosines are computed in float64 in a fixed order, and are exactly 1 for equal rows. Products of blocks in
    float32 only say which pairs to look at, with a margin above their worst error; so the result depends on no
    block, no thread count and no processor.

    Args:
        X_unit: float32[m, d], rows of length 1 (see `as_unit_rows`; not checked again here).
        floor: Lowest cosine to report, in [-1, 1].
        block: Rows a side of the blocks that the products are computed in; memory is 28 * block^2 bytes and the
            pairs.
        limit: The most pairs to report; None for no limit.
        others: float32[k, d], likewise: pairs of a row with one of these; None for pairs among the rows.

    Returns:
        i (int64, a row), j (int64, one of the others; among the rows i < j) and their cosine (float64, at most 1),
        sorted by (i, j); None where there are more than `limit`.

    Raises:
        RecipeError: The floor or the block is out of range.
    """
    if not -1.0 <= floor <= 1.0 or block < 1:
        raise RecipeError(f"floor {floor!r} must be a cosine in [-1, 1], and block {block!r} at least 1")

    from tamis.selectors import _pairs  # numba takes half a second to load

    Y = X_unit if others is None else others
    squares = _pairs.squared_lengths(X_unit)
    Y_squares = squares if others is None else _pairs.squared_lengths(Y)
    side = max(1, min(block, max(len(X_unit), len(Y))))
    products = np.empty(side * side, np.float32)
    i, j, cosine = np.empty(side * side, np.int64), np.empty(side * side, np.int64), np.empty(side * side)
    found: list[tuple[Int64, Int64, Float64]] = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    total = 0
    with one_blas_thread():
        for row in range(0, len(X_unit), side):
            for column in range(row if others is None else 0, len(Y), side):
                tile = _product(X_unit[row : row + side], Y[column : column + side], products)
                upper = others is None and row == column
                count = _pairs.collect_pairs(
                    tile, X_unit, squares, Y, Y_squares, row, column, upper, _margin(X_unit), floor, i, j, cosine
                )
                total += count
                if limit is not None and total > limit:
                    return None
                if count:
                    found.append((i[:count].copy(), j[:count].copy(), cosine[:count].copy()))
    i, j, cosine = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((j, i))
    return i[order], j[order], cosine[order]


def _margin(X_unit: Float32) -> float:
    """How far the float32 product of two unit rows can be from their cosine, whatever the order of summation.

    The error of a sum of d products of unit rows is at most d u / (1 - d u), u = 2^-24; their lengths are
    within 2^-22 of 1 each.
    """
    return float(1.01 * (X_unit.shape[1] + 32) * 2.0**-24)


def _product(a: Float32, b: Float32, space: Float32) -> Float32:
    """The products a @ b.T, written to the front of a flat array."""
    tile = space[: len(a) * len(b)].reshape(len(a), len(b))
    return np.matmul(a, b.T, out=tile)


def resolve_rows(
    X_unit: Float32, eps: float, priority: Int64, block: int = 512, always: int = 0
) -> tuple[Int64, Float64]:
    """Decide which rows of one group to drop from the vectors themselves, in memory that no pairs take.

    The same result as `resolve_pairs` on all pairs of `near_pairs`, bit for bit. But rows are compared with
    kept rows only, block by block in the order of the visits, so that n rows that are all alike take O(n * block)
    operations; in the worst case, where nothing is alike, it is every row with every other.

    Args:
        X_unit: float32[m, d], rows of length 1 (see `as_unit_rows`; not checked again here).
        eps: In [0, 2]; larger drops more.
        priority: int64[m], lowest first; ties to the lowest index.
        block: Rows a side of the blocks; memory is 4 * block^2 bytes, and the kept rows once more.
        always: How many of the first visited rows are kept, whatever they are near to.

    Returns:
        int64[m], the kept row that stands for each, and float64[m], the cosine to it (1 where it is kept).

    Raises:
        RecipeError: eps or the block is out of range.
        DataError: Priorities that do not fit the rows.
    """
    if not 0.0 <= eps <= 2.0 or block < 1:
        raise RecipeError(f"eps {eps!r} must be in [0, 2], and block {block!r} at least 1")
    m, d = X_unit.shape
    ranks = np.asarray(priority)
    if ranks.shape != (m,):
        raise DataError(f"priority {ranks.shape} for {m} rows; give one a row")

    from tamis.selectors import _pairs  # numba takes half a second to load

    side, margin, lowest = max(1, min(block, m)), _margin(X_unit), 1.0 - eps
    products = np.empty(side * side, np.float32)
    visited = np.argsort(ranks, kind="stable")
    nearest, highest = np.full(m, -1, np.int64), np.full(m, -np.inf)
    kept = np.empty(m, np.int64)
    count = 0
    # Kept rows lie in full blocks, each with their squared lengths; the last block is filled step by step.
    shelves: list[tuple[Float32, Float64]] = []
    with one_blas_thread():
        for start in range(0, m, side):
            rows = X_unit[visited[start : start + side]]
            squares = _pairs.squared_lengths(rows)
            best, place = highest[start : start + side], nearest[start : start + side]
            for number, (shelf, shelf_squares) in enumerate(shelves):
                first = number * side
                held = shelf[: count - first]
                tile = _product(rows, held, products)
                _pairs.nearest_kept(tile, rows, squares, held, shelf_squares, first, margin, lowest, best, place)
            tile = _product(rows, rows, products)
            stays = _pairs.settle_block(tile, rows, squares, count, always - start, margin, lowest, best, place)
            kept[count : count + len(stays)] = visited[start + stays]
            while len(stays):
                if count == len(shelves) * side:
                    shelves.append((np.empty((side, d), np.float32), np.empty(side)))
                shelf, shelf_squares = shelves[-1]
                at = count % side
                moved, stays = stays[: side - at], stays[side - at :]
                shelf[at : at + len(moved)], shelf_squares[at : at + len(moved)] = rows[moved], squares[moved]
                count += len(moved)
    own = nearest < 0
    kept_of, similarity = np.empty(m, np.int64), np.empty(m)
    kept_of[visited] = np.where(own, visited, kept[nearest])
    similarity[visited] = np.where(own, 1.0, highest)
    return kept_of, similarity


def resolve_pairs(
    n: int, i: Int64, j: Int64, cosine: npt.NDArray[np.floating], eps: float, priority: Int64, always: int = 0
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
        always: How many of the first visited items are kept, whatever they are near to.

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

    from tamis.selectors import _pairs  # numba takes half a second to load

    near = similar >= 1.0 - eps
    visited = np.argsort(ranks, kind="stable")
    rank_of = np.empty(n, np.int64)
    rank_of[visited] = np.arange(n)
    ranked_kept, ranked_similarity = _pairs.resolve_ranked(
        n, rank_of[first[near]], rank_of[second[near]], similar[near], always
    )
    kept_of = np.empty(n, np.int64)
    kept_of[visited] = visited[ranked_kept]
    similarity = np.empty(n, np.float64)
    similarity[visited] = ranked_similarity
    return kept_of, similarity

"""Near duplicates of a whole data set: SemDeDup (arXiv 2303.09540), with the pairs that a cluster's border separates.

The paper compares rows within a cluster of k-means. A pair that lies across the border of two clusters is then lost,
and borders are many. Here a row is compared with the rows of the next nearest clusters too, as a visitor there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.embeddings.kmeans import assign, evenly_spaced, fit_spherical
from tamis.errors import RecipeError
from tamis.selectors.dedup import near_pairs, resolve_pairs, resolve_rows
from tamis.selectors.selection import as_unit_rows
from tamis.threads import one_blas_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

    Int32 = npt.NDArray[np.int32]
    Int64 = npt.NDArray[np.int64]
    Float32 = npt.NDArray[np.float32]
    Float64 = npt.NDArray[np.float64]
    Pairs = tuple[Int64, Int64, Float64]

# A larger cluster is split: comparing is quadratic in it.
CELL_ROWS = 8_192
# A listed pair takes 24 bytes: at most 768 for a row.
PAIRS_PER_ROW = 32
CLUSTER_ROWS = 1_000
PROBES = 4
ITERATIONS = 10
FIT_ROWS = 100_000

# Splitting again is of no use where rows are all alike.
_SPLIT_ROUNDS = 8
_SAMPLE_ROWS_PER_CELL = 64


@dataclass(frozen=True, slots=True)
class Cell:
    """Rows that are compared with each other, and with visitors.

    Attributes:
        rows: int64[m], ascending.
        visitors: int64[v], ascending: rows of other clusters for which this one is among the next nearest.
    """

    rows: Int64
    visitors: Int64


def near_duplicates(
    X: Any,
    eps: float = 0.05,
    *,
    which_to_keep: str = "hard",
    n_clusters: int | None = None,
    probes: int = PROBES,
    seed: int = 0,
) -> tuple[Int64, Float64]:
    """Find near duplicates, and who stands for whom.

    Rows are visited in the order of `which_to_keep`; a row is dropped iff its cosine to an earlier KEPT row that it
    is compared with is at least 1 - eps. It is compared with the rows of its own cluster and of the next nearest
    ones. A cluster of more than 8,192 rows is split, and receives no visitors; neither does one with more than 32
    pairs a row.

    Args:
        X: float[n, d] embeddings (see `as_unit_rows`).
        eps: In [0, 2]; larger drops more.
        which_to_keep: `hard` (farthest from its centroid first), `easy` (nearest first) or `random`.
        n_clusters: Clusters of k-means; None for one for 1,000 rows.
        probes: In how many clusters a row seeks duplicates, its own included; 1 is the paper's method.
        seed: Of k-means and of `random`.

    Returns:
        int64[n], the kept row that stands for each (itself where it is kept), and float64[n], the cosine to it.

    Raises:
        RecipeError: A parameter is out of range.
        DataError: X is not what `as_unit_rows` takes.

    >>> kept_of, cosine = near_duplicates(np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.1]]), eps=0.01)
    >>> kept_of.tolist(), cosine.round(3).tolist()
    ([0, 1, 0], [1.0, 1.0, 0.999])
    """
    if not 0.0 <= eps <= 2.0:
        raise RecipeError(f"eps {eps!r}: give a number in [0, 2]")
    if which_to_keep not in ("hard", "easy", "random"):
        raise RecipeError(f"which_to_keep {which_to_keep!r} is not one of 'hard', 'easy', 'random'")
    if probes < 1 or (n_clusters is not None and n_clusters < 1):
        raise RecipeError(f"probes {probes!r} and n_clusters {n_clusters!r}: give integers of at least 1")
    unit = as_unit_rows(X)
    n = len(unit)
    wanted = n_clusters or math.ceil(n / CLUSTER_ROWS)
    with one_blas_thread():
        sample = unit[evenly_spaced(n, max(FIT_ROWS, wanted))]
        centroids = fit_spherical(sample, wanted, iterations=ITERATIONS, seed=seed)
        near, distance = assign(unit, centroids, probes)
    priority = keep_order(distance, np.arange(n), which_to_keep, np.random.default_rng(seed))
    receiving = receiving_clusters(near, CELL_ROWS)
    found, whole = [], []
    for cell in make_cells(near, CELL_ROWS, seed, unit.__getitem__):
        visiting = ((cell.visitors, unit[cell.visitors]),) if len(cell.visitors) else ()
        pairs = cell_pairs(cell, unit[cell.rows], visiting, near, receiving, 1 - eps, PAIRS_PER_ROW)
        if pairs is None:
            whole.append(cell.rows)
        else:
            found.append(pairs)
    i, j, cosine = concatenated(found)
    return settle(n, i, j, cosine, eps, priority, whole, ((rows, unit[rows]) for rows in whole))


def make_cells(
    near: Int32,
    cell_rows: int,
    seed: int,
    load: Callable[[Int64], Float32],
    clusters: Int64 | None = None,
) -> list[Cell]:
    """Put rows into the cells in which they are compared.

    Args:
        near: int32[n, p], the clusters nearest to each row, its own first.
        cell_rows: The most rows of a cell; a larger cluster is split into cells, which get no visitors.
        seed: Of the k-means that splits.
        load: Gives the unit vectors of rows.
        clusters: Only the cells of these clusters, each in 0 .. near.max(); None for all.

    Returns:
        The cells, by ascending cluster.
    """
    own = near[:, 0]
    wanted = np.full(int(near.max(initial=-1)) + 1, clusters is None)
    if clusters is not None:
        wanted[clusters] = True
    members = np.flatnonzero(wanted[own])
    made = np.unique(own[members])
    wanted[:] = False
    wanted[made] = True  # a cluster of no rows has no visitors
    visitors, column = np.nonzero(wanted[near[:, 1:]])
    visited = near[visitors, column + 1]
    visitors_of = dict(zip(np.unique(visited).tolist(), grouped(visitors, visited), strict=True))
    nobody = np.empty(0, np.int64)
    cells: list[Cell] = []
    for cluster, rows in zip(made.tolist(), grouped(members, own[members]), strict=True):
        if len(rows) > cell_rows:
            cells += [Cell(part, nobody) for part in split_group(rows, cell_rows, seed, load)]
        else:
            cells.append(Cell(rows, visitors_of.get(cluster, nobody)))
    return cells


def receiving_clusters(near: Int32, cell_rows: int) -> npt.NDArray[np.bool_]:
    """Which clusters are one cell, and get visitors: bool[k]."""
    return np.bincount(near[:, 0], minlength=int(near.max(initial=-1)) + 1) <= cell_rows


def cell_pairs(
    cell: Cell,
    X_unit: Float32,
    visiting: Iterable[tuple[Int64, Float32]],
    near: Int32,
    receiving: npt.NDArray[np.bool_],
    floor: float,
    pairs_per_row: int,
) -> Pairs | None:
    """The pairs of a cell from the floor on; a pair of two cells that visit each other is given by one of them.

    Args:
        cell: The cell.
        X_unit: float32[m, d], the vectors of its rows.
        visiting: Its visitors, in parts of any size, with their vectors. A part that has more than `pairs_per_row`
            pairs a row gives none.
        near: int32[n, p], as `make_cells` had it.
        receiving: bool[k], of `receiving_clusters`.
        floor: Lowest cosine.
        pairs_per_row: The most pairs to list for a row.

    Returns:
        Rows i < j (int64) and cosines (float64); None where the cell has more than `pairs_per_row` pairs a row
        among its own rows: `settle` then decides from its vectors, in memory that no pairs take.
    """
    within = near_pairs(X_unit, floor, limit=pairs_per_row * len(cell.rows))
    if within is None:
        return None
    found = [(cell.rows[within[0]], cell.rows[within[1]], within[2])]
    for visitors, Y_unit in visiting:
        across = near_pairs(X_unit, floor, others=Y_unit, limit=pairs_per_row * len(visitors))
        if across is None:
            continue
        i, j = cell.rows[across[0]], visitors[across[1]]
        home = near[j, 0]
        mutual = (near[i, 1:] == home[:, None]).any(axis=1) & receiving[home]
        here = ~mutual | (near[i, 0] < home)
        found.append((np.minimum(i, j)[here], np.maximum(i, j)[here], across[2][here]))
    return concatenated(found)


def concatenated(found: Sequence[Pairs]) -> Pairs:
    """Several lists of pairs as one."""
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)), *found]
    i, j, cosine = (np.concatenate(part) for part in zip(*parts, strict=True))
    return i, j, cosine


def settle(
    n: int,
    i: Int64,
    j: Int64,
    cosine: Float64,
    eps: float,
    priority: Int64,
    whole: Sequence[Int64],
    loaded: Iterable[tuple[Int64, Float32]],
    always: int = 0,
) -> tuple[Int64, Float64]:
    """Decide which rows to drop, and who stands for them.

    Args:
        n: Number of rows.
        i: int64[p], one row of each pair.
        j: int64[p], the other one.
        cosine: float64[p].
        eps: In [0, 2].
        priority: int64[n], lowest first.
        whole: The rows of each cell whose pairs were too many to list. They are compared with each other only.
        loaded: The same with their vectors.
        always: The rows of the lowest so many priorities are kept, whatever they are near to.

    Returns:
        As `resolve_pairs`.

    Raises:
        RecipeError: eps is out of range.
        DataError: Pairs or priorities that do not fit together.
    """
    apart = np.zeros(n, np.bool_)
    for rows in whole:
        apart[rows] = True
    close = (cosine >= 1.0 - eps) & ~apart[i] & ~apart[j]
    kept_of, similarity = resolve_pairs(n, i[close], j[close], cosine[close], eps, priority, always)
    for rows, X_unit in loaded:
        own = priority[rows]
        first = int(np.count_nonzero(own < always))
        representative, similarity[rows] = resolve_rows(X_unit, eps, own, always=first)
        kept_of[rows] = rows[representative]
    return kept_of, similarity


def keep_order(
    distance: npt.NDArray[Any], order: npt.NDArray[Any], which_to_keep: str, rng: np.random.Generator
) -> Int64:
    """Say in which order rows are visited: the earlier one of a pair stays.

    Args:
        distance: float[n], to the centroid.
        order: int64[n], a rank of the rows, for ties.
        which_to_keep: hard (farthest first), easy (nearest first) or random.
        rng: For random.

    Returns:
        int64[n]: each row's place in the order.
    """
    first = {"hard": -distance, "easy": distance}.get(which_to_keep)
    by_order = np.argsort(order)
    if first is None:
        first = np.empty(len(order))
        first[by_order] = rng.random(len(order))
    priority = np.empty(len(order), np.int64)
    priority[np.lexsort((order, first))] = np.arange(len(order))
    return priority


def grouped(rows: Int64, labels: npt.NDArray[np.integer[Any]]) -> list[Int64]:
    """The rows of each label that occurs, by ascending label; the rows of a group keep their order."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    return np.split(rows[order], starts[1:]) if len(rows) else []


def split_group(
    rows: Int64, limit: int, seed: int, load: Callable[[Int64], Float32], rounds: int = _SPLIT_ROUNDS
) -> list[Int64]:
    """Split a group that is too large into cells of k-means, and those again; pairs across cells are lost.

    Args:
        rows: int64[m], ascending.
        limit: The most rows of a cell, at least 1. Rows that k-means cannot part, being all alike, stay
            together.
        seed: Of k-means.
        load: Gives the unit vectors of rows; called with a sample, then with at most `limit` rows at a time.
        rounds: How many times a cell may be split again.

    Returns:
        The cells, each ascending.
    """
    if len(rows) <= limit or rounds == 0:
        return [rows]
    count = math.ceil(2 * len(rows) / limit)
    sample = load(rows[evenly_spaced(len(rows), _SAMPLE_ROWS_PER_CELL * count)])
    centroids = fit_spherical(sample, count, iterations=ITERATIONS, seed=seed)
    labels = np.concatenate(
        [assign(load(rows[start : start + limit]), centroids)[0][:, 0] for start in range(0, len(rows), limit)]
    )
    parts = grouped(rows, labels)
    if len(parts) == 1:
        return parts
    return [cell for part in parts for cell in split_group(part, limit, seed, load, rounds - 1)]

"""Dedup: exact duplicates by content hash, then near duplicates cluster by cluster (SemDeDup).

The pairs above the floor are stored once, so that another eps (not below the floor's) is decided without computing
them again. Where a cell has more pairs than `_PAIRS_PER_ROW` for each of its rows, none of them is stored, and every
decision compares its rows anew, in bounded memory. The result is the same either way, and exact for any eps.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tamis.embeddings.kmeans import assign as nearest
from tamis.embeddings.kmeans import fit_spherical
from tamis.pipelines.node import Inputs, Output, Task
from tamis.pipelines.stages.cluster import add_clusters, assignments
from tamis.pipelines.state import (
    EXACT_DUP,
    KEPT,
    NEAR_DUP,
    Rows,
    alive_rows,
    effect,
    evenly_spaced,
    generator,
    values,
    vectors,
)
from tamis.selectors.dedup import exact_duplicates, near_pairs, resolve_pairs, resolve_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import DedupConfig

# Rows that one task compares, and whose vectors are held at a time; enough to keep every worker busy, few enough
# that the graph stays small.
_SHARD_ROWS = 16_384
# A larger cluster is split: comparing is quadratic in it.
_CELL_ROWS = 8_192
# Stored pairs take 24 bytes each: at most 768 for a row.
_PAIRS_PER_ROW = 32
# Splitting again is of no use where rows are all alike.
_SPLIT_ROUNDS = 8
_SAMPLE_ROWS_PER_CELL = 64


def expand(config: DedupConfig, flow: Flow, context: Context, add: Add) -> Flow:
    """Collapse exact duplicates; with embeddings and eps > 0, find the pairs above the floor and decide at eps."""
    exact = add("dedup.exact", {}, {"alive": [flow.alive], "index": [flow.index]})
    flow = dataclasses.replace(flow, alive=exact, effects=(*flow.effects, exact))
    if config.eps == 0:
        return flow
    fit = {"n_clusters": config.n_clusters, "auto": "per_1000", "iterations": 10, "fit_rows": config.fit_rows}
    _, assigned = add_clusters(fit, flow, context, add, "dedup with eps > 0", exact)
    shards = max(1, math.ceil(flow.rows / _SHARD_ROWS))
    pairs = [
        add(
            "dedup.pairs",
            {
                "floor": config.floor,
                "shard": shard,
                "shards": shards,
                "cell_rows": _CELL_ROWS,
                "pairs_per_row": _PAIRS_PER_ROW,
                "seed": list(context.seed),
            },
            {"assigned": assigned, "alive": [exact], "embeddings": flow.embeddings},
            part=shard,
        )
        for shard in range(shards)
    ]
    near = add(
        "dedup.near",
        {"eps": config.eps, "which_to_keep": config.which_to_keep, "seed": list(context.seed)},
        {
            "alive": [exact],
            "index": [flow.index],
            "assigned": assigned,
            "pairs": pairs,
            "embeddings": flow.embeddings,
        },
    )
    return dataclasses.replace(flow, alive=near, effects=(*flow.effects, near))


def exact(params: Mapping[str, Any], inputs: Inputs) -> Output:  # noqa: ARG001
    """Of rows with equal content keep the first by (content hash, id)."""
    alive = alive_rows(inputs)
    keys = values(inputs, "index", "payload_hash", alive)
    kept_of = exact_duplicates(keys, values(inputs, "index", "order", alive))
    dropped = kept_of != np.arange(len(alive))
    facts: dict[str, Any] = {"exact_duplicates": int(np.count_nonzero(dropped))}
    if "label" in inputs.table("index").column_names:
        labels = values(inputs, "index", "label", alive)
        conflicting = dropped & (labels != labels[kept_of])
        facts["with_another_label"] = int(np.count_nonzero(conflicting))
    table = effect(
        alive, np.where(dropped, EXACT_DUP, KEPT).astype(np.int8), "same content as the kept row", alive[kept_of],
        np.where(dropped, 1.0, np.nan),
    )  # fmt: skip
    return Output(table, facts)


def pairs(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Find the pairs from the floor on in one shard's clusters.

    A row of the result is a pair, or (cosine null) says that row i lies in the cell whose lowest row is j, and
    that the cell's pairs are too many to be stored.
    """
    alive = alive_rows(inputs)
    rows, clusters, _ = assignments(inputs)
    clusters = clusters[np.searchsorted(rows, alive)]
    mine = np.flatnonzero(clusters % params["shards"] == params["shard"])
    groups = grouped(alive[mine], clusters[mine])
    cells: list[Rows] = []
    split = 0
    for group in groups:
        parts = split_group(group, params["cell_rows"], params["seed"][0], lambda rows: vectors(inputs, rows))
        split += len(parts) > 1
        cells.extend(parts)
    found_i, found_j, found_cosine = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float64)]
    swept = 0
    for cell, X in _with_vectors(inputs, cells):
        # 1 - eps may be a rounding error below the floor.
        found = near_pairs(X, params["floor"] - 1e-12, limit=params["pairs_per_row"] * len(cell))
        if found is None:
            swept += len(cell)
            i, j, cosine = cell, np.full(len(cell), cell[0]), np.full(len(cell), np.nan)
        else:
            i, j, cosine = cell[found[0]], cell[found[1]], found[2]
        found_i.append(i)
        found_j.append(j)
        found_cosine.append(cosine)
    cosines = np.concatenate(found_cosine)
    table = pa.table(
        {
            "i": pa.array(np.concatenate(found_i), pa.int64()),
            "j": pa.array(np.concatenate(found_j), pa.int64()),
            "cosine": pa.array(cosines, pa.float64(), mask=np.isnan(cosines)),
        }
    )
    facts = {
        "pairs": len(cosines) - swept,
        "rows": len(mine),
        "cells": len(cells),
        "largest_cell": max(map(len, cells), default=0),
        "clusters_split": split,
        "rows_without_stored_pairs": swept,
    }
    return Output(table, facts)


def grouped(rows: Rows, labels: npt.NDArray[np.integer[Any]]) -> list[Rows]:
    """The rows of each label that occurs, by ascending label; the rows of a group keep their order."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    return np.split(rows[order], starts[1:]) if len(rows) else []


def split_group(
    rows: Rows,
    limit: int,
    seed: int,
    load: Callable[[Rows], npt.NDArray[np.float32]],
    rounds: int = _SPLIT_ROUNDS,
) -> list[Rows]:
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
    sample = load(evenly_spaced(rows, _SAMPLE_ROWS_PER_CELL * count))
    centroids = fit_spherical(sample, count, iterations=10, seed=seed)
    labels = np.concatenate(
        [nearest(load(rows[start : start + limit]), centroids)[0] for start in range(0, len(rows), limit)]
    )
    parts = grouped(rows, labels)
    if len(parts) == 1:
        return parts
    return [cell for part in parts for cell in split_group(part, limit, seed, load, rounds - 1)]


def _with_vectors(inputs: Inputs, cells: Sequence[Rows]) -> Iterator[tuple[Rows, npt.NDArray[np.float32]]]:
    """Each cell with its vectors, which are gathered for many small cells at once."""
    first = 0
    while first < len(cells):
        last, held = first + 1, len(cells[first])
        while last < len(cells) and held + len(cells[last]) <= _SHARD_ROWS:
            held += len(cells[last])
            last += 1
        X = vectors(inputs, np.concatenate(cells[first:last]))
        start = 0
        for cell in cells[first:last]:
            yield cell, X[start : start + len(cell)]
            start += len(cell)
        first = last


def near(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Decide at eps who stays, from the stored pairs; from the vectors where there were too many to store."""
    alive = alive_rows(inputs)
    rows, _, distances = assignments(inputs)
    priority = keep_order(
        distances[np.searchsorted(rows, alive)],
        values(inputs, "index", "order", alive),
        params["which_to_keep"],
        generator(params),
    )
    kept_of, similarity = np.arange(len(alive)), np.ones(len(alive))
    cells: list[Rows] = []
    # Shards have no cluster in common, so each is decided on its own.
    for shard in inputs.all("pairs"):
        stored = inputs.open(shard)
        i, j, cosine = (stored[name].to_numpy() for name in ("i", "j", "cosine"))
        whole = np.isnan(cosine)
        cells += grouped(i[whole], j[whole])
        close = cosine >= 1.0 - params["eps"]
        members, place = np.unique(np.concatenate([i[close], j[close]]), return_inverse=True)
        at = np.searchsorted(alive, members)
        first, second = np.split(place, 2)
        representative, similarity[at] = resolve_pairs(
            len(members), first, second, cosine[close], params["eps"], priority[at]
        )
        kept_of[at] = at[representative]
    for cell, X in _with_vectors(inputs, cells):
        at = np.searchsorted(alive, cell)
        representative, similarity[at] = resolve_rows(X, params["eps"], priority[at])
        kept_of[at] = at[representative]
    dropped = kept_of != np.arange(len(alive))
    table = effect(
        alive,
        np.where(dropped, NEAR_DUP, KEPT).astype(np.int8),
        f"cosine to the kept row from {1 - params['eps']:g} on",
        alive[kept_of],
        np.where(dropped, similarity, np.nan),
    )
    found = [shard.facts for shard in inputs.all("pairs")]
    facts = {
        "near_duplicates": int(np.count_nonzero(dropped)),
        "largest_cell": max(fact["largest_cell"] for fact in found),
        **{
            name: sum(fact[name] for fact in found)
            for name in ("pairs", "cells", "clusters_split", "rows_without_stored_pairs")
        },
    }
    return Output(table, facts)


def keep_order(
    distance: Any, order: Any, which_to_keep: str, rng: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Say in which order rows are visited: the earlier one of a pair stays.

    Args:
        distance: float[n], to the centroid.
        order: int64[n], the rank by (content hash, id), for ties.
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


TASKS = {
    "exact": Task(exact),
    "pairs": Task(pairs, version=2, packages=("faiss-cpu",)),
    "near": Task(near, version=2),
}

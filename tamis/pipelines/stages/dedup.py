"""Dedup: exact duplicates by content hash, then near duplicates cluster by cluster (SemDeDup).

The pairs above the floor are stored once, so that another eps (not below the floor's) is decided without computing
them again. Where a cell has more pairs than `PAIRS_PER_ROW` for each of its rows, none of them is stored, and every
decision compares its rows anew, in bounded memory.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tamis.pipelines.leakage import LEAKAGE_TASKS, add_leakage
from tamis.pipelines.node import Inputs, Output, Task
from tamis.pipelines.stages.cluster import add_clusters, assignments
from tamis.pipelines.state import (
    EXACT_DUP,
    KEPT,
    NEAR_DUP,
    Rows,
    alive_rows,
    effect,
    generator,
    kept_before,
    matrix_column,
    matrix_of,
    values,
    vectors,
)
from tamis.selectors.dedup import exact_duplicates
from tamis.selectors.near_duplicates import (
    CELL_ROWS,
    ITERATIONS,
    PAIRS_PER_ROW,
    cell_pairs,
    concatenated,
    grouped,
    keep_order,
    make_cells,
    receiving_clusters,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import DedupConfig
    from tamis.selectors.near_duplicates import Pairs

    Float32 = npt.NDArray[np.float32]

# Rows that one task compares; enough to keep every worker busy, few enough that the graph stays small.
_SHARD_ROWS = 16_384
# Rows whose vectors are held at a time: a few cells with their visitors.
_HELD_ROWS = 4 * _SHARD_ROWS


def expand(config: DedupConfig, flow: Flow, context: Context, add: Add) -> Flow:
    """Compare with reference sets; collapse exact duplicates; find the pairs above the floor and decide at eps."""
    if config.against:
        flow = add_leakage(config, flow, context, add)
    exact = add("dedup.exact", {}, flow.with_before({"alive": [flow.alive], "index": [flow.index]}))
    flow = dataclasses.replace(flow, alive=exact, effects=(*flow.effects, exact))
    if config.eps == 0:
        return flow
    fit = {"n_clusters": config.n_clusters, "auto": "per_1000", "iterations": ITERATIONS, "fit_rows": config.fit_rows}
    _, blocks = add_clusters(fit, flow, context, add, "dedup with eps > 0", exact, config.probes)
    assigned = [add("dedup.gather", {}, {"assigned": blocks, "alive": [exact]})]
    shards = max(1, math.ceil(flow.rows / _SHARD_ROWS))
    pairs = [
        add(
            "dedup.pairs",
            {
                "floor": config.floor,
                "shard": shard,
                "shards": shards,
                "cell_rows": CELL_ROWS,
                "pairs_per_row": PAIRS_PER_ROW,
                "seed": list(context.seed),
            },
            {"assigned": assigned, "embeddings": flow.embeddings},
            part=shard,
        )
        for shard in range(shards)
    ]
    near = add(
        "dedup.near",
        {"eps": config.eps, "which_to_keep": config.which_to_keep, "seed": list(context.seed)},
        flow.with_before({"index": [flow.index], "assigned": assigned, "pairs": pairs, "embeddings": flow.embeddings}),
    )
    return dataclasses.replace(flow, alive=near, effects=(*flow.effects, near))


def exact(params: Mapping[str, Any], inputs: Inputs) -> Output:  # noqa: ARG001
    """Of rows with equal content keep the first by (content hash, id), and each that was kept before."""
    alive = alive_rows(inputs)
    keys = values(inputs, "index", "payload_hash", alive)
    before = kept_before(inputs, alive)
    kept_of = exact_duplicates(keys, _those_first(before, values(inputs, "index", "order", alive)))
    kept_of[before] = np.flatnonzero(before)
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


def _those_first(mine: npt.NDArray[np.bool_], order: Rows) -> Rows:
    """The same order, but that some come before all others."""
    place = np.empty(len(order), np.int64)
    place[np.lexsort((order, ~mine))] = np.arange(len(order))
    return place


def gather(params: Mapping[str, Any], inputs: Inputs) -> Output:  # noqa: ARG001
    """Gather the blocks' assignments of the rows that are still in, for all that follows to read from one file."""
    alive = alive_rows(inputs)
    near, distances = assignments(inputs, alive)
    data = {"row": pa.array(alive), "clusters": matrix_column(near), "cluster_dist": pa.array(distances)}
    return Output(pa.table(data))


def _gathered(inputs: Inputs) -> tuple[Rows, npt.NDArray[np.int32], Float32]:
    """The rows that are in, the clusters nearest to each, and the distance to the nearest."""
    table = inputs.table("assigned")
    return table["row"].to_numpy(), matrix_of(table, "clusters"), table["cluster_dist"].to_numpy()


def pairs(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Find the pairs from the floor on in one shard's clusters.

    A row of the result is a pair, or (cosine null) says that row i lies in the cell whose lowest row is j, and
    that the cell's pairs are too many to be stored.
    """
    alive, near, _ = _gathered(inputs)
    # Fewer rows may be left than were planned for: the last shards then have nothing to do.
    shards = min(params["shards"], max(1, math.ceil(len(alive) / _SHARD_ROWS)))
    count = int(near.max(initial=0)) + 1 if params["shard"] < shards else 0
    clusters = np.arange(params["shard"], count, shards)
    cells = make_cells(near, params["cell_rows"], params["seed"][0], lambda at: vectors(inputs, alive[at]), clusters)
    receiving = receiving_clusters(near, params["cell_rows"])
    found, whole = [], []
    # Most cells are read many at a time; of one that very many rows visit, the others are read after the first.
    first = [np.concatenate((cell.rows, cell.visitors[:_SHARD_ROWS])) for cell in cells]
    for cell, (at, X) in zip(cells, with_vectors(inputs, alive, first), strict=True):
        m = len(cell.rows)
        visiting = _visiting(inputs, alive, cell.visitors, at[m:], X[m:])
        # 1 - eps may be a rounding error below the floor.
        listed = cell_pairs(cell, X[:m], visiting, near, receiving, params["floor"] - 1e-12, params["pairs_per_row"])
        if listed is None:
            whole.append(cell.rows)
        else:
            found.append(listed)
    i, j, cosine = concatenated(found)
    swept = np.concatenate([np.empty(0, np.int64), *whole])
    lowest = np.concatenate([np.empty(0, np.int64), *(np.full(len(rows), rows[0]) for rows in whole)])
    cosines = np.concatenate([cosine, np.full(len(swept), np.nan)])
    table = pa.table(
        {
            "i": pa.array(alive[np.concatenate([i, swept])], pa.int64()),
            "j": pa.array(alive[np.concatenate([j, lowest])], pa.int64()),
            "cosine": pa.array(cosines, pa.float64(), mask=np.isnan(cosines)),
        }
    )
    facts = {
        "pairs": len(i),
        "pairs_across_clusters": int(np.count_nonzero(near[i, 0] != near[j, 0])),
        "rows": sum(len(cell.rows) for cell in cells),
        "cells": len(cells),
        "largest_cell": max((len(cell.rows) for cell in cells), default=0),
        "clusters_split": int(np.count_nonzero(~receiving[clusters])),
        "rows_without_stored_pairs": len(swept),
    }
    return Output(table, facts)


def _visiting(inputs: Inputs, alive: Rows, visitors: Rows, first: Rows, X: Float32) -> Iterator[tuple[Rows, Float32]]:
    """A cell's visitors in parts, with their vectors; those of the first part are at hand."""
    if len(first):
        yield first, X
    for start in range(len(first), len(visitors), _SHARD_ROWS):
        some = visitors[start : start + _SHARD_ROWS]
        yield some, vectors(inputs, alive[some])


def with_vectors(inputs: Inputs, alive: Rows, groups: Sequence[Rows]) -> Iterator[tuple[Rows, Float32]]:
    """Each group of places among the alive rows with its vectors, which are read for many small groups at once."""
    first = 0
    while first < len(groups):
        last, held = first + 1, len(groups[first])
        while last < len(groups) and held + len(groups[last]) <= _HELD_ROWS:
            held += len(groups[last])
            last += 1
        X = vectors(inputs, alive[np.concatenate(groups[first:last])])
        start = 0
        for group in groups[first:last]:
            yield group, X[start : start + len(group)]
            start += len(group)
        first = last


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """What near duplicates are decided by, at whatever eps.

    Attributes:
        alive: int64[n], the rows that are in, ascending.
        priority: int64[n], each one's place in the order of visit.
        always: How many come first and stay in any case.
        pairs: The stored pairs, as places among these rows.
        whole: The rows of each cell whose pairs are not stored, likewise; pairs with one of them do not count.
    """

    alive: Rows
    priority: Rows
    always: int
    pairs: Pairs
    whole: list[Rows]


def read_compared(params: Mapping[str, Any], inputs: Inputs, least: float = -1.0) -> Compared:
    """Read what `near` decides by of its inputs, with the pairs from a cosine on."""
    alive, _, distances = _gathered(inputs)
    order = values(inputs, "index", "order", alive)
    before = kept_before(inputs, alive)
    priority = _those_first(before, keep_order(distances, order, params["which_to_keep"], generator(params)))
    whole: list[Rows] = []
    close = []
    for shard in inputs.all("pairs"):
        stored = inputs.open(shard)
        i, j, cosine = (stored[name].to_numpy() for name in ("i", "j", "cosine"))
        swept = np.isnan(cosine)
        whole += grouped(np.searchsorted(alive, i[swept]), j[swept])
        chosen = cosine >= least
        close.append((np.searchsorted(alive, i[chosen]), np.searchsorted(alive, j[chosen]), cosine[chosen]))
    return Compared(alive, priority, int(np.count_nonzero(before)), concatenated(close), whole)


def decide(compared: Compared, eps: float, inputs: Inputs, *, again: bool = True) -> pa.Table:
    """Decide at eps who stays, from the pairs, and from the vectors where there were too many to store.

    Returns:
        The effect. Without `again`, rows whose pairs are not stored are not compared, and stay.
    """
    alive, whole = compared.alive, compared.whole
    loaded = with_vectors(inputs, alive, whole) if again else ()
    kept_of, similarity = settle(
        len(alive), *compared.pairs, eps, compared.priority, whole, loaded, always=compared.always
    )
    dropped = kept_of != np.arange(len(alive))
    return effect(
        alive,
        np.where(dropped, NEAR_DUP, KEPT).astype(np.int8),
        f"cosine to the kept row from {1 - eps:g} on",
        alive[kept_of],
        np.where(dropped, similarity, np.nan),
    )


def near(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Decide at the recipe's eps."""
    table = decide(read_compared(params, inputs, 1.0 - params["eps"]), params["eps"], inputs)
    found = [shard.facts for shard in inputs.all("pairs")]
    summed = ("pairs", "pairs_across_clusters", "cells", "clusters_split", "rows_without_stored_pairs")
    facts = {
        "near_duplicates": int(np.count_nonzero(table["decision"].to_numpy())),
        "largest_cell": max(fact["largest_cell"] for fact in found),
        **{name: sum(fact[name] for fact in found) for name in summed},
    }
    return Output(table, facts)


TASKS = {
    "exact": Task(exact),
    "gather": Task(gather),
    "pairs": Task(pairs, version=4, packages=("faiss-cpu",)),
    "near": Task(near, version=4),
    **LEAKAGE_TASKS,
}

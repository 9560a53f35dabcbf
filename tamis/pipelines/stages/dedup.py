"""Dedup: exact duplicates by content hash, then near duplicates cluster by cluster (SemDeDup)."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tamis.pipelines.node import Inputs, Output, Task
from tamis.pipelines.stages.cluster import add_clusters, assignments
from tamis.pipelines.state import EXACT_DUP, KEPT, NEAR_DUP, alive_rows, effect, generator, values, vectors
from tamis.selectors.dedup import exact_duplicates, near_pairs, resolve_pairs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import DedupConfig

# Rows that one task compares; enough to keep every worker busy, few enough that the graph stays small.
_SHARD_ROWS = 16_384


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
            {"floor": config.floor, "shard": shard, "shards": shards},
            {"assigned": assigned, "alive": [exact], "embeddings": flow.embeddings},
            part=shard,
        )
        for shard in range(shards)
    ]
    near = add(
        "dedup.near",
        {"eps": config.eps, "which_to_keep": config.which_to_keep, "seed": list(context.seed)},
        {"alive": [exact], "index": [flow.index], "assigned": assigned, "pairs": pairs},
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
    """Find the pairs from the floor on in one shard's clusters."""
    alive = alive_rows(inputs)
    rows, clusters, _ = assignments(inputs)
    clusters = clusters[np.searchsorted(rows, alive)]
    mine = clusters % params["shards"] == params["shard"]
    found_i, found_j, found_cosine = (
        [np.empty(0, np.int64)],
        [np.empty(0, np.int64)],
        [np.empty(0, np.float32)],
    )
    for cluster in np.unique(clusters[mine]):
        members = alive[clusters == cluster]
        i, j, cosine = near_pairs(vectors(inputs, members), params["floor"])
        found_i.append(members[i])
        found_j.append(members[j])
        found_cosine.append(cosine.astype(np.float32))
    table = pa.table(
        {
            "i": pa.array(np.concatenate(found_i), pa.int64()),
            "j": pa.array(np.concatenate(found_j), pa.int64()),
            "cosine": pa.array(np.concatenate(found_cosine), pa.float32()),
        }
    )
    return Output(table, {"pairs": table.num_rows, "rows": int(np.count_nonzero(mine))})


def near(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Decide at eps who stays, from the stored pairs alone."""
    alive = alive_rows(inputs)
    stored = pa.concat_tables([inputs.open(item) for item in inputs.all("pairs")])
    i, j = (np.searchsorted(alive, stored[name].to_numpy()) for name in ("i", "j"))
    rows, _, distances = assignments(inputs)
    priority = keep_order(
        distances[np.searchsorted(rows, alive)],
        values(inputs, "index", "order", alive),
        params["which_to_keep"],
        generator(params),
    )
    kept_of, similarity = resolve_pairs(len(alive), i, j, stored["cosine"].to_numpy(), params["eps"], priority)
    dropped = kept_of != np.arange(len(alive))
    table = effect(
        alive,
        np.where(dropped, NEAR_DUP, KEPT).astype(np.int8),
        f"cosine to the kept row from {1 - params['eps']:g} on",
        alive[kept_of],
        np.where(dropped, similarity, np.nan),
    )
    return Output(table, {"near_duplicates": int(np.count_nonzero(dropped)), "pairs": stored.num_rows})


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


TASKS = {"exact": Task(exact), "pairs": Task(pairs), "near": Task(near)}

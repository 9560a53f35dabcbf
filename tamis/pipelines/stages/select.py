"""Select: a subset within the budget, ranked in partitions in parallel and merged exactly."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tamis.errors import RecipeError
from tamis.pipelines.node import Inputs, Output, Task
from tamis.pipelines.stages.prune import canonical
from tamis.pipelines.state import KEPT, NOT_IN_BUDGET, Rows, effect, generator, values, vectors
from tamis.selectors.selection import resolve_budget
from tamis.selectors.shares import largest_remainder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import SelectConfig

_AUTO_PARTITION_ROWS = 12_288  # its int32 kernel takes 604 MB


def expand(config: SelectConfig, flow: Flow, context: Context, add: Add) -> Flow:
    """Plan partitions, rank them, draw or merge; random and stratified need the last step alone."""
    if config.per == "label" or config.method == "stratified":
        flow.need_label(f"select with method {config.method}" + (" per label" if config.per else ""))
    if isinstance(config.budget, int) and config.budget > flow.rows:
        raise RecipeError(f"select.budget is {config.budget}, but the dataset has {flow.rows} rows")
    merge = {
        "method": config.method,
        "budget": config.budget,
        "rows": flow.rows,
        "per": config.per,
        "seed": list(context.seed),
    }
    inputs = {"alive": [flow.alive], "index": [flow.index]}
    if config.method in ("facility_location", "ingenious"):
        embeddings = flow.need_embeddings(f"select with method {config.method}")
        limit = _AUTO_PARTITION_ROWS if config.partition_rows == "auto" else int(config.partition_rows)
        partitions = add(
            "select.partition",
            {"partition_rows": limit, "per": config.per},
            {**inputs, "embeddings": embeddings},
        )
        shards = max(1, math.ceil(flow.rows / limit))
        rankings = [
            add(
                "select.rank",
                {"shard": shard, "shards": shards},
                {"partitions": [partitions], "embeddings": embeddings},
                part=shard,
            )
            for shard in range(shards)
        ]
        inputs |= {"partitions": [partitions], "rankings": rankings}
        if config.method == "ingenious":
            merge |= {"temperature": config.temperature, "scale_free": config.scale_free}
    node = add("select.merge", merge, inputs)
    columns = {name: column for name, column in flow.columns.items() if name != "gain"} | {"rank": node}
    if "rankings" in inputs:
        columns["gain"] = node
    return dataclasses.replace(flow, alive=node, effects=(*flow.effects, node), columns=columns, selection=node)


def partition(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Put the rows into groups (one a label, or one), and split a group beyond the limit into k-means cells.

    Cells keep near rows together; random blocks, INGENIOUS's own way, lose most of what greedy gains over random.
    """
    from tamis.selectors.facility_location import split_into_cells

    alive, order = canonical(inputs)
    rows = alive[order]
    groups = _groups(inputs, rows, params["per"])
    parts = np.empty(len(rows), np.int32)
    count = 0
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        cells = [np.arange(len(members))]
        if len(members) > params["partition_rows"]:
            cells = split_into_cells(vectors(inputs, rows[members]), max_cell_rows=params["partition_rows"])
        for cell in cells:
            parts[members[cell]] = count
            count += 1
    table = pa.table({"row": pa.array(rows), "group": pa.array(groups, pa.int32()), "partition": pa.array(parts)})
    return Output(table, {"partitions": count, "largest": int(np.bincount(parts).max()) if count else 0})


def _groups(inputs: Inputs, rows: Rows, per: str | None) -> np.ndarray[Any, np.dtype[np.int32]]:
    if per is None:
        return np.zeros(len(rows), np.int32)
    labels: np.ndarray[Any, np.dtype[np.int32]] = values(inputs, "index", "label", rows).astype(np.int32)
    return labels


def rank(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Rank every row of one shard's partitions by exact greedy gains: any budget is then decided by a merge."""
    from tamis.selectors.facility_location import rank_partition

    table = inputs.table("partitions")
    rows, parts = table["row"].to_numpy(), table["partition"].to_numpy()
    ranked_rows, ranked_gains, ranked_parts = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0, np.int32)]
    for part in np.unique(parts[parts % params["shards"] == params["shard"]]):
        members = rows[parts == part]
        indices, gains = rank_partition(vectors(inputs, members), len(members))
        ranked_rows.append(members[indices])
        ranked_gains.append(gains)
        ranked_parts.append(np.full(len(indices), part, np.int32))
    out = pa.table(
        {
            "row": pa.array(np.concatenate(ranked_rows), pa.int64()),
            "gain": pa.array(np.concatenate(ranked_gains), pa.float64()),
            "partition": pa.array(np.concatenate(ranked_parts), pa.int32()),
        }
    )
    return Output(out, {"partitions": len(ranked_parts) - 1})


def merge(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Take the budget: shares for the groups, then the merged ranking or the draw in each."""
    alive, order = canonical(inputs)
    rows = alive[order]
    budget = _budget(params, len(rows))
    rng = generator(params)
    facts: dict[str, Any] = {"budget": budget, "method": params["method"]}
    if params["method"] in ("facility_location", "ingenious"):
        chosen, gains, more = _from_rankings(params, inputs, rows, budget, rng)
        facts |= more
    else:
        chosen, gains = _uniform(params, inputs, rows, budget, rng), None
    rank_of = np.full(len(alive), -1, np.int32)
    rank_of[order[chosen]] = np.arange(len(chosen), dtype=np.int32)
    stays = rank_of >= 0
    columns = {"rank": pa.array(rank_of, pa.int32(), mask=~stays)}
    if gains is not None:
        gain_of = np.full(len(alive), np.nan)
        gain_of[order] = gains
        columns["gain"] = pa.array(gain_of, pa.float64())
    score = None if gains is None else gain_of
    decision = np.where(stays, KEPT, NOT_IN_BUDGET).astype(np.int8)
    return Output(
        effect(alive, decision, f"not in the budget of {budget} ({params['method']})", score=score, **columns),
        facts,
    )


def _budget(params: Mapping[str, Any], available: int) -> int:
    budget, rows = params["budget"], params["rows"]
    wanted = resolve_budget(budget, rows)
    if wanted > available:
        raise RecipeError(
            f"select.budget {budget} of {rows} rows is {wanted}, but only {available} rows reach this stage; "
            f"give at most {available} or {available / rows:.4f}, or drop less before"
        )
    return wanted


def _uniform(params: Mapping[str, Any], inputs: Inputs, rows: Rows, budget: int, rng: np.random.Generator) -> Rows:
    from tamis.selectors.uniform import random, stratified

    if params["method"] == "stratified" or params["per"]:
        return stratified(_groups(inputs, rows, "label"), budget=budget, rng=rng).indices
    return random(len(rows), budget=budget, rng=rng).indices


def _from_rankings(
    params: Mapping[str, Any], inputs: Inputs, rows: Rows, budget: int, rng: np.random.Generator
) -> tuple[Rows, np.ndarray[Any, np.dtype[np.float64]], dict[str, Any]]:
    """Return the chosen positions among `rows` in rank order, every position's gain, and facts."""
    from tamis.selectors.facility_location import merge_rankings
    from tamis.selectors.ingenious import draw_shares, overlap_diagnostics

    table = inputs.table("partitions")
    assert np.array_equal(table["row"].to_numpy(), rows)  # both in canonical order
    groups, parts = table["group"].to_numpy(), table["partition"].to_numpy()
    ranked = pa.concat_tables([inputs.open(item) for item in inputs.all("rankings")])
    by_row = np.argsort(rows)
    positions = by_row[np.searchsorted(rows[by_row], ranked["row"].to_numpy())]
    ranked_gains, ranked_parts = ranked["gain"].to_numpy(), ranked["partition"].to_numpy()
    gains = np.zeros(len(rows))
    gains[positions] = ranked_gains
    group_names, sizes = np.unique(groups, return_counts=True)
    shares = largest_remainder(sizes.astype(np.float64), budget, sizes.astype(np.int64))
    taken: list[tuple[Rows, Any]] = []
    next_gains: list[float] = []
    overlaps: list[dict[str, int]] = []
    for group, share in zip(group_names, shares, strict=True):
        if not share:  # a small class may get nothing of a small budget
            continue
        mine = [np.flatnonzero(ranked_parts == part) for part in np.unique(parts[groups == group])]
        rankings = [(positions[at], ranked_gains[at]) for at in mine]
        if params["method"] == "facility_location":
            indices, own = merge_rankings(rankings, int(share))
            # In a greedy ranking the first gain not taken is the largest that is left.
            left = np.setdiff1d(np.concatenate([p for p, _ in rankings]), indices)
            next_gains.append(float(gains[left].max()) if len(left) else 0.0)
        else:
            indices, own = draw_shares(rankings, int(share), rng, params["temperature"], params["scale_free"])
            overlaps.append(
                overlap_diagnostics(
                    rankings, int(share), generator(params, 1), params["temperature"], params["scale_free"]
                )
            )
        taken.append((indices, own))
    chosen = np.concatenate([indices for indices, _ in taken])
    chosen = chosen[np.lexsort((chosen, -gains[chosen]))]
    facts: dict[str, Any] = {"shares": [int(share) for share in shares], "partitions": int(parts.max()) + 1}
    if params["method"] == "facility_location":
        objective = float(gains[chosen].sum())
        filled = shares[shares > 0]
        bound = objective + float(sum(int(share) * gain for share, gain in zip(filled, next_gains, strict=True)))
        # OPT <= f(S) + k max_j gain(j | S), group by group (submodularity; Nemhauser et al., 1978).
        facts["certificate"] = {
            "objective": round(objective, 6),
            "upper_bound": round(bound, 6),
            "ratio": round(objective / bound, 6) if bound else 1.0,
        }
    else:
        facts["overlap"] = {key: sum(item[key] for item in overlaps) for key in overlaps[0]}
    return chosen, gains, facts


TASKS = {
    "partition": Task(partition, libraries=("faiss",), packages=("faiss-cpu",)),
    "rank": Task(rank, packages=("numba",)),
    "merge": Task(merge),
}

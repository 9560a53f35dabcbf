"""Select: a subset within the budget.

Facility location and INGENIOUS are spread over the graph: rows are put into partitions, partitions are ranked, and
where a group of rows is too large to be ranked whole its rows' neighbours are listed, shard by shard; one last node
takes the budget. Every other selector runs in that node alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tamis.embeddings.encoders import count_vectors, read_vectors
from tamis.errors import RecipeError
from tamis.manifests.canonical import sha256_file
from tamis.pipelines.node import Inputs, Output, Task
from tamis.pipelines.stages.prune import canonical
from tamis.pipelines.state import KEPT, NOT_IN_BUDGET, Rows, effect, generator, matrix_of, values, vectors
from tamis.selectors.selection import Selection, resolve_budget
from tamis.selectors.shares import largest_remainder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tamis.embeddings.neighbours import Cells
    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import SelectConfig

Floats = npt.NDArray[np.float64]
Ranking = tuple[Rows, Floats]
Listed = tuple[Rows, npt.NDArray[np.int32], npt.NDArray[np.uint16]]

_AUTO_PARTITION_ROWS = 16_384  # its kernel takes 512 MiB
_LISTED_ROWS = 16_384  # rows that one task seeks neighbours for
_SPREAD = ("facility_location", "ingenious")
_WITHOUT_EMBEDDINGS = ("random", "stratified")
# What each of the other selectors takes from the recipe.
_OPTIONS = {
    "random": (),
    "stratified": (),
    "graph_cut": ("trade_off",),
    "log_det": ("ridge",),
    "k_center": (),
    "disparity_sum": (),
    "duqgen": ("n_clusters", "temperature"),
    "targeted": ("eta",),
    "conditional": ("nu",),
}
# What the recipe calls the vectors that a selector is given beside the dataset's, and what the selector does.
_FILES = {"targeted": "queries", "conditional": "avoid"}


def expand(config: SelectConfig, flow: Flow, context: Context, add: Add) -> Flow:
    """Plan partitions, rank them, list neighbours where that may be needed, and take the budget."""
    what = f"select with method {config.method}"
    if config.per == "label" or config.method == "stratified":
        flow.need_label(what + (" per label" if config.per else ""))
    if isinstance(config.budget, int) and config.budget > flow.rows:
        raise RecipeError(f"select.budget is {config.budget}, but the dataset has {flow.rows} rows")
    params: dict[str, Any] = {
        "method": config.method,
        "budget": config.budget,
        "rows": flow.rows,
        "per": config.per,
        "seed": list(context.seed),
    }
    inputs = {"alive": [flow.alive], "index": [flow.index]}
    if config.per == "cluster":
        inputs["cluster"] = [flow.need("cluster", f"{what} per cluster", "a cluster stage")]
    hints: dict[str, Any] = {}
    task = "select.take"
    if config.method in _SPREAD:
        inputs |= _spread(config, flow, context, add, inputs)
        params |= {"stop_gain": config.stop_gain}
        if config.method == "ingenious":
            params |= {"temperature": config.temperature, "scale_free": config.scale_free}
    elif config.method not in _WITHOUT_EMBEDDINGS:
        task = "select.whole"
        inputs["embeddings"] = list(flow.need_embeddings(what))
        params["options"] = {name: getattr(config, name) for name in _OPTIONS[config.method]}
        if config.method in _FILES:
            path = _vectors_beside(context.folder / str(getattr(config, _FILES[config.method])))
            hints["file"], params["sha256"] = str(path), sha256_file(path)
    node = add(task, params, inputs, hints=hints)
    columns = {name: column for name, column in flow.columns.items() if name != "gain"} | {"rank": node}
    if config.method not in (*_WITHOUT_EMBEDDINGS, "duqgen"):
        columns["gain"] = node
    return dataclasses.replace(flow, alive=node, effects=(*flow.effects, node), columns=columns, selection=node)


def _vectors_beside(path: Path) -> Path:
    if not path.is_file():
        raise RecipeError(f"select: no file of vectors at {path}")
    if count_vectors(path) == 0:
        raise RecipeError(f"select: {path} holds no vectors")
    return path


def _spread(
    config: SelectConfig, flow: Flow, context: Context, add: Add, inputs: Mapping[str, list[Any]]
) -> dict[str, list[Any]]:
    """The nodes before the last one: partitions, rankings, and lists of neighbours."""
    embeddings = list(flow.need_embeddings(f"select with method {config.method}"))
    limit = _AUTO_PARTITION_ROWS if config.partition_rows == "auto" else int(config.partition_rows)
    blocks = "blocks" if config.blocks == "random" else "cells"
    engine: str = blocks if config.method == "ingenious" else config.engine
    params: dict[str, Any] = {"engine": engine, "partition_rows": limit, "per": config.per}
    if engine == "blocks":
        params["seed"] = list(context.seed)
    partitions = [add("select.partition", params, {**inputs, "embeddings": embeddings})]
    shards = max(1, math.ceil(flow.rows / limit))
    before = {"partitions": partitions, "embeddings": embeddings}
    made = {"partitions": partitions}
    if engine != "sparse":
        made["rankings"] = [
            add("select.rank", {"shard": shard, "shards": shards}, before, part=shard) for shard in range(shards)
        ]
    if engine in ("sparse", "partitioned") or (engine == "auto" and flow.rows > limit):
        shards = max(1, math.ceil(flow.rows / _LISTED_ROWS))
        proposing = {"budget": config.budget, "rows": flow.rows} if engine == "partitioned" else {}
        rankings = {"rankings": made["rankings"]} if engine == "partitioned" else {}
        made["lists"] = [
            add("select.list", {"shard": shard, "shards": shards, **proposing}, {**before, **rankings}, part=shard)
            for shard in range(shards)
        ]
    return made


def partition(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Put the rows into groups (one a label or cluster, or one), and groups into partitions.

    A partition may be ranked, and its rows may be listed: `exact` ranks each group whole; `sparse` lists small
    cells; `partitioned` ranks and lists them; `auto` is exact for groups within the limit and sparse beyond;
    `cells` ranks k-means cells of at most the limit and `blocks` random blocks, INGENIOUS's own way.
    """
    from tamis.embeddings.neighbours import make_cells
    from tamis.selectors.facility_location import ranked_cells, split_into_cells
    from tamis.threads import one_blas_thread

    alive, order = canonical(inputs)
    rows = alive[order]
    groups = _groups(inputs, rows, params["per"])
    limit, n = params["partition_rows"], len(rows)
    parts = np.empty(n, np.int32)
    ranked, listed = np.ones(n, np.bool_), np.zeros(n, np.bool_)
    probes: list[npt.NDArray[np.int32] | None] = [None] * n
    count = 0
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        engine = params["engine"]
        if engine == "auto":
            engine = "exact" if len(members) <= limit else "sparse"
        if engine in ("sparse", "partitioned"):
            unit = vectors(inputs, rows[members])
            with one_blas_thread():
                cells: Cells = make_cells(unit) if engine == "sparse" else ranked_cells(unit)
            ranked[members], listed[members] = engine == "partitioned", True
            # An empty cell has no number: it leaves a gap, and nobody's lists.
            parts[members[cells.order]] = count + np.repeat(np.arange(len(cells.start) - 1), np.diff(cells.start))
            for place, near in zip(cells.order, cells.probes, strict=True):
                probes[members[place]] = count + near
            count += len(cells.start) - 1
            continue
        if engine == "cells" and len(members) > limit:
            own = split_into_cells(vectors(inputs, rows[members]), max_cell_rows=limit, rows_per_cell=limit)
        elif engine == "blocks":
            mixed = generator(params, int(group)).permutation(len(members))
            own = [np.sort(part) for part in np.array_split(mixed, -(-len(members) // limit))]
        else:
            own = [np.arange(len(members))]
        for cell in own:
            parts[members[cell]] = count
            count += 1
    table = pa.table(
        {
            "row": pa.array(rows),
            "group": pa.array(groups, pa.int32()),
            "partition": pa.array(parts),
            "ranked": pa.array(ranked),
            "listed": pa.array(listed),
            "probes": pa.array(probes, pa.list_(pa.int32())),
        }
    )
    sizes = np.bincount(parts) if n else np.zeros(1, np.int64)
    return Output(
        table, {"partitions": int((sizes > 0).sum()), "largest": int(sizes.max()), "listed": int(listed.sum())}
    )


def _groups(inputs: Inputs, rows: Rows, per: str | None) -> npt.NDArray[np.int32]:
    if per is None:
        return np.zeros(len(rows), np.int32)
    found: npt.NDArray[np.int32] = values(inputs, "index" if per == "label" else "cluster", per, rows).astype(np.int32)
    return found


def rank(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Rank every row of one shard's partitions by exact greedy gains: any budget is then decided by a merge."""
    from tamis.selectors.facility_location import rank_partition

    table = inputs.table("partitions")
    rows, parts = table["row"].to_numpy(), table["partition"].to_numpy()
    mine = (parts % params["shards"] == params["shard"]) & table["ranked"].to_numpy()
    ranked_rows, ranked_gains, ranked_parts = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0, np.int32)]
    for part in np.unique(parts[mine]):
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


def listing(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """List the neighbours of one shard's rows, among all rows of their group or those that its rankings propose."""
    from tamis.embeddings.grid import cosine_scale, to_grid
    from tamis.embeddings.neighbours import NEIGHBOURS, Cells, nearest_neighbours
    from tamis.selectors.facility_location import proposals_of
    from tamis.threads import one_blas_thread

    plan = _Plan.read(inputs)
    asking, found, near = [np.empty(0, np.int64)], [], []
    proposing = "budget" in params
    width = NEIGHBOURS // 2 if proposing else NEIGHBOURS
    shares = _shares(params, len(plan.rows), plan.groups) if proposing else {}
    rankings = plan.rankings(inputs) if proposing else {}
    for group in np.unique(plan.groups[plan.listed]):
        if proposing and not shares[int(group)]:  # nothing will be taken of it
            continue
        members = np.flatnonzero(plan.groups == group)
        parts = plan.parts[members]
        mine = parts % params["shards"] == params["shard"]
        if not mine.any():
            continue
        order = np.argsort(parts, kind="stable")
        first, last = plan.cells(members)
        start = np.searchsorted(parts[order], np.arange(first, last + 2))
        probes = np.where(mine[order, None], plan.probes_of(members[order]) - first, -1).astype(np.int32)
        grid = to_grid(vectors(inputs, plan.rows[members[order]]))
        candidates = None
        if proposing:
            candidates = np.zeros(len(members), np.bool_)
            proposals = proposals_of(plan.of_group(rankings, members), shares[int(group)])
            candidates[np.searchsorted(members, proposals)] = True
        cells = Cells(np.empty((len(start) - 1, 0), np.int16), order, start, grid, cosine_scale(grid), probes)
        with one_blas_thread():
            neighbours, similarity = nearest_neighbours(cells, width, candidates=candidates)
        asking.append(members[mine])
        found.append(neighbours[mine])
        near.append(similarity[mine])
    count = len(asking[0]) + sum(map(len, asking[1:]))
    flat = [np.concatenate(parts).reshape(-1) if parts else np.empty(0, np.int64) for parts in (found, near)]
    table = pa.table(
        {
            "place": pa.array(np.concatenate(asking), pa.int64()),
            "neighbours": pa.FixedSizeListArray.from_arrays(pa.array(flat[0], pa.int32()), width),
            "similarity": pa.FixedSizeListArray.from_arrays(pa.array(flat[1], pa.uint16()), width),
        }
    )
    return Output(table, {"rows": count})


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """The partition node's table as arrays, rows in canonical order."""

    rows: Rows
    groups: npt.NDArray[np.int32]
    parts: npt.NDArray[np.int32]
    listed: npt.NDArray[np.bool_]
    table: pa.Table

    @staticmethod
    def read(inputs: Inputs) -> _Plan:
        table = inputs.table("partitions")
        row, group, part, listed = (
            table[name].to_numpy(zero_copy_only=False) for name in ("row", "group", "partition", "listed")
        )
        return _Plan(row, group, part, listed, table)

    def probes_of(self, places: Rows) -> npt.NDArray[np.int32]:
        lists = self.table["probes"].combine_chunks().take(pa.array(places))
        flat: npt.NDArray[np.int32] = lists.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(places), -1)

    def cells(self, members: Rows) -> tuple[int, int]:
        """The first and the last cell of a listed group; every row probes its own, and it may probe empty ones."""
        probed = self.probes_of(members)
        return int(probed.min()), int(probed.max())

    def rankings(self, inputs: Inputs) -> dict[int, Ranking]:
        """Each ranked partition's places in canonical order, and their gains."""
        ranked = pa.concat_tables([inputs.open(item) for item in inputs.all("rankings")])
        by_row = np.argsort(self.rows)
        places = by_row[np.searchsorted(self.rows[by_row], ranked["row"].to_numpy())]
        gains, parts = ranked["gain"].to_numpy(), ranked["partition"].to_numpy()
        # A partition is ranked in one go, so its rows stand together.
        bounds = np.flatnonzero(np.diff(parts, prepend=-1, append=-1))
        return {int(parts[first]): (places[first:end], gains[first:end]) for first, end in itertools.pairwise(bounds)}

    def of_group(self, rankings: Mapping[int, Ranking], members: Rows) -> list[Ranking]:
        """The rankings of a group's partitions."""
        return [rankings[part] for part in np.unique(self.parts[members]).tolist()]


def _shares(params: Mapping[str, Any], available: int, groups: npt.NDArray[np.int32]) -> dict[int, int]:
    """Each group's share of the budget, in proportion to its size."""
    names, sizes = np.unique(groups, return_counts=True)
    shares = largest_remainder(sizes.astype(np.float64), _budget(params, available), sizes.astype(np.int64))
    return dict(zip(names.tolist(), shares.tolist(), strict=True))


def take(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Take the budget: shares for the groups, then the merged ranking, the draw, or greedy on the lists in each."""
    alive, order = canonical(inputs)
    rows = alive[order]
    budget = _budget(params, len(rows))
    rng = generator(params)
    columns: dict[str, pa.Array] = {}
    if params["method"] in _SPREAD:
        plan = _Plan.read(inputs)
        assert np.array_equal(plan.rows, rows)  # both in canonical order
        chosen, gains, facts = _from_partitions(params, inputs, plan, rng)
        if params["method"] == "ingenious":  # a training may draw again (`IngeniousSampler`)
            part = np.empty(len(alive), np.int32)
            part[order] = plan.parts
            columns["partition"] = pa.array(part, pa.int32())
    else:
        chosen, gains, facts = _uniform(params, inputs, rows, budget, rng), None, {}
    facts = {"budget": budget, "method": params["method"], **facts}
    return _output(params, alive, order, chosen, gains, facts, columns)


def whole(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Run a selector on all rows at once, or in each group."""
    from tamis.selectors import REGISTRY, per_group

    alive, order = canonical(inputs)
    rows = alive[order]
    budget = _budget(params, len(rows))
    options = dict(params["options"])
    if params["method"] == "duqgen":
        options["rng"] = generator(params)
    if params["method"] in _FILES:
        options[_FILES[params["method"]]] = _beside(inputs)
    selector = REGISTRY[params["method"]]

    def run(X: npt.NDArray[np.float32], count: int) -> Selection:
        return selector(X, budget=count, **options)

    unit = vectors(inputs, rows)
    if params["per"]:
        selection = per_group(run, unit, _groups(inputs, rows, params["per"]), budget=budget)
    else:
        selection = run(unit, budget)
    gains = None
    if selection.gains is not None:
        gains = np.full(len(rows), np.nan)
        gains[selection.indices] = selection.gains
    facts: dict[str, Any] = {"budget": budget, "method": params["method"]}
    if selection.certificate:
        facts["certificate"] = {name: round(value, 6) for name, value in selection.certificate.items()}
    return _output(params, alive, order, selection.indices, gains, facts)


def _beside(inputs: Inputs) -> npt.NDArray[np.float32]:
    path = Path(inputs.hints["file"])
    return read_vectors(path, 0, count_vectors(path))


def _output(
    params: Mapping[str, Any],
    alive: Rows,
    order: Rows,
    chosen: Rows,
    gains: Floats | None,
    facts: dict[str, Any],
    columns: Mapping[str, pa.Array] = MappingProxyType({}),
) -> Output:
    """What became of every row; `chosen` and `gains` are in canonical order."""
    rank_of = np.full(len(alive), -1, np.int32)
    rank_of[order[chosen]] = np.arange(len(chosen), dtype=np.int32)
    stays = rank_of >= 0
    columns = {**columns, "rank": pa.array(rank_of, pa.int32(), mask=~stays)}
    score = None
    if gains is not None:
        score = np.full(len(alive), np.nan)
        score[order] = gains
        columns["gain"] = pa.array(score, pa.float64(), mask=np.isnan(score))
    decision = np.where(stays, KEPT, NOT_IN_BUDGET).astype(np.int8)
    reason = f"not in the budget of {facts['budget']} ({params['method']})"
    return Output(effect(alive, decision, reason, score=score, **columns), facts)


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
        return stratified(_groups(inputs, rows, params["per"] or "label"), budget=budget, rng=rng).indices
    return random(len(rows), budget=budget, rng=rng).indices


def _from_partitions(
    params: Mapping[str, Any], inputs: Inputs, plan: _Plan, rng: np.random.Generator
) -> tuple[Rows, Floats, dict[str, Any]]:
    """Return the chosen places in rank order, every place's gain (NaN: not computed), and facts."""
    from tamis.selectors.ingenious import draw_shares, overlap_diagnostics

    gains = np.full(len(plan.rows), np.nan)
    chosen: list[Rows] = []
    objective = bound = 0.0
    overlaps: list[dict[str, int]] = []
    shares = _shares(params, len(plan.rows), plan.groups)
    rankings = plan.rankings(inputs) if inputs.all("rankings") else {}
    lists = list(_listed(inputs))
    for group, share in shares.items():
        if not share:  # a small class may get nothing of a small budget
            continue
        members = np.flatnonzero(plan.groups == group)
        if plan.listed[members[0]]:
            indices, own, most = _on_lists(lists, plan, rankings, members, share)
            gains[members] = own
        else:
            ranked = plan.of_group(rankings, members)
            for places, own in ranked:
                gains[places] = own
            if params["method"] == "ingenious":
                indices, _ = draw_shares(ranked, share, rng, params["temperature"], params["scale_free"])
                options = (params["temperature"], params["scale_free"])
                overlaps.append(overlap_diagnostics(ranked, share, generator(params, 1), *options))
                most = math.nan
            else:
                indices, most = _merged(ranked, share)
        if params["stop_gain"] is not None:
            indices = indices[gains[indices] >= params["stop_gain"]]
        objective, bound = objective + float(gains[indices].sum()), bound + most
        chosen.append(indices)
    places = np.concatenate(chosen)
    places = places[np.lexsort((places, -gains[places]))]
    facts: dict[str, Any] = {
        "shares": list(shares.values()),
        "partitions": len(np.unique(plan.parts)),
        "listed": int(plan.listed.sum()),
    }
    if overlaps:
        facts["overlap"] = {key: sum(item[key] for item in overlaps) for key in overlaps[0]}
    elif params["stop_gain"] is None:
        facts["certificate"] = {
            "objective": round(objective, 6),
            "upper_bound": round(bound, 6),
            "ratio": round(objective / bound, 6) if bound else 1.0,
        }
    return places, gains, facts


def _merged(rankings: list[Ranking], share: int) -> tuple[Rows, float]:
    """The best of some rankings by gain, and what no set of this size exceeds on the objective in their partitions."""
    from tamis.selectors.facility_location import merge_rankings

    indices, gains = merge_rankings(rankings, share)
    # In a greedy ranking the first gain not taken is the largest that is left:
    # OPT <= f(S) + k max_j gain(j | S) (submodularity; Nemhauser et al., 1978).
    merged = set(indices.tolist())
    pairs = (zip(rows.tolist(), values.tolist(), strict=True) for rows, values in rankings)
    following = (next((gain for row, gain in pair if row not in merged), 0.0) for pair in pairs)
    return indices, float(gains.sum()) + share * max(following, default=0.0)


def _on_lists(
    lists: Sequence[Listed], plan: _Plan, rankings: Mapping[int, Ranking], members: Rows, share: int
) -> tuple[Rows, Floats, float]:
    """Greedy on a group's lists: the chosen places, each member's gain, and the bound on the listed objective."""
    from tamis.embeddings.grid import UNIT
    from tamis.selectors.facility_location import on_neighbours, proposals_of
    from tamis.selectors.greedy import Terms

    proposals = None
    if plan.parts[members[0]] in rankings:  # ranked and listed: the lists name proposals only
        proposals = np.searchsorted(members, proposals_of(plan.of_group(rankings, members), share))
    width = lists[0][1].shape[1]
    neighbours = np.full((len(members), width), -1, np.int32)
    similarity = np.zeros((len(members), width), np.uint16)
    for place, found, near in lists:
        mine = np.isin(place, members)
        at = np.searchsorted(members, place[mine])
        neighbours[at], similarity[at] = found[mine], near[mine]
    trace = on_neighbours(neighbours, similarity, Terms(share, candidates=proposals), symmetric=proposals is None)
    gains = trace.remaining / UNIT
    if proposals is not None:  # the others were not looked at
        gains[np.setdiff1d(np.arange(len(members)), proposals)] = np.nan
    gains[trace.chosen] = trace.gains / UNIT
    return members[trace.chosen], gains, trace.bound / UNIT


def _listed(inputs: Inputs) -> Iterator[Listed]:
    for item in inputs.all("lists"):
        table = inputs.open(item)
        yield table["place"].to_numpy(), matrix_of(table, "neighbours"), matrix_of(table, "similarity")  # type: ignore[misc]


TASKS = {
    "partition": Task(partition, version=2, packages=("numba",)),
    "rank": Task(rank, version=2, packages=("numba",)),
    "list": Task(listing, packages=("numba",)),
    "take": Task(take, version=2, packages=("numba",)),
    "whole": Task(whole, libraries=("faiss",), packages=("faiss-cpu", "numba")),
}

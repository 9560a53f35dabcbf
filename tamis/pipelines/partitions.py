"""Partitions of the rows, on which facility location and INGENIOUS are spread over the graph.

Rows are put into partitions, partitions are ranked, and where a group of rows is too large to be ranked whole its rows'
neighbours are listed, shard by shard. What is chosen from all that is decided in the last node of `stages/select.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tamis.pipelines.budget import costs_of, groups_of, shares_of
from tamis.pipelines.node import Inputs, Output, Task
from tamis.pipelines.stages.prune import canonical
from tamis.pipelines.state import Rows, alive_between, generator, kept_before, matrix_column, matrix_of, vectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tamis.pipelines.node import Node
    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import SelectConfig

Ranking = tuple[Rows, npt.NDArray[np.float64]]
Listed = tuple[Rows, npt.NDArray[np.int32], npt.NDArray[np.uint16]]

AUTO_PARTITION_ROWS = 16_384  # its kernel takes 512 MiB
LISTED_ROWS = 16_384  # rows that one task seeks neighbours for
_LISTING = ("sparse", "partitioned")


def add_partitions(
    config: SelectConfig,
    flow: Flow,
    context: Context,
    add: Add,
    inputs: Mapping[str, list[Any]],
    costs: Mapping[str, list[Any]],
    sharing: Mapping[str, Any],
) -> dict[str, list[Any]]:
    """Add the nodes before the last one: partitions, rankings, and lists of neighbours."""
    embeddings = list(flow.need_embeddings(f"select with method {config.method}"))
    limit = AUTO_PARTITION_ROWS if config.partition_rows == "auto" else int(config.partition_rows)
    blocks = "blocks" if config.blocks == "random" else "cells"
    engine: str = blocks if config.method == "ingenious" else config.engine
    last = {"suspects": config.suspects} if config.suspects != "alike" else {}
    params: dict[str, Any] = {"engine": engine, "partition_rows": limit, "per": config.per, **last}
    given = {**inputs, "embeddings": embeddings}
    listing = engine in ("sparse", "partitioned") or (engine == "auto" and flow.rows > limit)
    probes: list[Node] = []
    if listing:
        cells = add("select.cells", params, given)
        probes = [
            add(
                "select.probe",
                {"per": config.per, "start": start, "stop": stop, **last},
                {**inputs, "embeddings": part, "cells": [cells]},
                part=number,
            )
            for number, (part, start, stop) in enumerate(flow.runs(embeddings, LISTED_ROWS))
        ]
        given |= {"cells": [cells], "probes": probes}
    if engine == "blocks":
        params["seed"] = list(context.seed)
    partitions = [add("select.partition", params, given)]
    planned: dict[str, list[Node]] = {"partitions": partitions, "embeddings": embeddings}
    if "before" in inputs:
        planned["before"] = inputs["before"]
    made = {"partitions": partitions}
    if engine != "sparse":
        shards = max(1, math.ceil(flow.rows / limit))
        paid = costs if config.method == "facility_location" else {}  # INGENIOUS draws by the gains of rows
        made["rankings"] = [
            add("select.rank", {"shard": shard, "shards": shards}, {**planned, **paid}, part=shard)
            for shard in range(shards)
        ]
    if engine == "partitioned":
        proposing = {
            "budget": config.budget,
            "rows": flow.rows,
            **last,
            **({"per": config.per, **sharing} if sharing else {}),
        }
        named = {"index": inputs["index"]} if sharing else {}
        made["proposals"] = [add("select.propose", proposing, {**planned, **made, **named})]
        planned["proposals"] = made["proposals"]
    if listing:
        shards = max(1, math.ceil(flow.rows / LISTED_ROWS))
        made["lists"] = [
            add("select.list", {"shard": shard, "shards": shards}, planned, part=shard) for shard in range(shards)
        ]
    return made


def _engines(params: Mapping[str, Any], groups: npt.NDArray[np.int32]) -> Iterator[tuple[int, Rows, str]]:
    """Each group, its members' places, and the engine that it takes."""
    for group in np.unique(groups).tolist():
        members = np.flatnonzero(groups == group)
        engine = params["engine"]
        if engine == "auto":
            engine = "exact" if len(members) <= params["partition_rows"] else "sparse"
        yield group, members, engine


def cells(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Fit the cells of the groups whose rows are to be listed, on evenly spaced rows in canonical order.

    A row of the result is a centroid; cells are numbered from 0 on over all groups.
    """
    from tamis.embeddings.neighbours import PROBES, cell_count, cell_sample, fit_cells
    from tamis.selectors.facility_location import RANKED_PROBES, ranked_cell_count
    from tamis.threads import one_blas_thread

    alive, order = canonical(inputs)
    rows = alive[order]
    owners, centroids, probes = [np.empty(0, np.int32)], [], 1
    with one_blas_thread():
        for group, members, engine in _engines(params, groups_of(inputs, rows, params["per"])):
            if engine not in _LISTING:
                continue
            sparse = engine == "sparse"
            count = cell_count(len(members)) if sparse else ranked_cell_count(len(members))
            probes = PROBES if sparse else RANKED_PROBES
            sample = vectors(inputs, rows[members[cell_sample(len(members), count)]])
            centroids.append(fit_cells(sample, count))
            owners.append(np.full(len(centroids[-1]), group, np.int32))
    flat = np.concatenate(centroids) if centroids else np.empty((0, 1), np.int16)
    table = pa.table({"group": pa.array(np.concatenate(owners), pa.int32()), "vector": matrix_column(flat)})
    return Output(table, {"cells": len(flat), "probes": probes})


def probe(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Name the cells nearest to each row of some blocks whose group has cells."""
    from tamis.embeddings.grid import to_grid
    from tamis.embeddings.kmeans import nearest_on_grid
    from tamis.threads import one_blas_thread

    table, count = inputs.table("cells"), inputs.one("cells").facts["probes"]
    owner = table["group"].to_numpy()
    centroids = matrix_of(table)
    rows = alive_between(inputs, params["start"], params["stop"])
    groups = groups_of(inputs, rows, params["per"])
    found = np.full((len(rows), count), -1, np.int32)
    with one_blas_thread():
        for group in np.intersect1d(groups, owner).tolist():
            first, last = np.searchsorted(owner, (group, group + 1)).tolist()
            mine = np.flatnonzero(groups == group)
            grid = to_grid(vectors(inputs, rows[mine], params["start"]))
            near = nearest_on_grid(grid, centroids[first:last], min(count, last - first))
            found[mine, : near.shape[1]] = first + near
    listed = found[:, :1].max(axis=1, initial=-1) >= 0
    return Output(pa.table({"row": pa.array(rows[listed], pa.int64()), "probes": matrix_column(found[listed])}))


def partition(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Put the rows into groups (one a label or cluster, or one), and groups into partitions.

    A partition may be ranked, and its rows may be listed: `exact` ranks each group whole; `sparse` lists small
    cells; `partitioned` ranks and lists them; `auto` is exact for groups within the limit and sparse beyond;
    `cells` ranks k-means cells of at most the limit and `blocks` random blocks, INGENIOUS's own way.

    Rows are in canonical order; `by_partition` are their places sorted by partition, so that a task finds the rows of
    a partition without looking at all.
    """
    from tamis.selectors.facility_location import split_into_cells

    alive, order = canonical(inputs)
    rows = alive[order]
    groups = groups_of(inputs, rows, params["per"])
    limit, n = params["partition_rows"], len(rows)
    parts, within = np.empty(n, np.int32), np.empty(n, np.int32)
    ranked, listed = np.ones(n, np.bool_), np.zeros(n, np.bool_)
    probes = _probes(inputs, rows)
    # A cell that got no row has a number too, but is nobody's partition.
    count = inputs.one("cells").rows if inputs.all("cells") else 0
    for group, members, engine in _engines(params, groups):
        within[members] = np.arange(len(members))
        if engine in _LISTING:
            ranked[members], listed[members] = engine == "partitioned", True
            parts[members] = probes[members, 0]
            continue
        if engine == "cells" and len(members) > limit:
            own = split_into_cells(vectors(inputs, rows[members]), max_cell_rows=limit, rows_per_cell=limit)
        elif engine == "blocks":
            mixed = generator(params, group).permutation(len(members))
            own = [np.sort(part) for part in np.array_split(mixed, -(-len(members) // limit))]
        else:
            own = [np.arange(len(members))]
        for cell in own:
            parts[members[cell]] = count
            count += 1
    by_part = np.argsort(parts, kind="stable")
    table = pa.table(
        {
            "row": pa.array(rows),
            "group": pa.array(groups, pa.int32()),
            "within": pa.array(within),
            "partition": pa.array(parts),
            "ranked": pa.array(ranked, pa.uint8()),
            "listed": pa.array(listed, pa.uint8()),
            "by_partition": pa.array(by_part),
            "sorted_partition": pa.array(parts[by_part]),
            "probes": matrix_column(probes),
        }
    )
    sizes = np.bincount(parts) if n else np.zeros(1, np.int64)
    facts = {
        "partitions": int((sizes > 0).sum()),
        "largest": int(sizes.max()),
        "listed": int(listed.sum()),
        "cells": {str(group): int(cells) for group, cells in _cells_of_groups(inputs)},
    }
    return Output(table, facts)


def _cells_of_groups(inputs: Inputs) -> Iterator[tuple[int, int]]:
    if inputs.all("cells"):
        groups, counts = np.unique(inputs.table("cells")["group"].to_numpy(), return_counts=True)
        yield from zip(groups.tolist(), counts.tolist(), strict=True)


def _probes(inputs: Inputs, rows: Rows) -> npt.NDArray[np.int32]:
    """The cells that each row looks into, int32[n, p], -1 for none; rows in canonical order."""
    if not inputs.all("probes"):
        return np.full((len(rows), 1), -1, np.int32)
    found = [inputs.open(item) for item in inputs.all("probes")]
    near: npt.NDArray[np.int32] = np.concatenate([matrix_of(table, "probes") for table in found])
    probed = np.concatenate([table["row"].to_numpy() for table in found])
    out = np.full((len(rows), near.shape[1]), -1, np.int32)
    by_row = np.argsort(rows)
    out[by_row[np.searchsorted(rows[by_row], probed)]] = near
    return out


def rank(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Rank every row of one shard's partitions by exact greedy gains: any budget is then decided by a merge."""
    from tamis.selectors.facility_location import rank_partition

    plan = Partitions.read(inputs)
    before = kept_before(inputs, plan.rows)
    cost = costs_of(inputs, plan.rows) if inputs.all("costs") else None
    ranked_rows, ranked_gains, ranked_parts = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0, np.int32)]
    mine = np.unique(plan.parts[plan.ranked != 0])
    for part in mine[mine % params["shards"] == params["shard"]]:
        places, _ = plan.places_of(part)
        members, there = plan.rows[places], before[places]
        if there.all():
            continue
        count = int(np.count_nonzero(~there))
        own = None if cost is None else cost[places]
        indices, gains = rank_partition(vectors(inputs, members), count, there if there.any() else None, own)
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


def propose(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """The places of the rows that the rankings of each listed group propose for the budget, ascending.

    Those kept before are among them: they are chosen already, and the lists must name them.
    """
    from tamis.selectors.facility_location import proposals_of

    plan = Partitions.read(inputs)
    rankings = plan.rankings(inputs)
    before = kept_before(inputs, plan.rows)
    proposed = [np.flatnonzero(before & (plan.listed != 0))]
    cost = np.ones(len(plan.rows), np.int64)
    for group, share in shares_of(params, inputs, plan.groups, cost, before).items():
        members = np.flatnonzero(plan.groups == group)
        if share and plan.listed[members[0]]:
            proposed.append(proposals_of(plan.of_group(rankings, members), share))
    return Output(pa.table({"place": pa.array(np.sort(np.concatenate(proposed)))}))


def listing(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """List the neighbours of the rows of one shard's cells, among all rows of their group or those proposed.

    Cells with near numbers are near each other, so that a shard of consecutive ones reads few others.
    """
    from tamis.embeddings.grid import cosine_scale, to_grid
    from tamis.embeddings.neighbours import NEIGHBOURS, Cells, nearest_neighbours
    from tamis.threads import one_blas_thread

    plan = Partitions.read(inputs)
    proposed = inputs.table("proposals")["place"].to_numpy() if inputs.all("proposals") else None
    width = NEIGHBOURS if proposed is None else NEIGHBOURS // 2
    mine = plan.places_of_shard(params["shard"], params["shards"])
    mine = mine[plan.listed[mine] != 0]
    found = [np.empty((0, width), np.int32)]
    near = [np.empty((0, width), np.uint16)]
    for group in np.unique(plan.groups[mine]).tolist():
        asking = mine[plan.groups[mine] == group]
        probes = plan.probes[asking]
        used = np.unique(probes[probes >= 0])
        places, start = plan.places_of(used)
        first = int(start[np.searchsorted(used, probes[0, 0])])
        among = slice(first, first + len(asking))  # a shard's cells stand together
        local = np.full((len(places), probes.shape[1]), -1, np.int32)
        local[among] = np.where(probes >= 0, np.searchsorted(used, probes), -1)
        grid = to_grid(vectors(inputs, plan.rows[places]))
        own = Cells(np.empty((len(used), 0), np.int16), np.arange(len(places)), start, grid, cosine_scale(grid), local)
        candidates = None if proposed is None else np.isin(places, proposed)
        size, count = plan.size_of(group), plan.cells_of(group)
        with one_blas_thread():
            neighbours, similarity = nearest_neighbours(
                own, width, candidates=candidates, asking=among, enough=min(count, probes.shape[1]) * size // count
            )
        within = plan.within[places]
        found.append(np.where(neighbours >= 0, within[neighbours], -1).astype(np.int32))
        near.append(similarity)
    table = pa.table(
        {
            "place": pa.array(mine, pa.int64()),
            "neighbours": matrix_column(np.concatenate(found)),
            "similarity": matrix_column(np.concatenate(near)),
        }
    )
    return Output(table, {"rows": len(mine)})


@dataclasses.dataclass(frozen=True, slots=True)
class Partitions:
    """The partition node's table as arrays, rows in canonical order."""

    rows: Rows
    groups: npt.NDArray[np.int32]
    within: npt.NDArray[np.int32]
    parts: npt.NDArray[np.int32]
    ranked: npt.NDArray[np.uint8]
    listed: npt.NDArray[np.uint8]
    by_part: Rows
    sorted_parts: npt.NDArray[np.int32]
    probes: npt.NDArray[np.int32]
    cells: Mapping[str, int]

    @staticmethod
    def read(inputs: Inputs) -> Partitions:
        """Read the table in role `partitions`."""
        table = inputs.table("partitions").combine_chunks()
        names = (
            "row", "group", "within", "partition", "ranked", "listed", "by_partition", "sorted_partition",
        )  # fmt: skip
        row, group, within, part, ranked, listed, by_part, ordered = (table[name].to_numpy() for name in names)
        probes, cells = matrix_of(table, "probes"), inputs.one("partitions").facts["cells"]
        return Partitions(row, group, within, part, ranked, listed, by_part, ordered, probes, cells)

    def places_of(self, parts: npt.ArrayLike) -> tuple[Rows, Rows]:
        """The places of some partitions' rows, one partition after the other, and where each of them begins."""
        wanted = np.atleast_1d(np.asarray(parts, self.sorted_parts.dtype))
        first, last = (np.searchsorted(self.sorted_parts, wanted, side) for side in ("left", "right"))
        pieces = [self.by_part[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        return np.concatenate(pieces), np.concatenate([[0], np.cumsum(last - first)])

    def places_of_shard(self, shard: int, shards: int) -> Rows:
        """The places of the rows of one shard's partitions: those whose first row falls into the shard's share."""
        n = len(self.by_part)
        shards = min(shards, max(1, math.ceil(n / LISTED_ROWS)))  # fewer rows may be left than were planned for
        first, last = (self._begin(n * min(s, shards) // shards) for s in (shard, shard + 1))
        return self.by_part[first:last]

    def _begin(self, position: int) -> int:
        """Where the first partition begins that does not begin before this position."""
        if position == 0 or position >= len(self.sorted_parts):
            return position
        before = self.sorted_parts[position - 1]
        return int(np.searchsorted(self.sorted_parts, before, side="right"))

    def size_of(self, group: int) -> int:
        """How many rows a group has."""
        return int(np.count_nonzero(self.groups == group))

    def cells_of(self, group: int) -> int:
        """How many cells a listed group has."""
        return self.cells[str(group)]

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
        return [rankings[part] for part in np.unique(self.parts[members]).tolist() if part in rankings]


def listed_rows(inputs: Inputs) -> Iterator[Listed]:
    """Each shard's rows by their places, the neighbours listed for each, and how near these are."""
    for item in inputs.all("lists"):
        table = inputs.open(item)
        yield table["place"].to_numpy(), matrix_of(table, "neighbours"), matrix_of(table, "similarity")


PARTITION_TASKS = {
    "cells": Task(cells, packages=("numba",)),
    "probe": Task(probe, packages=("numba",)),
    "partition": Task(partition, version=3, packages=("numba",)),
    "rank": Task(rank, version=2, packages=("numba",)),
    "propose": Task(propose, packages=("numba",)),
    "list": Task(listing, version=2, packages=("numba",)),
}

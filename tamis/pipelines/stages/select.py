"""Select: a subset within the budget.

Facility location and INGENIOUS are spread over the graph by partitions (`pipelines/partitions.py`); one last node takes
the budget. Every other selector runs in that node alone.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tamis.embeddings.encoders import as_unit, count_vectors, read_vectors
from tamis.errors import DataError, RecipeError
from tamis.manifests.canonical import sha256_file
from tamis.manifests.schema import CERTIFIED
from tamis.pipelines.budget import costs_of, fitting, groups_of, money, shares_of
from tamis.pipelines.node import Inputs, Output, Task
from tamis.pipelines.partitions import PARTITION_TASKS, Partitions, add_partitions, listed_rows
from tamis.pipelines.stages.prune import canonical
from tamis.pipelines.state import (
    KEPT,
    NOT_IN_BUDGET,
    Rows,
    effect,
    generator,
    kept_before,
    values,
    vectors,
)
from tamis.selectors.selection import floor_share
from tamis.selectors.shares import largest_remainder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tamis.pipelines.budget import Cost
    from tamis.pipelines.node import Node
    from tamis.pipelines.partitions import Listed, Ranking
    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import SelectConfig
    from tamis.selectors.selection import Selection

Floats = npt.NDArray[np.float64]

COUNTED_ROWS = 65_536  # rows whose tokens or bytes one task counts
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
        **_sharing(config, flow),
    }
    inputs = {"alive": [flow.alive], "index": [flow.index]}
    costs = {}
    if config.unit is not None:
        params["unit"] = config.unit
        costs["costs"] = _counted(config, flow, add)
    if config.continue_from is not None:
        assert flow.before is not None  # made for this key
        inputs["before"] = [flow.before]
    if config.suspects != "alike":
        params["suspects"] = config.suspects
        inputs["suspect"] = [
            flow.need("suspect", f"{what} and suspects {config.suspects}", "a score stage with method proxy")
        ]
    if config.per == "cluster":
        inputs["cluster"] = [flow.need("cluster", f"{what} per cluster", "a cluster stage")]
    hints: dict[str, Any] = {}
    task = "select.take"
    if config.method in _SPREAD:
        inputs |= add_partitions(config, flow, context, add, inputs, costs, _sharing(config, flow))
        params |= {"stop_gain": config.stop_gain}
        if config.random_beyond is not None:
            params["random_beyond"] = config.random_beyond
        if config.method == "ingenious":
            params |= {"temperature": config.temperature, "scale_free": config.scale_free}
    elif config.method not in _WITHOUT_EMBEDDINGS:
        task = "select.whole"
        inputs["embeddings"] = list(flow.need_embeddings(what))
        params["options"] = {name: getattr(config, name) for name in _OPTIONS[config.method]}
        if config.method in _FILES:
            path = _vectors_beside(context.folder / str(getattr(config, _FILES[config.method])))
            hints["file"], params["sha256"] = str(path), sha256_file(path)
    node = add(task, params, {**inputs, **costs}, hints=hints)
    columns = {name: column for name, column in flow.columns.items() if name != "gain"} | {"rank": node}
    if config.method not in (*_WITHOUT_EMBEDDINGS, "duqgen"):
        columns["gain"] = node
    return dataclasses.replace(flow, alive=node, effects=(*flow.effects, node), columns=columns, selection=node)


def _sharing(config: SelectConfig, flow: Flow) -> dict[str, Any]:
    """What a task must know to give some groups a share of their own."""
    if config.shares is None:
        return {}
    files = {"files": flow.index.hints["files"]} if config.per == "source" and flow.dataset.source is None else {}
    return {"shares": config.shares, **files}


def _counted(config: SelectConfig, flow: Flow, add: Add) -> list[Node]:
    """The nodes that count each row's tokens or bytes."""
    roles = [
        role for role in (("tokens",) if config.unit == "tokens" else ("text", "image")) if role in flow.dataset.fields
    ]
    if not roles:
        needed = (
            "tokens column (`tamis pack` makes one): dataset: {tokens: COLUMN}; or give the budget in bytes"
            if config.unit == "tokens"
            else "text or image column: dataset: {text: COLUMN}; or give the budget in rows"
        )
        raise RecipeError(f"select with a budget in {config.unit} needs the dataset's {needed}")
    runs = flow.runs(flow.blocks, COUNTED_ROWS)
    return [
        add("select.count", {"roles": roles}, {"blocks": some}, part=part) for part, (some, _, _) in enumerate(runs)
    ]


def _vectors_beside(path: Path) -> Path:
    if not path.is_file():
        raise RecipeError(f"select: no file of vectors at {path}")
    if count_vectors(path) == 0:
        raise RecipeError(f"select: {path} holds no vectors")
    return path


def take(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Take the budget: shares for the groups, then the merged ranking, the draw, or greedy on the lists in each."""
    alive, order = canonical(inputs)
    rows = alive[order]
    cost = costs_of(inputs, rows)
    rng = generator(params)
    columns: dict[str, pa.Array] = {}
    first = _in_order_of_then(inputs, rows)
    if params["method"] in _SPREAD:
        plan = Partitions.read(inputs)
        assert np.array_equal(plan.rows, rows)  # both in canonical order
        chosen, gains, facts = _from_partitions(_by_gain(params, cost), inputs, plan, cost, rng)
        if params["method"] == "ingenious":  # a training may draw again (`IngeniousSampler`)
            part = np.empty(len(alive), np.int32)
            part[order] = plan.parts
            columns["partition"] = pa.array(part, pa.int32())
    else:
        chosen, gains, facts = _uniform(params, inputs, rows, cost, first, rng), None, {}
    if "random_beyond" in params:
        drawn = _drawn_beyond(params, inputs, rows, cost, chosen, rng)
        chosen, facts = np.concatenate([chosen, drawn]), {**facts, "random": len(drawn)}
    chosen = np.concatenate([first, chosen])
    facts = {**_spent(params, cost, chosen), **facts}
    doubted = values(inputs, "suspect", "suspect", alive) if "suspects" in params else None
    return _output(params, alive, order, chosen, gains, facts, columns, doubted)


def _in_order_of_then(inputs: Inputs, rows: Rows) -> Rows:
    """The places of the rows that were kept before, by their rank then."""
    if not inputs.all("before"):
        return np.empty(0, np.int64)
    table = inputs.table("before")
    by_row = np.argsort(rows)
    kept, rank = table["row"].to_numpy(), table["rank"].to_numpy()
    at = np.minimum(np.searchsorted(rows[by_row], kept), len(rows) - 1)
    gone = kept[rows[by_row[at]] != kept]
    if len(gone):
        raise DataError(
            f"select.continue_from: {len(gone)} of the {len(kept)} rows kept then have no usable content or vector now "
            f"(rows {', '.join(map(str, gone[:10]))}): use the encoder of that run, or select anew"
        )
    places: Rows = by_row[at][np.argsort(rank)]
    return places


def whole(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Run a selector on all rows at once, or in each group."""
    from tamis.selectors import REGISTRY, per_group

    alive, order = canonical(inputs)
    rows = alive[order]
    cost, groups = costs_of(inputs, rows), groups_of(inputs, rows, params["per"])
    options = dict(params["options"])
    if params["method"] == "duqgen":
        options["rng"] = generator(params)
    if params["method"] in _FILES:
        options[_FILES[params["method"]]] = _beside(inputs)
    selector = REGISTRY[params["method"]]

    def run(X: npt.NDArray[np.float32], count: int) -> Selection:
        return selector(X, budget=count, **options)

    shares = shares_of(params, inputs, groups, cost, np.zeros(len(rows), np.bool_))
    unit, at = vectors(inputs, rows), np.arange(len(rows))
    if inputs.all("costs"):
        # A row that alone costs more than its group has is not looked at.
        at = np.flatnonzero(cost <= np.array([shares[group] for group in groups.tolist()], np.int64))
        shares = {
            group: _first_that_fit(run, unit[at[own]], cost[at[own]], shares[group])
            for group in np.unique(groups[at]).tolist()
            for own in [np.flatnonzero(groups[at] == group)]
        }
        if not shares:
            raise _pays_for_nothing(params, cost)
    selection = per_group(run, unit[at], groups[at], budget=shares) if params["per"] else run(unit[at], shares[0])
    gains, chosen = None, at[selection.indices]
    if selection.gains is not None:
        gains = np.full(len(rows), np.nan)
        gains[chosen] = selection.gains
    facts = _spent(params, cost, chosen)
    if selection.certificate:
        figures = {name: round(value, 6) for name, value in selection.certificate.items()}
        facts["certificate" if figures.keys() >= set(CERTIFIED) else "figures"] = figures  # k_center has a radius
    return _output(params, alive, order, chosen, gains, facts)


def _first_that_fit(
    run: Callable[[npt.NDArray[np.float32], int], Selection], X: npt.NDArray[np.float32], cost: Cost, share: int
) -> int:
    """How many of the rows that greedy chooses first the share pays for; each of them alone it does."""
    count = min(len(X), max(1, math.ceil(share / cost.mean())))
    while True:
        spent = np.cumsum(cost[run(X, count).indices])
        fit = int(np.searchsorted(spent, share, side="right"))
        if fit < count or count == len(X):
            return fit
        count = min(len(X), 2 * count)


def _beside(inputs: Inputs) -> npt.NDArray[np.float32]:
    path = Path(inputs.hints["file"])
    given = read_vectors(path, 0, count_vectors(path))
    _, bad = as_unit(given)
    if bad:
        shown = "; ".join(f"row {row}: {reason}" for row, reason in list(bad.items())[:10])
        raise DataError(f"{path}: {len(bad)} of {len(given)} vectors cannot be used: {shown}; mend or remove them")
    return given


def _output(
    params: Mapping[str, Any],
    alive: Rows,
    order: Rows,
    chosen: Rows,
    gains: Floats | None,
    facts: dict[str, Any],
    columns: Mapping[str, pa.Array] = MappingProxyType({}),
    doubted: npt.NDArray[np.bool_] | None = None,
) -> Output:
    """What became of every row; `chosen` and `gains` are in canonical order, `doubted` is in that of the rows."""
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
    amount = " ".join(str(facts[name]) for name in ("budget", "unit") if name in facts)
    plain = f"not in the budget of {amount} ({params['method']})"
    reason: str | list[str | None] = plain
    if doubted is not None:
        why = (plain, f"{plain}: the label is likely wrong")
        reason = [None if kept else why[wrong] for kept, wrong in zip(stays.tolist(), doubted.tolist(), strict=True)]
    return Output(effect(alive, decision, reason, score=score, **columns), facts)


def _spent(params: Mapping[str, Any], cost: Cost, chosen: Rows) -> dict[str, Any]:
    """The facts of the budget, which something must fit into."""
    facts: dict[str, Any] = {"budget": money(params, cost), "method": params["method"]}
    unit = params.get("unit")
    if unit is None:
        return facts
    if not len(chosen):
        raise _pays_for_nothing(params, cost)
    return facts | {"unit": unit, "spent": int(cost[chosen].sum())}


def _pays_for_nothing(params: Mapping[str, Any], cost: Cost) -> RecipeError:
    where = f" shared per {params['per']}" if params["per"] else ""
    return RecipeError(
        f"select.budget of {money(params, cost)} {params['unit']}{where} pays for no row: the cheapest has "
        f"{cost.min()}; give more"
    )


def _by_gain(params: Mapping[str, Any], cost: Cost) -> dict[str, Any]:
    """The parameters with the budget of what is chosen by gain."""
    if "random_beyond" not in params:
        return dict(params)
    most = max(1, floor_share(params["random_beyond"], params["rows"]))
    return {**params, "budget": min(money(params, cost), most)}


def _drawn_beyond(
    params: Mapping[str, Any], inputs: Inputs, rows: Rows, cost: Cost, chosen: Rows, rng: np.random.Generator
) -> Rows:
    """Rows drawn at random beside the chosen ones, in each group as many as its share of the whole budget lacks."""
    before = np.zeros(len(rows), np.bool_)
    before[chosen] = True
    groups = groups_of(inputs, rows, params["per"])
    shuffled = rng.permutation(np.flatnonzero(~before))
    lacking = shares_of(params, inputs, groups, cost, before)
    drawn: Rows = np.concatenate([shuffled[groups[shuffled] == group][:count] for group, count in lacking.items()])
    return drawn


def _uniform(
    params: Mapping[str, Any], inputs: Inputs, rows: Rows, cost: Cost, first: Rows, rng: np.random.Generator
) -> Rows:
    """The rows drawn beside the `first` ones, which there are already: in each group at random, while they fit."""
    per = params["per"] or ("label" if params["method"] == "stratified" else None)
    groups = groups_of(inputs, rows, per)
    before = np.zeros(len(rows), np.bool_)
    before[first] = True
    others = np.flatnonzero(~before)
    shuffled = others[rng.permutation(len(others))]
    taken = np.zeros(len(shuffled), np.bool_)
    for group, share in shares_of(params, inputs, groups, cost, before).items():
        own = np.flatnonzero(groups[shuffled] == group)
        taken[own] = fitting(cost[shuffled[own]], share)
    drawn: Rows = shuffled[taken]
    return drawn


def _from_partitions(
    params: Mapping[str, Any], inputs: Inputs, plan: Partitions, cost: Cost, rng: np.random.Generator
) -> tuple[Rows, Floats, dict[str, Any]]:
    """Return the chosen places in rank order, every place's gain (NaN: not computed), and facts."""
    from tamis.selectors.ingenious import overlap_diagnostics

    gains = np.full(len(plan.rows), np.nan)
    chosen: list[Rows] = [np.empty(0, np.int64)]
    objective = bound = 0.0
    overlaps: list[dict[str, int]] = []
    before = kept_before(inputs, plan.rows)
    shares = shares_of(params, inputs, plan.groups, cost, before)
    paid = cost if inputs.all("costs") else None
    rankings = plan.rankings(inputs) if inputs.all("rankings") else {}
    lists = list(listed_rows(inputs))
    proposed = inputs.table("proposals")["place"].to_numpy() if inputs.all("proposals") else None
    for group, share in shares.items():
        if not share:  # a small class may get nothing of a small budget
            continue
        members = np.flatnonzero(plan.groups == group)
        if plan.listed[members[0]]:
            indices, own, most = _on_lists(lists, plan, proposed, before[members], members, share, paid)
            gains[members] = own
        else:
            ranked = plan.of_group(rankings, members)
            for places, own in ranked:
                gains[places] = own
            if params["method"] == "ingenious":
                options = (params["temperature"], params["scale_free"])
                indices, most = _drawn(ranked, share, paid, rng, *options), math.nan
                if len(indices):
                    overlaps.append(overlap_diagnostics(ranked, len(indices), generator(params, 1), *options))
            else:
                indices, most = _merged(ranked, share) if paid is None else _merged_by_cost(ranked, share, paid)
        if params["stop_gain"] is not None:
            indices = indices[gains[indices] >= params["stop_gain"]]
        objective, bound = objective + float(gains[indices].sum()), bound + most
        chosen.append(indices)
    places = np.concatenate(chosen)
    places = places[np.lexsort((places, -gains[places] / (1 if paid is None else paid[places])))]
    facts: dict[str, Any] = {
        "shares": list(shares.values()),
        "partitions": len(np.unique(plan.parts)),
        "listed": int(plan.listed.sum()),
    }
    if overlaps:
        facts["overlap"] = {key: sum(item[key] for item in overlaps) for key in overlaps[0]}
    elif params["stop_gain"] is None and not before.any():
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


def _merged_by_cost(rankings: list[Ranking], share: int, cost: Cost) -> tuple[Rows, float]:
    """What a share pays for of some rankings by gain per cost, and what no set that it pays for exceeds.

    A gain counts from all that are ranked before, those passed over too: what it says is never too much.
    """
    from tamis.selectors.facility_location import merge_rankings

    by_ratio = [(rows, gains / cost[rows]) for rows, gains in rankings]
    rows, ratios = merge_rankings(by_ratio, sum(len(rows) for rows, _ in rankings))
    taken = fitting(cost[rows], share)
    if taken.all():
        return rows, float((ratios * cost[rows]).sum())
    # OPT <= f(P) + share max_j gain(j | P) / cost(j), for the rows P before the first that is passed over.
    first = int(np.argmin(taken))
    return rows[taken], float((ratios[:first] * cost[rows[:first]]).sum() + share * ratios[first])


def _drawn(
    rankings: list[Ranking],
    share: int,
    cost: Cost | None,
    rng: np.random.Generator,
    temperature: float,
    scale_free: bool,
) -> Rows:
    """Draw from every partition its part of a share: so many rows, or those that it pays for in the order drawn."""
    from tamis.selectors.ingenious import draw_orders, draw_shares

    if cost is None:
        return draw_shares(rankings, share, rng, temperature, scale_free)[0]
    sizes = np.array([cost[rows].sum() for rows, _ in rankings], np.int64)
    parts = largest_remainder(sizes.astype(np.float64), min(share, int(sizes.sum())), sizes)
    orders = draw_orders(rankings, rng, temperature, scale_free)
    return np.concatenate(
        [rows[fitting(cost[rows], part)] for (rows, _), part in zip(orders, parts.tolist(), strict=True)]
    )


def _on_lists(
    lists: Sequence[Listed],
    plan: Partitions,
    proposed: Rows | None,
    before: npt.NDArray[np.bool_],
    members: Rows,
    share: int,
    cost: Cost | None,
) -> tuple[Rows, Floats, float]:
    """Greedy on a group's lists: the chosen places, each member's gain, and the bound on the listed objective."""
    from tamis.embeddings.grid import UNIT
    from tamis.selectors.facility_location import on_neighbours
    from tamis.selectors.greedy import Terms

    candidates = None
    if proposed is not None or before.any():
        open_to = ~before if proposed is None else ~before & np.isin(members, proposed, assume_unique=True)
        candidates = np.flatnonzero(open_to)
    width = lists[0][1].shape[1]
    neighbours = np.full((len(members), width), -1, np.int32)
    similarity = np.zeros((len(members), width), np.uint16)
    for place, found, near in lists:
        mine = plan.groups[place] == plan.groups[members[0]]
        at = plan.within[place[mine]]
        neighbours[at], similarity[at] = found[mine], near[mine]
    terms = Terms(share, low=_represented(neighbours, similarity, before), candidates=candidates)
    if cost is not None:
        most = len(members) if candidates is None else len(candidates)
        terms = dataclasses.replace(terms, budget=most, cost=cost[members].astype(np.float64), money=share)
    trace = on_neighbours(neighbours, similarity, terms, symmetric=proposed is None)
    gains = trace.remaining / UNIT
    if candidates is not None:  # the others were not looked at
        gains[np.setdiff1d(np.arange(len(members)), candidates)] = np.nan
    gains[trace.chosen] = trace.gains / UNIT
    return members[trace.chosen], gains, trace.bound / UNIT


def _represented(
    neighbours: npt.NDArray[np.int32], similarity: npt.NDArray[np.uint16], before: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint16] | None:
    """Each row's similarity to the nearest of those kept before that it lists, or that list it."""
    if not before.any():
        return None
    low: npt.NDArray[np.uint16] = np.where((neighbours >= 0) & before[neighbours], similarity, 0).max(axis=1)
    found = neighbours[before]
    listed = found >= 0
    np.maximum.at(low, found[listed], similarity[before][listed])
    return low


def count(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Count the tokens, or the bytes of text and image, of the rows of some blocks."""
    counted = []
    for item in inputs.all("blocks"):
        table = inputs.open(item)
        cost = np.zeros(table.num_rows, np.int64)
        for role in params["roles"]:
            length = pc.list_value_length if role == "tokens" else pc.binary_length
            cost += pc.fill_null(length(table[role]), 0).to_numpy()
        counted.append(cost)
    return Output(pa.table({"cost": pa.array(np.concatenate(counted))}))


TASKS = {
    **PARTITION_TASKS,
    "count": Task(count),
    "take": Task(take, version=3, packages=("numba",)),
    "whole": Task(whole, version=2, libraries=("faiss",), packages=("faiss-cpu", "numba")),
}

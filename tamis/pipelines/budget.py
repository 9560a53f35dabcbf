"""What a selection may spend, and how groups of rows share it: rows, tokens or bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tamis.errors import RecipeError
from tamis.pipelines.state import Rows, values
from tamis.selectors.selection import resolve_budget
from tamis.selectors.shares import named_shares

if TYPE_CHECKING:
    from tamis.pipelines.node import Inputs

Cost = npt.NDArray[np.int64]
Groups = npt.NDArray[np.int32]


def costs_of(inputs: Inputs, rows: Rows) -> Cost:
    """What each row costs: its tokens or bytes where role `costs` has them, else 1."""
    tables = [inputs.open(item) for item in inputs.all("costs")]
    if not tables:
        return np.ones(len(rows), np.int64)
    every: Cost = np.concatenate([table["cost"].to_numpy() for table in tables])
    return every[rows]


def groups_of(inputs: Inputs, rows: Rows, per: str | None) -> Groups:
    """The group of each row: its class, its cluster, its source, or one for all.

    Where role `suspect` says whose labels are likely wrong, group g is 2 g, and its suspects are the group 2 g + 1.
    """
    if per is None:
        found: Groups = np.zeros(len(rows), np.int32)
    else:
        role, column = ("cluster", per) if per == "cluster" else ("index", per)
        if per == "source" and "origin" in inputs.table("index").column_names:
            column = "origin"
        found = values(inputs, role, column, rows).astype(np.int32)
    if inputs.all("suspect"):
        found = 2 * found + values(inputs, "suspect", "suspect", rows).astype(np.int32)
    return found


def money(params: Mapping[str, Any], cost: Cost) -> int:
    """What may be spent on rows of these costs: a count of them, or tokens or bytes.

    Raises:
        RecipeError: The rows are fewer than the budget counts.
    """
    budget, rows = params["budget"], params["rows"]
    if isinstance(budget, Mapping):
        (amount,) = budget.values()
        return min(int(amount), int(cost.sum()))
    wanted = resolve_budget(budget, rows)
    if wanted > len(cost):
        raise RecipeError(
            f"select.budget {budget} of {rows} rows is {wanted}, but only {len(cost)} rows reach this stage; "
            f"give at most {len(cost)} or {len(cost) / rows:.4f}, or drop less before"
        )
    return wanted


def shares_of(
    params: Mapping[str, Any], inputs: Inputs, groups: Groups, cost: Cost, before: npt.NDArray[np.bool_]
) -> dict[int, int]:
    """What each group may spend: in proportion to the costs of its rows, or what the recipe says.

    Where rows were kept before, what is left goes to the groups that have less than their share. Where suspects are
    groups of their own, they share what is left of their group's share beside its other rows.

    Raises:
        RecipeError: The budget or the shares cannot be met.
    """
    if "suspects" in params:
        return _suspects_last(params, inputs, groups, cost, before)
    names, group = np.unique(groups, return_inverse=True)
    sizes, there = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    np.add.at(sizes, group, cost)
    np.add.at(there, group[before], cost[before])
    budget = money(params, cost)
    left = left_of(budget, int(there.sum()), params)
    fixed = params.get("shares") or {}
    called = _names(params, inputs, names.tolist()) if fixed else []
    shares = named_shares(sizes, budget, fixed, called)
    if there.any():
        lacking = np.maximum(shares - there, 0).astype(np.float64)
        shares = named_shares(sizes - there, left, {}, (), lacking)
    return dict(zip(names.tolist(), shares.tolist(), strict=True))


def _suspects_last(
    params: Mapping[str, Any], inputs: Inputs, groups: Groups, cost: Cost, before: npt.NDArray[np.bool_]
) -> dict[int, int]:
    """The shares of whole groups, and of each what its suspects get: what its other rows cannot fill."""
    plain = {name: value for name, value in params.items() if name != "suspects"}
    shares: dict[int, int] = {}
    for group, share in shares_of(plain, inputs, groups // 2, cost, before).items():
        others = (groups == 2 * group) & ~before
        shares[2 * group] = min(share, int(cost[others].sum()))
        shares[2 * group + 1] = share - shares[2 * group]
    return {group: share for group, share in shares.items() if (groups == group).any()}


def left_of(budget: int, before: int, params: Mapping[str, Any]) -> int:
    """What is left of the budget beside the rows that were kept before.

    Raises:
        RecipeError: They are more.
    """
    if before > budget:
        unit = params.get("unit", "rows")
        raise RecipeError(
            f"select.budget {params['budget']} is {budget} {unit}, fewer than the {before} that the manifest in "
            f"continue_from keeps; give at least {before}"
        )
    return budget - before


def _names(params: Mapping[str, Any], inputs: Inputs, groups: list[int]) -> list[str]:
    """What the recipe calls some groups."""
    facts = inputs.one("index").facts
    if params["per"] == "cluster":
        return [str(group) for group in groups]
    known = facts["classes"] if params["per"] == "label" else facts.get("origins") or params["files"]
    return [known[group] for group in groups]


def fitting(cost: Cost, amount: int) -> npt.NDArray[np.bool_]:
    """Which rows an amount pays for, in their order; a row that no longer fits is passed over.

    >>> fitting(np.array([3, 4, 2, 1]), 6).tolist()
    [True, False, True, True]
    """
    taken = np.cumsum(cost) <= amount
    first = int(np.argmin(taken)) if not taken.all() else len(cost)
    left = amount - int(cost[:first].sum())
    taken[first:] = False
    for place in first + np.flatnonzero(cost[first:] <= left):
        if cost[place] <= left:
            taken[place] = True
            left -= int(cost[place])
    return taken

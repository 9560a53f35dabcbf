"""Pick: the rows that a list names, as another tool, or an earlier run, has chosen them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.errors import DataError, RecipeError, first_of
from tamis.manifests.canonical import sha256_file
from tamis.pipelines.id_lists import ids_twice, read_ids
from tamis.pipelines.node import Inputs, Output, Task
from tamis.pipelines.state import KEPT, NOT_IN_BUDGET, Rows, alive_rows, effect, kept_before

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import PickConfig


def expand(config: PickConfig, flow: Flow, context: Context, add: Add) -> Flow:
    """Add the one node that matches the list: column `rank`, in the list's order."""
    path = context.folder / config.ids
    if not path.is_file():
        raise RecipeError(f"pick: no file of ids at {path}")
    params = {"sha256": sha256_file(path), "column": config.column, "missing": config.missing}
    inputs = flow.with_before({"alive": [flow.alive], "index": [flow.index]})
    node = add("pick.rows", params, inputs, hints={"file": str(path)})
    columns = {**flow.columns, "rank": node}
    return dataclasses.replace(flow, alive=node, effects=(*flow.effects, node), columns=columns)


def rows(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Match the list with the rows by sample id or, where uids are no ids, by content hash."""
    path = Path(inputs.hints["file"])
    listed = read_ids(path, params["column"])
    alive = alive_rows(inputs)
    index = inputs.table("index")
    names = index["sample_id"].combine_chunks()
    ids = listed.ids.cast(names.type)
    by_content = listed.uids and not pc.any(pc.is_in(ids, names)).as_py()
    if by_content:
        names = pa.array([value and value.hex() for value in index["content_hash"].to_pylist()], ids.type)
    here = names.take(pa.array(alive))
    if by_content:
        _refuse_ambiguous(path, here.filter(pc.is_in(here, ids)))
    at = pc.index_in(ids, here)
    lacking = ids.filter(at.is_null())
    gone = pc.sum(pc.is_in(lacking, names), min_count=0).as_py()
    lacking = lacking.filter(pc.invert(pc.is_in(lacking, names)))
    if len(lacking) and (params["missing"] == "refuse" or len(lacking) == len(ids)):
        hashes = "It has content hashes, of the sample and its label: name the columns that its run named. "
        raise DataError(
            f"{path}: {len(lacking)} of its {len(ids)} ids are not in the dataset: {first_of(lacking.to_pylist())}; is "
            f"it of this dataset? {hashes if by_content else ''}To go without some, set pick.missing: ignore"
        )
    chosen = at.drop_null().to_numpy().astype(np.int64)
    also = np.setdiff1d(np.flatnonzero(kept_before(inputs, alive)), chosen)  # of the manifest that is continued
    rank = _ranks(np.concatenate([chosen, also]), len(alive))
    decision = np.where(rank >= 0, KEPT, NOT_IN_BUDGET).astype(np.int8)
    facts = {
        "listed": len(ids),
        "picked": len(chosen),
        "missing": len(lacking),
        "dropped_before": int(gone),
        "matched_by": "content hash" if by_content else "id",
    }
    column = pa.array(rank, pa.int32(), mask=rank < 0)
    return Output(effect(alive, decision, "not in the list", rank=column), facts)


def _ranks(chosen: Rows, count: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Each place's rank; -1 where it is not among the chosen."""
    rank = np.full(count, -1, np.int32)
    rank[chosen] = np.arange(len(chosen), dtype=np.int32)
    return rank


def _refuse_ambiguous(path: Path, found: pa.Array) -> None:
    twice = ids_twice(found)
    if twice:
        raise DataError(
            f"{path}: {len(twice)} of its content hashes are those of several rows: {first_of(twice)}; put "
            "`{kind: dedup, eps: 0}` before pick, or list ids"
        )


TASKS = {"rows": Task(rows)}

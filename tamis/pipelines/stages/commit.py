"""Commit: the ledger of all stages becomes the audit, the rows that are left the subset, both one manifest."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.embeddings.encoders import model_revision
from tamis.errors import DataError, DatasetMismatchError
from tamis.manifests.canonical import digest, sha256_file
from tamis.manifests.commit import commit
from tamis.manifests.fingerprint import dataset_fingerprint
from tamis.pipelines.node import Inputs, Node, Output, Task, task_of, version_of
from tamis.pipelines.numeric import KERNELS, PORTABLE
from tamis.pipelines.sources import SourceFile, check_unchanged, listing
from tamis.pipelines.stages.embed import ENCODER_PACKAGES
from tamis.pipelines.state import KEPT, alive_rows
from tamis.threads import thread_pools

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tamis.pipelines.plan import Add, Flow, Parent, PlannedStage
    from tamis.pipelines.recipe import Recipe

_COLUMNS = ("rank", "gain", "cluster", "cluster_dist", "difficulty", "weight", "loss")
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "faiss-cpu", "torch", "numba", "pyarrow")
_KEPT_REASON = "kept"


def expand(
    recipe: Recipe,
    sources: tuple[SourceFile, ...],
    flow: Flow,
    stages: Sequence[PlannedStage],
    limit: int | None,
    parent: Parent | None,
    out: Path,
    nodes: Mapping[str, Node],
    add: Add,
) -> Node:
    """Add the last node."""
    columns = {name: flow.columns[name] for name in _COLUMNS if name in flow.columns}
    inputs = {"index": [flow.index], "alive": [flow.alive], "effects": flow.effects}
    inputs |= {f"column_{name}": [node] for name, node in columns.items()}
    if flow.schedule is not None:
        inputs["schedule"] = [flow.schedule]
    if flow.selection is not None:
        inputs["selection"] = [flow.selection]
    params = {
        "recipe": portable_recipe(recipe),
        "dataset": describe_dataset(recipe, sources, flow.rows, limit),
        "stages": [_describe_stage(stage, nodes) for stage in stages],
        "columns": sorted(columns),
        "parent": None if parent is None else {"subset_id": parent.subset_id, "rows": parent.rows},
    }
    outside = {node.hints["file"]: node.params["sha256"] for node in nodes.values() if "file" in node.hints}
    models = {node.hints["model"]: node.params["revision"] for node in nodes.values() if "model" in node.hints}
    others = [node.hints["source"] for node in nodes.values() if "source" in node.hints]  # reference sets among them
    read = {source.location: source for source in (*sources, *others)}
    hints = {"folder": str(out / "manifest"), "sources": tuple(read.values()), "outside": outside, "models": models}
    return add("commit.manifest", params, inputs, hints=hints)


def portable_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe without paths: where things lay says nothing of the result, what they held is under digests."""
    dumped = recipe.model_dump(by_alias=True, mode="json")
    dumped["train"]["epochs"] = recipe.epochs
    if not recipe.train.ceiling:
        del dumped["train"]["ceiling"]  # a manifest of a recipe from before there was one is the same manifest
    del dumped["dataset"]["path"]
    for stage in dumped["stages"]:
        if "encoder" in stage:
            stage["encoder"] = stage["encoder"].partition(":")[0]
        for name in ("from", "queries", "avoid", "ids"):
            if stage.get(name):
                stage[name] = "file"
        if "against" in stage:
            stage["against"] = ["file"] * len(stage["against"])
        if stage.get("continue_from"):
            stage["continue_from"] = "manifest"
    return dumped


def describe_dataset(recipe: Recipe, sources: Sequence[SourceFile], rows: int, limit: int | None) -> dict[str, Any]:
    """The record's `dataset`: its fingerprint and what that is made of."""
    files = listing(sources)
    schema = digest([list(source.columns) for source in sources])
    fields = recipe.dataset.fields
    return {
        "fingerprint": dataset_fingerprint(files, schema, fields),
        "rows": rows,
        "limit": limit,
        "schema": schema,
        "id_column": recipe.dataset.id,
        "fields": fields,
        "sources": files,
    }


def _describe_stage(stage: PlannedStage, nodes: Mapping[str, Node]) -> dict[str, Any]:
    own = [nodes[name] for name in stage.nodes]
    return {
        "name": stage.label,
        "kind": stage.kind,
        "code": {task: task_of(task).version for task in sorted({node.task for node in own})},
        "key": digest([node.key for node in own]),
    }


def manifest(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Build the two tables and commit them."""
    index = inputs.table("index")
    alive = alive_rows(inputs)
    if not len(alive):
        raise DataError("no row is left: every row was dropped or quarantined; nothing to commit")
    audit, reasons, stands_for = _audit(inputs, index)
    columns = {name: _column(inputs, name, alive) for name in params["columns"]}
    if "rank" in columns:
        order = np.argsort(columns["rank"].to_numpy())
    else:
        order = np.argsort(index["order"].to_numpy()[alive])
    rows = pa.array(alive[order])
    k = len(alive)

    def picked(name: str, kind: pa.DataType) -> pa.Array:
        column = columns.get(name)
        return pa.nulls(k, kind) if column is None else column.take(pa.array(order)).cast(kind)

    select = pa.table(
        {
            "sample_id": index["sample_id"].take(rows).cast(pa.string()),
            "row": rows,
            "source": index["source"].take(rows),
            "source_row": index["source_row"].take(rows),
            "content_hash": index["content_hash"].take(rows),
            "rank": pa.array(np.arange(k), pa.int32()),
            "weight": pc.fill_null(picked("weight", pa.float32()), 1.0),
            "score": picked("loss", pa.float64()),
            "gain": picked("gain", pa.float64()),
            "cluster": picked("cluster", pa.int32()),
            "cluster_dist": picked("cluster_dist", pa.float32()),
            "difficulty": picked("difficulty", pa.int16()),
            "group": pa.array(rows.to_numpy(), pa.int64(), mask=~np.isin(rows.to_numpy(), stands_for)),
            "reason": audit["reason"].take(rows),
        }
    )
    body = {
        "dataset": params["dataset"],
        "recipe": params["recipe"],
        "seed": params["recipe"]["seed"],
        "stages": params["stages"],
        "reasons": reasons,
        "numeric": {"policy": params["recipe"]["numeric"], **kernels(params["recipe"]["numeric"])},
        "libraries": {name: version_of(name) for name in _libraries(params["recipe"])},
        "weight_semantics": "relative importance in the loss, mean 1 over the subset",
        "scores": {},
        "certificate": inputs.one("selection").facts.get("certificate") if inputs.all("selection") else None,
        "schedule": dict(inputs.one("schedule").facts) if inputs.all("schedule") else None,
        "parent": params["parent"],
        "required_features": [],
        "classes": list(inputs.one("index").facts.get("classes", [])),
    }
    path = commit(
        Path(inputs.hints["folder"]),
        select=select,
        audit=audit,
        body=body,
        before_link=lambda: _check_files(inputs.hints),
    )
    return Output(None, {"record": path.name, "selected": k, "rows": index.num_rows})


def _check_files(hints: Mapping[str, Any]) -> None:
    """Refuse to commit what was computed from files that have changed meanwhile: sources, vectors, losses."""
    check_unchanged(hints["sources"])
    for name, sha256 in hints["outside"].items():
        if not Path(name).is_file() or sha256_file(name) != sha256:
            raise DatasetMismatchError(f"{name} has changed since the run began: leave it alone, and run again")
    for name, revision in hints["models"].items():
        if model_revision(name) != revision:
            raise DatasetMismatchError(f"{name} has changed since the run began: leave it alone, and run again")


def _libraries(recipe: Mapping[str, Any]) -> list[str]:
    """The packages whose versions can change the result; those of neural encoders only where one is used."""
    encoders = {stage.get("encoder") for stage in recipe["stages"]}
    used = [name for encoder, names in ENCODER_PACKAGES.items() if encoder in encoders for name in names]
    return sorted({*_LIBRARIES, *used})


def kernels(policy: str) -> dict[str, str]:
    """Name what gives the same bytes: the kernels that are held to, or the machine and numpy's matrix kernels."""
    if policy == PORTABLE:
        return {"kernels": KERNELS}
    own = str(Path(np.__file__).parent)  # of numpy and its numpy.libs, whatever else this process has loaded
    blas = [item for item in thread_pools().info() if item["filepath"].startswith(own)]
    return {
        "machine": platform.machine(),
        "blas": ", ".join(sorted(str(item.get("architecture")) for item in blas)),
    }


def _column(inputs: Inputs, name: str, alive: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Array:
    table = inputs.table(f"column_{name}")
    at = np.searchsorted(table["row"].to_numpy(), alive)
    return table[name].combine_chunks().take(pa.array(at))


def _stage_number(name: str) -> int:
    """The stage of a node's name: 3 of `03-dedup/near`."""
    return int(name.partition("-")[0])


def _audit(inputs: Inputs, index: pa.Table) -> tuple[pa.Table, list[str], np.ndarray[Any, np.dtype[np.int64]]]:
    """One row for each input row: what became of it, in which stage, why, and who stands for it."""
    n = index.num_rows
    decision = np.zeros(n, np.int8)
    stage = np.zeros(n, np.int16)
    kept_row, score = np.full(n, -1, np.int64), np.full(n, np.nan)
    partition = np.full(n, -1, np.int32)
    reasons = [_KEPT_REASON]
    reason = np.zeros(n, np.uint16)
    for item in inputs.all("effects"):
        table = inputs.open(item)
        if "partition" in table.column_names:
            partition[:] = -1
            partition[table["row"].to_numpy()] = table["partition"].to_numpy()
        told = table.filter(pc.is_valid(table["reason"]))  # why rows are dropped, or what is to be said of kept ones
        rows = told["row"].to_numpy()
        assert not decision[rows].any()  # a row is dropped once
        for text in sorted(pc.unique(told["reason"]).to_pylist()):
            if text not in reasons:
                reasons.append(text)
            reason[rows[pc.equal(told["reason"], text).to_numpy()]] = reasons.index(text)
        gone = told.filter(pc.not_equal(told["decision"], KEPT))
        rows = gone["row"].to_numpy()
        decision[rows] = gone["decision"].to_numpy()
        stage[rows] = _stage_number(item.name)
        kept_row[rows] = pc.fill_null(gone["kept_row"], -1).to_numpy()
        score[rows] = pc.fill_null(gone["score"], float("nan")).to_numpy()
    stage[decision == KEPT] = _stage_number(inputs.all("effects")[-1].name)
    stands_for = np.unique(kept_row[kept_row >= 0])
    table = pa.table(
        {
            "sample_id": index["sample_id"].cast(pa.string()),
            "row": pa.array(np.arange(n), pa.int64()),
            "content_hash": index["content_hash"],
            "decision": pa.array(decision, pa.int8()),
            "stage": pa.array(stage, pa.int16()),
            "reason": pa.array(reason, pa.uint16()),
            "kept_row": pa.array(kept_row, pa.int64(), mask=kept_row < 0),
            "score": pa.array(score, pa.float64(), mask=np.isnan(score)),
            "partition": pa.array(partition, pa.int32(), mask=partition < 0),
        }
    )
    return table, reasons, stands_for


TASKS = {"manifest": Task(manifest, version=3)}

"""Cluster: spherical k-means fitted on a sample, every row assigned in its block."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tamis.embeddings.kmeans import assign as nearest
from tamis.embeddings.kmeans import evenly_spaced, fit_spherical
from tamis.errors import DataError
from tamis.pipelines.node import Inputs, Node, Output, Task
from tamis.pipelines.state import Rows, alive_rows, effect, matrix_column, matrix_of, vectors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import ClusterConfig


def expand(config: ClusterConfig, flow: Flow, context: Context, add: Add) -> Flow:
    """Fit, assign block by block, gather: columns `cluster` and `cluster_dist`."""
    fit = {
        "n_clusters": config.n_clusters,
        "auto": "sqrt",
        "iterations": config.iterations,
        "fit_rows": config.fit_rows,
    }
    centroids, assigned = add_clusters(fit, flow, context, add, "cluster")
    gathered = add("cluster.gather", {}, {"assigned": assigned, "alive": [flow.alive], "centroids": [centroids]})
    columns = {**flow.columns, "cluster": gathered, "cluster_dist": gathered}
    return dataclasses.replace(
        flow, alive=gathered, effects=(*flow.effects, gathered), columns=columns, centroids=centroids
    )


def add_clusters(
    fit_params: Mapping[str, Any],
    flow: Flow,
    context: Context,
    add: Add,
    stage: str,
    alive: Node | None = None,
    probes: int = 1,
) -> tuple[Node, list[Node]]:
    """Add the nodes that fit centroids and name each row's nearest clusters; dedup and cluster share them."""
    alive = alive or flow.alive
    embeddings = flow.need_embeddings(stage)
    centroids = add(
        "cluster.fit",
        {**fit_params, "seed": list(context.seed)},
        {"embeddings": embeddings, "alive": [alive]},
        hints={"threads": context.threads},  # nothing else can run meanwhile
    )
    assigned = [
        add("cluster.assign", {"probes": probes}, {"embeddings": [block], "centroids": [centroids]}, part=part)
        for part, block in enumerate(embeddings)
    ]
    return centroids, assigned


def fit(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Fit the centroids on evenly spaced rows."""
    alive = alive_rows(inputs)
    if not len(alive):
        raise DataError("no row is left to cluster")
    wanted = params["n_clusters"]
    if wanted == "auto":
        wanted = round(math.sqrt(len(alive))) if params["auto"] == "sqrt" else math.ceil(len(alive) / 1000)
    sample = vectors(inputs, alive[evenly_spaced(len(alive), max(params["fit_rows"], wanted))])
    centroids = fit_spherical(
        sample, wanted, iterations=params["iterations"], seed=params["seed"][0], threads=inputs.hints["threads"]
    )
    facts = {"n_clusters": int(wanted), "k_effective": len(centroids), "fitted_on": len(sample)}
    return Output(pa.table({"vector": matrix_column(centroids)}), facts)


def assign(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Name the clusters nearest to each of one block's rows, and the distance to the nearest."""
    block = inputs.open(inputs.one("embeddings"))
    near, distance = nearest(matrix_of(block), matrix_of(inputs.table("centroids")), params["probes"])
    data = {
        "row": block["row"].combine_chunks(),
        "clusters": matrix_column(near.astype(np.int32, copy=False)),
        "cluster_dist": pa.array(distance, pa.float32()),
    }
    return Output(pa.table(data), {"block_rows": inputs.one("embeddings").facts["block_rows"]})


def assignments(inputs: Inputs, alive: Rows) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Each row's nearest clusters, int32[n, p], its own first, and the distance to its own, float32[n]."""
    rows, clusters, distances, start = [], [], [], 0
    for item in inputs.all("assigned"):
        table = inputs.open(item)
        rows.append(table["row"].to_numpy().astype(np.int64) + start)
        clusters.append(matrix_of(table, "clusters"))
        distances.append(table["cluster_dist"].to_numpy())
        start += item.facts["block_rows"]
    at = np.searchsorted(np.concatenate(rows), alive)
    return np.concatenate(clusters)[at], np.concatenate(distances)[at]


def gather(params: Mapping[str, Any], inputs: Inputs) -> Output:  # noqa: ARG001
    """Gather the blocks' assignments of the rows that are still in."""
    alive = alive_rows(inputs)
    near, distances = assignments(inputs, alive)
    clusters = near[:, 0]
    columns = {"cluster": pa.array(clusters, pa.int32()), "cluster_dist": pa.array(distances, pa.float32())}
    sizes = np.bincount(clusters, minlength=inputs.one("centroids").rows)
    facts = {
        "n_clusters": inputs.one("centroids").facts["n_clusters"],
        "k_effective": inputs.one("centroids").facts["k_effective"],
        "empty": int(np.count_nonzero(sizes == 0)),
        "largest": int(sizes.max()),
    }
    return Output(effect(alive, **columns), facts)


TASKS = {
    "fit": Task(fit, version=2, libraries=("faiss",), packages=("faiss-cpu", "numba")),
    "assign": Task(assign, version=3, libraries=("faiss",), packages=("faiss-cpu",)),
    "gather": Task(gather),
}

"""Cluster: spherical k-means fitted on a sample, every row assigned in its block."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tamis.embeddings.kmeans import assign as nearest
from tamis.embeddings.kmeans import fit_spherical
from tamis.errors import DataError
from tamis.pipelines.node import Inputs, Node, Output, Task
from tamis.pipelines.state import alive_rows, effect, evenly_spaced, matrix_of, vector_column, vectors

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
) -> tuple[Node, list[Node]]:
    """Add the nodes that fit centroids and assign each embedding block; dedup and cluster share them."""
    alive = alive or flow.alive
    embeddings = flow.need_embeddings(stage)
    centroids = add(
        "cluster.fit",
        {**fit_params, "seed": list(context.seed)},
        {"embeddings": embeddings, "alive": [alive]},
    )
    assigned = [
        add("cluster.assign", {}, {"embeddings": [block], "centroids": [centroids]}, part=part)
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
    sample = vectors(inputs, evenly_spaced(alive, max(params["fit_rows"], wanted)))
    centroids = fit_spherical(sample, wanted, iterations=params["iterations"], seed=params["seed"][0])
    facts = {"n_clusters": int(wanted), "k_effective": len(centroids), "fitted_on": len(sample)}
    return Output(pa.table({"vector": vector_column(centroids)}), facts)


def assign(params: Mapping[str, Any], inputs: Inputs) -> Output:  # noqa: ARG001
    """Assign one block's rows to their nearest centroid."""
    block = inputs.open(inputs.one("embeddings"))
    labels, distance = nearest(matrix_of(block), matrix_of(inputs.table("centroids")))
    data = {
        "row": block["row"].combine_chunks(),
        "cluster": pa.array(labels, pa.int32()),
        "cluster_dist": pa.array(distance, pa.float32()),
    }
    return Output(pa.table(data), {"block_rows": inputs.one("embeddings").facts["block_rows"]})


def assignments(inputs: Inputs) -> tuple[np.ndarray[Any, np.dtype[np.int64]], ...]:
    """Put the blocks' assignments together: rows, clusters, distances, rows ascending."""
    rows, clusters, distances, start = [], [], [], 0
    for item in inputs.all("assigned"):
        table = inputs.open(item)
        rows.append(table["row"].to_numpy().astype(np.int64) + start)
        clusters.append(table["cluster"].to_numpy())
        distances.append(table["cluster_dist"].to_numpy())
        start += item.facts["block_rows"]
    return np.concatenate(rows), np.concatenate(clusters), np.concatenate(distances)


def gather(params: Mapping[str, Any], inputs: Inputs) -> Output:  # noqa: ARG001
    """Gather the blocks' assignments of the rows that are still in."""
    alive = alive_rows(inputs)
    rows, clusters, distances = assignments(inputs)
    at = np.searchsorted(rows, alive)
    columns = {
        "cluster": pa.array(clusters[at], pa.int32()),
        "cluster_dist": pa.array(distances[at], pa.float32()),
    }
    sizes = np.bincount(clusters[at], minlength=inputs.one("centroids").rows)
    facts = {
        "n_clusters": inputs.one("centroids").facts["n_clusters"],
        "k_effective": inputs.one("centroids").facts["k_effective"],
        "empty": int(np.count_nonzero(sizes == 0)),
        "largest": int(sizes.max()),
    }
    return Output(effect(alive, **columns), facts)


TASKS = {
    "fit": Task(fit, libraries=("faiss",), packages=("faiss-cpu",)),
    "assign": Task(assign),
    "gather": Task(gather),
}

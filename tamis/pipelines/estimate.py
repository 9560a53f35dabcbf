"""What a plan will take, before it runs: time, memory and disk for each node, from measured unit costs.

The units were measured on one core of a two-core server with AVX-512. Another machine is faster or slower by a
factor, the same for all stages: read the sums as the order of magnitude, the shares as what to change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tamis.pipelines.node import Node
    from tamis.pipelines.plan import Plan

_BASE_BYTES = 260 << 20  # a worker with its libraries
_TORCH_BYTES = 600 << 20  # torch, transformers and a small encoder on top
_START_SECONDS = 4.0  # starting worker processes

# Seconds for each row, on one core.
_ROW_SECONDS = {
    "ingest.block": 2e-5,
    "ingest.index": 4e-6,
    "embed.fit": 8e-5,
    "embed.check": 1e-6,
    "dedup.exact": 2e-6,
    "dedup.near": 1e-5,
    "dedup.gather": 1e-6,
    "cluster.assign": 1e-5,
    "cluster.gather": 1e-6,
    "score.fold": 4e-5,
    "score.join": 1e-6,
    "score.read": 1e-5,
    "prune.loss": 1e-6,
    "prune.density": 2e-6,
    "select.cells": 2e-6,
    "select.probe": 1e-5,
    "select.partition": 2e-6,
    "select.propose": 2e-6,
    "select.take": 3e-6,
    "select.list": 6e-5,
    "select.whole": 1e-4,
    "schedule.seta": 2e-6,
    "reweight.loss": 1e-6,
    "commit.manifest": 1e-5,
}
_ENCODE_SECONDS = {"lsa": 3e-5, "pixels": 2e-5, "sentence": 5.5e-3, "transformers": 5.5e-3, "vectors": 1e-6}
_NEURAL = ("sentence", "transformers")
_IMAGE_SECONDS, _IMAGE_BYTE_SECONDS = 6e-5, 2e-8  # decoding an image, and for each byte of it
_EFFECT_BYTES = 45  # row, decision, reason, kept row, score and a column


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected use. `seconds` is the work of one core; `wall_seconds` what the workers make of it."""

    seconds: float
    wall_seconds: float
    peak_bytes: int
    disk_bytes: int


def estimate(plan: Plan, nodes: Iterable[Node], workers: int) -> Estimate:
    """Estimate what running `nodes` takes with `workers` processes."""
    seconds, widest, disk = 0.0, 0.0, 0.0
    serial = 0.0
    base = _BASE_BYTES
    for node in nodes:
        if node.params.get("encoder") in _NEURAL:
            base = _BASE_BYTES + _TORCH_BYTES  # a worker keeps what it has loaded
        own, memory, written = _node(plan, node)
        seconds += own
        serial += 0.0 if node.name.count("/") == 2 else own
        widest, disk = max(widest, memory), disk + written
    if not seconds:
        return Estimate(0.0, 0.0, 0, 0)
    wall = _START_SECONDS + serial + (seconds - serial) / workers
    return Estimate(round(seconds, 1), round(wall, 1), int(workers * (base + widest)), int(disk))


def _node(plan: Plan, node: Node) -> tuple[float, float, float]:
    """Seconds, bytes of memory beyond the base, bytes on disk of one node."""
    params, rows = node.params, plan.rows
    dim = _dim(plan)
    size = sum(source.bytes for source in plan.sources) / max(1, sum(source.rows for source in plan.sources))
    of_images = "image_size" in params or params.get("encoder") == "pixels" or "image" in params.get("fields", ())
    decoding = of_images * (_IMAGE_SECONDS + size * _IMAGE_BYTE_SECONDS)
    if node.task == "ingest.block":
        rows = params["stop"] - params["start"]
        return rows * (_ROW_SECONDS[node.task] + decoding), 4 * rows * size, rows * (2 * size + 60)
    if node.task == "embed.fit_pixels":
        rows, values = min(rows, params["fit_rows"]), params["image_size"] ** 2  # in grey
        return rows * (decoding + 2 * values**2 / 3e10), rows * values + 24 * values**2, 4 * values * dim
    if node.task == "embed.block":
        rows = min(rows, plan.recipe.block_rows)
        seconds = rows * (_ENCODE_SECONDS[params["encoder"]] + decoding)
        return seconds, rows * (12 * dim + of_images * 2 * size), rows * (4 * dim + 4)
    if node.task == "cluster.fit":
        k = round(math.sqrt(rows)) if params["n_clusters"] == "auto" else params["n_clusters"]
        sample = min(rows, params["fit_rows"])
        return sample * k * dim * params["iterations"] / 8e9 + 0.05, 8 * sample * dim, 4 * k * dim
    if node.task == "dedup.pairs":
        share, probes = rows / params["shards"], 4
        held = min(rows, (1 + 3 * (probes > 1)) * share)  # with visitors, a few cells' at a time
        return probes * share * 1000 * dim / 2e10 + share * 2e-5, 4e6 + 8 * held * dim, share * 20
    if node.task == "select.rank":
        size = min(rows, _param_of_input(plan, node, "partitions", "partition_rows"))
        return (
            size * size * (dim / 5e10 + 8e-9),
            2.4 * size * size + 8 * size * dim,
            20 * rows / params["shards"],
        )
    if node.task == "score.fold":
        return rows * dim * _ROW_SECONDS[node.task] / 128, 20 * rows * dim, 24 * rows / params["folds"]
    if node.task == "cluster.assign":
        rows = min(rows, plan.recipe.block_rows)
        return rows * _ROW_SECONDS[node.task], 8 * rows * dim, 12 * rows
    return rows * _ROW_SECONDS[node.task], 200 * rows, _EFFECT_BYTES * rows


def _param_of_input(plan: Plan, node: Node, role: str, name: str) -> int:
    """A parameter of the first node that a node has as its input in some role."""
    (source, _, _) = node.inputs[role][0]
    return int(plan.nodes[source].params[name])


def _dim(plan: Plan) -> int:
    for stage in plan.stages:
        if stage.kind == "embed":
            config: Mapping[str, Any] = stage.config
            return int(config["dim"]) if config["encoder"] in ("lsa", "pixels") else 384
    return 1

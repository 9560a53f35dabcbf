"""What a plan will take, before it runs: time, memory and disk, from measured unit costs; and whether it fits.

The units were measured on one core of a two-core server with AVX-512; a probe of a tenth of a second says how much
faster or slower this machine is. Rows that a stage will find to be duplicates cannot be foreseen: what is done already
counts with the rows that it left, what is not with those that a recipe surely drops.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.embeddings.neighbours import PROBES, cell_count
from tamis.errors import OutputError, RecipeError
from tamis.pipelines.partitions import AUTO_PARTITION_ROWS, LISTED_ROWS
from tamis.pipelines.resources import available_memory
from tamis.pipelines.sources import read_rows
from tamis.selectors.facility_location import RANKED_CELL_ROWS, RANKED_PROBES, ranked_cell_count
from tamis.selectors.selection import resolve_budget
from tamis.threads import one_blas_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tamis.pipelines.node import Artifact, Node
    from tamis.pipelines.plan import Plan

_MIB = 1 << 20
_MAIN_BYTES = 300 * _MIB  # the process that schedules
_WORKER_BYTES = 330 * _MIB  # a worker with the libraries of most tasks
_TORCH_BYTES = 430 * _MIB  # torch, transformers and a small encoder on top
_MAPPED_BYTES = 256 * _MIB  # of the embeddings, which workers share
_START_SECONDS = 4.5  # starting this process and the workers, and ending them
_NODE_SECONDS = 0.012  # scheduling a node, and writing its file and record
_FLOPS = 6e10  # of one core, in products of float32 matrices
_SAMPLED_ROWS = 256
_EFFECT_BYTES = 34  # row, decision, reason, kept row, score
_NEURAL = ("sentence", "transformers")
_ENCODE_SECONDS = {"lsa": 1e-7, "sentence": 1.2e-4, "transformers": 1.2e-4}  # for each byte of text
_IMAGE_SECONDS, _IMAGE_BYTE_SECONDS = 1.5e-5, 2e-8  # decoding an image, and for each byte of it
_READ_ROWS = 131_072  # of a file that are in memory at once: a row group of Parquet, or less

# Loading the libraries of a task: seconds of the first that a worker runs.
_LOADING = {
    "embed.fit": 2.0,
    "embed.fit_pixels": 0.4,
    "cluster.fit": 0.3,
    "dedup.pairs": 0.4,
    "dedup.near": 0.2,
    "dedup.compare": 0.3,
    "score.fold": 0.9,
    "select.probe": 0.2,
    "select.list": 0.3,
    "select.rank": 0.3,
    "select.take": 0.3,
}
_NEURAL_LOADING = 6.0
_PROBE_SECONDS = 0.0139  # of a machine that takes what the units say; fitted to the runs of benchmarks/estimates.py

# By the memory that a task takes: what makes it less.
_KNOBS = {
    "embed.fit": "embed.fit_rows",
    "embed.fit_pixels": "embed.fit_rows",
    "embed.block": "block_rows",
    "ingest.block": "block_rows",
    "cluster.fit": "fit_rows of the stage",
    "score.fold": "score.fit_rows",
    "select.rank": "select.partition_rows",
    "select.partition": "select.partition_rows",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a node takes: seconds of one core, bytes of memory beyond the process's own, bytes on disk."""

    seconds: float
    memory: float = 0.0
    disk: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected use of a run.

    Attributes:
        stage_seconds: The work of each stage, on one core.
        wall_seconds: What the workers make of it.
        peak_bytes: Memory of all processes together.
        disk_bytes: What is written to the working folder.
        widest: The task that takes the most memory.
    """

    stage_seconds: tuple[float, ...]
    wall_seconds: float
    peak_bytes: int
    disk_bytes: int
    widest: str = ""


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What the cost of a node depends on, beside its parameters."""

    rows: int  # that reach its stage
    dataset_rows: int
    block_rows: int
    dim: int
    content: float  # bytes of a row's content
    width: float  # bytes of a row's id and label
    images: bool
    config: Mapping[str, Any]  # of the stage


def estimate(plan: Plan, nodes: Iterable[Node], workers: int, done: Mapping[str, Artifact] | None = None) -> Estimate:
    """Estimate what running some nodes takes.

    Args:
        plan: The plan.
        nodes: Those that must run.
        workers: Worker processes.
        done: The records of the others; what they left says how many rows the rest has to do with.
    """
    todo = list(nodes)
    if not todo:
        return Estimate((0.0,) * len(plan.stages), 0.0, 0, 0)
    sizes = _sizes(plan, done or {})
    alone, spread = [0.0] * len(sizes), defaultdict(list)  # seconds by stage; of each block by stage and task
    disk, widest = 0.0, (0.0, "")
    base = _WORKER_BYTES
    for node in todo:
        if node.params.get("encoder") in _NEURAL and base == _WORKER_BYTES:
            base += _TORCH_BYTES  # a worker keeps what it has loaded
            alone[node.stage] += _NEURAL_LOADING
        cost = _COSTS[node.task](sizes[node.stage], node)
        disk += cost.disk
        parallel = node.name.count("/") == 2
        if parallel:
            spread[node.stage, node.task].append(cost.seconds + _NODE_SECONDS)
        else:
            alone[node.stage] += cost.seconds + _NODE_SECONDS + _LOADING.get(node.task, 0.0)
        widest = max(widest, ((workers if parallel else 1) * cost.memory, node.task))
    for stage, task in spread:
        alone[stage] += _LOADING.get(task, 0.0)
    work = list(alone)
    for (stage, _), blocks in spread.items():
        work[stage] += sum(blocks)
    # The blocks of a task are dealt to the workers; the last ones may leave some idle.
    wall = (sum(alone) + sum(max(sum(blocks) / workers, max(blocks)) for blocks in spread.values())) * pace()
    embedded = sum(4.0 * sizes[-1].dataset_rows * sizes[-1].dim for node in todo if node.task == "commit.manifest")
    peak = _MAIN_BYTES + workers * base + widest[0] + min(_MAPPED_BYTES, embedded)
    stage_seconds = tuple(round(seconds * pace(), 1) for seconds in work)
    return Estimate(stage_seconds, round(_START_SECONDS + wall, 1), int(peak), int(disk), widest[1])


def check_fits(needed: Estimate, folder: Path | None, workers: int) -> None:
    """Refuse a run that will not fit into the machine's memory or the folder's disk.

    Args:
        needed: What it needs.
        folder: Where it writes, and exists; None where that is not on this machine.
        workers: Worker processes.

    Raises:
        RecipeError: It needs more memory than there is.
        OutputError: It needs more disk than is free.
    """
    memory = available_memory()
    if needed.peak_bytes > memory:
        knob = _KNOBS.get(needed.widest)
        smaller = f"a smaller {knob}, " if knob else ""
        fewer = f"fewer --workers (now {workers}), " if workers > 1 else ""
        raise RecipeError(
            f"the run needs about {needed.peak_bytes / 2**30:.1f} GiB of memory (its largest task: {needed.widest}), "
            f"and {memory / 2**30:.1f} GiB are available: give {fewer}{smaller}a --limit, or --anyway to try"
        )
    if folder is not None and needed.disk_bytes > (disk := shutil.disk_usage(folder).free):
        raise OutputError(
            f"the run writes about {needed.disk_bytes / 2**30:.2f} GiB below {folder}, where {disk / 2**30:.2f} GiB "
            "are free: free space, give another --out, or --anyway to try"
        )


def pace() -> float:
    """How many times longer this machine takes for the same work than the one that the units were measured on."""
    global _pace
    if _pace is None:
        _pace = min(_probe() for _ in range(10)) / _PROBE_SECONDS  # other work on the machine comes in bursts
    return _pace


_pace: float | None = None


def _probe() -> float:
    """Seconds for a little of everything: products, hashing, and Python."""
    matrix = np.ones((256, 256), np.float32)
    data = bytes(4 * _MIB)
    start = time.perf_counter()
    with one_blas_thread():  # as tasks have; two that share a busy core wait for each other
        for _ in range(8):
            matrix @ matrix
    hashlib.sha256(data)
    sum(len(str(i)) for i in range(50_000))
    return time.perf_counter() - start


def _sizes(plan: Plan, done: Mapping[str, Artifact]) -> list[_Sizes]:
    """The sizes of every stage."""
    content, width = _bytes_of_a_row(plan)
    dim = _dim(plan)
    images = "image" in plan.recipe.dataset.fields
    found = []
    rows = plan.rows
    for number, stage in enumerate(plan.stages):
        # An effect has a row for each that reached its stage.
        known = [done[name].rows for name in stage.nodes if name in done and name.count("/") == 1 and number]
        rows = min(rows, max(known, default=rows))
        found.append(_Sizes(rows, plan.rows, plan.recipe.block_rows, dim, content, width, images, stage.config))
        rows = _left(stage.kind, stage.config, rows, plan.rows)
    return found


def _left(kind: str, config: Mapping[str, Any], rows: int, dataset_rows: int) -> int:
    """How many rows a stage leaves, as far as its part of the recipe says."""
    if kind == "prune" and config["method"] == "density":
        return min(rows, _amount(config["keep"], rows))
    if kind == "prune":
        return round(rows * float(1 - config["drop_highest"] - config["drop_lowest"]))
    if kind == "select":
        return min(rows, _amount(config["budget"], dataset_rows))
    return rows


def _amount(given: int | float | Mapping[str, int], rows: int) -> int:
    """How many rows a fraction or a count means, whether there are as many or not; of tokens or bytes, at most."""
    if isinstance(given, Mapping):
        return rows
    return resolve_budget(given, rows) if isinstance(given, float) else given


def _bytes_of_a_row(plan: Plan) -> tuple[float, float]:
    """Bytes of a row's content, and of its id and label, on average over the first rows of the largest file."""
    source = max(plan.sources, key=lambda source: source.rows)
    count = min(source.rows, _SAMPLED_ROWS)
    fields = plan.recipe.dataset.fields
    if not count:
        return 0.0, 0.0
    table, _ = read_rows(source, list(dict.fromkeys(fields.values())), 0, count)
    sizes = {role: table[name].nbytes / count for role, name in fields.items()}
    width = sum(sizes.pop(role, 0.0) for role in ("id", "label", "source"))
    return sum(sizes.values()), width


def _dim(plan: Plan) -> int:
    for stage in reversed(plan.stages):
        if stage.kind == "embed":
            if stage.config["encoder"] in ("lsa", "pixels"):
                return int(stage.config["dim"])
            fields = plan.recipe.dataset.fields
            if stage.config["encoder"] == "vectors" and "vectors" in fields:
                row, _ = read_rows(plan.sources[0], [fields["vectors"]], 0, min(1, plan.sources[0].rows))
                return len(row.column(0)[0]) if row.num_rows and row.column(0)[0].is_valid else 384
            return 384
    return 1


def _block(sizes: _Sizes) -> float:
    """Rows of a block, on average."""
    return sizes.dataset_rows / max(1, math.ceil(sizes.dataset_rows / sizes.block_rows))


def _decoding(sizes: _Sizes) -> float:
    """Seconds to decode a row's image, if it has one."""
    return sizes.images * (_IMAGE_SECONDS + sizes.content * _IMAGE_BYTE_SECONDS)


def _ingest(sizes: _Sizes, node: Node) -> Cost:
    rows = node.params["stop"] - node.params["start"]
    seconds = rows * (6e-6 + 4.4e-8 * sizes.content + _decoding(sizes))
    read = min(node.hints["source"].rows, _READ_ROWS)
    memory = 2.8 * read * sizes.content + 6 * rows * (sizes.content + 100)
    return Cost(seconds, memory, rows * (sizes.content + sizes.width + 60))


def _encode(sizes: _Sizes, node: Node) -> Cost:
    rows, encoder = _block(sizes), node.params["encoder"]
    by_dim = 3.5e-8 if encoder == "vectors" else 2e-7
    seconds = rows * (_ENCODE_SECONDS.get(encoder, 0.0) * sizes.content + by_dim * sizes.dim + _decoding(sizes))
    return Cost(seconds, rows * (16 * sizes.dim + 4 * sizes.content), rows * (4 * sizes.dim + 4))


def _fit_lsa(sizes: _Sizes, node: Node) -> Cost:
    rows = min(sizes.rows, node.params["fit_rows"])
    terms = min(node.params["max_features"], 10 * rows)
    dim = node.params["dim"]
    return Cost(
        rows * 1.5e-7 * sizes.content + (rows + terms) * dim**2 * 50 / _FLOPS,
        rows * 8 * sizes.content + 32 * dim * (rows + terms),
        terms * (4 * dim + 20),
    )


def _fit_pixels(sizes: _Sizes, node: Node) -> Cost:
    rows, values = min(sizes.rows, node.params["fit_rows"]), node.params["image_size"] ** 2  # in grey
    seconds = rows * (_IMAGE_SECONDS + 2 * values**2 / 3e10)
    return Cost(seconds, rows * values + 24 * values**2, 4 * values * sizes.dim)


def _fit_clusters(sizes: _Sizes, node: Node) -> Cost:
    sample = min(sizes.rows, node.params["fit_rows"])
    k = _clusters(sizes, node.params["auto"])
    seconds = 2.4 * sample * k * sizes.dim * node.params["iterations"] / _FLOPS / node.hints["threads"]
    return Cost(seconds, 12 * sample * sizes.dim, 4 * k * sizes.dim)


def _clusters(sizes: _Sizes, auto: str) -> int:
    if sizes.config["n_clusters"] != "auto":
        return int(sizes.config["n_clusters"])
    return round(math.sqrt(sizes.rows)) if auto == "sqrt" else math.ceil(sizes.rows / 1000)


def _assign(sizes: _Sizes, node: Node) -> Cost:  # noqa: ARG001
    rows, k = _block(sizes), _clusters(sizes, "sqrt" if sizes.config["kind"] == "cluster" else "per_1000")
    return Cost(rows * (k * (2 * sizes.dim / _FLOPS + 1e-9) + 1e-6), 64 * _MIB, rows * 24)


def _pairs(sizes: _Sizes, node: Node) -> Cost:
    share = sizes.rows / node.params["shards"]
    seconds = share * (4000 * (1.4 * sizes.dim / _FLOPS + 0.6e-9) + 4e-6)
    return Cost(seconds, 32 * _MIB + 8 * min(sizes.rows, 65_536) * sizes.dim, share * 60)


def _compare(sizes: _Sizes, node: Node) -> Cost:
    rows = len(node.inputs["embeddings"]) * _block(sizes)
    others = len(node.params["places"]) * sizes.block_rows  # the last block of a file may be smaller
    return Cost(rows * others * (1.4 * sizes.dim / _FLOPS + 0.6e-9), 96 * _MIB, rows * 4)


def _count(sizes: _Sizes, node: Node) -> Cost:
    rows = len(node.inputs["blocks"]) * _block(sizes)
    return Cost(rows * 2e-8, rows * 16, rows * 8)


def _rank(sizes: _Sizes, node: Node) -> Cost:
    given = sizes.config["partition_rows"]
    size = min(sizes.rows, AUTO_PARTITION_ROWS if given == "auto" else given)
    engine = sizes.config["engine"] if sizes.config["method"] == "facility_location" else "ranked"
    if engine == "sparse" or (engine == "auto" and size < sizes.rows):
        return Cost(0.0)
    many = max(1.0, sizes.rows / size / node.params["shards"])  # partitions in a shard
    size = min(size, RANKED_CELL_ROWS) if engine == "partitioned" else size
    seconds = size * size * (2 * sizes.dim / _FLOPS + 8e-9 * (1 + size / 3500))  # larger kernels miss the caches
    return Cost(many * seconds, 2.4 * size * size + 8 * size * sizes.dim, many * 20 * size)


def _probe_cells(sizes: _Sizes, node: Node) -> Cost:
    rows = (node.params["stop"] - node.params["start"]) * sizes.rows / sizes.dataset_rows
    seconds = rows * (_cells(sizes) * (2 * sizes.dim / _FLOPS + 2.5e-9) + 1e-6)
    return Cost(seconds, 64 * _MIB + 6 * rows * sizes.dim, rows * 110)


def _cells(sizes: _Sizes) -> int:
    ranked = sizes.config.get("engine") == "partitioned"
    return ranked_cell_count(sizes.rows) if ranked else cell_count(sizes.rows)


def _fit_cells(sizes: _Sizes, node: Node) -> Cost:  # noqa: ARG001
    cells = _cells(sizes)
    return Cost(20 * cells**2 * sizes.dim * 6 / _FLOPS, 30 * 20 * cells * sizes.dim, 2 * cells * sizes.dim)


def _list(sizes: _Sizes, node: Node) -> Cost:
    shards = max(1, min(node.params["shards"], math.ceil(sizes.rows / LISTED_ROWS)))
    rows = sizes.rows / shards
    probes = RANKED_PROBES if sizes.config.get("engine") == "partitioned" else PROBES
    compared = probes * sizes.rows / _cells(sizes)
    seconds = shards / node.params["shards"] * (0.12 + rows * compared * (2 * sizes.dim / _FLOPS + 6e-9))
    rows *= shards / node.params["shards"]
    return Cost(seconds, LISTED_ROWS * 500 + 8 * min(sizes.rows, 200_000) * sizes.dim, rows * 200)


def _fold(sizes: _Sizes, node: Node) -> Cost:
    rows = min(sizes.rows, node.params["fit_rows"])
    return Cost(rows * sizes.dim * 4e-7, 20 * rows * sizes.dim, 20 * sizes.rows / node.params["folds"])


def _by_row(seconds: float, memory: float, disk: float = 0.0) -> Callable[[_Sizes, Node], Cost]:
    """So many seconds, bytes of memory and of disk for each row that reaches the stage."""

    def cost(sizes: _Sizes, node: Node) -> Cost:  # noqa: ARG001
        return Cost(sizes.rows * seconds, sizes.rows * memory, sizes.rows * disk)

    return cost


_COSTS: Mapping[str, Callable[[_Sizes, Node], Cost]] = {
    "ingest.block": _ingest,
    "ingest.index": _by_row(2.2e-6, 500, 110),
    "ingest.before": _by_row(1e-6, 200, 16),
    "embed.fit": _fit_lsa,
    "embed.fit_pixels": _fit_pixels,
    "embed.block": _encode,
    "embed.check": _by_row(5e-7, 100, _EFFECT_BYTES),
    "cluster.fit": _fit_clusters,
    "cluster.assign": _assign,
    "cluster.gather": _by_row(2e-7, 100, _EFFECT_BYTES + 8),
    "dedup.exact": _by_row(9e-7, 150, _EFFECT_BYTES),
    "dedup.gather": _by_row(3e-7, 100, 28),
    "dedup.pairs": _pairs,
    "dedup.near": _by_row(3e-6, 400, _EFFECT_BYTES),
    "dedup.reference": _ingest,
    "dedup.encode": _encode,
    "dedup.compare": _compare,
    "dedup.mark": _by_row(1.5e-6, 250, _EFFECT_BYTES + 4),
    "score.fold": _fold,
    "score.join": _by_row(5e-7, 150, _EFFECT_BYTES + 8),
    "score.read": _by_row(3e-6, 300, _EFFECT_BYTES + 8),
    "prune.loss": _by_row(1e-6, 150, _EFFECT_BYTES),
    "prune.label_noise": _by_row(1e-6, 150, _EFFECT_BYTES),
    "prune.density": _by_row(1e-6, 150, _EFFECT_BYTES),
    "select.count": _count,
    "select.cells": _fit_cells,
    "select.probe": _probe_cells,
    "select.partition": _by_row(1e-6, 400, 150),
    "select.rank": _rank,
    "select.propose": _by_row(2e-6, 100, 8),
    "select.list": _list,
    "select.take": _by_row(6e-6, 900, _EFFECT_BYTES + 12),
    "select.whole": _by_row(1e-4, 2000, _EFFECT_BYTES + 12),
    "pick.rows": _by_row(3e-6, 400, _EFFECT_BYTES + 4),
    "schedule.seta": _by_row(2e-6, 100, _EFFECT_BYTES + 2),
    "reweight.loss": _by_row(1e-6, 100, _EFFECT_BYTES + 4),
    "commit.manifest": _by_row(2.2e-6, 800),
}

"""How does the whole chain grow, from 125,000 lines of real text to a million, in time and in memory?

The lines of a dictionary and of the Linux kernel's documentation (both from Debian packages), embedded by LSA, freed
from duplicates, clustered, pruned by concept complexity, and a tenth selected. Every size is a run in a folder of its
own, with all cores. Memory is the proportional set size of all processes together, looked at five times a second. A
stage's exponent is the slope of log seconds of work over log rows, fitted by least squares; stages of less than a
second have none.

    python benchmarks/pipeline_scale.py [--rows 125000 --rows 250000 ...] [--quick]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _measure
import click
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import tamis

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data_manifests"))
import fetch

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = (125_000, 250_000, 500_000, 1_000_000)
WIDTH, SHORTEST = 48, 12
STAGES = [
    {"kind": "embed", "encoder": "lsa", "dim": 64},
    {"kind": "dedup", "eps": 0.05},
    {"kind": "cluster", "n_clusters": 1000},
    {"kind": "prune", "method": "density", "keep": 0.6},
    {"kind": "select", "method": "facility_location", "budget": 0.1},
]


def lines() -> Path:
    """A parquet file of all lines, in an order that mixes both sources: columns id, text."""
    path = fetch.CACHE / "lines" / f"lines-{WIDTH}.parquet"
    if not path.is_file():
        texts = [
            text
            for source in (fetch.gcide(), fetch.kernel_docs())
            for text in pq.read_table(source)["text"].to_pylist()
        ]
        found = [line for text in texts for line in textwrap.wrap(text, WIDTH) if len(line) >= SHORTEST]
        order = np.random.default_rng(0).permutation(len(found))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        table = pa.table({"id": [f"l{i:07d}" for i in range(len(found))], "text": [found[i] for i in order]})
        pq.write_table(table, partial)
        partial.rename(path)
    return path


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Memory of this process and all below it: `peak`, and `before`, in bytes."""
    found = {"before": together(), "peak": 0.0}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            found["peak"] = max(found["peak"], together())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def together(own: psutil.Process | None = None) -> float:
    """Bytes of a process (this one) and all below it, shared ones counted once."""
    own = own or psutil.Process()
    total, processes = 0.0, [own]
    with suppress(psutil.Error):
        processes += own.children(recursive=True)
    for process in processes:
        with suppress(psutil.Error):  # it has ended
            total += process.memory_full_info().pss
    return total


def recipe_of(source: Path) -> dict[str, Any]:
    """The recipe of this benchmark."""
    return {
        "name": "lines",
        "dataset": {"path": str(source), "id": "id", "text": "text"},
        "stages": STAGES,
        "max_bad_fraction": 0.01,
    }


def measure(rows: int, recipe: dict[str, Any]) -> dict[str, Any]:
    """One run of a recipe on so many rows, and how long it then takes to run it again."""
    folder = Path(tempfile.mkdtemp(prefix="pipeline_scale."))
    try:
        began = time.perf_counter()
        with watched() as memory:
            run = tamis.run(recipe, folder, limit=rows)
        seconds = time.perf_counter() - began
        kept = run.open_manifest().select.num_rows
        began = time.perf_counter()
        assert not tamis.run(recipe, folder, limit=rows).ran
        cached_seconds = time.perf_counter() - began
    finally:
        shutil.rmtree(folder)
    names = ("stage", "tasks", "seconds", "peak_bytes", "bytes")
    return {
        "rows": rows,
        "kept": kept,
        "wall_seconds": seconds,
        "cached_seconds": cached_seconds,
        "peak_bytes": memory["peak"],
        "stages": [{name: stage[name] for name in names} for stage in run.stages],
    }


def exponents(runs: list[dict[str, Any]]) -> dict[str, float | None]:
    """The slope of log seconds over log rows, by stage and of the whole."""
    sizes = np.log([run["rows"] for run in runs])
    found: dict[str, float | None] = {}
    for position, stage in enumerate(runs[-1]["stages"]):
        seconds = [run["stages"][position]["seconds"] for run in runs]
        found[stage["stage"]] = float(np.polyfit(sizes, np.log(seconds), 1)[0]) if min(seconds) >= 1 else None
    found["wall"] = float(np.polyfit(sizes, np.log([run["wall_seconds"] for run in runs]), 1)[0])
    return found


@click.command()
@click.option("--rows", type=click.IntRange(1000), multiple=True, help="Other sizes; prints, and writes nothing.")
@click.option("--quick", is_flag=True, help="A smoke run on few rows; prints, and writes nothing.")
@click.option("--repeat", type=click.IntRange(1), default=1, hidden=True)
def main(rows: tuple[int, ...], quick: bool, repeat: int) -> None:  # noqa: ARG001
    """Measure, and write results/pipeline_scale.json."""
    recipe = recipe_of(lines())
    runs = []
    for size in rows or ((2000, 4000) if quick else SIZES):
        runs.append(measure(size, recipe))
        shown = ", ".join(f"{stage['stage']} {stage['seconds']:.0f}" for stage in runs[-1]["stages"])
        print(
            f"{size:,} rows: {runs[-1]['wall_seconds']:.0f} s, {runs[-1]['peak_bytes'] / 2**30:.2f} GiB; {shown}",
            file=sys.stderr,
            flush=True,
        )
    growth = exponents(runs) if len(runs) > 1 else {}
    largest = runs[-1]
    label = f"{largest['rows']:,} lines of text, embed to commit, 2 cores"
    aims = [
        _measure.aim(label, "the clock", largest["wall_seconds"], at_most=1500, unit="s"),
        _measure.aim(label, "memory of all processes", largest["peak_bytes"] / 2**30, at_most=6, unit="GiB"),
    ]
    slopes = {stage: slope for stage, slope in growth.items() if slope is not None and stage != "wall"}
    if slopes:
        worst = max(slopes, key=lambda stage: slopes[stage])
        aims.append(
            _measure.aim(f"the same, from {runs[0]['rows']:,} lines on", f"largest exponent of a stage ({worst})",
                         slopes[worst], at_most=1.15, unit="")
        )  # fmt: skip
    _measure.finish("pipeline_scale", {"runs": runs, "exponents": growth, "aims": aims}, not (quick or rows))


if __name__ == "__main__":
    main()

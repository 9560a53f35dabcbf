"""Does the chain hold for five million precomputed vectors? Cluster, prune by concept complexity, select a tenth.

The vectors are drawn from a thousand groups of 64 dimensions and lie in one Parquet file. One run, in a folder of its
own, with all cores; memory is the proportional set size of all processes together.

    python benchmarks/vectors_scale.py [--rows 5000000] [--quick]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import _measure
import click
import estimates
import pipeline_scale

ROWS, DIM = 5_000_000, 64
STAGES = [
    {"kind": "embed", "encoder": "vectors"},
    {"kind": "cluster"},
    {"kind": "prune", "method": "density", "keep": 0.6},
    {"kind": "select", "method": "facility_location", "budget": 0.1},
]


@click.command()
@click.option("--rows", type=click.IntRange(1000), help="Another size; prints, and writes nothing.")
@click.option("--quick", is_flag=True, help="A smoke run on few rows; prints, and writes nothing.")
@click.option("--repeat", type=click.IntRange(1), default=1, hidden=True)
def main(rows: int | None, quick: bool, repeat: int) -> None:  # noqa: ARG001
    """Measure, and write results/vectors_scale.json."""
    size = rows or (4000 if quick else ROWS)
    with tempfile.TemporaryDirectory(prefix="vectors_scale.") as folder:
        source = estimates.vectors(size, DIM, Path(folder))
        recipe = {"name": "vectors", "dataset": {"path": str(source), "vectors": "v"}, "stages": STAGES}
        run = pipeline_scale.measure(size, recipe)
    print(", ".join(f"{stage['stage']} {stage['seconds']:.0f}" for stage in run["stages"]), file=sys.stderr)
    label = f"{size:,} x {DIM} vectors through cluster, prune and select, 2 cores"
    aims = [
        _measure.aim(label, "the clock", run["wall_seconds"], at_most=1500, unit="s"),
        _measure.aim(label, "memory of all processes", run["peak_bytes"] / 2**30, at_most=6, unit="GiB"),
    ]
    _measure.finish("vectors_scale", {"runs": [run], "aims": aims}, not (quick or rows))


if __name__ == "__main__":
    main()

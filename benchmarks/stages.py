"""Where do the time and the memory of the demo's run go, stage by stage?

Runs `data_manifests/tweets.yaml` from nothing, three times, and takes the median of each stage. Seconds are of
work, summed over the workers; they are for comparing stages with each other, not machines.

    python benchmarks/stages.py [--repeat 3]
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import click

import tamis
from tamis.reports.report import build_report

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "data_manifests"))
RESULTS = Path(__file__).resolve().parent / "results" / "stages.json"


@click.command()
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
def main(repeat: int) -> None:
    """Measure, and write results/stages.json."""
    import fetch
    import publish

    fetch.tweets()
    fetch.minilm()
    reports, walls = [], []
    for number in range(repeat):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            run = tamis.run(ROOT / "data_manifests" / "tweets.yaml", Path(folder) / "run")
            walls.append(time.perf_counter() - began)
            reports.append(build_report(run.folder))
            print(f"run {number + 1} of {repeat}: {walls[-1]:.1f} s", file=sys.stderr, flush=True)
    stages = []
    for position, stage in enumerate(reports[0]["stages"]):
        same = [report["stages"][position] for report in reports]
        stages.append(
            {
                "stage": stage["stage"],
                "tasks": stage["tasks"],
                "seconds": round(statistics.median(item["seconds"] for item in same), 3),
                "peak_bytes": int(statistics.median(item["peak_bytes"] for item in same)),
                "bytes": stage["bytes"],
            }
        )
    results = {
        "machine": {"cores": len(os.sched_getaffinity(0)), "cpu": publish.cpu(), "python": platform.python_version()},
        "libraries": reports[0]["libraries"],
        "repeat": repeat,
        "rows": reports[0]["rows"],
        "wall_seconds": round(statistics.median(walls), 1),
        "share_outside_embedding": round(statistics.median(r["share_outside_embedding"] for r in reports), 4),
        "stages": stages,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    print(RESULTS.relative_to(ROOT))


if __name__ == "__main__":
    main()

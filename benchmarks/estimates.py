"""How near is what `tamis plan` foretells to what the run then takes, in time, memory and disk?

Each recipe is planned by the command line and then run by it, in a folder of its own, with all cores. Memory is the
proportional set size of all its processes together, looked at five times a second; disk is what lies in the working
folder at the end. A ratio above 1 is an estimate that is too high.

    python benchmarks/estimates.py [--only NAME] [--quick]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _measure
import click
import numpy as np
import pipeline_scale
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data_manifests"))
import fetch

TAMIS = [sys.executable, "-m", "tamis"]
CLUSTERS = [{"kind": "cluster"}, {"kind": "prune", "method": "density", "keep": 0.6}]
SELECT = {"kind": "select", "method": "facility_location", "budget": 0.1}
PROXY = [{"kind": "score", "method": "proxy"}, {"kind": "prune", "method": "loss", "drop_highest": 0.1}]


def vectors(rows: int, dim: int, folder: Path) -> Path:
    """A parquet file of vectors of a thousand groups."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, dim), np.float32)
    path = folder / f"vectors-{rows}-{dim}.parquet"
    with pq.ParquetWriter(path, pa.schema({"v": pa.list_(pa.float32(), dim)})) as writer:
        for start in range(0, rows, 65_536):
            count = min(65_536, rows - start)
            matrix = centres[rng.integers(0, 1000, count)] + 0.5 * rng.standard_normal((count, dim), np.float32)
            column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), dim)
            writer.write_table(pa.table([column], schema=writer.schema))
    return path


def recipes(folder: Path, quick: bool) -> dict[str, dict[str, Any]]:
    """Name -> recipe and limit."""
    small = 40 if quick else 1
    tweets = {"path": str(fetch.tweets()[0]), "id": "tweet_id", "text": "text", "label": "label"}
    lines = {"path": str(pipeline_scale.lines()), "id": "id", "text": "text"}
    fashion = {"path": str(fetch.fashion_mnist()["train-images"]), "image": "image", "label": "label"}
    numbers = {"path": str(vectors(500_000 // small, 64, folder)), "vectors": "v"}
    wide = {"path": str(vectors(100_000 // small, 384, folder)), "vectors": "v"}
    minilm = {"kind": "embed", "encoder": f"sentence: {fetch.minilm()}", "max_tokens": 64}
    dedup, lsa = {"kind": "dedup"}, {"kind": "embed", "encoder": "lsa"}
    per_label = {**SELECT, "per": "label"}
    return {
        "tweets, LSA": {"dataset": tweets, "stages": [lsa, dedup, *PROXY, per_label]},
        "tweets, MiniLM": {"dataset": tweets, "stages": [minilm, dedup, *PROXY, per_label], "limit": 6000 // small},
        "250,000 lines, LSA": {
            "dataset": lines,
            "stages": [{**lsa, "dim": 64}, dedup, *CLUSTERS, SELECT],
            "limit": 250_000 // small,
        },
        "Fashion-MNIST, pixels": {
            "dataset": fashion,
            "stages": [{"kind": "embed", "encoder": "pixels", "dim": 64}, dedup, *PROXY, per_label],
            "limit": 60_000 // small,
        },
        "500,000 x 64 vectors": {
            "dataset": numbers,
            "stages": [{"kind": "embed", "encoder": "vectors"}, *CLUSTERS, SELECT],
        },
        "100,000 x 384 vectors": {
            "dataset": wide,
            "stages": [{"kind": "embed", "encoder": "vectors"}, dedup, {**SELECT, "engine": "partitioned"}],
        },
    }


def measure(recipe: dict[str, Any], folder: Path) -> dict[str, dict[str, float]]:
    """Plan and run one recipe: the estimate, and what was used."""
    limit = ["--limit", str(recipe.pop("limit"))] if "limit" in recipe else []
    path, out = folder / "recipe.yaml", folder / "run"
    path.write_text(json.dumps({"name": "estimated", "max_bad_fraction": 0.01, **recipe}))
    command = [str(path), "--out", str(out), *limit]
    planned = json.loads(
        subprocess.run([*TAMIS, "plan", *command, "--json"], check=True, stdout=subprocess.PIPE).stdout
    )
    began, peak = time.perf_counter(), 0.0
    process = subprocess.Popen([*TAMIS, "run", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, pipeline_scale.together(watched))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    used = {
        "wall_seconds": time.perf_counter() - began,
        "peak_bytes": peak,
        "disk_bytes": float(sum(file.stat().st_size for file in (out / "work").rglob("*") if file.is_file())),
    }
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    nodes = [event for event in events if event["event"] == "node"]
    return {"estimated": planned["estimate"], "used": used, "nodes": nodes}


@click.command()
@click.option("--only", help="Only the recipe of this name; prints, and writes nothing.")
@click.option("--quick", is_flag=True, help="A smoke run on few rows; prints, and writes nothing.")
def main(only: str | None, quick: bool) -> None:
    """Measure, and write results/estimates.json."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="estimates.") as temporary:
        for name, recipe in recipes(Path(temporary), quick).items():
            if only not in (None, name):
                continue
            folder = Path(temporary) / str(len(found))
            folder.mkdir()
            measured = measure(recipe, folder)
            measured.pop("nodes")
            found[name] = measured
            ratios = {key: measured["estimated"][key] / measured["used"][key] for key in measured["used"]}
            shown = ", ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items())
            print(f"{name}: {shown}", file=sys.stderr, flush=True)
    aims = []
    for key, what in (("wall_seconds", "time"), ("peak_bytes", "memory"), ("disk_bytes", "disk")):
        ratios = [item["estimated"][key] / item["used"][key] for item in found.values()]
        worst = max(max(ratio, 1 / ratio) for ratio in ratios)
        label = f"{what} that `tamis plan` foretells, {len(found)} recipes"
        aims.append(_measure.aim(label, "what the run took, the worst factor", worst, at_most=1.5, unit="x"))
    _measure.finish("estimates", {"recipes": found, "aims": aims}, not (quick or only))


if __name__ == "__main__":
    main()

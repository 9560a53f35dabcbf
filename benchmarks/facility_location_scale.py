"""What do the engines cost beyond the size whose kernel fits memory, and what do the faster ones give up?

At 100,000 rows: `exact`, which computes blocks of the kernel again instead of keeping it (once, it takes minutes), and
`sparse` and `partitioned`, whose value is compared with the exact one's. The values are computed by this script from
the rows that were chosen, as sum_i max_{j in S} max(0, cos(i, j)). Then `sparse` on 125,000 to 1,000,000 made-up rows:
seconds, memory, and the exponent of the seconds' growth. Two threads; each measurement in a process of its own, whose
memory is counted whole, embeddings and libraries included. The other core must be idle.

    python benchmarks/facility_location_scale.py [--repeat 3] [--quick] [--rows N] [--data gmm|text]
    python benchmarks/facility_location_scale.py --profile 1000000         # where sparse's time goes, on one thread
"""

from __future__ import annotations

import cProfile
import pstats
import statistics
import tempfile
from pathlib import Path
from typing import Any, Literal

import _data
import _measure
import click
import numpy as np

ROWS, SHARE = 100_000, 10
SIZES = (125_000, 250_000, 500_000, 1_000_000)
Engine = Literal["exact", "sparse", "partitioned"]


def load(path: str, engine: Engine, threads: int) -> tuple[Any, int, Engine, int]:
    """The embeddings of a file for a process of its own, which has compiled what it needs."""
    return _warm(np.load(path), engine, threads)


def generate(n: int, engine: Engine, threads: int) -> tuple[Any, int, Engine, int]:
    """The same, of made-up rows: half a minute less than from a file where there are many."""
    return _warm(_data.gaussian_embeddings(n), engine, threads)


def _warm(X: Any, engine: Engine, threads: int) -> tuple[Any, int, Engine, int]:
    select(X[: min(len(X), 2_000)], min(len(X), 2_000) // SHARE, engine, threads)
    return X, len(X) // SHARE, engine, threads


def select(X: Any, budget: int, engine: Engine, threads: int) -> dict[str, Any]:
    """What is measured: a selection with everything that a user gets, its certificate included."""
    from tamis.selectors import facility_location

    chosen = facility_location(X, budget=budget, engine=engine, threads=threads)
    return {"indices": chosen.indices, "certificate": chosen.certificate}


def compare(name: str, n: int, repeat: int, threads: int, folder: Path) -> dict[str, Any]:
    """The three engines on n rows of one of the data sets, and a random subset."""
    path = _data.saved(name, n, folder)
    X = np.load(path)
    engines: dict[str, dict[str, Any]] = {}
    values: dict[str, float] = {}
    rounds: dict[Engine, int] = {"exact": 1, "sparse": repeat, "partitioned": repeat}
    for engine, times in rounds.items():
        children = [_measure.in_child(select, load, str(path), engine, threads) for _ in range(times)]
        with _measure.one_thread():
            values[engine] = float(_measure.nearest_similarity(X, children[0].result["indices"]).sum())
        engines[engine] = _summary(children) | {"f": values[engine], "certificate": children[0].result["certificate"]}
    drawn = np.random.default_rng(0).choice(n, n // SHARE, replace=False)
    with _measure.one_thread():
        values["random"] = float(_measure.nearest_similarity(X, drawn).sum())
    above = values["exact"] - values["random"]
    for summary in engines.values():
        summary["f_over_exact"] = summary["f"] / values["exact"]
        summary["recovered"] = (summary["f"] - values["random"]) / above
    return {
        "data": name,
        "sources": _data.sources(name),
        "rows": n,
        "budget": n // SHARE,
        "engines": engines,
        "f_random": values["random"],
    }


def grow(sizes: tuple[int, ...], repeat: int, threads: int) -> dict[str, Any]:
    """The sparse engine on more and more rows."""
    runs = []
    for n in sizes:
        children = [_measure.in_child(select, generate, n, "sparse", threads) for _ in range(repeat)]
        runs.append({"rows": n} | _summary(children))
    seconds = [run["seconds"]["median"] for run in runs]
    exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]) if len(sizes) > 1 else None
    return {"data": "gmm", "runs": runs, "exponent": exponent}


def profile(n: int) -> None:
    """Print where the sparse engine's time goes on one thread, the twelve largest parts."""
    given = generate(n, "sparse", 1)
    watched = cProfile.Profile()
    watched.runcall(select, *given)
    pstats.Stats(watched).strip_dirs().sort_stats("tottime").print_stats(12)


def _summary(children: list[_measure.Child]) -> dict[str, Any]:
    return {
        "repeat": len(children),
        "seconds": _measure.spread([child.seconds for child in children]),
        "peak_bytes": int(statistics.median(child.peak_bytes for child in children)),
        "extra_bytes": int(statistics.median(child.extra_bytes for child in children)),
    }


def aims_of(run: dict[str, Any], threads: int) -> list[dict[str, Any]]:
    """The README's rows of a comparison of engines."""
    label = f"{run['rows']:,} rows, 10 % ({run['data']}), {threads} threads"
    exact, sparse, fast = (run["engines"][name] for name in ("exact", "sparse", "partitioned"))
    rows = [
        _measure.aim(f"exact without a kernel, {label}", "the clock", exact["seconds"], at_most=200, unit="s"),
        _measure.aim(
            f"exact without a kernel, {label}", "memory", exact["peak_bytes"] / _measure.GB, at_most=6, unit="GB"
        ),
        _measure.aim(f"sparse, {label}", "f of exact", sparse["f_over_exact"], at_least=0.9995, unit=""),
        _measure.aim(f"partitioned, {label}", "the clock", fast["seconds"], at_most=2, unit="s"),
    ]
    if run["data"] == "text":
        rows.append(_measure.aim(f"partitioned, {label}", "f of exact", fast["f_over_exact"], at_least=0.995, unit=""))
    return rows


def aims_of_growth(growth: dict[str, Any], threads: int) -> list[dict[str, Any]]:
    """The README's rows of the growing sizes."""
    largest = growth["runs"][-1]
    label = f"sparse, {largest['rows']:,} rows, 10 % (gmm), {threads} threads"
    rows = [
        _measure.aim(label, "the clock", largest["seconds"], at_most=50, unit="s"),
        _measure.aim(label, "memory", largest["peak_bytes"] / _measure.GB, at_most=4, unit="GB"),
    ]
    if growth["exponent"] is not None:
        smallest = growth["runs"][0]["rows"]
        span = f"sparse, {smallest:,} to {largest['rows']:,} rows"
        rows.append(_measure.aim(span, "exponent of the time", growth["exponent"], at_most=1.25, unit=""))
    return rows


@click.command()
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--quick", is_flag=True, help="A smoke run on a few made-up rows; prints, and writes nothing.")
@click.option("--rows", type=click.IntRange(200), help="Another size; prints, and writes nothing.")
@click.option("--data", type=click.Choice(list(_data.DATA)), multiple=True, default=("gmm", "text"), show_default=True)
@click.option("--profile", "profiled", type=click.IntRange(200), help="Profile the sparse engine on so many rows.")
def main(repeat: int, threads: int, quick: bool, rows: int | None, data: tuple[str, ...], profiled: int | None) -> None:
    """Measure, and write results/facility_location_scale.json."""
    if profiled is not None:
        profile(profiled)
        return
    n = rows or (600 if quick else ROWS)
    sizes = (n, 2 * n) if rows or quick else SIZES
    with tempfile.TemporaryDirectory() as folder:
        runs = [compare(name, n, repeat, threads, Path(folder)) for name in (("gmm",) if quick else data)]
    growth = grow(sizes, repeat, threads)
    aims = [row for run in runs for row in aims_of(run, threads)] + aims_of_growth(growth, threads)
    results = {"repeat": repeat, "threads": threads, "runs": runs, "growth": growth, "aims": aims}
    _measure.finish("facility_location_scale", results, not (quick or rows))


if __name__ == "__main__":
    main()

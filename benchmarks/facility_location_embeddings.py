"""How long does exact facility location take from embeddings to the list, and how much memory, against the peers?

The peers get their kernel by one numpy product, the fastest way there is: submodlib as float32 for its lazy greedy;
apricot, in an environment of its own, as the float64 that it works on, made in blocks so that there is no second copy.
(It compiles at every fit, and that is a part of what a user waits for.) One thread on all sides, and ours on two
threads too. No peer certifies its result, so the ratios are of ours without the certificate; `ratio_certified` is with
it, as users get it by default. Memory is what a process takes at most above what it holds when the embeddings are
loaded.

    python benchmarks/facility_location_embeddings.py [--repeat 3] [--quick] [--rows N] [--data gmm|text|minilm]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _data
import _measure
import _peers
import click
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES, SHARE = (5_000, 10_000, 20_000), 10
APRICOT = """
import json, sys, time
import numpy as np
import _measure
from apricot import FacilityLocationSelection

X, budget = np.load(sys.argv[1]), int(sys.argv[2])
resident = _measure.reset_peak()
began = time.perf_counter()
kernel = np.empty((len(X), len(X)))
for start in range(0, len(X), 1024):
    np.maximum(X[start : start + 1024] @ X.T, 0, out=kernel[start : start + 1024])
selector = FacilityLocationSelection(budget, metric="precomputed", optimizer="lazy").fit(kernel)
seconds = time.perf_counter() - began
extra = _measure.peak() - resident
rises = int((np.diff(selector.gains) > 1e-6).sum())
chosen = [int(row) for row in selector.ranking]
print(json.dumps({"seconds": seconds, "extra_bytes": extra, "chosen": chosen, "rises": rises}))
"""


def select(X: Any, budget: int, threads: int = 1, certificate: bool = False) -> list[int]:
    """Ours: the exact engine, whatever the size."""
    from tamis.selectors import facility_location

    chosen = facility_location(X, budget=budget, engine="exact", threads=threads, certificate=certificate)
    rows: list[int] = chosen.indices.tolist()
    return rows


def load(path: str, budget: int) -> tuple[Any, int]:
    """The embeddings for a process of its own, which is warm then: compiled, and its libraries loaded."""
    X = np.load(path)
    select(X[:200], 20)
    _peers.submodlib(_peers.dense_kernel(X[:200]), 20)
    return X, budget


def reference(X: Any, budget: int) -> list[int]:
    """Submodlib, from embeddings to the list."""
    rows, _ = _peers.submodlib(_peers.dense_kernel(X), budget)
    return rows


def measure(name: str, n: int, repeat: int, python: Path | None, folder: Path) -> dict[str, Any]:
    """All sides on n rows of one of the data sets; without apricot where there is no environment for it."""
    path = _data.saved(name, n, folder)
    budget = n // SHARE
    X, _ = load(str(path), budget)
    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = select(X, budget)

    def ours_two() -> None:
        found["ours_2_threads"] = select(X, budget, threads=2)

    def ours_certified() -> None:
        select(X, budget, certificate=True)

    def submodlib() -> None:
        found["submodlib"] = reference(X, budget)

    functions: dict[str, Callable[[], object]] = {
        "ours": ours,
        "submodlib": submodlib,
        "ours_2_threads": ours_two,
        "ours_certified": ours_certified,
    }
    if python is not None:

        def apricot() -> _measure.Seconds:
            found["apricot"] = _peers.run(python, APRICOT, path, budget)
            return _measure.Seconds(found["apricot"]["seconds"])

        functions["apricot"] = apricot
    with _measure.one_thread():
        times = _measure.alternate(functions, repeat)
        value = {"ours": _value(X, found["ours"]), "submodlib": _value(X, found["submodlib"])}
        extra = {
            "ours": _measure.in_child(select, load, str(path), budget).extra_bytes,
            "submodlib": _measure.in_child(reference, load, str(path), budget).extra_bytes,
        }
        if python is not None:
            value["apricot"] = _value(X, found["apricot"]["chosen"])
            extra["apricot"] = found["apricot"]["extra_bytes"]
    peers = [peer for peer in ("submodlib", "apricot") if peer in times]
    return {
        "data": name,
        "sources": _data.sources(name),
        "rows": n,
        "budget": budget,
        "seconds": times,
        "ratio": {peer: _measure.ratio(times, "ours", peer) for peer in peers},
        "ratio_certified": {peer: _measure.ratio(times, "ours_certified", peer) for peer in peers},
        "ratio_2_threads": {peer: _measure.ratio(times, "ours_2_threads", peer) for peer in peers},
        "same_on_2_threads": found["ours"] == found["ours_2_threads"],
        "same_list_as_submodlib": found["ours"] == found["submodlib"],
        "f_over_submodlib": value["ours"] / value["submodlib"],
        "extra_bytes": extra,
        "f": value,
        "memory_share": {peer: extra["ours"] / extra[peer] for peer in peers},
        "apricot_gains_that_rise": found["apricot"]["rises"] if python is not None else None,
    }


def _value(X: Any, chosen: list[int]) -> float:
    return float(_measure.nearest_similarity(X, np.array(chosen)).sum())


def aims_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The README's rows of one run."""
    work = f"embeddings to list, {run['rows']:,} rows, 10 % ({run['data']})"
    rows = [
        _measure.aim(work, "submodlib LazyGreedy", run["ratio"]["submodlib"], at_least=20),
        _measure.aim(
            f"{work}, ours on 2 threads", "submodlib LazyGreedy", run["ratio_2_threads"]["submodlib"], at_least=35
        ),
        _measure.aim(
            f"{work}, extra memory as a share of theirs",
            "submodlib LazyGreedy",
            run["memory_share"]["submodlib"],
            at_most=0.3,
            unit="",
        ),
    ]
    if "apricot" in run["ratio"]:
        rows.insert(1, _measure.aim(work, "apricot lazy", run["ratio"]["apricot"], at_least=6))
    return rows


@click.command()
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="A smoke run on a few made-up rows without apricot; writes nothing.")
@click.option("--rows", type=click.IntRange(200), help="Another size; prints, and writes nothing.")
@click.option("--data", type=click.Choice(list(_data.DATA)), multiple=True, default=("gmm", "text"), show_default=True)
def main(repeat: int, quick: bool, rows: int | None, data: tuple[str, ...]) -> None:
    """Measure, and write results/facility_location_embeddings.json."""
    sizes = (rows,) if rows else (400,) if quick else SIZES
    python = None if quick else _peers.environment(*_peers.APRICOT)
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(name, n, repeat, python, Path(folder)) for name in (("gmm",) if quick else data) for n in sizes]
    results = {
        "repeat": repeat,
        "runs": runs,
        "aims": [row for run in runs if run["rows"] == max(sizes) for row in aims_of(run)],
        "peers": _peers.versions(python, "apricot-select", "numba", "numpy") if python is not None else {},
    }
    _measure.finish("facility_location_embeddings", results, not (quick or rows))


if __name__ == "__main__":
    main()

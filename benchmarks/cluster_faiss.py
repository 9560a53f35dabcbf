"""How long do k-means and its assignment take, against faiss alone?

Both fit spherical k-means on the same 100,000 evenly spaced rows, with the same number of clusters and at most 20
iterations (both stop where nothing moves), then name the nearest centroid of every row, on both cores. Ours gives the
same bytes for any number of threads, theirs does not. Ours is measured under `numeric: native`, and under `portable`,
whose price is what it takes beside native. Also said: seconds of the processor, which other work on the machine
disturbs less, and how near rows are to their centroids.

    python benchmarks/cluster_faiss.py [--repeat 3] [--quick]
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import _data
import _measure
import click

from tamis.embeddings.kmeans import assign, evenly_spaced, fit_spherical
from tamis.pipelines import numeric
from tamis.pipelines.resources import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    Float32 = npt.NDArray[np.float32]

SIZES = ((1_000_000, 64, 1000), (250_000, 384, 500))
FIT_ROWS, ITERATIONS = 100_000, 20


def load(rows: int, dim: int, k: int, threads: int) -> tuple[Float32, int, int]:
    """The data; libraries are loaded and compiled loops ready."""
    import faiss

    X = _data.gaussian_embeddings(rows, dim)
    assign(X[:2000], fit_spherical(X[:2000], 9, iterations=1, seed=0, threads=threads), threads=threads)
    faiss.omp_set_num_threads(threads)
    return X, k, threads


def ours(X: Float32, k: int, threads: int) -> dict[str, float]:
    """What the tasks `cluster.fit` and `cluster.assign` compute."""
    began = time.process_time()
    sample = X[evenly_spaced(len(X), FIT_ROWS)]
    centroids = fit_spherical(sample, k, iterations=ITERATIONS, seed=0, threads=threads)
    _, distance = assign(X, centroids, threads=threads)
    return {"processor_seconds": time.process_time() - began, "cosine": 1 - float(distance.mean())}


def theirs(X: Float32, k: int, threads: int) -> dict[str, float]:  # noqa: ARG001, set by `load`
    """The same by faiss alone; its limits are set so that it takes the whole sample."""
    import faiss

    began = time.process_time()
    sample = X[evenly_spaced(len(X), FIT_ROWS)]
    kmeans = faiss.Kmeans(
        X.shape[1], k, niter=ITERATIONS, spherical=True, min_points_per_centroid=1,
        max_points_per_centroid=1 + len(sample) // k,
    )  # fmt: skip
    kmeans.train(sample)
    cosine, _ = kmeans.index.search(X, 1)
    return {"processor_seconds": time.process_time() - began, "cosine": float(cosine.mean())}


def measure(rows: int, dim: int, k: int, repeat: int) -> dict[str, Any]:
    """Both sides, each in a process of its own, with two threads where there are two cores."""
    threads = min(2, usable_cores())
    found: dict[str, list[dict[str, float]]] = {"native": [], "portable": [], "theirs": []}

    def side(name: str) -> Callable[[], _measure.Seconds]:
        def run() -> _measure.Seconds:
            with patch.dict(os.environ, numeric.environment() if name == "portable" else {}):
                child = _measure.in_child(theirs if name == "theirs" else ours, load, rows, dim, k, threads)
            found[name].append(child.result)
            return _measure.Seconds(child.seconds)

        return run

    times = _measure.alternate({name: side(name) for name in found}, repeat)
    return {
        "rows": rows,
        "dim": dim,
        "clusters": k,
        "threads": threads,
        "seconds": times,
        "sides": found,
        "share_of_theirs": {name: _measure.ratio(times, "theirs", name) for name in ("native", "portable")},
        "portable_over_native": _measure.ratio(times, "native", "portable"),
    }


@click.command()
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="A smoke run on few rows; prints, and writes nothing.")
def main(repeat: int, quick: bool) -> None:
    """Measure, and write results/cluster_faiss.json."""
    runs = [measure(*size, repeat) for size in (((6_000, 16, 20),) if quick else SIZES)]
    aims = [
        _measure.aim(
            f"k-means of {run['rows']:,} rows of {run['dim']}, {run['clusters']:,} clusters, as a share of theirs",
            "faiss.Kmeans and its index, same threads",
            run["share_of_theirs"]["native"],
            at_most=1.05,
            unit="",
        )
        for run in runs
    ]
    _measure.finish("cluster_faiss", {"repeat": repeat, "runs": runs, "aims": aims}, not quick)


if __name__ == "__main__":
    main()

"""How long do the quotas of density-based pruning take, against a solver of the quadratic programme?

The programme (arXiv 2401.04578): of 1,000,000 samples in 10,000 clusters keep 60 %, as close as possible to the
softmax of the clusters' complexities, at least 1 and at most its size from each cluster. Ours is `density_quotas`, from
complexities to whole numbers. Theirs is qpsolvers with OSQP, up to the solution before rounding: `dense` as in the
authors' release, which makes a k x k identity; `sparse`, with the programme's matrices ready made, the fastest way to
call it; `tight`, which is that with tolerances of 1e-9 instead of OSQP's own. Also said: by how much a solution misses
the sum and the bounds, how far it is from ours before rounding, and how long the distances between centroids take, for
which ours makes no k x k matrix, beside numpy which does.

    python benchmarks/dbp_quotas.py [--repeat 3] [--quick]
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _measure
import _peers
import click
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Float32 = npt.NDArray[np.float32]
    Float64 = npt.NDArray[np.float64]
    Int64 = npt.NDArray[np.int64]

CLUSTERS, SAMPLES, KEPT = 10_000, 1_000_000, 0.6
TEMPERATURE = 0.1
WAYS = ("dense", "sparse", "tight")
NEIGHBOURS = 20
CENTROIDS, DIM = (10_000, 100_000), 64
NUMPY_CENTROIDS = 10_000  # up to which numpy has the memory for its matrix

SOLVER = """
import json, sys, time, warnings
import numpy as np, qpsolvers, scipy.sparse as sparse
warnings.simplefilter("ignore")  # of qpsolvers, that it converts dense matrices
given, out, way = np.load(sys.argv[1]), sys.argv[2], sys.argv[3]
target, lower, upper = given["target"], given["lower"].astype(float), given["upper"].astype(float)
k, total = len(target), float(given["total"])
P, A, b = sparse.eye(k, format="csc"), sparse.csc_matrix(np.ones((1, k))), np.array([total])
options = {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iter": 100_000} if way == "tight" else {}
qpsolvers.solve_qp(P, -target, A=A, b=b, lb=lower, ub=upper, solver="osqp")
began = time.perf_counter()
if way == "dense":
    P, A = np.eye(k), np.ones(k)
x = qpsolvers.solve_qp(P, -target, A=A, b=b, lb=lower, ub=upper, solver="osqp", **options)
seconds = time.perf_counter() - began
np.save(out, np.full(k, np.nan) if x is None else x)
print(json.dumps({"seconds": seconds}))
"""


def problem(k: int, samples: int, seed: int = 0) -> tuple[Float64, Int64]:
    """Complexities and sizes as clusters of real data have them: a wide spread of both.

    Args:
        k: Clusters.
        samples: In all.
        seed: Of the generator.

    Returns:
        float64[k], products of two distances, and int64[k] >= 1, log-normal sizes of this sum.
    """
    rng = np.random.default_rng(seed)
    complexity = rng.beta(4, 6, size=k) * rng.beta(3, 9, size=k)
    share = rng.lognormal(sigma=0.8, size=k)
    sizes = 1 + np.floor((samples - k) * share / share.sum()).astype(np.int64)
    sizes[np.argmax(sizes)] += samples - sizes.sum()
    return complexity, sizes


def quotas(k: int, samples: int, repeat: int, folder: Path) -> dict[str, Any]:
    """The quotas by both sides."""
    from tamis.selectors import density

    python = _peers.environment("qpsolvers", "qpsolvers==4.13.0", "osqp==1.1.3")
    complexity, sizes = problem(k, samples)
    keep = int(KEPT * samples)
    share = np.exp((complexity - complexity.max()) / TEMPERATURE)
    target, lower = keep * share / share.sum(), np.ones(k, np.int64)
    given = folder / "programme.npz"
    np.savez(given, target=target, lower=lower, upper=sizes, total=keep)
    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = density.density_quotas(complexity, sizes, keep, TEMPERATURE)

    def theirs(way: str) -> _measure.Seconds:
        result = _peers.run(python, SOLVER, given, folder / f"{way}.npy", way)
        return _measure.Seconds(result["seconds"])

    ours()
    with _measure.one_thread():
        times = _measure.alternate({"ours": ours} | {way: partial(theirs, way) for way in WAYS}, repeat)
    exact = density._project(target, lower, sizes, keep)
    return {
        "clusters": k,
        "samples": samples,
        "keep": keep,
        "temperature": TEMPERATURE,
        "clusters_at_their_size": int((exact == sizes).sum()),
        "seconds": times,
        "ratio": {way: _measure.ratio(times, "ours", way) for way in WAYS},
        "ours": {
            "sum_error": int(found["ours"].sum()) - keep,
            "below_lower": int((lower - found["ours"]).max()),
            "above_upper": int((found["ours"] - sizes).max()),
            "largest_step_of_rounding": float(np.abs(found["ours"] - exact).max()),
        },
        "theirs": {way: _described(np.load(folder / f"{way}.npy"), exact, lower, sizes, keep) for way in WAYS},
        "peer": _peers.versions(python, "qpsolvers", "osqp"),
    }


def _described(x: Float64, exact: Float64, lower: Int64, upper: Int64, keep: int) -> dict[str, Any]:
    """What a solution violates, and how far it is from the exact one."""
    if np.isnan(x).any():
        return {"solved": False}
    return {
        "solved": True,
        "sum_error": float(x.sum() - keep),
        "below_lower": float((lower - x).max()),
        "above_upper": float((x - upper).max()),
        "largest_difference": float(np.abs(x - exact).max()),
    }


def centroids(k: int) -> tuple[Float32]:
    """Centroids of random directions, with everything compiled."""
    from tamis.selectors.density import inter_distance

    inter_distance(np.eye(3))
    X = np.random.default_rng(0).standard_normal((k, DIM), np.float32)
    return (X / np.linalg.norm(X, axis=1, keepdims=True),)


def distances_ours(X: Float32) -> Float64:
    """By Tamis."""
    from tamis.selectors.density import inter_distance

    with _measure.one_thread():
        return inter_distance(X, NEIGHBOURS)


def distances_numpy(X: Float32) -> Float64:
    """By one product and a partial sort."""
    with _measure.one_thread():
        cosines = X @ X.T
        np.fill_diagonal(cosines, -np.inf)
        nearest = np.partition(cosines, len(X) - NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
        return (1.0 - nearest.astype(np.float64)).mean(axis=1)


def distances(k: int, repeat: int) -> dict[str, Any]:
    """The mean distance of k centroids to their nearest ones, by both sides, each in a process of its own."""
    found: dict[str, _measure.Child] = {}

    def side(name: str) -> _measure.Seconds:
        work = distances_ours if name == "ours" else distances_numpy
        found[name] = _measure.in_child(work, centroids, k)
        return _measure.Seconds(found[name].seconds)

    sides = {"ours": lambda: side("ours")}
    if k <= NUMPY_CENTROIDS:
        sides["theirs"] = lambda: side("theirs")
    times = _measure.alternate(sides, repeat)
    result: dict[str, Any] = {
        "centroids": k,
        "dim": DIM,
        "neighbours": NEIGHBOURS,
        "seconds": times,
        "extra_bytes": {name: child.extra_bytes for name, child in found.items()},
    }
    if "theirs" in sides:
        result["ratio"] = _measure.ratio(times)
        result["largest_difference"] = float(np.abs(found["ours"].result - found["theirs"].result).max())
    return result


@click.command()
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="A smoke run on a small programme; prints, and writes nothing.")
def main(repeat: int, quick: bool) -> None:
    """Measure, and write results/dbp_quotas.json."""
    k, samples = (200, 20_000) if quick else (CLUSTERS, SAMPLES)
    with tempfile.TemporaryDirectory() as folder:
        found = quotas(k, samples, repeat, Path(folder))
    between = [distances(count, repeat) for count in ((300,) if quick else CENTROIDS)]
    aims = [
        _measure.aim(
            f"quotas of {k:,} clusters, {samples:,} samples, 60 % kept",
            f"qpsolvers with OSQP, {way}, before rounding",
            found["ratio"][way],
            at_least=100,
        )
        for way in WAYS
    ]
    _measure.finish("dbp_quotas", {"repeat": repeat, "quotas": found, "distances": between, "aims": aims}, not quick)


if __name__ == "__main__":
    main()

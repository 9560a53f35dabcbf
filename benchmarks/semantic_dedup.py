"""How fast, and how completely, are near-duplicates found, against SemHash?

A tenth of the rows are copies of others, turned away from them so that the cosine is anywhere from .96 to .999; both
sides look for duplicates from cosine .95 on, in the same vectors. `near_duplicates` is what the `dedup` stage does by
default: k-means, a cluster for 1,000 rows, each row compared with the rows of its own cluster and of the three next
nearest. `paper` compares it with those of its own only; a pair that a cluster's border separates is then not found,
and in these vectors, which have fewer groups than there are clusters, borders separate many. `all` compares every row
with every other. SemHash asks an approximate index (HNSW, by
usearch), with its own settings. Each side runs in a process of its own, on one core; reading the vectors and starting
is not timed. Copies found: those that were dropped, or whose original was. Pairs
found: of all pairs from the threshold on that a sample of the rows has with any row (by brute force), those of which
not both were kept. Precision: dropped rows that have a kept row from the threshold on, of all dropped.

    python benchmarks/semantic_dedup.py [--repeat 3] [--quick] [--rows N] [--dim D]
"""

from __future__ import annotations

import os
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

    import numpy.typing as npt

    Float32 = npt.NDArray[np.float32]
    Int64 = npt.NDArray[np.int64]

SIZES = ((100_000, 64), (100_000, 256), (1_000_000, 64))  # the last takes SemHash 20 minutes
THRESHOLD, LOWEST, HIGHEST, SHARE = 0.95, 0.96, 0.999, 10
# Fewer than clusters at any size, or the clusters would be the groups and separate nothing.
CENTRES = 10
PROBES = 4  # of the stage
ALL_ROWS = 100_000  # up to which all rows are compared with all
SAMPLE = 1000
SLACK = 1e-5  # both sides' own rounding at the threshold is not what is measured

SEMHASH = """
import json, os, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
from semhash import SemHash
vectors, out, threshold = sys.argv[1], sys.argv[2], float(sys.argv[3])
X = np.load(vectors)
records = [str(row) for row in range(len(X))]
class NoModel:
    def encode(self, inputs, **options):
        raise NotImplementedError
SemHash.from_embeddings(X[:100], records[:100], NoModel()).self_deduplicate(threshold)
import _measure
resident = _measure.reset_peak()
began = time.perf_counter()
index = SemHash.from_embeddings(X, records, NoModel())
built = time.perf_counter()
result = index.self_deduplicate(threshold)
done = time.perf_counter()
extra = _measure.peak() - resident
kept_of = np.arange(len(X))
for item in result.filtered:
    kept_of[int(item.record)] = int(item.duplicate_of)
np.save(out, kept_of)
print(json.dumps({"seconds": done - began, "index_seconds": built - began, "extra_bytes": extra}))
"""


def planted(n: int, d: int, seed: int = 0) -> tuple[Float32, Int64]:
    """Rows of clustered Gaussians, of which a tenth are turned copies of others.

    Args:
        n: Rows.
        d: Dimensions.
        seed: Of the generator.

    Returns:
        float32[n, d], rows of length 1, and int64[n], of which row each is a copy; -1 where of none.
    """
    rng = np.random.default_rng([seed, 99])
    X = _data.gaussian_embeddings(n, d, CENTRES, seed)
    mixed = rng.permutation(n)
    copies, others = mixed[: n // SHARE], mixed[n // SHARE :]
    origin = np.full(n, -1)
    origin[copies] = rng.choice(others, len(copies))
    for start in range(0, len(copies), 4096):
        some = copies[start : start + 4096]
        base = X[origin[some]].astype(np.float64)
        away = rng.standard_normal(base.shape)
        away -= (away * base).sum(axis=1, keepdims=True) * base
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        cosine = rng.uniform(LOWEST, HIGHEST, size=(len(some), 1))
        X[some] = cosine * base + np.sqrt(1 - cosine**2) * away
    return X, origin


def deduplicate(X: Float32, probes: int) -> Int64:
    """The row that stands for each; with 0 probes every row is compared with every other."""
    from tamis.selectors import near_duplicates, near_pairs, resolve_pairs

    with _measure.one_thread():
        if probes:
            return near_duplicates(X, 1 - THRESHOLD, probes=probes)[0]
        pairs = near_pairs(X, THRESHOLD)
        assert pairs is not None  # there is no limit
        return resolve_pairs(len(X), *pairs, 1 - THRESHOLD, np.arange(len(X)))[0]


def load(path: str, probes: int) -> tuple[Float32, int]:
    """The vectors, with everything compiled."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    X = np.load(path)
    deduplicate(X[:2000], probes)
    return X, probes


def quality(X: Float32, origin: Int64, kept_of: Int64) -> dict[str, float]:
    """What was found of what there is to find, and how much of what was dropped has a kept duplicate."""
    kept = kept_of == np.arange(len(X))
    copies = np.flatnonzero(origin >= 0)
    sample = np.random.default_rng(1).choice(copies, min(SAMPLE, len(copies)), replace=False)
    first, second = np.nonzero(X[sample] @ X.T >= THRESHOLD + SLACK)
    first = sample[first]
    apart = first != second
    dropped = np.flatnonzero(~kept)
    named = np.einsum("ij,ij->i", X[dropped], X[kept_of[dropped]], dtype=np.float64)
    return {
        "dropped": len(dropped),
        "copies": len(copies),
        "copies_found": float((~(kept[copies] & kept[origin[copies]])).mean()),
        "pairs_found": float((~(kept[first] & kept[second]))[apart].mean()),
        "precision": float((kept[kept_of[dropped]] & (named >= THRESHOLD - SLACK)).mean()),
    }


def measure(n: int, d: int, repeat: int, folder: Path) -> dict[str, Any]:
    """Both on n rows of d dimensions."""
    python = _peers.environment("semhash", "semhash==0.5.0")
    X, origin = planted(n, d)
    path, theirs_path = folder / f"{n}-{d}.npy", folder / f"{n}-{d}-theirs.npy"
    np.save(path, X)
    found: dict[str, Any] = {}

    def ours(side: str, probes: int) -> Callable[[], _measure.Seconds]:
        def run() -> _measure.Seconds:
            found[side] = _measure.in_child(deduplicate, load, str(path), probes)
            return _measure.Seconds(found[side].seconds)

        return run

    def theirs() -> _measure.Seconds:
        found["theirs"] = _peers.run(python, SEMHASH, path, theirs_path, THRESHOLD)
        return _measure.Seconds(found["theirs"]["seconds"])

    sides = {"near_duplicates": ours("near_duplicates", PROBES), "paper": ours("paper", 1), "theirs": theirs}
    if n <= ALL_ROWS:
        sides["all"] = ours("all", 0)
    times = _measure.alternate(sides, repeat)
    mine = [side for side in sides if side != "theirs"]
    return {
        "rows": n,
        "dim": d,
        "seconds": times,
        "theirs_index_seconds": found["theirs"]["index_seconds"],
        "ratio": {side: _measure.ratio(times, side) for side in mine},
        "extra_bytes": {side: found[side].extra_bytes for side in mine} | {"theirs": found["theirs"]["extra_bytes"]},
        "quality": {side: quality(X, origin, found[side].result) for side in mine}
        | {"theirs": quality(X, origin, np.load(theirs_path))},
        "peer": _peers.versions(python, "semhash", "usearch"),
    }


@click.command()
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="From a million rows on, 1.")
@click.option("--quick", is_flag=True, help="A smoke run on a few rows; prints, and writes nothing.")
@click.option("--rows", type=click.IntRange(1000), help="Another size; prints, and writes nothing.")
@click.option("--dim", type=click.IntRange(2), default=64, show_default=True, help="With --rows.")
def main(repeat: int, quick: bool, rows: int | None, dim: int) -> None:
    """Measure, and write results/semantic_dedup.json."""
    sizes = ((rows, dim),) if rows else ((3000, 32),) if quick else SIZES
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(n, d, 1 if n >= 1_000_000 else repeat, Path(folder)) for n, d in sizes]
    aims = [
        _measure.aim(
            f"near-duplicates of {run['rows']:,} x {run['dim']} vectors, {side}; copies found "
            f"{run['quality'][side]['copies_found']:.1%} against {run['quality']['theirs']['copies_found']:.1%}",
            "SemHash",
            run["ratio"][side],
            at_least=1,
        )
        for run in runs
        for side in run["ratio"]
    ]
    _measure.finish("semantic_dedup", {"runs": runs, "aims": aims, "repeat": repeat}, not (quick or rows))


if __name__ == "__main__":
    main()

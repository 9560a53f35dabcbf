"""How long does the ranking of whole partitions take that INGENIOUS samples from, against the authors' way?

The authors rank each partition with submodlib's LazierThanLazyGreedy up to one row less than there are. Ours ranks all
rows, exactly. Both run in the same pool of two processes, one thread each, from embeddings to rankings; theirs gets its
kernel by one numpy product. Also said: whether gains fall (near such a budget LazierThanLazyGreedy looks at a few
random rows a step, so that its gains rise again and again), how far the recorded gains are from ones recomputed in
float32 and summed in float64, and what the first quarter of each ranking is worth.

    python benchmarks/ingenious_ranking.py [--repeat 3] [--quick] [--rows N] [--data gmm|text|minilm]
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _data
import _measure
import _peers
import click
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Ranking = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]

PARTITION_ROWS, PARTITIONS, WORKERS = 10_000, 4, 2
# float64 sums on their side, and ours are exact: a smaller rise is rounding.
RISE = 1e-6


def rank_ours(path: str, start: int, stop: int) -> Ranking:
    """All rows of a partition, by Tamis."""
    from tamis.selectors import rank_partition

    with _measure.one_thread():
        return rank_partition(_rows(path, start, stop), stop - start)


def rank_theirs(path: str, start: int, stop: int) -> Ranking:
    """All rows but one of a partition, by submodlib as the authors of INGENIOUS use it."""
    with _measure.one_thread():
        kernel = _peers.dense_kernel(_rows(path, start, stop))
        rows, gains = _peers.submodlib(kernel, stop - start - 1, "LazierThanLazyGreedy")
    return np.array(rows), np.array(gains)


def _rows(path: str, start: int, stop: int) -> npt.NDArray[np.float32]:
    return np.array(np.load(path, mmap_mode="r")[start:stop])


def _warm(path: str) -> int:
    """Both once on a few rows, so that a worker has loaded and compiled everything."""
    rank_ours(path, 0, 50)
    rank_theirs(path, 0, 50)
    return os.getpid()


def describe(X: npt.NDArray[np.float32], ranking: Ranking) -> dict[str, Any]:
    """A ranking's gains against ones that are recomputed here, from the rows in their order alone."""
    rows, gains = ranking
    kernel = _peers.dense_kernel(X)
    best = np.zeros(len(X), np.float32)
    expected = np.empty(len(rows))
    for step, row in enumerate(rows.tolist()):
        better = np.maximum(best, kernel[row])
        expected[step] = (better - best).sum(dtype=np.float64)
        best = better
    return {
        "ranked": len(rows),
        "distinct": len(np.unique(rows)),
        "gains_that_rise": int((np.diff(gains) > RISE).sum()),
        "largest_gain_error": float(np.abs(gains - expected).max()),
        "f_of_first_quarter": float(expected[: len(X) // 4].sum()),
    }


def measure(name: str, size: int, partitions: int, repeat: int, folder: Path) -> dict[str, Any]:
    """Both on the partitions of one of the data sets."""
    path = str(_data.saved(name, size * partitions, folder))
    jobs = [(path, start, start + size) for start in range(0, size * partitions, size)]
    found: dict[str, list[Ranking]] = {}
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        while len(set(pool.map(_warm, [path] * 4 * WORKERS))) < WORKERS:
            pass  # one worker was quick enough to warm up for both

        def ours() -> None:
            found["ours"] = list(pool.map(rank_ours, *zip(*jobs, strict=True)))

        def theirs() -> None:
            found["theirs"] = list(pool.map(rank_theirs, *zip(*jobs, strict=True)))

        times = _measure.alternate({"ours": ours, "theirs": theirs}, repeat)
    X = _rows(*jobs[0])
    with _measure.one_thread():
        described = {side: describe(X, rankings[0]) for side, rankings in found.items()}
    return {
        "data": name,
        "sources": _data.sources(name),
        "partitions": partitions,
        "partition_rows": size,
        "workers": WORKERS,
        "seconds": times,
        "ratio": _measure.ratio(times),
        "first_partition": described,
    }


@click.command()
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="A smoke run on a few made-up rows; prints, and writes nothing.")
@click.option("--rows", type=click.IntRange(100), help="Of a partition; prints, and writes nothing.")
@click.option("--data", type=click.Choice(list(_data.DATA)), multiple=True, default=("gmm", "text"), show_default=True)
def main(repeat: int, quick: bool, rows: int | None, data: tuple[str, ...]) -> None:
    """Measure, and write results/ingenious_ranking.json."""
    size = rows or (200 if quick else PARTITION_ROWS)
    partitions = 2 if quick else PARTITIONS
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(name, size, partitions, repeat, Path(folder)) for name in (("gmm",) if quick else data)]
    aims = [
        _measure.aim(
            f"full ranking of {run['partitions']} partitions of {run['partition_rows']:,} rows ({run['data']}), "
            f"{WORKERS} processes",
            "submodlib LazierThanLazyGreedy, all but one row",
            run["ratio"],
            at_least=25,
        )
        for run in runs
    ]
    _measure.finish("ingenious_ranking", {"repeat": repeat, "runs": runs, "aims": aims}, not (quick or rows))


if __name__ == "__main__":
    main()

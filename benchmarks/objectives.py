"""How long do greedy graph cut and log-determinant take, from embeddings to the list, against submodlib?

Both start from the same unit rows. Ours needs no kernel; submodlib's is made by one numpy product (its own is far
slower) and handed over as the lists that it takes. Its rows are in the opposite order, since it gives ties to the last
row and ours goes to the first. Graph cut is timed against both of its optimisers: lazy greedy is not exact where
cosines are negative, and the naive one is. Where the lists differ, the first step at which they do is given, and by how
much our choice there gains more than theirs, in float64.

    python benchmarks/objectives.py [--repeat 3] [--quick] [--rows N] [--data gmm|text|minilm]
"""

from __future__ import annotations

import statistics
import time
import warnings
from typing import TYPE_CHECKING, Any

import _data
import _measure
import click
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Float32 = npt.NDArray[np.float32]

ROWS, SHARE = 5_000, 10
TRADE_OFF, RIDGE = 0.5, 1.0
# The objective, submodlib's optimiser, and how many times faster ours should be.
PAIRS = (("graph_cut", "LazyGreedy", 100), ("graph_cut", "NaiveGreedy", 100), ("log_det", "LazyGreedy", 17))


def ours(name: str) -> Callable[..., Any]:
    """The selector of this objective."""
    from tamis.selectors.graph_cut import graph_cut
    from tamis.selectors.log_det import log_det

    return {"graph_cut": graph_cut, "log_det": log_det}[name]


def theirs(name: str, X: Float32, budget: int, optimizer: str) -> tuple[list[int], list[float], float]:
    """The list of submodlib, its gains, and the seconds of maximising alone."""
    import submodlib

    n = len(X)
    kernel = X[::-1] @ X[::-1].T
    np.fill_diagonal(kernel, 1.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please import", DeprecationWarning)
        if name == "graph_cut":
            function = submodlib.GraphCutFunction(n, "dense", TRADE_OFF, separate_rep=False, ggsijs=kernel)
        else:
            function = submodlib.LogDeterminantFunction(n, "dense", RIDGE, sijs=kernel)
    began = time.perf_counter()
    # stopIfZeroGain would stop at a gain below 1.
    chosen = function.maximize(
        budget, optimizer, stopIfZeroGain=False, stopIfNegativeGain=False, verbose=False, show_progress=False
    )
    seconds = time.perf_counter() - began
    return [n - 1 - row for row, _ in chosen], [gain for _, gain in chosen], seconds


def value(name: str, X: Float32, rows: list[int]) -> float:
    """The objective of some rows, in float64 and as it is written."""
    unit = X.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    chosen = unit[rows]
    if name == "graph_cut":
        together = chosen.sum(axis=0)
        return float(unit.sum(axis=0) @ together - TRADE_OFF * (together @ together))
    return float(np.linalg.slogdet(chosen @ chosen.T + RIDGE * np.eye(len(rows)))[1])


def measure(data: str, name: str, optimizer: str, n: int, repeat: int) -> dict[str, Any]:
    """Both on n rows of one of the data sets."""
    X = _data.DATA[data](n)
    budget = n // SHARE
    select = ours(name)
    select(X[:64], budget=8)  # so that both are compiled and imported
    theirs(name, X[:64], 8, optimizer)
    found: dict[str, Any] = {}
    maximising: list[float] = []

    def run_ours() -> None:
        found["ours"] = select(X, budget=budget)

    def run_theirs() -> None:
        found["theirs"] = theirs(name, X, budget, optimizer)
        maximising.append(found["theirs"][2])

    with _measure.one_thread():
        times = _measure.alternate({"ours": run_ours, "theirs": run_theirs}, repeat)
    mine, (rows, gains, _) = found["ours"].indices.tolist(), found["theirs"]
    parted = next((step for step in range(budget) if mine[step] != rows[step]), None)
    result = {
        "data": data,
        "sources": _data.sources(data),
        "objective": name,
        "optimizer": optimizer,
        "rows": n,
        "budget": budget,
        "seconds": times,
        "ratio": _measure.ratio(times),
        "theirs_maximise_alone": maximising,
        "ratio_to_maximise_alone": statistics.median(maximising) / statistics.median(times["ours"]),
        "same_list": parted is None,
        "first_difference": None,
        "objective_over_theirs": value(name, X, mine) / value(name, X, rows),
        "largest_gain_difference": float(np.abs(found["ours"].gains[:parted] - gains[:parted]).max(initial=0.0)),
        "certified_ratio": found["ours"].certificate.get("ratio"),
    }
    if parted is not None:
        result["first_difference"] = {
            "step": parted,
            "ours_gains_more_by": value(name, X, mine[: parted + 1]) - value(name, X, rows[: parted + 1]),
        }
    return result


@click.command()
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="A smoke run on a few made-up rows; prints, and writes nothing.")
@click.option("--rows", type=click.IntRange(100), help="Another size; prints, and writes nothing.")
@click.option("--data", type=click.Choice(list(_data.DATA)), multiple=True, default=("gmm", "text"), show_default=True)
def main(repeat: int, quick: bool, rows: int | None, data: tuple[str, ...]) -> None:
    """Measure, and write results/objectives.json."""
    n = rows or (300 if quick else ROWS)
    runs, aims = [], []
    for source in ("gmm",) if quick else data:
        for name, optimizer, at_least in PAIRS:
            run = measure(source, name, optimizer, n, repeat)
            runs.append(run)
            aims.append(
                _measure.aim(
                    f"{name}: embeddings to list, {n:,} rows, 10 % ({source})",
                    f"submodlib {optimizer}",
                    run["ratio"],
                    at_least=at_least,
                    same_list=run["same_list"],
                )
            )
    _measure.finish("objectives", {"repeat": repeat, "runs": runs, "aims": aims}, not (quick or rows))


if __name__ == "__main__":
    main()

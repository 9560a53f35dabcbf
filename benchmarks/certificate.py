"""How good are the selections, by their own certificates, and what does a certificate cost?

On each data set and at budgets of 1, 5, 10 and 25 %: f(S) over the certificate's upper bound, which no set of the size
exceeds; the mean cosine distance from a row to its nearest chosen row, beside that of random subsets of the same size;
and the share of the time that goes into the certificate. One thread, the exact engine. What the certificate says is
computed again here, from the rows that were chosen.

    python benchmarks/certificate.py [--repeat 3] [--quick] [--rows N] [--data gmm|text|minilm]
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import _data
import _measure
import click
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

ROWS = 20_000
BUDGETS = (0.01, 0.05, 0.1, 0.25)
RANDOM_SUBSETS = 5


def measure(X: npt.NDArray[np.float32], budget: float, repeat: int) -> dict[str, Any]:
    """One budget on one data set."""
    from tamis.selectors import facility_location

    found: dict[str, Any] = {}

    def certified() -> None:
        found["certified"] = facility_location(X, budget=budget, engine="exact", certificate=True)

    def plain() -> None:
        found["plain"] = facility_location(X, budget=budget, engine="exact", certificate=False)

    times = _measure.alternate({"certified": certified, "plain": plain}, repeat)
    selection = found["certified"]
    k = len(selection.indices)
    similarity = _measure.nearest_similarity(X, selection.indices)
    distances = [
        1.0 - _measure.nearest_similarity(X, np.random.default_rng(seed).choice(len(X), k, replace=False)).mean()
        for seed in range(RANDOM_SUBSETS)
    ]
    shares = [1.0 - b / a for a, b in zip(times["certified"], times["plain"], strict=True)]
    return {
        "budget": budget,
        "rows_chosen": k,
        "certificate": selection.certificate,
        "f": float(similarity.sum()),
        "f_over_bound": float(similarity.sum()) / selection.certificate["upper_bound"],
        "coverage_mean": float(1.0 - similarity.mean()),
        "coverage_mean_of_random": _measure.spread([float(distance) for distance in distances]),
        "seconds": times,
        "share_of_the_certificate": _measure.spread(shares),
        "same_list_without": selection.indices.tolist() == found["plain"].indices.tolist(),
    }


@click.command()
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="A smoke run on a few made-up rows; prints, and writes nothing.")
@click.option("--rows", type=click.IntRange(200), help="Another size; prints, and writes nothing.")
@click.option("--data", type=click.Choice(list(_data.DATA)), multiple=True, default=list(_data.DATA), show_default=True)
def main(repeat: int, quick: bool, rows: int | None, data: tuple[str, ...]) -> None:
    """Measure, and write results/certificate.json."""
    n = rows or (400 if quick else ROWS)
    runs, shares = [], []
    for name in ("gmm",) if quick else data:
        X = _data.DATA[name](n)
        with _measure.one_thread():
            measure(X[:200], 0.1, 1)  # loads and compiles
            budgets = [measure(X, budget, repeat) for budget in BUDGETS]
        shares += [budget["share_of_the_certificate"]["median"] for budget in budgets]
        runs.append({"data": name, "sources": _data.sources(name), "rows": len(X), "budgets": budgets})
    results = {
        "repeat": repeat,
        "random_subsets": RANDOM_SUBSETS,
        "runs": runs,
        "median_share_of_the_certificate": statistics.median(shares),
    }
    _measure.finish("certificate", results, not (quick or rows))


if __name__ == "__main__":
    main()

"""How long does greedy facility location take on a sparse graph, against submodlib's sparse mode?

Both get one and the same graph: the 32 nearest neighbours of every row, made symmetric, with similarities rounded to
multiples of 2^-15. Timed on one thread are building submodlib's object and maximising, and our `on_graph`. submodlib
takes more than a minute, so by default it runs once, and ours is the median of five runs beside it. With
`compat="submodlib"`, which breaks ties as submodlib does, the lists should be the same.

    python benchmarks/facility_location_sparse.py [--repeat 1] [--quick] [--rows N] [--data gmm|text|minilm]
"""

from __future__ import annotations

from typing import Any

import _data
import _measure
import _peers
import click
import numpy as np

ROWS, SHARE, NEIGHBOURS = 10_000, 10, 32
UNIT = 1 << 15
OURS = 5


def measure(name: str, n: int, repeat: int) -> dict[str, Any]:
    """Both on one graph of n rows of one of the data sets."""
    from tamis.embeddings.neighbours import neighbour_graph
    from tamis.selectors.facility_location import on_graph

    graph = neighbour_graph(_data.DATA[name](n), NEIGHBOURS)
    graph.data = (np.rint(graph.data * UNIT) / UNIT).astype(np.float32)
    budget = n // SHARE
    few = graph[:50, :50]  # so that both are compiled and imported
    on_graph(few, budget=5)
    _peers.submodlib(few, 5)
    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = on_graph(graph, budget=budget)

    def theirs() -> None:
        found["theirs"] = _peers.submodlib(graph, budget)

    with _measure.one_thread():
        theirs_seconds = _measure.alternate({"theirs": theirs}, repeat)["theirs"]
        ours_seconds = _measure.alternate({"ours": ours}, OURS)["ours"]
        compatible = on_graph(graph, budget=budget, compat="submodlib")
    reference = float(np.median(theirs_seconds))
    return {
        "data": name,
        "sources": _data.sources(name),
        "rows": n,
        "budget": budget,
        "neighbours": NEIGHBOURS,
        "entries": int(graph.nnz),
        "repeat": {"ours": OURS, "theirs": repeat},
        "seconds": {"ours": ours_seconds, "theirs": theirs_seconds},
        "ratio": _measure.spread([reference / seconds for seconds in ours_seconds]),
        **_peers.agreement(found["ours"], compatible, found["theirs"]),
    }


@click.command()
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="Of submodlib.")
@click.option("--quick", is_flag=True, help="A smoke run on a few made-up rows; prints, and writes nothing.")
@click.option("--rows", type=click.IntRange(200), help="Another size; prints, and writes nothing.")
@click.option("--data", type=click.Choice(list(_data.DATA)), multiple=True, default=("gmm", "text"), show_default=True)
def main(repeat: int, quick: bool, rows: int | None, data: tuple[str, ...]) -> None:
    """Measure, and write results/facility_location_sparse.json."""
    n = rows or (500 if quick else ROWS)
    runs = [measure(name, n, repeat) for name in (("gmm",) if quick else data)]
    aims = [
        _measure.aim(
            f"graph of {NEIGHBOURS} neighbours to list, {run['rows']:,} rows, 10 % ({run['data']})",
            "submodlib LazyGreedy, sparse",
            run["ratio"],
            at_least=2000,
            same_list=run["same_list"],
        )
        for run in runs
    ]
    _measure.finish("facility_location_sparse", {"runs": runs, "aims": aims}, not (quick or rows))


if __name__ == "__main__":
    main()

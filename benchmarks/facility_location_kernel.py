"""How long does greedy facility location take once the kernel is there, against submodlib's lazy greedy?

Both get the same similarities, rounded to multiples of 2^-15: ours as uint16, submodlib as float32, which holds them
exactly. Timed on one thread are building its object and maximising, and our `on_kernel`. With `compat="submodlib"`,
which breaks ties as submodlib does, the lists should be the same.

    python benchmarks/facility_location_kernel.py [--repeat 3] [--quick] [--rows N] [--data gmm|text|minilm]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import _data
import _measure
import _peers
import click
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

ROWS, SHARE = 20_000, 10
UNIT = 1 << 15
_TILE = 1024


def quantised(X: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Cosines as uint16[n, n] in units of 2^-15, clamped to [0, 1], exactly symmetric, diagonal 1."""
    n = len(X)
    kernel = np.empty((n, n), np.uint16)
    for start in range(0, n, _TILE):
        rows, rest = slice(start, start + _TILE), slice(start, n)
        kernel[rows, rest] = np.rint(np.clip(X[rows] @ X[rest].T, 0.0, 1.0) * UNIT)
        kernel[rest, rows] = kernel[rows, rest].T
        square = kernel[rows, rows]
        kernel[rows, rows] = np.maximum(square, square.T)
    np.fill_diagonal(kernel, UNIT)
    return kernel


def measure(name: str, n: int, repeat: int) -> dict[str, Any]:
    """Both on one kernel of n rows of one of the data sets."""
    from tamis.selectors.facility_location import on_kernel

    kernel = quantised(_data.DATA[name](n))
    as_float = kernel / np.float32(UNIT)
    budget = n // SHARE
    few = slice(0, 64)  # so that both are compiled and imported
    on_kernel(np.ascontiguousarray(kernel[few, few]), budget=8)
    _peers.submodlib(np.ascontiguousarray(as_float[few, few]), 8)
    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = on_kernel(kernel, budget=budget)

    def theirs() -> None:
        found["theirs"] = _peers.submodlib(as_float, budget)

    with _measure.one_thread():
        times = _measure.alternate({"ours": ours, "theirs": theirs}, repeat)
        compatible = on_kernel(kernel, budget=budget, compat="submodlib")
    return {
        "data": name,
        "sources": _data.sources(name),
        "rows": n,
        "budget": budget,
        "seconds": times,
        "ratio": _measure.ratio(times),
        **_peers.agreement(found["ours"], compatible, found["theirs"]),
    }


@click.command()
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="A smoke run on a few made-up rows; prints, and writes nothing.")
@click.option("--rows", type=click.IntRange(100), help="Another size; prints, and writes nothing.")
@click.option("--data", type=click.Choice(list(_data.DATA)), multiple=True, default=("gmm", "text"), show_default=True)
def main(repeat: int, quick: bool, rows: int | None, data: tuple[str, ...]) -> None:
    """Measure, and write results/facility_location_kernel.json."""
    n = rows or (500 if quick else ROWS)
    runs = [measure(name, n, repeat) for name in (("gmm",) if quick else data)]
    aims = [
        _measure.aim(
            f"kernel to list, {run['rows']:,} rows, 10 % ({run['data']})",
            "submodlib LazyGreedy",
            run["ratio"],
            at_least=80,
            same_list=run["same_list"],
        )
        for run in runs
    ]
    _measure.finish("facility_location_kernel", {"repeat": repeat, "runs": runs, "aims": aims}, not (quick or rows))


if __name__ == "__main__":
    main()

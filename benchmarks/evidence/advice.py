"""Does `tamis advise` keep its promise: is what it recommends never significantly worse than stratified random rows?

Of each set of `sets.py` the first pool of `selection.py` is given to `tamis.advise` with a budget, which sees nothing
of the test part. What it recommends is then looked up in the results of `selection.py`: its gain over stratified random
rows on the untouched test part, over 10 pools. Run `selection.py` first.

    python benchmarks/evidence/advice.py [--splits 5] [--quick]
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
import selection  # first: it sets one thread a library before they load
import sets
from _beside import measure as _measure
from selection import CACHE, Families, pool_of, write_pool

import tamis

BUDGETS = (0.05, 0.5)
STRATIFIED = "stratified"


def ask(name: str, budget: float, splits: int) -> dict[str, Any]:
    """What is recommended for a set's first pool, and what it expects of it."""
    train, test = sets.load(name)
    pool = pool_of(train, 0)
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_pool(pool, Families(pool, test.take(np.arange(10)), 0).rows, Path(folder))
        path = Path(folder) / "recipe.yaml"
        stages = [{"kind": "embed", "encoder": "lsa" if "text" in dataset else "vectors"}]
        stages.append({"kind": "select", "method": "random", "budget": budget})
        path.write_text(json.dumps({"name": "pool", "dataset": dataset, "stages": stages}))
        advice = tamis.advise(path, budget=budget, splits=splits, time_limit=3600.0)
    (tried,) = (one for one in advice.tried if one.name == advice.recommended)
    expected = None if tried.gain is None else [tried.gain.mean, tried.gain.low, tried.gain.high]
    return {"recommended": advice.recommended, "expected": expected, "splits": advice.splits, "seconds": advice.seconds}


def judged(asked: dict[str, Any], cells: dict[str, dict[str, dict[str, Any]]], key: str) -> dict[str, Any]:
    """What was recommended, with its gain on the test part; stratified random rows gain nothing over themselves."""
    if asked["recommended"] == STRATIFIED:
        gains = [cells[what][key]["gain"] for what in selection.PRIMARY if key in cells[what]]
        best = max(gains, default=None)  # None where both recipes refuse
        return {**asked, "gain": 0.0, "verdict": "the baseline itself", "best": best}
    cell = cells[asked["recommended"]][key]
    found = {name: cell[name] for name in ("gain", "half_interval", "holm")}
    return {**asked, **found, "verdict": selection.verdict(cell), "best": cell["gain"]}


def tables(results: dict[str, Any]) -> str:
    """Markdown: what was recommended in each cell, what it expected to gain, and what it gained on the test part."""
    lines = [
        "| set | " + " | ".join(f"{budget:.0%}" for budget in BUDGETS) + " |",
        "|---|" + "---|" * len(BUDGETS),
    ]
    for name in results["sets"]:
        row = []
        for budget in BUDGETS:
            cell = results["cells"][f"{name}|{budget}"]
            if cell["recommended"] == STRATIFIED:
                best = "refused" if cell["best"] is None else f"{100 * cell['best']:+.1f}"
                row.append(f"stratified (the better recipe: {best})")
            else:
                row.append(
                    f"{cell['recommended']}: {100 * cell['expected'][0]:+.1f} expected, {100 * cell['gain']:+.1f} found"
                )
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    cells = results["cells"].values()
    worse = sum(cell["verdict"] == "worse" for cell in cells)
    taken = [cell for cell in cells if cell["recommended"] != STRATIFIED]
    better = sum(cell["verdict"] == "better" for cell in taken)
    lines += [
        "",
        f"Of {len(cells)} cells, {len(taken)} were given another recipe than stratified random rows; on the test part "
        f"{better} of these are better after Holm's correction, and {worse} worse. The mean gain over all cells is "
        f"{100 * float(np.mean([cell['gain'] for cell in cells])):+.1f} points.",
    ]
    return "\n".join(lines)


@click.command()
@click.option("--splits", type=click.IntRange(3), default=5, show_default=True)
@click.option("--quick", is_flag=True, help="One set and budget, 3 splits; prints, and writes nothing.")
@click.option("--repeat", type=click.IntRange(1), default=1, hidden=True)
def main(splits: int, quick: bool, repeat: int) -> None:  # noqa: ARG001
    """Ask, look up, and write results/evidence_advice.json."""
    if quick:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _measure.finish("evidence_advice", {"bbc|0.1": ask("bbc", 0.1, 3)}, keep=False)
        return
    found = json.loads((_measure.RESULTS / "evidence_selection.json").read_text())
    keep = CACHE / "advice.json"
    asked: dict[str, Any] = json.loads(keep.read_text()) if keep.is_file() else {}
    for budget in BUDGETS:
        for name in found["sets"]:
            key = f"{name}|{budget}"
            if key not in asked:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    asked[key] = ask(name, budget, splits)
                keep.write_text(json.dumps(asked, indent=1))
                print(key, asked[key], file=sys.stderr, flush=True)
    cells = {key: judged(one, found["cells"], key) for key, one in asked.items()}
    _measure.finish("evidence_advice", {"cells": cells, "sets": found["sets"], "splits": splits}, keep=True)


if __name__ == "__main__":
    main()

"""Write the tables of README.md and docs/measured.md from the results: `python benchmarks/readme.py`.

A table stands between two marks, and a page without the marks goes without the table.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS, EVIDENCE = (ROOT / "benchmarks" / folder for folder in ("results", "evidence"))
# Of these the engine's table starts with; other results with aims follow by name.
ENGINE_FIRST = (
    "facility_location_kernel",
    "facility_location_embeddings",
    "facility_location_scale",
    "facility_location_sparse",
    "ingenious_ranking",
)
# Rows of the short table, by the result and the row's number in it; all others are in docs/measured.md.
HEADLINES = (
    ("facility_location_kernel", 0),
    ("facility_location_embeddings", 1),
    ("facility_location_embeddings", 5),
    ("facility_location_scale", 9),
    ("ingenious_ranking", 1),
    ("semantic_dedup", 3),
    ("dbp_quotas", 1),
    ("dynamic_plans", 1),
    ("cluster_faiss", 0),
    ("embed_texts", 0),
    ("outside_encoder", 0),
    ("pipeline_scale", 0),
    ("pipeline_scale", 1),
)
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", DOCS / "measured.md", DOCS / "evidence.md", *sorted((DOCS / "recipes").glob("*.md")))


def begin(mark: str) -> str:
    """The line before a table."""
    return f"<!-- {mark}: written by benchmarks/readme.py -->"


def end(mark: str) -> str:
    """The line after a table."""
    return f"<!-- end of {mark} -->"


def table(results: dict[str, Any]) -> str:
    """The table of benchmarks/stages.py as Markdown."""
    total = sum(stage["seconds"] for stage in results["stages"])
    lines = [
        f"The demo's run, {results['rows']:,} rows, {results['machine']['cores']} cores: median of "
        f"{results['repeat']} runs, {results['wall_seconds']:.0f} s of wall time, "
        f"{100 * results['share_outside_embedding']:.1f} % of the work outside embedding.",
        "",
        "| stage | tasks | share of the work | seconds of work | worker's peak memory | on disk |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {stage['stage']} | {stage['tasks']} | {100 * stage['seconds'] / total:.1f} % | {stage['seconds']:.2f} "
        f"| {stage['peak_bytes'] / 2**20:,.0f} MiB | {stage['bytes'] / 2**20:,.1f} MiB |"
        for stage in results["stages"]
    ]
    return "\n".join(lines)


_HEAD = ("| work | against | aim | measured | met | same list |", "|---|---|---:|---:|---|---|")


def headlines(results: dict[str, dict[str, Any]]) -> str:
    """Some rows of the table of all aims, and how many of all are met."""
    aims = [aim for found in results.values() for aim in found.get("aims", ())]
    rows = [_row(results[name]["aims"][number]) for name, number in HEADLINES if name in results]
    met = sum(aim["met"] for aim in aims)
    return "\n".join([*_HEAD, *rows, "", f"Of {len(aims)} aims that were measured {met} are met."])


def engine_table(results: dict[str, dict[str, Any]]) -> str:
    """The aims of all results, a row each, and then what the certificates say, if they were measured.

    Args:
        results: By name; those without `aims` (see `_measure.aim`) have no row.
    """
    rest = sorted(results.keys() - set(ENGINE_FIRST))
    measured = [results[name] for name in (*ENGINE_FIRST, *rest) if "aims" in results.get(name, {})]
    machines = {(found["machine"]["cores"], found["machine"]["cpu"]) for found in measured}
    cores = " or ".join(str(count) for count in sorted({count for count, _ in machines}))
    lines = [
        f"{cores} cores, one thread on both sides unless a row says otherwise; the median of the rounds, and the lowest"
        " to the highest. 3x is three times as fast as the peer; data and method: "
        "benchmarks/README.md.",
        "",
        *_HEAD,
    ]
    lines += [_row(aim) for found in measured for aim in found["aims"]]
    if "certificate" in results:
        lines += ["", *_certificates(results["certificate"])]
    return "\n".join(lines)


def _row(aim: dict[str, Any]) -> str:
    ((direction, value),) = aim["aim"].items()
    goal = ("≥ " if direction == "at_least" else "≤ ") + _quantity(value, aim["unit"])
    median, low, high = (_quantity(aim["measured"][key], aim["unit"]) for key in ("median", "low", "high"))
    measured = median if low == high else f"{median} ({low} to {high})"
    same = {True: "yes", False: "no", None: ""}[aim["same_list"]]
    return f"| {aim['work']} | {aim['against']} | {goal} | {measured} | {'yes' if aim['met'] else 'no'} | {same} |"


def _quantity(value: float, unit: str) -> str:
    """A number with its unit; three digits, or as many nines as there are where it is just below 1."""
    if unit == "" and 0.9 < value < 1:
        text = f"{value:.5f}".rstrip("0")
    elif value >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return f"{text}{unit}" if unit in ("", "x") else f"{text} {unit}"


def _certificates(results: dict[str, Any]) -> list[str]:
    budgets = [budget["budget"] for budget in results["runs"][0]["budgets"]]
    heads = " | ".join(f"{100 * budget:g} %" for budget in budgets)
    lines = [
        "What the certificates say, by budget: f(S) over a bound that no set of the size exceeds; in brackets the mean "
        "cosine distance to the nearest chosen row, and that of random rows. The certificate is "
        f"{100 * results['median_share_of_the_certificate']:.0f} % of the time (median).",
        "",
        f"| data | rows | {heads} |",
        f"|---|---:|{'---:|' * len(budgets)}",
    ]
    for run in results["runs"]:
        cells = [
            f"{budget['f_over_bound']:.3f} ({budget['coverage_mean']:.3f}, "
            f"{budget['coverage_mean_of_random']['median']:.3f})"
            for budget in run["budgets"]
        ]
        lines.append(f"| {run['data']} | {run['rows']:,} | {' | '.join(cells)} |")
    return lines


def evidence(name: str, results: dict[str, Any]) -> str:
    """What benchmarks/evidence/<name>.py makes of its results, by its function `tables`."""
    if str(EVIDENCE) not in sys.path:
        sys.path.insert(0, str(EVIDENCE))
    tables: str = importlib.import_module(name).tables(results)
    return tables


def between(readme: str, mark: str, content: str) -> str:
    """A page with some content between two marks; unchanged if it does not have them."""
    if begin(mark) not in readme:
        return readme
    head, _, rest = readme.partition(begin(mark))
    _, _, tail = rest.partition(end(mark))
    return f"{head}{begin(mark)}\n{content}\n{end(mark)}{tail}"


def written(readme: str, results: dict[str, Any], others: dict[str, dict[str, Any]] | None = None) -> str:
    """A page with all tables between their marks.

    Args:
        readme: The page.
        results: Those of benchmarks/stages.py.
        others: All other results, by name; as they are stored if not given.
    """
    others = stored() if others is None else others
    readme = between(between(readme, "stages", table(results)), "engine", engine_table(others))
    readme = between(readme, "headlines", headlines(others))
    for stem, found in others.items():
        name = stem.removeprefix("evidence_")
        if name == stem:
            continue
        if begin(name) in readme:  # their scripts import what trains
            readme = between(readme, name, evidence(name, found))
        for one, cells in found.get("cells", {}).items():  # a page of its own may show one recipe's
            if begin(f"{name} {one}") in readme:
                readme = between(readme, f"{name} {one}", evidence(name, {**found, "cells": {one: cells}}))
    return readme


def stored() -> dict[str, dict[str, Any]]:
    """All results that there are, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(written(path.read_text(), stored()["stages"]))
        print(path)

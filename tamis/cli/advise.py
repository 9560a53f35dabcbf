"""The verb that recommends a recipe: advise."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tamis.cli.common import JSON, errors, print_facts

if TYPE_CHECKING:
    from collections.abc import Mapping

_WIDTH = 79


@click.command()
@click.argument("data")
@click.option("--budget", required=True, help="A fraction of the rows such as 0.1, or a count such as 5000.")
@click.option("--candidates", help="Try these only, such as label-free,noise-aware; default: all.")
@click.option("--time-limit", type=float, default=300, show_default=True, help="Seconds.")
@click.option("--rows", type=int, default=20_000, show_default=True, help="Try on at most so many rows.")
@click.option("--splits", type=int, default=10, show_default=True, help="At most so many; at least 3.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all draws.")
@click.option("--out", type=click.Path(path_type=Path), help="The recipe to write; nothing is overwritten.")
@JSON
@errors
def advise(
    data: str,
    budget: str,
    candidates: str | None,
    time_limit: float,
    rows: int,
    splits: int,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Try candidate recipes on splits of DATA, and recommend one, or random rows where nothing is clearly better.

    DATA is what `tamis init` takes; or a recipe, whose dataset and embed stage are used. It needs a label: what the
    candidates select trains two cheap classifiers, which are measured on rows that no candidate has seen.

    Example: tamis advise train.parquet --budget 0.05 --out recipe.yaml
    """
    from tamis.advice.advise import advise as advise_on
    from tamis.progress import AdviceProgress

    with AdviceProgress() as progress:
        advice = advise_on(
            data,
            budget=_amount(budget),
            candidates=None if candidates is None else [name.strip() for name in candidates.split(",")],
            time_limit=time_limit,
            splits=splits,
            rows=rows,
            seed=seed,
            out=out,
            on_found=progress.on_found,
            on_step=progress.on_step,
        )
    print_facts(advice.facts, as_json, show_advice)


def _amount(text: str) -> float:
    """A budget as it is written in a recipe."""
    from tamis.errors import RecipeError

    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise RecipeError(f"--budget {text!r}: give a fraction such as 0.25 or a count such as 1000")


def show_advice(facts: Mapping[str, Any]) -> str:
    """The table of the candidates with the recommendation, as text."""
    lines, reasons = [], []
    if facts["splits"]:
        width = max(len("candidate"), *(len(one["name"]) for one in facts["tried"]))
        lines.append(f"{'candidate':<{width}} {'accuracy':>9}  {'gain, 95 % interval':<24} verdict")
        for one in facts["tried"]:
            accuracy = "" if one["accuracy"] is None else f"{100 * one['accuracy']:.1f} %"
            verdict, _, reason = one["verdict"].partition(": ")
            lines.append(f"{one['name']:<{width}} {accuracy:>9}  {_gain(one['gain']):<24} {verdict}")
            if reason:
                reasons.append(f"{one['name']} {verdict}: {reason}")
    lines += [
        textwrap.fill(line, _WIDTH, break_on_hyphens=False) for line in (*reasons, facts["sentence"], *facts["notes"])
    ]
    if facts["recipe"] is not None:
        lines.append(f"{facts['recipe']}\nnext: tamis run {facts['recipe']} --out runs/advised")
    return "\n".join(lines)


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return ""
    mean, low, high = (100 * gain[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"

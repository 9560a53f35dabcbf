"""The verb that decides near duplicates again at another eps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tamis.cli.common import DATA, JSON, check_data, errors, print_facts, shown_text, visible

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEXT_WIDTH = 160


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--eps", "given", type=float, multiple=True, metavar="E", help="Decide at this eps; may be repeated.")
@click.option(
    "--pairs", "count", type=click.IntRange(0), default=0, metavar="N", help="List the N pairs nearest to each cut."
)
@click.option("--text", "with_text", is_flag=True, help="Show the texts of these pairs.")
@click.option("--stage", metavar="LABEL", help="Which dedup stage, such as 02-dedup, if several have pairs.")
@DATA
@JSON
@errors
def dedup_threshold(
    folder: Path,
    given: tuple[float, ...],
    count: int,
    with_text: bool,
    stage: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Say how many near duplicates another eps would remove, from the pairs that the run in RUN has stored.

    Without --eps: for a grid of values, up to the largest that the pairs are enough for. --pairs lists pairs at each
    --eps, or at the recipe's.

    Example: tamis dedup-threshold runs/first --eps 0.03 --eps 0.08 --pairs 10 --text
    """
    from tamis.manifests.reader import open_manifest
    from tamis.pipelines.dataset import read_texts
    from tamis.pipelines.threshold import stored_pairs

    if with_text and not count:
        raise click.UsageError("--text shows the texts of pairs: give --pairs N")
    check_data(data, with_text)
    pairs = stored_pairs(folder, stage)
    choices: list[dict[str, Any]] = []
    for eps in dict.fromkeys(given) or pairs.grid():
        pairs.check(eps)
        removed = pairs.removed(eps)
        listed = pairs.borderline(eps, count) if count and (given or eps == pairs.config["eps"]) else []
        choices.append({"eps": eps, "removed": removed, "left": pairs.rows - removed, "borderline": listed})
    sides = [side for choice in choices for pair in choice["borderline"] for side in pair["rows"]]
    if with_text and sides:
        texts = read_texts(open_manifest(folder), [side["row"] for side in sides], data)
        for side, text in zip(sides, texts, strict=True):
            side["text"] = text
    facts = {
        "run": str(folder),
        "stage": pairs.label,
        **{name: pairs.config[name] for name in ("eps", "floor", "which_to_keep")},
        "largest_eps": pairs.largest,
        "rows": pairs.rows,
        "exact_duplicates": pairs.exact_duplicates,
        **pairs.counts(),
        "choices": choices,
        "apply": pairs.setting("eps", choices[0]["eps"] if len(choices) == 1 else "E"),
    }
    print_facts(facts, as_json, _show_choices)


def _show_choices(facts: Mapping[str, Any]) -> str:
    swept = facts["rows_without_stored_pairs"]
    lines = [
        f"{facts['stage']}: {facts['rows']:,} rows without the {facts['exact_duplicates']:,} exact duplicates; "
        f"{facts['pairs']:,} pairs are stored, from cosine {facts['floor']:g} on",
        *([f"{swept:,} rows have too many pairs to be stored; they are compared again"] if swept else []),
        "",
        f"{'eps':>8} {'cosine from':>12} {'removed':>11} {'left':>11}",
    ]
    for choice in facts["choices"]:
        own = "   the recipe's" if choice["eps"] == facts["eps"] else ""
        lines.append(
            f"{choice['eps']:>8g} {1 - choice['eps']:>12g} {choice['removed']:>11,} {choice['left']:>11,}{own}"
        )
    for choice in facts["choices"]:
        if choice["borderline"]:
            lines += ["", f"pairs nearest to cosine {1 - choice['eps']:g}"]
            lines += [line for pair in choice["borderline"] for line in _show_pair(pair, 1 - choice["eps"])]
    lines += [
        "",
        f"to apply: {facts['apply']}",
        "That computes no pairs again: only the decision, and what comes after it.",
    ]
    return "\n".join(lines)


def _show_pair(pair: Mapping[str, Any], cut: float) -> list[str]:
    lines = [f"{pair['cosine']:.6f}  {'a near duplicate' if pair['cosine'] >= cut else 'not near enough'}"]
    for side in pair["rows"]:
        fate = "stays" if side["kept_row"] == side["row"] else f"removed for {visible(side['kept_sample_id'])}"
        lines.append(f"    {visible(side['sample_id'])} (row {side['row']}): {fate}")
        if "text" in side:
            lines.append(f"        {shown_text(side['text'], _TEXT_WIDTH)}")
    return lines

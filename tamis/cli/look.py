"""Verbs that look at what a run has done: why, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tamis.cli.common import FOLDER, JSON, errors, print_facts

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command()
@click.argument("sample_id", metavar="ID")
@click.option(
    "--run",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    help="A run folder or a manifest folder.",
)
@JSON
@errors
def why(sample_id: str, folder: Path, as_json: bool) -> None:
    """Say what became of the row with ID, in which stage, why, and which row stands for it.

    Example: tamis why t00042 --run runs/first
    """
    from tamis.manifests.reader import open_manifest

    manifest = open_manifest(folder)
    chain = [manifest.explain(sample_id)]
    while chain[-1]["kept_sample_id"] is not None:
        chain.append(manifest.explain(chain[-1]["kept_sample_id"]))
    print_facts({"sample": chain[0], "stands_for_it": chain[1:]}, as_json, _show_why)


@click.command()
@FOLDER
@errors
def report(folder: Path) -> None:
    """Write DIR/report.html and DIR/report.json, and print the page's path.

    Example: tamis report runs/first
    """
    from tamis.reports.report import write_report

    click.echo(write_report(folder))


def _show_why(facts: Mapping[str, Any]) -> str:
    lines = []
    for depth, item in enumerate([facts["sample"], *facts["stands_for_it"]]):
        score = "" if item["score"] is None else f" (score {item['score']:.4f})"
        lines.append(
            f"{'  ' * depth}{item['sample_id']} (row {item['row']}): {item['decision'].replace('_', ' ')} in "
            f"{item['stage']}: {item['reason']}{score}"
        )
        if item["decision"] == "kept":
            known = [
                f"{key} {item[key]:g}" if isinstance(item[key], float) else f"{key} {item[key]}"
                for key in ("rank", "weight", "gain", "cluster", "difficulty")
                if item.get(key) is not None
            ]
            lines.append(f"{'  ' * depth}  {', '.join(known)}")
    return "\n".join(lines)

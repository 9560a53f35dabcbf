"""Verbs that look at what a run has done: why, leaks, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tamis.cli.common import DATA, FOLDER, JSON, check_data, errors, print_facts, shown_text, visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tamis.manifests.reader import Manifest

_TEXT_WIDTH = 400
_SHOWN = 20


@click.command()
@click.argument("sample_id", metavar="ID", required=False)
@click.option(
    "--run",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    help="A run folder, a manifest folder, or a version of one.",
)
@click.option("--row", type=click.IntRange(0), metavar="N", help="Row N of the dataset, from 0, instead of an ID.")
@click.option("--text", "with_text", is_flag=True, help="Show the text of each row, from the dataset.")
@DATA
@JSON
@errors
def why(
    sample_id: str | None, folder: Path, row: int | None, with_text: bool, data: Path | None, as_json: bool
) -> None:
    """Say what became of the row with ID, in which stage, why, and which row stands for it.

    Where no kept row does, it names the kept row whose vector is nearest, if the run's folder still holds the vectors.

    Example: tamis why t00042 --run runs/first --text
    """
    from tamis.manifests.reader import open_manifest

    if (sample_id is None) == (row is None):
        raise click.UsageError("give an ID or --row N, one of the two")
    check_data(data, with_text)
    manifest = open_manifest(folder)
    sample = manifest.explain(str(sample_id)) if row is None else manifest.explain_row(row)
    chain = [sample]
    while chain[-1]["kept_row"] is not None:
        chain.append(manifest.explain_row(chain[-1]["kept_row"]))
    near, note = (None, None) if chain[-1]["decision"] == "kept" else _nearest(manifest, sample["row"])
    if with_text:
        from tamis.pipelines.dataset import read_texts

        shown = chain if near is None else [*chain, near]
        for item, text in zip(shown, read_texts(manifest, [item["row"] for item in shown], data), strict=True):
            item["text"] = text
    facts = {"sample": sample, "stands_for_it": chain[1:], "nearest_kept": near, "note": note}
    print_facts(facts, as_json, _show_why)


def _nearest(manifest: Manifest, row: int) -> tuple[dict[str, Any] | None, str | None]:
    """The kept row that is nearest to a row, explained, with its cosine; or why none is named."""
    from tamis.errors import TamisError
    from tamis.pipelines.finished import finished_of, readable
    from tamis.reports.nearest import nearest_kept

    try:
        with readable():
            found = nearest_kept(finished_of(manifest), row, manifest.select["row"].to_numpy())
    except TamisError as error:  # a working folder is no part of the manifest, and may be gone
        return None, f"no nearest kept row: {error}"
    if found is None:
        return None, "no nearest kept row: the run's folder has no vector of this row"
    return {**manifest.explain_row(found["row"]), **found}, None


@click.command()
@FOLDER
@click.option("--out", type=click.Path(path_type=Path), help="Write all matches there, as Parquet.")
@JSON
@errors
def leaks(folder: Path, out: Path | None, as_json: bool) -> None:
    """List the rows of the run in DIR that are in its reference sets (dedup: against), or near to one of their rows.

    Example: tamis leaks runs/first --out leaks.parquet
    """
    from tamis.reports.leaks import leaks as find
    from tamis.reports.leaks import one_each

    found = find(folder)
    if out is not None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from tamis.manifests.atomic import write_atomic

        sink = pa.BufferOutputStream()
        pq.write_table(found, sink)
        write_atomic(out, sink.getvalue())
    nearest = one_each(found)
    facts = {
        "rows": nearest.num_rows,
        "kept": nearest["decision"].to_pylist().count("kept"),
        "matches": found.num_rows,
        "out": None if out is None else str(out),
        "leaks": (found if as_json else nearest.slice(0, _SHOWN)).to_pylist(),
    }
    print_facts(facts, as_json, _show_leaks)


@click.command()
@FOLDER
@errors
def report(folder: Path) -> None:
    """Write DIR/report.html and DIR/report.json, and print the page's path.

    Example: tamis report runs/first
    """
    from tamis.reports.report import write_report

    click.echo(write_report(folder))


def _show_leaks(facts: Mapping[str, Any]) -> str:
    lines = [
        f"{visible(item['sample_id'])} (row {item['row']}, {item['decision'].replace('_', ' ')}): "
        f"{'same content as' if item['exact'] else 'cosine {:.4f} to'.format(item['cosine'])} "
        f"{visible(item['reference'])} row {item['reference_row']}"
        f"{', and {:,} more'.format(item['listed'] - 1) if item['listed'] > 1 else ''}"
        for item in facts["leaks"]
    ]
    if len(lines) < facts["rows"]:
        lines.append(f"... and {facts['rows'] - len(lines):,} rows more; --out FILE writes all")
    lines.append(
        f"{facts['rows']:,} rows leak, {facts['kept']:,} of them are kept; {facts['matches']:,} matches are listed"
    )
    if facts["kept"]:
        lines.append("to drop what leaks: --set dedup.against_action=drop with tamis run; nothing is compared anew")
    return "\n".join(lines)


def _show_why(facts: Mapping[str, Any]) -> str:
    lines = []
    for depth, item in enumerate([facts["sample"], *facts["stands_for_it"]]):
        lines += [f"{'  ' * depth}{line}" for line in _show_fate(item)]
    near = facts["nearest_kept"]
    if near is not None:
        lines.append(f"nearest kept row, cosine {near['cosine']:.4f} in {near['embeddings']}:")
        lines += [f"  {line}" for line in _show_fate(near)]
    if facts["note"] is not None:
        lines.append(facts["note"])
    return "\n".join(lines)


def _show_fate(item: Mapping[str, Any]) -> list[str]:
    score = "" if item["score"] is None else f" (score {item['score']:.4f})"
    where = "" if item["decision"] == "kept" else f" in {item['stage']}"
    reason = "" if item["reason"] == item["decision"] == "kept" else f": {item['reason']}"
    lines = [
        f"{visible(item['sample_id'])} (row {item['row']}): {item['decision'].replace('_', ' ')}{where}{reason}{score}"
    ]
    if item["decision"] == "kept":
        known = [
            f"{key} {item[key]:g}" if isinstance(item[key], float) else f"{key} {item[key]}"
            for key in ("rank", "weight", "gain", "cluster", "difficulty")
            if item.get(key) is not None
        ]
        lines.append(f"  {', '.join(known)}")
    if "text" in item:
        lines.append(f"  {shown_text(item['text'], _TEXT_WIDTH)}")
    return lines

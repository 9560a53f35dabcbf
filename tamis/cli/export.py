"""The verb that writes what a manifest kept."""

from __future__ import annotations

from pathlib import Path

import click

from tamis.cli.common import FOLDER, errors


@click.command()
@FOLDER
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Choice(["parquet", "jsonl", "ids", "hf"]),
    help="What to write.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where; must not exist.")
@click.option("--data", type=click.Path(path_type=Path), help="The dataset, if it lies elsewhere than at the run.")
@errors
def export(folder: Path, target: str, out: Path, data: Path | None) -> None:
    """Write the rows that the manifest in DIR kept, with their weights, as a dataset or a list of ids.

    Example: tamis export runs/first --to parquet --out subset.parquet
    """
    from tamis.manifests.export import export as write
    from tamis.manifests.reader import open_manifest
    from tamis.pipelines.dataset import open_dataset
    from tamis.pipelines.sources import take_rows

    manifest = open_manifest(folder)
    sources = () if target == "ids" else open_dataset(manifest, folder, data)
    click.echo(write(manifest, lambda rows: take_rows(sources, rows), target, out))

"""The verbs that exchange subsets with other tools: export, import."""

from __future__ import annotations

from pathlib import Path

import click

from tamis.cli.common import FOLDER, errors
from tamis.exports import FORMATS, SHARDED


@click.command()
@FOLDER
@click.option("--to", "target", required=True, type=click.Choice(FORMATS), help="What to write.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where; must not exist.")
@click.option("--data", type=click.Path(path_type=Path), help="The dataset, if it lies elsewhere than at the run.")
@click.option(
    "--shard-mb", type=click.IntRange(1, 4095), help="Size of a shard of mds or webdataset in MiB; default: 64."
)
@click.option(
    "--croissant",
    is_flag=True,
    help="Describe parquet or jsonl in OUT.croissant.json, and hf in its croissant.json: files, sha256, columns.",
)
@errors
def export(folder: Path, target: str, out: Path, data: Path | None, shard_mb: int | None, croissant: bool) -> None:
    """Write the rows that the manifest in DIR kept, with their weights, in rank order; or a list of which these are.

    \b
    parquet, jsonl   one file: the dataset's columns, tamis_id, tamis_weight, tamis_rank
    hf               a folder for datasets.load_from_disk
    mds              a folder of MosaicML's shards for streaming.StreamingDataset
    webdataset       a folder of tar shards: by role .txt, .jpg, .cls, .npy; the rest in .json
    ids              a text file, one sample id a line
    npy              sorted 128-bit uids as DataComp has them: the ids, or else content hashes

    Example: tamis export runs/first --to parquet --out subset.parquet
    """  # noqa: D301
    from functools import partial

    from tamis.errors import RecipeError
    from tamis.exports import LISTS
    from tamis.exports.export import SHARD_BYTES
    from tamis.exports.export import export as write
    from tamis.manifests.reader import open_manifest
    from tamis.pipelines.dataset import open_dataset
    from tamis.pipelines.signals import stoppable
    from tamis.pipelines.sources import stream_rows

    if shard_mb is not None and target not in SHARDED:
        raise RecipeError(f"--shard-mb is for {' and '.join(SHARDED)}; {target} has no shards: leave it out")
    shard_bytes = SHARD_BYTES if shard_mb is None else shard_mb << 20
    manifest = open_manifest(folder)
    sources = () if target in LISTS else open_dataset(manifest, folder, data)
    with stoppable():
        note = write(manifest, partial(stream_rows, sources), target, out, shard_bytes=shard_bytes, describe=croissant)
    if note is not None:
        click.echo(note, err=True)
    click.echo(out)

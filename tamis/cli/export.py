"""The verbs that exchange subsets with other tools: export, import."""

from __future__ import annotations

from pathlib import Path

import click

from tamis.cli.common import DATA, FOLDER, JSON, SET, errors
from tamis.exports import FORMATS, SHARDED


@click.command()
@FOLDER
@click.option("--to", "target", required=True, type=click.Choice(FORMATS), help="What to write.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where; must not exist.")
@DATA
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
    sources = () if target in LISTS else open_dataset(manifest, data)
    with stoppable():
        note = write(manifest, partial(stream_rows, sources), target, out, shard_bytes=shard_bytes, describe=croissant)
    if note is not None:
        click.echo(note, err=True)
    click.echo(out)


@click.command(name="import")
@click.argument("listed", metavar="LIST", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="The dataset that the list is of: a file, a glob or a folder.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's folder; made if missing.")
@click.option("--id", "id_", help="The dataset's column of ids; without one the content hash is the id.")
@click.option("--text", help="Its column of texts.")
@click.option("--image", help="Its column of images.")
@click.option("--tokens", help="Its column of token blocks.")
@click.option("--vectors", help="Its column of vectors.")
@click.option("--label", help="Its column of labels.")
@click.option("--column", default="auto", show_default=True, help="The list's column of ids, if it is a table.")
@click.option(
    "--missing",
    type=click.Choice(["refuse", "ignore"]),
    default="refuse",
    show_default=True,
    help="What to do about ids that the dataset lacks.",
)
@SET
@JSON
@errors
def import_list(
    listed: Path,
    data: str,
    out: Path,
    id_: str | None,
    column: str,
    missing: str,
    overrides: tuple[str, ...],
    as_json: bool,
    **roles: str | None,
) -> None:
    """Commit a manifest of the rows that LIST names: ids as text or in a table, or DataComp's .npy of uids.

    It runs a recipe with the one stage {kind: pick, ids: LIST}; put that into a recipe of your own to go on from it.

    Example: tamis import subset.npy --data images.parquet --id uid --text caption --out runs/theirs
    """
    import re

    from tamis.cli.run import print_run
    from tamis.pipelines.run import run

    columns = {role: name for role, name in {"id": id_, **roles}.items() if name is not None}
    recipe = {
        "name": re.sub(r"[^A-Za-z0-9._-]", "-", listed.stem).lstrip("._-")[:100] or "import",
        "dataset": {"path": data, **columns},
        "stages": [{"kind": "pick", "ids": str(listed), "column": column, "missing": missing}],
    }
    result = run(recipe, out, executor="sync", overrides=overrides)
    print_run(result, as_json)

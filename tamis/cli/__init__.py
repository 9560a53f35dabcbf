"""The command line. Results go to standard output, progress and errors to standard error."""

from __future__ import annotations

import click

from tamis import __version__
from tamis.cli.compare import compare
from tamis.cli.dedup import dedup_threshold
from tamis.cli.diff import diff
from tamis.cli.export import export, import_list
from tamis.cli.look import leaks, report, why
from tamis.cli.run import plan, run, status, validate
from tamis.cli.start import init, recipes
from tamis.cli.train import pack, train


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tamis")
def main() -> None:
    """Sift a training set down to the part worth training on.

    \b
    tamis init train.parquet                  look at a dataset and write a first recipe
    tamis run recipe.yaml --out runs/first    embed, deduplicate, score, select, commit a manifest
    tamis why ID --run runs/first             why a row was kept or dropped
    tamis diff runs/first runs/second         what two subsets share, and why the rest differs
    tamis export runs/first --to parquet --out subset.parquet
    tamis train runs/first                    train on the subset
    tamis compare runs/first                  is it better than random rows?
    """  # noqa: D301


for verb in (
    init,
    recipes,
    validate,
    plan,
    run,
    status,
    report,
    why,
    leaks,
    diff,
    dedup_threshold,
    export,
    import_list,
    pack,
    train,
    compare,
):
    main.add_command(verb)

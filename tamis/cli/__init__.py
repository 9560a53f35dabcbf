"""The command line. Results go to standard output, progress and errors to standard error."""

from __future__ import annotations

import click

from tamis import __version__
from tamis.cli.advise import advise
from tamis.cli.compare import compare
from tamis.cli.dedup import dedup_threshold
from tamis.cli.diff import diff
from tamis.cli.export import export, import_list
from tamis.cli.look import leaks, report, why
from tamis.cli.run import plan, run, status, validate
from tamis.cli.start import init, recipes
from tamis.cli.train import pack, train


class _Workflow(click.Group):
    """Lists its verbs in the order in which one needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)


@click.group(cls=_Workflow, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tamis")
def main() -> None:
    """Sift a training set down to the part worth training on.

    \b
    tamis init train.parquet                  look at a dataset and write a first recipe
    tamis advise train.parquet --budget 0.1   try recipes on it, and recommend one
    tamis run recipe.yaml --out runs/first    embed, deduplicate, score, select, commit a manifest
    tamis report runs/first                   what was kept, what was dropped and why, as a page
    tamis compare runs/first                  is it better than random rows?
    tamis export runs/first --to parquet --out subset.parquet

    Each verb has --help with an example.
    """  # noqa: D301


for _verb, _what in (
    (init, "Look at a dataset and write a first recipe."),
    (advise, "Try recipes, and recommend one."),
    (recipes, "List the shipped recipes, or explain every key."),
    (validate, "Check a recipe and its dataset's columns."),
    (plan, "What a run would do, and what it would take."),
    (run, "Run a recipe and commit a subset manifest."),
    (status, "How far a run is, and what it has committed."),
    (report, "Write the report, an HTML page."),
    (why, "What became of a row, and why."),
    (leaks, "Rows that are in a reference set."),
    (dedup_threshold, "How many another eps would drop."),
    (diff, "What subsets share, and why the rest differs."),
    (compare, "Is the subset better than random rows?"),
    (export, "Write the kept rows for other tools."),
    (import_list, "Make a manifest of a list of ids."),
    (pack, "Cut texts into blocks of tokens."),
    (train, "Train the bundled model on a subset."),
):
    _verb.short_help = _what
    main.add_command(_verb)

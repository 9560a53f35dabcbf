"""The verb that compares subsets by training: compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tamis.cli.common import DATA, DEVICE, JSON, TEST, THREADS, errors, print_facts

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command()
@click.argument("manifests", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@TEST
@click.option(
    "--hold-out",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Without --test: the share of the dataset that is in no training, and measured on.",
)
@click.option(
    "--budget",
    type=click.Choice(["seen", "epochs", "both"]),
    default="seen",
    show_default=True,
    help="Equal samples seen, of full data in fewer epochs; or equal epochs, each training through its own rows; or "
    "both.",
)
@click.option(
    "--seeds",
    type=click.IntRange(2),
    default=5,
    show_default=True,
    help="Trainings of each; fewer than 3 say nothing.",
)
@click.option("--epochs", type=click.IntRange(1), help="Epochs; default: the first recipe's.")
@click.option(
    "--samples",
    type=click.IntRange(1),
    help="Samples that a training sees at --budget seen; default: epochs times the largest subset.",
)
@click.option(
    "--as-recipe",
    is_flag=True,
    help="Train on each subset with its recipe's sampler and weights, too.",
)
@DATA
@DEVICE
@THREADS
@click.option("--out", type=click.Path(path_type=Path), help="A file for the result; default: the first DIR's.")
@click.option("--plot", type=click.Path(path_type=Path), help="An SVG file for a picture of the result.")
@JSON
@errors
def compare(
    manifests: tuple[Path, ...],
    test: Path | None,
    hold_out: float,
    budget: str,
    seeds: int,
    epochs: int | None,
    samples: int | None,
    as_recipe: bool,
    data: Path | None,
    device: str,
    threads: int | None,
    out: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Train on full data, on random rows and on the subsets in DIR...; say which are better than random.

    Each DIR is a run folder, a manifest folder or a version's record, all of one dataset. Finished trainings are kept
    in the first one: the same command goes on after a stop, and more seeds train only these.

    Example: tamis compare runs/first runs/second --test test.parquet --seeds 10
    """
    from tamis.errors import RecipeError
    from tamis.manifests.atomic import write_atomic
    from tamis.progress import ComparisonProgress
    from tamis.reports.plots import draw_comparison
    from tamis.training.compare import check_target
    from tamis.training.compare import compare as compare_subsets

    if plot is not None:
        if plot.suffix != ".svg":
            raise RecipeError(f"the picture {plot} is to be an SVG file; give a name that ends in .svg")
        check_target(plot)
    with ComparisonProgress() as progress:
        facts = compare_subsets(
            manifests,
            test=test,
            share=hold_out,
            budget=budget,
            seeds=seeds,
            epochs=epochs,
            samples_seen=samples,
            as_recipe=as_recipe,
            data=data,
            device=device,
            threads=threads,
            out=out,
            on_step=progress.on_step,
        )
    if plot is not None:
        write_atomic(plot, draw_comparison(facts))
    print_facts(facts, as_json, show_comparison)


def show_comparison(facts: Mapping[str, Any]) -> str:
    """The table of a comparison with its verdict, as text."""
    accuracy = facts["measure"] == "accuracy"
    width = max(30, *(len(result["name"]) for result in facts["results"]))
    lines = [f"{'trained on':<{width}} {'rows':>9} {'samples':>11} {facts['measure']:>10} {'95 % interval':>15}"]
    for result in facts["results"]:
        shown = f"{100 * result['mean']:.2f} %" if accuracy else f"{result['mean']:.4f}"
        half = result["ci95"]
        interval = "" if half is None else f"± {100 * half:.2f}" if accuracy else f"± {half:.4f}"
        lines.append(
            f"{result['name']:<{width}} {result['size']:>9,} {result['samples_seen']:>11,} {shown:>10} {interval:>15}"
        )
    return "\n".join([facts["note"], *lines, *facts["verdict"], *(each["line"] for each in facts["break_even"])])

"""The demo: select a tenth of the crowd-labelled tweets, and see what training on it gives.

Fetches the data and the encoder, runs `data_manifests/tweets.yaml`, trains the bundled classifier on all rows,
on random rows and on the selected ones at an equal number of samples seen, and writes the report. Whatever
comes out is printed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import fetch

import tamis
from tamis.cli.common import short_path
from tamis.cli.compare import show_comparison
from tamis.cli.run import print_run
from tamis.errors import TamisError
from tamis.progress import ComparisonProgress, Progress
from tamis.reports.report import write_report

RECIPE = Path(__file__).resolve().parent / "tweets.yaml"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), help="The run's folder.")
@click.option("--workers", type=click.IntRange(1), help="Worker processes; default: the usable cores.")
def main(out: Path, workers: int | None) -> None:
    """Run the demo."""
    _, test = fetch.tweets()
    fetch.minilm()
    started = time.perf_counter()
    try:
        with Progress() as progress:
            run = tamis.run(RECIPE, out, workers=workers, on_event=progress.on_event)
        with ComparisonProgress() as progress:
            comparison = tamis.compare(
                [out],
                test=test,
                stratified=False,
                as_recipe=True,
                note="The test labels are the crowd's, wrong ones included.",
                on_step=progress.on_step,
            )
    except TamisError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("demo: stopped; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    report = write_report(out)
    print()
    print_run(run, as_json=False)
    print()
    print(f"Training at equal budget. {show_comparison(comparison)}")
    print()
    print(f"subset    {run.open_manifest().select.num_rows:,} rows")
    print(f"manifest  {short_path(run.record)}")
    print(f"{time.perf_counter() - started:.0f} s in all")
    print(f"report    {report}")


if __name__ == "__main__":
    main()

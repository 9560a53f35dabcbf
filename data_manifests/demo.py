"""The demo: select a tenth of the crowd-labelled tweets, and see what training on it gives.

Fetches the data and the encoder, runs `data_manifests/tweets.yaml`, trains the bundled classifier on all rows,
on random rows and on the selected ones at an equal number of samples seen, and writes the report. Whatever
comes out is printed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click
import fetch
import numpy as np
import pyarrow.parquet as pq

import tamis
from tamis.cli.common import short_path
from tamis.cli.run import show_run
from tamis.errors import TamisError
from tamis.progress import Progress
from tamis.reports.report import COMPARISON, write_report
from tamis.training.compare import compare, verdict
from tamis.training.text import Texts
from tamis.training.trainer import TrainConfig, planned

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "tweets.yaml"
SEEDS = (1, 2, 3, 4, 5)
ONLINE = "selected, SeTa, LinUpper"
WEIGHTED = "the same, manifest's weights"


def train_all(run: tamis.Run, train_path: Path, test_path: Path) -> dict[str, object]:
    """Train on full, random and selected data at equal budget; random rows are drawn anew for each seed."""
    manifest = run.open_manifest()
    table, held_out = pq.read_table(train_path), pq.read_table(test_path)
    classes = manifest.record["classes"]
    texts, test = (
        Texts.of(part["text"].to_pylist(), codes(part["label"].to_pylist(), classes)) for part in (table, held_out)
    )
    selected = manifest.select["row"].to_numpy()
    online = planned(manifest)
    plain = TrainConfig(epochs=1, batch_size=online.batch_size, lr=online.lr)
    subsets = {
        "full": np.arange(len(texts)),
        "random": lambda seed: np.random.default_rng([20260101, seed]).permutation(len(texts))[: len(selected)],
        "selected": selected,
        ONLINE: selected,
        WEIGHTED: selected,
    }
    total = online.epochs * len(selected)
    started = time.perf_counter()

    def show(name: str, seed: int, accuracy: float) -> None:
        print(
            f"training: {name}, seed {seed}: accuracy {accuracy:.4f} ({time.perf_counter() - started:.0f} s)",
            file=sys.stderr,
            flush=True,
        )

    results = compare(
        subsets,
        texts,
        {WEIGHTED: manifest.select["weight"].to_numpy()},
        test,
        total_samples=total,
        seeds=SEEDS,
        configs={name: online if name in (ONLINE, WEIGHTED) else plain for name in subsets},
        on_result=show,
    )
    return {
        "note": f"Every training sees {total:,} samples; {len(test):,} held-out tweets, {len(SEEDS)} seeds. "
        "The test labels are the crowd's, wrong ones included.",
        "results": [
            {"name": r.name, "size": r.size, "samples_seen": r.samples_seen, "mean": r.mean, "ci95": r.ci95,
             "accuracies": list(r.accuracies), "seconds": r.seconds}
            for r in results
        ],
        "verdict": verdict(results).splitlines(),
    }  # fmt: skip


def codes(labels: list[str], classes: list[str]) -> np.ndarray:
    """Labels as positions in the classes."""
    position = {name: i for i, name in enumerate(classes)}
    return np.array([position[label] for label in labels], np.int64)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), help="The run's folder.")
@click.option("--workers", type=click.IntRange(1), help="Worker processes; default: the usable cores.")
def main(out: Path, workers: int | None) -> None:
    """Run the demo."""
    train_path, test_path = fetch.tweets()
    fetch.minilm()
    started = time.perf_counter()
    try:
        with Progress() as progress:
            run = tamis.run(RECIPE, out, workers=workers, on_event=progress.on_event)
        comparison = train_all(run, train_path, test_path)
    except TamisError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("demo: stopped; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    (out / COMPARISON).write_text(json.dumps(comparison, indent=1))
    report = write_report(out)
    print()
    print(show_run(run))
    print()
    print(f"Training at equal budget. {comparison['note']}")
    print(f"{'trained on':<30} {'rows':>8} {'accuracy':>10} {'95 % interval':>15}")
    for result in comparison["results"]:
        interval = f"± {100 * result['ci95']:.2f}"
        print(f"{result['name']:<30} {result['size']:>8,} {100 * result['mean']:>8.2f} % {interval:>15}")
    for line in comparison["verdict"]:
        print(line)
    print()
    print(f"subset    {comparison['results'][2]['size']:,} rows")
    print(f"manifest  {short_path(run.record)}")
    print(f"{time.perf_counter() - started:.0f} s in all")
    print(f"report    {report}")


if __name__ == "__main__":
    main()

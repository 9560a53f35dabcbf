"""What does dynamic pruning save on images, and what does it cost in accuracy?

Fashion-MNIST, all 60,000 images, the bundled convolutional network, mixed precision, a learning rate that falls
linearly to 0 over 8 epochs (twice as many bring full training on clean labels from 92.15 to 92.17 %; one seed,
float32); clean, and with a fifth of the training labels replaced by another class. Everything of a seed starts from the
same weights and has the same wrong labels. Accuracy is on the 10,000 test images, labels untouched, after the last
step: nothing is chosen by looking at it.

The arms are in `ARMS`. At equal cost there are two rivals of a dynamic method: "random, as SeTa" trains in each epoch
on a fresh uniform part, "shorter, as SeTa" on everything in fewer steps, the learning rate falling to 0 over them; both
see as many samples as SeTa did with that seed. What is compared was fixed in `COMPARISONS` before the first training.
Paired t-tests over the seeds, corrected by Holm over all comparisons of both kinds of labels.

Finished trainings are kept under .cache/evidence/pruning: a stopped run goes on, and more seeds reuse the rest. Every
training has one thread. How long it takes depends on what else the machine does (the seconds of each are in the
results), so that the samples are the figure that counts; what SeTa and InfoBatch add to the processor time of a sample
is measured in trainings of two epochs, in turn.

    python benchmarks/evidence/pruning.py [--seeds 5] [--epochs 8] [--workers 1] [--quick]
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import sets
import torch
from _beside import ROOT, fetch, measure
from torch import nn

from tamis.training import Images, TrainConfig, fit
from tamis.training.arms import Arm, train_arms
from tamis.training.significance import LEVEL, differences, half_interval, verdict

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from tamis.training.learner import DenseLearner

BATCH, CEILING = 128, 0.1
NOISE = {"clean": 0.0, "20 % wrong": 0.2}
KEEP = ROOT / ".cache" / "evidence" / "pruning"

LINUPPER = {"weights": "linupper", "r": 1.0}  # after an epoch that weighs all alike, as everywhere here
# What an arm changes in the settings; "random, as" and "shorter, as" see as many samples as the arm that they name.
ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "SeTa": {"sampler": "seta"},
    "random, as SeTa": {"sampler": "random"},
    "shorter, as SeTa": {},
    "InfoBatch": {"sampler": "infobatch"},
    "random, as InfoBatch": {"sampler": "random"},
    "shorter, as InfoBatch": {},
    "full, ceiling": {"sampler": "random", "ceiling": CEILING},
    "SeTa, ceiling": {"sampler": "seta", "ceiling": CEILING},
    "InfoBatch, ceiling": {"sampler": "infobatch", "ceiling": CEILING},
    "LinUpper": LINUPPER,
    "SeTa, LinUpper": {"sampler": "seta", **LINUPPER},
    "InfoBatch, LinUpper": {"sampler": "infobatch", **LINUPPER},
}
# Fixed before the first training; each for both kinds of labels.
COMPARISONS = (
    ("SeTa", "full"),
    ("SeTa", "random, as SeTa"),
    ("SeTa", "shorter, as SeTa"),
    ("InfoBatch", "full"),
    ("InfoBatch", "random, as InfoBatch"),
    ("InfoBatch", "shorter, as InfoBatch"),
    ("LinUpper", "full"),
    ("SeTa, LinUpper", "full"),
    ("SeTa, LinUpper", "SeTa"),
    ("InfoBatch, LinUpper", "full"),
    ("InfoBatch, LinUpper", "InfoBatch"),
    ("full, ceiling", "full"),
    ("SeTa, ceiling", "full"),
    ("SeTa, ceiling", "SeTa"),
    ("InfoBatch, ceiling", "full"),
    ("InfoBatch, ceiling", "InfoBatch"),
)


class Pictures(Images):
    """The same network, its parts in an order that takes a core half the time.

    The maximum of rectified values is the rectified maximum, 28 pixels are halved to exactly the 7 that the network's
    average makes, and the order of the channels in memory says nothing.
    """

    def take(self, rows: npt.NDArray[np.int64]) -> Pictures:
        """See `Images`."""
        return Pictures(self.pixels[rows], self.labels[rows], self.classes)

    def learner(self, *given: Any) -> DenseLearner:
        """See `Images`."""
        learner = super().learner(*given)
        conv, relu, pool, wider, _, _, _, flat, *dense = learner.model.layers
        learner.model.layers = nn.Sequential(conv, pool, relu, wider, pool, relu, flat, *dense)
        learner.model.to(memory_format=torch.channels_last)
        return learner


def images() -> tuple[Pictures, Pictures]:
    """The images to train on, and those to test on."""
    found = {name: fetch.read_idx(path) for name, path in fetch.fashion_mnist().items()}
    return tuple(
        Pictures(found[f"{part}-images"][:, None], found[f"{part}-labels"].astype(np.int64))
        for part in ("train", "t10k")
    )


def flipped(labels: npt.NDArray[np.int64], share: float, seed: int) -> npt.NDArray[np.int64]:
    """The labels with a share of them replaced by one of the other classes."""
    # A stream that no sampler draws from: [seed, 1] is that of epoch 1, which would begin with all the wrong labels.
    return sets.flipped(labels, share, np.random.default_rng([seed, 20260403]))


def train_all(labels: str, seed: int, epochs: int, precision: str, rows: int, keep: Path | None) -> dict[str, Any]:
    """All arms for one seed and one kind of labels, in their order: what is "as" another comes after it."""
    data, test = (part.take(np.arange(min(rows, len(part)))) for part in images())
    data = Pictures(data.pixels, flipped(data.labels, NOISE[labels], seed))
    everything = np.arange(len(data))
    plain = TrainConfig(epochs=epochs, batch_size=BATCH, warmup_steps=len(data) // BATCH, precision=precision)
    runs: dict[str, dict[str, float]] = {}
    for name, changes in ARMS.items():
        config, total = replace(plain, **changes), None
        if ", as " in name:
            cost = round(runs[name.split(", as ")[1]]["samples"])
            if name.startswith("random"):
                config = replace(config, prune_ratio=1 - cost / (epochs * len(data)))
            else:
                total = cost
        (found,) = train_arms([Arm(name, everything, config)], data, test, seeds=[seed], total_samples=total, keep=keep)
        runs[name] = {
            "seed": seed,
            "accuracy": found.mean,
            "samples": found.samples_seen,
            "seconds": found.seconds,
        }
        print(f"{labels}: {name} {runs[name]}", file=sys.stderr, flush=True)
    return runs


def summary(runs: list[dict[str, float]], full: list[dict[str, float]]) -> dict[str, Any]:
    """Means over seeds, with the half width of the 95 % interval of the accuracy."""
    accuracies = [run["accuracy"] for run in runs]
    return {
        "runs": runs,
        "accuracy": float(np.mean(accuracies)),
        "half_interval": half_interval(accuracies),
        "saved": 1 - sum(run["samples"] for run in runs) / sum(run["samples"] for run in full),
    }


def sample_times(epochs: int, precision: str, rows: int) -> dict[str, dict[str, float]]:
    """Processor time for a sample by the methods that prune, as a ratio to full training, in turn."""
    data, _ = images()
    data = data.take(np.arange(min(rows, len(data))))
    plain = TrainConfig(epochs=epochs, batch_size=BATCH, precision=precision)

    def trained(name: str) -> measure.Seconds:
        began = time.process_time()
        samples = fit(data, np.ones(len(data), np.float32), None, replace(plain, **ARMS[name])).samples_seen
        return measure.Seconds((time.process_time() - began) / samples)

    methods = ("full", "SeTa", "InfoBatch")
    trained("SeTa")  # what is compiled
    times = measure.alternate({name: partial(trained, name) for name in methods}, repeat=3)
    return {
        name: measure.spread([a / b for a, b in zip(times[name], times["full"], strict=True)]) for name in methods[1:]
    }


def compared(arms: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """All of `COMPARISONS`, for all kinds of labels together; with the verdict in words."""
    values = {
        f"{labels}: {name}": [run["accuracy"] for run in found["runs"]]
        for labels, methods in arms.items()
        for name, found in methods.items()
    }
    pairs = [(labels, *pair) for labels in arms for pair in COMPARISONS]
    tested = differences(values, [(f"{labels}: {ours}", f"{labels}: {theirs}") for labels, ours, theirs in pairs])
    return [
        asdict(named) | {"labels": labels, "verdict": verdict(named)}
        for (labels, ours, theirs), difference in zip(pairs, tested, strict=True)
        for named in [replace(difference, name=ours, against=theirs)]
    ]


def tables(results: dict[str, Any]) -> str:
    """The results as Markdown: a table of the arms for each kind of labels, and one of the comparisons."""
    compared = results["comparisons"]
    times = [f"{name} {100 * found['median']:.0f} %" for name, found in results["sample_times"].items()]
    parts = [
        f"Fashion-MNIST, 60,000 images, the bundled convolutional network, {results['epochs']} epochs, "
        f"{results['precision']}, {results['seeds']} seeds. Accuracy on the 10,000 test images (none of their labels "
        "changed) with its 95 % interval; how many of full training's samples are saved. For a sample "
        f"{' and '.join(times)} of full training's processor time are needed. A ceiling leaves out the "
        f"{100 * results['ceiling']:.0f} % of the highest losses. Random and shorter see as many samples as the method "
        "that they name: random a part of the data in each epoch, shorter all of it in fewer steps.",
    ]
    for labels, arms in sorted(results["labels"].items(), reverse=True):
        lines = [f"| {labels} labels | accuracy | samples saved |", "|---|---:|---:|"]
        lines += [
            f"| {name} | {100 * found['accuracy']:.2f} % ± {100 * found['half_interval']:.2f} "
            f"| {100 * found['saved']:.0f} % |"
            for name, found in sorted(arms.items(), key=lambda item: -item[1]["accuracy"])
        ]
        parts.append("\n".join(lines))
    parts.append(
        "What is compared was fixed before the first training. Paired t-tests over the seeds, corrected by Holm over "
        f"all {len(compared)}, at the level of 5 %."
    )
    lines = ["| labels | trained | against | points | p | by Holm | |", "|---|---|---|---:|---:|---:|---|"]
    lines += [
        f"| {one['labels']} | {one['name']} | {one['against']} | {100 * one['mean']:+.2f} | {one['p']:.2g} "
        f"| {one['corrected']:.2g} | {_word(one)} |"
        for one in compared
    ]
    return "\n\n".join([*parts, "\n".join(lines)])


def _word(comparison: dict[str, Any]) -> str:
    if comparison["corrected"] >= LEVEL:
        return "not distinguishable"
    return "better" if comparison["mean"] > 0 else "worse"


@click.command()
@click.option("--seeds", type=click.IntRange(2), default=5, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=8, show_default=True)
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="bfloat16", show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes of one thread each.")
@click.option("--quick", is_flag=True, help="A smoke run on few images; prints, and writes nothing.")
@click.option("--repeat", type=click.IntRange(1), default=1, hidden=True)
def main(seeds: int, epochs: int, precision: str, workers: int, quick: bool, repeat: int) -> None:  # noqa: ARG001
    """Measure, and write results/evidence_pruning.json."""
    images()  # fetched before several processes would
    rows, keep = 60_000, KEEP
    if quick:
        seeds, epochs, rows, keep = 2, 2, 1280, None
    jobs = [(labels, seed) for seed in range(seeds) for labels in NOISE]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {job: pool.submit(train_all, *job, epochs, precision, rows, keep) for job in jobs}
        done = {job: future.result() for job, future in waiting.items()}
    found: dict[str, dict[str, Any]] = {}
    for labels in NOISE:
        runs = {name: [done[labels, seed][name] for seed in range(seeds)] for name in ARMS}
        found[labels] = {name: summary(runs[name], runs["full"]) for name in ARMS}
    results = {
        "labels": found,
        "comparisons": compared(found),
        "sample_times": sample_times(2, precision, rows),
        "seeds": seeds,
        "epochs": epochs,
        "batch": BATCH,
        "ceiling": CEILING,
        "precision": precision,
    }
    measure.finish("evidence_pruning", results, not quick)


if __name__ == "__main__":
    main()

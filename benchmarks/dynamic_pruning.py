"""What does dynamic pruning save on images, and what does it cost in accuracy?

Fashion-MNIST, the bundled convolutional network, equal epochs: full, SeTa with the settings of the paper in general
and those for CIFAR (as the authors' code runs them), SeTa with LinUpper, InfoBatch, and for both of SeTa's settings
random pruning at equal cost; clean, and with a fifth of the training labels replaced by another class. Every run of a
seed starts from the same weights. Accuracy is on the 10,000 test images, labels untouched; samples seen and wall time
are of the training alone. Means over seeds with 95 % intervals (Student's t); a method is within the full training's
interval if its mean is.

    python benchmarks/dynamic_pruning.py [--seeds 3] [--epochs 8] [--device cpu] [--quick]
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _measure
import click
import numpy as np
import torch

from tamis.training import Images, TrainConfig, fit
from tamis.training.significance import half_interval

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data_manifests"))
import fetch

if TYPE_CHECKING:
    import numpy.typing as npt

BATCH, NOISE, CLASSES = 128, 0.2, 10
# What a method changes in the settings; random sees as many samples as the method that it is named after.
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "SeTa": {"sampler": "seta"},
    "random, as SeTa": {"sampler": "random"},
    "SeTa, LinUpper": {"sampler": "seta", "weights": "linupper", "r": 1.0},
    # ceil(0.9 * 5) groups, as the paper has it, would be all of them; the authors' code trains on round(0.9 * 5) = 4.
    "SeTa for CIFAR": {"sampler": "seta", "num_group": 5, "window_scale": 0.9, "prune_ratio": 0.1, "rule": "code"},
    "random, as SeTa for CIFAR": {"sampler": "random"},
    "InfoBatch": {"sampler": "infobatch"},
}


def images() -> tuple[Images, Images]:
    """The images to train on, and those to test on."""
    found = {name: fetch.read_idx(path) for name, path in fetch.fashion_mnist().items()}
    return tuple(
        Images(found[f"{part}-images"][:, None], found[f"{part}-labels"].astype(np.int64)) for part in ("train", "t10k")
    )


def flipped(labels: npt.NDArray[np.int64], share: float, seed: int) -> npt.NDArray[np.int64]:
    """The labels with a share of them replaced by one of the other classes."""
    rng = np.random.default_rng([seed, 1])
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    wrong = labels.copy()
    wrong[chosen] = (wrong[chosen] + rng.integers(1, CLASSES, len(chosen))) % CLASSES
    return wrong


def train(
    method: str, data: Images, test: Images, epochs: int, seed: int, share: float, device: str, threads: int
) -> dict[str, float]:
    """One training by the reference trainer; `share` is the fraction of the samples that random sees."""
    config = TrainConfig(epochs=epochs, batch_size=BATCH, seed=seed, warmup_steps=len(data) // BATCH)
    config = replace(config, **METHODS[method])
    if config.sampler == "random":
        config = replace(config, prune_ratio=1 - share)
    result = fit(data, np.ones(len(data), np.float32), test, config, device=device, threads=threads)
    return {"accuracy": result.accuracy, "samples": result.samples_seen, "seconds": result.seconds}


def summary(runs: list[dict[str, float]], full: list[dict[str, float]]) -> dict[str, Any]:
    """Means over seeds, with the half width of the 95 % interval of the accuracy."""

    def mean(name: str, of: list[dict[str, float]] = runs) -> float:
        return float(np.mean([run[name] for run in of]))

    accuracies: list[npt.NDArray[np.float64]] = [np.array([run["accuracy"] for run in of]) for of in (runs, full)]
    half, full_half = (half_interval(values) for values in accuracies)
    return {
        "runs": runs,
        "accuracy": mean("accuracy"),
        "half_interval": half,
        "saved": 1 - mean("samples") / mean("samples", full),
        "time": mean("seconds") / mean("seconds", full),
        "within_full": abs(mean("accuracy") - mean("accuracy", full)) <= full_half,
    }


@click.command()
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=8, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--quick", is_flag=True, help="A smoke run on few images; prints, and writes nothing.")
@click.option("--repeat", type=click.IntRange(1), default=1, hidden=True)
def main(seeds: int, epochs: int, device: str, quick: bool, repeat: int) -> None:  # noqa: ARG001
    """Measure, and write results/dynamic_pruning.json."""
    data, test = images()
    threads = len(os.sched_getaffinity(0))
    if quick:
        data, test = (part.take(np.arange(2560)) for part in (data, test))
        seeds, epochs = 2, 3
    found: dict[str, dict[str, Any]] = {}
    for noise in (0.0, NOISE):
        runs: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
        for seed in range(seeds):
            noisy = Images(data.pixels, flipped(data.labels, noise, seed))
            for method in METHODS:
                twin = method.removeprefix("random, as ")
                share = runs[twin][-1]["samples"] / runs["full"][-1]["samples"] if twin != method else 1.0
                runs[method].append(train(method, noisy, test, epochs, seed, share, device, threads))
                print(f"noise {noise} seed {seed} {method}: {runs[method][-1]}", file=sys.stderr, flush=True)
        found["clean" if noise == 0 else f"{NOISE:.0%} flipped"] = {
            method: summary(runs[method], runs["full"]) for method in METHODS
        }
    results = {
        "labels": found,
        "seeds": seeds,
        "epochs": epochs,
        "batch": BATCH,
        "threads": threads,
        "device": _device(device),
    }
    _measure.finish("dynamic_pruning", results, not quick)


def _device(device: str) -> str:
    return device if device == "cpu" else torch.cuda.get_device_name(device)


if __name__ == "__main__":
    main()

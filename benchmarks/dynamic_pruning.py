"""What does dynamic pruning save on images, and what does it cost in accuracy?

Fashion-MNIST, a small convolutional network, equal epochs: full, random (as many samples as SeTa saw), InfoBatch,
SeTa, SeTa with LinUpper, the hardest samples; clean, and with a fifth of the training labels replaced by another class.
Every run of a seed starts from the same weights. Accuracy is on the 10,000 test images, labels untouched; samples seen
and wall time are of the training alone. Means over seeds with 95 % intervals (Student's t); a method is within the full
run's interval if its mean is.

    python benchmarks/dynamic_pruning.py [--seeds 3] [--epochs 10] [--device cpu] [--quick]
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _measure
import click
import numpy as np
import torch
from torch import nn

import tamis
from tamis.selectors import dynamic
from tamis.training import PlanSampler
from tamis.training.compare import half_interval

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data_manifests"))
import fetch

if TYPE_CHECKING:
    import numpy.typing as npt

BATCH, NOISE, CLASSES = 128, 0.2, 10
METHODS = ("full", "seta", "seta_linupper", "infobatch", "hard", "random")  # random needs to know what SeTa saw


class SmallCNN(nn.Sequential):
    """Two convolutions and two linear layers, 206,922 parameters."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, CLASSES),
        )  # fmt: skip


def images(device: str) -> dict[str, torch.Tensor]:
    """The four arrays: pixels scaled to mean 0 and variance 1, labels int64."""
    files = fetch.fashion_mnist()
    found = {name: torch.from_numpy(fetch.read_idx(path).copy()) for name, path in files.items()}
    pixels = {
        name: (found[name].float().unsqueeze(1) / 255 - 0.2860) / 0.3530 for name in ("train-images", "t10k-images")
    }
    labels = {name: found[name].long() for name in ("train-labels", "t10k-labels")}
    return {name: array.to(device) for name, array in (pixels | labels).items()}


def flipped(labels: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """The labels with a share of them replaced by one of the other classes."""
    rng = np.random.default_rng([seed, 1])
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    wrong = labels.clone()
    shift = torch.from_numpy(rng.integers(1, CLASSES, len(chosen))).to(labels)
    wrong[chosen] = (wrong[chosen] + shift) % CLASSES
    return wrong


def sampler_of(method: str, n: int, epochs: int, seed: int, share: float) -> PlanSampler:
    """A method's sampler; `share` is the fraction of the samples that random sees."""
    options: dict[str, Any] = {"seed": seed, "epoch_size": "pruned"}
    if method == "seta":
        return tamis.SeTaSampler(n, epochs=epochs, **options)
    if method == "seta_linupper":
        return tamis.SeTaSampler(n, epochs=epochs, strategy="linupper", r=1.0, warmup_steps=n // BATCH, **options)
    if method == "infobatch":
        return tamis.InfoBatchSampler(n, epochs=epochs, **options)
    if method == "hard":
        return PlanSampler(n, partial(dynamic.hard_first, epochs=epochs, prune_ratio=0.4), **options)
    return PlanSampler(n, partial(dynamic.random, prune_ratio=1 - share if method == "random" else 0.0), **options)


def train(
    method: str, data: dict[str, torch.Tensor], labels: torch.Tensor, epochs: int, seed: int, share: float, device: str
) -> dict[str, float]:
    """One training; the learning rate falls in a straight line over the epochs' parts that are done."""
    pixels = data["train-images"]
    n = len(pixels)
    torch.manual_seed(seed)
    model = SmallCNN().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    sampler = sampler_of(method, n, epochs, seed, share)
    seen = 0
    began = time.perf_counter()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        order = np.fromiter(sampler, np.int64)
        for start in range(0, len(order), BATCH):
            ids = torch.from_numpy(order[start : start + BATCH])
            there = ids.to(device)
            for group in optimiser.param_groups:
                group["lr"] = 2e-3 * (1 - (epoch + start / len(order)) / epochs)
            losses = nn.functional.cross_entropy(model(pixels[there]), labels[there], reduction="none")
            loss = sampler.step(ids, losses)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            seen += len(ids)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {"accuracy": accuracy(model, data), "samples": seen, "seconds": seconds}


@torch.no_grad()
def accuracy(model: nn.Module, data: dict[str, torch.Tensor]) -> float:
    """On the test images."""
    right = sum(
        int((model(pixels).argmax(1) == labels).sum())
        for pixels, labels in zip(data["t10k-images"].split(1000), data["t10k-labels"].split(1000), strict=True)
    )
    return right / len(data["t10k-labels"])


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
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--quick", is_flag=True, help="A smoke run on few images; prints, and writes nothing.")
@click.option("--repeat", type=click.IntRange(1), default=1, hidden=True)
def main(seeds: int, epochs: int, device: str, quick: bool, repeat: int) -> None:  # noqa: ARG001
    """Measure, and write results/dynamic_pruning.json."""
    data = images(device)
    if quick:
        data = {name: array[:2560] for name, array in data.items()}
        seeds, epochs = 2, 3
    found: dict[str, dict[str, Any]] = {}
    for noise in (0.0, NOISE):
        runs: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
        for seed in range(seeds):
            labels = flipped(data["train-labels"], noise, seed)
            for method in METHODS:
                share = runs["seta"][-1]["samples"] / runs["full"][-1]["samples"] if method == "random" else 1.0
                runs[method].append(train(method, data, labels, epochs, seed, share, device))
                print(f"noise {noise} seed {seed} {method}: {runs[method][-1]}", file=sys.stderr, flush=True)
        found["clean" if noise == 0 else f"{NOISE:.0%} flipped"] = {
            method: summary(runs[method], runs["full"]) for method in METHODS
        }
    results = {"labels": found, "seeds": seeds, "epochs": epochs, "batch": BATCH, "device": _device(device)}
    _measure.finish("dynamic_pruning", results, not quick)


def _device(device: str) -> str:
    return device if device == "cpu" else torch.cuda.get_device_name(device)


if __name__ == "__main__":
    main()

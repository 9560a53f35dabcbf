"""How long does it take to plan an epoch of SeTa, and what does a sampler add to a training step?

Planning, from losses to the order of the epoch: `ours` is `tamis.selectors.dynamic.seta`, with its exact 1-D k-means.
`theirs` takes the steps of the authors' release: scikit-learn's KMeans on one column, then Python lists of 0-d tensors.
`arrays` is the same without the lists, as anyone would write it. All on one thread.

A step: the bundled convolutional network on images of 28 x 28 at batch 128, and what `sampler.step` takes beyond the
plain mean of the losses, on all cores. The state of a sampler is measured for 1,000 and for 10 million samples.

    python benchmarks/dynamic_plans.py [--repeat 3] [--quick]
"""

from __future__ import annotations

import json
import statistics
import time
from typing import TYPE_CHECKING, Any

import _measure
import click
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

SIZES = (3_000_000, 10_000_000)
GROUPS, SCALE, EPOCH = 10, 0.5, 3
BATCH, STEPS = 128, 60


def made_up_losses(n: int) -> npt.NDArray[np.float32]:
    """Losses as of a classifier after some epochs: many small ones, and a long tail."""
    return np.random.default_rng(0).gamma(0.7, 0.8, n).astype(np.float32)


def release(losses: torch.Tensor) -> npt.NDArray[np.int64]:
    """An epoch's samples in their order by the steps of the authors' release (seta.py, commit c8db4eb).

    scikit-learn's KMeans on one column; Python lists of 0-d tensors for the groups, their means and the window; then
    shuffled, and made an array.
    """
    import torch
    from sklearn.cluster import KMeans

    kept = torch.randperm(len(losses))
    fitted = KMeans(n_clusters=GROUPS, random_state=0).fit(losses[kept].unsqueeze(1))
    members: list[list[torch.Tensor]] = [[] for _ in range(GROUPS)]
    values: list[list[torch.Tensor]] = [[] for _ in range(GROUPS)]
    for loss, sample, group in zip(losses[kept], kept, fitted.labels_, strict=True):
        values[group].append(loss)
        members[group].append(sample)
    order = sorted(range(GROUPS), key=lambda group: np.mean(values[group]))
    planned = [sample for group in window(order) for sample in members[group]]
    np.random.default_rng(0).shuffle(planned)
    return np.array(planned)


def tidy(losses: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The same with arrays: scikit-learn's KMeans on one column, and the samples of its labels."""
    from sklearn.cluster import KMeans

    fitted = KMeans(n_clusters=GROUPS, random_state=0).fit(losses.reshape(-1, 1))
    order = np.argsort(fitted.cluster_centers_[:, 0]).tolist()
    planned = np.flatnonzero(np.isin(fitted.labels_, window(order)))
    return np.random.default_rng(0).permutation(planned)


def window(groups: list[int]) -> list[int]:
    """The groups of the epoch, of all in ascending order."""
    width = round(SCALE * GROUPS)
    start = EPOCH % (GROUPS - width + 1)
    return groups[start : start + width]


def planning(n: int, repeat: int) -> dict[str, Any]:
    """All three on n losses."""
    import torch

    from tamis.selectors.dynamic import seta

    losses, seen = made_up_losses(n), np.ones(n, np.int64)
    tensor = torch.from_numpy(losses)
    plans: dict[str, Any] = {}

    def ours() -> None:
        rng = np.random.default_rng(0)
        plans["ours"] = rng.permutation(seta(losses, seen, EPOCH, rng, epochs=12, num_group=GROUPS).indices)

    def arrays() -> None:
        plans["arrays"] = tidy(losses)

    def theirs() -> None:
        plans["theirs"] = release(tensor)

    with _measure.one_thread():
        seta(losses[:10_000], seen[:10_000], EPOCH, np.random.default_rng(0), epochs=12)
        release(tensor[:1000])
        times = _measure.alternate({"ours": ours, "arrays": arrays, "theirs": theirs}, repeat)
    common = np.intersect1d(plans["ours"], plans["theirs"]).size
    return {
        "samples": n,
        "seconds": times,
        "ratio": _measure.ratio(times),
        "ratio_arrays": _measure.ratio({"ours": times["ours"], "theirs": times["arrays"]}),
        "planned": {side: len(plan) for side, plan in plans.items()},
        "in_common": common,
    }


def stepping(steps: int, repeat: int) -> dict[str, Any]:
    """Seconds of a training step of the reference trainer's network, and what the sampler adds to the plain mean."""
    import torch
    from torch import nn

    import tamis
    from tamis.training.image import SmallCNN

    torch.manual_seed(0)
    model = SmallCNN(10, np.array([0.286]), np.array([0.353]))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.002)
    images = torch.randint(0, 256, (BATCH, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(0, 10, (BATCH,))
    sampler = tamis.SeTaSampler(60_000, epochs=12, strategy="linupper")
    reductions = {"sampler": lambda losses: sampler.step(ids, losses), "mean": torch.mean}
    own: dict[str, list[float]] = {name: [] for name in reductions}
    whole: dict[str, list[float]] = {name: [] for name in reductions}
    for step in range(10 + repeat * steps):
        ids = torch.randperm(60_000)[:BATCH]
        for name, reduce in reductions.items():
            began = time.perf_counter()
            losses = nn.functional.cross_entropy(model(images), labels, reduction="none")
            before = time.perf_counter()
            loss = reduce(losses)
            after = time.perf_counter()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step >= 10:
                own[name].append(after - before)
                whole[name].append(time.perf_counter() - began)
    added = statistics.median(own["sampler"]) - statistics.median(own["mean"])
    return {
        "step_seconds": statistics.median(whole["mean"]),
        "sampler_seconds": added,
        "share": added / statistics.median(whole["mean"]),
        "state_bytes": {
            str(n): len(json.dumps(tamis.SeTaSampler(n, epochs=12).state_dict())) for n in (1_000, 10_000_000)
        },
    }


@click.command()
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="A smoke run on few samples; prints, and writes nothing.")
def main(repeat: int, quick: bool) -> None:
    """Measure, and write results/dynamic_plans.json."""
    plans = [planning(n, repeat) for n in ((20_000,) if quick else SIZES)]
    steps = stepping(3 if quick else STEPS, repeat)
    aims = [
        _measure.aim(
            f"SeTa's plan of an epoch from {plan['samples']:,} losses, 10 groups",
            "scikit-learn KMeans and a Python loop over 0-d tensors, as in the authors' release",
            plan["ratio"],
            at_least=200,
        )
        for plan in plans
    ]
    aims.append(
        _measure.aim(
            "what sampler, score table and weights add to a step of the bundled CNN, batch 128, 2 threads",
            "the whole step",
            100 * steps["share"],
            at_most=1,
            unit="%",
        )
    )
    _measure.finish("dynamic_plans", {"plans": plans, "steps": steps, "aims": aims, "repeat": repeat}, not quick)


if __name__ == "__main__":
    main()

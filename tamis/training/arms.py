"""The trainings of a comparison: subsets of the same samples, with the same seeds, measured on the same test."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tamis import __version__
from tamis.errors import NonFiniteLossError, OutputError, RecipeError
from tamis.manifests.atomic import write_atomic
from tamis.manifests.canonical import digest, sealed, unsealed
from tamis.training.learner import digest_of
from tamis.training.significance import half_interval
from tamis.training.trainer import TrainConfig, choose_device, fit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tamis.training.learner import Samples
    from tamis.training.redraws import Redraws

Draw = Callable[[int], "NDArray[np.int64]"]


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """What to train on, and how.

    Attributes:
        name: Of its row in the table.
        rows: int64 [k], positions in the samples; or a function from the seed to them, since a subset that is random
            should be drawn anew for each seed.
        config: How. Its seed and total_samples are set by the comparison; its epochs are those of a training at
            equal epochs.
        weights: float32 [k], in the order of the rows; None weighs them alike.
        against: The names of the arms that it is tested against.
        subset: The manifest that it is of, as its subset_id; None for all rows and for random ones.
        redraws: What the sampler "ingenious" draws from, at positions in the samples; `rows` are its first draw.
    """

    name: str
    rows: NDArray[np.int64] | Draw
    config: TrainConfig
    weights: NDArray[np.float32] | None = None
    against: tuple[str, ...] = ()
    subset: str | None = None
    redraws: Redraws | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """An arm's trainings.

    Attributes:
        name: The arm's.
        size: How many samples it has.
        samples_seen: How many samples a training went through, counting repetitions: the mean over the seeds, which
            differ where a sampler prunes.
        mean: Mean over the seeds of what was measured on the test.
        ci95: Half the width of the mean's 95 % confidence interval (t-distribution); None for a single seed.
        values: What was measured for each seed, in their order: the accuracy, or the loss where samples have no
            labels.
        seconds: Median time of the training steps; the process's first training takes longer.
    """

    name: str
    size: int
    samples_seen: int
    mean: float
    ci95: float | None
    values: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Trained:
    """One training.

    Attributes:
        value: Its accuracy on the test, or its loss where samples have no labels.
        samples_seen: How many samples it went through.
        seconds: Time of its steps.
    """

    value: float
    samples_seen: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Step:
    """Where a comparison is.

    Attributes:
        name: The arm's.
        seed: Of the training.
        trained: What came of it; None where it begins now.
        kept: Whether it was there already.
        done: How many trainings are finished.
        total: Of how many.
    """

    name: str
    seed: int
    trained: Trained | None
    kept: bool
    done: int
    total: int


OnStep = Callable[[Step], None]


def train_arms(
    arms: Sequence[Arm],
    samples: Samples,
    test: Samples,
    *,
    seeds: Sequence[int],
    total_samples: int | None = None,
    device: str = "cpu",
    threads: int = 1,
    keep: Path | None = None,
    on_step: OnStep | None = None,
) -> list[Result]:
    """Trains each arm with each seed, and measures it on the test.

    Args:
        arms: In the order of the results.
        samples: Those that the arms' rows are positions in.
        test: Samples of the same kind to measure on.
        seeds: The same for every arm, so that the values are paired.
        total_samples: The budget of a training, the same for all: a quarter of the data is gone through four times
            as often. None lets each arm go through its own rows as often as its config says.
        device: As for `tamis.training.fit`.
        threads: CPU threads of a training.
        keep: A folder that holds finished trainings, and takes those that finish now; made if missing.
        on_step: Called before each training that is not there yet, and after each.

    Returns:
        One result an arm.

    Raises:
        RecipeError: There is no seed or no arm, a seed or a name is there twice, or as `fit`.
        DataError: As `fit`.
        NonFiniteLossError: A loss became NaN or infinite.
        OutputError: `keep` cannot be written.
    """
    names = [arm.name for arm in arms]
    if not arms or not seeds or len(set(seeds)) < len(seeds) or len(set(names)) < len(names):
        raise RecipeError(
            f"subsets {names} and seeds {list(seeds)} were given; at least one of each, none of them twice"
        )
    common = {"samples": samples.digest(), "test": test.digest(), "tamis": __version__}
    common["device"] = choose_device(device).type
    tell = on_step or (lambda _: None)
    plan = [(arm, seed) for arm in arms for seed in seeds]
    trained: list[tuple[int, Trained]] = []
    for done, (arm, seed) in enumerate(plan):
        rows = arm.rows(seed) if callable(arm.rows) else arm.rows
        weights = np.ones(len(rows), dtype=np.float32) if arm.weights is None else arm.weights
        config = _budgeted(arm.config, len(rows), total_samples, seed)
        content = {"config": asdict(config), "rows": digest_of(rows), "weights": digest_of(weights)}
        if arm.redraws is not None:
            content["redraws"] = [arm.redraws.digest(), digest_of(arm.redraws.rows)]
        path = None if keep is None else keep / f"{digest({**common, **content})}.json"
        one = None if path is None else _kept(path)
        kept = one is not None
        if one is None:
            tell(Step(arm.name, seed, None, kept, done, len(plan)))
            one = _train(arm, rows, samples, weights, test, config, device, threads)
            if path is not None:
                _keep(path, one, {"name": arm.name, "seed": seed, "rows": len(rows)})
        trained.append((len(rows), one))
        tell(Step(arm.name, seed, one, kept, done + 1, len(plan)))
    parts = [trained[start : start + len(seeds)] for start in range(0, len(plan), len(seeds))]
    return [_result(arm.name, part[0][0], [one for _, one in part]) for arm, part in zip(arms, parts, strict=True)]


def _result(name: str, size: int, trained: Sequence[Trained]) -> Result:
    values = tuple(one.value for one in trained)
    return Result(
        name,
        size,
        round(np.mean([one.samples_seen for one in trained])),
        float(np.mean(values)),
        half_interval(values),
        values,
        float(np.median([one.seconds for one in trained])),
    )


def _budgeted(config: TrainConfig, size: int, total_samples: int | None, seed: int) -> TrainConfig:
    """The config of one training on so many rows; its epochs are how often the budget goes through them."""
    if total_samples is None and config.sampler != "full":
        return replace(config, seed=seed)  # so many epochs, of which the sampler leaves out what it does
    total = config.epochs * size if total_samples is None else total_samples
    return replace(config, seed=seed, total_samples=total, epochs=-(-total // max(size, 1)))


def _train(
    arm: Arm,
    rows: NDArray[np.int64],
    samples: Samples,
    weights: NDArray[np.float32],
    test: Samples,
    config: TrainConfig,
    device: str,
    threads: int,
) -> Trained:
    redraws = None
    if arm.redraws is not None:
        rows = arm.redraws.rows
        redraws, weights = arm.redraws.at(np.arange(len(rows))), np.ones(len(rows), np.float32)
    run = fit(samples.take(rows), weights, test, config, redraws=redraws, device=device, threads=threads)
    value = run.loss if run.accuracy is None else run.accuracy
    if not math.isfinite(value):
        raise NonFiniteLossError(
            f"the test's loss is {value} after the training on {arm.name}, seed {config.seed}; lower lr"
        )
    return Trained(value, run.samples_seen, run.seconds)


def _kept(path: Path) -> Trained | None:
    """A training that was finished before; None where it was not, or where the file is not what was written."""
    try:
        return Trained(**unsealed(path.read_bytes())["trained"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, trained: Trained, about: dict[str, str | int]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write to {path.parent}: {error.strerror or error}; mend it, then run again"
        ) from error
    write_atomic(path, sealed({"trained": asdict(trained), **about}))

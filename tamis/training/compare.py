"""Which subset trains best, at equal budget, over seeds, with a verdict in words.

Equal budget means an equal number of samples seen: a quarter of the data is gone through four times as often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tamis.errors import DataError, RecipeError
from tamis.training.trainer import TrainConfig, fit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from tamis.training.learner import Samples

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Result:
    """One subset's trainings.

    Attributes:
        name: The subset's name.
        size: How many samples it has.
        samples_seen: How many samples each training went through, counting repetitions.
        mean: Mean test accuracy over the seeds.
        ci95: Half the width of the mean's 95 % confidence interval (t-distribution); None for a single seed.
        accuracies: Test accuracy of each seed, in the order of the seeds.
        seconds: Mean time of the training steps.
    """

    name: str
    size: int
    samples_seen: int
    mean: float
    ci95: float | None
    accuracies: tuple[float, ...]
    seconds: float


def compare(
    subsets: Mapping[str, NDArray[np.int64] | Callable[[int], NDArray[np.int64]]],
    samples: Samples,
    sample_weights: Mapping[str, NDArray[np.float32]] | None,
    test: Samples,
    *,
    total_samples: int,
    seeds: Sequence[int],
    configs: TrainConfig | Mapping[str, TrainConfig],
    on_result: Callable[[str, int, float], None] | None = None,
) -> list[Result]:
    """Trains on each subset with each seed until `total_samples` samples are seen; measures test accuracy.

    Args:
        subsets: Positions in `samples` by the subset's name, or a function from the seed to them (a subset that
            is random should be drawn anew for each seed).
        samples: All of them, such as `Texts` or `Images`.
        sample_weights: float32 weights in the order of the subset's positions, by name; a subset without an
            entry has weights 1.
        test: Labelled samples to measure on.
        total_samples: The budget, the same for every training.
        seeds: The same for every subset, so that accuracies are paired.
        configs: How to train: one for all, or one for each subset by name. Its seed, total_samples and epochs
            are set here; epochs to how often the budget goes through the subset.
        on_result: Called after each training with name, seed and accuracy.

    Returns:
        One result a subset, in the order given.

    Raises:
        RecipeError: There is no seed or no subset, a seed is there twice, or a subset has no config.
        DataError: As `fit`, or the samples have no labels.
    """
    if test.labels is None:
        raise DataError("accuracies are compared, and these samples have no labels")
    if not subsets or not seeds or len(set(seeds)) < len(seeds):
        raise RecipeError(
            f"{len(subsets)} subsets and seeds {list(seeds)} were given; at least one of each, no seed twice"
        )
    if not isinstance(configs, TrainConfig) and set(subsets) - set(configs):
        raise RecipeError(f"no config for the subsets {sorted(set(subsets) - set(configs))}")
    results = []
    for name, subset in subsets.items():
        base = configs if isinstance(configs, TrainConfig) else configs[name]
        runs = []
        for seed in seeds:
            rows = subset(seed) if callable(subset) else subset
            weights = (sample_weights or {}).get(name, np.ones(len(rows), dtype=np.float32))
            config = replace(base, total_samples=total_samples, epochs=-(-total_samples // max(len(rows), 1)))
            run = fit(samples.take(rows), weights, test, replace(config, seed=seed))
            assert run.accuracy is not None
            runs.append((run.accuracy, run.samples_seen, run.seconds))
            if on_result is not None:
                on_result(name, seed, run.accuracy)
        accuracies = tuple(accuracy for accuracy, _, _ in runs)
        results.append(
            Result(
                name=name,
                size=len(rows),
                samples_seen=runs[0][1],
                mean=float(np.mean(accuracies)),
                ci95=half_interval(accuracies),
                accuracies=accuracies,
                seconds=float(np.mean([seconds for _, _, seconds in runs])),
            )
        )
    return results


def half_interval(values: Sequence[float]) -> float | None:
    """Half the width of a mean's 95 % confidence interval, by the t-distribution; None for a single value."""
    from scipy import stats

    if len(values) < 2:
        return None
    return float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def paired_p(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Two-sided p-value of the paired t-test that two lists of accuracies, seed by seed, have the same mean.

    Equal differences for every seed give 0 (or 1, if they are all zero).
    """
    from scipy import stats

    differences = np.subtract(ours, theirs)
    spread = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    mean = float(np.mean(differences))
    if spread <= 1e-12 * abs(mean):
        return 0.0 if mean else 1.0
    return float(2 * stats.t.sf(abs(mean) / spread, len(differences) - 1))


def verdict(results: Sequence[Result], baseline: str = "random") -> str:
    """Says of each subset whether it is better than the baseline, worse, or not distinguishable from it.

    By a paired t-test over the seeds at the level of 5 %, each subset on its own (not corrected for several
    subsets).

    Args:
        results: As from `compare`, with the same seeds for all.
        baseline: The name of the subset to compare with.

    Returns:
        One line a subset, the baseline left out.

    Raises:
        RecipeError: There is no such baseline, or the numbers of seeds differ.
    """
    base = next((result for result in results if result.name == baseline), None)
    if base is None:
        raise RecipeError(f"no baseline {baseline!r} among {', '.join(result.name for result in results)}")
    return "\n".join(_sentence(result, base) for result in results if result is not base)


def _sentence(result: Result, base: Result) -> str:
    seeds = len(base.accuracies)
    if len(result.accuracies) != seeds:
        raise RecipeError(
            f"{result.name} has {len(result.accuracies)} seeds, {base.name} has {seeds}; they must be the same"
        )
    points = 100 * (result.mean - base.mean)
    if seeds < 2:
        return (
            f"{result.name}: {points:+.2f} points against {base.name} with a single seed, "
            "which says nothing; use at least 3"
        )
    p = paired_p(result.accuracies, base.accuracies)
    facts = f"{points:+.2f} points, p = {p:.2g}, {seeds} seeds"
    if p >= LEVEL:
        return f"{result.name}: not distinguishable from {base.name} ({facts})"
    return f"{result.name}: {'better' if points > 0 else 'worse'} than {base.name} ({facts})"

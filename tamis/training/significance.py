"""What differences between trainings mean: intervals, paired tests, a correction for several of them, and words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tamis.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

LEVEL = 0.05
FEWEST_SEEDS = 3
"""With fewer, a verdict says nothing."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One name's trainings against a baseline's, seed by seed.

    Attributes:
        name: Who.
        against: The baseline.
        mean: Mean of the differences, ours less theirs.
        p: Two-sided p-value of the paired t-test; None for a single seed.
        corrected: The same after Holm's correction over all that were tested together.
        together: How many these were.
        seeds: How many differences.
    """

    name: str
    against: str
    mean: float
    p: float | None
    corrected: float | None
    together: int
    seeds: int


def half_interval(values: npt.ArrayLike, overlap: float = 0.0) -> float | None:
    """Half the width of a mean's 95 % confidence interval, by the t-distribution; None for a single value.

    Args:
        values: One a seed, or one a split.
        overlap: As for `paired_p`.
    """
    from scipy import stats

    found = np.asarray(values, np.float64)
    if len(found) < 2:
        return None
    return float(stats.t.ppf(1 - LEVEL / 2, len(found) - 1) * _error(found, overlap))


def paired_p(ours: npt.ArrayLike, theirs: npt.ArrayLike, overlap: float = 0.0) -> float:
    """Two-sided p-value of the paired t-test that two lists of at least 2 values have the same mean.

    Equal differences for every seed give 0 (or 1, if they are all zero).

    Args:
        ours: One value a seed, or one a split of the same data.
        theirs: Likewise.
        overlap: Where values are of splits that share rows, the rows measured on for each that is trained on: the
            corrected resampled t-test (Nadeau and Bengio, Machine Learning 52, 2003, equation 6).
    """
    from scipy import stats

    differences = np.asarray(np.subtract(ours, theirs), np.float64)
    spread = _error(differences, overlap)
    mean = float(np.mean(differences))
    if spread <= 1e-12 * abs(mean):
        return 0.0 if mean else 1.0
    return float(2 * stats.t.sf(abs(mean) / spread, len(differences) - 1))


def _error(values: npt.NDArray[np.float64], overlap: float) -> float:
    """The standard error of a mean; values of splits that overlap vary too little for it, by what they share."""
    return float(np.std(values, ddof=1)) * math.sqrt(1 / len(values) + overlap)


def holm(p: Sequence[float]) -> list[float]:
    """The p-values of tests made together, corrected so that the chance of any false finding stays below the level.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.

    >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def differences(values: Mapping[str, Sequence[float]], pairs: Sequence[tuple[str, str]]) -> list[Difference]:
    """Tests names against their baselines, and corrects for testing all of them together.

    Args:
        values: Of each name, one a seed, the same seeds in the same order for all.
        pairs: Each a name and its baseline's.

    Returns:
        One a pair.

    Raises:
        RecipeError: There is no such name, or the numbers of seeds differ.
    """
    for pair in pairs:
        for name in pair:
            if name not in values:
                raise RecipeError(f"there is no {name!r} to compare with among {', '.join(values)}")
        ours, theirs = (len(values[name]) for name in pair)
        if ours != theirs:
            raise RecipeError(f"{pair[0]} has {ours} seeds, {pair[1]} has {theirs}; they must be the same")
    tested = [paired_p(values[name], values[baseline]) for name, baseline in pairs if len(values[name]) > 1]
    alone = len(tested) < len(pairs)  # a single seed
    nothing = [None] * len(pairs)
    return [
        Difference(
            name,
            baseline,
            float(np.mean(np.subtract(values[name], values[baseline]))),
            p,
            corrected,
            len(pairs),
            len(values[name]),
        )
        for (name, baseline), p, corrected in zip(
            pairs, nothing if alone else tested, nothing if alone else holm(tested), strict=True
        )
    ]


def verdict(difference: Difference, measure: str = "accuracy") -> str:
    """Says whether it is better than the baseline, worse, or not distinguishable from it, at the level of 5 %.

    Args:
        difference: As from `differences`.
        measure: "accuracy", of which more is better, or "loss", of which less is.
    """
    who, seeds = f"{difference.name}:", f"{difference.seeds} seed{'' if difference.seeds == 1 else 's'}"
    size = f"{100 * difference.mean:+.2f} points" if measure == "accuracy" else f"{difference.mean:+.4f} of loss"
    if difference.p is None or difference.corrected is None or difference.seeds < FEWEST_SEEDS:
        return (
            f"{who} {size} against {difference.against} with {seeds}, which says nothing; use at least {FEWEST_SEEDS}"
        )
    p = f"p = {difference.p:.2g}"
    if difference.together > 1:
        p += f", {difference.corrected:.2g} by Holm over {difference.together}"
    facts = f"({size}, {p}, {seeds})"
    if difference.corrected >= LEVEL:
        return f"{who} not distinguishable from {difference.against} {facts}"
    better = difference.mean > 0 if measure == "accuracy" else difference.mean < 0
    return f"{who} {'better' if better else 'worse'} than {difference.against} {facts}"

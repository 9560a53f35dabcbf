"""What measured gains allow to recommend: a pure function of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tamis.training.significance import LEVEL, half_interval, holm, paired_p

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Gains = Mapping[str, Sequence[float]]

HARM = 0.005
"""A mean loss of accuracy in one family from which on a gain in the mean of all does not count."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a candidate gains over stratified random rows.

    Attributes:
        name: Of the candidate.
        mean: In the mean of families and splits, as a share of right answers.
        low: Of its 95 % interval, by the corrected resampled t-test.
        high: Likewise.
        corrected: Two-sided p-value, after Holm's correction over all candidates.
        families: The mean gain in each family.
        verdict: "clearly better", "clearly worse", "not clearly different", or "uneven": better in the mean of the
            families, and worse in one of them.
    """

    name: str
    mean: float
    low: float
    high: float
    corrected: float
    families: dict[str, float]
    verdict: str


def judge(gains: Mapping[str, Gains], overlap: float) -> list[Judged]:
    """Tell which candidates are clearly better than stratified random rows.

    Splits of one dataset share rows, and so their gains vary less than those on new data would: the corrected
    resampled t-test takes that into account (Nadeau and Bengio, "Inference for the generalization error", Machine
    Learning 52, 2003).

    Args:
        gains: For each candidate and each family one gain a split, at least 2, the same splits for all.
        overlap: Rows measured on for each that is selected from.
    """
    means = {name: np.mean(list(families.values()), axis=0) for name, families in gains.items()}
    corrected = holm([paired_p(values, np.zeros_like(values), overlap) for values in means.values()])
    judged = []
    for (name, values), p in zip(means.items(), corrected, strict=True):
        mean, half = float(values.mean()), half_interval(values, overlap)
        assert half is not None  # at least 2 splits
        if p >= LEVEL:
            verdict = "not clearly different"
        elif mean < 0:
            verdict = "clearly worse"
        else:
            harmed = any(_harms(family, overlap) for family in gains[name].values())
            verdict = "uneven" if harmed else "clearly better"
        families = {family: float(np.mean(found)) for family, found in gains[name].items()}
        judged.append(Judged(name, mean, mean - half, mean + half, p, families, verdict))
    return judged


def best(judged: Sequence[Judged]) -> Judged | None:
    """Of the clearly better ones, the one that gains most at the least; None where there is none."""
    better = [one for one in judged if one.verdict == "clearly better"]
    return max(better, key=lambda one: one.low, default=None)


def _harms(gains: Sequence[float], overlap: float) -> bool:
    mean = float(np.mean(gains))
    return mean < -HARM or (mean < 0 and paired_p(gains, np.zeros(len(gains)), overlap) < LEVEL)

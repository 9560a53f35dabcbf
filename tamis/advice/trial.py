"""The candidates' recipes are run on one part of each split and measured on the other, within a time limit."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.advice.candidates import STRATIFIED, Candidate, stages_of
from tamis.advice.proxies import accuracies
from tamis.advice.splits import splits
from tamis.advice.survey import survey
from tamis.errors import DataError, RecipeError, StoppedError
from tamis.pipelines.run import run
from tamis.pipelines.signals import stoppable
from tamis.selectors.selection import resolve_budget

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from tamis.advice.given import Given
    from tamis.advice.splits import Split
    from tamis.advice.survey import Survey

    Accuracies = dict[str, float]

DRAWS = 5
"""How often stratified random rows are drawn in each split, so that their luck does not decide."""
FEWEST_ROWS = 100
_FEWEST_CHOSEN = 10
FEWEST_SPLITS = 3
"""With fewer, nothing is recommended but random rows."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be spent.

    Attributes:
        seconds: From `began` on.
        splits: The most of them.
        rows: The most that are tried.
        began: When, by the monotonic clock.
    """

    seconds: float
    splits: int
    rows: int
    began: float

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.began + self.seconds - time.monotonic()


@dataclass(frozen=True, slots=True)
class Step:
    """Where the trials are.

    Attributes:
        name: The candidate that is tried now.
        split: From 1.
        done: Trials that are done.
        total: Trials, where the time suffices for all splits.
    """

    name: str
    split: int
    done: int
    total: int


@dataclass(slots=True)
class Measured:
    """What was measured until the time was up; grows split by split.

    Attributes:
        rows: That are tried.
        families: The classifiers.
        splits: For each one that ended, the accuracy of each candidate in each family.
        failed: Why a candidate did not run.
    """

    rows: int
    families: tuple[str, ...]
    splits: list[dict[str, Accuracies]]
    failed: dict[str, str]


def measure(
    given: Given,
    candidates: Sequence[Candidate],
    budget: float,
    limits: Limits,
    seed: int,
    on_step: Callable[[Step], None] | None,
) -> Measured:
    """Try candidates on one split after the other, while the next will end in time by what the last one took.

    Args:
        given: The dataset; its label is known.
        candidates: What to try.
        budget: A fraction of the rows to select from.
        limits: What may be spent.
        seed: Of all draws.
        on_step: Called before each trial.

    Raises:
        DataError: The data cannot be read, or are too few.
        RecipeError: The budget is too small to tell anything.
        StoppedError: By a signal. The temporary folder is removed then, too.
    """
    measured = Measured(0, (), [], {})
    with TemporaryDirectory(prefix="tamis-advise-", ignore_cleanup_errors=True) as name:
        try:
            with stoppable(max(limits.left, 1e-3)) as check:
                _measure(measured, given, candidates, budget, limits, seed, on_step, Path(name), check)
        except StoppedError as error:
            if limits.left > 0:
                said = str(error).partition(";")[0]
                raise StoppedError(f"{said}; nothing is left behind", resumes=False) from error
    return measured


def _measure(
    measured: Measured,
    given: Given,
    candidates: Sequence[Candidate],
    budget: float,
    limits: Limits,
    seed: int,
    on_step: Callable[[Step], None] | None,
    folder: Path,
    check: Callable[[], None],
) -> None:
    found = survey(given.found.sources, given.found.fields, given.embed, limits.rows, seed, folder)
    measured.rows, measured.families = len(found.labels), tuple(found.proxies)
    _check_rows(found, budget)
    took = 0.0
    for split in splits(found.contents, found.labels, limits.splits, seed):
        if took * max(1, FEWEST_SPLITS - split.number) > limits.left:
            break
        began = time.monotonic()

        def before(place: int, candidate: Candidate, number: int = split.number) -> None:
            check()
            if on_step is not None:
                done, total = number * len(candidates) + place, limits.splits * len(candidates)
                on_step(Step(candidate.name, number + 1, done, total))

        place = folder / f"split-{split.number}"
        place.mkdir()
        running = [candidate for candidate in candidates if candidate.name not in measured.failed]
        accuracy, failed = try_all(found, split, running, budget, seed + DRAWS * split.number, place, before)
        shutil.rmtree(place)
        measured.splits.append(accuracy)
        measured.failed |= failed
        took = time.monotonic() - began


def _check_rows(found: Survey, budget: float) -> None:
    """Refuse what nothing can be told of."""
    n, classes = len(found.labels), len(np.unique(found.labels))
    if n < FEWEST_ROWS:
        raise DataError(f"{n} rows can be used; at least {FEWEST_ROWS} are needed to measure anything")
    if classes < 2:
        raise DataError("the rows that can be used are of one class; two are needed to measure anything")
    pool = n - n // 5
    if resolve_budget(budget, pool) < _FEWEST_CHOSEN:
        raise RecipeError(
            f"the budget is {resolve_budget(budget, pool)} of the {pool:,} rows that are selected from, which trains "
            f"nothing: give at least {_FEWEST_CHOSEN / pool:.4f}, or try more rows"
        )


def try_all(
    survey: Survey,
    split: Split,
    candidates: Sequence[Candidate],
    budget: float,
    seed: int,
    place: Path,
    before: Callable[[int, Candidate], None],
) -> tuple[dict[str, Accuracies], dict[str, str]]:
    """Run and measure each candidate on one split.

    Args:
        survey: The rows.
        split: Their two parts.
        candidates: What to try.
        budget: A fraction of the rows to select from.
        seed: Of the recipes.
        place: An empty folder; what the candidates share is made there once.
        before: Called with each candidate and its place before it is tried.

    Returns:
        (The accuracy of each family of proxies for each candidate that ran, why others did not.)
    """
    section, embed = survey.write(split.pool, place)
    measured: dict[str, Accuracies] = {}
    failed: dict[str, str] = {}
    for number, candidate in enumerate(candidates):
        before(number, candidate)
        draws = DRAWS if candidate == STRATIFIED else 1
        stages = stages_of(candidate, embed, budget)
        try:
            kept = [split.pool[_select(section, stages, seed + draw, place)] for draw in range(draws)]
        except (RecipeError, DataError) as error:
            if candidate == STRATIFIED:  # without it there is nothing to measure by
                raise
            failed[candidate.name] = str(error)
            continue
        found = [accuracies(survey.proxies, survey.X, survey.labels, rows, split.test) for rows in kept]
        measured[candidate.name] = {
            family: float(np.mean([each[family] for each in found])) for family in survey.proxies
        }
    return measured, failed


def _select(
    section: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], seed: int, place: Path
) -> npt.NDArray[np.int64]:
    """The rows that a recipe keeps."""
    out = place / "run"
    recipe = {"name": "trial", "seed": seed, "dataset": dict(section), "stages": list(stages)}
    done = run(recipe, out, work=place / "work", executor="sync")
    rows: npt.NDArray[np.int64] = done.open_manifest().select["row"].to_numpy()
    shutil.rmtree(out)
    return rows

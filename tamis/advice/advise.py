"""Which recipe to take for a dataset and a budget: candidates are tried within a time limit, and one is recommended.

In `candidates` is what is tried, in `survey` and `splits` on which rows, in `trial` and `proxies` how it is measured,
and in `decision` what the numbers allow to say.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.advice.candidates import CANDIDATES, RANDOM, STRATIFIED, Candidate, chosen, stages_of
from tamis.advice.decision import Judged, best, judge
from tamis.advice.given import Given, read_given
from tamis.advice.splits import FOLDS, OVERLAP
from tamis.advice.trial import FEWEST_ROWS, FEWEST_SPLITS, Limits, Measured, Step, measure
from tamis.errors import RecipeError
from tamis.pipelines.recipe import is_amount
from tamis.pipelines.starter import check_free, encoder_for, from_folder, recipe_text, write_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tamis.pipelines.guess import Guess

MOST_SPLITS = 2 * FOLDS
TIME_LIMIT = 300.0
ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate, and what was measured.

    Attributes:
        name: Its name.
        about: What it is for.
        accuracy: Mean over the families and the splits; None where nothing was measured.
        gain: What it gains over stratified random rows; None where that was not tested.
        verdict: In words.
    """

    name: str
    about: str
    accuracy: float | None
    gain: Judged | None
    verdict: str


@dataclass(frozen=True, slots=True)
class Advice:
    """What to take.

    Attributes:
        recommended: Name of the candidate.
        sentence: The recommendation, with its reason.
        notes: What it is based on, and what it does not say.
        tried: The candidates.
        stages: The recommended recipe's.
        budget: As it was given.
        rows: Of the dataset.
        rows_tried: Of the sample that was tried on.
        splits: That ended in time.
        families: The classifiers that measured.
        seconds: That it took.
        why: How the columns were understood.
        recipe: The recipe that was written.
    """

    recommended: str
    sentence: str
    notes: tuple[str, ...]
    tried: tuple[Tried, ...]
    stages: tuple[dict[str, Any], ...]
    budget: float
    rows: int
    rows_tried: int
    splits: int
    families: tuple[str, ...]
    seconds: float
    why: tuple[str, ...]
    recipe: str | None

    @property
    def facts(self) -> dict[str, Any]:
        """All of it, of types that JSON has."""
        return asdict(self)


def advise(
    data: str | Path,
    *,
    budget: float,
    candidates: Sequence[str] | None = None,
    time_limit: float = TIME_LIMIT,
    splits: int = MOST_SPLITS,
    rows: int = ROWS,
    seed: int = 0,
    out: str | Path | None = None,
    on_found: Callable[[Guess], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Advice:
    """Try candidate recipes on a part of the labelled data, measure them on another, and recommend one.

    A recipe is recommended if cheap classifiers of two families, trained on what it selects, are clearly better than
    on stratified random rows; where none is, stratified random rows are. Without labels nothing can be measured, and
    random rows are recommended.

    Args:
        data: A file, glob or folder, of whose columns it is guessed what they mean; or a recipe (.yaml, .yml), whose
            dataset and embed stage are used.
        budget: A fraction of the rows, or a count as a whole number.
        candidates: Names of those to try; by default all.
        time_limit: Seconds.
        splits: How many at most; at least 3.
        rows: How many are tried at most, drawn at random.
        seed: Of all draws.
        out: Where the recommended recipe is written; there must be nothing of that name.
        on_found: Called with what the dataset is, before anything is tried.
        on_step: Called before each trial.

    Raises:
        RecipeError: An option is out of its range, or the recipe is wrong.
        DataError: The data cannot be read, or are too few to measure anything.
        OutputError: The recipe cannot be written.
        StoppedError: By a signal; nothing is left behind.
    """
    limits = Limits(time_limit, splits, rows, time.monotonic())
    trying = (STRATIFIED, RANDOM, *chosen(candidates))
    _check(budget, limits)
    target = None if out is None else Path(out)
    if target is not None:
        check_free(target)
    given = read_given(str(data))
    if on_found is not None:
        on_found(given.found)
    total = given.found.rows
    if isinstance(budget, int) and budget > total:
        raise RecipeError(f"the budget is {budget:,} rows, and {given.data} has {total:,}; give less, or a fraction")
    labelled = "label" in given.found.fields
    measured = Measured(0, (), [], {})
    if labelled:
        fraction = budget / total if isinstance(budget, int) else budget
        measured = measure(given, trying, fraction, limits, seed, on_step)
    judged = _judged(measured, trying)
    winner = best(judged)
    name = winner.name if winner is not None else STRATIFIED.name if labelled else RANDOM.name
    recommended = next(candidate for candidate in CANDIDATES if candidate.name == name)
    seconds = round(time.monotonic() - limits.began, 1)
    sentence = _sentence(recommended, winner, judged, measured, limits, labelled)
    if target is not None:
        _write(target, given, recommended, budget, sentence)
    return Advice(
        name,
        sentence,
        _notes(measured, given, budget, limits, seconds) if measured.splits else (),
        tuple(_tried(candidate, measured, judged) for candidate in trying),
        tuple(stages_of(recommended, given.embed, budget)),
        budget,
        total,
        measured.rows,
        len(measured.splits),
        measured.families,
        seconds,
        given.found.why,
        None if target is None else str(target),
    )


def _check(budget: float, limits: Limits) -> None:
    try:
        is_amount(budget)
    except ValueError as error:
        raise RecipeError(f"the budget: {error}") from error
    if not limits.seconds > 0:
        raise RecipeError(f"the time limit is {limits.seconds}; it must be above 0 seconds")
    if limits.splits < FEWEST_SPLITS:
        raise RecipeError(f"splits is {limits.splits}; at least {FEWEST_SPLITS} are needed for a recommendation")
    if limits.rows < FEWEST_ROWS:
        raise RecipeError(f"rows is {limits.rows}; at least {FEWEST_ROWS} are needed to measure anything")


def _judged(measured: Measured, tried: Sequence[Candidate]) -> list[Judged]:
    """The tested candidates' gains over stratified random rows; none where there are too few splits."""
    if len(measured.splits) < FEWEST_SPLITS:
        return []
    gains = {
        candidate.name: {
            family: [split[candidate.name][family] - split[STRATIFIED.name][family] for split in measured.splits]
            for family in measured.families
        }
        for candidate in tried
        if candidate not in (STRATIFIED, RANDOM) and candidate.name not in measured.failed
    }
    return judge(gains, OVERLAP)


def _tried(candidate: Candidate, measured: Measured, judged: Sequence[Judged]) -> Tried:
    found = [split[candidate.name] for split in measured.splits if candidate.name in split]
    accuracy = float(np.mean([list(each.values()) for each in found])) if found else None
    gain = next((one for one in judged if one.name == candidate.name), None)
    if candidate.name in measured.failed:
        verdict = f"did not run: {measured.failed[candidate.name]}"
    elif gain is not None:
        verdict = gain.verdict
    else:
        verdict = "what others are measured by" if found and candidate in (STRATIFIED, RANDOM) else "not measured"
    return Tried(candidate.name, candidate.about, accuracy, gain, verdict)


def points(judged: Judged) -> str:
    """A gain with its interval, in words."""
    return f"{100 * judged.mean:+.1f} points ({100 * judged.low:+.1f} to {100 * judged.high:+.1f})"


def _sentence(
    recommended: Candidate,
    winner: Judged | None,
    judged: Sequence[Judged],
    measured: Measured,
    limits: Limits,
    labelled: bool,
) -> str:
    """The recommendation and its reason."""
    count = len(measured.splits)
    if winner is not None:
        return f"Take {recommended.name}: {points(winner)} over stratified random rows, 95 % interval, {count} splits."
    if not labelled:
        return (
            "Take random: without labels nothing can be measured here. Name a label column in a recipe and give that, "
            "or compare subsets on a test of your own: tamis compare."
        )
    if count < FEWEST_SPLITS:
        return (
            f"Take stratified: {count} of the {FEWEST_SPLITS} splits that a recommendation needs ended within "
            f"{limits.seconds:g} s; give a longer --time-limit, or fewer --rows."
        )
    if not judged:
        return "Take stratified: nothing else was tried that ran."
    leader = max(judged, key=lambda one: one.mean)
    return (
        f"Take stratified: nothing is clearly better in {count} splits. The highest was {leader.name}, "
        f"{points(leader)}, 95 % interval."
    )


def _notes(measured: Measured, given: Given, budget: float, limits: Limits, seconds: float) -> tuple[str, ...]:
    total = given.found.rows
    share = budget / total if isinstance(budget, int) else budget
    sample = f"{measured.rows:,} of the {total:,} rows" if measured.rows < total else f"all {total:,} rows"
    pool = round(measured.rows * (1 - 1 / FOLDS))
    return (
        f"Measured on {sample}: {100 * share:.3g} % of {pool:,} to train {' and '.join(measured.families)}, which are "
        f"measured on the other {measured.rows - pool:,}; {len(measured.splits)} splits in {seconds:g} s.",
        (
            "The advice is for that share of such a sample: on all rows a gain is often smaller, so try as many as you "
            "can wait for (--rows, --time-limit)."
            if limits.rows < total
            else "What your own model gains, `tamis compare` measures."
        ),
    )


def _write(target: Path, given: Given, recommended: Candidate, budget: float, sentence: str) -> None:
    stages = stages_of(recommended, given.embed, budget)
    about_embedding = encoder_for(given.found.fields)[1] if given.others is None else ()
    steps = [
        ([comment, *(about_embedding if stage["kind"] == "embed" else ())], stage)
        for (comment, _), stage in zip(recommended.steps, stages, strict=True)
    ]
    about = [f"Recommended by tamis advise at a budget of {budget}:", *sentence.replace(". ", ".\n").split("\n")]
    path = from_folder(given.data, target.parent)
    write_recipe(target, recipe_text(given.found, path, about, steps, given.others), given.data)

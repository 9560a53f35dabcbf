"""Which subset trains best: full data, random rows and subsets of one dataset, trained alike, with a verdict in words.

In `setting` it is said what there is to train on and to measure on, in `lineup` which trainings are compared, in `arms`
how, and in `significance` what their differences mean.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import OutputError, RecipeError
from tamis.manifests.atomic import write_atomic
from tamis.manifests.reader import open_manifest
from tamis.pipelines.dataset import home_of, locate
from tamis.pipelines.resources import usable_cores
from tamis.reports.comparison import COMPARISON
from tamis.training.arms import train_arms
from tamis.training.break_even import break_even, selection_seconds
from tamis.training.lineup import FULL, RANDOM, STRATIFIED, line_up, plain
from tamis.training.setting import names_of, read_setting
from tamis.training.significance import FEWEST_SEEDS, differences, verdict
from tamis.training.text import Texts
from tamis.training.trainer import planned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tamis.training.arms import Arm, OnStep, Result, Step
    from tamis.training.significance import Difference

BUDGETS = ("seen", "epochs", "both")


def compare(
    manifests: Sequence[str | Path],
    *,
    test: str | Path | None = None,
    budget: str = "seen",
    samples_seen: int | None = None,
    epochs: int | None = None,
    seeds: int = 5,
    share: float = 0.2,
    stratified: bool = True,
    as_recipe: bool = False,
    data: str | Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    note: str = "",
    out: str | Path | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Trains the bundled model on full data, on random rows and on subsets; says which subset is better than random.

    Every training is plain: all rows of its own, weighted alike. Random rows are as many as the subset's, and drawn
    anew for each seed. Finished trainings are kept in the first manifest's folder, so that the same call goes on after
    a stop, and one with more seeds trains only these.

    Args:
        manifests: Run folders, manifest folders or commit records, all of one dataset. The first one's recipe says
            which model, and how many epochs in batches of how many.
        test: Data with the same columns to measure on. Without it a part of the dataset is held out of every training.
        budget: "seen": every training sees as many samples. "epochs": every training goes as often through its own
            rows, of which the full data have more. "both".
        samples_seen: How many, at equal samples seen; by default epochs times the largest subset.
        epochs: By default the recipe's.
        seeds: How many trainings of each, at least 2; fewer than 3 say nothing.
        share: What is held out where there is no test, in (0, 1).
        stratified: Whether random rows in the classes' proportions are trained on as well, where there are labels.
        as_recipe: Whether each subset is also trained on as its recipe says, with sampler and loss weights, and once
            more with the manifest's weights.
        data: The dataset, if it lies elsewhere than at the run.
        device: As for `tamis.train`.
        threads: CPU threads of a training; by default 1 for texts and all usable cores otherwise.
        note: A sentence to add to the note of the result.
        out: Where the result is written; by default `compare.json` in the first manifest's folder.
        on_step: Called before each training that is not there yet, and after each.

    Returns:
        `note`; `measure` ("accuracy", or "loss" where samples have no labels); `budget`, `epochs` and `seeds`;
        `test_rows`, how many were measured on, and `test_rows_in_dataset`, how many of a test set have the content of
        rows of the dataset;
        `results`, one a row of the table; `tests`, their differences from random rows; `verdict`, lines; `break_even`,
        one a subset.

    Raises:
        DatasetMismatchError: The manifests are of different datasets, or the dataset is another one.
        RecipeError: An option is out of its range, or the manifests want different models.
        DataError: A column is missing, or a subset has no rows left.
        OutputError: The result cannot be written.
        TamisError: As `tamis.train`.
    """
    if budget not in BUDGETS:
        raise RecipeError(f"budget is {budget!r}; it must be one of {', '.join(BUDGETS)}")
    if seeds < 2:
        raise RecipeError(f"seeds is {seeds}; at least 2 are needed, and {FEWEST_SEEDS} for a verdict")
    if not manifests:
        raise RecipeError("no manifest was given; at least one is needed")
    home = home_of(manifests[0])
    opened = [open_manifest(path) for path in manifests]
    target = home / COMPARISON if out is None else Path(out)
    check_target(target)
    dataset = locate(opened[0], None if data is None else Path(data))
    setting = read_setting(opened, names_of(manifests, (FULL, RANDOM, STRATIFIED)), dataset, test, share)
    config = plain(planned(opened[0]), epochs)
    arms = line_up(setting, config, stratified=stratified, as_recipe=as_recipe)
    largest = max(len(subset.rows) for subset in setting.subsets)
    total = config.epochs * largest if samples_seen is None else samples_seen
    rounds = {each: budgeted for each, budgeted in (("seen", total), ("epochs", None)) if budget in (each, "both")}
    facts: dict[str, Any] = {"results": [], "tests": [], "verdict": []}
    by_arm: dict[str, Result] = {}
    for number, (each, budgeted) in enumerate(rounds.items()):
        mark = f", {config.epochs} epochs" if budget == "both" and each == "epochs" else ""
        named = [_marked(arm, mark) for arm in arms]
        results = train_arms(
            named,
            setting.samples,
            setting.test,
            seeds=range(1, seeds + 1),
            total_samples=budgeted,
            device=device,
            threads=threads or (1 if isinstance(setting.samples, Texts) else usable_cores()),
            keep=home / "training" / "compare",
            on_step=None if on_step is None else partial(_pass_on, on_step, number, len(rounds)),
        )
        by_arm = dict(zip((arm.name for arm in arms), results, strict=True))
        for arm, result in zip(named, results, strict=True):
            facts["results"].append(_row(arm, result, each, setting.measure))
        for difference in _tested(named, results):
            facts["tests"].append({**asdict(difference), "budget": each})
            facts["verdict"].append(verdict(difference, setting.measure))
    facts["break_even"] = [
        break_even(subset.name, selection_seconds(subset.manifest), by_arm[FULL], by_arm[subset.name], config.epochs)
        for subset in setting.subsets
    ]
    facts["note"] = f"{_budgets(budget, total, config.epochs)}; {seeds} seeds, {setting.describe()}. {note}".strip()
    facts |= {"measure": setting.measure, "budget": budget, "epochs": config.epochs, "seeds": seeds}
    facts |= {"test_rows": len(setting.test), "test_rows_in_dataset": setting.known}
    write_atomic(target, json.dumps(facts, indent=1).encode())
    return facts


def check_target(path: Path) -> None:
    """Refuses, before anything is trained, a file that cannot be written.

    Raises:
        OutputError: Its folder is not there or cannot be written.
    """
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or path.is_dir():
        raise OutputError(f"cannot write {path}: give a file in a folder that is there and can be written")


def _marked(arm: Arm, mark: str) -> Arm:
    return replace(arm, name=arm.name + mark, against=tuple(name + mark for name in arm.against))


def _pass_on(on_step: OnStep, number: int, rounds: int, step: Step) -> None:
    """A step of one round, counted over all of them."""
    on_step(replace(step, done=number * step.total + step.done, total=rounds * step.total))


def _tested(arms: Sequence[Arm], results: Sequence[Result]) -> list[Difference]:
    """Full data and the subsets against random rows; the subsets against one kind of these are tested together."""
    values = {result.name: result.values for result in results}
    whole, subsets = ([arm for arm in arms if (arm.subset is None) == flag and arm.against] for flag in (True, False))
    families = [[(arm.name, baseline)] for arm in whole for baseline in arm.against]
    families += [
        [(arm.name, baseline) for arm, baseline in zip(subsets, own, strict=True)]
        for own in zip(*(arm.against for arm in subsets), strict=True)
    ]
    return [difference for pairs in families for difference in differences(values, pairs)]


def _row(arm: Arm, result: Result, budget: str, measure: str) -> dict[str, Any]:
    """A result as it is written."""
    row = {name: value for name, value in asdict(result).items() if name != "values"}
    kind = {"accuracy": "accuracies", "loss": "losses"}[measure]
    return {**row, kind: list(result.values), "budget": budget, "subset_id": arm.subset}


def _budgets(budget: str, total: int, epochs: int) -> str:
    """What every training goes through, in words."""
    seen = f"Every training sees {total:,} samples"
    often = "once" if epochs == 1 else f"{epochs} times"
    own = f"{often} through {{}} own rows, and so full sees the most"
    return {
        "seen": seen,
        "epochs": f"Every training goes {own.format('its')}",
        "both": f"{seen}; those marked with epochs go {own.format('their')}",
    }[budget]

"""From how many trainings on the selection costs less time than it saves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tamis.errors import OutputError
from tamis.pipelines.finished import finished_of

if TYPE_CHECKING:
    from tamis.manifests.reader import Manifest
    from tamis.training.arms import Result


def selection_seconds(manifest: Manifest) -> float | None:
    """Seconds of work of the run that made a manifest, of all stages and workers, those that were cached included.

    None where its folder does not tell: the manifest was copied without its run, another run was finished there since,
    or its work was removed.
    """
    try:
        run = finished_of(manifest)
    except OutputError:
        return None
    if not run.whole or any(len(stage.made) < len(stage.nodes) for stage in run.stages):
        return None
    return sum(artifact.seconds for stage in run.stages for artifact in stage.made.values())


def break_even(name: str, selection: float | None, full: Result, subset: Result, epochs: int) -> dict[str, Any]:
    """What a subset costs and saves, each training going as often through its own rows.

    Args:
        name: The subset's.
        selection: Seconds of the selection, or None where they are not known.
        full: The trainings on all rows, at whatever budget: what counts is their seconds a sample.
        subset: Those on the subset.
        epochs: How often a training goes through its rows.

    Returns:
        `name`; `selection_seconds`; `saved_seconds` of one training; `trainings`, from which on it pays, or None
        where it never does or the selection's seconds are not known; `line`, the same in words.
    """
    whole, part = (one.seconds / one.samples_seen * epochs * one.size for one in (full, subset))
    saved = whole - part
    trainings = None
    if saved <= 0:
        worth = "never worth it"
    elif selection is None:
        worth = "the selection's own seconds are not known"
    else:
        trainings = max(1, math.ceil(selection / saved))
        worth = f"worth it in time from the {_ordinal(trainings)} training on"
    cost = "" if selection is None else f"selection cost {_seconds(selection)}; "
    often = f"{epochs} epoch{'s' * (epochs > 1)}"
    gain = f"saves {_seconds(saved)}" if saved > 0 else f"takes {_seconds(-saved)} more"
    return {
        "name": name,
        "selection_seconds": selection,
        "saved_seconds": saved,
        "trainings": trainings,
        "line": f"{name}: {cost}a training of {often} on it {gain} of {_seconds(whole)}: {worth}",
    }


def _seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 10 else f"{value:.2g} s"


def _ordinal(number: int) -> str:
    """The number with its ending.

    >>> [_ordinal(n) for n in (1, 2, 3, 4, 11, 12, 21, 1012)]
    ['1st', '2nd', '3rd', '4th', '11th', '12th', '21st', '1,012th']
    """
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"

"""The recipes that are tried. One more is one more entry in the table."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tamis.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Stage = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to select.

    Attributes:
        name: What it is called.
        about: What it is for, in a line.
        steps: Its stages, each with a comment for the recipe that is written. The embed stage's encoder and the budget
            of the select stage are filled in by `stages_of`.
    """

    name: str
    about: str
    steps: tuple[tuple[str, Stage], ...]


_EMBED = ("What the rows are compared by.", {"kind": "embed"})
_DEDUP = ("Drop copies, and rows from cosine 0.95 on.", {"kind": "dedup", "eps": 0.05})
_SCORE = (
    "A loss for every row, by a classifier that has not seen it.",
    {"kind": "score", "method": "proxy", "min_accuracy": 0.0},
)
_COVER = {"kind": "select", "method": "facility_location", "random_beyond": 0.1}

STRATIFIED = Candidate(
    "stratified",
    "random rows, each class in its proportion",
    (("Random rows, each class in its proportion.", {"kind": "select", "method": "stratified"}),),
)
RANDOM = Candidate("random", "random rows", (("Random rows.", {"kind": "select", "method": "random"}),))

CANDIDATES = (
    STRATIFIED,
    RANDOM,
    Candidate(
        "label-free",
        "the rows that represent all others best; for many classes and a small budget",
        (_EMBED, _DEDUP, ("The rows that represent all others best, and beyond a tenth others at random.", _COVER)),
    ),
    Candidate(
        "noise-aware",
        "the rows that represent their class best, those with a label that is likely wrong last",
        (
            _EMBED,
            _DEDUP,
            _SCORE,
            (
                "The rows that represent their class best, likely wrong labels last; beyond a tenth others at random.",
                {**_COVER, "per": "label", "suspects": "last"},
            ),
        ),
    ),
)
"""All of them. The first two draw at random: they are what the others are measured by."""


def chosen(names: Sequence[str] | None) -> tuple[Candidate, ...]:
    """The candidates to try beside the two that draw at random; all of them for None.

    Raises:
        RecipeError: There is none of such a name.
    """
    by_name = {candidate.name: candidate for candidate in CANDIDATES}
    for name in names or ():
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise RecipeError(f"no candidate {name!r}; {hint}there are {', '.join(by_name)}")
    return tuple(
        candidate
        for candidate in CANDIDATES
        if candidate not in (STRATIFIED, RANDOM) and (names is None or candidate.name in names)
    )


def stages_of(candidate: Candidate, embed: Stage, budget: float) -> list[dict[str, Any]]:
    """The stages of a recipe.

    Args:
        candidate: Which.
        embed: The embed stage, for those that compare rows.
        budget: Of the select stage: a fraction, or a count as a whole number.
    """
    filled = {"embed": dict(embed), "select": {"budget": budget}}
    return [{**stage, **filled.get(stage["kind"], {})} for _, stage in candidate.steps]

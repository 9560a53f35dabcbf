"""The rows that leak: how many match which reference set, and some of the matches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tamis.pipelines.finished import GoneError
from tamis.reports.brief import clipped, rounded
from tamis.reports.leaks import comparing, matches_of, one_each

if TYPE_CHECKING:
    from tamis.pipelines.finished import Finished

_SHOWN = 12
_NAME = 80


def leakage(run: Finished) -> list[dict[str, Any]]:
    """Say what each dedup stage with reference sets found.

    Returns:
        For each `stage`: its `eps` and `action`, how many rows leak (`leaks`), of these how many by equal content
        (`exact`), how many it `dropped` and how many the subset has (`kept`); of each reference file in `against` its
        `rows`, those that are `bad`, and how many rows of the dataset match one (`leaks`); `matches`, how many are
        listed by `tamis leaks`, and `first`, the nearest match of some rows, those of the subset first. Empty where no
        stage has reference sets, or their files are gone.
    """
    try:
        found = [(stage, matches_of(run, stage)) for stage in comparing(run)]
    except GoneError:
        return []
    sections = []
    for stage, matches in found:
        facts = stage.of("mark")[0].facts
        nearest = one_each(matches)
        first = nearest.slice(0, _SHOWN).select(["row", "decision", "reference", "reference_row", "cosine", "exact"])
        sections.append(
            {
                "stage": stage.label,
                "eps": stage.config["eps"],
                "action": stage.config["against_action"],
                "leaks": facts["leaks"],
                "exact": facts["leaks_of_equal_content"],
                "dropped": facts["leaks_dropped"],
                "kept": nearest["decision"].to_pylist().count("kept"),
                "against": [{"file": clipped(name, _NAME), **numbers} for name, numbers in facts["against"].items()],
                "matches": matches.num_rows,
                "first": [
                    {**item, "reference": clipped(item["reference"], _NAME), "cosine": rounded(item["cosine"])}
                    for item in first.to_pylist()
                ],
            }
        )
    return sections

"""What the run took: budget, time, memory, and what was there already."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from tamis.pipelines.run import stage_report
from tamis.pipelines.state import KEPT

if TYPE_CHECKING:
    from pathlib import Path

    from tamis.pipelines.finished import Finished


def stages(run: Finished) -> list[dict[str, Any]]:
    """What each stage found and took, as `stage_report`, and `ran`: how many of its tasks ran in the last run.

    The others were cached. `ran` is None where the run's log does not tell.
    """
    names = last_ran(run.folder / "events.jsonl")
    found = []
    for stage in run.stages:
        ran = None if names is None else sum(name in names for name, _, _ in stage.nodes)
        found.append({**stage_report(stage.label, stage.kind, list(stage.made.values())), "ran": ran})
    return found


def last_ran(log: Path) -> set[str] | None:
    """The nodes that ran in the last run that ended well; None where the log tells of none.

    A run begins with the event `run`, and again with one after each `repair`, and ends with `done`.
    """
    found: set[str] | None = None
    now: set[str] = set()
    repairing = False
    try:
        lines = log.read_bytes().splitlines()
    except OSError:
        return None
    for line in lines:
        try:
            item = json.loads(line)
            event, node = item["event"], item.get("node")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # cut where a run was killed
        if event == "run" and not repairing:
            now = set()
        elif event == "node":
            now.add(node)
        elif event == "done":
            found = now
        repairing = event == "repair"
    return found


def budgets(run: Finished) -> list[dict[str, Any]]:
    """For each select stage: its budget as the recipe has it, the rows that it came to, and the rows selected."""
    found = []
    for stage in run.stages:
        (made,) = stage.of("take") or stage.of("whole") or (None,)
        if stage.kind != "select" or made is None:
            continue
        effect = run.open(made)
        found.append(
            {
                "stage": stage.label,
                "method": stage.config["method"],
                "budget": stage.config["budget"],
                "rows": made.facts["budget"],
                "candidates": effect.num_rows,
                "selected": pc.sum(pc.equal(effect["decision"], KEPT)).as_py(),
            }
        )
    return found

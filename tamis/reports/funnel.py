"""The funnel: rows in, what each stage dropped and why, rows kept; from the manifest's ledger alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tamis.manifests.schema import DECISIONS

if TYPE_CHECKING:
    from tamis.manifests.reader import Manifest


def funnel(manifest: Manifest) -> list[dict[str, Any]]:
    """Count the audit by stage, decision and reason.

    Returns:
        One item for each way in which rows were dropped, in the order of the stages: `stage`, `decision`,
        `reason`, `rows`, and `left`, the rows that remain after it. Their sum and the kept rows are the input.
    """
    names = list(DECISIONS)
    groups = manifest.audit.group_by(["stage", "decision", "reason"]).aggregate([("row", "count")]).to_pylist()
    left = manifest.audit.num_rows
    items = []
    for group in sorted(groups, key=lambda group: (group["stage"], group["decision"], group["reason"])):
        if names[group["decision"]] == "kept":
            continue
        left -= group["row_count"]
        items.append(
            {
                "stage": manifest.stages[group["stage"]]["name"],
                "decision": names[group["decision"]],
                "reason": manifest.reasons[group["reason"]],
                "rows": group["row_count"],
                "left": left,
            }
        )
    return items

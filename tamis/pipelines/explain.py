"""Why a stage must run: which field of it, or which stage before it, differs from the last run in the folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tamis.pipelines.node import task_of
from tamis.pipelines.run import describe

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tamis.pipelines.plan import Plan


def why_not_cached(plan: Plan, todo: Collection[str], previous: Mapping[str, Any] | None) -> dict[str, str]:
    """Say for each stage why it must run.

    Args:
        plan: The plan.
        todo: Names of the nodes that must run.
        previous: The folder's `run.json`: what is said of the last finished run, or None.

    Returns:
        Stage label -> reason; stages without a node to run are left out.
    """
    reasons: dict[str, str] = {}
    for position, stage in enumerate(plan.stages):
        missing = [name for name in stage.nodes if name in todo]
        if not missing:
            continue
        reasons[stage.label] = _reason(plan, position, len(missing), previous)
    return reasons


def _reason(plan: Plan, position: int, missing: int, previous: Mapping[str, Any] | None) -> str:
    stage = plan.stages[position]
    if previous is None:
        return "no finished run in this folder yet"
    before = next((old for old in previous["stages"] if old["stage"] == stage.label), None)
    if before is None:
        return "new stage" if position else "no finished run in this folder yet"
    nodes = {tuple(reference) for reference in before["nodes"]}
    if all(plan.nodes[name].reference in nodes for name in stage.nodes):
        return f"not finished: {missing} of {len(stage.nodes)} tasks are left"
    fields = [key for key in stage.config if stage.config[key] != before["config"].get(key, stage.config[key])]
    if fields:
        return "changed: " + ", ".join(
            f"{key} {before['config'].get(key)!r} -> {stage.config[key]!r}" for key in fields
        )
    for earlier in plan.stages[:position]:
        old = next((item for item in previous["stages"] if item["stage"] == earlier.label), None)
        if old is None or {tuple(reference) for reference in old["nodes"]} != {
            plan.nodes[name].reference for name in earlier.nodes
        }:
            return f"{earlier.label} before it changed"
    changed = _settings_changed(plan, previous)
    if changed:
        return f"changed: {changed}"
    versions = ", ".join(
        sorted({f"{plan.nodes[name].task} v{task_of(plan.nodes[name].task).version}" for name in stage.nodes})
    )
    return f"an outside file, a library or the code changed ({versions})"


def _settings_changed(plan: Plan, previous: Mapping[str, Any]) -> str:
    """Name the settings outside the stages, and the files, that differ from the last finished run."""
    now = describe(plan)
    old, new = previous["settings"], now["settings"]
    parts = [
        f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)
    ]
    before, after = previous["sources"], now["sources"]
    parts += [f"file {path}" for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
    return ", ".join(parts)

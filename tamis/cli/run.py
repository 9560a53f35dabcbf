"""Verbs of a run: validate, plan, run, status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tamis.cli.common import FOLDER, JSON, LIMIT, SET, WORK, WORKERS, errors, print_facts, short_path, visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tamis.pipelines.plan import Plan
    from tamis.pipelines.run import Run


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's folder; made if missing.")
@WORK
@click.option(
    "--executor",
    type=click.Choice(["local", "sync"]),
    default="local",
    show_default=True,
    help="Worker processes, or this process.",
)
@click.option(
    "--scheduler", help="A Dask scheduler to run on, such as tls://host:8786; its workers see the same paths."
)
@click.option("--insecure", is_flag=True, help="Allow a scheduler on another machine without TLS.")
@WORKERS
@LIMIT
@SET
@click.option("--anyway", is_flag=True, help="Run although memory or disk will not suffice, as far as can be foreseen.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Stop after so many seconds, resumable.")
@JSON
@errors
def run(
    recipe: Path,
    out: Path,
    work: str | None,
    executor: str,
    scheduler: str | None,
    insecure: bool,
    workers: int | None,
    limit: int | None,
    overrides: tuple[str, ...],
    anyway: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Run RECIPE and commit a subset manifest; what is done already is not done again.

    Example: tamis run recipe.yaml --out runs/first --set select.budget=0.1
    """
    from tamis.pipelines.run import run as run_recipe
    from tamis.progress import Progress

    _say_if_other(out, recipe, overrides)
    with Progress() as progress:
        result = run_recipe(
            recipe,
            out,
            work=work,
            executor=executor,
            scheduler=scheduler,
            insecure=insecure,
            workers=workers,
            limit=limit,
            overrides=overrides,
            anyway=anyway,
            timeout=timeout,
            on_event=progress.on_event,
        )
    print_run(result, as_json)


def print_run(result: Run, as_json: bool) -> None:
    """Print what a run has done: the funnel, its manifest and its identity."""
    print_facts(_run_facts(result), as_json, lambda facts: _show_run(result, facts))


def _say_if_other(out: Path, recipe: Path, overrides: tuple[str, ...]) -> None:
    """A folder is meant for one recipe: what is there stays, but the newest version becomes the other recipe's."""
    from tamis.errors import OutputError
    from tamis.pipelines.recipe import load_recipe
    from tamis.pipelines.run import read_run

    try:
        there = read_run(out, names=("name",))["name"]
    except OutputError:
        return
    name = load_recipe(recipe, overrides)[0].name
    if name != there:
        click.echo(
            f"note: {visible(str(out))} has a run of {visible(there)!r}; {name!r} will be its next version",
            err=True,
        )


def _run_facts(result: Run) -> dict[str, Any]:
    from tamis.reports.funnel import funnel

    manifest = result.open_manifest()
    return {
        "run": str(result.folder),
        "manifest": str(result.record),
        "subset_id": result.subset_id,
        "rows": manifest.audit.num_rows,
        "kept": manifest.select.num_rows,
        "counts": manifest.record["counts"],
        "funnel": funnel(manifest),
        "stages": list(result.stages),
        "tasks_run": len(result.ran),
        "seconds": result.seconds,
    }


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@SET
@JSON
@errors
def validate(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check RECIPE and its dataset's columns without computing anything.

    Example: tamis validate recipe.yaml
    """
    plan = plan_of(recipe, None, None, overrides)
    facts = {
        "recipe": plan.recipe.name,
        "rows": plan.rows,
        "files": len(plan.sources),
        "stages": [stage.label for stage in plan.stages],
    }
    print_facts(
        facts,
        as_json,
        lambda f: f"{f['recipe']}: valid; {f['rows']:,} rows in {f['files']} file(s); stages {', '.join(f['stages'])}",
    )


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder the run would go to.")
@WORK
@WORKERS
@LIMIT
@SET
@JSON
@errors
def plan(
    recipe: Path,
    out: Path,
    work: str | None,
    workers: int | None,
    limit: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show what a run would do: what is cached, why the rest is not, and what it would take.

    Example: tamis plan recipe.yaml --out runs/first --set select.budget=0.1
    """
    from tamis.errors import OutputError
    from tamis.pipelines.estimate import check_fits, estimate
    from tamis.pipelines.explain import why_not_cached
    from tamis.pipelines.lock import run_folder
    from tamis.pipelines.plan import pending
    from tamis.pipelines.resources import usable_cores
    from tamis.pipelines.run import cached, read_run, stores
    from tamis.pipelines.store import check_location

    workers = workers or usable_cores()
    folder = run_folder(out)
    _, store = stores(folder, check_location(work) if work else None)
    planned = plan_of(recipe, out, limit, overrides)
    try:
        previous: dict[str, Any] | None = read_run(out)
    except OutputError:
        previous = None
    done = cached(planned, folder, store)
    todo = pending(planned, done)
    names = {node.name for node in todo}
    reasons = why_not_cached(planned, names, previous)
    total = estimate(planned, todo, workers, done)
    facts = {
        "rows": planned.rows,
        "workers": workers,
        "stages": [
            {
                "stage": stage.label,
                "tasks": len(stage.nodes),
                "to_run": sum(name in names for name in stage.nodes),
                "why": reasons.get(stage.label, "cached"),
                "seconds": seconds,
            }
            for stage, seconds in zip(planned.stages, total.stage_seconds, strict=True)
        ],
        "estimate": {
            "wall_seconds": total.wall_seconds,
            "peak_bytes": total.peak_bytes,
            "disk_bytes": total.disk_bytes,
        },
    }
    print_facts(facts, as_json, _show_plan)
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    check_fits(total, None if work else there, workers)


@click.command()
@FOLDER
@JSON
@errors
def status(folder: Path, as_json: bool) -> None:
    """Show how far the run in DIR is, and what it has committed.

    Example: tamis status runs/first
    """
    from tamis.manifests.reader import open_manifest, versions
    from tamis.pipelines.lock import is_locked
    from tamis.pipelines.run import ATTEMPT, read_run, recorded

    described = read_run(folder, ATTEMPT)
    store, artifacts = recorded(folder, described)
    stages = []
    for stage in described["stages"]:
        finished = sum(name in artifacts for name, _, _ in stage["nodes"])
        stages.append({"stage": stage["stage"], "tasks": len(stage["nodes"]), "finished": finished})
    committed = bool(versions(folder / "manifest"))
    facts = {
        "name": described["name"],
        "running": is_locked(folder),
        "rows": described["rows"],
        "limit": described["limit"],
        "work": store.location,
        "stages": stages,
        "versions": versions(folder / "manifest"),
        "subset_id": open_manifest(folder).subset_id if committed else None,
    }
    print_facts(facts, as_json, _show_status)


def plan_of(recipe: Path, out: Path | None, limit: int | None, overrides: tuple[str, ...]) -> Plan:
    """Plan a recipe; without a folder, where nothing was run."""
    from tamis.pipelines.lock import run_folder
    from tamis.pipelines.run import plan_run

    return plan_run(recipe, run_folder(out or Path(".tamis")), limit=limit, overrides=overrides)


def _show_run(result: Run, facts: Mapping[str, Any]) -> str:
    lines = [f"{'rows in':<42} {facts['rows']:>11,}"]
    for item in facts["funnel"]:
        what = f"{item['stage']}: {item['decision'].replace('_', ' ')}"
        lines.append(f"{what:<42} {-item['rows']:>11,}   {item['reason']}")
    lines.append(f"{'kept':<42} {facts['kept']:>11,}   {facts['kept'] / facts['rows']:.1%} of the rows")
    for stage in result.stages:
        if "out_of_fold_accuracy" in stage["facts"]:
            right, largest = (stage["facts"][name] for name in ("out_of_fold_accuracy", "majority_share"))
            doubted = f"{stage['facts']['suspects']:,} labels are likely wrong"
            lines.append(f"proxy     {right:.1%} right out of fold; the largest class has {largest:.1%}; {doubted}")
        if stage["facts"].get("leaks"):
            lines.append(
                f"leaks     {stage['facts']['leaks']:,} rows are in a reference set, or near to one of its rows: "
                f"tamis leaks {short_path(result.folder)}"
            )
    lines.append(f"manifest  {short_path(result.record)}")
    lines.append(f"subset    {facts['subset_id']}")
    lines.append(
        f"{facts['tasks_run']} tasks ran in {facts['seconds']:.1f} s"
        if facts["tasks_run"]
        else f"everything was cached; {facts['seconds']:.1f} s"
    )
    return "\n".join(lines)


def _show_plan(facts: Mapping[str, Any]) -> str:
    lines = [f"{'stage':<14} {'tasks':>6} {'to run':>7} {'core s':>9}   why"]
    lines += [
        f"{s['stage']:<14} {s['tasks']:>6} {s['to_run']:>7} {s['seconds']:>9.1f}   {s['why']}" for s in facts["stages"]
    ]
    needed = facts["estimate"]
    lines.append(
        f"about {needed['wall_seconds']:,.0f} s with {facts['workers']} workers, "
        f"{needed['peak_bytes'] / 2**20:,.0f} MiB of memory, {needed['disk_bytes'] / 2**20:,.0f} MiB on disk"
    )
    return "\n".join(lines)


def _show_status(facts: Mapping[str, Any]) -> str:
    limit = f", limited to {facts['limit']:,}" if facts["limit"] else ""
    lines = [f"{facts['name']}: {'running' if facts['running'] else 'not running'}; {facts['rows']:,} rows{limit}"]
    lines += [f"{s['stage']:<14} {s['finished']:>5} of {s['tasks']} tasks" for s in facts["stages"]]
    lines.append(
        f"committed: version {facts['versions'][-1]}, subset {facts['subset_id']}"
        if facts["versions"]
        else "nothing committed yet"
    )
    return "\n".join(lines)

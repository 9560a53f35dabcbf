"""The command line. Results go to standard output, progress and errors to standard error."""

from __future__ import annotations

import json
import sys
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from tamis import __version__
from tamis.errors import StoppedError, TamisError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tamis.pipelines.plan import Plan
    from tamis.pipelines.run import Run

P = ParamSpec("P")
R = TypeVar("R")

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
_SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="STAGE.KEY=VALUE",
    help="Override a key of a stage, of dataset, of train, or KEY=VALUE of the recipe; may be repeated.",
)
_LIMIT = click.option("--limit", type=click.IntRange(1), help="Use only the first N rows.")
_WORKERS = click.option("--workers", type=click.IntRange(1), help="Worker processes; default: the usable cores.")
_WORK = click.option(
    "--work",
    help="Where tasks keep what they make: a folder, or a URL such as s3://bucket/prefix with the credentials in the "
    "environment; default: OUT/work. Give it with every run into OUT: what is kept elsewhere is not looked for.",
)
_FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


def _errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print a TamisError as one message and exit with its code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except TamisError as error:
            click.echo(f"tamis: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("tamis: stopped; the same command goes on from there", err=True)
            sys.exit(StoppedError.exit_code)

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tamis")
def main() -> None:
    """Sift a training set down to the part worth training on.

    \b
    tamis run recipe.yaml --out runs/first    embed, deduplicate, score, select, commit a manifest
    tamis why ID --run runs/first             why a row was kept or dropped
    tamis export runs/first --to parquet --out subset.parquet
    tamis train runs/first                    train on the subset
    """  # noqa: D301


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's folder; made if missing.")
@_WORK
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
@_WORKERS
@_LIMIT
@_SET
@click.option("--anyway", is_flag=True, help="Run although memory or disk will not suffice, as far as can be foreseen.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Stop after so many seconds, resumable.")
@_JSON
@_errors
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
    click.echo(json.dumps(run_facts(result), sort_keys=True) if as_json else show_run(result))


def run_facts(result: Run) -> dict[str, Any]:
    """What `tamis run` prints."""
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


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@_SET
@_JSON
@_errors
def validate(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check RECIPE and its dataset's columns without computing anything.

    Example: tamis validate recipe.yaml
    """
    plan = _plan(recipe, None, None, overrides)
    facts = {
        "recipe": plan.recipe.name,
        "rows": plan.rows,
        "files": len(plan.sources),
        "stages": [stage.label for stage in plan.stages],
    }
    _print(
        facts,
        as_json,
        lambda f: f"{f['recipe']}: valid; {f['rows']:,} rows in {f['files']} file(s); stages {', '.join(f['stages'])}",
    )


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder the run would go to.")
@_WORK
@_WORKERS
@_LIMIT
@_SET
@_JSON
@_errors
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
    planned = _plan(recipe, out, limit, overrides)
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
    _print(facts, as_json, _show_plan)
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    check_fits(total, None if work else there, workers)


@main.command()
@_FOLDER
@_JSON
@_errors
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
    _print(facts, as_json, _show_status)


@main.command()
@click.argument("sample_id", metavar="ID")
@click.option(
    "--run",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    help="A run folder or a manifest folder.",
)
@_JSON
@_errors
def why(sample_id: str, folder: Path, as_json: bool) -> None:
    """Say what became of the row with ID, in which stage, why, and which row stands for it.

    Example: tamis why t00042 --run runs/first
    """
    from tamis.manifests.reader import open_manifest

    manifest = open_manifest(folder)
    chain = [manifest.explain(sample_id)]
    while chain[-1]["kept_sample_id"] is not None:
        chain.append(manifest.explain(chain[-1]["kept_sample_id"]))
    _print({"sample": chain[0], "stands_for_it": chain[1:]}, as_json, _show_why)


@main.command()
@_FOLDER
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Choice(["parquet", "jsonl", "ids", "hf"]),
    help="What to write.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where; must not exist.")
@click.option("--data", type=click.Path(path_type=Path), help="The dataset, if it lies elsewhere than at the run.")
@_errors
def export(folder: Path, target: str, out: Path, data: Path | None) -> None:
    """Write the rows that the manifest in DIR kept, with their weights, as a dataset or a list of ids.

    Example: tamis export runs/first --to parquet --out subset.parquet
    """
    from tamis.manifests.export import export as write
    from tamis.manifests.reader import open_manifest
    from tamis.pipelines.dataset import open_dataset
    from tamis.pipelines.sources import take_rows

    manifest = open_manifest(folder)
    sources = () if target == "ids" else open_dataset(manifest, folder, data)
    click.echo(write(manifest, lambda rows: take_rows(sources, rows), target, out))


@main.command()
@_FOLDER
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for checkpoints and the training ledger; default: one below DIR/training for each subset.",
)
@click.option("--data", type=click.Path(path_type=Path), help="The dataset, if it lies elsewhere than at the run.")
@click.option("--test", type=click.Path(path_type=Path), help="Data with the same columns to measure on.")
@click.option("--epochs", type=click.IntRange(1), help="Epochs; default: the recipe's.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples a step; default: the recipe's.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the model and of the order."
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N, or auto.")
@click.option(
    "--threads", type=click.IntRange(1), help="CPU threads; default: 1 for texts, all usable cores otherwise."
)
@click.option(
    "--trust-rows",
    is_flag=True,
    help="Accept another dataset if every selected row has the same id and content.",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="Steps between checkpoints; 0: at each epoch's end.",
)
@_JSON
@_errors
def train(
    folder: Path,
    out: Path | None,
    data: Path | None,
    test: Path | None,
    epochs: int | None,
    batch_size: int | None,
    seed: int,
    device: str,
    threads: int | None,
    trust_rows: bool,
    checkpoint_every: int,
    as_json: bool,
) -> None:
    """Train the bundled model on the manifest in DIR; run it again after a stop and it goes on.

    Several processes, one a GPU: torchrun --nproc-per-node 2 -m tamis train DIR

    Example: tamis train runs/first --test test.parquet
    """
    import os
    from dataclasses import replace

    from tamis.manifests.reader import open_manifest
    from tamis.pipelines.dataset import locate
    from tamis.pipelines.resources import usable_cores
    from tamis.progress import TrainingProgress
    from tamis.training.trainer import planned
    from tamis.training.trainer import train as train_manifest

    manifest = open_manifest(folder)
    config = replace(planned(manifest), seed=seed, checkpoint_every=checkpoint_every)
    config = replace(config, epochs=epochs or config.epochs, batch_size=batch_size or config.batch_size)
    text = manifest.record["recipe"].get("train", {}).get("model", "text") == "text"
    share = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun's processes share them
    with TrainingProgress() as progress:
        result = train_manifest(
            folder,
            out=out or folder / "training" / manifest.subset_id[:12],
            config=config,
            dataset=locate(folder, data),
            test=test,
            trust_rows=trust_rows,
            device=device,
            threads=threads or (1 if text else share),
            on_progress=progress.on_step,
        )
    if result.ledger is None:  # another of torchrun's processes tells
        return
    facts = {
        "accuracy": result.accuracy,
        "loss": result.loss,
        "samples_seen": result.samples_seen,
        "seconds": round(result.seconds, 3),
        "checkpoint": str(result.checkpoint),
        "ledger": str(result.ledger),
    }
    _print(facts, as_json, _show_training)


@main.command()
@click.argument("data")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder for the blocks; made if missing.")
@click.option("--text", default="text", show_default=True, help="The column of the texts.")
@click.option("--block", type=click.IntRange(2), default=256, show_default=True, help="Tokens in a block.")
@click.option(
    "--vocabulary", type=click.IntRange(257), default=4096, show_default=True, help="Size of the tokenizer fitted."
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="A tokenizer.json to use instead of a new one.")
@_JSON
@_errors
def pack(data: str, out: Path, text: str, block: int, vocabulary: int, tokenizer: Path | None, as_json: bool) -> None:
    """Cut the texts of DATA into blocks of tokens, the samples of the model lm.

    Example: tamis pack corpus.jsonl --out packed --block 256
    """
    from tamis.training.packing import pack as pack_texts

    packed = pack_texts(data, out, text=text, block=block, vocabulary=vocabulary, tokenizer=tokenizer)
    facts = {
        "path": str(packed.path),
        "tokenizer": str(packed.tokenizer),
        "blocks": packed.blocks,
        "tokens": packed.tokens,
        "documents": packed.documents,
    }
    _print(facts, as_json, _show_packed)


@main.command()
@_FOLDER
@_errors
def report(folder: Path) -> None:
    """Write DIR/report.html and DIR/report.json, and print the page's path.

    Example: tamis report runs/first
    """
    from tamis.reports.report import write_report

    click.echo(write_report(folder))


@main.command()
@click.argument("name", required=False)
@click.option("--keys", is_flag=True, help="Explain every key that a recipe can have, with its default.")
@_errors
def recipes(name: str | None, keys: bool) -> None:
    """List the shipped recipes, print the one called NAME, or explain all keys.

    Example: tamis recipes quickstart > recipe.yaml
    """
    if keys:
        from tamis.pipelines.recipe import explain_keys

        click.echo(explain_keys())
        return
    from importlib.resources import files

    from tamis.errors import RecipeError

    folder = files("tamis.pipelines") / "recipes"
    shipped = {item.name.removesuffix(".yaml"): item for item in folder.iterdir() if item.name.endswith(".yaml")}
    if name is None:
        for key in sorted(shipped):
            first = shipped[key].read_text(encoding="utf-8").splitlines()[0]
            click.echo(f"{key:<14} {first.removeprefix('# ')}")
        return
    if name not in shipped:
        raise RecipeError(f"no recipe {name!r}; shipped are {', '.join(sorted(shipped))}")
    click.echo(shipped[name].read_text(encoding="utf-8"), nl=False)


def _plan(recipe: Path, out: Path | None, limit: int | None, overrides: tuple[str, ...]) -> Plan:
    from tamis.pipelines.lock import run_folder
    from tamis.pipelines.run import plan_run

    return plan_run(recipe, run_folder(out or Path(".tamis")), limit=limit, overrides=overrides)


def _print(facts: Mapping[str, Any], as_json: bool, show: Callable[[Any], str]) -> None:
    click.echo(json.dumps(facts, sort_keys=True) if as_json else show(facts))


def short_path(path: Path) -> Path:
    """A path as people read it: from the current folder, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def show_run(result: Run) -> str:
    """The funnel of a run, its manifest and its identity, as text."""
    facts = run_facts(result)
    lines = [f"{'rows in':<42} {facts['rows']:>11,}"]
    for item in facts["funnel"]:
        what = f"{item['stage']}: {item['decision'].replace('_', ' ')}"
        lines.append(f"{what:<42} {-item['rows']:>11,}   {item['reason']}")
    lines.append(f"{'kept':<42} {facts['kept']:>11,}   {facts['kept'] / facts['rows']:.1%} of the rows")
    for stage in result.stages:
        if "out_of_fold_accuracy" in stage["facts"]:
            right, largest = (stage["facts"][name] for name in ("out_of_fold_accuracy", "majority_share"))
            lines.append(f"proxy     {right:.1%} right out of fold; the largest class has {largest:.1%}")
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


def _show_why(facts: Mapping[str, Any]) -> str:
    lines = []
    for depth, item in enumerate([facts["sample"], *facts["stands_for_it"]]):
        score = "" if item["score"] is None else f" (score {item['score']:.4f})"
        lines.append(
            f"{'  ' * depth}{item['sample_id']} (row {item['row']}): {item['decision'].replace('_', ' ')} in "
            f"{item['stage']}: {item['reason']}{score}"
        )
        if item["decision"] == "kept":
            known = [
                f"{key} {item[key]:g}" if isinstance(item[key], float) else f"{key} {item[key]}"
                for key in ("rank", "weight", "gain", "cluster", "difficulty")
                if item.get(key) is not None
            ]
            lines.append(f"{'  ' * depth}  {', '.join(known)}")
    return "\n".join(lines)


def _show_packed(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['blocks']:,} blocks, {facts['tokens']:,} tokens, of {facts['documents']:,} texts\n"
        f"blocks     {facts['path']}\n"
        f"tokenizer  {facts['tokenizer']}\n"
        f"in a recipe: dataset: {{path: {facts['path']}, tokens: tokens, text: text}} and train: {{model: lm}}"
    )


def _show_training(facts: Mapping[str, Any]) -> str:
    lines = [] if facts["accuracy"] is None else [f"accuracy   {facts['accuracy']:.4f}"]
    lines += [
        f"loss       {facts['loss']:.4f}",
        f"samples    {facts['samples_seen']:,} in {facts['seconds']:.1f} s",
        f"checkpoint {facts['checkpoint']}",
        f"ledger     {facts['ledger']}",
    ]
    return "\n".join(lines)

"""A run: from a recipe to a committed manifest, in one folder, once or resumed."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamis.errors import DamagedManifestError, DatasetMismatchError, LockedError, OutputError, RecipeError, WorkerError
from tamis.manifests.atomic import sweep, write_atomic
from tamis.manifests.reader import Manifest, open_manifest, versions
from tamis.manifests.reader import record_path as manifest_record_path
from tamis.pipelines.node import Artifact, DamagedArtifactError, forget
from tamis.pipelines.plan import Plan, finished, make_plan, pending
from tamis.pipelines.recipe import Recipe, load_recipe
from tamis.pipelines.sources import SourceFile, require_columns, resolve, scan

OnEvent = Callable[[Mapping[str, Any]], None]
_REPAIRS = 3


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        folder: Where it is.
        record: Path of the manifest's commit record.
        subset_id: The manifest's identity.
        stages: What each stage found and took: facts, time, memory; see `stage_reports`.
        ran: Names of the nodes that ran now; empty where all were cached.
        seconds: Wall time of this call.
    """

    folder: Path
    record: Path
    subset_id: str
    stages: tuple[Mapping[str, Any], ...]
    ran: tuple[str, ...]
    seconds: float

    def open_manifest(self) -> Manifest:
        """Open the manifest, verified."""
        return open_manifest(self.folder)


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    *,
    data: Any = None,
    executor: str = "local",
    workers: int | None = None,
    limit: int | None = None,
    overrides: tuple[str, ...] = (),
    on_event: OnEvent | None = None,
) -> Run:
    """Run a recipe: what is done already is not done again.

    Args:
        recipe: A YAML file, a mapping, or a `Recipe`.
        out: The run's folder; made if missing.
        data: A `datasets.Dataset` in memory, in place of the recipe's `dataset.path`.
        executor: `local` (worker processes) or `sync` (this process; for debugging).
        workers: Worker processes; default: the usable cores. The result does not depend on it.
        limit: Only the first `limit` rows.
        overrides: `stage.key=value`, as on the command line.
        on_event: Called with each event as it is logged.

    Returns:
        The run.

    Raises:
        TamisError: With the exit code that the command line would give.
    """
    if executor not in ("local", "sync"):
        raise RecipeError(f"executor is {executor!r}; allowed are local and sync")
    if workers is not None and workers < 1:
        raise RecipeError(f"workers is {workers}; the least is 1")
    workers = workers or len(os.sched_getaffinity(0))
    start = time.perf_counter()
    folder = Path(out).resolve()
    with locked(folder), _EventLog(folder, on_event) as events:
        sweep(folder)
        plan = plan_run(recipe, folder, data=data, limit=limit, overrides=overrides)
        ran: list[str] = []
        for _ in range(_REPAIRS):
            done = cached(plan, folder)
            todo = pending(plan, done)
            events(
                "run",
                nodes=len(plan.nodes),
                todo=len(todo),
                cached=len(done),
                executor=executor,
                workers=workers,
            )
            _save_run(folder, plan)
            try:
                _execute(plan, folder, todo, executor, workers, events, ran)
                opened = open_manifest(folder)
                break
            except DamagedArtifactError as error:
                # Found by its sha256 when read: forget it, and run it again.
                forget(folder / "work", error.reference)
                events("repair", node=error.reference[0], reason=str(error))
            except DamagedManifestError as error:
                # Committed before, damaged since: the commit runs again and writes the same bytes.
                if plan.target.name in ran:
                    raise
                forget(folder / "work", plan.target.reference)
                events("repair", node=plan.target.name, reason=str(error))
            except DatasetMismatchError:
                # A block may have read other bytes than its key says: nothing of this run can be trusted.
                for node in plan.nodes.values():
                    forget(folder / "work", node.reference)
                raise
        else:
            raise OutputError(
                f"files of {folder / 'work'} were found damaged {_REPAIRS} times in a row; check the disk"
            )
        records = finished(plan, folder / "work")
        record = folder / "manifest" / str(records[plan.target.name].facts["record"])
        result = Run(
            folder,
            record,
            opened.subset_id,
            tuple(stage_reports(plan, records)),
            tuple(ran),
            round(time.perf_counter() - start, 3),
        )
        events("done", subset_id=opened.subset_id, record=record.name, ran=len(ran), seconds=result.seconds)
        return result


def plan_run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    folder: Path,
    *,
    data: Any = None,
    limit: int | None = None,
    overrides: tuple[str, ...] = (),
) -> Plan:
    """Read the recipe, hash the sources, and expand the plan; nothing is computed.

    Raises:
        RecipeError: The recipe is wrong.
        DataError: The data are.
    """
    if limit is not None and limit < 1:
        raise RecipeError(f"limit is {limit}; the least is 1")
    if data is not None and isinstance(recipe, Mapping):
        # The rows come from memory: their place in the recipe is a name.
        section = recipe.get("dataset") or {}
        if isinstance(section, Mapping):
            recipe = {**recipe, "dataset": {"path": "memory", **section}}
    loaded, base = load_recipe(recipe, overrides)
    where = loaded.dataset.path
    location = data if data is not None else (where if "://" in where else str(base / where))
    known = _known_scans(folder)
    sources = tuple(scan(found, known) for found in resolve(location, folder / "data"))
    for source in sources:
        require_columns(source, list(loaded.dataset.fields.values()))
    _remember_scans(folder, known, sources)
    return make_plan(loaded, sources, base, folder, str(location) if data is None else sources[0].location, limit)


def cached(plan: Plan, folder: Path) -> dict[str, Artifact]:
    """Return the records of nodes that need not run; the commit counts only if it is still the newest."""
    done = finished(plan, folder / "work")
    commit = done.get(plan.target.name)
    if commit is not None:
        found = versions(folder / "manifest")
        if not found or manifest_record_path(folder / "manifest", found[-1]).name != commit.facts["record"]:
            forget(folder / "work", commit.reference)
            del done[plan.target.name]
    return done


def stage_reports(plan: Plan, records: Mapping[str, Artifact]) -> Iterator[dict[str, Any]]:
    """Give, for each stage, facts, tasks, their seconds in all, the largest task's memory, bytes on disk."""
    for stage in plan.stages:
        yield stage_report(stage.label, stage.kind, [records[name] for name in stage.nodes if name in records])


def stage_report(label: str, kind: str, artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """Sum up what one stage's tasks left."""
    facts: dict[str, Any] = {}
    for artifact in artifacts:
        if artifact.name.count("/") == 1:  # blocks and shards have a number, and facts of their own
            facts.update(artifact.facts)
    return {
        "stage": label,
        "kind": kind,
        "facts": facts,
        "tasks": len(artifacts),
        "seconds": round(sum(artifact.seconds for artifact in artifacts), 3),
        "peak_bytes": max((artifact.peak_bytes for artifact in artifacts), default=0),
        "bytes": sum(artifact.bytes for artifact in artifacts),
    }


def _execute(
    plan: Plan, folder: Path, todo: list[Any], executor: str, workers: int, events: _EventLog, ran: list[str]
) -> None:
    if not todo:
        return
    from tamis.pipelines.execute import execute

    before = len(ran)

    def on_done(artifact: Artifact) -> None:
        ran.append(artifact.name)
        events(
            "node", node=artifact.name, stage=plan.stages[plan.nodes[artifact.name].stage].label, rows=artifact.rows,
            seconds=artifact.seconds, peak_bytes=artifact.peak_bytes, left=len(todo) - (len(ran) - before),
        )  # fmt: skip

    try:
        execute(todo, folder / "work", executor=executor, workers=min(workers, len(todo)), on_done=on_done)
    except WorkerError as error:
        events("failed", error=str(error))
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder; another run into it ends at once.

    Raises:
        OutputError: The folder cannot be made or written.
        LockedError: Another run holds it.
    """
    try:
        (folder / "work").mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("a")
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror or error}; give a folder that can be written with --out"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LockedError(f"another run holds {folder}; wait for it, or give another folder with --out") from None
        yield


def is_locked(folder: Path) -> bool:
    """Whether a run holds the folder now."""
    try:
        with (folder / ".lock").open("r") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class _EventLog:
    """Appends what happens to `events.jsonl`, and passes it on."""

    def __init__(self, folder: Path, on_event: OnEvent | None) -> None:
        self.path, self.on_event = folder / "events.jsonl", on_event

    def __enter__(self) -> _EventLog:
        try:
            self.stream = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def __exit__(self, *exc: object) -> None:
        self.stream.close()

    def __call__(self, event: str, **facts: Any) -> None:
        item = {"time": round(time.time(), 3), "event": event, **facts}
        try:
            self.stream.write(json.dumps(item) + "\n")
            self.stream.flush()
        except OSError as error:
            raise self._unwritable(error) from error
        if self.on_event is not None:
            self.on_event(item)

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self.path}: {error.strerror or error}; free space or give another --out")


def _save_run(folder: Path, plan: Plan) -> None:
    """Write `run.json`: what a person or another verb needs to know of the run; times and paths are welcome here."""
    described = {
        "name": plan.recipe.name,
        "data": plan.data,
        "recipe": plan.recipe.model_dump(by_alias=True, mode="json"),
        "rows": plan.rows,
        "limit": plan.limit,
        "sources": [{"path": s.path, "location": s.location, "format": s.format} for s in plan.sources],
        "stages": [
            {
                "stage": stage.label,
                "kind": stage.kind,
                "config": stage.config,
                "nodes": [plan.nodes[name].reference for name in stage.nodes],
            }
            for stage in plan.stages
        ],
    }
    write_atomic(folder / "run.json", json.dumps(described, indent=1).encode())


def read_run(folder: Path) -> dict[str, Any]:
    """Read `run.json`.

    Raises:
        OutputError: The folder holds no run.
    """
    try:
        described: dict[str, Any] = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{folder} holds no run (run.json cannot be read: {error}); give the folder that was --out of tamis run"
        ) from error
    return described


def _known_scans(folder: Path) -> dict[str, tuple[int, list[str]]]:
    try:
        stored = json.loads((folder / "work" / "scans.json").read_bytes())
        return {sha256: (int(rows), list(columns)) for sha256, (rows, columns) in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember_scans(folder: Path, known: Mapping[str, Any], sources: tuple[SourceFile, ...]) -> None:
    fresh = {**known, **{source.sha256: (source.rows, list(source.columns)) for source in sources}}
    if fresh.keys() != known.keys() and (folder / "work").is_dir():
        write_atomic(folder / "work" / "scans.json", json.dumps(fresh).encode())

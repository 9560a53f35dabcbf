"""A run: from a recipe to a committed manifest, in one folder, once or resumed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamis.errors import DamagedManifestError, DatasetMismatchError, OutputError, RecipeError, WorkerError
from tamis.manifests.atomic import sweep, write_atomic
from tamis.manifests.canonical import digest, sealed
from tamis.manifests.reader import Manifest, open_manifest, versions
from tamis.manifests.reader import record_path as manifest_record_path
from tamis.pipelines.lock import locked, run_folder
from tamis.pipelines.node import Artifact, DamagedArtifactError, forget, load_records
from tamis.pipelines.plan import Plan, finished, make_plan, pending
from tamis.pipelines.recipe import Recipe, load_recipe
from tamis.pipelines.remote import check_address
from tamis.pipelines.resources import usable_cores
from tamis.pipelines.signals import stoppable
from tamis.pipelines.sources import SourceFile, check_types, read_rows, require_columns, resolve, scan
from tamis.pipelines.store import Folder, Store, check_location, check_reach, store_at

OnEvent = Callable[[Mapping[str, Any]], None]
ATTEMPT, COMMITTED = "attempt.json", "run.json"
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
        """Open the manifest that this run committed, or found there, verified."""
        return open_manifest(self.record)


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    *,
    work: str | Path | None = None,
    data: Any = None,
    executor: str = "local",
    scheduler: str | None = None,
    insecure: bool = False,
    workers: int | None = None,
    limit: int | None = None,
    overrides: str | tuple[str, ...] = (),
    anyway: bool = False,
    timeout: float | None = None,
    on_event: OnEvent | None = None,
) -> Run:
    """Run a recipe: what is done already is not done again.

    Args:
        recipe: A YAML file, a mapping, or a `Recipe`.
        out: The run's folder; made if missing.
        work: Where nodes keep what they make: a folder, or a URL that fsspec can write, such as s3://bucket/prefix,
            with the credentials in the environment. Default: `work` in `out`. To go on there it must be given again;
            several runs may use one.
        data: A `datasets.Dataset` in memory, in place of the recipe's `dataset.path`.
        executor: `local` (worker processes) or `sync` (this process; for debugging).
        scheduler: Address of a Dask scheduler to use instead, such as tls://host:8786. Its workers must see the
            dataset and `work` at the same paths.
        insecure: Whether the scheduler may be on another machine without TLS.
        workers: Worker processes; default: the usable cores. The result does not depend on it.
        limit: Only the first `limit` rows.
        overrides: `stage.key=value`, as on the command line.
        anyway: Whether to run although memory or disk will not suffice, as far as can be foreseen.
        timeout: Seconds after which the run stops, resumable, with StoppedError.
        on_event: Called with each event as it is logged.

    Returns:
        The run.

    Raises:
        TamisError: With the exit code that the command line would give.
    """
    if executor not in ("local", "sync"):
        raise RecipeError(f"executor is {executor!r}; allowed are local and sync")
    if isinstance(overrides, str):
        overrides = (overrides,)
    if scheduler is not None:
        check_address(scheduler, insecure)
    if work is not None:
        work = check_location(work)
        check_reach(work, here=executor == "sync" and scheduler is None)
    if workers is not None and workers < 1:
        raise RecipeError(f"workers is {workers}; the least is 1")
    if timeout is not None and not timeout > 0:
        raise RecipeError(f"timeout is {timeout}; it must be above 0 seconds")
    workers = workers or usable_cores()
    start = time.perf_counter()
    folder = run_folder(out)
    home, store = stores(folder, work)
    with stoppable(timeout) as check, locked(folder), _EventLog(folder, on_event) as events:
        home.make()
        store.make()
        for owned in ("work", "data", "manifest"):
            sweep(folder / owned)
        for name in (ATTEMPT, COMMITTED):
            sweep(folder, f".{name}.*.tmp")
        threads = workers if scheduler is None else 1
        plan = plan_run(recipe, folder, data=data, limit=limit, overrides=overrides, threads=threads)
        ran: list[Artifact] = []
        damaged: dict[str, int] = {}
        described = json.dumps({**describe(plan), "work": work}, indent=1).encode()
        while max(damaged.values(), default=0) < _REPAIRS:
            done = cached(plan, folder, store)
            todo = pending(plan, done)
            if plan.target in todo:
                forget(home, [plan.target.reference])  # its manifest is gone, or another is newer
            events(
                "run",
                nodes=len(plan.nodes),
                todo=len(todo),
                stages=Counter(plan.stages[node.stage].label for node in todo),
                cached=len(done),
                executor=scheduler or executor,
                workers=workers,
            )
            write_atomic(folder / ATTEMPT, described)
            if todo and not anyway and not damaged and scheduler is None:  # its workers have memory of their own
                from tamis.pipelines.estimate import check_fits, estimate

                count = 1 if executor == "sync" else min(workers, len(todo))
                check_fits(estimate(plan, todo, count, done), folder if store is home else None, count)
            try:
                _execute(plan, store, home, todo, executor, scheduler, workers, events, ran, check)
                opened = open_manifest(folder)
                break
            except (DamagedArtifactError, DamagedManifestError) as error:
                # Found by its sha256 when read: forget the node that made it, and run that again.
                reference = error.reference if isinstance(error, DamagedArtifactError) else plan.target.reference
                if isinstance(error, DamagedManifestError) and plan.target.name in [artifact.name for artifact in ran]:
                    raise  # just committed, and damaged already
                forget(home if reference == plan.target.reference else store, [reference])
                damaged[reference[0]] = damaged.get(reference[0], 0) + 1
                events("repair", node=reference[0], reason=str(error))
            except DatasetMismatchError:
                # A block may have read other bytes than its key says: nothing of this run can be trusted.
                forget(home, [plan.target.reference])
                forget(store, [node.reference for node in plan.nodes.values()])
                raise
        else:
            raise OutputError(f"files of {store.location} were found damaged {_REPAIRS} times in a row; check the disk")
        write_atomic(folder / COMMITTED, described)
        records = {**done, **{artifact.name: artifact for artifact in ran}}
        record = manifest_record_path(folder / "manifest", opened.version)
        result = Run(
            folder,
            record,
            opened.subset_id,
            tuple(stage_reports(plan, records)),
            tuple(artifact.name for artifact in ran),
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
    threads: int = 1,
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
    found = resolve(location, folder / "data")
    if data is None and any(
        file.format != "hf" and Path(file.location).resolve().is_relative_to(folder) for file in found
    ):
        raise RecipeError(f"the run's folder {folder} holds files of the dataset {where}; give an --out outside of it")
    sources = tuple(scan(file, known) for file in found)
    for source in sources:
        columns = list(dict.fromkeys(loaded.dataset.fields.values()))
        require_columns(source, columns)
        check_types(source, read_rows(source, columns, 0, 0)[0], loaded.dataset.fields)
    _remember_scans(folder, known, sources)
    return make_plan(
        loaded, sources, base, folder, str(location) if data is None else sources[0].location, limit, threads
    )


def stores(folder: Path, work: str | None) -> tuple[Folder, Store]:
    """The run's own store, and the one where nodes keep what they make; the same one unless `work` names another.

    Args:
        folder: The run's folder, absolute.
        work: From `check_location`, or None.
    """
    home = Folder(folder / "work")
    return home, home if work is None else store_at(work)


def recorded(folder: Path, described: Mapping[str, Any]) -> tuple[Store, dict[str, Artifact]]:
    """The store and the finished nodes, by name, of a run that `read_run` describes.

    Raises:
        OutputError: The store cannot be read.
    """
    home, store = stores(folder.resolve(), described.get("work"))
    references = [(name, task, key) for stage in described["stages"] for name, task, key in stage["nodes"]]
    return store, {**load_records(store, references[:-1]), **load_records(home, references[-1:])}


def cached(plan: Plan, folder: Path, store: Store) -> dict[str, Artifact]:
    """Return the records of nodes that need not run; the commit counts only if it is still the newest."""
    done = finished(plan, store, Folder(folder / "work"))
    commit = done.get(plan.target.name)
    if commit is not None:
        found = versions(folder / "manifest")
        if not found or manifest_record_path(folder / "manifest", found[-1]).name != commit.facts["record"]:
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
    plan: Plan,
    store: Store,
    home: Folder,
    todo: list[Any],
    executor: str,
    scheduler: str | None,
    workers: int,
    events: _EventLog,
    ran: list[Artifact],
    check: Callable[[], None],
) -> None:
    if not todo:
        return
    from tamis.pipelines.execute import execute

    before = len(ran)

    def on_done(artifact: Artifact) -> None:
        ran.append(artifact)
        events(
            "node", node=artifact.name, stage=plan.stages[plan.nodes[artifact.name].stage].label, rows=artifact.rows,
            seconds=artifact.seconds, peak_bytes=artifact.peak_bytes, left=len(todo) - (len(ran) - before),
        )  # fmt: skip

    try:
        execute(
            todo,
            store,
            home=home,
            executor=executor,
            workers=min(workers, len(todo)),
            on_done=on_done,
            check=check,
            on_cluster=lambda dashboard: events("cluster", dashboard=dashboard),
            scheduler=scheduler,
        )
    except WorkerError as error:
        events("failed", error=str(error))
        raise


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


def describe(plan: Plan) -> dict[str, Any]:
    """What a person or another verb needs to know of the run; times and paths are welcome here."""
    names = ("seed", "numeric", "block_rows", "max_bad_fraction", "max_text_bytes")
    settings = {name: getattr(plan.recipe, name) for name in names}
    settings |= {f"dataset.{role}": column for role, column in plan.recipe.dataset.fields.items()}
    return {
        "name": plan.recipe.name,
        "data": plan.data,
        "recipe": plan.recipe.model_dump(by_alias=True, mode="json"),
        "rows": plan.rows,
        "limit": plan.limit,
        "settings": {**settings, "limit": plan.limit},
        "sources": {source.path: source.sha256 for source in plan.sources},
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


_DESCRIBED: dict[str, Any] = {
    "name": str, "data": str, "rows": int, "limit": int | None, "settings": dict, "sources": dict, "stages": list,
}  # fmt: skip


def read_run(folder: Path, which: str = COMMITTED, names: Iterable[str] = tuple(_DESCRIBED)) -> dict[str, Any]:
    """Read what is said of the last finished run (`COMMITTED`), or of the last try (`ATTEMPT`).

    Args:
        folder: The run's.
        which: The file.
        names: What the caller wants to know of what `describe` gives.

    Raises:
        OutputError: The folder holds no run, or the file does not say these.
    """
    try:
        described: dict[str, Any] = json.loads((folder / which).read_bytes())
        missing = [name for name in names if not _says(described, name)]
        if missing:
            raise ValueError(f"it does not say {', '.join(missing)}")
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OutputError(
            f"{folder} holds no run that was finished ({which} cannot be read: {why}); give the folder "
            "that was --out of tamis run"
        ) from error
    return described


def read_run_of(manifest: Manifest, names: Iterable[str] = tuple(_DESCRIBED)) -> tuple[Path, dict[str, Any]]:
    """The folder in which a manifest was committed, and what is said there of the last finished run.

    Raises:
        OutputError: The manifest lies in no run's folder, or the description does not say these.
    """
    above, linked = manifest.folder.parent, manifest.folder.resolve().parent
    try:
        return above, read_run(above, names=names)
    except OutputError:
        return linked, read_run(linked, names=names)


def _says(described: Any, name: str) -> bool:
    """Whether a description has a value of that name which others can count on."""
    value = described.get(name) if isinstance(described, dict) else None
    return isinstance(value, _DESCRIBED[name]) and (name != "stages" or all(_is_stage(stage) for stage in value))


def _is_stage(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(name), str) for name in ("stage", "kind"))
        and isinstance(value.get("config"), dict)
        and isinstance(value.get("nodes"), list)
        and all(isinstance(node, list) and [type(part) for part in node] == [str, str, str] for node in value["nodes"])
    )


def _known_scans(folder: Path) -> dict[str, tuple[int, list[str]]]:
    try:
        outer = json.loads((folder / "work" / "scans.json").read_bytes())
        stored = outer["body"] if digest(outer["body"]) == outer["sha256"] else {}
        return {sha256: (int(rows), list(columns)) for sha256, (rows, columns) in stored.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _remember_scans(folder: Path, known: Mapping[str, Any], sources: tuple[SourceFile, ...]) -> None:
    fresh = {**known, **{source.sha256: (source.rows, list(source.columns)) for source in sources}}
    if fresh.keys() != known.keys() and (folder / "work").is_dir():
        body = {sha256: [rows, list(columns)] for sha256, (rows, columns) in fresh.items()}
        write_atomic(folder / "work" / "scans.json", sealed(body))

"""The unit of work: a node of the graph, its identity, its record, and how it is run.

A node is a pure task with parameters and inputs. Its key is the sha256 of what decides its result and of
nothing else: the task and its code version, the result-affecting parameters, the keys of its inputs. Paths,
threads, workers, hosts and times stay out. What a node makes is one content-named Arrow file and a record;
the record is written last and is the one definition of done: a node whose record exists is a no-op.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import threading
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tamis.errors import DataError, TamisError, WorkerError
from tamis.manifests.atomic import crash_point
from tamis.manifests.canonical import digest, sealed, unsealed
from tamis.pipelines.numeric import NATIVE, PORTABLE, check_worker
from tamis.pipelines.resources import one_thread, peak_memory, reset_peak_memory
from tamis.pipelines.store import Store, store_at

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

Json = Any
Reference = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Node:
    """One task of the graph.

    Attributes:
        name: Unique in the plan, and what people read: `03-dedup/pairs/00002`.
        stage: Index into the plan's stages.
        task: `module.function` in `tamis.pipelines.stages`.
        params: What decides the result, beside the inputs.
        inputs: Role -> the nodes whose files the task reads, each as (name, task, key).
        hints: What the task needs but the result does not depend on, such as where a file lies.
        key: sha256 of {task, version, versions of the libraries, params, inputs' keys, the numeric policy}.
        numeric: `native` or `portable`: which kernels it computes with.
    """

    name: str
    stage: int
    task: str
    params: Mapping[str, Json]
    inputs: Mapping[str, tuple[Reference, ...]]
    hints: Mapping[str, Json]
    key: str
    numeric: str = NATIVE

    @property
    def reference(self) -> Reference:
        """How other nodes name this one as their input."""
        return (self.name, self.task, self.key)


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a node made: its record. Small enough to travel through a scheduler."""

    key: str
    task: str
    name: str
    file: str | None
    sha256: str | None
    bytes: int
    rows: int
    facts: Mapping[str, Json]
    seconds: float
    peak_bytes: int

    @property
    def reference(self) -> Reference:
        """The node that made it, as (name, task, key)."""
        return (self.name, self.task, self.key)


@dataclass(frozen=True, slots=True)
class Output:
    """What a task returns: a table for the node's file, and small facts for its record."""

    table: pa.Table | None = None
    facts: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """A function of (params, inputs), and the version of its code: a change of its results raises it.

    `libraries` are imported before the task starts, so that their thread pools can be limited. `packages` are the
    distributions that the result depends on beside numpy and pyarrow: another version of one is another key.
    """

    run: Callable[[Mapping[str, Json], Inputs], Output]
    version: int = 1
    libraries: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


class DamagedArtifactError(DataError):
    """A file of the working folder is not what its record says; the node that made it must run again."""

    def __init__(self, reference: Reference, reason: str) -> None:
        super().__init__(reference, reason)
        self.reference = reference

    def __str__(self) -> str:
        return f"working file of {self.args[0][0]} is damaged: {self.args[1]}"


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files that a task may read, by role."""

    work: str
    artifacts: Mapping[str, tuple[Artifact, ...]]
    hints: Mapping[str, Json]

    def all(self, role: str) -> tuple[Artifact, ...]:
        """Return every artifact of a role, in plan order; empty where the plan gave none."""
        return self.artifacts.get(role, ())

    def one(self, role: str) -> Artifact:
        """Return the only artifact of a role."""
        (artifact,) = self.artifacts[role]
        return artifact

    def table(self, role: str) -> pa.Table:
        """Open the only file of a role."""
        return self.open(self.one(role))

    def open(self, artifact: Artifact) -> pa.Table:
        """Open a node's file, memory-mapped, its sha256 verified first (once for each process).

        Raises:
            DamagedArtifactError: If the file is gone or its bytes differ from the record.
            OutputError: If the store fails, or there is no room here for what it sends.
        """
        store, name = store_at(self.work), str(artifact.file)
        try:
            seen = (store.identity(name), artifact.sha256)
            with _OPENING:
                opened = _OPENED.pop(seen, None)
            if opened is None:
                data = store.map(name)
                # A bit flip in Arrow IPC reads back silently: hash first, then use. What is fetched again is new.
                if store.fetches or seen not in _VERIFIED:
                    if hashlib.sha256(data).hexdigest() != artifact.sha256:
                        raise DamagedArtifactError(artifact.reference, "its sha256 is not the recorded one")
                    _VERIFIED.add(seen)
                opened = (pa.ipc.open_file(data).read_all(), artifact.bytes)
        except OSError as error:
            raise DamagedArtifactError(artifact.reference, f"it cannot be opened: {error}") from error
        most = _MOST_FETCHED if store.fetches else _MOST_MAPPED
        with _OPENING:
            _OPENED[seen] = opened
            while _OPENED and sum(size for _, size in _OPENED.values()) > most:
                _OPENED.popitem(last=False)
        return opened[0]


# Tables and their bytes, the least recently used first. A fetched one takes disk; of a file that is here the pages
# count as this process's memory, though the kernel may take them back.
_OPENED: OrderedDict[tuple[Hashable, str | None], tuple[pa.Table, int]] = OrderedDict()
_OPENING = threading.Lock()  # a worker of another's scheduler may have several threads
_VERIFIED: set[tuple[Hashable, str | None]] = set()
_MOST_MAPPED = 256 << 20
_MOST_FETCHED = 4 << 30


def make_node(
    name: str,
    stage: int,
    task: str,
    params: Mapping[str, Json],
    inputs: Mapping[str, Iterable[Node]],
    hints: Mapping[str, Json] | None = None,
    numeric: str = NATIVE,
) -> Node:
    """Make a node and compute its key.

    Raises:
        TypeError: If a parameter has no stable encoding.
    """
    references = {role: tuple(node.reference for node in nodes) for role, nodes in inputs.items()}
    keys = {role: [key for _, _, key in group] for role, group in references.items()}
    found = task_of(task)
    identity = {
        "task": task,
        "version": found.version,
        "libraries": {name: version_of(name) for name in ("numpy", "pyarrow", *found.packages)},
        "params": dict(params),
        "inputs": keys,
    }
    if numeric != NATIVE:
        identity["numeric"] = numeric
    return Node(name, stage, task, dict(params), references, dict(hints or {}), digest(identity), numeric)


@functools.cache
def version_of(package: str) -> str:
    """The installed version of a distribution."""
    return importlib.metadata.version(package)


def task_of(name: str) -> Task:
    """Look a task up: `dedup.pairs` is `TASKS["pairs"]` of `tamis.pipelines.stages.dedup`."""
    module, _, task = name.partition(".")
    found: Task = importlib.import_module(f"tamis.pipelines.stages.{module}").TASKS[task]
    return found


def load_record(store: Store, reference: Reference) -> Artifact | None:
    """Return a finished node's record, or None where it must run: no record, a damaged one, or its file gone."""
    (artifact,) = _read_records(store, [reference])
    complete = artifact is not None and (artifact.file is None or store.size(artifact.file) == artifact.bytes)
    return artifact if complete else None


def load_records(store: Store, references: Iterable[Reference]) -> dict[str, Artifact]:
    """Return the records of finished nodes by name, as `load_record`; asks the store once for each kind of task."""
    references = list(references)
    sizes = store.sizes(sorted({task for _, task, _ in references}))
    recorded = [reference for reference in references if sizes.get(record_name(reference))]
    return {
        artifact.name: artifact
        for artifact in _read_records(store, recorded)
        if artifact is not None and (artifact.file is None or sizes.get(artifact.file) == artifact.bytes)
    }


def forget(store: Store, references: Iterable[Reference]) -> None:
    """Remove nodes' records, so that they run again."""
    store.remove([record_name(reference) for reference in references])


def record_name(reference: Reference) -> str:
    """The name of a node's record in its store."""
    _, task, key = reference
    return f"{task}/{key[:32]}.json"


def _read_records(store: Store, references: Iterable[Reference]) -> list[Artifact | None]:
    names = {reference: record_name(reference) for reference in references}
    found = store.read(names.values())
    return [_parsed(found.get(name), reference) for reference, name in names.items()]


def _parsed(record: bytes | None, reference: Reference) -> Artifact | None:
    if record is None:
        return None
    name, _, key = reference
    try:
        body = unsealed(record)
        if body["key"] != key:
            return None
        return Artifact(**{**body, "name": name})
    except (ValueError, KeyError, TypeError):
        return None


def run_node(node: Node, work: str, *_finished: object, home: str | None = None) -> Artifact:
    """Run one node, write its file, then its record; on a cluster this runs in a worker.

    It may run twice: the file is named by its content. `_finished` are the inputs' results, there only so
    that the scheduler runs them first; what they made is read from the store.

    Args:
        node: The node.
        work: Location of the store of its inputs.
        home: Location of the store of what it makes, where that is another.

    Raises:
        TamisError: What the task says is wrong.
        WorkerError: The task failed in a way that it did not foresee; the message names the node. Or this process does
            not compute with the kernels that the node asks for.
    """
    store = store_at(home or work)
    done = load_record(store, node.reference)
    if done is not None:
        return done
    if node.numeric == PORTABLE:
        check_worker()
    inputs = _inputs(node, store_at(work))
    task = task_of(node.task)
    for library in task.libraries:
        importlib.import_module(library)
    reset_peak_memory()
    start = time.perf_counter()
    try:
        with one_thread():
            output = task.run(node.params, Inputs(work, inputs, node.hints))
    except TamisError:
        raise
    except Exception as error:
        raise WorkerError(f"{node.name} failed: {type(error).__name__}: {error}") from error
    file, sha256, size, rows = None, None, 0, 0
    if output.table is not None:
        data = _file_bytes(output.table)
        sha256, size, rows = hashlib.sha256(data).hexdigest(), len(data), output.table.num_rows
        file = f"{node.task}/{node.key[:32]}.{sha256[:16]}.arrow"
        store.put(file, data)
    crash_point(f"{node.task}:written")
    seconds = round(time.perf_counter() - start, 4)
    artifact = Artifact(node.key, node.task, node.name, file, sha256, size, rows, output.facts, seconds, peak_memory())
    store.put(record_name(node.reference), sealed(asdict(artifact)))
    crash_point(f"{node.task}:recorded")
    return artifact


def _file_bytes(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def _inputs(node: Node, store: Store) -> dict[str, tuple[Artifact, ...]]:
    """The records of a node's inputs, by role; their files are looked at when they are opened."""
    references = list(dict.fromkeys(item for group in node.inputs.values() for item in group))
    found = dict(zip(references, _read_records(store, references), strict=True))
    return {role: tuple(_required(item, found[item]) for item in group) for role, group in node.inputs.items()}


def _required(reference: Reference, artifact: Artifact | None) -> Artifact:
    if artifact is None:
        raise DamagedArtifactError(reference, "its record is missing or damaged")
    return artifact

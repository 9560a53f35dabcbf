"""Run the nodes of a plan on Dask: its schedulers are the only executors.

`local` is a `LocalCluster` of processes with one thread each, every socket on loopback; `sync` runs the same
graph in this process; and a scheduler that is there already can be named. Nodes carry keys and paths; what they make
lies in a store that all of them see.
"""

from __future__ import annotations

import os
import queue
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import psutil

from tamis.errors import TamisError, WorkerError
from tamis.pipelines import numeric
from tamis.pipelines.node import Artifact, Node, load_record, run_node

if TYPE_CHECKING:
    from pathlib import Path

    from distributed import Future

    from tamis.pipelines.store import Folder, Store

OnDone = Callable[[Artifact], None]
Check = Callable[[], None]

_CHECK_SECONDS = 0.25
_SEPARATOR = "~"  # between a node's name and the run's token
_STALL_SECONDS = 300.0
_IDLE_SHARE, _IDLE_BYTES = 0.02, 1 << 20  # of a core, and of reads and writes: a worker says that it is there


def execute(
    nodes: Sequence[Node],
    store: Store,
    *,
    home: Folder,
    executor: str,
    workers: int,
    on_done: OnDone,
    check: Check,
    on_cluster: Callable[[str], None],
    scheduler: str | None = None,
) -> None:
    """Run nodes, inputs first, and report each as it is done.

    Args:
        nodes: The pending nodes; inputs that are not among them have their records in `store`.
        store: Where nodes keep what they make.
        home: The run's own store. Where `store` is another, the commit runs in this process and is recorded here:
            workers need not see the run's folder, and other runs may use `store` at the same time.
        executor: `local` or `sync`.
        workers: Worker processes of `local`.
        on_done: Called in this process for each finished node.
        check: Called in this process often; what it raises ends the run.
        on_cluster: Called once with the address of the cluster's dashboard, where there is a cluster.
        scheduler: Address of a scheduler to use instead of an executor; from `remote.check_address`.

    Raises:
        TamisError: What a task raised.
        WorkerError: A worker died again and again on one node, which is named.
        RecipeError: The numeric policy is `portable`, which this machine, or this process for `sync`, is not made for.
    """
    if not nodes:
        return
    portable = any(node.numeric == numeric.PORTABLE for node in nodes)
    if portable and scheduler is None:
        check_here = numeric.check_started if executor == "sync" else numeric.check_processor
        check_here()
    store.make(*sorted({node.task for node in nodes}))
    own = [node for node in nodes if store != home and "folder" in node.hints]  # the commit
    others = [node for node in nodes if node not in own]
    if not others:
        pass  # only the commit is left
    elif scheduler is not None:
        from tamis.pipelines import remote

        with remote.connected(scheduler, store) as client:
            on_cluster(client.dashboard_link)
            watch = remote.watch(client, scheduler, _STALL_SECONDS)
            _run_on(client, others, store, on_done, (check, watch), partial(remote.checked_run, remote.versions_here()))
    elif executor == "sync":
        _run_sync(others, store, on_done, check)
    else:
        from distributed import Client

        with (
            _variables(numeric.environment() if portable else {}),
            _cluster(home.path / "dask", workers) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            on_cluster(client.dashboard_link)
            _run_on(client, others, store, on_done, (check, Watchdog(cluster.scheduler, _STALL_SECONDS)))
    home.make(*sorted({node.task for node in own}))
    for node in own:
        check()
        on_done(run_node(node, store.location, home=home.location))


def graph(nodes: Sequence[Node], store: Store, run: Callable[..., Artifact] = run_node) -> dict[str, Any]:
    """Build the Dask graph: one delayed call a node, waiting for its inputs.

    Args:
        nodes: As for `execute`.
        store: As for `execute`.
        run: What is called with a node, the store's location, and the results of the inputs.

    Returns:
        The calls by the nodes' names. Dask's keys are the names and a token: others may have such nodes on the same
        scheduler.
    """
    from dask.delayed import delayed

    delayed_run = delayed(run, pure=False)
    token = secrets.token_hex(4)
    built: dict[str, Any] = {}
    for node in nodes:
        before = [built[name] for group in node.inputs.values() for name, _, _ in group if name in built]
        built[node.name] = delayed_run(node, store.location, *before, dask_key_name=f"{node.name}{_SEPARATOR}{token}")
    return built


def _name_of(key: Any) -> str:
    """The node's name in a key of Dask."""
    return str(key).partition(_SEPARATOR)[0]


def _run_sync(nodes: Sequence[Node], store: Store, on_done: OnDone, check: Check) -> None:
    import dask

    def posttask(key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:  # noqa: ARG001
        if isinstance(result, Artifact):
            on_done(result)
        check()

    # As an argument: dask's context manager would register them for every run of this process, of all threads.
    callbacks = [(None, None, None, posttask, None)]
    dask.compute(*graph(nodes, store).values(), scheduler="sync", optimize_graph=False, callbacks=callbacks)


def _run_on(
    client: Any,
    nodes: Sequence[Node],
    store: Store,
    on_done: OnDone,
    checks: Sequence[Check],
    run: Callable[..., Artifact] = run_node,
) -> None:
    from distributed.scheduler import KilledWorker

    by_name = {node.name: node for node in nodes}
    futures = client.compute(list(graph(nodes, store, run).values()), optimize_graph=False)
    try:
        for future in _as_completed(futures, checks):
            name = _name_of(future.key)
            if future.status not in ("finished", "error"):
                raise WorkerError(
                    f"{name} was {future.status}: the scheduler is gone, or was restarted. Finished blocks are "
                    "kept: the same command goes on from there"
                )
            error = future.exception()
            # The record is what counts; to fetch the result from a worker that has stopped would take for ever.
            done = load_record(store, by_name[name].reference) if error is None else None
            if done is not None:
                on_done(done)
                continue
            if isinstance(error, TamisError):
                raise error
            if isinstance(error, KilledWorker):
                raise WorkerError(
                    f"workers died {_ALLOWED_FAILURES + 1} times on {_name_of(error.task)}; a row of that block may "
                    "need more memory than there is, or break a library. Finished blocks are kept: run again with "
                    "fewer --workers or a smaller block_rows"
                )
            if error is None:
                raise WorkerError(f"{name} is done, and its record in {store.location} cannot be read; run again")
            raise WorkerError(f"{name} failed: {type(error).__name__}: {error}") from error
    finally:
        client.cancel(futures)  # those that are not done; a scheduler that stays must not go on with them


def _as_completed(futures: Sequence[Future], checks: Sequence[Check]) -> Iterator[Future]:
    """Each future once it is done; Dask's own function of this name leaves no moment to check."""
    done: queue.SimpleQueue[Future] = queue.SimpleQueue()
    for future in futures:
        future.add_done_callback(done.put)
    for _ in futures:
        future = None
        while future is None:
            for check in checks:
                check()
            with suppress(queue.Empty):
                future = done.get(timeout=_CHECK_SECONDS)
        yield future


class Watchdog:
    """Raises when a worker has a task and yet does nothing, or when none is left: Dask itself would wait.

    A worker that neither computes nor reads or writes for so long is stopped, or waits for a disk that does not answer.

    Args:
        scheduler: Dask's, in this process, of workers on this machine.
        seconds: How long is too long.
    """

    def __init__(self, scheduler: Any, seconds: float) -> None:
        self._scheduler = scheduler
        self._seconds = seconds
        # By worker process: its tasks, its use of CPU and disk, and when these last showed that it works.
        self._last: dict[int, tuple[Any, float, int, float]] = {}
        self._manned = time.monotonic()  # when there was a worker last

    def __call__(self) -> None:
        """Look at all workers.

        Raises:
            WorkerError: One does nothing, or there is none.
        """
        now = time.monotonic()
        if self._scheduler.workers:
            self._manned = now
        elif now - self._manned > self._seconds:
            raise WorkerError(
                f"there has been no worker process for {self._seconds:.0f} s: they died, and could not be started "
                "again. Finished blocks are kept: the same command goes on from there"
            )
        for worker in list(self._scheduler.workers.values()):
            tasks = tuple(sorted(_name_of(task.key) for task in list(worker.processing)))
            before = self._last.get(worker.pid)
            if before is not None and now - before[3] < self._seconds / 10:
                continue
            try:
                process = psutil.Process(worker.pid)
                times, io = process.cpu_times(), process.io_counters()
            except psutil.Error:
                continue  # it ended: Dask starts another
            used, moved = times.user + times.system, io.read_chars + io.write_chars
            if before is None or not tasks or tasks != before[0]:
                works = True
            else:
                works = used - before[1] > _IDLE_SHARE * (now - before[3]) or moved - before[2] > _IDLE_BYTES
            if works:
                self._last[worker.pid] = (tasks, used, moved, now)
            elif before is not None and now - before[3] > self._seconds:
                raise WorkerError(
                    f"worker process {worker.pid} has done nothing for {self._seconds:.0f} s on "
                    f"{', '.join(tasks[:3])}: it is stopped, or its disk does not answer. Finished blocks are kept: "
                    "the same command goes on from there"
                )


def _kill_stopped(scheduler: Any) -> None:
    """Kill the workers that are stopped: Dask would wait for them to end by themselves."""
    for worker in list(scheduler.workers.values()):
        with suppress(psutil.Error):
            process = psutil.Process(worker.pid)
            if process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
                process.kill()


_ALLOWED_FAILURES = 3
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@contextmanager
def _cluster(scratch: Path, workers: int) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    settings = {
        "distributed.scheduler.allowed-failures": _ALLOWED_FAILURES,
        "distributed.worker.use-file-locking": False,
        "distributed.admin.tick.limit": "1h",  # long numeric tasks hold the GIL; that is no fault
        "distributed.admin.large-graph-warning-threshold": "1GB",  # nobody can do anything about it
        "distributed.worker.profile.enabled": False,  # it samples the stack every 10 ms, for a dashboard
        "distributed.comm.timeouts.connect": "60s",
        # Dask's own setting of the allocator gives memory back after every batch and faults it in again.
        "distributed.nanny.pre-spawn-environ": {
            **_ONE_THREAD,
            "MALLOC_MMAP_THRESHOLD_": "33554432",
            "MALLOC_TRIM_THRESHOLD_": "268435456",
        },
    }
    with dask.config.set(settings), _without_main(), _without_interrupts() as allow:
        start = partial(
            LocalCluster,
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # it cannot be left out, and its own default is a fixed port
            worker_dashboard_address="127.0.0.1:0",
            memory_limit=0,
            local_directory=str(scratch),
            silence_logs=50,
        )
        cluster = _started(start)
        try:
            allow()
            yield cluster
        finally:
            _kill_stopped(cluster.scheduler)
            cluster.close(timeout=10)


def _started(start: Callable[[], Any]) -> Any:
    """A cluster; one whose worker dies while it starts is no cluster for Dask, and another is started."""
    failures = 0
    while True:
        try:
            return start()
        except (RuntimeError, OSError) as error:
            failures += 1
            if failures > _ALLOWED_FAILURES:
                raise WorkerError(
                    f"worker processes did not start, {failures} times: {error}. Finished blocks are kept: run again "
                    "with fewer --workers, or with --executor sync"
                ) from error


@contextmanager
def _variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for a while: workers inherit them, those that are started later too.

    Dask's own setting for it yields to variables that are there already, and leaves its own behind.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _without_interrupts() -> Iterator[Callable[[], object]]:
    """Block SIGINT while worker processes are started, which inherit that: a Ctrl-C is for this process alone.

    Gives the function that unblocks it here; one that came meanwhile then takes effect.
    """
    resource_tracker.ensure_running()  # or starting it would unblock the signal in the thread that starts workers
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep workers from importing the caller's script.

    Starting a process, multiprocessing imports `__main__` again, which would run a script that has no
    `if __name__ == "__main__"` a second time. Our tasks are all in this package and never need it.
    """
    main = sys.modules["__main__"]
    saved = {name: getattr(main, name, None) for name in ("__file__", "__spec__")}
    main.__spec__ = None
    if hasattr(main, "__file__"):
        del main.__file__
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is not None:
                setattr(main, name, value)

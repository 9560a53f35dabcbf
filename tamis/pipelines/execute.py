"""Run the nodes of a plan on Dask: its schedulers are the only executors.

`local` is a `LocalCluster` of processes with one thread each, every socket on loopback; `sync` runs the same
graph in this process. Nodes carry keys and paths; what they make lies in the working folder.
"""

from __future__ import annotations

import queue
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from tamis.errors import OutputError, TamisError, WorkerError
from tamis.manifests.atomic import sync_folder
from tamis.pipelines.node import Artifact, Node, run_node

if TYPE_CHECKING:
    from pathlib import Path

    from distributed import Future

OnDone = Callable[[Artifact], None]
Check = Callable[[], None]

_CHECK_SECONDS = 0.25


def execute(nodes: Sequence[Node], work: Path, *, executor: str, workers: int, on_done: OnDone, check: Check) -> None:
    """Run nodes, inputs first, and report each as it is done.

    Args:
        nodes: The pending nodes; inputs that are not among them have their records in `work`.
        work: The working folder.
        executor: `local` or `sync`.
        workers: Worker processes of `local`.
        on_done: Called in this process for each finished node.
        check: Called in this process often; what it raises ends the run.

    Raises:
        TamisError: What a task raised.
        WorkerError: A worker died again and again on one node, which is named.
    """
    if not nodes:
        return
    for task in sorted({node.task for node in nodes}):
        try:
            (work / task).mkdir(parents=True, exist_ok=True)
            sync_folder(work)
        except OSError as error:
            raise OutputError(
                f"cannot make {work / task}: {error.strerror or error}; give a folder that can be written"
            ) from error
    if executor == "sync":
        _run_sync(nodes, work, on_done, check)
    else:
        _run_local(nodes, work, workers, on_done, check)


def graph(nodes: Sequence[Node], work: Path) -> dict[str, Any]:
    """Build the Dask graph: one delayed call a node, keyed by the node's name, waiting for its inputs."""
    from dask.delayed import delayed

    run = delayed(run_node, pure=False)
    built: dict[str, Any] = {}
    for node in nodes:
        before = [built[name] for group in node.inputs.values() for name, _, _ in group if name in built]
        built[node.name] = run(node, str(work), *before, dask_key_name=node.name)
    return built


def _run_sync(nodes: Sequence[Node], work: Path, on_done: OnDone, check: Check) -> None:
    import dask
    from dask.callbacks import Callback

    def posttask(key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:  # noqa: ARG001
        if isinstance(result, Artifact):
            on_done(result)
        check()

    with Callback(posttask=posttask):
        dask.compute(*graph(nodes, work).values(), scheduler="sync", optimize_graph=False)


def _run_local(nodes: Sequence[Node], work: Path, workers: int, on_done: OnDone, check: Check) -> None:
    from distributed import Client
    from distributed.scheduler import KilledWorker

    with _cluster(work, workers) as cluster, Client(cluster, set_as_default=False) as client:
        futures = client.compute(list(graph(nodes, work).values()), optimize_graph=False)
        for future in _as_completed(futures, check):
            error = future.exception()
            if error is None:
                on_done(future.result())
                continue
            client.cancel(futures)
            if isinstance(error, TamisError):
                raise error
            if isinstance(error, KilledWorker):
                raise WorkerError(
                    f"workers died {_ALLOWED_FAILURES + 1} times on {error.task}; a row of that block may need more "
                    "memory "
                    ""
                    "than there is, or break a library. Finished blocks are kept: run again with fewer --workers or "
                    "a smaller block_rows"
                )
            raise WorkerError(f"{future.key} failed: {type(error).__name__}: {error}") from error


def _as_completed(futures: Sequence[Future], check: Check) -> Iterator[Future]:
    """Each future once it is done; Dask's own function of this name leaves no moment to check."""
    done: queue.SimpleQueue[Future] = queue.SimpleQueue()
    for future in futures:
        future.add_done_callback(done.put)
    for _ in futures:
        future = None
        while future is None:
            check()
            with suppress(queue.Empty):
                future = done.get(timeout=_CHECK_SECONDS)
        yield future


_ALLOWED_FAILURES = 3
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@contextmanager
def _cluster(work: Path, workers: int) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    settings = {
        "distributed.scheduler.allowed-failures": _ALLOWED_FAILURES,
        "distributed.worker.use-file-locking": False,
        "distributed.admin.tick.limit": "1h",  # long numeric tasks hold the GIL; that is no fault
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
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # it cannot be left out, and its own default is a fixed port
            worker_dashboard_address="127.0.0.1:0",
            memory_limit=0,
            local_directory=str(work / "dask"),
            silence_logs=50,
        )
        try:
            allow()
            yield cluster
        finally:
            cluster.close(timeout=10)


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

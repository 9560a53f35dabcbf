"""How the benchmarks measure: in turn, as ratios, on one thread; memory in a process of its own (Linux).

Only the standard library is imported at the top, so that the environment of a peer can use this module too.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection

    import numpy as np
    import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LIBRARIES = ("tamis", "numpy", "scipy", "numba", "faiss-cpu", "scikit-learn", "submodlib-py")
GB = 1e9


class Seconds(float):
    """Returned by a function that has timed itself, in a process of its own: taken instead of the clock's time."""


def alternate(functions: Mapping[str, Callable[[], object]], repeat: int = 3) -> dict[str, list[float]]:
    """Time functions in turn, in the opposite order every other round, so that drift hits all alike.

    Args:
        functions: Called without arguments. Warm-up (compiling, loading) is the caller's.
        repeat: Rounds.

    Returns:
        Of each function its wall seconds, one a round; what it returned where that is `Seconds`.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(repeat):
        for name in list(functions)[:: 1 if number % 2 == 0 else -1]:
            gc.collect()
            began = time.perf_counter()
            returned = functions[name]()
            took = time.perf_counter() - began
            times[name].append(float(returned) if isinstance(returned, Seconds) else took)
            print(f"round {number + 1} of {repeat}: {name} {times[name][-1]:.3f} s", file=sys.stderr, flush=True)
    return times


def ratio(times: Mapping[str, Sequence[float]], ours: str = "ours", theirs: str = "theirs") -> dict[str, float]:
    """How many times faster ours is: theirs / ours, round by round."""
    return spread([b / a for a, b in zip(times[ours], times[theirs], strict=True)])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of some measurements."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for BLAS, OpenMP, faiss and numba's parallel loops in this process, as far as they are loaded here.

    A library's own thread pool (`threads=2` of a selector) is not limited by it.
    """
    with ExitStack() as stack:
        if "faiss" in sys.modules:
            faiss = sys.modules["faiss"]
            stack.callback(faiss.omp_set_num_threads, faiss.omp_get_max_threads())
            faiss.omp_set_num_threads(1)
        if "numba" in sys.modules:
            numba = sys.modules["numba"]
            stack.callback(numba.set_num_threads, numba.get_num_threads())
            numba.set_num_threads(1)
        from threadpoolctl import threadpool_limits

        stack.enter_context(threadpool_limits(limits=1))
        yield


@dataclass(frozen=True)
class Child:
    """What a function did in a process of its own.

    Attributes:
        result: What it returned.
        seconds: Wall time of the function, without starting and loading.
        resident_bytes: What the process held when the function started: the interpreter, libraries, data.
        extra_bytes: By how much its memory rose above that at most.
    """

    result: Any
    seconds: float
    resident_bytes: int
    extra_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The process's largest memory while the function ran, everything included."""
        return self.resident_bytes + self.extra_bytes


def in_child(work: Callable[..., Any], load: Callable[..., tuple[Any, ...]], *arguments: Any) -> Child:
    """Run work(*load(*arguments)) in a new process, and measure `work` alone.

    Args:
        work: A function of a module; what it returns must be picklable.
        load: A function of a module that makes its arguments. It should also warm up what `work` compiles.
        *arguments: What `load` gets.

    Raises:
        RuntimeError: The process ended without a result, by an error (printed by it) or for want of memory.
    """
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(its, work, load, arguments))
    process.start()
    its.close()
    try:
        result, seconds, resident, extra = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{work.__name__} in a process of its own ended with code {process.exitcode}") from None
    finally:
        ours.close()
        process.join()
    return Child(result, seconds, resident, extra)


def _nothing() -> tuple[()]:
    return ()


def peak_memory(work: Callable[[], object], load: Callable[..., tuple[Any, ...]] = _nothing, *arguments: Any) -> int:
    """Bytes that a function takes at most above what its process held before, data included (see `in_child`)."""
    return in_child(work, load, *arguments).extra_bytes


def _child(
    connection: Connection, work: Callable[..., Any], load: Callable[..., tuple[Any, ...]], arguments: Any
) -> None:
    given = load(*arguments)
    resident = reset_peak()
    began = time.perf_counter()
    result = work(*given)
    seconds = time.perf_counter() - began
    connection.send((result, seconds, resident, peak() - resident))


def reset_peak() -> int:
    """Let the process's memory peak be counted from now on, and return the bytes that it holds now.

    Freed memory that the allocator keeps is given back first, or what is allocated next would seem to be free.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The most bytes that this process held since `reset_peak`, or since its start.

    Not `ru_maxrss`, which a process inherits from the one that started it.
    """
    return _status("VmHWM")


def _status(key: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def nearest_similarity(X: npt.NDArray[np.float32], chosen: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """max(0, max_{j in S} <x_i, x_j>) of every row, written without anything of Tamis. Its sum is f(S).

    Args:
        X: float32[n, d], rows of length 1.
        chosen: The rows of S.

    Returns:
        float64[n]; products in float32, in blocks of about 64 MiB.
    """
    import numpy as np

    centres = np.ascontiguousarray(X[chosen].T)
    height = max(1, (1 << 24) // max(1, len(chosen)))
    best = np.empty(len(X), np.float64)
    for start in range(0, len(X), height):
        best[start : start + height] = (X[start : start + height] @ centres).max(axis=1)
    return np.maximum(best, 0.0)


def aim(
    work: str,
    against: str,
    measured: Mapping[str, float] | float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str = "x",
    same_list: bool | None = None,
) -> dict[str, Any]:
    """A row of the README's table: what was aimed at, and what was measured.

    Args:
        work: What was done, with its size.
        against: The peer, or what is measured of ours where there is none.
        measured: As `ratio` and `spread` give it, or one number.
        at_least: The aim, where more is better.
        at_most: The aim, where less is better.
        unit: Of aim and measurement: x, s, GB, or nothing.
        same_list: Whether both chose the same rows in the same order; None where they need not.
    """
    values = spread([float(measured)]) if isinstance(measured, (int, float)) else dict(measured)
    if at_least is not None and at_most is None:
        goal, met = {"at_least": at_least}, values["median"] >= at_least
    elif at_most is not None and at_least is None:
        goal, met = {"at_most": at_most}, values["median"] <= at_most
    else:
        raise ValueError("an aim is either at_least or at_most")
    return {
        "work": work,
        "against": against,
        "aim": goal,
        "unit": unit,
        "measured": values,
        "met": met,
        "same_list": same_list,
    }


def machine() -> dict[str, Any]:
    """The machine, as far as it decides speed."""
    sys.path.insert(0, str(ROOT / "data_manifests"))
    import publish

    return {"cores": len(os.sched_getaffinity(0)), "cpu": publish.cpu(), "python": platform.python_version()}


def libraries() -> dict[str, str]:
    """The versions of what computes."""
    return {name: metadata.version(name) for name in LIBRARIES}


def complete(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results with the machine and the libraries' versions."""
    return {"machine": machine(), "libraries": libraries()} | dict(results)


def write(name: str, results: Mapping[str, Any]) -> Path:
    """Write results/<name>.json: the results, the machine, the libraries' versions; keys sorted."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(complete(results), indent=1, sort_keys=True) + "\n")
    return path


def finish(name: str, results: Mapping[str, Any], keep: bool) -> None:
    """Write the results and print the path; a trial (`--quick`, `--rows`) prints them instead, and writes nothing."""
    if keep:
        print(write(name, results).relative_to(ROOT))
    else:
        print(json.dumps(complete(results), indent=1, sort_keys=True))

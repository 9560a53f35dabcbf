"""What a task uses of the machine: one numeric thread, and how much memory it took at its peak."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def available_memory() -> int:
    """Bytes that new processes may use: what the machine has free, or a container's limit leaves of it."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used in _CGROUPS:
        try:
            free = min(free, int(limit.read_text()) - int(used.read_text()) + _cached(limit.parent / "memory.stat"))
        except (OSError, ValueError):  # no such group, or no limit in it
            continue
    return max(0, free)


def _cached(statistics: Path) -> int:
    """Bytes of files that a group holds in memory and that the kernel would give back."""
    lines = (line.split() for line in statistics.read_text().splitlines())
    return next((int(value) for name, value in lines if name in ("inactive_file", "total_inactive_file")), 0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Give the numeric libraries one thread: the result must not depend on how many a machine has.

    Parallelism is across tasks.  Libraries that it needs are imported before.
    """
    from tamis.threads import one_blas_thread, thread_pools

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    with thread_pools().limit(limits=1), one_blas_thread():  # selectors that ask for the latter find it set already
        if torch:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch and before:
                torch.set_num_threads(before)


def reset_peak_memory() -> None:
    """Set the kernel's high-water mark of this process back to what it uses now (Linux; elsewhere nothing)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes, since the last reset where that is possible."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

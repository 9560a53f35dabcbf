"""Threads: one inside BLAS, and as many as asked across the parts of some work."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_lock = threading.Lock()
_users = 0
_limiter: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread for the body.

    The limit is a setting of the whole process, so concurrent bodies share it: the first sets it and the last
    restores it. (Each restoring on its own would let one body end the limit under another.)
    """
    from threadpoolctl import threadpool_limits

    global _users, _limiter
    with _lock:
        if _users == 0:
            _limiter = threadpool_limits(limits=1, user_api="blas")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limiter.restore_original_limits()
                _limiter = None


def each(threads: int, work: Callable[[int], None], parts: Iterable[int]) -> None:
    """Do the parts of some work, on several threads if asked; an error in one is raised."""
    if threads == 1:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, parts):
            pass

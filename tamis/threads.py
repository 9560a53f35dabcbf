"""Threads: one inside BLAS, and as many as asked across the parts of some work."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from threadpoolctl import ThreadpoolController


class Shared:
    """A setting of the whole process, which concurrent bodies share: the first sets it and the last restores it.

    (Each restoring on its own would let one body end the setting under another.)

    Args:
        setting: Makes the context manager that sets and restores.
    """

    def __init__(self, setting: Callable[[], AbstractContextManager[object]]) -> None:
        self._setting = setting
        self._lock = threading.Lock()
        self._users = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the setting for the body."""
        with self._lock:
            if self._users == 0:
                self._entered = self._setting()
                self._entered.__enter__()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._entered.__exit__(None, None, None)


def thread_pools() -> ThreadpoolController:
    """The numeric libraries that are loaded, whose threads can be limited.

    To look for them takes milliseconds, and an import is what loads more of them.
    """
    return _thread_pools(len(sys.modules))


@lru_cache(maxsize=1)
def _thread_pools(_modules: int) -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _blas_limit() -> AbstractContextManager[object]:
    limit: AbstractContextManager[object] = thread_pools().limit(limits=1, user_api="blas")
    return limit


one_blas_thread = Shared(_blas_limit)
"""Limit BLAS to one thread for the body; of libraries that are loaded by then."""


def each(threads: int, work: Callable[[int], None], parts: Iterable[int]) -> None:
    """Do the parts of some work, on several threads if asked; an error in one is raised."""
    if threads == 1:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, parts):
            pass

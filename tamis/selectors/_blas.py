"""One BLAS thread around a product whose bits must not depend on the machine's thread count."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

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

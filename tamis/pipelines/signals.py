"""SIGINT and SIGTERM end a run in order: with exit code 130, and resumable."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tamis.errors import StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


@contextmanager
def stoppable(timeout: float | None = None) -> Iterator[Callable[[], None]]:
    """Turn SIGINT and SIGTERM, where this is the main thread, and the end of a time limit into StoppedError.

    Gives a function to call every now and then, which raises it too: what a handler raises is lost where it meets a
    callback of the garbage collector, or a library that catches every exception.

    Args:
        timeout: Seconds from now; None for no limit.
    """
    came: list[int] = []
    deadline = None if timeout is None else time.monotonic() + timeout

    def check() -> None:
        what = None
        if came and came[0] != signal.SIGALRM:
            what = f"by {signal.Signals(came[0]).name}"
        elif came or (deadline is not None and time.monotonic() > deadline):
            what = f"at the time limit of {timeout:g} s"
        if what is not None:
            raise StoppedError(f"stopped {what}; what is finished is kept: the same command goes on from there")

    if threading.current_thread() is not threading.main_thread():
        yield check
        return

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        came.append(number)
        check()

    numbers = (signal.SIGINT, signal.SIGTERM, *([] if timeout is None else [signal.SIGALRM]))
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        if timeout is not None:
            signal.setitimer(signal.ITIMER_REAL, timeout)
        yield check
    finally:
        if timeout is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)

"""SIGINT and SIGTERM end a run in order: with exit code 130, and resumable."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tamis.errors import StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Turn SIGINT and SIGTERM into StoppedError, where this is the main thread.

    Gives a function to call every now and then, which raises it too: what a handler raises is lost where it meets a
    callback of the garbage collector, or a library that catches every exception.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[int] = []

    def check() -> None:
        if came:
            raise StoppedError(
                f"stopped by {signal.Signals(came[0]).name}; what is finished is kept: the same command goes on from "
                "there"
            )

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        came.append(number)
        check()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

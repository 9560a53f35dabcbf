"""Progress for people: bars on a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tamis.training.trainer import Progress as Step

_LINE_SECONDS = 5.0


class _Bar:
    """One bar on a terminal, or a line every few seconds."""

    def __init__(self) -> None:
        self._last = 0.0
        self._shown = ""
        self._rich: Any = None
        self._task: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description:<14}"),
                BarColumn(None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._rich = Bars(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Any:
        if self._rich:
            self._rich.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._rich:
            self._rich.stop()

    def show(self, what: str, done: int, total: int, line: str = "") -> None:
        """Move to `done` of `total`; `what` is being worked on."""
        if self._rich:
            if self._task is None:
                self._task = self._rich.add_task(what, total=total)
            self._rich.update(self._task, description=what, completed=done, total=total)
            return
        now = time.monotonic()
        if what == self._shown and now - self._last < _LINE_SECONDS and done < total:
            return
        self._last, self._shown = now, what
        print(line or f"{what}: {done} of {total}", file=sys.stderr, flush=True)


class Progress(_Bar):
    """Follows the events of a run."""

    def __init__(self) -> None:
        super().__init__()
        self._total = 0

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Show one event of `tamis.run`."""
        if event["event"] == "run":
            self._total = event["todo"]
            if self._total:
                self.show(
                    "starting",
                    0,
                    self._total,
                    f"{event['todo']} tasks to run, {event['cached']} cached, {event['workers']} workers",
                )
        elif event["event"] == "node":
            done = self._total - event["left"]
            self.show(event["stage"], done, self._total, f"{event['stage']}: task {done} of {self._total}")
        elif event["event"] == "repair":
            print(f"repairing: {event['reason']}", file=sys.stderr, flush=True)


class TrainingProgress(_Bar):
    """Follows the steps of a training."""

    def on_step(self, step: Step) -> None:
        """Show where the training is."""
        line = f"epoch {step.epoch + 1}: {step.position:,} of {step.epoch_samples:,} samples, loss {step.loss:.4f}"
        self.show(f"epoch {step.epoch + 1}", step.position, step.epoch_samples, line)

"""Progress for people: bars on a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tamis.advice.trial import Step as Trial
    from tamis.pipelines.guess import Guess
    from tamis.training.arms import Step as Training
    from tamis.training.trainer import Progress as Step

_LINE_SECONDS = 5.0
_WIDE = 72


def _bars(unit: str) -> Any:
    """Rich's bar: what is being worked on, how much is done, how fast, since when, how long still."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:,.1f} {unit}/s" if task.speed else f"{unit}")

    console = Console(stderr=True)
    wide = console.width >= _WIDE  # else a bar would have no room, and the rest would wrap
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(None),
        MofNCompleteColumn(),
        *([Rate(Column(no_wrap=True)), TimeElapsedColumn()] if wide else []),
        TimeRemainingColumn(),
        *([TextColumn("left")] if wide else []),
    )
    return Progress(*columns, console=console, transient=True)


class _Bar:
    """One bar on a terminal, or a line every few seconds.

    Args:
        unit: What is counted.
    """

    def __init__(self, unit: str) -> None:
        self._last = 0.0
        self._shown = ""
        self._task: Any = None
        self._rich: Any = _bars(unit) if sys.stderr.isatty() else None

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

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._rich:
            self._rich.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


class Progress(_Bar):
    """Follows the events of a run."""

    def __init__(self) -> None:
        super().__init__("tasks")
        self._total = 0
        self._open: dict[str, int] = {}  # tasks to come, by stage

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Show one event of `tamis.run`."""
        if event["event"] == "run":
            self._total, self._open = event["todo"], dict(event["stages"])
            if self._total:
                self.show(
                    "starting",
                    0,
                    self._total,
                    f"{event['todo']} tasks to run, {event['cached']} cached, {event['workers']} workers",
                )
        elif event["event"] == "node":
            done = self._total - event["left"]
            self._open[event["stage"]] -= 1
            at = next((stage for stage, count in self._open.items() if count), event["stage"]) if self._rich else ""
            self.show(at or event["stage"], done, self._total, f"{event['stage']}: task {done} of {self._total}")
        elif event["event"] == "cluster" and find_spec("bokeh"):  # Dask's dashboard is drawn by it
            self.say(f"dashboard of the workers: {event['dashboard']}")
        elif event["event"] == "repair":
            self.say(f"repairing: {event['reason']}")


class TrainingProgress(_Bar):
    """Follows the steps of a training."""

    def __init__(self) -> None:
        super().__init__("samples")

    def on_step(self, step: Step) -> None:
        """Show where the training is."""
        line = f"epoch {step.epoch + 1}: {step.position:,} of {step.epoch_samples:,} samples, loss {step.loss:.4f}"
        self.show(f"epoch {step.epoch + 1}", step.position, step.epoch_samples, line)


class ComparisonProgress(_Bar):
    """Follows the trainings of a comparison."""

    def __init__(self) -> None:
        super().__init__("trainings")

    def on_step(self, step: Training) -> None:
        """Show which training begins, or has ended."""
        if step.trained is None and not self._rich:
            return
        training = f"{step.name}, seed {step.seed}"
        how = "begins" if step.trained is None else f"{step.trained.value:.4f} in {step.trained.seconds:.1f} s"
        line = f"training {step.done} of {step.total}: {training}: {'was there already' if step.kept else how}"
        self.show("there already" if step.kept else training, step.done, step.total, line)


class AdviceProgress(_Bar):
    """Follows the trials of candidates."""

    def __init__(self) -> None:
        super().__init__("trials")

    def on_found(self, found: Guess) -> None:
        """Say how the columns were understood."""
        for line in found.why:
            self.say(line)
        if "label" in found.fields:
            self.show("reading", 0, 1, "reading the rows")

    def on_step(self, step: Trial) -> None:
        """Show what is tried."""
        self.show(f"split {step.split}, {step.name}" if self._rich else f"split {step.split}", step.done, step.total)

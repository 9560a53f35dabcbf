"""What a person sees of a run: bars on a terminal, plain lines elsewhere, both on standard error."""

import io

import pytest

from tamis import progress
from tamis.progress import Progress, TrainingProgress
from tamis.training.trainer import Progress as Step

EVENTS = [
    {"event": "run", "todo": 3, "cached": 2, "workers": 2, "stages": {"01-embed": 1, "02-dedup": 2}},
    {"event": "cluster", "dashboard": "http://127.0.0.1:4711/status"},
    {"event": "node", "stage": "01-embed", "left": 2},
    {"event": "repair", "reason": "a file [bold]was[/bold] damaged"},
    {"event": "node", "stage": "02-dedup", "left": 1},
    {"event": "node", "stage": "02-dedup", "left": 0},
    {"event": "done"},
]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(params=[True, False], ids=["bokeh", "no bokeh"])
def bokeh(request, monkeypatch):
    monkeypatch.setattr(progress, "find_spec", lambda name: name == "bokeh" and request.param)
    return request.param


def follow(stream, monkeypatch):
    monkeypatch.setattr("sys.stderr", stream)
    with Progress() as shown:
        for event in EVENTS:
            shown.on_event(event)
    return stream.getvalue()


def test_lines_where_there_is_no_terminal(bokeh, monkeypatch):
    lines = follow(io.StringIO(), monkeypatch).splitlines()
    dashboard = ["dashboard of the workers: http://127.0.0.1:4711/status"] if bokeh else []
    assert lines == [
        "3 tasks to run, 2 cached, 2 workers",
        *dashboard,
        "01-embed: task 1 of 3",
        "repairing: a file [bold]was[/bold] damaged",
        "02-dedup: task 2 of 3",
        "02-dedup: task 3 of 3",
    ]


def test_a_bar_fits_a_narrow_terminal(bokeh, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "46")
    said = follow(Terminal(), monkeypatch)
    assert "3/3" in said
    assert "tasks" not in said
    assert "\u2026" not in said
    bars = [line for line in said.splitlines() if "\u2501" in line]
    assert all("0:" in bar or "-:" in bar for bar in bars)


def test_a_bar_on_a_terminal(bokeh, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    said = follow(Terminal(), monkeypatch)
    assert "02-dedup" in said
    assert "3/3" in said
    assert "tasks" in said
    assert "repairing: a file [bold]was[/bold] damaged" in said
    assert ("4711/status" in said) == bokeh


def test_a_bar_names_the_stage_that_is_worked_on(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", Terminal())
    named = []
    with Progress() as shown:
        monkeypatch.setattr(shown, "show", lambda what, *_: named.append(what))
        for event in EVENTS:
            shown.on_event(event)
    assert named == ["starting", "02-dedup", "02-dedup", "02-dedup"]


def test_training_counts_samples(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with TrainingProgress() as shown:
        shown.on_step(Step(epoch=0, position=128, epoch_samples=256, steps=1, samples_seen=128, loss=0.5))
    assert stream.getvalue() == "epoch 1: 128 of 256 samples, loss 0.5000\n"

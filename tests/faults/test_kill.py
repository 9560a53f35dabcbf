"""The main process is killed with SIGKILL, at random moments and at every named step of a commit; then rerun."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

import tamis
from tamis.errors import RecipeError, StoppedError, WorkerError
from tamis.pipelines import execute
from tamis.pipelines.signals import stoppable

RUN = [sys.executable, "-m", "tamis", "run"]


def start(recipe, out, *more, **environment):
    command = [*RUN, str(recipe), "--out", str(out), *more]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def recipe_file(small_recipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe))
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe_file, tmp_path_factory, manifest_bytes):
    """The manifest's bytes of a run that nothing disturbs, and how many tasks it has."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(recipe_file, out, "--workers", "2")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    return manifest_bytes(out), recorded(out)


def recorded(out):
    """How many tasks are finished."""
    return len(list(out.glob("work/*/*.json")))


def torn(out):
    """Files that a reader could take for whole but are not: none may ever be there."""
    return [path for path in (out / "manifest").rglob("*.json") if not path.read_bytes().endswith(b"}")]


def test_killed_at_random_moments(recipe_file, undisturbed, tmp_path, manifest_bytes, request):
    expected, tasks = undisturbed
    kills = request.config.getoption("--kills")
    rng = random.Random(20260101)
    died, resumed = 0, 0
    for attempt in range(kills):
        out = tmp_path / str(attempt)
        process = start(recipe_file, out, "--workers", "2")
        # Spread over the whole run, the start-up of the workers and the commit included, by what it has finished:
        # a clock would hit another moment on a busier machine.
        reached = tasks * attempt // kills
        while process.poll() is None and recorded(out) < reached:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.2)
        died += process.poll() is None
        process.kill()
        process.communicate(timeout=60)
        assert not torn(out)
        finished = recorded(out)
        run = tamis.run(recipe_file, out, executor="sync")
        resumed += finished > 0
        # What was recorded is not done again, but for a commit whose manifest is not there.
        assert len(run.ran) <= tasks - finished + 1
        assert manifest_bytes(out) == expected
        assert not list(out.rglob("*.tmp"))
    print(f"{kills} runs, {died} killed, {resumed} resumed with work done before, {kills} equal manifests")
    assert died >= kills * 0.7
    assert resumed >= kills * 0.7


CRASHES = ["ingest.index:written", "embed.block:recorded", "dedup.near:written", "select.take:recorded",
           "commit:parts", "commit:verified", "atomic:linked", "commit:linked", "commit.manifest:written"]  # fmt: skip


@pytest.mark.parametrize("point", CRASHES)
def test_killed_at_a_named_point(point, recipe_file, undisturbed, tmp_path, manifest_bytes):
    out = tmp_path / "run"
    process = start(recipe_file, out, "--executor", "sync", TAMIS_CRASH_AT=point)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert not torn(out)
    finished = recorded(out)
    run = tamis.run(recipe_file, out, executor="sync")
    assert finished > 0
    assert len(run.ran) == undisturbed[1] - finished
    assert manifest_bytes(out) == undisturbed[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(number, recipe_file, undisturbed, tmp_path, manifest_bytes):
    out = tmp_path / "run"
    process = start(recipe_file, out, "--workers", "2")
    while not list(out.glob("work/ingest.index/*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert b"the same command goes on from there" in errors
    tamis.run(recipe_file, out, executor="sync")
    assert manifest_bytes(out) == undisturbed[0]


def test_a_signal_is_not_lost_where_its_exception_is():
    with stoppable() as check:
        check()  # nothing came yet
        with contextlib.suppress(StoppedError):  # as a callback of the garbage collector does
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(StoppedError, match="SIGINT"):
            check()


def test_a_run_stops_where_the_exception_of_a_signal_is_lost(recipe_file, undisturbed, tmp_path):
    def swallow(event):
        with contextlib.suppress(StoppedError):
            if event["event"] == "node":
                signal.raise_signal(signal.SIGTERM)

    for executor in ("sync", "local"):
        with pytest.raises(StoppedError, match="SIGTERM"):
            tamis.run(recipe_file, tmp_path / executor, executor=executor, on_event=swallow)
        assert recorded(tmp_path / executor) < undisturbed[1]


def workers_of(process):
    """The worker processes of a run: the children whose command line is a spawned process of multiprocessing."""
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = [int(child) for path in threads for child in path.read_text().split()]
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("stage", ["ingest.block", "score.fold"])
def test_a_killed_worker_is_replaced(stage, recipe_file, undisturbed, tmp_path, manifest_bytes):
    out = tmp_path / "run"
    process = start(recipe_file, out, "--workers", "2")
    while not list(out.glob(f"work/{stage}/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert manifest_bytes(out) == undisturbed[0]


def stop_the_workers(event):
    """As a debugger, a frozen container or a dead disk does: the processes are there, and do nothing."""
    if event["event"] == "node" and event["left"]:
        for child in psutil.Process().children():
            if "spawn_main" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_STOPPED:
                child.suspend()


def test_workers_that_do_nothing_end_the_run(recipe_file, undisturbed, tmp_path, manifest_bytes, monkeypatch):
    monkeypatch.setattr(execute, "_STALL_SECONDS", 3.0)
    with pytest.raises(WorkerError, match=r"has done nothing for 3 s on .*the same command goes on"):
        tamis.run(recipe_file, tmp_path, workers=2, on_event=stop_the_workers)
    assert 0 < recorded(tmp_path) < undisturbed[1]
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    tamis.run(recipe_file, tmp_path, executor="sync")
    assert manifest_bytes(tmp_path) == undisturbed[0]


def test_without_the_watchdog_they_would_hang_until_the_time_limit(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "_STALL_SECONDS", 1e9)
    with pytest.raises(StoppedError, match="at the time limit of 15 s; what is finished is kept"):
        tamis.run(recipe_file, tmp_path, workers=2, on_event=stop_the_workers, timeout=15)


def test_workers_that_work_are_left_alone(recipe_file, tmp_path, undisturbed, manifest_bytes, monkeypatch):
    monkeypatch.setattr(execute, "_STALL_SECONDS", 1.0)
    tamis.run(recipe_file, tmp_path, workers=2)
    assert manifest_bytes(tmp_path) == undisturbed[0]


def test_the_time_limit_holds_where_nothing_asks():
    began = time.monotonic()
    with pytest.raises(StoppedError, match="at the time limit"), stoppable(0.3):
        time.sleep(20)  # such as hashing a large dataset
    assert time.monotonic() - began < 10
    time.sleep(0.1)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_a_time_limit_of_nothing_is_refused(recipe_file, tmp_path):
    with pytest.raises(RecipeError, match="timeout is 0"):
        tamis.run(recipe_file, tmp_path, timeout=0)

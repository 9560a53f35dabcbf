"""Processes killed with SIGKILL, at random moments and at every crash point; then the run goes on to the same bytes."""

import contextlib
import random
import shutil
import signal
import time

import distributed
import psutil
import pytest

import tamis
from tamis.errors import LockedError, OutputError, RecipeError, StoppedError, WorkerError
from tamis.manifests import atomic
from tamis.manifests.reader import versions
from tamis.pipelines import execute, lock
from tamis.pipelines.signals import stoppable

STAGES = {"ingest", "embed", "dedup", "cluster", "score", "prune", "select", "schedule", "reweight"}
LONG = STAGES - {"prune", "schedule", "reweight"}  # these are tasks of milliseconds, which crash points are for
KILLS_A_RUN = 4  # of workers; Dask starts a task that loses its worker again three times


@pytest.fixture(scope="module")
def undisturbed(forked, recorded, manifest_bytes):
    """The manifest's bytes of a run that nothing disturbs, and how many tasks it has."""
    return manifest_bytes(forked.undisturbed), recorded(forked.undisturbed)


def runs(process):
    return process.status() != psutil.STATUS_ZOMBIE


def workers_of(process):
    """The worker processes of a run."""
    found = []
    for child in process.children():
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def last_stage(out):
    """The kind of stage whose task was finished last; the one that is under way is it, or the next."""
    records = sorted(out.glob("work/*/*.json"), key=lambda path: path.stat().st_mtime_ns)
    return records[-1].parent.name.partition(".")[0] if records else None


def goes_on(recipe, out, undisturbed, manifest_bytes, recorded, torn):
    """Run again, to the bytes of the undisturbed run; nothing that was recorded is done twice."""
    expected, tasks = undisturbed
    assert not torn(out)
    finished = recorded(out)
    run = tamis.run(recipe, out, executor="sync", timeout=120)
    assert len(run.ran) == tasks - finished
    assert manifest_bytes(out) == expected
    assert not torn(out)
    assert not list(out.rglob("*.tmp"))
    return finished


@pytest.fixture
def resume(undisturbed, manifest_bytes, recorded, torn, recipe_file):
    """`goes_on` for the recipe of these tests."""
    return lambda out: goes_on(recipe_file, out, undisturbed, manifest_bytes, recorded, torn)


def test_the_main_process_killed_at_random_moments(
    forked, recipe_file, undisturbed, recorded, resume, tmp_path, soak, tally
):
    kills = 200 if soak else 8
    rng = random.Random(20260101)
    killed, resumed, attempts, stages = 0, 0, 0, set()
    while killed < kills:
        attempts += 1
        assert attempts <= 3 * kills
        out = tmp_path / str(attempts)
        executor = ("--workers", 2) if attempts % 2 else ("--executor", "sync")
        process = forked.start("run", recipe_file, "--out", out, *executor)
        # Spread over the whole run, the start-up of the workers and the commit included, by what it has finished:
        # a clock would hit another moment on a busier machine.
        reached = undisturbed[1] * killed // kills
        while runs(process) and recorded(out) < reached:
            time.sleep(0.002)
        time.sleep(rng.random() * (0.05 if reached else 2.0))
        code, hangs, _ = forked.end(process, kill=True)
        assert hangs == 0
        if code == 0:
            continue  # it was faster
        assert code == -signal.SIGKILL
        killed += 1
        stages.add(last_stage(out))
        resumed += resume(out) > 0
        tally("SIGKILL of the main process", hangs=hangs, torn=0, identical=1)
    assert resumed >= kills * 0.7
    assert not soak or stages >= LONG


def test_workers_killed_at_random_moments(
    forked, recipe_file, undisturbed, recorded, resume, manifest_bytes, tmp_path, soak, tally
):
    expected, tasks = undisturbed
    kills = 200 if soak else 8
    rng = random.Random(20260102)
    killed, turn, stages = 0, 0, set()
    turns = kills // KILLS_A_RUN
    while killed < kills:
        assert turn <= 3 * turns
        out = tmp_path / str(turn)
        process = forked.start("run", recipe_file, "--out", out, "--workers", 2)
        hit = 0
        for kill in range(min(KILLS_A_RUN, kills - killed)):
            reached = tasks * (kill * turns + turn % turns) // (KILLS_A_RUN * turns)
            while runs(process) and (recorded(out) < reached or not workers_of(process)):
                time.sleep(0.002)
            time.sleep(rng.random() * 0.05)
            if not (runs(process) and (workers := workers_of(process))):
                break
            rng.choice(workers).kill()
            hit += 1
            stages.add(last_stage(out))
        code, hangs, printed = forked.end(process)
        assert (code, hangs) == (0, 0), printed
        assert manifest_bytes(out) == expected
        assert resume(out) == tasks  # it finds nothing to do, and what the killed ones left is swept away
        tally("SIGKILL of a worker", injected=hit, hangs=hangs, torn=0, identical=hit)
        killed, turn = killed + hit, turn + 1
    assert not soak or stages >= LONG


@pytest.fixture(scope="module")
def crash_points(forked, recipe_file, tmp_path_factory):
    """The names of all crash points that a run passes, in order: a new stage is in it by itself."""
    folder = tmp_path_factory.mktemp("points")
    code, _, printed = forked.run(
        "run", recipe_file, "--out", folder / "run", "--executor", "sync", points=str(folder / "points")
    )
    assert code == 0, printed
    return (folder / "points").read_text().splitlines()


def test_a_run_passes_every_kind_of_crash_point(crash_points, forked):
    tasks = {path.name for path in (forked.undisturbed / "work").iterdir() if path.is_dir()}
    assert {task.partition(".")[0] for task in tasks} == STAGES | {"commit"}
    assert set(crash_points) == {
        *("atomic:written", "atomic:renamed", "atomic:linked", "commit:parts", "commit:verified", "commit:linked"),
        *(f"{task}:{step}" for task in tasks for step in ("written", "recorded")),
    }


def test_killed_at_every_crash_point(crash_points, forked, recipe_file, resume, tmp_path, soak, tally):
    points = range(len(crash_points))
    if not soak:  # a spread, and the whole commit
        points = sorted({*points[:: len(points) // 12], *points[crash_points.index("commit:parts") :]})
    committed = []
    for point in points:
        out = tmp_path / str(point)
        code, hangs, printed = forked.run(
            "run", recipe_file, "--out", out, "--executor", "sync",
            points=str(tmp_path / "points"), die_at=point,
        )  # fmt: skip
        assert (code, hangs) == (-signal.SIGKILL, 0), printed
        assert (tmp_path / "points").read_text().splitlines() == crash_points[: point + 1]
        there = versions(out / "manifest") != []
        assert there == (point >= crash_points.index("atomic:linked"))
        committed.append(there)
        resume(out)
        tally("SIGKILL at a crash point", hangs=hangs, torn=0, identical=1)
    assert set(committed) == {False, True}


def test_beyond_the_last_crash_point_nothing_is_killed(crash_points, forked, recipe_file, tmp_path):
    """The control: what kills above is the crash point."""
    code, _, _ = forked.run(
        "run", recipe_file, "--out", tmp_path / "run", "--executor", "sync", die_at=len(crash_points)
    )
    assert code == 0


def test_without_temporary_names_a_kill_leaves_a_torn_file(forked, recipe_file, tmp_path, torn):
    """The control: the same kills, with files written in place."""
    for point in (20, 61, 150):
        out = tmp_path / str(point)
        points = tmp_path / "points"
        code, _, _ = forked.run(
            "run", recipe_file, "--out", out, "--executor", "sync", points=str(points), die_at=point, in_place=True
        )
        assert code == -signal.SIGKILL
        assert (points.read_text().splitlines()[-1] == "half") == (len(torn(out)) == 1)
        if torn(out):
            break
    assert torn(out)


def test_a_task_that_kills_its_workers_ends_the_run(forked, recipe_file, resume, tmp_path):
    out = tmp_path / "run"
    code, hangs, printed = forked.run(
        "run", recipe_file, "--out", out, "--workers", 2, environment={"TAMIS_CRASH_AT": "dedup.near:written"}
    )
    assert (code, hangs) == (4, 0), printed
    assert "workers died 4 times on 02-dedup/near; a row of that block may need more memory" in printed
    assert resume(out) > 0


@pytest.mark.parametrize(("failures", "message"), [(3, None), (4, "did not start, 4 times: Nanny failed")])
def test_workers_that_die_while_they_start(failures, message, brief_recipe, tmp_path, monkeypatch):
    real, calls = distributed.LocalCluster, []

    def start(*args, **options):
        calls.append(options)
        if len(calls) <= failures:
            raise RuntimeError("Nanny failed to start.")
        return real(*args, **options)

    monkeypatch.setattr(distributed, "LocalCluster", start)
    with contextlib.nullcontext() if message is None else pytest.raises(WorkerError, match=message):
        tamis.run(brief_recipe, tmp_path, workers=1)
    assert len(calls) == min(failures + 1, 4)


def test_what_killed_runs_left_in_the_folder_is_swept(brief_recipe, tmp_path):
    left = [tmp_path / f".{name}.0123456789abcdef.tmp" for name in ("run.json", "attempt.json", "report.html")]
    for path in left:
        path.write_bytes(b"half")
    tamis.run(brief_recipe, tmp_path, executor="sync")
    assert [path.exists() for path in left] == [False, False, True]  # who writes a report holds no lock


def test_a_second_run_into_the_folder_does_not_disturb_the_first(brief_recipe, tmp_path, manifest_bytes, monkeypatch):
    """While the first run has a file half done, the second is refused; without the lock it sweeps that file away."""
    tamis.run(brief_recipe, tmp_path / "alone", executor="sync")
    begun, refused = [], []

    def second_run(name):
        if name == "atomic:written" and (out / "work" / "dedup.pairs").is_dir() and not begun:
            begun.append(name)
            try:
                tamis.run(brief_recipe, out, executor="sync")
            except LockedError:
                refused.append(name)

    monkeypatch.setattr(atomic, "crash_point", second_run)
    out = tmp_path / "locked"
    tamis.run(brief_recipe, out, executor="sync")
    assert refused
    assert manifest_bytes(out) == manifest_bytes(tmp_path / "alone")

    monkeypatch.setattr(lock.fcntl, "flock", lambda *_: None)
    begun.clear()
    out = tmp_path / "unlocked"
    with pytest.raises(OutputError, match="No such file"):
        tamis.run(brief_recipe, out, executor="sync")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(number, forked, recipe_file, resume, tmp_path):
    out = tmp_path / "run"
    process = forked.start("run", recipe_file, "--out", out, "--workers", 2)
    while not list(out.glob("work/ingest.index/*.json")):
        assert runs(process)
        time.sleep(0.01)
    process.send_signal(number)
    code, hangs, printed = forked.end(process)
    assert (code, hangs) == (130, 0), printed
    assert "the same command goes on from there" in printed
    assert resume(out) > 0


def test_a_signal_is_not_lost_where_its_exception_is():
    with stoppable() as check:
        check()  # nothing came yet
        with contextlib.suppress(StoppedError):  # as a callback of the garbage collector does
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(StoppedError, match="SIGINT"):
            check()


def test_a_run_stops_where_the_exception_of_a_signal_is_lost(recipe_file, undisturbed, recorded, tmp_path):
    def swallow(event):
        with contextlib.suppress(StoppedError):
            if event["event"] == "node":
                signal.raise_signal(signal.SIGTERM)

    for executor in ("sync", "local"):
        with pytest.raises(StoppedError, match="SIGTERM"):
            tamis.run(recipe_file, tmp_path / executor, executor=executor, on_event=swallow)
        assert recorded(tmp_path / executor) < undisturbed[1]


def stop_the_workers(event):
    """As a debugger, a frozen container or a dead disk does: the processes are there, and do nothing."""
    if event["event"] == "node" and event["left"]:
        for child in workers_of(psutil.Process()):
            if child.status() != psutil.STATUS_STOPPED:
                child.suspend()


def test_workers_that_do_nothing_end_the_run(recipe_file, undisturbed, recorded, resume, tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "_STALL_SECONDS", 3.0)
    with pytest.raises(WorkerError, match=r"has done nothing for 3 s on .*the same command goes on"):
        tamis.run(recipe_file, tmp_path, workers=2, on_event=stop_the_workers)
    assert 0 < recorded(tmp_path) < undisturbed[1]
    assert not workers_of(psutil.Process())
    resume(tmp_path)


def test_workers_that_cannot_be_started_again_end_the_run(brief_recipe, tmp_path, monkeypatch):
    def kill_for_good(event):
        if event["event"] == "node" and (tmp_path / "work" / "dask").is_dir():
            shutil.rmtree(tmp_path / "work" / "dask")
            (tmp_path / "work" / "dask").write_text("where a worker makes its folder")
            for child in workers_of(psutil.Process()):
                child.kill()

    monkeypatch.setattr(execute, "_STALL_SECONDS", 3.0)
    with pytest.raises(WorkerError, match=r"no worker process for 3 s: .*the same command goes on"):
        tamis.run(brief_recipe, tmp_path, workers=2, on_event=kill_for_good, timeout=120)


def test_without_the_watchdog_they_would_hang_until_the_time_limit(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "_STALL_SECONDS", 1e9)
    with pytest.raises(StoppedError, match="at the time limit of 10 s; what is finished is kept"):
        tamis.run(recipe_file, tmp_path, workers=2, on_event=stop_the_workers, timeout=10)


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

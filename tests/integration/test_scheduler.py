"""Runs on a Dask scheduler that is there already, with and without TLS; everything on loopback."""

import contextlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import dask
import pytest
from distributed import LocalCluster
from distributed.security import Security

import tamis
from tamis.errors import OutputError, RecipeError, StoppedError, WorkerError
from tamis.pipelines import execute, remote, store


@contextlib.contextmanager
def cluster_of(workers, **options):
    common = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=workers, threads_per_worker=1, silence_logs=50, **common, **options) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster():
    with cluster_of(2) as found:
        yield found


@pytest.fixture(scope="module")
def expected(small_recipe, tmp_path_factory, manifest_bytes):
    out = tmp_path_factory.mktemp("expected") / "run"
    tamis.run(small_recipe, out, executor="sync")
    return manifest_bytes(out)


def test_a_scheduler_gives_the_same_bytes_and_keeps_nothing(cluster, small_recipe, tmp_path, manifest_bytes, expected):
    run = tamis.run(small_recipe, tmp_path / "a", scheduler=cluster.scheduler_address)
    assert manifest_bytes(tmp_path / "a") == expected
    assert not list((tmp_path / "a").rglob("*.tmp"))
    again = tamis.run(small_recipe, tmp_path / "a", scheduler=cluster.scheduler_address)
    assert (len(run.ran) > 20, again.ran) == (True, ())
    tamis.run(
        small_recipe, tmp_path / "b", scheduler=cluster.scheduler_address
    )  # nothing of the first is in its memory
    assert manifest_bytes(tmp_path / "b") == expected
    deadline = time.monotonic() + 10
    while cluster.scheduler.tasks and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not cluster.scheduler.tasks


def test_a_stopped_run_takes_its_tasks_with_it(cluster, small_recipe, tmp_path, manifest_bytes, expected):
    def stop(event):
        if event["event"] == "node":
            raise StoppedError("enough")

    with pytest.raises(StoppedError):
        tamis.run(small_recipe, tmp_path, scheduler=cluster.scheduler_address, on_event=stop)
    deadline = time.monotonic() + 30
    while cluster.scheduler.tasks and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not cluster.scheduler.tasks
    tamis.run(small_recipe, tmp_path, executor="sync")
    assert manifest_bytes(tmp_path) == expected


def test_tls(small_recipe, tmp_path, manifest_bytes, expected):
    security = Security.temporary()
    with cluster_of(1, security=security, protocol="tls") as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tls://127.0.0.1:")
        with pytest.raises(WorkerError, match="no answer from the scheduler"):
            tamis.run(small_recipe, tmp_path, scheduler=address)  # without certificates
        given = security.get_tls_config_for_role("client")
        files = {}
        for name, content in (("ca-file", given["ca_file"]), ("cert", given["cert"]), ("key", given["key"])):
            files[name] = tmp_path / f"{name}.pem"
            files[name].write_text(content)
        settings = {
            "distributed.comm.tls.ca-file": str(files["ca-file"]),
            "distributed.comm.tls.client.cert": str(files["cert"]),
            "distributed.comm.tls.client.key": str(files["key"]),
        }
        with dask.config.set(settings):
            tamis.run(small_recipe, tmp_path / "run", scheduler=address)
    assert manifest_bytes(tmp_path / "run") == expected


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("host:8786", "must be like tls://host:8786"),
        ("tls://host", "must be like"),
        ("tls://host:many", "must be like"),
        ("http://127.0.0.1:8786", "must be like"),
        ("tcp://192.0.2.1:8786", "is not encrypted"),
        ("tcp://no-such-host.invalid:8786", "is not encrypted"),
        ("ucx://127.0.0.1:8786", "must be like"),
    ],
)
def test_addresses_that_are_refused(address, problem, small_recipe, tmp_path):
    with pytest.raises(RecipeError, match=problem):
        tamis.run(small_recipe, tmp_path / "run", scheduler=address)
    assert not (tmp_path / "run").exists()


def test_addresses_that_are_allowed():
    for address in ("tls://192.0.2.1:1", "tcp://127.0.0.1:1", "tcp://[::1]:1", "tcp://localhost:1"):
        assert remote.check_address(address) == address
    assert remote.check_address("tcp://192.0.2.1:1", insecure=True) == "tcp://192.0.2.1:1"


def test_nobody_answers(small_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_CONNECT_SECONDS", 1)
    with pytest.raises(WorkerError, match="no answer from the scheduler tcp://127"):
        tamis.run(small_recipe, tmp_path, scheduler="tcp://127.0.0.1:9")


def test_no_workers(small_recipe, tmp_path):
    with cluster_of(0) as cluster, pytest.raises(WorkerError, match="has no workers"):
        tamis.run(small_recipe, tmp_path, scheduler=cluster.scheduler_address)


def test_workers_that_do_not_see_the_folder(cluster, small_recipe, tmp_path, monkeypatch):
    # The client's mark goes where no worker looks.
    monkeypatch.setattr(store.Folder, "put", lambda *_: None)
    with pytest.raises(OutputError, match=r"does not see .*work \(what was put there is not there\)"):
        tamis.run(small_recipe, tmp_path, scheduler=cluster.scheduler_address)


def test_workers_with_other_versions(cluster, small_recipe, tmp_path, monkeypatch):
    real = remote.versions_here()
    with monkeypatch.context() as patch:
        patch.setattr(remote, "versions_here", lambda: real | {"numpy": "0.1"})
        with pytest.raises(WorkerError, match=r"has numpy .* \(here 0\.1\); the versions must be equal, as results"):
            tamis.run(small_recipe, tmp_path / "a", scheduler=cluster.scheduler_address)
        # A worker that comes later is checked with its first task.
        patch.setattr(remote, "_check_workers", lambda *_: None)
        with pytest.raises(WorkerError, match=r"a worker on .* has numpy .* \(here 0\.1\)"):
            tamis.run(small_recipe, tmp_path / "b", scheduler=cluster.scheduler_address)
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_runs_at_once_on_one_scheduler(cluster, small_recipe, tmp_path, manifest_bytes, expected):
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(tamis.run, small_recipe, tmp_path / name, scheduler=cluster.scheduler_address)
            for name in ("a", "b")
        ]
        for run in runs:
            run.result(timeout=120)
    assert manifest_bytes(tmp_path / "a") == manifest_bytes(tmp_path / "b") == expected


SCHEDULER = """
import sys, time
from distributed import LocalCluster
if __name__ == "__main__":
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
                           worker_dashboard_address="127.0.0.1:0", silence_logs=50)
    print(cluster.scheduler_address, flush=True)
    time.sleep(600)
"""


def test_a_scheduler_that_dies_ends_the_run_and_it_goes_on_elsewhere(
    small_recipe, tmp_path, manifest_bytes, expected, monkeypatch
):
    monkeypatch.setattr(execute, "_STALL_SECONDS", 3.0)
    (tmp_path / "scheduler.py").write_text(SCHEDULER)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "scheduler.py")], stdout=subprocess.PIPE, start_new_session=True
    )

    def kill(event):
        if event["event"] == "node":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)

    try:
        address = process.stdout.readline().decode().strip()
        with pytest.raises(WorkerError, match="the same command goes on"):
            tamis.run(small_recipe, tmp_path / "run", scheduler=address, on_event=kill)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.communicate()
    tamis.run(small_recipe, tmp_path / "run", executor="sync")
    assert manifest_bytes(tmp_path / "run") == expected

"""Runs whose working folder is in object storage: fsspec's own in memory, and S3 as moto serves it on loopback."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
import yaml

import tamis
from tamis.errors import OutputError, RecipeError
from tamis.pipelines import node
from tamis.pipelines import store as stores
from tamis.pipelines.store import ObjectStore, store_at
from tamis.reports.report import build_report

SECRET = "no-artefact-may-hold-this"


@pytest.fixture(scope="module")
def recipe(small_recipe):
    """Every kind of stage, in few tasks."""
    stages = [
        stage | ({"partition_rows": 1000} if "partition_rows" in stage else {}) for stage in small_recipe["stages"]
    ]
    return {**small_recipe, "block_rows": 350, "stages": stages}


@pytest.fixture(scope="module")
def recipe_file(recipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def expected(recipe, tmp_path_factory, manifest_bytes):
    """The manifest's bytes, and the names of the nodes, of a run whose working folder is beside it."""
    out = tmp_path_factory.mktemp("expected") / "run"
    ran = tamis.run(recipe, out, executor="sync").ran
    return manifest_bytes(out), sorted(ran)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """What one run has fetched the next one fetches again, as another process would."""
    monkeypatch.setattr(node, "_OPENED", type(node._OPENED)())


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()


class Server:
    """moto's S3, in a thread of this process; it keeps its objects while it is stopped."""

    def __init__(self):
        self.port, self._server = 0, None

    def start(self):
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def stop(self):
        self._server.stop()


@pytest.fixture(scope="module")
def server():
    for name in ("s3fs", "moto.server", "flask_cors"):
        pytest.importorskip(name, reason="make test installs s3fs and moto")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = Server()
    server.start()
    settings = {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # s3fs tries again itself
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        fsspec.filesystem("s3").mkdir("bucket")
        yield server
    server.stop()


@pytest.fixture
def url(server, request):
    """An empty prefix of the bucket."""
    return f"s3://bucket/{request.node.name}"


def objects(url):
    """The objects below a URL: name -> bytes."""
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_in_memory_the_bytes_are_the_same_and_nothing_runs_twice(memory, recipe, tmp_path, manifest_bytes, expected):
    first = tamis.run(recipe, tmp_path, work="memory://place", executor="sync")
    assert (manifest_bytes(tmp_path), sorted(first.ran)) == expected
    again = tamis.run(recipe, tmp_path, work="memory://place", executor="sync")
    assert (again.ran, again.subset_id) == ((), first.subset_id)
    assert [stage["tasks"] for stage in again.stages] == [stage["tasks"] for stage in first.stages]
    assert build_report(tmp_path)["classes"]  # read from the store
    # Beside the manifest the run's folder keeps the commit's record and what is known of the sources.
    assert [Path(name).parts[1] for name in files_of(tmp_path) if name.startswith("work/")] == [
        "commit.manifest",
        "scans.json",
    ]
    assert not [name for name in objects("memory://place") if "commit" in name]


def test_memory_is_refused_where_workers_would_not_see_it(cli, recipe, tmp_path):
    with pytest.raises(RecipeError, match="which other processes do not see; give --executor sync"):
        tamis.run(recipe, tmp_path / "a", work="memory://place")
    with pytest.raises(RecipeError, match="which other processes do not see"):
        tamis.run(recipe, tmp_path / "a", work="memory://x", executor="sync", scheduler="tcp://127.0.0.1:1")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("work", "problem"),
    [
        ("s3://me:hunter2@bucket/prefix", "the credentials in the environment"),
        ("s3://bucket/prefix?key=hunter2", "the credentials in the environment"),
        ("s3://", "must be a folder, or a URL like s3://bucket/prefix"),
        ("simplecache::s3://bucket/prefix", "must be a folder, or a URL"),
        ("s3://bucket/[ab]", "without any of"),
        ("nosuch://bucket/prefix", "nosuch:// cannot be used here"),
    ],
)
def test_urls_that_are_refused(work, problem, cli, recipe_file, tmp_path):
    for command in ("run", "plan"):
        result = cli(command, recipe_file, "--out", tmp_path / "out", "--work", work)
        assert result.exit_code == 2
        assert problem in result.stderr
        assert "hunter2" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_elsewhere_and_its_url_are_the_same_place(recipe, tmp_path, manifest_bytes, expected):
    tamis.run(recipe, tmp_path / "a", work=tmp_path / "shared", executor="sync")
    run = tamis.run(recipe, tmp_path / "b", work=f"file://{tmp_path}/shared", executor="sync")
    assert [name for name in run.ran if "commit" not in name] == []
    assert manifest_bytes(tmp_path / "a") == manifest_bytes(tmp_path / "b") == expected[0]


def test_plan_and_status_look_where_the_work_is(memory, cli, recipe_file, tmp_path):
    out = tmp_path / "out"
    tamis.run(recipe_file, out, work="memory://place/", executor="sync")

    def to_run(*more):
        facts = json.loads(cli("plan", recipe_file, "--out", out, "--json", *more).stdout)
        return [stage["to_run"] for stage in facts["stages"]]

    assert sum(to_run("--work", "memory://place")) == 0
    assert to_run("--set", "dedup.eps=0.05", "--work", "memory://place")[:2] == [0, 0]
    assert min(to_run("--set", "dedup.eps=0.05")) > 0  # it is not looked for elsewhere
    status = json.loads(cli("status", out, "--json").stdout)
    assert status["work"] == "memory://place"
    assert all(stage["finished"] == stage["tasks"] for stage in status["stages"])


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "gone"])
@pytest.mark.parametrize("what", [".arrow", ".json"])
def test_a_damaged_object_is_made_again(what, damage, memory, recipe, tmp_path, manifest_bytes, expected):
    tamis.run(recipe, tmp_path / "a", work="memory://place", executor="sync")
    path = next(path for path in sorted(memory.store) if "embed.block" in path and path.endswith(what))
    data = memory.cat_file(path)
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    if what == ".json":
        flipped = data.replace(b'"rows":3', b'"rows":2')  # still a record, of another number of rows
    assert flipped != data
    if damage == "gone":
        memory.rm(path)
    else:
        memory.pipe_file(path, {"flipped": flipped, "truncated": data[:middle], "empty": b""}[damage])
    node._OPENED.clear()
    stages = [stage | ({"eps": 0.05} if "eps" in stage else {}) for stage in recipe["stages"]]
    events = []
    other = tamis.run(
        {**recipe, "stages": stages}, tmp_path / "b", work="memory://place", executor="sync", on_event=events.append
    )
    # Only what a listing does not show is found late, when it is read.
    assert ("repair" in [event["event"] for event in events]) == (what == ".arrow" and damage == "flipped")
    assert [name[:-5] for name in other.ran if name.startswith(("00", "01"))] == ["01-embed/block/"]  # one of them
    assert memory.cat_file(path) == data or what == ".json"  # a record says how long it took
    tamis.run(recipe, tmp_path / "c", work="memory://place", executor="sync")
    assert manifest_bytes(tmp_path / "c") == expected[0]


def test_runs_into_different_folders_share_a_store(memory, recipe, tmp_path, manifest_bytes, expected):
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(tamis.run, recipe, tmp_path / name, work="memory://place", executor="sync")
            for name in ("a", "b")
        ]
        found = [run.result(timeout=120) for run in runs]
    assert manifest_bytes(tmp_path / "a") == manifest_bytes(tmp_path / "b") == expected[0]
    assert [run.record.is_file() for run in found] == [True, True]
    # A third has only its manifest to write; and the first two are not disturbed by it.
    assert len(tamis.run(recipe, tmp_path / "c", work="memory://place", executor="sync").ran) == 1
    assert tamis.run(recipe, tmp_path / "a", work="memory://place", executor="sync").ran == ()


def test_s3_with_worker_processes_gives_the_same_bytes(url, recipe, tmp_path, manifest_bytes, expected):
    first = tamis.run(recipe, tmp_path, work=url, workers=2)
    assert (manifest_bytes(tmp_path), sorted(first.ran)) == expected
    assert tamis.run(recipe, tmp_path, work=url, workers=2).ran == ()
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] + list(objects(url).values())
    assert len(kept) > 50
    assert not [data for data in kept if SECRET.encode() in data]


def test_s3_with_a_scheduler_whose_workers_do_not_see_the_runs_folder(url, recipe, tmp_path, manifest_bytes, expected):
    from distributed import LocalCluster

    common = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=1, threads_per_worker=2, silence_logs=50, **common) as cluster:
        tamis.run(recipe, tmp_path, work=url, scheduler=cluster.scheduler_address)
    assert manifest_bytes(tmp_path) == expected[0]
    assert not [name for name in objects(url) if name.startswith(".seen")]
    assert (tmp_path / "work" / "commit.manifest").is_dir()


def test_a_cached_run_asks_once_for_each_kind_of_task_and_once_for_each_record(
    url, recipe, tmp_path, expected, monkeypatch
):
    tamis.run(recipe, tmp_path, work=url, executor="sync")
    asked = []
    real = ObjectStore._asked

    def counted(self, doing, method, *arguments, **named):
        asked.append((method.__name__.removeprefix("_"), len(arguments[0]) if isinstance(arguments[0], list) else 1))
        return real(self, doing, method, *arguments, **named)

    monkeypatch.setattr(ObjectStore, "_asked", counted)
    assert tamis.run(recipe, tmp_path, work=url, executor="sync").ran == ()
    tasks = {name.split("/")[1] for name in expected[1]}
    assert [method for method, _ in asked].count("ls") < len(tasks) + 5
    assert [count for method, count in asked if method == "cat"] == [len(expected[1]) - 1]
    assert {method for method, _ in asked} == {"pipe_file", "ls", "cat"}


def test_s3_after_a_kill_the_work_is_used_again(url, recipe_file, tmp_path, manifest_bytes, expected):
    out = tmp_path / "out"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [
        sys.executable,
        "-m",
        "tamis",
        "run",
        str(recipe_file),
        "--out",
        str(out),
        "--work",
        url,
        "--workers",
        "2",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(scratch)})
    store = store_at(url)
    while not store.sizes(["embed.block"]):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    finished = sum(name.endswith(".json") for name in objects(url))
    run = tamis.run(recipe_file, out, work=url, executor="sync")
    assert finished > 0
    assert len(run.ran) <= len(expected[1]) - finished
    assert manifest_bytes(out) == expected[0]
    assert not files_of(scratch)


def test_s3_that_is_gone_ends_the_run_and_it_goes_on_when_it_is_back(
    server, url, recipe, tmp_path, manifest_bytes, expected, monkeypatch
):
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    began = []

    def stop(event):
        if event["event"] == "node" and event["node"].startswith("02-dedup"):
            began.append(time.monotonic())
            server.stop()

    with pytest.raises(OutputError, match=f"cannot (read|write) {url}.*the same command goes on from there") as caught:
        tamis.run(recipe, tmp_path, work=url, executor="sync", on_event=stop)
    server.start()
    assert time.monotonic() - began[0] < 60
    assert SECRET not in str(caught.value)
    run = tamis.run(recipe, tmp_path, work=url, executor="sync")
    assert 0 < len(run.ran) < len(expected[1]) - 4
    assert manifest_bytes(tmp_path) == expected[0]


def test_s3_that_never_answers_is_not_waited_for(server, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # it takes connections, and no more
        files = fsspec.filesystem("s3", endpoint_url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        store = ObjectStore("s3://bucket/x", files, "bucket/x")
        for call in (store.make, lambda: store.read(["a/b"]), lambda: store.sizes(["a"]), lambda: store.size("a/b")):
            with pytest.raises(OutputError, match=r"s3://bucket/x.*: FSTimeoutError"):
                call()


def test_a_bucket_that_is_not_there_is_said_before_anything_runs(server, cli, recipe_file, tmp_path):
    result = cli("run", recipe_file, "--out", tmp_path / "out", "--work", "s3://missing/x")
    assert result.exit_code == 5
    assert "cannot write s3://missing/x/.tamis: FileNotFoundError: The specified bucket does not exist" in result.stderr
    assert not (tmp_path / "out" / "attempt.json").exists()


class QuotaError(Exception):
    """An error as a store's library has them: of no known kind, and nothing that could be sent to another process."""

    def __reduce__(self):
        raise TypeError("not to be sent")


def test_a_write_that_fails_is_an_output_error(
    memory, cli, recipe_file, tmp_path, manifest_bytes, expected, monkeypatch
):
    real = type(memory).pipe_file

    def fail(self, path, *arguments, **named):
        if "/dedup.pairs/" in path:
            raise QuotaError(f"quota of https://me:{SECRET}@host/upload?token={SECRET} is used up")
        real(self, path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "pipe_file", fail)
        result = cli("run", recipe_file, "--out", tmp_path / "out", "--work", "memory://place", "--executor", "sync")
    assert result.exit_code == 5
    assert "cannot write memory://place/dedup.pairs/" in result.stderr
    assert "QuotaError: quota of https://host/upload is used up" in result.stderr
    assert SECRET not in result.stderr
    run = tamis.run(recipe_file, tmp_path / "out", work="memory://place", executor="sync")
    assert 0 < len(run.ran) < len(expected[1]) - 4
    assert manifest_bytes(tmp_path / "out") == expected[0]


def test_no_room_for_what_is_fetched_is_an_output_error(memory, recipe, tmp_path, monkeypatch):
    import tempfile

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OutputError, match=r"cannot keep ingest.block/.* No space left on device; free space, or name"):
        tamis.run(recipe, tmp_path, work="memory://place", executor="sync")


def test_what_is_fetched_takes_no_more_room_than_it_may(memory, recipe, tmp_path, monkeypatch):
    held = []
    real = ObjectStore.map

    def counted(self, name):
        held.append(sum(size for _, size in node._OPENED.values()))
        return real(self, name)

    monkeypatch.setattr(ObjectStore, "map", counted)
    monkeypatch.setattr(node, "_MOST_FETCHED", 50_000)
    tamis.run(recipe, tmp_path, work="memory://place", executor="sync")
    assert 0 < max(held) <= 50_000

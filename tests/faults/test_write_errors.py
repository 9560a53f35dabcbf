"""Every operation that writes fails with every error: exit 5, nothing half done, and the next try goes on."""

import builtins
import errno
import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.errors import OutputError
from tamis.exports import FORMATS
from tamis.exports.export import export
from tamis.manifests import atomic
from tamis.manifests.ledger import commit_ledger, find_ledger
from tamis.manifests.reader import open_manifest, versions
from tamis.pipelines.dataset import scan_all
from tamis.pipelines.run import read_run
from tamis.pipelines.sources import stream_rows
from tamis.reports.report import write_report

CODES = (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EACCES)
PACKAGE = str(Path(tamis.__file__).parent)
REMEDY = r"free space|give (a|another)|choose another|remove it|run again"


class Stream:
    """An open file whose writes are noted too."""

    def __init__(self, stream, note):
        self._stream, self._note = stream, note

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()

    def write(self, data):
        self._note("stream.write", self._stream.name)
        return self._stream.write(data)

    def flush(self):
        self._note("stream.flush", self._stream.name)
        return self._stream.flush()


class Disk:
    """Fails each operation that writes below a folder the first time that it is met, and lets it pass from then on.

    So every try of a run gets one operation further than the last one, until one passes without an error.

    Attributes:
        met: What has failed: the operation and its file, or for the short test the lines of the package that call it.
        failed: Operations that failed in this try.
    """

    def __init__(self, folder, every, code=None):
        self.folder, self.every, self.code = str(folder), every, code
        self.met, self.failed = set(), []

    def note(self, operation, path):
        path = path.fileno() if hasattr(path, "fileno") else path
        path = str(Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else path)
        if not path.startswith(self.folder):
            return
        if self.failed and self.failed[-1][0] != "mkdir":  # a folder may be there already; else only clean-up follows
            return
        what = (operation, re.sub(r"\.[0-9a-f]{16}\.tmp", ".tmp", path) if self.every else self.site())
        if self.every and path.endswith("events.jsonl"):
            what += (len(list(Path(self.folder).glob("work/*/*.json"))),)  # there is one for each task
        if what not in self.met:
            code = self.code or CODES[len(self.met) % len(CODES)]
            self.met.add(what)
            self.failed.append((operation, path))
            raise OSError(code, os.strerror(code))

    @staticmethod
    def site():
        frame, lines = sys._getframe(2), []
        while frame is not None:
            if frame.f_code.co_filename.startswith(PACKAGE):
                lines.append((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
        return tuple(lines)

    @contextmanager
    def failing(self):
        """One try."""
        self.failed = []

        def around(owner, name, which=0, only=bool):
            real = getattr(owner, name)

            def operation(*args, **options):
                if only(args) and "dir_fd" not in options:
                    self.note(name, args[which])
                return real(*args, **options)

            patch.setattr(owner, name, operation)

        def open_stream(file, mode="r", *args, **options):
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return real_open(file, mode, *args, **options)
            self.note("open", file)
            stream = real_open(file, mode, *args, **options)
            return Stream(stream, self.note) if str(file).startswith(self.folder) else stream

        real_open = io.open
        with pytest.MonkeyPatch.context() as patch:
            around(os, "open", only=lambda args: args[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_DIRECTORY))
            for name in ("write", "fsync", "mkdir", "unlink", "rename", "replace"):
                around(os, name)
            around(os, "link", which=1)
            around(fcntl, "flock")
            patch.setattr(io, "open", open_stream)
            patch.setattr(builtins, "open", open_stream)
            yield


def tries(disk, work, check):
    """Work until nothing fails any more; gives how often each operation failed."""
    counts = {}
    while True:
        error = None
        with disk.failing():
            try:
                work()
            except OutputError as caught:
                error = caught
        for operation, _ in disk.failed:
            counts[operation] = counts.get(operation, 0) + 1
        if not disk.failed:
            assert error is None
            return counts
        operation, path = disk.failed[-1]
        check(operation, path, error)


@pytest.fixture(scope="module")
def brief_run(brief_recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("brief-run") / "run"
    tamis.run(brief_recipe, out, executor="sync")
    return out


def said(operation, path, error):
    """What failed is explained; only a folder that is there already need not be made."""
    if error is None:
        assert operation == "mkdir"
        assert Path(path).is_dir()
        return
    message = str(error)
    assert error.exit_code == 5
    assert any(os.strerror(code) in message for code in CODES), message
    assert re.search(REMEDY, message), message


def test_every_write_of_a_run_fails_once(brief_recipe, brief_run, manifest_bytes, torn, tmp_path, soak, tally):
    """`make soak` fails every operation with every error; else each call site fails, with one of the errors in turn."""
    expected = manifest_bytes(brief_run)
    for code in CODES if soak else [None]:
        out = tmp_path / str(code) / "run"

        def check(operation, path, error, out=out, code=code):
            said(operation, path, error)
            assert not torn(out)
            if operation != "unlink":
                assert not list(out.rglob("*.tmp"))
            if versions(out / "manifest"):  # past the link nothing is cleaned up
                assert manifest_bytes(out).items() >= expected.items()
            fault = errno.errorcode.get(code, "an error")
            tally(f"{fault} at a write of a run", hangs=0, torn=0, detected=1, identical=1)

        disk = Disk(tmp_path, soak, code)
        counts = tries(disk, lambda out=out: tamis.run(brief_recipe, out, executor="sync", timeout=120), check)
        assert counts.keys() == {
            *("open", "write", "fsync", "mkdir", "unlink", "replace", "link", "flock"), "stream.write", "stream.flush",
        }  # fmt: skip
        assert manifest_bytes(out) == expected
        assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_every_write_of_a_ledger_an_export_and_a_report_fails_once(code, brief_run, tmp_path, tally):
    manifest, sources = open_manifest(brief_run), scan_all(str(read_run(brief_run)["data"]))
    table = pa.table({"sample_id": ["a", "b"], "loss": [0.5, 0.25]})
    older = table.slice(0, 1)
    ledger, run = tmp_path / "ledger", tmp_path / "run"
    ledger.mkdir()
    commit_ledger(ledger, older, {})
    shutil.copytree(brief_run, run)

    def check(operation, path, error):
        said(operation, path, error)
        if operation not in ("unlink", "rmdir"):
            assert not list(tmp_path.rglob("*.tmp"))
        assert pa.ipc.open_file(find_ledger(ledger)).read_all() in (older, table)
        tally(f"{errno.errorcode[code]} at a write of a ledger, an export or a report", hangs=0, torn=0, detected=1)

    def exported(to):
        def work():
            if not (tmp_path / to).exists():
                assert not (tmp_path / f"{to}.croissant.json").exists()
                export(manifest, partial(stream_rows, sources), to, tmp_path / to, describe=to in ("parquet", "hf"))

        return work

    disk = Disk(tmp_path, every=True, code=code)
    assert tries(disk, lambda: commit_ledger(ledger, table, {}), check).keys() >= {"fsync", "replace", "unlink"}
    for to in FORMATS:
        counts = tries(disk, exported(to), check)
        assert counts.keys() >= {"mkdir", "open", "rename"} | (set() if to == "hf" else {"stream.write"}), to
    kept = manifest.select.num_rows
    assert (tmp_path / "ids").read_text().split() == manifest.select["sample_id"].to_pylist()
    assert len(np.load(tmp_path / "npy")) == kept
    assert pq.read_table(tmp_path / "parquet").num_rows == kept
    assert (tmp_path / "parquet.croissant.json").is_file()
    assert datasets.load_from_disk(tmp_path / "hf").num_rows == kept
    assert (
        sum(shard["samples"] for shard in json.loads((tmp_path / "mds" / "index.json").read_text())["shards"]) == kept
    )
    with tarfile.open(tmp_path / "webdataset" / "shard-000000.tar") as tar:
        assert len(tar.getnames()) == 2 * kept
    assert tries(disk, lambda: write_report(run), check).keys() >= {"fsync", "replace"}
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_answer_that_is_lost_after_the_link_does_not_matter(
    brief_recipe, brief_run, manifest_bytes, tmp_path, monkeypatch
):
    """What a network file system may do: the commit record is there, and the link reports an error."""
    real = os.link

    def link(*args, **options):
        real(*args, **options)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", link)
    tamis.run(brief_recipe, tmp_path, executor="sync")
    assert manifest_bytes(tmp_path) == manifest_bytes(brief_run)


def test_without_the_explanation_a_write_error_is_no_output_error(brief_recipe, tmp_path, monkeypatch):
    """The control: what fails is the system's call, and the package makes an OutputError of it."""
    monkeypatch.setattr(atomic, "_explained", lambda *_: nullcontext())
    with pytest.raises(OSError, match="No space left"):
        tries(Disk(tmp_path, False, errno.ENOSPC), lambda: tamis.run(brief_recipe, tmp_path, executor="sync"), said)


def test_without_the_clean_up_a_temporary_file_would_be_left(tmp_path, monkeypatch):
    """The control of the temporary files that are looked for above."""
    disk = Disk(tmp_path, every=True, code=errno.EIO)

    def attempt():
        with disk.failing(), pytest.raises(OutputError):
            atomic.write_atomic(tmp_path / "x", b"data")
        return [operation for operation, _ in disk.failed]

    assert [attempt(), attempt()] == [["open"], ["write"]]
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    assert attempt() == ["fsync"]
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]


# --- the real thing, with worker processes ---


def refused(forked, out, *arguments, **job):
    """A run that ends with exit 5; gives what it printed."""
    code, hangs, printed = forked.run("run", *arguments, "--out", out, **job)
    assert (code, hangs) == (5, 0), printed
    assert "Traceback" not in printed
    assert re.search(REMEDY, printed), printed
    return printed


@pytest.mark.parametrize("executor", [("--workers", 2), ("--executor", "sync")], ids=["workers", "sync"])
@pytest.mark.parametrize("share", [0.4, 0.99])
def test_files_that_may_not_grow(executor, share, forked, recipe_file, manifest_bytes, torn, tmp_path, tally):
    out = tmp_path / "run"
    largest = max(path.stat().st_size for path in (forked.undisturbed / "work").rglob("*.arrow"))
    printed = refused(forked, out, recipe_file, *executor, file_bytes=int(largest * share))
    assert "File too large" in printed
    assert re.search(r"\d+ bytes were needed in .*work", printed)
    assert not torn(out)
    assert not list(out.rglob("*.tmp"))
    tamis.run(recipe_file, out, executor="sync")
    assert manifest_bytes(out) == manifest_bytes(forked.undisturbed)
    tally("RLIMIT_FSIZE", hangs=0, torn=0, detected=1, identical=1)


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system in memory, with options such as size=100k; gives its folder and a function to widen it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder, lambda: subprocess.run(["mount", "-o", "remount,size=1g,nr_inodes=0", folder], check=True)

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize(
    ("options", "executor"),
    [
        ("size=64k", ("--executor", "sync")),
        ("size=512k", ("--workers", 2)),
        ("nr_inodes=8", ("--workers", 2)),
        ("nr_inodes=60", ("--workers", 2)),
    ],
)
def test_a_full_disk(options, executor, small_disk, forked, recipe_file, manifest_bytes, torn, tally):
    folder, widen = small_disk(options)
    out = folder / "run"
    assert "No space left on device" in refused(forked, out, recipe_file, *executor, "--anyway")
    assert not torn(out)
    assert not list(out.rglob("*.tmp"))
    widen()
    tamis.run(recipe_file, out, executor="sync")
    assert manifest_bytes(out) == manifest_bytes(forked.undisturbed)
    tally("a full disk", hangs=0, torn=0, detected=1, identical=1)

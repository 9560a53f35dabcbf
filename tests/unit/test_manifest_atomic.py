import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tamis.errors import OutputError
from tamis.manifests import atomic
from tamis.manifests.atomic import content_name, crash_point, hashed_name, remove, sweep, write_atomic, write_once


def test_writes_and_replaces(tmp_path):
    write_atomic(tmp_path / "x", b"one")
    write_atomic(tmp_path / "x", b"two")
    assert (tmp_path / "x").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_write_once_keeps_the_first(tmp_path):
    assert write_once(tmp_path / "x", b"one") is True
    assert write_once(tmp_path / "x", b"one") is False
    with pytest.raises(OutputError, match="other bytes"):
        write_once(tmp_path / "x", b"two")
    assert (tmp_path / "x").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("write", [write_atomic, write_once])
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EACCES])
def test_every_failure_says_what_was_needed_and_leaves_nothing(tmp_path, monkeypatch, write, call, code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, call, fail)
        with pytest.raises(OutputError, match=rf"x: {os.strerror(code)} \(5 bytes"):
            write(tmp_path / "x", b"12345")
    assert [path.name for path in tmp_path.iterdir()] == []
    write(tmp_path / "x", b"12345")
    assert (tmp_path / "x").read_bytes() == b"12345"


def test_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        write_atomic(tmp_path / "no" / "x", b"")


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(atomic.os, "write", lambda fd, data: real(fd, bytes(data[:3])))
    write_atomic(tmp_path / "x", b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_a_link_that_fails_but_is_there_counts(tmp_path, monkeypatch):
    real = Path.hardlink_to

    def lying(self, target):
        real(self, target)
        raise OSError(errno.EIO, "lost answer")

    monkeypatch.setattr(Path, "hardlink_to", lying)
    assert write_once(tmp_path / "x", b"one") is True
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_error_after_the_link_never_removes_the_file(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(errno.EIO, "sync failed")

    monkeypatch.setattr(atomic, "sync_folder", fail)
    with pytest.raises(OutputError, match="sync failed"):
        write_once(tmp_path / "x", b"one")
    assert (tmp_path / "x").read_bytes() == b"one"


@pytest.mark.parametrize(
    ("point", "there"), [("atomic:written", None), ("atomic:renamed", b"new"), ("elsewhere", b"new")]
)
def test_crash_points_kill_and_nothing_is_torn(tmp_path, point, there):
    code = "import sys; from pathlib import Path; from tamis.manifests.atomic import write_atomic;"
    code += "write_atomic(Path(sys.argv[1]), b'new')"
    root = Path(atomic.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")],
        env={**os.environ, "TAMIS_CRASH_AT": point, "PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == (0 if point == "elsewhere" else -signal.SIGKILL)
    assert ((tmp_path / "x").read_bytes() if (tmp_path / "x").exists() else None) == there


def test_a_crash_point_kills_at_its_own_name_only(monkeypatch):
    killed = []
    monkeypatch.setattr(atomic.os, "kill", lambda *arguments: killed.append(arguments))
    monkeypatch.setenv("TAMIS_CRASH_AT", "there")
    crash_point("here")
    assert killed == []
    crash_point("there")
    assert killed == [(os.getpid(), signal.SIGKILL)]


def test_a_link_that_fails_and_is_not_there_is_an_output_error(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(OutputError, match="no hard links here"):
        write_once(tmp_path / "x", b"one")
    assert list(tmp_path.iterdir()) == []


def test_sweeping_removes_what_killed_processes_left_and_nothing_else(tmp_path):
    (tmp_path / "sub" / ".folder.tmp").mkdir(parents=True)
    for name in ("x", "x.tmp", ".x", ".x.0123.tmp", "sub/.y.0123.tmp"):
        (tmp_path / name).write_bytes(b"")
    sweep(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"x", "x.tmp", ".x", "sub", "sub/.folder.tmp"}


def test_what_cannot_be_removed_is_an_output_error(tmp_path):
    remove(tmp_path / "missing")
    with pytest.raises(OutputError, match=r"cannot remove .*; give a folder that can be written"):
        remove(tmp_path)


def test_hashed_names_are_made_of_a_sha256_only():
    assert hashed_name("ledger", "ab" * 32, "arrow") == "ledger.abababababababab.arrow"
    for sha256 in ("../" + "a" * 61, "ab", "AB" * 32, ""):
        with pytest.raises(ValueError, match="is no sha256"):
            hashed_name("ledger", sha256, "arrow")


def test_content_names():
    assert content_name("select", 0, 3, "ab" * 32, ".arrow") == "select-00000-of-00003.abababababababab.arrow"

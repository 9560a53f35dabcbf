"""Where nodes keep what they make: one contract for a folder and for an object store."""

import os

import fsspec
import pytest

from tamis.errors import OutputError, RecipeError
from tamis.pipelines import store as stores
from tamis.pipelines.store import Folder, ObjectStore, check_location, check_reach, store_at


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    location = check_location(tmp_path if request.param == "folder" else "memory://place/of/kept/")
    found = store_at(location)
    assert (found.location, type(found)) == (location, Folder if request.param == "folder" else ObjectStore)
    found.make("task", "other")
    yield found
    fsspec.filesystem("memory").store.clear()


def test_what_is_put_is_read_listed_and_removed(store):
    store.put("task/a.json", b"old")
    store.put("task/a.json", b"new")
    store.put("task/b.arrow", b"12345")
    store.put("other/c.json", b"c")
    assert store.read(["task/a.json", "task/missing.json", "other/c.json"]) == {
        "task/a.json": b"new",
        "other/c.json": b"c",
    }
    assert store.sizes(["task", "never"]) == {"task/a.json": 3, "task/b.arrow": 5}
    assert (store.size("task/b.arrow"), store.size("task/missing")) == (5, None)
    store.remove(["task/a.json", "task/missing.json", "nofolder/x.json"])
    assert (store.read(["task/a.json"]), store.sizes(["task"])) == ({}, {"task/b.arrow": 5})
    assert store.read([]) == store.sizes([]) == {}


def test_a_mark_beside_the_folders_is_read_and_removed(store):
    store.put(".mark", b"here")
    assert store.read([".mark"]) == {".mark": b"here"}
    store.remove([".mark"])
    assert store.read([".mark"]) == {}


def test_a_file_is_mapped_piece_by_piece(store, monkeypatch):
    monkeypatch.setattr(stores, "_PIECE", 7)
    data = os.urandom(50)
    store.put("task/b.arrow", data)
    assert bytes(store.map("task/b.arrow")) == data
    assert store.identity("task/b.arrow") == store.identity("task/b.arrow")
    with pytest.raises(FileNotFoundError):
        store.map("task/missing.arrow")


def test_what_was_fetched_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = store_at("memory://place")
    store.put("task/b.arrow", b"12345")
    mapped = store.map("task/b.arrow")
    assert list(tmp_path.iterdir()) == []
    assert bytes(mapped) == b"12345"
    fsspec.filesystem("memory").store.clear()


def test_locations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_location("kept") == check_location(f"file://{tmp_path}/kept/") == str(tmp_path / "kept")
    assert check_location("s3://bucket/prefix/") == "s3://bucket/prefix"
    assert check_location("abfs://container@account.example/x") == "abfs://container@account.example/x"
    with pytest.raises(
        RecipeError, match=r"work is sftp://host/x and more: .* the credentials in the environment"
    ) as e:
        check_location("sftp://me:hunter2@host/x")
    assert "hunter2" not in str(e.value)
    check_reach("memory://x", here=True)
    check_reach("s3://x", here=False)
    with pytest.raises(RecipeError, match="which other processes do not see"):
        check_reach("memory://x", here=False)


class RefusedError(Exception):
    """As a store's library may raise: of no known kind."""


def test_what_the_store_says_comes_without_secrets_and_without_the_librarys_own_errors(monkeypatch):
    store = store_at("memory://place")
    calls = {"pipe_file": lambda: store.put("a/b", b""), "cat": lambda: store.read(["a/b"]),
             "ls": lambda: store.sizes(["a"]), "info": lambda: store.size("a/b")}  # fmt: skip
    for method, call in calls.items():

        def refuse(*_, **__):
            raise RefusedError("no entry at\nhttps://me:hunter2@host/x?signature=hunter2 for you")

        with monkeypatch.context() as patch:
            patch.setattr(type(store.files), method, refuse)
            with pytest.raises(
                OutputError, match=r"memory://place.*: RefusedError: no entry at https://host/x for"
            ) as e:
                call()
        assert "hunter2" not in str(e.value)
        assert e.value.__cause__ is e.value.__context__ is None

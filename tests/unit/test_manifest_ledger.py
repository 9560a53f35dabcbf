import json

import pyarrow as pa
import pytest

from tamis.errors import DamagedManifestError, OutputError
from tamis.manifests.canonical import sealed
from tamis.manifests.ledger import RECORD, commit_ledger, find_ledger

TABLE = pa.table({"sample_id": ["a", "b"], "last_loss": pa.array([0.5, None], pa.float32())})


def test_round_trip(tmp_path):
    path = commit_ledger(tmp_path, TABLE, {"training": "t"})
    assert find_ledger(tmp_path) == path
    assert pa.ipc.open_file(path.read_bytes()).read_all().equals(TABLE)
    body = json.loads((tmp_path / RECORD).read_bytes())["body"]
    assert (body["training"], body["columns"], body["file"]["rows"]) == ("t", TABLE.column_names, 2)


def test_a_new_ledger_takes_the_place_of_the_old_one(tmp_path):
    old = commit_ledger(tmp_path, TABLE, {})
    new = commit_ledger(tmp_path, TABLE.slice(1), {})
    assert find_ledger(tmp_path) == new
    assert not old.exists()
    assert commit_ledger(tmp_path, TABLE.slice(1), {}) == new
    assert find_ledger(tmp_path) == new


def test_no_folder_to_write_to(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        commit_ledger(tmp_path / "none", TABLE, {})


def body_of(folder):
    return json.loads((folder / RECORD).read_bytes())["body"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("arrow", b"", "does not have its sha256"),
        ("arrow", None, "No such file"),
        (RECORD, None, "No such file"),
        (RECORD, b"{}", "no sealed record"),
        (RECORD, b"[" * 100_000, "no sealed record"),
        (RECORD, {"version": 2}, "version 2"),
        (RECORD, sealed({}), "version"),
        (RECORD, {"file": {"sha256": "../x"}}, "is no sha256"),
        (RECORD, {"file": []}, "damaged"),
    ],
)
def test_a_damaged_ledger_is_refused(tmp_path, name, content, message):
    """The content of one of the two files; None removes it, a mapping changes the record's body and seals it again."""
    path = commit_ledger(tmp_path, TABLE, {})
    spoiled = path if name == "arrow" else tmp_path / name
    if content is None:
        spoiled.unlink()
    else:
        spoiled.write_bytes(content if isinstance(content, bytes) else sealed(body_of(tmp_path) | content))
    with pytest.raises(DamagedManifestError, match=message) as caught:
        find_ledger(tmp_path)
    assert "run the same training again" in str(caught.value)

import copy
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import tamis.manifests.reader as reader_module
from tamis.errors import (
    DataError,
    DatasetMismatchError,
    OutputError,
    TamisError,
)
from tamis.manifests import open_manifest
from tamis.manifests.canonical import canonical_json, digest
from tamis.manifests.commit import commit
from tamis.manifests.schema import AUDIT, DECISIONS, SELECT, VERSION, Decision, select_schema

BODY = {
    "dataset": {
        "fingerprint": "f" * 64,
        "rows": 6,
        "schema": "s",
        "id": "id",
        "fields": {"id": "id", "text": "text"},
        "sources": [{"path": "a.csv", "bytes": 9, "sha256": "a" * 64, "rows": 6}],
    },
    "recipe": {"name": "tiny"},
    "seed": 17,
    "stages": [{"name": "ingest"}, {"name": "dedup"}, {"name": "select"}],
    "reasons": ["chosen", "same bytes", "too close", "not valid UTF-8", "beyond the budget"],
    "numeric": {},
    "libraries": {},
    "weight_semantics": "mean one",
    "scores": {"loss": {"unit": "nats"}},
    "certificate": None,
    "schedule": None,
    "parent": None,
    "required_features": [],
}
GOLDEN = Path(__file__).resolve().parent.parent / "golden"
HASHES = [bytes([row]) * 16 for row in range(6)]


def make_audit():
    return pa.table(
        {
            "sample_id": ["s0", "s1", "s2", "s3", "s4", "é5"],
            "row": range(6),
            "content_hash": pa.array(HASHES, pa.binary(16)),
            "decision": [0, 1, 2, 5, 4, 0],
            "stage": [2, 1, 1, 0, 2, 2],
            "reason": [0, 1, 2, 3, 4, 0],
            "kept_row": [None, 0, 5, None, None, None],
            "score": [0.5, None, None, None, 0.25, -0.0],
            "partition": [3, None, None, None, 0, 3],
        },
        schema=AUDIT,
    )


def make_select():
    return pa.table(
        {
            "sample_id": ["é5", "s0"],
            "row": [5, 0],
            "source": [0, 0],
            "source_row": [5, 0],
            "content_hash": pa.array([HASHES[5], HASHES[0]], pa.binary(16)),
            "rank": [0, 1],
            "weight": [1.5, 0.5],
            "score": [0.0, 0.5],
            "gain": [3.0, 1.0],
            "cluster": [1, None],
            "cluster_dist": [0.25, None],
            "difficulty": pa.nulls(2, pa.int16()),
            "group": [7, None],
            "reason": [0, 0],
            "score_loss": [0.1, None],
        },
        schema=select_schema(["loss"]),
    )


def put(table, name, values):
    index = table.column_names.index(name)
    return table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def make(folder, **changes):
    given = {"select": make_select(), "audit": make_audit(), "body": copy.deepcopy(BODY)} | changes
    return commit(folder, **given)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_round_trip(tmp_path):
    path = make(tmp_path / "run" / "manifest")
    assert path == tmp_path / "run" / "manifest" / "v000001.json"
    for start in (tmp_path / "run", str(tmp_path / "run" / "manifest")):
        manifest = open_manifest(start)
        assert manifest.select.equals(make_select())
        assert manifest.audit.equals(make_audit())
        assert manifest.version == 1
        assert manifest.record["counts"] == {
            "rows": 6,
            "kept": 2,
            "exact_dup": 1,
            "near_dup": 1,
            "pruned": 0,
            "not_in_budget": 1,
            "quarantined": 1,
        }
        assert {key: manifest.record[key] for key in BODY} == BODY
        assert manifest.reasons == BODY["reasons"]
        assert manifest.stages == BODY["stages"]


def test_the_writer_gives_the_golden_bytes_of_its_version(tmp_path):
    """These change only if the format does, and its version with it (or if Arrow writes IPC otherwise).

    A new version gets a folder of its own, made by this `make`; the older ones stay.
    """
    make(tmp_path)
    assert files(tmp_path) == files(GOLDEN / f"manifest-{VERSION[0]}.{VERSION[1]}")


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("manifest-*")), ids=lambda path: path.name)
def test_every_released_version_is_read_to_the_same_values(folder):
    manifest = open_manifest(folder)
    assert folder.name == f"manifest-{manifest.record['version'][0]}.{manifest.record['version'][1]}"
    assert manifest.select.equals(make_select())
    assert manifest.audit.equals(make_audit())
    assert {key: manifest.record[key] for key in BODY} == BODY


def test_the_record_is_canonical_and_self_describing(tmp_path):
    data = make(tmp_path).read_bytes()
    record = json.loads(data)
    assert data == canonical_json(record)
    body = record["body"]
    assert record["sha256"] == digest(body)
    assert body["subset_id"] == digest({key: body[key] for key in body if key != "subset_id"})
    assert (body["format"], body["version"]) == ("tamis-manifest", [1, 0])
    for file in body["files"]:
        content = (tmp_path / file["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])


def test_codes_of_the_decisions():
    assert DECISIONS == {
        "kept": 0,
        "exact_dup": 1,
        "near_dup": 2,
        "pruned": 3,
        "not_in_budget": 4,
        "quarantined": 5,
    }
    assert Decision.QUARANTINED == 5


def test_a_rerun_writes_nothing(tmp_path):
    make(tmp_path)
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")}
    shuffled = make_audit().take(pa.array([3, 0, 5, 1, 2, 4]))
    assert make(tmp_path, audit=shuffled) == tmp_path / "v000001.json"
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")} == before


def test_another_folder_has_the_same_bytes(tmp_path):
    make(tmp_path / "a", part_rows=2)
    make(tmp_path / "b", part_rows=2)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_second_version_leaves_the_first_readable(tmp_path):
    make(tmp_path)
    body = BODY | {"seed": 18}
    assert make(tmp_path, body=body) == tmp_path / "v000002.json"
    assert make(tmp_path, body=body) == tmp_path / "v000002.json"
    assert open_manifest(tmp_path).record["seed"] == 18
    assert open_manifest(tmp_path, version=1).record["seed"] == 17
    assert open_manifest(tmp_path / "v000001.json").record["seed"] == 17
    assert make(tmp_path) == tmp_path / "v000003.json"
    with pytest.raises(OutputError, match=r"v000009\.json does not exist"):
        open_manifest(tmp_path, version=9)
    assert open_manifest(tmp_path / "v000001.json").version == 1
    with pytest.raises(OutputError, match=r"v000009\.json does not exist; versions there are \[1, 2, 3\]"):
        open_manifest(tmp_path / "v000009.json")


def test_parts(tmp_path):
    make(tmp_path, part_rows=4)
    manifest = open_manifest(tmp_path)
    names = [file["path"].split(".")[0] for file in manifest.record["files"]]
    assert names == [
        "data/select-00000-of-00001",
        "data/audit-00000-of-00002",
        "data/audit-00001-of-00002",
    ]
    assert manifest.audit.equals(make_audit())


def test_nothing_kept_is_a_manifest_too(tmp_path):
    audit = put(make_audit(), "decision", [4, 1, 2, 5, 4, 4])
    make(tmp_path, select=make_select().slice(0, 0), audit=audit)
    assert open_manifest(tmp_path).select.num_rows == 0


def test_damaged_parts_of_a_rerun_are_repaired(tmp_path):
    path = make(tmp_path)
    part = next((tmp_path / "data").glob("audit*"))
    whole = part.read_bytes()
    part.write_bytes(whole[:100])
    assert make(tmp_path) == path
    assert part.read_bytes() == whole


def test_a_damaged_newest_record_is_left_alone(tmp_path):
    path = make(tmp_path)
    path.write_bytes(b"{}")
    assert make(tmp_path) == tmp_path / "v000002.json"
    assert path.read_bytes() == b"{}"
    assert open_manifest(tmp_path).version == 2


def test_before_link_sees_all_parts_and_no_record_and_can_stop_it(tmp_path):
    seen = []

    def changed():
        seen.append(sorted(p.name.split("-")[0] for p in (tmp_path / "data").iterdir()))
        assert not list(tmp_path.glob("*.json"))
        raise DatasetMismatchError("changed")

    with pytest.raises(DatasetMismatchError):
        make(tmp_path, before_link=changed)
    assert seen == [["audit", "select"]]
    with pytest.raises(OutputError, match="nothing was committed"):
        open_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audit": make_audit().slice(0, 5)}, "5 rows, the dataset 6"),
        ({"audit": put(make_audit(), "row", [0, 1, 2, 3, 4, 4])}, "every row once"),
        ({"audit": put(make_audit(), "decision", [0, 1, 2, 5, 4, 4])}, "1 rows are kept"),
        ({"audit": put(make_audit(), "decision", [0, 0, 2, 5, 4, 4])}, "not the kept rows"),
        ({"audit": put(make_audit(), "decision", [0, 1, 6, 5, 4, 0])}, "unknown decision"),
        ({"audit": put(make_audit(), "decision", [0, 1, -1, 5, 4, 0])}, "unknown decision"),
        ({"audit": put(make_audit(), "stage", [2, 1, 3, 0, 2, 2])}, "audit.stage"),
        ({"audit": put(make_audit(), "reason", [0, 1, 5, 3, 4, 0])}, "audit.reason"),
        ({"audit": put(make_audit(), "kept_row", [None, 6, 0, None, None, None])}, "kept_row"),
        ({"audit": put(make_audit(), "kept_row", [None, -1, 0, None, None, None])}, "kept_row"),
        ({"audit": put(make_audit(), "kept_row", [None, 1, None, None, None, None])}, "did not stay longer"),
        ({"audit": put(make_audit(), "kept_row", [None, 2, 1, None, None, None])}, "did not stay longer"),
        ({"audit": put(make_audit(), "kept_row", [None, 3, None, None, None, None])}, "did not stay longer"),
        ({"audit": put(make_audit(), "kept_row", [5, None, None, None, None, None])}, "did not stay longer"),
        ({"audit": put(make_audit(), "score", [np.nan] * 6)}, "NaN"),
        ({"audit": put(make_audit(), "sample_id", ["s0", "s0", "s2", "s3", "s4", "é5"])}, "not unique"),
        ({"select": put(make_select(), "rank", [1, 0])}, "ranks"),
        ({"select": put(make_select(), "rank", [1, 2])}, "ranks"),
        ({"select": put(make_select(), "weight", [1.0, 0.0])}, "position 1"),
        ({"select": put(make_select(), "weight", [1.0, -1.0])}, "weight"),
        ({"select": put(make_select(), "weight", [1.0, np.inf])}, "weight"),
        ({"select": put(make_select(), "weight", [1.0, np.nan])}, "NaN"),
        ({"select": put(make_select(), "row", [5, 5])}, "not the kept rows"),
        ({"select": put(make_select(), "sample_id", ["é5", "s1"])}, "select.sample_id"),
        ({"select": put(make_select(), "content_hash", [HASHES[5]] * 2)}, "select.content_hash"),
        ({"select": put(make_select(), "source", [0, 1])}, "select.source"),
        ({"select": put(make_select(), "source_row", [5, 6])}, "source_row"),
        ({"select": put(make_select(), "reason", [0, 9])}, "select.reason"),
        ({"select": put(make_select(), "score_loss", [0.0, np.nan])}, "NaN"),
        ({"select": make_select().drop_columns("score_loss")}, "score_loss"),
        ({"select": make_select().drop_columns("weight")}, "weight"),
        ({"body": BODY | {"scores": {}}}, "score_loss"),
        ({"body": BODY | {"scores": {"Bad name": {}}}}, "Bad name"),
        ({"body": BODY | {"required_features": ["telepathy"]}}, "telepathy"),
        ({"body": BODY | {"counts": {}}}, "computes"),
        ({"body": {key: BODY[key] for key in BODY if key != "seed"}}, "seed"),
        ({"body": BODY | {"stages": ["ingest"]}}, "stages"),
        ({"body": BODY | {"reasons": [1]}}, "reasons"),
        ({"body": BODY | {"dataset": BODY["dataset"] | {"rows": "6"}}}, "rows"),
        ({"body": BODY | {"dataset": BODY["dataset"] | {"sources": [{}]}}}, "sources"),
    ],
)
def test_what_does_not_add_up_is_refused(tmp_path, changes, message):
    with pytest.raises(TamisError, match=message):
        make(tmp_path / "manifest", **changes)
    assert not (tmp_path / "manifest").exists()


def test_a_null_where_none_is_allowed_is_refused(tmp_path):
    holed = make_select().set_column(6, "weight", pa.array([1.0, None], pa.float32()))
    with pytest.raises(TamisError, match="weight"):
        make(tmp_path, select=holed)


def test_a_value_without_canonical_json_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"\$\.numeric\.eps"):
        make(tmp_path, body=BODY | {"numeric": {"eps": np.float32(1)}})
    assert not list(tmp_path.glob("*.json"))


def test_a_file_in_the_way_is_an_output_error(tmp_path):
    (tmp_path / "manifest").write_text("x")
    with pytest.raises(OutputError, match="cannot make the folder"):
        make(tmp_path / "manifest")


def test_a_part_that_reads_back_differently_is_never_linked(tmp_path, monkeypatch):
    real = reader_module._map
    monkeypatch.setattr(reader_module, "_map", lambda path: bytes(real(path))[:-1] + b"x")
    with pytest.raises(OutputError, match="reads back"):
        make(tmp_path)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("point", "committed"),
    [
        ("atomic:written", False),
        ("atomic:renamed", False),
        ("commit:parts", False),
        ("commit:verified", False),
        ("atomic:linked", True),
        ("commit:linked", True),
    ],
)
def test_killed_at_every_point_it_is_whole_or_absent_and_reruns(tmp_path, point, committed):
    code = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('example', sys.argv[1])\n"
        "example = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(example)\n"
        "example.make(pathlib.Path(sys.argv[2]))\n"
    )
    root = Path(reader_module.__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", code, __file__, str(tmp_path / "a")],
        env={**os.environ, "TAMIS_CRASH_AT": point, "PYTHONPATH": str(root)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    if committed:
        open_manifest(tmp_path / "a")
    else:
        with pytest.raises(OutputError, match=r"nothing was committed|does not exist"):
            open_manifest(tmp_path / "a")
    make(tmp_path / "a")
    make(tmp_path / "b")
    kept = {name: data for name, data in files(tmp_path / "a").items() if not name.endswith(".tmp")}
    assert kept == files(tmp_path / "b")
    assert open_manifest(tmp_path / "a").version == 1


def test_explain(tmp_path):
    make(tmp_path)
    manifest = open_manifest(tmp_path)
    dropped = manifest.explain("s2")
    assert dropped == {
        "sample_id": "s2",
        "row": 2,
        "content_hash": "02" * 16,
        "decision": "near_dup",
        "stage": "dedup",
        "reason": "too close",
        "kept_row": 5,
        "kept_sample_id": "é5",
        "score": None,
        "partition": None,
    }
    kept = manifest.explain("s0")
    assert (kept["decision"], kept["rank"], kept["weight"], kept["gain"]) == ("kept", 1, 0.5, 1.0)
    assert manifest.explain_row(2) == dropped
    assert manifest.explain_row(0) == kept
    for row in (-1, 6):
        with pytest.raises(DataError, match=rf"no row {row} .* 0 to 5"):
            manifest.explain_row(row)
    with pytest.raises(DataError, match=r"'nobody' among the 6 rows .* as text, exactly$"):
        manifest.explain("nobody")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("S2", "nearest ids are 's2'"),
        ("s6", "nearest ids are 's4', 's3', 's2'$"),
        ("5", "exactly; the nearest ids are 'é5'"),
        ("", "exactly$"),
        ("x" * 1000, "exactly$"),
        ("s2\udc80", "exactly$"),
    ],
)
def test_a_miss_names_similar_ids(tmp_path, wanted, said):
    make(tmp_path)
    with pytest.raises(DataError, match=said):
        open_manifest(tmp_path).explain(wanted)


def test_another_dataset_is_refused(tmp_path):
    make(tmp_path)
    manifest = open_manifest(tmp_path)
    manifest.verify_dataset("f" * 64)
    with pytest.raises(DatasetMismatchError, match="eee"):
        manifest.verify_dataset("e" * 64)


def test_a_copy_elsewhere_is_the_same_manifest(tmp_path):
    make(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert open_manifest(tmp_path / "a").subset_id == open_manifest(tmp_path / "b").subset_id


def test_schema_columns():
    assert SELECT.names[:7] == ["sample_id", "row", "source", "source_row", "content_hash", "rank", "weight"]
    assert select_schema(["b", "a"]).names[-2:] == ["score_a", "score_b"]

"""A committed manifest that was damaged, forged or moved about is refused, and the message names the file."""

import hashlib
import json
import os
import random
import shutil

import pyarrow as pa
import pytest

from tamis.errors import DamagedManifestError, OutputError
from tamis.manifests import open_manifest
from tamis.manifests.canonical import canonical_json, digest
from tamis.manifests.commit import commit
from tamis.manifests.schema import AUDIT, select_schema

ROWS = 40


def make(folder):
    kept = list(range(0, ROWS, 4))
    ids = [f"sample-{row}" for row in range(ROWS)]
    hashes = [hashlib.sha256(name.encode()).digest()[:16] for name in ids]
    select = {
        "sample_id": [ids[row] for row in kept],
        "row": kept,
        "source": [0] * len(kept),
        "source_row": kept,
        "content_hash": [hashes[row] for row in kept],
        "rank": range(len(kept)),
        "weight": [1.0] * len(kept),
        "reason": [0] * len(kept),
    }
    for field in select_schema([]):
        select.setdefault(field.name, [None] * len(kept))
    audit = {
        "sample_id": ids,
        "row": range(ROWS),
        "content_hash": hashes,
        "decision": [0 if row % 4 == 0 else 4 for row in range(ROWS)],
        "stage": [0] * ROWS,
        "reason": [0 if row % 4 == 0 else 1 for row in range(ROWS)],
        "kept_row": [None] * ROWS,
        "score": [row / ROWS for row in range(ROWS)],
        "partition": [None] * ROWS,
    }
    source = {"path": "a.csv", "bytes": 1, "sha256": "a" * 64, "rows": ROWS}
    body = {
        "dataset": {"fingerprint": "f" * 64, "rows": ROWS, "schema": "s", "fields": {}, "sources": [source]},
        "recipe": {"name": "x"},
        "seed": 1,
        "stages": [{"name": "select"}],
        "reasons": ["chosen", "beyond the budget"],
        "numeric": {},
        "libraries": {},
        "weight_semantics": "one",
        "scores": {},
        "certificate": None,
        "schedule": None,
        "parent": None,
        "required_features": [],
    }
    return commit(
        folder,
        select=pa.table(select, schema=select_schema([])),
        audit=pa.table(audit, schema=AUDIT),
        body=body,
        part_rows=25,
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    make(folder)
    open_manifest(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "m")
    return tmp_path / "m"


def all_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refused(folder, match):
    with pytest.raises(DamagedManifestError, match=match):
        open_manifest(folder)


def forge(folder, change):
    """Rewrite the record with a changed body and right digests, as a forger would."""
    path = folder / "v000001.json"
    body = json.loads(path.read_bytes())["body"]
    change(body)
    body["subset_id"] = digest({key: value for key, value in body.items() if key != "subset_id"})
    path.write_bytes(canonical_json({"body": body, "sha256": digest(body)}))


def part(folder, stem="audit-00000"):
    return next((folder / "data").glob(f"{stem}*"))


def test_a_forged_record_without_a_change_is_read(folder):
    """The control of every forged case below."""
    forge(folder, lambda body: body.update(seed=2))
    assert open_manifest(folder).record["seed"] == 2


def test_every_bit_flip_is_detected(folder):
    draw = random.Random(17)
    paths = all_files(folder)
    assert len(paths) == 4
    for turn in range(300):
        path = paths[turn % len(paths)]
        whole = path.read_bytes()
        position = draw.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[position] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(DamagedManifestError) as caught:
            open_manifest(folder)
        assert path.name in str(caught.value), (path.name, position)
        path.write_bytes(whole)
    open_manifest(folder)


def test_without_the_sha256_flips_would_pass(folder):
    """The control: Arrow alone reads many of the same flips without a word."""
    path = part(folder)
    whole = path.read_bytes()
    draw = random.Random(17)
    silent = 0
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        try:
            for batch in range(pa.ipc.open_file(flipped).num_record_batches):
                pa.ipc.open_file(flipped).get_batch(batch).validate(full=True)
            silent += 1
        except (pa.ArrowException, OSError):
            pass
    assert silent > 0


def test_every_truncation_is_detected(folder):
    draw = random.Random(17)
    for path in all_files(folder):
        whole = path.read_bytes()
        for length in [0, 1, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(10))]:
            path.write_bytes(whole[:length])
            refused(folder, path.name)
        path.write_bytes(whole + b"\0")
        refused(folder, path.name)
        path.write_bytes(whole)


def test_a_missing_part_is_named(folder):
    for path in all_files(folder / "data"):
        whole = path.read_bytes()
        path.unlink()
        refused(folder, path.name)
        path.write_bytes(whole)


def test_swapped_parts_are_refused(folder):
    one, other = part(folder, "audit-00000"), part(folder, "audit-00001")
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    refused(folder, one.name)


def test_files_that_no_record_names_are_not_looked_at(folder):
    (folder / "data" / "select-00001-of-00002.0123456789abcdef.arrow").write_bytes(b"left by a killed run")
    (folder / "notes.txt").write_text("x")
    open_manifest(folder)


@pytest.mark.parametrize(
    "path",
    [
        "../outside.arrow",
        "data/../../outside.arrow",
        "/etc/passwd",
        "data/sub/x.arrow",
        "data/audit-00000-of-00002.0123456789abcdef.arrow/../x",
        "data\\x.arrow",
        "",
        "data/audit-00000-of-00002.0123456789abcdef.arrow\n",
    ],
)
def test_foreign_paths_are_refused(folder, path):
    forge(folder, lambda body: body["files"][1].update(path=path))
    refused(folder, "plain part name")


def listing(change):
    return lambda body: change(body["files"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (listing(lambda files: files.pop()), "complete"),
        (listing(lambda files: files.pop(0)), "complete"),
        (listing(lambda files: files.append(files[-1])), "second part"),
        (listing(lambda files: files[0].update(rows=9)), "9 rows"),
        (listing(lambda files: files[0].update(bytes=9)), "bytes are not those"),
        (listing(lambda files: files[0].update(bytes=-1)), "counts"),
        (listing(lambda files: files[0].update(rows=True)), "counts"),
        (listing(lambda files: files[0].update(sha256="0" * 64)), "not named by its sha256"),
        (listing(lambda files: files[0].pop("sha256")), "lists its files wrongly"),
        (lambda body: body.update(files=17), "lists its files wrongly"),
        (lambda body: body.update(files=["x"]), "lists its files wrongly"),
        (lambda body: body.update(version=[2, 0]), r"version 2\.0"),
        (lambda body: body.update(version=[1]), "version"),
        (lambda body: body.update(version=None), "version"),
        (lambda body: body.update(format="other"), "tamis-manifest"),
        (lambda body: body.update(required_features=["telepathy"]), "telepathy"),
        (lambda body: body.update(required_features=17), "required_features"),
        (lambda body: body.update(reasons=["only one"]), "audit.reason"),
        (lambda body: body.update(stages=[]), "stage"),
        (lambda body: body.update(scores={"loss": {}}), "schema"),
        (lambda body: body.update(scores={"../x": {}}), "lower-case"),
        (lambda body: body["dataset"].update(rows=ROWS + 1), "the dataset 41"),
        (lambda body: body["counts"].update(kept=11), "counts"),
        (lambda body: body.pop("counts"), "counts"),
        (lambda body: body.pop("dataset"), "dataset"),
        (lambda body: body.update(dataset=[]), "dataset"),
        (lambda body: body["dataset"].pop("schema"), "dataset.schema"),
        (lambda body: body["dataset"].update(fields={"text": 1}), "dataset.fields"),
        (lambda body: body["dataset"]["sources"][0].update(rows=2**63), "dataset.sources"),
        (lambda body: body.update(recipe=[]), "recipe is not a mapping"),
        (lambda body: body["recipe"].update(train=[]), "recipe.train"),
        (lambda body: body.update(classes=[1]), "classes"),
        (lambda body: body.update(schedule=[]), "schedule"),
        (lambda body: body.update(certificate={"ratio": 1}), "objective, upper_bound, ratio"),
        (lambda body: body.update(required_features=[["telepathy"]]), "telepathy"),
    ],
)
def test_forged_records_are_refused(folder, change, message):
    forge(folder, change)
    refused(folder, message)


def test_a_newer_minor_version_is_read(folder):
    forge(folder, lambda body: body.update(version=[1, 9], novelty="x"))
    assert open_manifest(folder).record["novelty"] == "x"


def test_a_wrong_subset_id_is_refused(folder):
    path = folder / "v000001.json"
    body = json.loads(path.read_bytes())["body"] | {"subset_id": "0" * 64}
    path.write_bytes(canonical_json({"body": body, "sha256": digest(body)}))
    refused(folder, "subset_id")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"body":{},"sha256":1}',
        b"\xff",
        b"[" * 100_000,
        b'{"body":NaN,"sha256":"x"}',
        b'{"body":"\\ud800","sha256":"x"}',
    ],
)
def test_records_that_are_none_are_refused(folder, data):
    (folder / "v000001.json").write_bytes(data)
    refused(folder, r"v000001\.json")


def test_spaces_in_the_record_are_refused(folder):
    path = folder / "v000001.json"
    path.write_bytes(json.dumps(json.loads(path.read_bytes())).encode())
    refused(folder, r"v000001\.json")


def replace_part(folder, table_or_bytes):
    """Put other content into the first audit part, with a record that vouches for it."""
    data = table_or_bytes
    if not isinstance(data, bytes):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, data.schema) as writer:
            writer.write_table(data)
        data = sink.getvalue().to_pybytes()
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"data/audit-00000-of-00002.{sha256[:16]}.arrow"
    (folder / name).write_bytes(data)

    def change(body):
        file = next(file for file in body["files"] if "audit-00000" in file["path"])
        file.update(path=name, bytes=len(data), sha256=sha256)

    forge(folder, change)


def first_audit(folder):
    return pa.ipc.open_file(str(part(folder))).read_all()


def test_a_replaced_part_with_the_same_content_is_read(folder):
    """The control of the cases below."""
    replace_part(folder, first_audit(folder))
    open_manifest(folder)


def test_vouched_parts_of_another_kind_are_refused(folder):
    table = first_audit(folder)
    replace_part(folder, b"ARROW1 no it is not")
    refused(folder, "audit-00000")
    replace_part(folder, table.drop_columns("score"))
    refused(folder, "schema")
    replace_part(folder, table.replace_schema_metadata({"run": "me"}))
    refused(folder, "schema")
    plain = table.schema.field("score").with_nullable(True)
    typed = pa.field("score", plain.type, metadata={"ARROW:extension:name": "x", "ARROW:extension:metadata": ""})
    replace_part(folder, table.cast(table.schema.set(table.schema.get_field_index("score"), typed)))
    refused(folder, "schema")


def test_vouched_offsets_that_point_outside_are_refused(folder):
    """Unvalidated, these crash the reader."""
    ids = first_audit(folder)["sample_id"].combine_chunks()
    _, offsets, text = ids.buffers()
    wild = bytearray(offsets.to_pybytes())
    wild[4:8] = (2**30).to_bytes(4, "little")
    forged = pa.Array.from_buffers(pa.string(), len(ids), [None, pa.py_buffer(bytes(wild)), text])
    table = first_audit(folder)
    replace_part(folder, table.set_column(0, table.schema.field(0), forged))
    refused(folder, "audit-00000")


def test_links_are_refused(folder, tmp_path):
    target = part(folder)
    moved = tmp_path / "elsewhere.arrow"
    target.rename(moved)
    target.symlink_to(moved)
    refused(folder, target.name)
    target.unlink()
    moved.rename(target)
    open_manifest(folder)

    (folder / "data").rename(tmp_path / "data")
    (folder / "data").symlink_to(tmp_path / "data")
    refused(folder, "is a link")


def test_a_pipe_in_place_of_a_part_does_not_hang(folder):
    target = part(folder)
    target.unlink()
    os.mkfifo(target)
    refused(folder, target.name)


def test_no_manifest_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for place, why in (("nowhere", "does not exist"), ("file", "Not a directory"), ("a\0b", "null byte")):
        with pytest.raises(OutputError, match=f"no commit record .*{why}"):
            open_manifest(tmp_path / place)

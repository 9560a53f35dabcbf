"""Readers take what was written, and nothing else but with an error of ours: sources, recipes, manifests."""

import copy
import csv
import gzip
import hashlib
import json
import struct
import sys

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tamis.embeddings.encoders import count_vectors, read_vectors
from tamis.errors import DamagedManifestError, DataError, RecipeError, TamisError
from tamis.manifests import open_manifest
from tamis.manifests.canonical import canonical_json, digest
from tamis.manifests.commit import commit
from tamis.manifests.schema import AUDIT, BODY_KEYS, DECISIONS, check_body, check_tables, select_schema
from tamis.pipelines.recipe import load_recipe
from tamis.pipelines.sources import read_rows, resolve, scan

FAST = settings(deadline=None, max_examples=60)
LONG = settings(deadline=None, max_examples=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


# --- sources ---

TEXT = st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
WHOLE = st.none() | st.integers(-(2**63), 2**63 - 1)
ROWS = st.lists(st.tuples(TEXT, WHOLE, st.none() | st.lists(st.integers(0, 9), max_size=3)), min_size=1, max_size=12)
SCHEMA = pa.schema([("text", pa.string()), ("n", pa.int64()), ("v", pa.list_(pa.int64()))])


def table_of(rows):
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA)


def write_ipc(new):
    def write(table, path):
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=5)

    return write


def write_jsonl(table, path):
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


def write_hf(table, path):
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset(table).save_to_disk(str(path))


WRITERS = {
    "x.parquet": lambda table, path: pq.write_table(table, path, row_group_size=4),
    "x.arrow": write_ipc(pa.ipc.new_file),
    "x.ipc": write_ipc(pa.ipc.new_stream),
    "x.feather": lambda table, path: pyarrow.feather.write_feather(table, str(path), compression="zstd"),
    "x.jsonl": write_jsonl,
    "saved": write_hf,
}


@pytest.mark.parametrize("name", WRITERS)
@FAST
@given(rows=ROWS, ends=st.tuples(st.integers(0, 12), st.integers(0, 12)))
def test_what_is_written_is_read(name, folder, rows, ends):
    table = table_of(rows)
    WRITERS[name](table, folder / name)
    (source,) = map(scan, resolve(folder / name))
    start, stop = sorted(min(end, len(rows)) for end in ends)
    read, problem = read_rows(source, ["v", "text", "n"], start, stop)
    assert read.select(SCHEMA.names).to_pylist() == table.slice(start, stop - start).to_pylist()
    assert not problem.any()


@FAST
@given(rows=st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=2, max_size=2), min_size=1, max_size=9))
def test_what_is_written_as_csv_is_read_as_text(folder, rows):
    with (folder / "x.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    (source,) = map(scan, resolve(folder / "x.csv"))
    read, _ = read_rows(source, ["a", "b"], 0, len(rows))
    assert [list(row.values()) for row in read.to_pylist()] == [[cell or None for cell in row] for row in rows]


@FAST
@given(
    pixels=st.lists(st.binary(min_size=6, max_size=6), min_size=1, max_size=5),
    labels=st.lists(st.integers(0, 255), min_size=5, max_size=5),
    packed=st.booleans(),
)
def test_what_is_written_as_idx_is_read(tmp_path_factory, pixels, labels, packed):
    place, end = tmp_path_factory.mktemp("idx"), ".gz" if packed else ""
    pack = gzip.compress if packed else bytes
    head = struct.pack(">4B3I", 0, 0, 8, 3, len(pixels), 2, 3)
    (place / f"t-images-idx3-ubyte{end}").write_bytes(pack(head + b"".join(pixels)))
    head = struct.pack(">4BI", 0, 0, 8, 1, len(pixels))
    (place / f"t-labels-idx1-ubyte{end}").write_bytes(pack(head + bytes(labels[: len(pixels)])))
    (source,) = map(scan, resolve(place / f"t-images-idx3-ubyte{end}"))
    read, _ = read_rows(source, ["label", "image"], 0, len(pixels))
    assert read["label"].to_pylist() == labels[: len(pixels)]
    assert read["image"].to_pylist() == [b"P5\n3 2\n255\n" + image for image in pixels]


@FAST
@given(
    rows=st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=1, max_size=9),
    name=st.sampled_from(["v.npy", "v.safetensors", "v.parquet", "v.arrow"]),
)
def test_what_is_written_as_vectors_is_read(tmp_path_factory, rows, name):
    from safetensors.numpy import save_file

    path, matrix = tmp_path_factory.mktemp("vectors") / name, np.array(rows, np.float32)
    table = pa.table({"v": pa.array(list(matrix), pa.list_(pa.float32()))})
    {
        "v.npy": lambda: np.save(path, matrix),
        "v.safetensors": lambda: save_file({"v": matrix}, path),
        "v.parquet": lambda: pq.write_table(table, path),
        "v.arrow": lambda: write_ipc(pa.ipc.new_file)(table, path),
    }[name]()
    assert count_vectors(path) == len(rows)
    np.testing.assert_array_equal(read_vectors(path, 0, len(rows)), matrix)


MAGIC = st.sampled_from([
    b"", b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"\x93NUMPY\x01\0", b"\0\0\x08\x03", b"\0\0\x08\x01",
    b"\x1f\x8b\x08", b"\xef\xbb\xbf", b"\xff\xfe", b'{"text": ', b"text,label\n", b'"', b"[", b"\x10\0\0\0\0\0\0\0{",
])  # fmt: skip
CONTENT = st.builds(lambda *parts: b"".join(parts), MAGIC, st.binary(max_size=120), MAGIC)


@pytest.mark.parametrize(
    "name",
    ["b.parquet", "b.arrow", "b.jsonl", "b.csv", "b-images-idx3-ubyte", "b-images-idx3-ubyte.gz", "state", "data"],
)
@LONG
@given(content=CONTENT)
def test_any_bytes_are_read_or_refused(name, tmp_path_factory, content):
    place = tmp_path_factory.mktemp("bytes")
    path = place / name
    if name in ("state", "data"):  # a saved Hugging Face dataset
        (place / "dataset_info.json").write_text("{}")
        state = json.dumps({"_data_files": [{"filename": "data.arrow"}]}).encode()
        (place / "state.json").write_bytes(content if name == "state" else state)
        (place / "data.arrow").write_bytes(content)
        path = place
    else:
        path.write_bytes(content)
    refusal = None
    try:
        (source,) = map(scan, resolve(path))
        read, problem = read_rows(source, list(source.columns), 0, source.rows)
    except DataError as error:
        refusal = str(error)
    if refusal is not None:
        assert str(place) in refusal
    else:
        assert read.num_rows == len(problem) == source.rows
        read.validate(full=True)


@pytest.mark.parametrize("name", ["v.npy", "v.safetensors", "v.parquet", "v.arrow"])
@LONG
@given(content=CONTENT)
def test_any_bytes_are_vectors_or_refused(name, tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_vectors(path, 0, count_vectors(path))


# --- recipes ---

WORDS = st.sampled_from([
    "name", "seed", "dataset", "stages", "train", "kind", "path", "text", "embed", "dedup", "select", "prune", "score",
    "eps", "budget", "method", "random", "proxy", "auto", "x", "", "\n", ": ", "- ", "{", "}", "[", "]", ", ", "&a ",
    "*a", "!!int ", "|", '"', "'", "#", "1e3", ".nan", "no", "~", '"\\ud800"', '"\\UFFFFFFFF"', "%YAML 1.2", "---",
    "\t", "\x00", "\ufeff", "\u2028",
])  # fmt: skip
YAML = st.text(max_size=80) | st.lists(WORDS, max_size=25).map("".join)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS | st.sampled_from([0.5, 1, 3])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=6)
)
STAGES = [
    {"kind": "embed", "encoder": "vectors: v.npy"},
    {"kind": "dedup", "eps": 0.02, "probes": 2},
    {"kind": "cluster", "n_clusters": 5},
    {"kind": "score", "from": "losses.csv", "missing": "median"},
    {"kind": "score", "method": "proxy", "folds": 3, "min_accuracy": 0.5},
    {"kind": "prune", "method": "loss", "drop_highest": 0.1},
    {"kind": "prune", "method": "density", "keep": 100, "balance": 0.5},
    {"kind": "select", "method": "targeted", "budget": 0.1, "queries": "q.npy"},
    {"kind": "select", "method": "ingenious", "budget": 10, "temperature": 0.5},
    {"kind": "schedule", "epochs": 7},
    {"kind": "reweight", "strategy": "upper"},
]


@LONG
@given(text=YAML)
def test_any_text_is_a_recipe_or_refused(folder, text):
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        load_recipe(path)


@LONG
@given(value=st.dictionaries(WORDS, VALUES, max_size=6), overrides=st.lists(YAML, max_size=2))
@example({"name": "\ud800"}, [])
@example({"\ud800": 1}, [])
@example({"stages": [{"kind": {}}]}, ["x[0].y=1"])
def test_any_mapping_is_a_recipe_or_refused(value, overrides):
    with pytest.raises(RecipeError):
        load_recipe(value, tuple(overrides))


@LONG
@given(
    stage=st.sampled_from(STAGES),
    key=st.sampled_from(["kind", "eps", "budget", "epochs", "from", "encoder", "new"]),
    value=VALUES,
)
def test_a_stage_with_any_value_is_one_or_refused(stage, key, value):
    raw = {"name": "x", "dataset": {"path": "p", "text": "t"}, "stages": [{**stage, key: value}]}
    refusal = None
    try:
        recipe, _ = load_recipe(raw)
    except RecipeError as error:
        refusal = str(error)
    if refusal is not None:
        assert "stages" in refusal
    else:
        assert load_recipe(recipe.model_dump(by_alias=True, mode="json"))[0] == recipe


@FAST
@given(
    stages=st.lists(st.sampled_from(STAGES), min_size=1, max_size=6),
    seed=st.integers(0, 2**63 - 1),
    columns=st.fixed_dictionaries(
        {"text": st.text(min_size=1, max_size=9)}, optional={"id": st.text(), "label": st.text()}
    ),
    bad=st.floats(0.0, 1.0),
)
def test_a_recipe_that_is_dumped_and_loaded_is_equal(folder, stages, seed, columns, bad):
    raw = {
        "name": "x", "seed": seed, "dataset": {"path": "p", **columns}, "stages": stages, "max_bad_fraction": bad,
    }  # fmt: skip
    recipe, _ = load_recipe(raw)
    dumped = recipe.model_dump(by_alias=True, mode="json")
    (folder / "again.yaml").write_text(json.dumps(dumped))
    assert load_recipe(folder / "again.yaml")[0] == recipe
    assert load_recipe(dumped)[0] == recipe == load_recipe(recipe)[0]


# --- manifests ---

NAMES = st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=12, unique=True)


@st.composite
def manifests(draw):
    """Tables and a body that obey every rule, of any content."""
    ids = draw(NAMES)
    n = len(ids)
    decision = draw(st.lists(st.integers(0, len(DECISIONS) - 1), min_size=n, max_size=n))
    kept = draw(st.permutations([row for row in range(n) if decision[row] == 0]))
    hashes = [hashlib.sha256(name.encode()).digest()[:16] for name in ids]
    finite = st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32)
    audit = {
        "sample_id": ids,
        "row": range(n),
        "content_hash": hashes,
        "decision": decision,
        "stage": draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)),
        "reason": draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)),
        "kept_row": [draw(st.sampled_from([None, *kept])) if decision[row] else None for row in range(n)],
        "score": draw(st.lists(finite, min_size=n, max_size=n)),
        "partition": draw(st.lists(st.none() | st.integers(0, 9), min_size=n, max_size=n)),
    }
    schema = select_schema(["loss"])
    k = len(kept)
    select = {field.name: [None] * k for field in schema} | {
        "sample_id": [ids[row] for row in kept],
        "row": kept,
        "source": [0] * k,
        "source_row": kept,
        "content_hash": [hashes[row] for row in kept],
        "rank": range(k),
        "weight": draw(st.lists(st.floats(0.0078125, 100.0, width=32), min_size=k, max_size=k)),
        "reason": [0] * k,
        "gain": draw(st.lists(finite, min_size=k, max_size=k)),
        "score_loss": draw(st.lists(finite, min_size=k, max_size=k)),
    }
    body = dict.fromkeys(BODY_KEYS) | {
        "dataset": {
            "fingerprint": "f" * 64, "rows": n, "schema": "s", "fields": {"text": "t"},
            "sources": [{"path": "a", "sha256": "a" * 64, "rows": n}],
        },
        "recipe": {"name": draw(st.text(st.characters(codec="utf-8")))},
        "seed": draw(st.integers()),
        "stages": [{"name": name} for name in "abc"],
        "reasons": ["w", "x", "y", "z"],
        "scores": {"loss": {}},
        "required_features": [],
    }  # fmt: skip
    return pa.table(select, schema=schema), pa.table(audit, schema=AUDIT), body


@FAST
@given(given_=manifests(), part_rows=st.integers(1, 13))
def test_what_is_committed_is_opened(tmp_path_factory, given_, part_rows):
    select, audit, body = given_
    place = tmp_path_factory.mktemp("manifest")
    commit(place, select=select, audit=audit, body=copy.deepcopy(body), part_rows=part_rows)
    manifest = open_manifest(place)
    assert manifest.select.equals(select)
    assert manifest.audit.equals(audit)
    assert {key: manifest.record[key] for key in body} == body
    for sample in audit["sample_id"].to_pylist():
        assert manifest.explain(sample)["sample_id"] == sample


@pytest.fixture(scope="module")
def golden(folder):
    """The golden manifest, in a folder that is spoiled and read again and again."""
    import shutil
    from pathlib import Path

    place = folder / "golden"
    shutil.copytree(Path(__file__).resolve().parent.parent / "golden" / "manifest-1.0", place)
    return place, json.loads((place / "v000001.json").read_bytes())["body"]


def places(value, path=()):
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inner for found in [(*path, key), *places(item, (*path, key))]]


UTF8 = st.text(st.characters(codec="utf-8"), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | UTF8
    | st.sampled_from(["../x", "/etc/passwd", "data/../../x", 2**63, 10**30, -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(UTF8, inner, max_size=3),
)  # fmt: skip

OPENED: list[str] = []
sys.addaudithook(lambda event, arguments: OPENED.append(str(arguments[0])) if event == "open" else None)


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_a_record_that_vouches_for_anything_is_obeyed_or_refused(golden, data):
    place, sound = golden
    body = copy.deepcopy(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        found = places(body)
        if found:
            *path, key = data.draw(st.sampled_from(found))
            parent = body
            for step in path:
                parent = parent[step]
            if data.draw(st.booleans()):
                parent[key] = data.draw(JSON)
            else:
                del parent[key]
    if data.draw(st.booleans()):
        body["subset_id"] = digest({name: value for name, value in body.items() if name != "subset_id"})
    (place / "v000001.json").write_bytes(canonical_json({"body": body, "sha256": digest(body)}))
    OPENED.clear()
    refusal = None
    try:
        manifest = open_manifest(place)
    except DamagedManifestError as error:
        refusal = str(error)
    if refusal is not None:
        assert str(place) in refusal
    else:
        check_body(manifest.record)
        check_tables(manifest.select, manifest.audit, manifest.record)
    assert [name for name in OPENED if not name.startswith(f"{place}/")] == []


@LONG
@given(content=st.binary(max_size=200) | st.text().map(str.encode) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_no_record(golden, content):
    place, _ = golden
    (place / "v000001.json").write_bytes(content)
    with pytest.raises(TamisError, match=r"v000001\.json is damaged"):
        open_manifest(place)

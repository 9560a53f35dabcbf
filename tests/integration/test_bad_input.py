"""Bad input: an error that says what was given, what is allowed and what to do, or a row set aside; never less."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.manifests.schema import DECISIONS
from tamis.training.rows import read_training

EMBED = {"kind": "embed", "encoder": "lsa", "dim": 16}
EXACT = {"kind": "dedup", "eps": 0.0}
CLUSTER = {"kind": "cluster"}
SCORE = {"kind": "score", "method": "proxy"}
FILE_SCORE = {"kind": "score", "from": "losses.csv"}
RANDOM = {"kind": "select", "method": "random", "budget": 0.5}
N = 60


@pytest.fixture
def columns(make_columns):
    return make_columns(N)


@pytest.fixture
def go(tmp_path, recipe, cli):
    """Run stages on a file through the command line; returns the result, and gives `facts` of a good run."""

    def go(data, stages, out="out", **others):
        path = recipe(data, stages, **others)
        return cli("run", path, "--out", tmp_path / out, "--executor", "sync", "--json")

    return go


def refused(result, code, *parts):
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.count("tamis: ") == 1
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr
    return result.stderr


def accepted(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def stage_facts(facts, label):
    return next(stage["facts"] for stage in facts["stages"] if stage["stage"] == label)


def decisions(out):
    names = list(DECISIONS)
    manifest = tamis.open_manifest(out)
    return {row["row"]: (names[row["decision"]], manifest.reasons[row["reason"]]) for row in manifest.audit.to_pylist()}


# --- ingest: files ---


def test_no_file(tmp_path, go):
    refused(go(tmp_path / "none.parquet", [EXACT]), 3, "none.parquet does not exist; a file, a glob or a folder")


def test_no_match(tmp_path, go):
    refused(go(tmp_path / "*.parquet", [EXACT]), 3, "matches no file")


def test_unknown_extension(tmp_path, go):
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    refused(go(tmp_path / "rows.xlsx", [EXACT]), 3, "'.xlsx'", ".parquet", ".jsonl", ".csv")


def test_zero_rows(write, go, columns):
    data = write(pa.table(columns).slice(0, 0))
    refused(go(data, [EXACT]), 3, "rows.parquet: has no rows")


def test_an_empty_file(tmp_path, go):
    (tmp_path / "rows.jsonl").write_bytes(b"")
    refused(go(tmp_path / "rows.jsonl", [EXACT]), 3, "rows.jsonl: is empty (0 bytes)")


def test_zero_rows_of_csv(tmp_path, go):
    (tmp_path / "rows.csv").write_text("id,text,label\n")
    refused(go(tmp_path / "rows.csv", [EXACT]), 3, "rows.csv: has no rows")


@pytest.mark.parametrize("cut", [4, 100, 0.5, -8])
def test_a_truncated_parquet(write, go, columns, cut):
    data = write(columns)
    content = data.read_bytes()
    data.write_bytes(content[: int(cut * len(content)) if isinstance(cut, float) else cut])
    refused(go(data, [EXACT]), 3, "rows.parquet: not a whole, valid parquet file")


def test_a_corrupt_page(tmp_path, go, columns):
    data = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), data, compression="zstd", write_page_checksum=True, use_dictionary=False)
    content = bytearray(data.read_bytes())
    content[len(content) // 3] ^= 0xFF
    data.write_bytes(bytes(content))
    refused(go(data, [EXACT]), 3, "rows.parquet")


def test_a_ragged_csv(tmp_path, go):
    (tmp_path / "rows.csv").write_text("id,text,label\na,one,x\nb,two, and more,y\n")
    refused(go(tmp_path / "rows.csv", [EXACT]), 3, "rows.csv: row 1 has 4 fields, the header names 3", "quote")


def test_json_that_is_none(tmp_path, go):
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "text": "t", "label": "x"}\n{"id": "b", \n')
    refused(go(tmp_path / "rows.jsonl", [EXACT]), 3, "rows.jsonl:2: not a JSON object")


def test_mixed_types_in_json(tmp_path, go):
    (tmp_path / "rows.jsonl").write_text(
        '{"id": "a", "text": "t", "label": "x"}\n{"id": "b", "text": 3, "label": "x"}\n'
    )
    refused(go(tmp_path / "rows.jsonl", [EXACT]), 3, "rows.jsonl:2: column 'text' is a number here and a string")


@pytest.mark.parametrize(
    ("name", "values", "part"),
    [
        ("text", pa.array(range(N)), "column 'text' is the text and holds int64; allowed are strings"),
        ("id", pa.array(np.arange(N) / 2), "column 'id' is the id and holds double; allowed are strings and whole"),
        ("label", pa.array([[1]] * N), "column 'label' is the label and holds list<"),
    ],
)
def test_a_column_of_the_wrong_type_names_the_file(write, go, columns, name, values, part):
    refused(go(write({**columns, name: values}), [EXACT]), 3, "rows.parquet: ", part)


def test_remote_addresses_are_refused_without_showing_the_secret(go):
    message = refused(go("https://user:hunter2@host/rows.parquet?sig=hunter2", [EXACT]), 3, "remote address", "copy it")
    assert "hunter2" not in message


# --- ingest: columns and ids ---


def test_a_missing_column_names_the_nearest(write, go, columns):
    columns["texts"] = columns.pop("text")
    refused(go(write(columns), [EXACT]), 3, "no column 'text'; did you mean 'texts'?", "id, label, texts")


def test_a_file_that_lacks_a_column(tmp_path, go, columns):
    (tmp_path / "parts").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "parts" / "a.parquet")
    pq.write_table(pa.table({"id": ["z"], "text": ["t"]}), tmp_path / "parts" / "b.parquet")
    refused(go(tmp_path / "parts", [EXACT]), 3, "b.parquet: no column 'label'")


def test_null_ids_are_named_ten_at_most(tmp_path, go, columns):
    (tmp_path / "parts").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "parts" / "a.parquet")
    second = {**columns, "id": [None if i % 4 == 1 else f"s{i}" for i in range(N)]}
    pq.write_table(pa.table(second), tmp_path / "parts" / "b.parquet")
    message = refused(go(tmp_path / "parts", [EXACT]), 3, "15 rows have no id in column 'id'", "content hash is the id")
    assert message.count("b.parquet row ") == 10
    assert "b.parquet row 1;" in message
    assert "a.parquet" not in message


def test_duplicate_ids_are_named_ten_at_most(tmp_path, go, columns):
    (tmp_path / "parts").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "parts" / "a.parquet")
    second = {**columns, "id": [f"r{i:04d}" if 3 <= i < 18 else f"s{i}" for i in range(N)]}
    pq.write_table(pa.table(second), tmp_path / "parts" / "b.parquet")
    message = refused(go(tmp_path / "parts", [EXACT]), 3, "15 ids in column 'id' are duplicates", "must be unique")
    assert "'r0003' at a.parquet row 3 and b.parquet row 3" in message
    assert message.count(" and b.parquet row ") == 10


def test_numeric_ids_are_kept_verbatim(tmp_path, go):
    (tmp_path / "rows.csv").write_text("id,text,label\n007,one,x\n7,two,y\n0.70,three,x\n")
    accepted(go(tmp_path / "rows.csv", [EXACT]))
    assert tamis.open_manifest(tmp_path / "out").audit["sample_id"].to_pylist() == ["007", "7", "0.70"]


# --- ingest: one row ---


def test_one_row_is_a_subset_of_one(tmp_path, write, go):
    stages = [
        EMBED,
        {"kind": "dedup"},
        CLUSTER,
        {"kind": "prune", "method": "density", "keep": 1.0},
        {"kind": "select", "method": "facility_location", "budget": 1.0},
    ]
    data = write({"id": ["only"], "text": ["one lonely row"], "label": ["x"]})
    for method in ("facility_location", "ingenious", "random", "stratified"):
        stages[-1]["method"] = method
        facts = accepted(go(data, stages, out=method))
        assert (facts["rows"], facts["kept"]) == (1, 1)
        assert tamis.open_manifest(tmp_path / method).select["sample_id"].to_pylist() == ["only"]
        assert stage_facts(facts, "03-cluster")["k_effective"] == 1


def test_one_row_is_too_few_for_a_proxy(write, go):
    data = write({"id": ["only"], "text": ["one lonely row"], "label": ["x"]})
    refused(go(data, [EMBED, SCORE]), 3, "score with 5 folds needs at least 10 rows; 1 are left")


def test_one_row_with_a_loss(tmp_path, write, go):
    (tmp_path / "losses.csv").write_text("sample_id,loss\nonly,0.5\n")
    data = write({"id": ["only"], "text": ["one lonely row"], "label": ["x"]})
    facts = accepted(go(data, [FILE_SCORE, {"kind": "schedule"}, {"kind": "reweight"}]))
    assert stage_facts(facts, "02-schedule")["groups"] == 1
    assert tamis.open_manifest(tmp_path / "out").select["weight"].to_pylist() == [1.0]


# --- ingest: bad rows ---


def bad_rows_file(tmp_path):
    """A JSON lines file of which rows 1, 2, 3, 5, 6 and 8 are bad, each in its own way."""
    good = [{"id": f"r{i}", "text": f"text number {i} is good", "label": "xy"[i % 2]} for i in range(40)]
    lines = [json.dumps(row).encode() for row in good]
    lines[1] = json.dumps({**good[1], "text": None}).encode()
    lines[2] = json.dumps({**good[2], "text": " \t\u2003 "}).encode()
    lines[3] = json.dumps({**good[3], "text": "long " * 300}).encode()
    lines[5] = lines[5].replace(b"good", b"g\xff\xfed")
    lines[6] = lines[6].replace(b"good", b"\\ud83d")
    lines[8] = json.dumps({**good[8], "label": None}).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_bad_rows_are_set_aside_each_with_its_reason(tmp_path, go):
    stages = [EMBED, {"kind": "dedup", "eps": 0.01}, {"kind": "select", "method": "stratified", "budget": 10}]
    facts = accepted(go(bad_rows_file(tmp_path), stages, max_bad_fraction=0.15, max_text_bytes=1000))
    assert facts["counts"]["quarantined"] == 6
    found = decisions(tmp_path / "out")
    assert {row: reason for row, (name, reason) in found.items() if name == "quarantined"} == {
        1: "text is null",
        2: "text is empty",
        3: "text is too long",
        5: "not valid UTF-8",
        6: "lone surrogate in a JSON string",
        8: "label is null",
    }


def test_too_many_bad_rows_are_refused(tmp_path, go):
    result = go(bad_rows_file(tmp_path), [EMBED], max_bad_fraction=0.14, max_text_bytes=1000)
    refused(
        result, 3, "6 of 40 rows are bad, more than max_bad_fraction 0.14 allows", "rows.jsonl row 1: text is null",
        "rows.jsonl row 3: text is too long", "rows.jsonl row 6: lone surrogate", "raise max_bad_fraction",
    )  # fmt: skip


def test_zero_bad_rows_are_allowed_where_the_recipe_is_strict(write, go, columns):
    accepted(go(write(columns), [RANDOM], max_bad_fraction=0.0))
    columns["text"][7] = ""
    refused(go(write(columns), [RANDOM], max_bad_fraction=0.0), 3, "1 of 60 rows are bad", "rows.parquet row 7")


def test_bad_bytes_in_parquet(tmp_path, write, go, columns):
    texts = pa.array([b"\xff\xfe" if i == 4 else text.encode() for i, text in enumerate(columns["text"])])
    columns["text"] = pa.Array.from_buffers(pa.string(), N, texts.buffers())
    accepted(go(write(columns), [EMBED, RANDOM], max_bad_fraction=0.05))
    assert decisions(tmp_path / "out")[4] == ("quarantined", "not valid UTF-8")


def test_a_whole_block_of_bad_rows(tmp_path, write, go, columns):
    columns["text"] = [None if 16 <= i < 32 else text for i, text in enumerate(columns["text"])]
    columns["label"] = [None if 16 <= i < 32 else label for i, label in enumerate(columns["label"])]
    stages = [EMBED, {"kind": "dedup"}, CLUSTER, SCORE, {"kind": "select", "method": "ingenious", "budget": 9}]
    facts = accepted(go(write(columns), stages, max_bad_fraction=0.5, block_rows=16))
    assert facts["counts"]["quarantined"] == 16


def test_a_null_column_in_json(tmp_path, go):
    lines = [json.dumps({"id": f"r{i}", "text": "t" if i < 16 else None, "label": "x"}) for i in range(32)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    facts = accepted(go(tmp_path / "rows.jsonl", [EMBED], max_bad_fraction=0.5, block_rows=16))
    assert facts["counts"]["quarantined"] == 16


def test_nothing_left_is_refused(write, go, columns):
    columns["text"] = [""] * N
    refused(go(write(columns), [RANDOM], max_bad_fraction=1.0), 2, "only 0 rows reach this stage")
    refused(go(write(columns), [EXACT], max_bad_fraction=1.0), 3, "no row is left")
    refused(go(write(columns), [EMBED], max_bad_fraction=1.0), 3, "no row is left to fit the lsa encoder on")


def test_texts_of_signs_and_emoji_embed(tmp_path, write, go):
    texts = ["!!!", "\U0001f600 \U0001f601", "?!?", "…", "日本語 テキスト", "a", "0", "\x07", "\u200b", "# #"]
    data = write({"id": [str(i) for i in range(10)], "text": texts, "label": list("xy" * 5)})
    facts = accepted(go(data, [EMBED, {"kind": "dedup"}, CLUSTER, RANDOM]))
    assert facts["counts"]["quarantined"] == 0


# --- embed ---


def write_npy(tmp_path, change=None, rows=N, dtype=np.float32):
    vectors = np.random.default_rng(0).standard_normal((rows, 4)).astype(dtype)
    if change is not None:
        change(vectors)
    np.save(tmp_path / "v.npy", vectors)
    return {"kind": "embed", "encoder": "vectors: v.npy"}


def spoil(vectors):
    vectors[3, 1], vectors[7, 0], vectors[11], vectors[13, 2], vectors[17, 3] = np.nan, np.inf, 0, 1e20, -1e7


def test_bad_vectors_are_set_aside(tmp_path, write, go, columns):
    stage = write_npy(tmp_path, spoil)
    stages = [stage, {"kind": "dedup"}, CLUSTER, {"kind": "select", "method": "facility_location", "budget": 20}]
    facts = accepted(go(write(columns), stages, max_bad_fraction=0.1))
    assert facts["counts"]["quarantined"] == 5
    found = decisions(tmp_path / "out")
    assert {row: reason for row, (name, reason) in found.items() if name == "quarantined"} == {
        3: "vector has NaN or infinity",
        7: "vector has NaN or infinity",
        11: "vector is all zeros",
        13: "vector has a value above 1e6",
        17: "vector has a value above 1e6",
    }


def test_too_many_bad_vectors(tmp_path, write, go, columns):
    stage = write_npy(tmp_path, spoil)
    refused(
        go(write(columns), [stage]), 3, "5 of 60 rows have no usable vector, more than max_bad_fraction 0.001",
        "row 3: vector has NaN or infinity", "row 11: vector is all zeros", "row 13: vector has a value above 1e6",
    )  # fmt: skip


def test_a_float64_beyond_float32(tmp_path, write, go, columns):
    def change(vectors):
        vectors[5, 0] = 1e300

    stage = write_npy(tmp_path, change, dtype=np.float64)
    accepted(go(write(columns), [stage], max_bad_fraction=0.1))
    assert decisions(tmp_path / "out")[5] == ("quarantined", "vector has NaN or infinity")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_types(tmp_path, write, go, columns, dtype):
    accepted(go(write(columns), [write_npy(tmp_path, dtype=dtype), CLUSTER]))


@pytest.mark.parametrize("rows", [N - 1, N + 1, 1])
def test_another_number_of_vectors(tmp_path, write, go, columns, rows):
    stage = write_npy(tmp_path, rows=rows)
    refused(go(write(columns), [stage]), 3, f"v.npy holds {rows} vectors, the dataset 60 rows")


def save_object(path):
    np.save(path, np.array([[1.0], "x"], dtype=object), allow_pickle=True)


def save_archive(path):
    np.savez(path.with_suffix(".npz"), a=np.zeros((N, 2)))
    path.with_suffix(".npz").rename(path)


FLOATS = pa.list_(pa.float32())
VECTOR_FILES = {
    "object array": ("v.npy", save_object, "Python objects"),
    "whole numbers": ("v.npy", lambda path: np.save(path, np.ones((N, 2), int)), "holds int64 of shape (60, 2)"),
    "one dimension": ("v.npy", lambda path: np.save(path, np.ones(N)), "holds float64 of shape (60,)"),
    "empty": ("v.npy", lambda path: path.write_bytes(b""), "cannot read vectors"),
    "no npy": ("v.npy", lambda path: path.write_bytes(b"nothing of the kind"), "cannot read vectors"),
    "npz named npy": ("v.npy", save_archive, "cannot read vectors"),
    "truncated": ("v.npy", lambda path: path.write_bytes(npy_bytes()[:300]), "cannot read vectors"),
    "torch": ("v.pt", lambda path: path.write_bytes(b"PK\x03\x04"), "pickled formats can run code and are refused"),
    "pickle": ("v.pkl", lambda path: path.write_bytes(b"\x80\x04."), "pickled formats can run code and are refused"),
    "safetensors": ("v.safetensors", lambda path: path.write_bytes(b"\x08\0\0\0\0\0\0\0garbage!"), "cannot read"),
    "parquet": ("v.parquet", lambda path: path.write_bytes(b"PAR1"), "cannot read vectors"),
    "two lists": ("v.parquet", lambda path: pq.write_table(pa.table({"a": [[1.0]], "b": [[1.0]]}), path),
                  "has 2 list columns (a, b); give a file with one"),
    "no list": ("v.parquet", lambda path: pq.write_table(pa.table({"a": [1.0]}), path), "has 0 list columns (none)"),
    "ragged": ("v.parquet", lambda path: pq.write_table(pa.table({"a": [[1.0], [1.0, 2.0]]}), path),
               "vectors differ in length: row 0 has 1, row 1 has 2"),
    "empty lists": ("v.parquet", lambda path: pq.write_table(pa.table({"a": pa.array([[]] * N, FLOATS)}), path),
                    "empty lists"),
    "lists of text": ("v.parquet", lambda path: pq.write_table(pa.table({"a": [["x"]] * N}), path), "cannot read"),
}  # fmt: skip


def npy_bytes():
    import io

    stream = io.BytesIO()
    np.save(stream, np.ones((N, 4)))
    return stream.getvalue()


@pytest.mark.parametrize("case", VECTOR_FILES)
def test_vector_files_that_are_refused(tmp_path, write, go, columns, case):
    name, save, part = VECTOR_FILES[case]
    save(tmp_path / name)
    refused(go(write(columns), [{"kind": "embed", "encoder": f"vectors: {name}"}]), 3, name, part)


def test_no_vector_file(write, go, columns):
    refused(go(write(columns), [{"kind": "embed", "encoder": "vectors: v.npy"}]), 2, "no file of vectors at", "v.npy")


def test_ragged_vectors_in_a_column(tmp_path, write, go, columns):
    columns["v"] = [[1.0, 2.0, 3.0]] * N
    columns["v"][23] = [1.0]
    stages = [{"kind": "embed", "encoder": "vectors"}]
    result = go(write(columns), stages, dataset={"vectors": "v"})
    refused(result, 3, "vectors differ in length", "row 0 has 3, row 23 has 1")
    columns["v"] = [[1.0, 2.0]] * 16 + [[1.0]] * (N - 16)
    result = go(write(columns), stages, dataset={"vectors": "v"}, block_rows=16)
    refused(result, 3, "vectors differ in length between blocks: [1, 2]")


def test_nulls_in_a_vector_column(tmp_path, write, go, columns):
    columns["v"] = [[float(i), 1.0] for i in range(N)]
    columns["v"][4], columns["v"][9] = None, [1.0, None]
    stages = [{"kind": "embed", "encoder": "vectors"}, CLUSTER]
    accepted(go(write(columns), stages, dataset={"vectors": "v"}, max_bad_fraction=0.1))
    found = decisions(tmp_path / "out")
    assert found[4] == ("quarantined", "vector is null")
    assert found[9] == ("quarantined", "vector has NaN or infinity")


@pytest.mark.parametrize("values", [["x"] * N, [1.0] * N, [["x"]] * N, [[[1.0]]] * N])
def test_a_vector_column_without_vectors(write, go, columns, values):
    columns["v"] = values
    result = go(write(columns), [{"kind": "embed", "encoder": "vectors"}], dataset={"vectors": "v"})
    refused(result, 3, "rows.parquet: column 'v' is the vectors and holds", "allowed are lists of numbers")


def test_empty_vectors_in_a_column(write, go, columns):
    columns["v"] = pa.array([[]] * N, pa.list_(pa.float32()))
    result = go(write(columns), [{"kind": "embed", "encoder": "vectors"}], dataset={"vectors": "v"})
    refused(result, 3, "vectors are empty lists")


def test_whole_numbers_are_vectors_in_a_column(write, go, columns):
    columns["v"] = [[i + 1, 2 * i, 3] for i in range(N)]
    accepted(go(write(columns), [{"kind": "embed", "encoder": "vectors"}, CLUSTER], dataset={"vectors": "v"}))


def test_a_model_that_is_not_there_or_could_run_code(tmp_path, write, go, columns, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    data = write(columns)
    result = go(data, [{"kind": "embed", "encoder": "sentence: nobody/none"}])
    refused(result, 2, "no model at 'nobody/none'", "safetensors")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    result = go(data, [{"kind": "embed", "encoder": "transformers: model"}])
    refused(result, 2, "has no .safetensors beside it", "refused")


# --- stages that lack what they need ---


@pytest.mark.parametrize(
    ("stages", "dataset", "part"),
    [
        ([{"kind": "dedup"}], {}, "dedup with eps > 0 needs embeddings; put an embed stage before it"),
        ([CLUSTER], {}, "cluster needs embeddings"),
        ([SCORE], {}, "needs embeddings"),
        ([EMBED, SCORE], {"label": None}, "needs labels; name the column: dataset: {label: COLUMN}"),
        ([{"kind": "prune", "method": "loss", "drop_highest": 0.1}], {}, "needs loss; put a score stage before it"),
        ([EMBED, {"kind": "prune", "method": "density"}], {}, "needs cluster; put a cluster stage before it"),
        ([{"kind": "schedule"}], {}, "schedule needs loss"),
        ([{"kind": "reweight"}], {}, "reweight needs loss"),
        ([{"kind": "select", "method": "facility_location", "budget": 3}], {}, "needs embeddings"),
        ([{"kind": "select", "method": "stratified", "budget": 3}], {"label": None}, "needs labels"),
        ([{"kind": "select", "method": "random", "budget": 3, "per": "label"}], {"label": None}, "needs labels"),
        ([EMBED], {"text": None, "vectors": "v"}, "embed with 'lsa' needs the dataset's text column"),
        ([{"kind": "embed", "encoder": "vectors"}], {}, "needs the dataset's vectors column"),
    ],
)
def test_a_stage_that_lacks_what_it_needs(write, go, columns, stages, dataset, part):
    path = write({**columns, "v": [[1.0, 2.0]] * len(columns["id"])})
    refused(go(path, stages, dataset=dataset), 2, part)


# --- cluster ---


def test_more_clusters_than_rows(tmp_path, write, go, columns):
    facts = accepted(go(write(columns), [EMBED, {"kind": "cluster", "n_clusters": 1000}]))
    assert stage_facts(facts, "02-cluster")["n_clusters"] == 1000
    assert stage_facts(facts, "02-cluster")["k_effective"] == N


def test_zero_clusters(write, go, columns):
    refused(go(write(columns), [EMBED, {"kind": "cluster", "n_clusters": 0}]), 2, "n_clusters", "the least is 1")


def test_identical_points(tmp_path, write, go, columns):
    np.save(tmp_path / "v.npy", np.ones((N, 4), np.float32))
    stages = [
        {"kind": "embed", "encoder": "vectors: v.npy"},
        {"kind": "cluster", "n_clusters": 5},
        {"kind": "prune", "method": "density", "keep": 0.5},
        {"kind": "select", "method": "facility_location", "budget": 10},
    ]
    facts = accepted(go(write(columns), stages))
    assert facts["kept"] == 10
    assert stage_facts(facts, "02-cluster")["largest"] <= N
    stages[-1]["method"] = "ingenious"
    assert accepted(go(write(columns), stages, out="two"))["kept"] == 10
    facts = accepted(go(write(columns), [stages[0], {"kind": "dedup"}], out="three"))
    assert facts["kept"] == 1


def test_points_at_opposite_ends(tmp_path, write, go, columns):
    vectors = np.ones((N, 3), np.float32)
    vectors[::2] *= -1
    np.save(tmp_path / "v.npy", vectors)
    stages = [{"kind": "embed", "encoder": "vectors: v.npy"}, {"kind": "dedup"}]
    assert accepted(go(write(columns), stages))["kept"] == 2


# --- select ---


def test_a_count_beyond_the_dataset(write, go, columns):
    result = go(write(columns), [{"kind": "select", "method": "random", "budget": 61}])
    refused(result, 2, "select.budget is 61, but the dataset has 60 rows")


def test_a_budget_beyond_what_is_left(tmp_path, write, go, columns):
    columns["text"] = [text if i < 20 else "always the same" for i, text in enumerate(columns["text"])]
    result = go(write(columns), [EXACT, {"kind": "select", "method": "random", "budget": 0.5}])
    refused(result, 2, "select.budget 0.5 of 60 rows is 30, but only 21 rows reach this stage; give at most 21 or 0.35")


def test_keeping_more_than_there_is(write, go, columns):
    stages = [EMBED, CLUSTER, {"kind": "prune", "method": "density", "keep": 61}]
    refused(go(write(columns), stages), 2, "prune.keep is 61, but only 60 rows reach this stage")


def test_a_fraction_of_less_than_a_row_keeps_one(write, go, columns):
    assert accepted(go(write(columns), [{"kind": "select", "method": "random", "budget": 1e-6}]))["kept"] == 1


def test_one_row_a_label_is_no_quota(write, go, columns):
    stages = [EMBED, {"kind": "select", "method": "facility_location", "budget": 2, "per": "label"}]
    assert accepted(go(write(columns), stages))["kept"] == 2


# --- score ---


def write_losses(tmp_path, losses, head="sample_id,loss"):
    lines = [head, *(f"{name},{loss}" for name, loss in losses)]
    (tmp_path / "losses.csv").write_text("\n".join(lines) + "\n")


def given_losses():
    return [(f"r{i:04d}", f"{i / 7:.4f}") for i in range(N)]


def test_a_proxy_no_better_than_the_majority(write, go, columns):
    rng = np.random.default_rng(0)
    columns["label"] = [f"c{value}" for value in (rng.random(N) < 0.3).astype(int)]
    message = refused(
        go(write(columns), [EMBED, SCORE]),
        3,
        "the proxy's out-of-fold accuracy is 0.",
        "the share of the largest class",
        "check the labels",
    )
    largest = max(columns["label"].count("c0"), columns["label"].count("c1")) / N
    assert f"not above {largest:.4f}" in message


def test_a_proxy_below_the_accuracy_that_was_asked(write, go, columns):
    result = go(write(columns), [EMBED, {**SCORE, "min_accuracy": 1.0}])
    refused(result, 3, "not above 1.0000 (min_accuracy)")


def test_one_class_only(write, go, columns):
    columns["label"] = ["same"] * N
    refused(go(write(columns), [EMBED, SCORE]), 3, "at least two labels")


def test_a_class_of_one_row(write, go, columns):
    columns["label"][8] = "lonely"
    facts = accepted(go(write(columns), [EMBED, SCORE, {"kind": "reweight"}]))
    assert stage_facts(facts, "02-score")["mean_loss"] >= 0


def test_no_loss_file(write, go, columns):
    refused(go(write(columns), [FILE_SCORE]), 2, "no file of losses at", "losses.csv")


def test_a_loss_file_that_lacks_ids(tmp_path, write, go, columns):
    write_losses(tmp_path, given_losses()[12:])
    message = refused(
        go(write(columns), [FILE_SCORE]), 3, "losses.csv has no loss for 12 of 60 rows", "give one for each"
    )
    assert "r0000, r0001" in message
    assert "r0009" in message
    assert "r0010" not in message


def test_losses_of_dropped_rows_are_not_needed(tmp_path, write, go, columns):
    columns["text"][59] = columns["text"][0]
    columns["label"][59] = columns["label"][0]
    accepted(go(write(columns), [EXACT], out="look"))
    (gone,) = (row for row, (name, _) in decisions(tmp_path / "look").items() if name == "exact_dup")
    write_losses(tmp_path, [item for i, item in enumerate(given_losses()) if i != gone])
    accepted(go(write(columns), [EXACT, FILE_SCORE]))


def test_rows_without_a_loss_get_the_median_where_that_is_asked_for(tmp_path, write, go, columns):
    losses = given_losses()
    losses[20] = ("r0020", "")
    write_losses(tmp_path, losses[12:])
    message = refused(go(write(columns), [FILE_SCORE]), 3, "has no loss for 13 of 60 rows", "score.missing: median")
    assert "r0020" not in message  # the first ten are named
    facts = accepted(go(write(columns), [{**FILE_SCORE, "missing": "median"}], out="median"))
    assert stage_facts(facts, "01-score")["without_loss"] == 13
    write_losses(tmp_path, [("other", 1.0)])
    refused(go(write(columns), [{**FILE_SCORE, "missing": "median"}], out="none"), 3, "no loss for any of the 60 rows")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_losses_that_are_no_numbers_to_rank(tmp_path, write, go, columns, value):
    losses = given_losses()
    losses[5] = ("r0005", value)
    write_losses(tmp_path, losses)
    refused(go(write(columns), [FILE_SCORE]), 3, "losses.csv: 1 losses are NaN or infinite: r0005")


def test_losses_that_are_text(tmp_path, write, go, columns):
    losses = given_losses()
    losses[5] = ("r0005", "high")
    write_losses(tmp_path, losses)
    refused(go(write(columns), [FILE_SCORE]), 3, "losses.csv: column 'loss' holds no numbers", "high", "score.column")


def test_losses_twice(tmp_path, write, go, columns):
    write_losses(tmp_path, [*given_losses(), ("r0003", "0.5")])
    refused(go(write(columns), [FILE_SCORE]), 3, "column 'sample_id' holds 1 ids more than once: r0003")


def test_null_ids_in_a_loss_file_belong_to_nobody(tmp_path, write, go, columns):
    write_losses(tmp_path, [*given_losses(), ("", "0.5"), ("", "0.7")])
    accepted(go(write(columns), [FILE_SCORE]))


def test_a_loss_file_with_other_columns(tmp_path, write, go, columns):
    write_losses(tmp_path, given_losses(), "sample_id,losses")
    refused(go(write(columns), [FILE_SCORE]), 3, "losses.csv: no column 'loss'; did you mean 'losses'?")


def test_a_loss_file_that_is_no_table(tmp_path, write, go, columns):
    (tmp_path / "losses.csv").write_text("")
    refused(go(write(columns), [FILE_SCORE]), 3, "losses.csv", "empty")


# --- schedule and reweight ---


def test_equal_losses_make_fewer_groups(tmp_path, write, go, columns):
    write_losses(tmp_path, [(name, "0.25") for name, _ in given_losses()])
    facts = accepted(go(write(columns), [FILE_SCORE, {"kind": "schedule", "num_group": 10}, {"kind": "reweight"}]))
    schedule = tamis.open_manifest(tmp_path / "out").record["schedule"]
    assert (schedule["num_group"], schedule["groups"], schedule["group_sizes"]) == (10, 1, [N])
    assert all(window == [0, 1] for window in schedule["windows"])
    assert stage_facts(facts, "02-schedule")["groups"] == 1
    assert tamis.open_manifest(tmp_path / "out").select["weight"].to_pylist() == pytest.approx([1.0] * N)


def test_fewer_distinct_losses_than_groups(tmp_path, write, go, columns):
    write_losses(tmp_path, [(name, str(i % 3)) for i, (name, _) in enumerate(given_losses())])
    accepted(go(write(columns), [FILE_SCORE, {"kind": "schedule", "num_group": 10}]))
    assert tamis.open_manifest(tmp_path / "out").record["schedule"]["groups"] == 3


@pytest.mark.parametrize("strategy", ["linupper", "upper", "quadratic", "extremes", "uniform"])
def test_extreme_losses_leave_no_weight_at_zero(tmp_path, write, go, columns, strategy):
    losses = given_losses()
    losses[0], losses[1] = ("r0000", "1e9"), ("r0001", "0")
    write_losses(tmp_path, losses)
    accepted(go(write(columns), [FILE_SCORE, {"kind": "reweight", "strategy": strategy, "r": 0.01}]))
    weights = np.array(tamis.open_manifest(tmp_path / "out").select["weight"].to_pylist())
    assert (weights > 0).all()
    assert np.isfinite(weights).all()


# --- recipe ---


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "the recipe is empty"),
        ("- a\n", "not a mapping"),
        ("name: [\n", "not valid YAML"),
        ("name: &a x\n", "the anchor &a is not allowed"),
        ("name: x\nname: y\n", "the key 'name' is there twice, first on line 1"),
        ("name: !!python/object:os.system x\n", "the tag"),
        ("seed: 1e3\n", "seed"),
        ("# " + "x" * 300_000, "at most 262144 are allowed"),
        ("name: x\nstages: [{kind: embed, dim: no}]\n", "stages.0.dim"),
    ],
)
def test_recipes_that_are_refused(tmp_path, cli, text, part):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    for arguments in (("validate", path), ("plan", path, "--out", tmp_path / "out")):
        refused(cli(*arguments), 2, f"{path}:", part)
    refused(cli("run", path, "--out", tmp_path / "out", "--executor", "sync"), 2, part)


# --- output ---


def test_an_output_folder_that_cannot_be_made(tmp_path, write, recipe, cli, columns):
    (tmp_path / "file").write_text("in the way")
    path = recipe(write(columns), [RANDOM])
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        result = cli("run", path, "--out", out, "--executor", "sync")
        refused(result, 5, f"cannot write to {out}", "give a folder that can be written with --out")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("name", ["manifest", "work", "events.jsonl", "run.json"])
def test_something_in_the_way_in_the_output_folder(tmp_path, write, go, columns, name):
    (tmp_path / "out").mkdir()
    if name in ("manifest", "work"):
        (tmp_path / "out" / name).write_text("in the way")
    else:
        (tmp_path / "out" / name).mkdir()
    refused(go(write(columns), [RANDOM]), 5, str(tmp_path / "out"))


def test_verbs_on_what_is_no_run(tmp_path, cli):
    refused(cli("status", tmp_path), 5, "holds no run")
    refused(cli("report", tmp_path), 5, "holds no run")
    refused(cli("why", "x", "--run", tmp_path), 7, str(tmp_path))
    refused(cli("export", tmp_path, "--to", "ids", "--out", tmp_path / "ids"), 7, str(tmp_path))


# --- secrets ---


def test_a_token_in_a_path_or_the_environment_is_in_no_manifest_and_no_report(tmp_path, go, cli, columns, monkeypatch):
    token = "hf_S3cr3tT0k3nS3cr3t"
    monkeypatch.setenv("HF_TOKEN", token)
    folder = tmp_path / f"at-{token}"
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    np.save(folder / "v.npy", np.random.default_rng(0).standard_normal((N, 4)))
    (folder / "losses.csv").write_text("sample_id,loss\n" + "\n".join(",".join(item) for item in given_losses()))
    stages = [
        {"kind": "embed", "encoder": f"vectors: {folder / 'v.npy'}"},
        {"kind": "score", "from": str(folder / "losses.csv")},
        {"kind": "select", "method": "facility_location", "budget": 10},
    ]
    accepted(go(folder / "rows.parquet", stages))
    assert cli("report", tmp_path / "out").exit_code == 0
    out = tmp_path / "out"
    checked = [path for path in (out / "manifest").rglob("*") if path.is_file()]
    checked += [out / "report.json", out / "report.html", out / "events.jsonl"]
    assert len(checked) == 6
    for path in checked:
        assert token.encode() not in path.read_bytes(), path


# --- worker processes ---


def test_worker_processes_tell_the_same_as_this_process(tmp_path, recipe, cli):
    path = recipe(bad_rows_file(tmp_path), [EMBED], max_text_bytes=1000)
    told = []
    for executor in ("sync", "local"):
        result = cli("run", path, "--out", tmp_path / executor, "--executor", executor, "--workers", 1)
        told.append(refused(result, 3, "6 of 40 rows").partition("tamis: ")[2])
    assert told[0] == told[1]


# --- trainer ---


def test_training_on_other_data(tmp_path, write, go, cli, columns):
    accepted(go(write(columns), [RANDOM]))
    other = write({**columns, "text": columns["text"][::-1]}, "other.parquet")
    training = ("--out", tmp_path / "training", "--epochs", 1)
    refused(cli("train", tmp_path / "out", "--data", other, *training), 6, "fingerprint")
    refused(cli("train", tmp_path / "out", "--data", other, "--trust-rows", *training), 6)
    same = write({**columns, "extra": list(range(N))}, "same.parquet")
    refused(cli("train", tmp_path / "out", "--data", same, *training), 6, "fingerprint")
    assert cli("train", tmp_path / "out", "--data", same, "--trust-rows", *training).exit_code == 0


def test_training_without_labels(tmp_path, write, go, cli, columns):
    accepted(go(write(columns), [RANDOM], dataset={"label": None}))
    refused(cli("train", tmp_path / "out", "--out", tmp_path / "training"), 2, "label")


def test_training_where_the_rows_were_quarantined_reads_only_the_kept(tmp_path, write, go, columns):
    columns["text"][3] = None
    data = write(columns)
    accepted(go(data, [{**RANDOM, "budget": N - 1}], max_bad_fraction=0.1))
    read = read_training(tamis.open_manifest(tmp_path / "out"), str(data))
    assert len(read.ids) == len(read.samples) == len(read.weights) == N - 1
    assert "r0003" not in read.ids


def test_training_into_a_folder_that_cannot_be_made(tmp_path, write, go, cli, columns):
    accepted(go(write(columns), [RANDOM]))
    (tmp_path / "file").write_text("in the way")
    refused(cli("train", tmp_path / "out", "--out", tmp_path / "file" / "x", "--epochs", 1), 5, os.fspath(tmp_path))

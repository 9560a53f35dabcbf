"""Bad input: an error that says what was given, what is allowed and what to do, or a row set aside; never less."""

import json

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


def test_remote_addresses_are_refused_without_showing_the_secret(go):
    message = refused(go("https://user:hunter2@host/rows.parquet?sig=hunter2", [EXACT]), 3, "remote address", "copy it")
    assert "hunter2" not in message


# --- ingest: columns and ids ---


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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", b"\xef\xbb\xbfid,text,label\r\na,one,x\r\n\r\nb,two,y\r\n"),
        ("rows.csv", b"id,text,label\na,one,x\nb,two,y"),
        ("rows.csv", b"label,more,text,id\nx,,one,a\ny,,two,b\n"),
        ("rows.jsonl", b'\xef\xbb\xbf{"id":"a","text":"one","label":"x"}\r\n\r\n{"id":"b","text":"two","label":"y"}'),
    ],
)
def test_marks_line_ends_and_blank_lines_are_no_content(tmp_path, go, name, content):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "same.jsonl").write_text(
        '{"id": "a", "text": "one", "label": "x"}\n{"id": "b", "text": "two", "label": "y"}\n'
    )
    accepted(go(tmp_path / name, [EXACT]))
    accepted(go(tmp_path / "same.jsonl", [EXACT], out="same"))
    found, same = (tamis.open_manifest(tmp_path / out).audit.drop_columns("row") for out in ("out", "same"))
    assert found.equals(same)


def test_nul_is_text_and_near_ids_are_different_ids(tmp_path, write, go):
    ids = ["a", "a\0", "A", "a ", "\u0430", "e\u0301", "\u00e9", ""]
    columns = {"id": ids, "text": [f"t\0{i}" for i in range(8)], "label": ["x"] * 8}
    assert accepted(go(write(columns), [EXACT]))["kept"] == 8
    assert tamis.open_manifest(tmp_path / "out").audit["sample_id"].to_pylist() == ids


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


def test_nulls_in_a_vector_column(tmp_path, write, go, columns):
    columns["v"] = [[float(i), 1.0] for i in range(N)]
    columns["v"][4], columns["v"][9] = None, [1.0, None]
    stages = [{"kind": "embed", "encoder": "vectors"}, CLUSTER]
    accepted(go(write(columns), stages, dataset={"vectors": "v"}, max_bad_fraction=0.1))
    found = decisions(tmp_path / "out")
    assert found[4] == ("quarantined", "vector is null")
    assert found[9] == ("quarantined", "vector has NaN or infinity")


def test_whole_numbers_are_vectors_in_a_column(write, go, columns):
    columns["v"] = [[i + 1, 2 * i, 3] for i in range(N)]
    accepted(go(write(columns), [{"kind": "embed", "encoder": "vectors"}, CLUSTER], dataset={"vectors": "v"}))


# --- stages that lack what they need ---


# --- cluster ---


def test_more_clusters_than_rows(tmp_path, write, go, columns):
    facts = accepted(go(write(columns), [EMBED, {"kind": "cluster", "n_clusters": 1000}]))
    assert stage_facts(facts, "02-cluster")["n_clusters"] == 1000
    assert stage_facts(facts, "02-cluster")["k_effective"] == N


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


def test_a_class_of_one_row(write, go, columns):
    columns["label"][8] = "lonely"
    facts = accepted(go(write(columns), [EMBED, SCORE, {"kind": "reweight"}]))
    assert stage_facts(facts, "02-score")["mean_loss"] >= 0


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


def test_null_ids_in_a_loss_file_belong_to_nobody(tmp_path, write, go, columns):
    write_losses(tmp_path, [*given_losses(), ("", "0.5"), ("", "0.7")])
    accepted(go(write(columns), [FILE_SCORE]))


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


# --- output ---


def test_an_output_folder_that_cannot_be_made(tmp_path, write, recipe, cli, columns):
    (tmp_path / "file").write_text("in the way")
    path = recipe(write(columns), [RANDOM])
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        result = cli("run", path, "--out", out, "--executor", "sync")
        refused(result, 5, f"cannot write to {out}", "give a folder that can be written with --out")
    assert (tmp_path / "file").read_text() == "in the way"


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

"""Leakage against reference sets, beside cosines of all pairs in float64."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.pipelines import leakage
from tamis.pipelines.node import Task
from tamis.pipelines.stages import dedup
from tamis.reports.report import write_report

N, DIM = 400, 16
SIZES = {"a.parquet": 150, "b.parquet": 70}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Vectors of a dataset and of two reference files, some of them near, some equal; files of both."""
    folder = tmp_path_factory.mktemp("leakage")
    rng = np.random.default_rng(4)
    X = rng.standard_normal((N, DIM))
    files = {name: rng.standard_normal((size, DIM)) for name, size in SIZES.items()}
    for row in range(0, 60, 3):  # in one file or in both
        files["a.parquet"][row] = X[row] + 0.02 * rng.standard_normal(DIM)
        files["b.parquet"][row] = X[2 * row] + 0.05 * rng.standard_normal(DIM)
    files["a.parquet"][100], files["a.parquet"][101], files["b.parquet"][40] = X[7], X[7], X[8]
    files["b.parquet"][-12:] = X[9]  # more than are listed
    X[300] = X[9]
    write = {"rows.parquet": X, **files}
    for name, vectors in write.items():
        columns = {"v": pa.array(vectors.tolist(), pa.list_(pa.float64()))}
        if name == "rows.parquet":
            columns["id"] = [f"r{i}" for i in range(N)]
        pq.write_table(pa.table(columns), folder / name)
    return folder, X, files


def run(folder, out, **dedup):
    stage = {"kind": "dedup", "eps": 0.05, "against": list(SIZES), **dedup}
    recipe = {
        "name": "x",
        "block_rows": 64,
        "dataset": {"path": str(folder / "rows.parquet"), "id": "id", "vectors": "v"},
        "stages": [{"kind": "embed", "encoder": "vectors"}, stage],
    }
    path = out.with_suffix(".json")
    recipe["stages"][1]["against"] = [str(folder / name) for name in stage["against"]]
    path.write_text(json.dumps(recipe))
    return tamis.run(path, out, executor="sync")


def expected(X, files, eps):
    """(row, file, row of it) -> cosine, of all pairs from 1 - eps on."""
    found = {}
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    for name, Y in files.items():
        cosine = unit @ (Y / np.linalg.norm(Y, axis=1, keepdims=True)).T
        assert not ((abs(cosine - (1 - eps)) < 1e-6) & (cosine < 1 - 1e-9)).any()  # none so close that rounding decides
        near = cosine >= 1 - eps if eps else (X[:, None] == Y).all(axis=2)
        for row, other in np.argwhere(near).tolist():
            found[row, name, other] = cosine[row, other]
    return found


def listed(folder):
    from tamis.reports.leaks import leaks

    return leaks(folder).to_pylist()


@pytest.mark.parametrize("eps", [0.05, 0.1, 0.0])
def test_matches_are_those_of_all_pairs(given, tmp_path, eps):
    folder, X, files = given
    result = run(folder, tmp_path / "run", eps=eps)
    pairs = expected(X, files, eps)
    assert len({row for row, _, _ in pairs}) > 3
    of_file = {}
    for (row, name, other), cosine in pairs.items():
        of_file.setdefault((row, name), []).append((-round(cosine, 6), other))
    found = {}
    for item in listed(tmp_path / "run"):
        found.setdefault((item["row"], item["reference"]), []).append(item)
        assert item["sample_id"] == f"r{item['row']}"
        assert item["exact"] == (X[item["row"]] == files[item["reference"]][item["reference_row"]]).all()
        assert item["cosine"] == pytest.approx(pairs[item["row"], item["reference"], item["reference_row"]], abs=1e-6)
    assert found.keys() == of_file.keys()
    for key, items in found.items():
        nearest = [other for _, other in sorted(of_file[key])[: leakage.LISTED]]
        assert [item["reference_row"] for item in items] == nearest
        assert {item["matches"] for item in items} == {len(of_file[key])}
    (facts,) = (stage["facts"] for stage in result.stages if stage["kind"] == "dedup")
    assert facts["leaks"] == len({row for row, _, _ in pairs})
    assert facts["leaks_dropped"] == 0
    rows = {name: len({row for row, of, _ in pairs if of == name}) for name in files}
    assert facts["against"] == {name: {"rows": len(files[name]), "bad": 0, "leaks": rows[name]} for name in files}


def test_flagged_rows_stay_and_say_so(given, tmp_path, cli):
    folder, _, _ = given
    run(folder, tmp_path / "run")
    manifest = tamis.open_manifest(tmp_path / "run")
    near, same, free = (manifest.explain(name) for name in ("r0", "r7", "r1"))
    assert near["decision"] == same["decision"] == free["decision"] == "kept"
    assert near["reason"] == "leaks: cosine to a row of a.parquet from 0.95 on"
    assert same["reason"] == "leaks: same content as a row of a.parquet"
    assert free["reason"] == "kept"
    said = dict(zip(manifest.select["sample_id"].to_pylist(), manifest.select["reason"].to_pylist(), strict=True))
    assert manifest.reasons[said["r7"]] == same["reason"]
    shown = cli("leaks", tmp_path / "run")
    assert "r7 (row 7, kept): same content as a.parquet row 100" in shown.stdout
    assert "r0 (row 0, kept): cosine 0.9999 to a.parquet row 0, and 1 more" in shown.stdout
    assert "rows more; --out FILE writes all" in shown.stdout
    out = tmp_path / "leaks.parquet"
    facts = json.loads(cli("leaks", tmp_path / "run", "--out", out, "--json").stdout)
    assert facts["leaks"] == pq.read_table(out).to_pylist()
    assert facts["matches"] == len(facts["leaks"])
    leaking = {item["sample_id"] for item in facts["leaks"]}
    assert (facts["rows"], facts["kept"]) == (len(leaking), len(leaking) - 1)  # rows 9 and 300 are equal
    assert f"{facts['rows']} rows leak, {facts['kept']} of them are kept; {facts['matches']} matches" in shown.stdout
    assert "dedup.against_action=drop" in shown.stdout


def test_kept_rows_are_listed_first_and_each_once(given, tmp_path, cli):
    folder, _, _ = given
    run(folder, tmp_path / "run", eps=0.0)
    lines = cli("leaks", tmp_path / "run").stdout.splitlines()
    told = [line.partition(": ")[0] for line in lines if line.startswith("r")]
    fates = [name.endswith("kept)") for name in told]
    assert (len(set(told)), fates) == (4, [True, True, True, False])  # of rows 9 and 300, which are equal, one is kept


def test_the_report_shows_leaking_rows_as_such(given, tmp_path):
    from tamis.reports.report import build_report, write_report

    folder, _, _ = given
    run(folder, tmp_path / "run")
    manifest = tamis.open_manifest(tmp_path / "run")
    report = build_report(tmp_path / "run")
    kept = [fate for fate in report["examples"] if fate["decision"] == "kept"]
    assert len(kept) > 2
    for fate in kept:
        assert len(fate["examples"]) == min(3, fate["rows"])
        for item in fate["examples"]:
            assert manifest.explain_row(item["row"])["reason"] == fate["reason"]
    page = write_report(tmp_path / "run").read_text()
    assert "<h3>Kept</h3>" in page
    assert "<h3>Kept: leaks: same content as a row of a.parquet</h3>" in page


def test_the_report_has_them(given, tmp_path, cli):
    folder, X, files = given
    run(folder, tmp_path / "run")
    leaking = {row for row, _, _ in expected(X, files, 0.05)}
    kept = set(tamis.open_manifest(tmp_path / "run").select["row"].to_pylist())
    matches = listed(tmp_path / "run")
    page = write_report(tmp_path / "run").read_text()
    (found,) = json.loads((tmp_path / "run" / "report.json").read_text())["leakage"]
    assert (found["leaks"], found["kept"], found["dropped"]) == (len(leaking), len(leaking & kept), 0)
    assert 0 < found["kept"] < found["leaks"]
    assert found["exact"] == len({item["row"] for item in matches if item["exact"]})
    assert found["matches"] == len(matches)
    assert {item["file"]: item["leaks"] for item in found["against"]} == {
        name: len({item["row"] for item in matches if item["reference"] == name}) for name in SIZES
    }
    nearest = {}
    for item in matches:
        nearest.setdefault(item["row"], item)
    assert [item["row"] for item in found["first"]] == sorted(leaking & kept)[:12]
    for item in found["first"]:
        assert {**item, "cosine": None} == {name: nearest[item["row"]][name] for name in item} | {"cosine": None}
        assert item["cosine"] == pytest.approx(nearest[item["row"]]["cosine"], abs=1e-6)
    assert f"{len(leaking)} leak, {found['exact']} of them by the same content" in page
    assert '<td class="text">a.parquet, row 100</td>' in page
    # Where the files are gone the report has no such section, and the list says what became of it.
    shutil.rmtree(tmp_path / "run" / "work" / "dedup.mark")
    assert "<h2>Leakage</h2>" in page
    assert "<h2>Leakage</h2>" not in write_report(tmp_path / "run").read_text()
    result = cli("leaks", tmp_path / "run")
    assert result.exit_code == 5
    assert "files of 02-dedup are gone from" in result.stderr


def test_dropped_rows_name_the_file_and_nothing_else_changes(given, tmp_path):
    folder, X, files = given
    flagged, dropped = run(folder, tmp_path / "flag"), run(folder, tmp_path / "drop", against_action="drop")
    leaking = {row for row, _, _ in expected(X, files, 0.05)}
    audit = dropped.open_manifest().audit.to_pylist()
    reasons = dropped.open_manifest().reasons
    for row, item in enumerate(audit):
        own = "of a.parquet" in reasons[item["reason"]] or "of b.parquet" in reasons[item["reason"]]
        assert own == (row in leaking)
        if own:
            assert (item["decision"] in (1, 2), item["kept_row"]) == (True, None)
    # The duplicate of a leaking row is one as well; who is dropped stands for nobody.
    assert {7, 9, 300} <= leaking
    assert dropped.open_manifest().record["counts"]["kept"] == N - len(leaking)
    assert flagged.open_manifest().record["counts"]["kept"] == N - 1


def test_the_size_of_blocks_changes_nothing(given, tmp_path, monkeypatch):
    folder, _, _ = given
    run(folder, tmp_path / "one")
    monkeypatch.setattr(leakage, "_RUN_ROWS", 64)
    monkeypatch.setattr(leakage, "_SIDE", (7, 5))
    run(folder, tmp_path / "two")
    assert listed(tmp_path / "one") == listed(tmp_path / "two")


def test_another_action_compares_nothing_anew(given, tmp_path):
    folder, _, _ = given
    run(folder, tmp_path / "run")
    ran = run(folder, tmp_path / "run", against_action="drop").ran
    assert not [name for name in ran if name.split("/")[1] in ("reference", "encode", "compare")]


def test_texts_by_lsa_and_a_folder_of_references(tmp_path, make_columns, write, recipe, cli):
    columns = make_columns(120)
    (tmp_path / "eval").mkdir()
    lines = [columns["text"][5], columns["text"][6] + " common1", "quite another text", None]
    (tmp_path / "eval" / "one.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    pq.write_table(pa.table({"text": [columns["text"][5]], "more": [1]}), tmp_path / "eval" / "two.parquet")
    stages = [
        {"kind": "embed", "dim": 16},
        {"kind": "dedup", "eps": 0.02, "against": ["eval"]},
        {"kind": "select", "method": "random", "budget": 0.5},
    ]
    path = recipe(write(columns), stages)
    result = cli("run", path, "--out", tmp_path / "out", "--executor", "sync", "--json")
    (facts,) = (stage["facts"] for stage in json.loads(result.stdout)["stages"] if stage["kind"] == "dedup")
    assert facts["against"]["one.jsonl"] == {"rows": 4, "bad": 1, "leaks": facts["leaks"]}
    assert facts["against"]["two.parquet"]["leaks"] == facts["leaks_of_equal_content"] == 1
    found = {(item["row"], item["reference"], item["reference_row"]) for item in listed(tmp_path / "out")}
    assert {(5, "one.jsonl", 0), (5, "two.parquet", 0), (6, "one.jsonl", 1)} <= found
    # A later stage may drop what leaks; the list says so.
    decisions = {item["row"]: item["decision"] for item in listed(tmp_path / "out")}
    kept = tamis.open_manifest(tmp_path / "out").select["row"].to_pylist()
    assert all((decision == "kept") == (row in kept) for row, decision in decisions.items())
    assert "rows are in a reference set" in cli("run", path, "--out", tmp_path / "out").stdout


def test_rows_that_are_gone_already_leak_no_more(given, tmp_path):
    """Dropped before they were embedded, or after."""
    folder, X, files = given
    leaking = {row for row, _, _ in expected(X, files, 0.05)}
    encode = {"kind": "embed", "encoder": "vectors"}
    dedup = {"kind": "dedup", "against": [str(folder / name) for name in SIZES]}
    half = {"kind": "select", "method": "random", "budget": 0.5}
    for name, before in {
        "a": [half, encode],
        "b": [encode, half],
        "c": [half, encode, {**half, "budget": 0.25}],
    }.items():
        recipe = {
            "name": "x",
            "block_rows": 64,
            "dataset": {"path": str(folder / "rows.parquet"), "id": "id", "vectors": "v"},
            "stages": [*before, dedup],
        }
        manifest = tamis.run(recipe, tmp_path / name, executor="sync").open_manifest()
        there = np.flatnonzero(manifest.audit["decision"].to_numpy() != 4)
        found = {item["row"] for item in listed(tmp_path / name)}
        assert found == leaking & set(there.tolist())
        assert 0 < len(found) < len(leaking)


def test_what_was_kept_before_is_flagged_and_stays(given, tmp_path):
    folder, X, files = given
    leaking = {row for row, _, _ in expected(X, files, 0.05)}
    select = {"kind": "select", "method": "random", "budget": 0.5}
    recipe = {
        "name": "x",
        "dataset": {"path": str(folder / "rows.parquet"), "id": "id", "vectors": "v"},
        "stages": [{"kind": "embed", "encoder": "vectors"}, select],
    }
    first = set(tamis.run(recipe, tmp_path / "one", executor="sync").open_manifest().select["row"].to_pylist())
    assert first & leaking
    dedup = {"kind": "dedup", "against": [str(folder / name) for name in SIZES], "against_action": "drop"}
    recipe["stages"] = [recipe["stages"][0], dedup, select | {"budget": 0.6, "continue_from": str(tmp_path / "one")}]
    second = tamis.run(recipe, tmp_path / "two", executor="sync").open_manifest()
    assert first < set(second.select["row"].to_pylist())
    assert set(second.select["row"].to_pylist()) & leaking == first & leaking
    reasons = [second.reasons[code] for code in second.audit["reason"].to_pylist()]
    assert all(reasons[row].startswith("leaks: ") == (row in first) for row in leaking)


def test_a_reference_that_changes_during_the_run_is_refused(given, tmp_path, monkeypatch):
    folder, _, _ = given
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    task = dedup.TASKS["mark"]

    def spoil(params, inputs):
        pq.write_table(pq.read_table(copy / "b.parquet").slice(1), copy / "b.parquet")
        return task.run(params, inputs)

    monkeypatch.setitem(dedup.TASKS, "mark", Task(spoil))
    with pytest.raises(tamis.errors.DatasetMismatchError, match=r"b\.parquet has changed"):
        run(copy, tmp_path / "run")


def test_two_processes_give_the_same_bytes(given, tmp_path, manifest_bytes):
    folder, _, _ = given
    run(folder, tmp_path / "one", against_action="drop")
    path = tmp_path / "one.json"
    tamis.run(path, tmp_path / "two", workers=2)
    assert manifest_bytes(tmp_path / "one") == manifest_bytes(tmp_path / "two")


@pytest.mark.parametrize(
    ("stage", "dataset", "code", "parts"),
    [
        ({"against": ["none.parquet"]}, {}, 3, ["none.parquet does not exist"]),
        ({"against": ["s3://b/eval.parquet"]}, {}, 2, ["stages.1.against", "s3://... is a remote address"]),
        ({"against": "eval.parquet"}, {}, 2, ["stages.1.against", "'eval.parquet' is not a list of files"]),
        ({"against": ["rows.parquet"]}, {}, 2, ["rows.parquet holds a file of the dataset itself"]),
        ({"against": ["other.parquet"]}, {}, 3, ["other.parquet: no column 'text'", "did you mean 'texts'?"]),
        ({"against_action": "drop"}, {}, 2, ["name the reference sets: against: [eval.parquet]"]),
        ({"against": ["eval.parquet"]}, {"encoder": "vectors: v.npy"}, 2, ["of the dataset's rows alone", "eps: 0"]),
        ({"against": ["eval.parquet"]}, {"encoder": None}, 2, ["needs embeddings"]),
    ],
)
def test_what_is_refused(tmp_path, write, make_columns, recipe, cli, stage, dataset, code, parts):
    columns = make_columns(20)
    write({"texts": ["a"]}, "other.parquet")
    write({"text": ["a"]}, "eval.parquet")
    np.save(tmp_path / "v.npy", np.eye(20))
    encoder = dataset.get("encoder", "lsa")
    stages = (
        [{"kind": "embed", "encoder": encoder}] if encoder else [{"kind": "select", "method": "random", "budget": 5}]
    )
    result = cli("validate", recipe(write(columns), [*stages, {"kind": "dedup", **stage}]))
    assert result.exit_code == code, result.stderr
    for part in parts:
        assert part in result.stderr


def test_a_run_without_references_has_no_list(tmp_path, write, make_columns, recipe, cli):
    path = recipe(write(make_columns(20)), [{"kind": "dedup", "eps": 0.0}])
    assert cli("run", path, "--out", tmp_path / "out", "--executor", "sync").exit_code == 0
    result = cli("leaks", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "compared with no reference set" in result.stderr

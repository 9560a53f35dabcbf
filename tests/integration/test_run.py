"""Whole runs: nothing is lost, nothing is done twice, and the same recipe gives the same bytes."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.errors import DamagedManifestError, DataError, DatasetMismatchError, LockedError, RecipeError
from tamis.manifests.canonical import digest
from tamis.manifests.schema import DECISIONS
from tamis.pipelines import execute
from tamis.pipelines.run import locked

N = 240
EMBED = {"kind": "embed", "encoder": "lsa", "dim": 16}
DEDUP = {"kind": "dedup", "eps": 0.05}
CLUSTER = {"kind": "cluster", "n_clusters": 5}
SCORE = {"kind": "score", "method": "proxy"}
FILE_SCORE = {"kind": "score", "from": "losses.csv"}
LOSS = {"kind": "prune", "method": "loss", "drop_highest": 0.1}
DENSITY = {"kind": "prune", "method": "density", "keep": 0.7}
SCHEDULE = {"kind": "schedule", "method": "seta", "epochs": 5, "num_group": 4}
REWEIGHT = {"kind": "reweight", "strategy": "linupper"}


def select(method, budget=0.25, **others):
    return {"kind": "select", "method": method, "budget": budget, **others}


CHAIN = [EMBED, DEDUP, SCORE, LOSS, select("facility_location", per="label"), SCHEDULE, REWEIGHT]
ORDERS = {
    "all": [EMBED, DEDUP, SCORE, CLUSTER, LOSS, DENSITY, select("facility_location", per="label"), SCHEDULE, REWEIGHT],
    "dedup_first_without_embeddings": [{"kind": "dedup", "eps": 0.0}, EMBED, CLUSTER, DENSITY, SCORE, LOSS, REWEIGHT],
    "select_first": [select("random", 0.9), EMBED, DEDUP, select("ingenious", 0.3)],
    "select_twice_then_prune": [EMBED, SCORE, select("ingenious", 0.6), select("facility_location", 40), LOSS],
    "loss_file": [FILE_SCORE, {**LOSS, "drop_highest": 0.0, "drop_lowest": 0.2}, SCHEDULE, REWEIGHT],
    "density_easy": [EMBED, CLUSTER, {**DENSITY, "which_to_keep": "easy", "balance": 0.5, "keep": 100}],
    "density_random": [EMBED, {"kind": "cluster"}, {**DENSITY, "which_to_keep": "random"}],
    "embed_twice": [EMBED, DEDUP, {**EMBED, "dim": 8}, CLUSTER, DENSITY, select("facility_location", 0.2)],
    "embed_only": [EMBED],
    "random": [select("random")],
    "random_per_label": [select("random", per="label")],
    "stratified": [select("stratified")],
    "facility_location": [EMBED, select("facility_location")],
    "facility_location_in_cells": [EMBED, select("facility_location", partition_rows=50)],
    "facility_location_per_label_in_cells": [EMBED, select("facility_location", per="label", partition_rows=30)],
    "facility_location_per_label_all_small": [EMBED, select("facility_location", per="label", partition_rows=150)],
    "facility_location_of_one": [EMBED, select("facility_location", 1, per="label")],
    "ingenious": [EMBED, select("ingenious")],
    "ingenious_per_label": [EMBED, select("ingenious", per="label", temperature=0.5, scale_free=True)],
    "ingenious_in_cells": [EMBED, select("ingenious", partition_rows=50)],
    "ingenious_of_one": [EMBED, select("ingenious", 1, per="label")],
    "everything": [EMBED, select("facility_location", N - 2)],
}


@pytest.fixture
def data(tmp_path, make_columns, write):
    """240 rows. Of them 3 are exact duplicates, 2 have no usable text; losses.csv has a loss for each."""
    columns = make_columns(N)
    for copy, original in ((50, 10), (120, 10), (200, 30)):
        columns["text"][copy], columns["label"][copy] = columns["text"][original], columns["label"][original]
    columns["text"][77], columns["text"][150] = None, "   "
    rng = np.random.default_rng(1)
    lines = [f"{name},{loss:.6f}" for name, loss in zip(columns["id"], rng.gamma(2.0, size=N), strict=True)]
    (tmp_path / "losses.csv").write_text("sample_id,loss\n" + "\n".join(lines) + "\n")
    return write(columns)


def run(path, out, **options):
    return tamis.run(path, out, executor="sync", **options)


def manifest_files(out):
    folder = Path(out) / "manifest"
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_nothing_lost(out, n=N):
    """The promises of the tables, counted anew here."""
    manifest = tamis.open_manifest(out)
    audit, chosen = manifest.audit.to_pylist(), manifest.select.to_pylist()
    assert [row["row"] for row in audit] == list(range(n))
    by_decision = {name: sum(row["decision"] == code for row in audit) for name, code in DECISIONS.items()}
    assert manifest.record["counts"] == {"rows": n, **by_decision}
    assert sum(by_decision.values()) == n
    assert {row["row"] for row in chosen} == {row["row"] for row in audit if row["decision"] == DECISIONS["kept"]}
    assert len(chosen) == by_decision["kept"] > 0
    for row in audit:
        dup = row["decision"] in (DECISIONS["exact_dup"], DECISIONS["near_dup"])
        assert (row["kept_row"] is not None) == dup
        assert manifest.stages[row["stage"]]["name"]
        assert (manifest.reasons[row["reason"]] == "kept") == (row["decision"] == DECISIONS["kept"])
    for row in chosen:
        assert row["weight"] > 0
    return manifest


@pytest.mark.parametrize("order", ORDERS)
def test_no_row_is_lost_and_nothing_is_done_twice(tmp_path, data, recipe, cli, order):
    path = recipe(data, ORDERS[order], max_bad_fraction=0.01)
    planned = json.loads(cli("plan", path, "--out", tmp_path / "out", "--json").stdout)
    first = run(path, tmp_path / "out")
    assert len(first.ran) == sum(stage["to_run"] for stage in planned["stages"])
    assert planned["estimate"]["wall_seconds"] > 0
    manifest = assert_nothing_lost(tmp_path / "out")
    assert manifest.record["counts"]["quarantined"] == 2
    for row in (77, 150):
        assert manifest.audit["decision"][row].as_py() == DECISIONS["quarantined"]
    stages = [stage["kind"] for stage in ORDERS[order]]
    if "select" in stages and stages[-1] == "select":
        budget = ORDERS[order][-1]["budget"]
        assert manifest.select.num_rows == (budget if isinstance(budget, int) else int(budget * N))
    before = manifest_files(tmp_path / "out")
    again = run(path, tmp_path / "out")
    assert again.ran == ()
    assert again.subset_id == first.subset_id
    assert manifest_files(tmp_path / "out") == before


def test_a_budget_of_everything_is_more_than_is_left_after_bad_rows(tmp_path, data, recipe, cli):
    path = recipe(data, [select("random", 1.0)], max_bad_fraction=0.01)
    result = cli("run", path, "--out", tmp_path / "out", "--executor", "sync")
    assert result.exit_code == 2
    assert "1.0 of 240 rows is 240, but only 238 rows reach this stage; give at most 238 or 0.99" in result.stderr


# --- what the columns of the selection say ---


def test_ranks_gains_groups_and_weights(tmp_path, data, recipe):
    path = recipe(data, CHAIN, max_bad_fraction=0.01)
    result = run(path, tmp_path / "out")
    manifest = tamis.open_manifest(tmp_path / "out")
    chosen = manifest.select.to_pydict()
    gains = np.array(chosen["gain"])
    assert (np.diff(gains) <= 0).all()
    assert np.mean(chosen["weight"]) == pytest.approx(1, abs=1e-5)
    assert set(chosen["difficulty"]) <= {0, 1, 2, 3}
    assert all(score >= 0 for score in chosen["score"])
    # Difficulty is the order of the losses.
    order = np.argsort(chosen["score"])
    assert (np.diff(np.array(chosen["difficulty"])[order]) >= 0).all()
    # linupper: a higher loss never weighs less.
    assert (np.diff(np.array(chosen["weight"])[order]) >= -1e-6).all()
    assert 0 < manifest.record["certificate"]["ratio"] <= 1
    assert manifest.record["schedule"]["windows"] == [[0, 2], [1, 3], [2, 4], [0, 2], [1, 3]]
    facts = {stage["stage"]: stage["facts"] for stage in result.stages}
    assert facts["00-ingest"]["quarantined"] == 2
    assert facts["02-dedup"]["exact_duplicates"] == 3
    assert facts["03-score"]["out_of_fold_accuracy"] > 0.9


def test_shares_per_label_are_proportional(tmp_path, data, recipe):
    path = recipe(data, [EMBED, select("facility_location", 60, per="label")], max_bad_fraction=0.01)
    run(path, tmp_path / "out")
    labels = pq.read_table(data)["label"].to_pylist()
    texts = pq.read_table(data)["text"].to_pylist()
    good = [label for label, text in zip(labels, texts, strict=True) if text and text.strip()]
    taken = [labels[row] for row in tamis.open_manifest(tmp_path / "out").select["row"].to_pylist()]
    for name in set(labels):
        assert abs(taken.count(name) - 60 * good.count(name) / len(good)) < 1


def test_loss_file_values_are_the_scores(tmp_path, data, recipe):
    run(recipe(data, [FILE_SCORE, LOSS], max_bad_fraction=0.01), tmp_path / "out")
    manifest = tamis.open_manifest(tmp_path / "out")
    given = dict(line.split(",") for line in (tmp_path / "losses.csv").read_text().splitlines()[1:])
    for row in manifest.select.to_pylist():
        assert row["score"] == float(given[row["sample_id"]])
    pruned = [row for row in manifest.audit.to_pylist() if row["decision"] == DECISIONS["pruned"]]
    assert len(pruned) == int(0.1 * 238)
    largest = max(row["score"] for row in manifest.select.to_pylist())
    assert all(row["score"] == float(given[row["sample_id"]]) > largest for row in pruned)


def test_the_loss_file_joins_by_id_and_not_by_place(tmp_path, data, recipe):
    path = recipe(data, [FILE_SCORE, LOSS], max_bad_fraction=0.01)
    run(path, tmp_path / "out")
    head, *lines = (tmp_path / "losses.csv").read_text().splitlines()
    (tmp_path / "losses.csv").write_text("\n".join([head, *lines[::-1], "unknown,9.0"]) + "\n")
    run(path, tmp_path / "again")
    one, two = (tamis.open_manifest(tmp_path / name) for name in ("out", "again"))
    assert one.select["sample_id"].to_pylist() == two.select["sample_id"].to_pylist()


# --- precomputed vectors ---


@pytest.fixture
def vector_rows(tmp_path, make_columns):
    columns = make_columns(120)
    vectors = np.random.default_rng(5).standard_normal((120, 6)).astype(np.float16)
    vectors[40] = vectors[9]
    return columns, vectors


def write_vectors(path, vectors):
    if path.suffix == ".npy":
        np.save(path, vectors)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file({"v": vectors}, path)
    else:
        table = pa.table({"n": list(range(len(vectors))), "v": list(vectors.astype(np.float32))})
        if path.suffix == ".parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)


@pytest.mark.parametrize(
    ("name", "dtype", "order"),
    [
        ("v.npy", np.float32, "C"),
        ("v.npy", np.float16, "C"),
        ("v.npy", np.float64, "F"),
        ("v.safetensors", np.float32, "C"),
        ("v.safetensors", np.float16, "C"),
        ("v.parquet", np.float32, "C"),
        ("v.arrow", np.float32, "C"),
    ],
)
def test_vectors_of_any_allowed_file_give_one_subset(tmp_path, vector_rows, write, recipe, name, dtype, order):
    columns, vectors = vector_rows
    stages = [{"kind": "embed", "encoder": f"vectors: {name}"}, DEDUP, CLUSTER, select("facility_location", 30)]
    data = write(columns)
    write_vectors(tmp_path / name, np.asarray(vectors.astype(dtype), order=order))
    run(recipe(data, stages), tmp_path / "out")
    got = assert_nothing_lost(tmp_path / "out", 120)
    np.save(tmp_path / "reference.npy", vectors.astype(np.float32))
    stages = [{"kind": "embed", "encoder": "vectors: reference.npy"}, *stages[1:]]
    run(recipe(data, stages), tmp_path / "reference")
    want = tamis.open_manifest(tmp_path / "reference")
    assert got.select.equals(want.select)
    assert DECISIONS["near_dup"] in (got.audit["decision"][40].as_py(), got.audit["decision"][9].as_py())


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 6), pa.large_list(pa.float16())])
def test_vectors_in_a_column(tmp_path, vector_rows, write, recipe, kind):
    columns, vectors = vector_rows
    item = np.float16 if pa.types.is_large_list(kind) else np.float64
    columns["v"] = pa.array([row.astype(item).tolist() if item is np.float64 else list(row) for row in vectors], kind)
    path = recipe(write(columns), [{"kind": "dedup", "eps": 0.0}], dataset={"vectors": "v", "text": None})
    run(path, tmp_path / "dedup")
    # Equal vectors are equal content where the vectors are the content.
    assert assert_nothing_lost(tmp_path / "dedup", 120).record["counts"]["exact_dup"] == 1
    stages = [{"kind": "embed", "encoder": "vectors"}, select("facility_location", 30)]
    run(recipe(write(columns), stages, dataset={"vectors": "v", "text": None}), tmp_path / "out")
    np.save(tmp_path / "v.npy", vectors)
    stages = [{"kind": "embed", "encoder": "vectors: v.npy"}, select("facility_location", 30)]
    run(recipe(write(columns), stages), tmp_path / "reference")
    # The content hashes differ, and with them who wins a tie; the gains cannot.
    got, want = (tamis.open_manifest(tmp_path / name).select["gain"] for name in ("out", "reference"))
    assert got.equals(want)


# --- what is done already ---


def stage_of(name):
    return name.partition("/")[0]


def test_another_budget_runs_the_merge_and_what_follows(tmp_path, data, recipe):
    path = recipe(data, CHAIN, max_bad_fraction=0.01)
    first = run(path, tmp_path / "out")
    second = run(path, tmp_path / "out", overrides=("select.budget=0.1",))
    assert set(second.ran) == {"05-select/take", "06-schedule/seta", "07-reweight/loss", "08-commit/manifest"}
    assert tamis.open_manifest(tmp_path / "out").version == 2
    assert tamis.open_manifest(tmp_path / "out").select.num_rows == 24
    # Back to the first budget: all but the commit is there still.
    third = run(path, tmp_path / "out")
    assert set(third.ran) == {"08-commit/manifest"}
    assert third.subset_id == first.subset_id
    assert tamis.open_manifest(tmp_path / "out").version == 3


def test_another_prune_runs_nothing_before_it(tmp_path, data, recipe):
    path = recipe(data, CHAIN, max_bad_fraction=0.01)
    run(path, tmp_path / "out")
    again = run(path, tmp_path / "out", overrides=("prune.drop_highest=0.2",))
    assert min(stage_of(name) for name in again.ran) == "04-prune"
    assert {stage_of(name) for name in again.ran} == {
        "04-prune", "05-select", "06-schedule", "07-reweight", "08-commit",
    }  # fmt: skip


def test_another_eps_uses_the_stored_pairs(tmp_path, data, recipe):
    path = recipe(data, [EMBED, DEDUP], max_bad_fraction=0.01)
    run(path, tmp_path / "out")
    again = run(path, tmp_path / "out", overrides=("dedup.eps=0.08",))
    assert set(again.ran) == {"02-dedup/near", "03-commit/manifest"}


def test_plan_says_what_would_run_and_why(tmp_path, data, recipe, cli):
    path = recipe(data, CHAIN, max_bad_fraction=0.01)

    def plan(*more):
        result = cli("plan", path, "--out", tmp_path / "out", "--json", *more)
        assert result.exit_code == 0, result.stderr
        return {stage["stage"]: stage for stage in json.loads(result.stdout)["stages"]}

    fresh = plan()
    assert {stage["why"] for stage in fresh.values()} == {"no finished run in this folder yet"}
    assert not (tmp_path / "out").exists()
    run(path, tmp_path / "out")
    assert {stage["why"] for stage in plan().values()} == {"cached"}
    changed = plan("--set", "select.budget=0.1")
    assert changed["05-select"]["why"] == "changed: budget 0.25 -> 0.1"
    assert changed["05-select"]["to_run"] == 1
    assert changed["04-prune"]["why"] == "cached"
    assert changed["06-schedule"]["why"] == "05-select before it changed"
    assert plan("--set", "dedup.eps=0.04")["02-dedup"]["why"] == "changed: eps 0.05 -> 0.04"
    assert "block_rows" in plan("--set", "block_rows=100")["00-ingest"]["why"]
    assert "limit" in plan("--limit", "100")["00-ingest"]["why"]
    named = plan("--set", "name=other")
    assert [stage for stage, facts in named.items() if facts["to_run"]] == ["08-commit"]
    lost = next((tmp_path / "out" / "work" / "embed.block").glob("*.json"))
    lost.unlink()
    # What nobody needs any more is not made again.
    assert {stage["why"] for stage in plan().values()} == {"cached"}
    assert plan("--set", "dedup.n_clusters=2")["01-embed"]["why"] == "not finished: 1 of 6 tasks are left"
    text = cli("plan", path, "--out", tmp_path / "out", "--set", "select.budget=0.1").stdout
    assert "changed: budget 0.25 -> 0.1" in text
    assert "MiB of memory" in text


# --- one digest ---


def test_executors_workers_and_folders_give_the_same_bytes(tmp_path, data, recipe):
    path = recipe(data, ORDERS["all"], max_bad_fraction=0.01)
    run(path, tmp_path / "sync")
    want = manifest_files(tmp_path / "sync")
    assert len(want) == 3
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(data, moved)
    run(recipe(moved / data.name, ORDERS["all"], max_bad_fraction=0.01), tmp_path / "elsewhere")
    assert manifest_files(tmp_path / "elsewhere") == want
    for workers in (1, 2):
        out = tmp_path / f"local{workers}"
        result = tamis.run(path, out, executor="local", workers=workers)
        assert len(result.ran) > 10
        assert manifest_files(out) == want


def test_runs_in_threads_of_one_process_hear_of_their_own_nodes_only(tmp_path, data, recipe, monkeypatch):
    both = threading.Barrier(2, timeout=60)
    build = execute.graph

    def graph(*args):
        built = build(*args)
        both.wait()
        return built

    def one(name, stages):
        events = []
        result = run(
            recipe(data, stages, name=f"{name}.yaml", max_bad_fraction=0.01), tmp_path / name, on_event=events.append
        )
        return result, [event["node"] for event in events if event["event"] == "node"]

    alone = one("alone", [EMBED, DEDUP])
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(execute, "graph", graph)
        running = [pool.submit(one, "embed", [EMBED, DEDUP]), pool.submit(one, "random", [select("random")])]
        found = [run.result() for run in running]
    for result, nodes in [alone, *found, one("after", [EMBED])]:
        assert len(nodes) > 5
        assert sorted(nodes) == sorted(result.ran)
    assert manifest_files(tmp_path / "embed") == manifest_files(tmp_path / "alone")


def test_the_environment_changes_no_byte(tmp_path, data, recipe):
    path = recipe(data, ORDERS["all"], max_bad_fraction=0.01)
    found = []
    for threads, zone in (("1", "Asia/Kathmandu"), ("2", "America/St_Johns")):
        out = tmp_path / f"threads{threads}"
        environment = os.environ | {
            "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads,
            "PYTHONHASHSEED": threads, "TZ": zone, "LANG": "C", "LC_ALL": "C",
        }  # fmt: skip
        script = (
            f"from tamis.cli import main; main(['run', {str(path)!r}, '--out', {str(out)!r}, '--executor', 'sync'])"
        )
        subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)
        found.append(manifest_files(out))
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_the_seed_decides_and_nothing_else_is_drawn(tmp_path, data, recipe):
    np.random.seed(0)  # noqa: NPY002 (the global generator must not matter)
    path = recipe(data, [select("random")], max_bad_fraction=0.01)
    one = run(path, tmp_path / "a")
    np.random.seed(1)  # noqa: NPY002
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    assert run(path, tmp_path / "b").subset_id == one.subset_id
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
    assert run(path, tmp_path / "c", overrides=("seed=4",)).subset_id != one.subset_id


# --- the same rows in any shape ---


def write_shapes(folder, columns):
    """The same rows as each source that can be read: name -> recipe path, or a dataset in memory."""
    import datasets

    table = pa.table(columns)
    half = table.num_rows // 3
    pq.write_table(table, folder / "one.parquet", row_group_size=50)
    with (folder / "rows.jsonl").open("w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in table.to_pylist())
    pa_csv.write_csv(table, folder / "rows.csv")
    with pa.ipc.new_file(folder / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    (folder / "parts" / "deep").mkdir(parents=True)
    pq.write_table(table.slice(0, half), folder / "parts" / "a.parquet")
    pq.write_table(table.slice(half), folder / "parts" / "deep" / "b.parquet")
    memory = datasets.Dataset(table)
    datasets.Dataset(table).save_to_disk(str(folder / "saved"))
    return {
        "parquet": folder / "one.parquet",
        "jsonl": folder / "rows.jsonl",
        "csv": folder / "rows.csv",
        "arrow": folder / "rows.arrow",
        "folder": folder / "parts",
        "glob": folder / "parts" / "**" / "*.parquet",
        "saved": folder / "saved",
        "memory": memory,
    }


SHAPES = ["parquet", "jsonl", "csv", "arrow", "folder", "glob", "saved", "memory"]


@pytest.mark.parametrize("with_id", [True, False])
def test_the_same_rows_in_any_shape_give_one_selection(tmp_path, make_columns, recipe, with_id, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    columns = make_columns(150)
    columns["text"][20] = columns["text"][3]
    columns["label"][20] = columns["label"][3]
    shapes = write_shapes(tmp_path, columns)
    stages = [EMBED, {"kind": "dedup", "eps": 0.0}, select("facility_location", per="label")]
    fields = {} if with_id else {"id": None}
    want = None
    for shape in SHAPES:
        source = shapes[shape]
        path = recipe("unused" if shape == "memory" else source, stages, dataset=fields)
        run(path, tmp_path / shape, data=source if shape == "memory" else None)
        got = assert_nothing_lost(tmp_path / shape, 150)
        ids = got.select["sample_id"].to_pylist()
        want = ids if want is None else want
        assert ids == want, shape
        assert got.record["counts"]["exact_dup"] == 1
        # Every shape can be read back from the manifest.
        exported = tmp_path / f"{shape}.parquet"
        from tamis.cli import main

        main(["export", str(tmp_path / shape), "--to", "parquet", "--out", str(exported)], standalone_mode=False)
        texts = pq.read_table(exported)["text"].to_pylist()
        assert texts == [columns["text"][row] for row in got.select["row"].to_pylist()]
    assert len(set(want)) == len(want) == 37
    assert want[0].startswith("r") == with_id


def test_ids_from_content_are_unique_with_duplicate_rows(tmp_path, write, recipe):
    columns = {"text": ["a b c", "d e f", "a b c", "a b c"], "label": ["x", "x", "x", "y"]}
    run(recipe(write(columns), [select("random", 1.0)], dataset={"id": None}), tmp_path / "out")
    manifest = assert_nothing_lost(tmp_path / "out", 4)
    ids = manifest.audit["sample_id"].to_pylist()
    assert ids[2] == f"{ids[0]}-1"
    assert len(set(ids)) == 4
    assert all(len(name.partition("-")[0]) == 32 for name in ids)


def test_a_dataset_in_memory_needs_no_path(tmp_path, make_columns, cli):
    import datasets

    raw = {"name": "m", "dataset": {"id": "id", "text": "text"}, "stages": [select("random", 10)]}
    for n in (40, 30):  # the second into the same folder
        run(raw, tmp_path / "out", data=datasets.Dataset.from_dict(make_columns(n)))
        result = cli("export", tmp_path / "out", "--to", "jsonl", "--out", tmp_path / f"{n}.jsonl")
        assert result.exit_code == 0, result.stderr
        assert len((tmp_path / f"{n}.jsonl").read_text().splitlines()) == 10


def test_a_relative_path_is_taken_from_the_recipes_folder(tmp_path, data, recipe, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    run(recipe(data.name, [select("random", 5)], max_bad_fraction=0.01), "out")
    assert tamis.open_manifest(tmp_path / "cwd" / "out").select.num_rows == 5


def test_limit_takes_the_first_rows(tmp_path, data, recipe, cli):
    path = recipe(data, [EMBED, select("facility_location", 0.5)])
    result = cli("run", path, "--out", tmp_path / "out", "--executor", "sync", "--limit", 70, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["rows"], facts["kept"]) == (70, 35)
    manifest = assert_nothing_lost(tmp_path / "out", 70)
    assert manifest.record["dataset"]["limit"] == 70
    assert max(manifest.select["row"].to_pylist()) < 70
    exported = cli("export", tmp_path / "out", "--to", "parquet", "--out", tmp_path / "e.parquet")
    assert exported.exit_code == 0, exported.stderr
    everything = cli("run", path, "--out", tmp_path / "big", "--executor", "sync", "--limit", 7000,
                     "--set", "max_bad_fraction=0.01", "--json")  # fmt: skip
    assert json.loads(everything.stdout)["rows"] == N
    assert cli("run", path, "--out", tmp_path / "x", "--limit", 0).exit_code == 2


@pytest.mark.parametrize(
    ("options", "part"),
    [({"executor": "dask"}, "allowed are local and sync"), ({"workers": 0}, "the least"), ({"limit": 0}, "the least")],
)
def test_wrong_arguments(tmp_path, data, recipe, options, part):
    with pytest.raises(RecipeError, match=part):
        tamis.run(recipe(data, [select("random")]), tmp_path / "out", **{"executor": "sync", **options})


def test_data_in_memory_of_the_wrong_kind(tmp_path):
    import datasets

    raw = {"name": "m", "dataset": {"text": "text"}, "stages": [select("random", 1)]}
    one = datasets.Dataset.from_dict({"text": ["a"]})
    for given, part in (
        ([1], "a list was given"),
        (datasets.DatasetDict({"train": one}), "the splits \\['train'\\]"),
        (one.select([]), "no rows"),
        (one.rename_column("text", "texts"), "did you mean 'texts'"),
    ):
        with pytest.raises(DataError, match=part):
            run(raw, tmp_path / "out", data=given)
    for section in (None, "text", {}):
        with pytest.raises(RecipeError, match="dataset"):
            run({**raw, "dataset": section}, tmp_path / "out", data=one)


# --- faults ---


def test_two_runs_into_one_folder(tmp_path, data, recipe, cli):
    path = recipe(data, [select("random")], max_bad_fraction=0.01)
    with locked(tmp_path / "out"):
        result = cli("run", path, "--out", tmp_path / "out", "--executor", "sync")
        assert result.exit_code == 75
        assert f"another run holds {tmp_path / 'out'}" in result.stderr
        with pytest.raises(LockedError):
            run(path, tmp_path / "out")
    assert run(path, tmp_path / "out").ran


def flip(path, place=0.6):
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink])
@pytest.mark.parametrize("task", ["ingest.index", "ingest.block", "select.rank", "dedup.gather"])
def test_a_damaged_working_file_is_made_again(tmp_path, data, recipe, task, damage):
    stages = [EMBED, DEDUP, select("facility_location", 0.2, partition_rows=100, engine="partitioned")]
    path = recipe(data, stages, max_bad_fraction=0.01)
    run(path, tmp_path / "clean", overrides=("select.budget=0.1", "embed.dim=12"))
    run(path, tmp_path / "out")
    intact = {file: file.read_bytes() for file in (tmp_path / "out" / "work").rglob("*.arrow")}
    damaged = sorted((tmp_path / "out" / "work" / task).glob("*.arrow"))[0]
    damage(damaged)
    overrides = ("select.budget=0.1", *(("embed.dim=12",) if task == "ingest.block" else ()))
    if task == "dedup.gather":
        overrides = ("select.budget=0.1", "dedup.eps=0.04")
    events = []
    run(path, tmp_path / "out", overrides=overrides, on_event=events.append)
    names = [event["node"] for event in events if event["event"] in ("repair", "node")]
    assert any(task.partition(".")[2] in name for name in names)
    assert damaged.read_bytes() == intact[damaged]
    if task == "ingest.block":
        clean = manifest_files(tmp_path / "clean")
        assert manifest_files(tmp_path / "out")["v000002.json"] == clean["v000001.json"]
    lefts = [event["left"] for event in events if event["event"] == "node"]
    assert min(lefts) == 0


def test_a_damaged_record_of_a_node_is_made_again(tmp_path, data, recipe):
    path = recipe(data, [EMBED, select("facility_location", 0.2)], max_bad_fraction=0.01)
    one = run(path, tmp_path / "out")
    for record in (tmp_path / "out" / "work").rglob("*.json"):
        if record.parent.name in ("embed.fit", "select.take", "commit.manifest"):
            flip(record)
    again = run(path, tmp_path / "out")
    # The merge and the commit are needed; the encoder's fit is not, its embeddings being there.
    assert set(again.ran) == {"02-select/take", "03-commit/manifest"}
    assert again.subset_id == one.subset_id


@pytest.mark.parametrize("part", ["select-*", "audit-*", "v000001.json"])
def test_a_damaged_manifest_is_refused_and_made_again(tmp_path, data, recipe, cli, part):
    path = recipe(data, [select("random")], max_bad_fraction=0.01)
    one = run(path, tmp_path / "out")
    before = manifest_files(tmp_path / "out")
    (damaged,) = (tmp_path / "out" / "manifest").rglob(part)
    flip(damaged)
    for arguments in (
        ("why", "r0001", "--run", tmp_path / "out"),
        ("status", tmp_path / "out"),
        ("report", tmp_path / "out"),
        ("export", tmp_path / "out", "--to", "ids", "--out", tmp_path / "ids"),
        ("train", tmp_path / "out"),
    ):
        result = cli(*arguments)
        assert result.exit_code == 7, arguments
        assert damaged.name in result.stderr
    with pytest.raises(DamagedManifestError):
        tamis.open_manifest(tmp_path / "out")
    events = []
    again = run(path, tmp_path / "out", on_event=events.append)
    assert again.ran == ("02-commit/manifest",)
    assert [event["node"] for event in events if event["event"] == "repair"] == ["02-commit/manifest"]
    assert again.subset_id == one.subset_id
    after = manifest_files(tmp_path / "out")
    if part.startswith("v"):
        assert after["v000002.json"] == before["v000001.json"]  # a record is never rewritten
    else:
        assert after == before


def test_a_removed_manifest_is_committed_again(tmp_path, data, recipe):
    path = recipe(data, [select("random")], max_bad_fraction=0.01)
    run(path, tmp_path / "out")
    before = manifest_files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "manifest")
    assert run(path, tmp_path / "out").ran == ("02-commit/manifest",)
    assert manifest_files(tmp_path / "out") == before


def test_data_changed_between_two_runs_make_a_new_version(tmp_path, data, recipe, cli):
    path = recipe(data, CHAIN, max_bad_fraction=0.01)
    one = run(path, tmp_path / "out")
    table = pq.read_table(data)
    texts = table["text"].to_pylist()
    texts[0] += " topic0word1"
    pq.write_table(table.set_column(1, "text", pa.array(texts)), data)
    # The manifest in the folder is of the old data: nothing is exported from the new ones.
    result = cli("export", tmp_path / "out", "--to", "parquet", "--out", tmp_path / "x.parquet")
    assert result.exit_code == 6
    assert "fingerprint" in result.stderr
    two = run(path, tmp_path / "out")
    assert two.subset_id != one.subset_id
    assert {stage_of(name) for name in two.ran} >= {"00-ingest", "01-embed", "08-commit"}
    manifest = tamis.open_manifest(tmp_path / "out")
    assert manifest.version == 2
    assert (tmp_path / "out" / "manifest" / "v000001.json").is_file()


@pytest.mark.parametrize("what", ["rows.parquet", "losses.csv", "v.npy"])
def test_files_changed_during_the_run_are_refused(tmp_path, data, recipe, cli, monkeypatch, what):
    from tamis.pipelines.stages import schedule

    np.save(tmp_path / "v.npy", np.random.default_rng(0).standard_normal((N, 4)))
    stages = [{"kind": "embed", "encoder": "vectors: v.npy"}, FILE_SCORE, CLUSTER, DENSITY, SCHEDULE]
    path = recipe(data, stages, max_bad_fraction=0.01)
    clean = run(path, tmp_path / "clean")
    content = (tmp_path / what).read_bytes()
    task = schedule.TASKS["seta"]

    def change(params, inputs):
        (tmp_path / what).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return task.run(params, inputs)

    monkeypatch.setitem(schedule.TASKS, "seta", replace(task, run=change))
    result = cli("run", path, "--out", tmp_path / "out", "--executor", "sync")
    assert result.exit_code == 6
    assert what in result.stderr
    assert "has changed" in result.stderr
    assert not list((tmp_path / "out").rglob("v0*.json"))
    # Nothing that was read meanwhile is believed later.
    monkeypatch.undo()
    (tmp_path / what).write_bytes(content)
    again = run(path, tmp_path / "out")
    assert len(again.ran) == len(clean.ran)
    assert again.subset_id == clean.subset_id


def test_what_was_read_from_changed_data_is_not_believed_later(tmp_path, data, recipe, monkeypatch):
    """The file has other bytes only while a block is read, and its own again before the next run."""
    from tamis.pipelines.stages import ingest

    path = recipe(data, [select("random")], max_bad_fraction=0.01)
    clean = run(path, tmp_path / "clean")
    content = data.read_bytes()
    table = pq.read_table(data)
    task = ingest.TASKS["block"]

    def change(params, inputs):
        pq.write_table(table.set_column(1, "text", pa.array(["swapped"] * N)), data)
        return task.run(params, inputs)

    monkeypatch.setitem(ingest.TASKS, "block", replace(task, run=change))
    with pytest.raises(DatasetMismatchError):
        run(path, tmp_path / "out")
    monkeypatch.undo()
    data.write_bytes(content)
    assert run(path, tmp_path / "out").subset_id == clean.subset_id


def test_a_failing_task_is_named_and_what_is_finished_is_kept(tmp_path, data, recipe, cli, monkeypatch):
    from tamis.pipelines.stages import score

    path = recipe(data, CHAIN, max_bad_fraction=0.01)
    task = score.TASKS["fold"]

    def fail(params, inputs):
        if params["fold"] == 2:
            raise ZeroDivisionError("of all things")
        return task.run(params, inputs)

    monkeypatch.setitem(score.TASKS, "fold", replace(task, run=fail))
    result = cli("run", path, "--out", tmp_path / "out", "--executor", "sync")
    assert result.exit_code == 4
    assert "03-score/fold/00002 failed: ZeroDivisionError: of all things" in result.stderr
    monkeypatch.undo()
    again = run(path, tmp_path / "out")
    assert {stage_of(name) for name in again.ran}.isdisjoint({"00-ingest", "01-embed", "02-dedup"})
    assert_nothing_lost(tmp_path / "out")


# --- the verbs ---


@pytest.fixture
def finished(tmp_path, make_columns, write, recipe):
    columns = make_columns(N)
    columns["text"][50] = columns["text"][10]
    columns["text"][60] = columns["text"][11] + " " + columns["text"][11].split()[0]
    columns["text"][77] = None
    for row in (50, 60):
        columns["label"][row] = columns["label"][row - 40 if row == 50 else 11]
    columns["label"][5] = "<script>alert(1)</script>"
    path = recipe(write(columns), CHAIN, max_bad_fraction=0.01)
    run(path, tmp_path / "out")
    return path, tmp_path / "out"


def test_why(finished, cli):
    _, out = finished
    manifest = tamis.open_manifest(out)
    by_decision = {}
    for row in manifest.audit.to_pylist():
        by_decision.setdefault(list(DECISIONS)[row["decision"]], []).append(row["sample_id"])

    def why(sample_id):
        result = cli("why", sample_id, "--run", out, "--json")
        assert result.exit_code == 0, result.stderr
        text = cli("why", sample_id, "--run", out)
        assert text.exit_code == 0
        assert text.stdout.startswith(f"{sample_id} (row ")
        return json.loads(result.stdout), text.stdout

    facts, text = why(by_decision["kept"][0])
    assert facts["sample"]["decision"] == "kept"
    assert facts["stands_for_it"] == []
    assert f"rank {facts['sample']['rank']}, weight" in text
    facts, text = why("r0050")
    sample, *others = [facts["sample"], *facts["stands_for_it"]]
    if sample["decision"] != "exact_dup":
        facts, text = why("r0010")
        sample, *others = [facts["sample"], *facts["stands_for_it"]]
    assert (sample["decision"], sample["stage"], sample["score"]) == ("exact_dup", "02-dedup", 1.0)
    assert {sample["sample_id"], others[0]["sample_id"]} == {"r0010", "r0050"}
    assert "exact dup in 02-dedup: same content as the kept row" in text
    facts, text = why(by_decision["near_dup"][0])
    assert facts["sample"]["decision"] == "near_dup"
    assert 0.95 <= facts["sample"]["score"] <= 1
    assert facts["stands_for_it"][0]["sample_id"] == facts["sample"]["kept_sample_id"]
    facts, text = why(by_decision["pruned"][0])
    assert (facts["sample"]["stage"], facts["sample"]["reason"]) == ("04-prune", "loss in the tail: drop_highest 0.1")
    facts, text = why(by_decision["not_in_budget"][0])
    assert facts["sample"]["reason"] == "not in the budget of 60 (facility_location)"
    facts, text = why("r0077")
    assert (facts["sample"]["decision"], facts["sample"]["reason"]) == ("quarantined", "text is null")
    assert "quarantined in 00-ingest: text is null" in text
    # A manifest folder does as well as a run folder.
    assert cli("why", "r0077", "--run", out / "manifest").exit_code == 0
    result = cli("why", "nobody", "--run", out)
    assert result.exit_code == 3
    assert "no sample has the id 'nobody'" in result.stderr


def test_status(finished, cli, tmp_path):
    _, out = finished
    facts = json.loads(cli("status", out, "--json").stdout)
    assert facts["running"] is False
    assert facts["versions"] == [1]
    assert facts["subset_id"] == tamis.open_manifest(out).subset_id
    assert all(stage["finished"] == stage["tasks"] for stage in facts["stages"])
    assert "committed: version 1" in cli("status", out).stdout
    with locked(out):
        assert json.loads(cli("status", out, "--json").stdout)["running"] is True
    result = cli("status", tmp_path / "nothing")
    assert result.exit_code == 5
    assert "holds no run" in result.stderr


def test_validate(finished, cli, tmp_path):
    path, _ = finished
    facts = json.loads(cli("validate", path, "--json").stdout)
    assert (facts["rows"], facts["files"]) == (N, 1)
    assert facts["stages"][1] == "01-embed"
    assert "valid; 240 rows" in cli("validate", path).stdout
    assert cli("validate", path, "--set", "select.budget=2.5").exit_code == 2
    assert cli("validate", path, "--set", "dataset.text=tekst").exit_code == 3
    assert cli("validate", path, "--set", "dataset.path=none.parquet").exit_code == 3


def test_run_prints_the_funnel(finished, cli):
    path, out = finished
    result = cli("run", path, "--out", out, "--executor", "sync")
    assert result.exit_code == 0
    assert "everything was cached" in result.stdout
    facts = json.loads(cli("run", path, "--out", out, "--executor", "sync", "--json").stdout)
    assert facts["rows"] == N == facts["kept"] + sum(item["rows"] for item in facts["funnel"])
    assert facts["funnel"][-1]["left"] == facts["kept"]


@pytest.mark.parametrize("target", ["parquet", "jsonl", "ids", "hf"])
def test_export(finished, cli, tmp_path, target):
    _, out = finished
    manifest = tamis.open_manifest(out)
    result = cli("export", out, "--to", target, "--out", tmp_path / "exported")
    assert result.exit_code == 0, result.stderr
    path = tmp_path / "exported"
    if target == "ids":
        assert path.read_text().splitlines() == manifest.select["sample_id"].to_pylist()
        return
    if target == "parquet":
        rows = pq.read_table(path).to_pylist()
    elif target == "jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        import datasets

        rows = list(datasets.load_from_disk(str(path)))
    assert [row["id"] for row in rows] == manifest.select["sample_id"].to_pylist()
    assert [row["tamis_rank"] for row in rows] == list(range(len(rows)))
    assert np.float32([row["tamis_weight"] for row in rows]).tolist() == manifest.select["weight"].to_pylist()
    again = cli("export", out, "--to", target, "--out", tmp_path / "exported")
    assert again.exit_code == 5
    assert "exists and is not overwritten" in again.stderr


def test_report(finished, cli):
    _, out = finished
    result = cli("report", out)
    assert result.exit_code == 0, result.stderr
    page = Path(result.stdout.strip()).read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    facts = json.loads((out / "report.json").read_text())
    assert facts["rows"] == N
    assert sum(item["after"] for item in facts["classes"]) == facts["kept"] == 60
    assert sum(item["before"] for item in facts["classes"]) == N - 1
    assert 0 <= facts["share_outside_embedding"] <= 1


def test_train_on_the_run(finished, cli, tmp_path):
    _, out = finished
    result = cli("train", out, "--epochs", 1, "--out", tmp_path / "training", "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert 0 < facts["samples_seen"] <= facts["whole_epochs"] == 60
    assert facts["test"] is None


def test_a_training_says_what_it_was_measured_on_and_what_was_left_out(small_texts_run, cli):
    out, data = small_texts_run
    told = cli("train", out, "--test", data).stdout.splitlines()
    assert told[0].startswith("accuracy ")
    assert told[0].endswith(f" on {data}")
    assert told[1].endswith(f" on {data}")
    assert told[2].endswith("% left out by the sampler")
    told = cli("train", out, "--out", out / "again").stdout.splitlines()
    assert told[0].endswith(" of the training samples, when they were last seen")


@pytest.fixture
def small_texts_run(make_columns, write, recipe, tmp_path):
    """A run whose training is by SeTa, and its dataset."""
    data = write(make_columns(N))
    stages = [
        {"kind": "embed", "encoder": "lsa", "dim": 8},
        {"kind": "score", "method": "proxy", "folds": 2},
        {"kind": "schedule", "method": "seta", "epochs": 6, "num_group": 4},
    ]
    tamis.run(recipe(data, stages, max_bad_fraction=0.1), tmp_path / "seta", executor="sync")
    return tmp_path / "seta", data


def test_another_recipe_in_a_folder_is_told(write, make_columns, recipe, tmp_path, cli):
    data, out = write(make_columns(N)), tmp_path / "shared"
    stages = [{"kind": "dedup", "eps": 0.0}]
    run = ("run", recipe(data, stages, max_bad_fraction=0.1), "--out", out, "--executor", "sync")
    assert "note:" not in cli(*run).stderr
    assert "note:" not in cli(*run).stderr
    other = cli(*run, "--set", "name=two")
    assert other.exit_code == 0, other.stderr
    assert f"note: {out} has a run of 'test'; 'two' will be its next version" in other.stderr


def test_the_record_describes_the_run(finished):
    _, out = finished
    record = tamis.open_manifest(out).record
    assert record["recipe"]["name"] == "test"
    assert "path" not in record["recipe"]["dataset"]
    assert [stage["name"] for stage in record["stages"]][:3] == ["00-ingest", "01-embed", "02-dedup"]
    assert record["dataset"]["sources"][0]["path"] == "rows.parquet"
    assert record["subset_id"] == digest({key: value for key, value in record.items() if key != "subset_id"})


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_on_standard_error_alone(monkeypatch, capsys, terminal):
    from tamis.progress import Progress

    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with Progress() as progress:
        progress.on_event({"event": "run", "todo": 2, "cached": 1, "workers": 1, "stages": {"00-ingest": 2}})
        progress.on_event({"event": "node", "stage": "00-ingest", "left": 1})
        progress.on_event({"event": "repair", "reason": "a file is damaged"})
        progress.on_event({"event": "run", "todo": 1, "cached": 2, "workers": 1, "stages": {"00-ingest": 1}})
        progress.on_event({"event": "node", "stage": "00-ingest", "left": 0})
    told = capsys.readouterr()
    assert told.out == ""
    assert "repairing: a file is damaged" in told.err
    if not terminal:
        assert "00-ingest: task 1 of 2" in told.err
        assert "00-ingest: task 1 of 1" in told.err


@pytest.mark.parametrize("engine", ["exact", "sparse", "partitioned"])
@pytest.mark.parametrize("per", [None, "label"])
def test_every_engine_meets_the_budget_where_a_class_gets_nothing(tmp_path, data, recipe, engine, per):
    path = recipe(data, [EMBED, select("facility_location", 2, per=per, engine=engine)], max_bad_fraction=0.01)
    run(path, tmp_path / "out")
    assert tamis.open_manifest(tmp_path / "out").select.num_rows == 2

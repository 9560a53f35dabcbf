"""tamis advise: what it recommends, what it writes, and what it does where nothing can be measured."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import tamis
from tamis.advice import candidates as table
from tamis.advice import trial
from tamis.pipelines.recipe import load_recipe

CLASSES, TOPICS = 8, 5


def made(n=400, noise=0.15, seed=0):
    """Classes of topics that are seldom or often, some labels wrong: what coverage and dropping high losses are for."""
    rng = np.random.default_rng(seed)
    often = 1 / np.arange(1, TOPICS + 1) ** 1.5
    own, topics = rng.integers(0, CLASSES, n), rng.choice(TOPICS, n, p=often / often.sum())
    words = [
        [*(f"c{c}t{t}w{i}" for i in rng.integers(0, 6, 5)), *(f"x{i}" for i in rng.integers(0, 30, 4))]
        for c, t in zip(own, topics, strict=True)
    ]
    given = np.where(rng.random(n) < noise, rng.integers(0, CLASSES, n), own)
    return {
        "id": [f"r{i}" for i in range(n)],
        "text": [" ".join(row) for row in words],
        "label": [f"c{c}" for c in given],
    }


@pytest.fixture(scope="module")
def advised(tmp_path_factory):
    """What the verb printed as JSON with all candidates, and the folder of the recipe that it wrote."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from click.testing import CliRunner

    from tamis.cli import main

    folder = tmp_path_factory.mktemp("advised")
    pq.write_table(pa.table(made()), folder / "rows.parquet")
    options = ["--budget", "0.15", "--splits", "5", "--out", folder / "r.yaml", "--json"]
    result = CliRunner().invoke(main, [str(one) for one in ("advise", folder / "rows.parquet", *options)])
    assert result.exit_code == 0, result.stderr
    assert "label: 'label', by its name" in result.stderr
    assert "split 1: 0 of 20" in result.stderr
    return json.loads(result.stdout), folder


def test_it_recommends_what_was_clearly_better(advised):
    facts, _ = advised
    tried = {one["name"]: one for one in facts["tried"]}
    assert list(tried) == [candidate.name for candidate in table.CANDIDATES]
    assert (facts["rows"], facts["rows_tried"], facts["splits"]) == (400, 400, 5)
    better = {name: one["gain"] for name, one in tried.items() if one["verdict"] == "clearly better"}
    assert better, facts["sentence"]
    assert facts["recommended"] == max(better, key=lambda name: better[name]["low"])
    assert facts["sentence"].startswith(f"Take {facts['recommended']}: +")
    for name, one in tried.items():
        if one["gain"] is not None:
            assert one["gain"]["mean"] == pytest.approx(one["accuracy"] - tried["stratified"]["accuracy"])
            assert np.mean(list(one["gain"]["families"].values())) == pytest.approx(one["gain"]["mean"]), name


def test_what_is_written_runs(advised, cli):
    facts, folder = advised
    recipe, _ = load_recipe(folder / "r.yaml")
    assert [stage.kind for stage in recipe.stages] == [stage["kind"] for stage in facts["stages"]]
    assert recipe.stages[-1].budget == 0.15
    assert recipe.dataset.path == str(folder / "rows.parquet")
    comments = (folder / "r.yaml").read_text().splitlines()
    assert comments[0] == "# Recommended by tamis advise at a budget of 0.15:"
    assert facts["recommended"] in comments[1]
    assert cli("validate", folder / "r.yaml").exit_code == 0
    tamis.run(folder / "r.yaml", folder / "run", executor="sync")
    assert tamis.open_manifest(folder / "run").select.num_rows == 60
    again = cli("advise", folder / "rows.parquet", "--budget", "0.1", "--out", folder / "r.yaml")
    assert (again.exit_code, again.stdout) == (5, "")
    assert "is not overwritten" in again.stderr
    lost = cli("advise", folder / "rows.parquet", "--budget", "0.1", "--out", folder / "none" / "r.yaml")
    assert lost.exit_code == 5


def test_stratified_where_nothing_is_better_and_what_is_printed(write, make_columns, cli, tmp_path):
    columns = make_columns(150)
    columns["label"] = np.random.default_rng(0).permutation(columns["label"]).tolist()  # nothing can be learned
    options = ["--budget", "40", "--splits", "3", "--candidates", "label-free"]
    result = cli("advise", write(columns), *options, "--out", tmp_path / "r.yaml")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines[:-2])) < 80
    assert [line.split()[0] for line in lines[:4]] == ["candidate", "stratified", "random", "label-free"]
    assert "Take stratified: nothing is clearly better in 3 splits. The highest was label-free" in " ".join(lines)
    recipe, _ = load_recipe(tmp_path / "r.yaml")
    assert [(stage.kind, stage.method, stage.budget) for stage in recipe.stages] == [("select", "stratified", 40)]


def test_a_recipe_says_how_rows_are_compared(write, tmp_path, cli, monkeypatch):
    monkeypatch.setattr("tamis.advice.advise.best", lambda judged: judged[0])  # as if it were clearly better
    columns = made(120)
    np.save(tmp_path / "own.npy", np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32))
    raw = {
        "name": "mine",
        "seed": 5,
        "dataset": {"path": write(columns).name, "text": "text", "label": "label"},
        "stages": [{"kind": "embed", "encoder": "vectors: own.npy"}, {"kind": "dedup"}],
        "train": {"model": "text", "lr": 0.00001},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(raw).replace("1e-05", "0.00001"))
    (tmp_path / "out").mkdir()
    seen = []
    advice = tamis.advise(
        tmp_path / "mine.yaml",
        budget=0.3,
        splits=3,
        rows=100,
        candidates=["label-free"],
        out=tmp_path / "out" / "r.yaml",
        on_step=seen.append,
    )
    assert (advice.rows, advice.rows_tried, advice.splits) == (120, 100, 3)
    assert "100 of the 120 rows" in advice.notes[0]
    assert "on all rows a gain is often smaller" in advice.notes[1]
    assert [(step.name, step.split, step.done) for step in seen[2:4]] == [("label-free", 1, 2), ("stratified", 2, 3)]
    assert {one.name: one.gain is None for one in advice.tried} == {
        "stratified": True,
        "random": True,
        "label-free": False,
    }
    assert json.loads(json.dumps(advice.facts))["recommended"] == advice.recommended
    written, _ = load_recipe(tmp_path / "out" / "r.yaml")
    assert advice.recommended == "label-free"
    assert written.dataset.path == "../rows.parquet"
    assert written.stages[0].encoder == f"vectors: {tmp_path / 'own.npy'}"
    assert cli("validate", tmp_path / "out" / "r.yaml").exit_code == 0
    assert (written.name, written.seed, written.train.lr) == ("mine", 5, 0.00001)


def test_vectors_alone(write):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    vectors = (rng.normal(size=(120, 5)) + 3 * labels[:, None]).tolist()
    vectors[7] = None  # a bad row
    rows = write({"vector": vectors, "label": [f"c{c}" for c in labels]})
    advice = tamis.advise(rows, budget=0.2, splits=3, candidates=["label-free"])
    assert advice.families == ("linear SVM", "nearest neighbours")
    assert (advice.rows, advice.rows_tried) == (120, 119)
    assert advice.tried[0].accuracy > 0.8


def test_a_candidate_that_cannot_run_says_why(write, cli):
    columns = made(120)
    columns["text"] = [*columns["text"][:40], *columns["text"][:40], *columns["text"][:40]]  # two of three are copies
    result = cli("advise", write(columns), "--budget", "0.95", "--splits", "3", "--candidates", "noise-aware")
    assert result.exit_code == 0, result.stderr
    assert "noise-aware did not run: select.budget 0.95 of" in " ".join(result.stdout.split())
    assert "Take stratified" in result.stdout


def test_without_labels(write, make_columns, cli, tmp_path):
    columns = {"text": make_columns(150)["text"]}
    result = cli("advise", write(columns), "--budget", "0.2", "--out", tmp_path / "r.yaml")
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert said.startswith("Take random: without labels nothing can be measured here.")
    assert "tamis compare" in said
    assert load_recipe(tmp_path / "r.yaml")[0].stages[0].method == "random"


@pytest.mark.parametrize("seconds", [0.001, 1.5])
def test_too_little_time(write, seconds, monkeypatch):
    """Either it ends while the rows are read, or it is seen after the first split that three will not fit."""
    monkeypatch.setattr(trial, "try_all", lambda *_: (time.sleep(1.0), ({}, {}))[1])
    advice = tamis.advise(write(made(120)), budget=0.2, time_limit=seconds)
    assert advice.splits < 3
    assert advice.seconds < 10
    assert advice.sentence.startswith(f"Take stratified: {advice.splits} of the 3 splits that a recommendation needs")
    assert f"{seconds:g} s" in advice.sentence


@pytest.mark.parametrize(
    ("changed", "options", "code", "part"),
    [
        ({}, ["--budget", "0.2", "--candidates", "lable-free"], 2, "did you mean 'label-free'?"),
        ({}, ["--budget", "1.5"], 2, "1.5 is not a fraction in (0, 1]"),
        ({}, ["--budget", "0"], 2, "0 is not a count"),
        ({}, ["--budget", "many"], 2, "--budget 'many': give a fraction"),
        ({}, ["--budget", "121"], 2, "the budget is 121 rows"),
        (
            {},
            ["--budget", "0.02"],
            2,
            "is 1 of the 96 rows that are selected from, which trains nothing: give at least 0.1042",
        ),
        ({}, ["--budget", "0.2", "--time-limit", "0"], 2, "above 0 seconds"),
        ({}, ["--budget", "0.2", "--splits", "2"], 2, "at least 3"),
        ({}, ["--budget", "0.2", "--rows", "50"], 2, "at least 100"),
        ({"text": [""] * 40}, ["--budget", "0.2"], 3, "80 rows can be used; at least 100"),
    ],
)
def test_what_is_refused(write, cli, changed, options, code, part):
    columns = made(120)
    for name, values in changed.items():
        columns[name][: len(values)] = values
    result = cli("advise", write(columns), *options)
    assert result.exit_code == code, result.stderr
    assert part in result.stderr
    assert result.stdout == ""


def test_data_that_cannot_be_used(write, cli, recipe, tmp_path):
    assert cli("advise", tmp_path / "none.parquet", "--budget", "0.2").exit_code == 3
    assert cli("advise", tmp_path / "none.yaml", "--budget", "0.2").exit_code == 2
    one = recipe(write(made(120) | {"label": ["x"] * 120}), [{"kind": "embed"}])
    result = cli("advise", one, "--budget", "0.2")
    assert result.exit_code == 3
    assert "the label 'label' has 1 value(s)" in result.stderr


def test_a_signal_leaves_nothing_behind(write, tmp_path):
    place = tmp_path / "temporary"
    place.mkdir()
    command = [sys.executable, "-m", "tamis", "advise", str(write(made(200))), "--budget", "0.2"]
    environment = {**os.environ, "TMPDIR": str(place)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        said = ""
        while "split 1" not in said:
            said = process.stderr.readline()
            assert said, "it ended before it began"
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "stopped by SIGINT; nothing is left behind" in rest
    assert "to go on" not in rest
    assert list(place.iterdir()) == []

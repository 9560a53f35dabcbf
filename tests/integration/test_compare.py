"""The comparison of subsets by training: its trainings, its command, what it keeps, and what it refuses."""

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

import tamis
from tamis.errors import DataError, NonFiniteLossError, OutputError, RecipeError
from tamis.progress import ComparisonProgress
from tamis.reports.plots import draw_comparison
from tamis.training import arms as arms_module
from tamis.training.arms import Arm, train_arms
from tamis.training.learner import Ragged
from tamis.training.lineup import line_up
from tamis.training.lm import Blocks
from tamis.training.rows import read_any
from tamis.training.setting import Setting, Subset
from tamis.training.significance import holm
from tamis.training.text import Texts
from tamis.training.trainer import TrainConfig, fit

CLASSES = 3
PLAIN = TrainConfig(epochs=2, batch_size=16)


def make_texts(n, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    texts = [" ".join([f"own{c}x{rng.integers(9)}", *(f"w{i}" for i in rng.integers(0, 40, 5))]) for c in labels]
    return texts, labels.astype(np.int64)


SAMPLES, TEST = Texts.of(*make_texts(300, 0)), Texts.of(*make_texts(200, 1))


@pytest.fixture
def fits(monkeypatch):
    """The calls of `fit` by a comparison: (rows, config) each."""
    calls = []

    def counted(samples, weights, test, config, **options):
        calls.append((len(samples), config))
        return fit(samples, weights, test, config, **options)

    monkeypatch.setattr(arms_module, "fit", counted)
    return calls


# --- trainings ---


def test_every_arm_has_the_same_budget():
    rows = np.random.default_rng(0).permutation(300)[:80]
    one_class = np.flatnonzero(SAMPLES.labels == 0)
    arms = [Arm("random", rows, PLAIN), Arm("full", np.arange(300), PLAIN), Arm("one class", one_class, PLAIN)]
    steps = []
    results = train_arms(arms, SAMPLES, TEST, seeds=[1, 2, 3], total_samples=700, on_step=steps.append)
    assert [result.name for result in results] == ["random", "full", "one class"]
    assert [result.size for result in results] == [80, 300, len(one_class)]
    assert {result.samples_seen for result in results} == {700}
    ended = [step for step in steps if step.trained is not None]
    assert [(step.name, step.seed) for step in ended] == [(arm.name, seed) for arm in arms for seed in (1, 2, 3)]
    assert [step.done for step in ended] == list(range(1, 10))
    assert [step.done for step in steps if step.trained is None] == list(range(9))
    for result in results:
        assert result.mean == pytest.approx(np.mean(result.values))
        assert len(result.values) == 3
    assert results[1].mean > results[2].mean + 0.2
    assert pickle.loads(pickle.dumps(results)) == results
    # One training by hand.
    config = TrainConfig(epochs=9, batch_size=16, seed=2, total_samples=700)
    assert results[0].values[1] == fit(SAMPLES.take(rows), np.ones(80, np.float32), TEST, config).accuracy


def test_at_equal_epochs_each_arm_goes_through_its_own_rows():
    pruned = TrainConfig(epochs=3, batch_size=16, sampler="random", prune_ratio=0.5)
    arms = [
        Arm("full", np.arange(300), TrainConfig(epochs=3)),
        Arm("drawn", lambda seed: np.arange(seed, seed + 50), TrainConfig(epochs=3)),
        Arm("pruned", np.arange(50), pruned),
        Arm("weighted", np.arange(50), PLAIN, np.linspace(1, 2, 50).astype(np.float32)),
    ]
    results = train_arms(arms, SAMPLES, TEST, seeds=[4, 5])
    assert [result.samples_seen for result in results] == [900, 150, 75, 100]
    config = TrainConfig(epochs=3, seed=5, total_samples=150)
    assert results[1].values[1] == fit(SAMPLES.take(np.arange(5, 55)), np.ones(50), TEST, config).accuracy
    by_hand = fit(
        SAMPLES.take(np.arange(50)),
        arms[3].weights,
        TEST,
        TrainConfig(epochs=2, batch_size=16, seed=4, total_samples=100),
    )
    assert results[3].values[0] == by_hand.accuracy


def test_without_labels_losses_are_compared():
    rng = np.random.default_rng(0)
    blocks = Blocks(Ragged(rng.integers(0, 9, 160).astype(np.int32), np.arange(0, 161, 8)))
    config = TrainConfig(epochs=1, batch_size=4, width=32, layers=1)
    (result,) = train_arms([Arm("a", np.arange(10), config)], blocks, blocks, seeds=[1], total_samples=10)
    by_hand = TrainConfig(epochs=1, batch_size=4, width=32, layers=1, seed=1, total_samples=10)
    assert result.values == (fit(blocks.take(np.arange(10)), np.ones(10, np.float32), blocks, by_hand).loss,)
    assert result.ci95 is None


def test_arms_refuse():
    arm = Arm("a", np.arange(5), PLAIN)
    for arms, seeds in (([], [1]), ([arm], []), ([arm], [1, 1]), ([arm, arm], [1])):
        with pytest.raises(RecipeError, match="none of them twice"):
            train_arms(arms, SAMPLES, TEST, seeds=seeds)
    with pytest.raises(DataError, match="0 texts"):
        train_arms([Arm("a", np.arange(0), PLAIN)], SAMPLES, TEST, seeds=[1], total_samples=5)


def test_a_test_loss_that_is_infinite_is_no_result(monkeypatch):
    ended = SimpleNamespace(accuracy=None, loss=float("inf"), samples_seen=1, seconds=1.0)
    monkeypatch.setattr(arms_module, "fit", lambda *_, **__: ended)
    with pytest.raises(NonFiniteLossError, match="inf after the training on a, seed 7"):
        train_arms([Arm("a", np.arange(5), PLAIN)], SAMPLES, TEST, seeds=[7])


def test_finished_trainings_are_kept(tmp_path, fits):
    arms = [Arm("a", np.arange(30), PLAIN), Arm("b", lambda seed: np.arange(seed, 30), PLAIN)]

    def train(arms=arms, samples=SAMPLES, test=TEST, seeds=(1, 2), total=60, **options):
        fits.clear()
        results = train_arms(arms, samples, test, seeds=seeds, total_samples=total, keep=tmp_path / "kept", **options)
        return results, len(fits)

    first, trained = train()
    assert trained == 4
    steps = []
    assert train(on_step=steps.append) == (first, 0)
    assert all(step.kept and step.trained for step in steps)
    again, trained = train(seeds=(2, 1, 3))
    assert trained == 2
    assert again[0].values[:2] == first[0].values[::-1]
    # Whatever a result depends on makes another training; a name is not of that.
    assert train(arms=[Arm("c", np.arange(30), PLAIN)], seeds=(1,))[1] == 0
    assert train(total=61)[1] == 4
    assert train(samples=SAMPLES.take(np.arange(299)))[1] == 4
    assert train(test=TEST.take(np.arange(199)))[1] == 4
    assert train(arms=[Arm("a", np.arange(30)[::-1], PLAIN)], seeds=(1,))[1] == 1
    assert train(arms=[Arm("a", np.arange(30), TrainConfig(epochs=2, batch_size=8))], seeds=(1,))[1] == 1
    assert train(arms=[Arm("a", np.arange(30), PLAIN, np.full(30, 2, np.float32))], seeds=(1,))[1] == 1


def test_a_damaged_file_is_trained_again(tmp_path, fits):
    arms = [Arm("a", np.arange(30), PLAIN)]
    results = train_arms(arms, SAMPLES, TEST, seeds=[1], keep=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole.replace(b'"value":0', b'"value":1'), b"{}", b'{"body":{},"sha256":""}'):
        fits.clear()
        path.write_bytes(damaged)
        assert train_arms(arms, SAMPLES, TEST, seeds=[1], keep=tmp_path)[0].values == results[0].values
        assert len(fits) == 1
        assert json.loads(path.read_bytes())["body"]["name"] == "a"


def test_where_nothing_can_be_kept(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to"):
        train_arms([Arm("a", np.arange(9), PLAIN)], SAMPLES, TEST, seeds=[1], keep=tmp_path / "file" / "kept")


def test_random_rows_are_of_the_pool_and_drawn_anew_for_each_seed():
    pool = np.arange(0, 300, 2)
    manifest = SimpleNamespace(subset_id="s", select=pa.table({"row": range(50)}))
    subset = Subset("selected", manifest, pool[::3], np.ones(50, np.float32))
    arms = line_up(Setting(SAMPLES, pool, TEST, True, [subset]), PLAIN, stratified=True, as_recipe=False)
    assert [arm.name for arm in arms] == ["full", "random", "stratified random", "selected"]
    assert [arm.subset for arm in arms] == [None, None, None, "s"]
    assert arms[3].against == ("random", "stratified random")
    classes = np.bincount(SAMPLES.labels[pool])
    for arm in arms[1:3]:
        draws = [arm.rows(seed) for seed in (1, 2, 1)]
        for rows in draws:
            assert len(set(rows)) == 50
            assert set(rows) <= set(pool)
        assert draws[0].tolist() == draws[2].tolist() != draws[1].tolist()
    for seed in range(5):
        np.testing.assert_allclose(np.bincount(SAMPLES.labels[arms[2].rows(seed)]), classes / 3, atol=1)
    whole = line_up(Setting(SAMPLES, np.arange(300), TEST, False, [subset]), PLAIN, stratified=False, as_recipe=False)
    assert whole[1].rows(7).tolist() == np.random.default_rng([20260101, 7]).permutation(300)[:50].tolist()


# --- the command ---

RANDOM = {"kind": "select", "method": "random", "budget": 60}


@pytest.fixture(scope="module")
def here(tmp_path_factory, make_columns):
    """A dataset of 240 rows, a test set, and runs on the dataset: one (60 rows), two (60 others), ten, single."""
    folder = tmp_path_factory.mktemp("compare")
    pq.write_table(pa.table(make_columns()), folder / "rows.parquet")
    pq.write_table(pa.table(make_columns(100, seed=5)), folder / "test.parquet")
    dataset = {"path": str(folder / "rows.parquet"), "id": "id", "text": "text", "label": "label"}
    for name, seed, budget in (("one", 1, 60), ("two", 2, 60), ("ten", 3, 10), ("single", 4, 1)):
        recipe = {"name": "test", "seed": seed, "dataset": dataset, "stages": [RANDOM | {"budget": budget}]}
        tamis.run({**recipe, "train": {"epochs": 2, "batch_size": 16}}, folder / name, executor="sync")
    return folder


@pytest.fixture
def place(here, tmp_path):
    """A copy of all that, where nothing was trained."""
    return Path(shutil.copytree(here, tmp_path / "place"))


@pytest.fixture
def compared(place, cli):
    """Compare from the command line; give what it says."""

    def compare(*arguments, code=0):
        names = [place / name if (place / str(name)).exists() else name for name in arguments]
        result = cli("compare", *names, "--json")
        assert result.exit_code == code, result.stderr
        return json.loads(result.stdout) if code == 0 else result.stderr

    return compare


def test_the_comparison(place, compared):
    facts = compared("one", "two", "--test", place / "test.parquet", "--seeds", 3)
    rows = {row["name"]: row for row in facts["results"]}
    assert list(rows) == ["full", "random", "stratified random", "one", "two"]
    assert [row["size"] for row in rows.values()] == [240, 60, 60, 60, 60]
    assert {row["samples_seen"] for row in rows.values()} == {120}
    assert facts["note"] == "Every training sees 120 samples; 3 seeds, 100 held-out rows."
    assert (facts["measure"], facts["budget"], facts["epochs"], facts["seeds"]) == ("accuracy", "seen", 2, 3)
    manifest = tamis.open_manifest(place / "one")
    assert [row["subset_id"] for row in rows.values()][:4] == [None, None, None, manifest.subset_id]
    # The accuracies, by hand.
    dataset, test = (str(place / f"{name}.parquet") for name in ("rows", "test"))
    samples, _ = read_any(manifest, dataset, np.arange(240), "text")
    held_out = read(test)
    drawn = [np.random.default_rng([20260101, seed]).permutation(240)[:60] for seed in (1, 2, 3)]
    own = [manifest.select["row"].to_numpy()] * 3
    for name, chosen in (("random", drawn), ("one", own)):
        for seed, expected in zip((1, 2, 3), rows[name]["accuracies"], strict=True):
            config = TrainConfig(epochs=2, batch_size=16, seed=seed, total_samples=120)
            found = fit(samples.take(chosen[seed - 1]), np.ones(60, np.float32), held_out, config)
            assert found.accuracy == expected
    # The tests: scipy's, corrected over both subsets for each baseline.
    values = {name: row["accuracies"] for name, row in rows.items()}
    raw = {
        (name, against): stats.ttest_rel(values[name], values[against]).pvalue
        for name in ("one", "two")
        for against in ("random", "stratified random")
    }
    tests = {(test["name"], test["against"]): test for test in facts["tests"]}
    assert set(tests) == {*raw, ("full", "random"), ("full", "stratified random")}
    for pair, p in raw.items():
        assert tests[pair]["p"] == pytest.approx(p)
    for against in ("random", "stratified random"):
        pairs = [tests[name, against] for name in ("one", "two")]
        assert [test["corrected"] for test in pairs] == pytest.approx(holm([test["p"] for test in pairs]))
        assert {test["together"] for test in pairs} == {2}
        assert tests["full", against]["together"] == 1
    assert len(facts["verdict"]) == 6
    assert [line["name"] for line in facts["break_even"]] == ["one", "two"]
    for line in facts["break_even"]:
        assert line["selection_seconds"] > 0
        assert f"{line['name']}: selection cost" in line["line"]
    # The report takes it.
    written = json.loads((place / "one" / "compare.json").read_text())
    assert written == facts
    from tamis.reports.report import build_report

    assert build_report(place / "one")["comparison"]["verdict"] == facts["verdict"]


def read(path):
    table = pq.read_table(path)
    classes = sorted(set(table["label"].to_pylist()))
    labels = np.array([classes.index(name) for name in table["label"].to_pylist()], np.int64)
    return Texts.of(table["text"].to_pylist(), labels, tuple(classes))


def test_a_second_call_trains_nothing_and_more_seeds_only_those(place, compared, fits):
    command = ("one", "two", "--test", "test.parquet", "--seeds")
    first = compared(*command, 2)
    assert len(fits) == 2 * 5
    fits.clear()
    assert compared(*command, 2) == first
    assert fits == []
    more = compared(*command, 4)
    assert len(fits) == 2 * 5
    assert {config.seed for _, config in fits} == {3, 4}
    for row, old in zip(more["results"], first["results"], strict=True):
        assert row["accuracies"][:2] == old["accuracies"]
    assert len(list((place / "one" / "training" / "compare").iterdir())) == 20
    assert "says nothing" in first["verdict"][0]
    assert "says nothing" not in more["verdict"][0]


def test_it_goes_on_after_ctrl_c(place, cli, compared, monkeypatch):
    done = []

    def interrupted(*arguments, **options):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(fit(*arguments, **options))
        return done[-1]

    command = ("one", "--test", "test.parquet", "--seeds", 2)
    with monkeypatch.context() as patch:
        patch.setattr(arms_module, "fit", interrupted)
        assert "the same command goes on from there" in compared(*command, code=130)
        assert not (place / "one" / "compare.json").exists()
        done.clear()
        assert "goes on" in compared(*command, code=130)  # three more
        done.clear()
        facts = compared(*command)
        assert len(done) == 2
    shutil.rmtree(place / "one" / "training")
    again = compared(*command)
    assert [row["accuracies"] for row in again["results"]] == [row["accuracies"] for row in facts["results"]]


def test_both_budgets(place, compared, fits):
    facts = compared("one", "ten", "--test", "test.parquet", "--seeds", 2, "--budget", "both", "--epochs", 3)
    rows = {row["name"]: row for row in facts["results"]}
    assert list(rows)[:7] == [
        "full", "random, 10 rows", "stratified random, 10 rows", "random, 60 rows", "stratified random, 60 rows",
        "one", "ten",
    ]  # fmt: skip
    assert list(rows)[7:] == [f"{name}, 3 epochs" for name in list(rows)[:7]]
    assert {row["samples_seen"] for name, row in rows.items() if "epochs" not in name} == {180}
    assert rows["full, 3 epochs"]["samples_seen"] == 720
    assert rows["ten, 3 epochs"]["samples_seen"] == 30
    # What is the same training at both budgets was trained once: that of the largest subset's size.
    assert len(fits) == 2 * (7 + 4)
    assert rows["one"]["accuracies"] == rows["one, 3 epochs"]["accuracies"]
    assert [(test["name"], test["against"]) for test in facts["tests"] if test["budget"] == "seen"] == [
        ("full", "random, 60 rows"),
        ("full", "stratified random, 60 rows"),
        ("one", "random, 60 rows"),
        ("ten", "random, 10 rows"),
        ("one", "stratified random, 60 rows"),
        ("ten", "stratified random, 10 rows"),
    ]
    assert facts["note"].startswith(
        "Every training sees 180 samples; those marked with epochs go 3 times through their own rows, and so full sees "
        "the most; 2 seeds,"
    )
    epochs = compared("ten", "--test", "test.parquet", "--seeds", 2, "--budget", "epochs", "--epochs", 1)
    assert [row["samples_seen"] for row in epochs["results"]] == [240, 10, 10, 10]
    assert epochs["note"].startswith(
        "Every training goes once through its own rows, and so full sees the most; 2 seeds"
    )
    assert compared("ten", "--test", "test.parquet", "--seeds", 2, "--samples", 33)["results"][0]["samples_seen"] == 33


def test_without_a_test_a_part_of_the_data_is_in_no_training(place, compared, make_columns, monkeypatch):
    """Row i + 120 is row i again: of both or neither something is learned."""
    columns = make_columns(120)
    twice = {"id": [f"r{i}" for i in range(240)], **{name: columns[name] * 2 for name in ("text", "label")}}
    pq.write_table(pa.table(twice), place / "twice.parquet")
    recipe = json.loads((place / "one" / "run.json").read_text())["recipe"]
    recipe["dataset"]["path"] = str(place / "twice.parquet")
    tamis.run(recipe, place / "run", executor="sync")
    seen, measured = set(), set()

    def watched(samples, weights, test, *rest, **options):
        for part, texts in ((samples, seen), (test, measured)):
            texts |= {part.features.take(np.array([i])).values.tobytes() for i in range(len(part))}
        return fit(samples, weights, test, *rest, **options)

    monkeypatch.setattr(arms_module, "fit", watched)
    facts = compared("run", "--seeds", 2)
    assert seen
    assert measured
    assert not seen & measured
    full, random, stratified, selected = facts["results"]
    held = 240 - full["size"]
    assert 44 <= held <= 48
    assert selected["size"] == random["size"] == stratified["size"] < 60
    assert (
        f"{held} held-out rows. There was no test set: they are of the dataset's 240, drawn by class" in facts["note"]
    )
    assert f"{60 - selected['size']} of the 60 of selected are among them" in facts["note"]
    # The same rows at another call, and others at another share.
    assert compared("run", "--seeds", 2)["results"] == facts["results"]
    assert compared("run", "--seeds", 2, "--hold-out", 0.5)["results"][0]["size"] in range(120, 124)


def test_rows_of_the_test_that_are_in_the_dataset(place, compared):
    """By content: under another id and even with another label."""
    columns, others = (pq.read_table(place / f"{name}.parquet").to_pydict() for name in ("rows", "test"))
    others["text"][10:22] = [*columns["text"][:11], columns["text"][0]]
    pq.write_table(pa.table(others), place / "leaky.parquet")
    facts = compared("one", "--test", "leaky.parquet", "--seeds", 2)
    expected = len([text for text in others["text"] if text in columns["text"]])
    assert expected >= 12
    assert (facts["test_rows"], facts["test_rows_in_dataset"]) == (100, expected)
    said = f"100 held-out rows. {expected} of them have the same content as rows of the dataset, which trainings may"
    assert said in facts["note"]
    facts = compared("one", "--test", "test.parquet", "--seeds", 2)
    assert facts["test_rows_in_dataset"] == 0
    assert "same content" not in facts["note"]


def test_a_subset_of_one_row(place, compared):
    facts = compared("single", "--test", "test.parquet", "--seeds", 2)
    assert [row["size"] for row in facts["results"]] == [240, 1, 1, 1]
    assert {row["samples_seen"] for row in facts["results"]} == {2}
    row = tamis.open_manifest(place / "single").select["row"][0].as_py()
    shares = []
    for share in (0.05, 0.95):
        result = compared("single", "--seeds", 2, "--hold-out", share, code=0 if share == 0.05 else 3)
        shares.append(result)
    assert shares[0]["results"][3]["size"] == 1, row
    assert "all 1 rows of selected are held out; give data to measure on with --test" in shares[1]


def test_as_the_recipe_says(place, compared):
    recipe = json.loads((place / "one" / "run.json").read_text())["recipe"]
    recipe["stages"] += [{"kind": "reweight", "strategy": "linupper"}]
    columns = pq.read_table(place / "rows.parquet").to_pydict()
    losses = place / "losses.csv"
    losses.write_text("sample_id,loss\n" + "".join(f"{name},{i % 7}\n" for i, name in enumerate(columns["id"])))
    recipe["stages"].insert(0, {"kind": "score", "from": str(losses)})
    tamis.run(recipe, place / "weighted", executor="sync")
    facts = compared("weighted", "--test", "test.parquet", "--seeds", 2, "--as-recipe")
    assert [row["name"] for row in facts["results"]][3:] == [
        "selected", "selected, SeTa, LinUpper", "the same, manifest's weights",
    ]  # fmt: skip
    manifest = tamis.open_manifest(place / "weighted")
    samples, _ = read_any(manifest, str(place / "rows.parquet"), manifest.select["row"].to_numpy(), "text")
    config = TrainConfig(epochs=2, batch_size=16, seed=2, sampler="seta", weights="linupper", total_samples=120)
    test = read(place / "test.parquet")
    for weights, row in (
        (np.ones(60, np.float32), facts["results"][4]),
        (manifest.select["weight"].to_numpy(), facts["results"][5]),
    ):
        assert row["accuracies"][1] == fit(samples, weights, test, config).accuracy
    assert {test["together"] for test in facts["tests"]} == {1, 3}
    several = compared("weighted", "one", "--test", "test.parquet", "--seeds", 2, "--as-recipe")
    assert [row["name"] for row in several["results"]][3:] == [
        "weighted", "weighted, SeTa, LinUpper", "weighted, SeTa, LinUpper, manifest's weights",
        "one", "one, SeTa, LinUpper",
    ]  # fmt: skip


def test_however_a_manifest_is_named(place, compared, fits):
    found = []
    for name in ("one", "one/manifest", "one/manifest/v000001.json"):
        facts = compared(name, "--test", "test.parquet", "--seeds", 2)
        found.append([row.get("accuracies") for row in facts["results"]])
        assert facts["break_even"][0]["selection_seconds"] > 0
    assert len(fits) == 8
    assert found[0] == found[1] == found[2]
    # A manifest without its run: where the data are must be said, and what the selection cost is not known.
    shutil.copytree(place / "one" / "manifest", place / "alone")
    assert "--data" in compared("alone", "--test", "test.parquet", code=6)
    facts = compared("alone", "--test", "test.parquet", "--seeds", 2, "--data", place / "rows.parquet")
    assert [row.get("accuracies") for row in facts["results"]] == found[0]
    assert (place / "alone" / "compare.json").is_file()
    assert facts["break_even"][0]["selection_seconds"] is None


def test_a_run_named_as_a_baseline_is_told_from_it(place, compared):
    shutil.copytree(place / "two", place / "random")
    facts = compared("one", "random", "--test", "test.parquet", "--seeds", 2)
    assert [row["name"] for row in facts["results"]] == ["full", "random", "stratified random", "one", "subset random"]


def test_tokens_are_compared_by_loss(place, cli, compared):
    rng = np.random.default_rng(0)
    tokens = pa.array([rng.integers(0, 9, 8).tolist() for _ in range(60)], pa.list_(pa.int32()))
    pq.write_table(pa.table({"tokens": tokens}), place / "tokens.parquet")
    recipe = {
        "name": "lm",
        "dataset": {"path": str(place / "tokens.parquet"), "tokens": "tokens"},
        "stages": [RANDOM | {"budget": 12}],
        "train": {"model": "lm", "width": 32, "layers": 1, "epochs": 1, "batch_size": 4},
    }
    tamis.run(recipe, place / "lm", executor="sync")
    facts = compared("lm", "--seeds", 3, "--threads", 1)
    assert facts["measure"] == "loss"
    assert [row["name"] for row in facts["results"]] == ["full", "random", "selected"]
    assert all(1 < loss < 4 for row in facts["results"] for loss in row["losses"])
    assert "of loss, p = " in facts["verdict"][0]
    said = cli("compare", place / "lm", "--seeds", 3, "--threads", 1).stdout
    assert " loss " in said
    assert "%" not in said.replace("95 %", "")


def test_images(place, compared):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 40)
    pixels = (rng.integers(0, 60, (40, 8, 8)) + 150 * labels[:, None, None]).astype(np.uint8)
    pq.write_table(pa.table({"image": [png(one) for one in pixels], "label": labels}), place / "images.parquet")
    recipe = {
        "name": "images",
        "dataset": {"path": str(place / "images.parquet"), "image": "image", "label": "label"},
        "stages": [RANDOM | {"budget": 12}],
        "train": {"model": "image", "epochs": 1, "batch_size": 4},
    }
    tamis.run(recipe, place / "images", executor="sync")
    facts = compared("images", "--seeds", 2, "--threads", 1)
    assert facts["results"][0]["size"] == 32
    assert all(0 <= value <= 1 for row in facts["results"] for value in row["accuracies"])


def png(pixels):
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_text_without_json(place, cli):
    result = cli("compare", place / "one", "--test", place / "test.parquet", "--seeds", 3)
    lines = result.stdout.splitlines()
    assert lines[0] == "Every training sees 120 samples; 3 seeds, 100 held-out rows."
    assert lines[1].split() == ["trained", "on", "rows", "samples", "accuracy", "95", "%", "interval"]
    assert lines[5].split()[:3] == ["selected", "60", "120"]
    assert lines[-1].startswith("selected: selection cost ")
    assert "training 12 of 12: selected, seed 3: 0." in result.stderr


def test_where_the_result_goes(place, compared):
    out, plot = place / "result.json", place / "result.svg"
    facts = compared("one", "--test", "test.parquet", "--seeds", 2, "--out", out, "--plot", plot)
    assert json.loads(out.read_text()) == facts
    assert not (place / "one" / "compare.json").exists()
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")


def test_the_picture_is_the_same_and_inert():
    row = {"size": 9, "samples_seen": 18, "mean": 0.5, "ci95": None, "accuracies": [0.4, 0.6], "subset_id": None}
    names = ["<script>alert(1)</script>", "$\\frac{1}{0$ %d", "\u4e2d\u6587" * 50, "random, 9 rows"]
    facts = {"measure": "accuracy", "seeds": 2, "results": [{**row, "name": name} for name in names]}
    picture = draw_comparison(facts)
    assert picture == draw_comparison(facts)
    elements = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(picture).iter()}
    assert elements == {"svg", "path", "text"}
    assert b"random, 9 rows<" in picture
    assert b"alert(1)&lt;/script&gt; (9 rows)<" in picture
    assert b"var(" not in picture  # there is no page to give colours
    losses = {key: value for key, value in row.items() if key != "accuracies"} | {"losses": [1.0, 2.0], "ci95": 0.1}
    assert draw_comparison({"measure": "loss", "seeds": 2, "results": [{**losses, "name": "a"}]}) != picture


# --- refusals ---


def test_other_data_are_refused(place, compared, make_columns):
    pq.write_table(pa.table(make_columns(seed=8)), place / "other.parquet")
    recipe = json.loads((place / "one" / "run.json").read_text())["recipe"]
    other = {**recipe, "dataset": recipe["dataset"] | {"path": str(place / "other.parquet")}}
    tamis.run(other, place / "other", executor="sync")
    assert "subsets of one dataset" in compared("one", "other", code=6)
    tamis.run(recipe, place / "limited", executor="sync", limit=100)
    assert "--limit" in compared("one", "limited", code=6)
    assert "fingerprint" in compared("one", "--data", place / "other.parquet", code=6)
    tamis.run({**recipe, "train": {"model": "image"}}, place / "image", executor="sync")
    assert "subsets for one model" in compared("one", "image", code=2)
    assert "image column" in compared("image", code=2)


def test_no_labels(place, compared):
    recipe = json.loads((place / "one" / "run.json").read_text())["recipe"]
    tamis.run({**recipe, "dataset": recipe["dataset"] | {"label": None}}, place / "bare", executor="sync")
    assert "training the text model needs a label column" in compared("bare", code=2)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("one", "--seeds", 1), 2, "'--seeds': 1 is not in the range x>=2"),
        (("one", "--seeds", "many"), 2, "is not a valid integer"),
        ((), 2, "Missing argument 'DIR...'"),
        (("one", "--hold-out", 1), 2, "is not in the range 0<x<1"),
        (("one", "--budget", "time"), 2, "'time' is not one of 'seen', 'epochs', 'both'"),
        (("none",), 5, "none has no commit record"),
        (("one", "one"), 2, "none of them twice"),
        (("one", "--test", "gone.parquet"), 3, "gone.parquet does not exist"),
        (("one", "--plot", "picture.png"), 2, "ends in .svg"),
        (("one", "--plot", "no/picture.svg"), 5, "cannot write no/picture.svg"),
        (("one", "--out", "no/result.json"), 5, "cannot write no/result.json"),
        (("one", "--device", "abacus"), 2, "abacus"),
    ],
)
def test_what_is_refused_before_anything_is_trained(compared, fits, arguments, code, said):
    assert said in compared(*arguments, code=code)
    assert fits == []


def test_from_python(place):
    with pytest.raises(RecipeError, match="budget is 'time'"):
        tamis.compare([place / "one"], budget="time")
    with pytest.raises(RecipeError, match="seeds is 1; at least 2"):
        tamis.compare([place / "one"], seeds=1)
    with pytest.raises(RecipeError, match="at least one is needed"):
        tamis.compare([])
    facts = tamis.compare([place / "one"], test=place / "test.parquet", seeds=2, stratified=False, note="Aha.")
    assert [row["name"] for row in facts["results"]] == ["full", "random", "selected"]
    assert facts["note"].endswith("100 held-out rows. Aha.")


def test_progress_on_a_terminal(place, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with ComparisonProgress() as progress:
        tamis.compare([place / "ten"], test=place / "test.parquet", seeds=2, on_step=progress.on_step)
    said = capsys.readouterr()
    assert said.out == ""
    assert "training 1 of" not in said.err

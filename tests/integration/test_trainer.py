import os
import random as python_random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import tamis
from tamis.errors import (
    DamagedManifestError,
    DataError,
    DatasetMismatchError,
    NonFiniteLossError,
    OutputError,
    RecipeError,
)
from tamis.manifests.commit import commit
from tamis.manifests.fingerprint import dataset_fingerprint
from tamis.manifests.reader import open_manifest
from tamis.manifests.schema import AUDIT, BODY_KEYS, Decision, select_schema
from tamis.pipelines.sources import resolve, scan
from tamis.pipelines.stages.ingest import content_hashes
from tamis.training.rows import read_training
from tamis.training.text import BUCKETS, TextClassifier, Texts, featurise
from tamis.training.trainer import Progress, TrainConfig, fit, planned, train

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnprst"]
CONFIG = TrainConfig(epochs=3, batch_size=16, checkpoint_every=5, sampler="seta", weights="linupper", num_group=4)


def make_texts(n, seed, classes=3, noise=0.0):
    """Sentences of common words with a few that lean towards the class, in Zipf's proportions."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    base = 1 / np.arange(1, len(WORDS) + 1)
    tilt = np.stack([np.roll(np.where(np.arange(len(WORDS)) % 10 < 2, 3.0, 1.0), 3 * c) for c in range(classes)])
    texts = []
    for label in labels:
        p = base * tilt[label]
        texts.append(" ".join(rng.choice(WORDS, size=12, p=p / p.sum())))
    wrong = rng.random(n) < noise
    labels[wrong] = rng.integers(0, classes, wrong.sum())
    return texts, labels.astype(np.int64)


TEXTS, LABELS = make_texts(200, 0)
SAMPLES = Texts.of(TEXTS, LABELS)
WEIGHTS = np.linspace(0.5, 2, 200).astype(np.float32)


def checkpoint_tensors(out):
    (path,) = Path(out).glob("checkpoint.*.safetensors")
    return path.name, path.read_bytes()


def read_ledger(path):
    with pa.ipc.open_file(path) as reader:
        return reader.read_all()


# --- the text model ---


def test_features_are_words_pairs_and_triples():
    features = featurise(["ab CD", "", "ab", "cd  ab!", "\ud800 x", "ab cd"])
    sizes = np.diff(features.offsets)
    # "ab cd": 2 words, 1 pair, and the triples of " ab cd ": 5.
    assert sizes.tolist() == [8, 0, 3, 9, 4, 8]
    assert features.values.min() >= 0
    assert features.values.max() < BUCKETS

    def of(i):
        return sorted(features.values[features.offsets[i] : features.offsets[i + 1]].tolist())

    assert of(0) == of(5)
    assert set(of(2)) <= set(of(0)) | set(of(3))
    assert of(0) != of(3)


def test_features_are_the_same_in_every_process_and_chunk(monkeypatch):
    features = featurise(TEXTS)
    # Fixed here, so that a changed hash is noticed: old checkpoints would silently mean something else.
    assert featurise(["tamis"]).values.tolist() == [155197, 111716, 72231, 207985, 71000, 229540]
    monkeypatch.setattr("tamis.training.text._CHUNK", 7)
    parts = featurise(TEXTS)
    np.testing.assert_array_equal(parts.values, features.values)
    np.testing.assert_array_equal(parts.offsets, features.offsets)
    some = np.array([5, 0, 5, 199])
    np.testing.assert_array_equal(features.take(some).values, featurise([TEXTS[i] for i in some]).values)


def test_hashes_spread_evenly():
    features = featurise([f"w{i}" for i in range(20_000)])
    words = features.values[features.offsets[:-1]]  # a text's words come first
    expected = BUCKETS * (1 - np.exp(-20_000 / BUCKETS))
    assert abs(len(np.unique(words)) - expected) < 150
    for bits in (words % 64, words >> 12):
        assert np.bincount(bits, minlength=64).min() > 200  # of 312


def test_gathered_logits_are_the_whole_tables():
    model = TextClassifier(3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.table.normal_(generator=torch.Generator().manual_seed(1))
    features = featurise([*TEXTS[:5], "", "unseen"])
    where, block, logits = model.gather(features, np.unique(features.values))
    torch.testing.assert_close(logits, model(features))
    torch.testing.assert_close(block, model.table[where])
    torch.testing.assert_close(logits[5], model.bias)
    empty = model.gather(featurise(["", ""]), np.zeros(0, np.int32))[2]
    torch.testing.assert_close(empty, model.bias.expand(2, 3))


def test_updates_are_adamw_on_the_rows_that_a_batch_touches():
    from tamis.training.text import LazyAdamW

    features, labels = featurise(TEXTS[:8]), torch.from_numpy(LABELS[:8])
    ours, theirs = (TextClassifier(3, torch.Generator().manual_seed(0)) for _ in range(2))
    lazy = LazyAdamW(ours, 0.01)
    dense = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.01)
    for _ in range(4):  # the same batch again: then the lazy rows' moments are the dense ones'
        where, block, logits = ours.gather(features, np.unique(features.values))
        torch.nn.functional.cross_entropy(logits, labels).backward()
        lazy.step(where, block.grad, 0.1)
        dense.zero_grad()
        torch.nn.functional.cross_entropy(theirs(features), labels).backward()
        dense.step()
    for name, value in ours.named_parameters():
        torch.testing.assert_close(value, theirs.get_parameter(name), rtol=1e-4, atol=1e-5)


# --- fit ---


def test_learns_nearly_as_well_as_tfidf_and_logistic_regression():
    texts, labels = make_texts(3000, 1, noise=0.1)
    test = make_texts(1000, 2)
    result = fit(Texts.of(texts, labels), np.ones(3000, np.float32), Texts.of(*test), TrainConfig(epochs=4))
    vectoriser = TfidfVectorizer(ngram_range=(1, 2))
    linear = LogisticRegression(max_iter=300).fit(vectoriser.fit_transform(texts), labels)
    reference = linear.score(vectoriser.transform(test[0]), test[1])
    assert reference > 0.6
    assert result.accuracy > reference - 0.03
    assert result.samples_seen == 12_000
    assert result.checkpoint is None
    assert result.ledger is None
    assert 0 < result.loss < 1.1


@pytest.mark.parametrize("sampler", ["full", "seta", "infobatch", "random"])
def test_same_inputs_give_the_same_bits_whatever_the_global_state(tmp_path, sampler):
    config = replace(CONFIG, sampler=sampler, epochs=4, prune_ratio=None if sampler == "full" else 0.3)
    results = []
    for i, threads in enumerate((1, 2)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(i)
        np.random.seed(i)  # noqa: NPY002
        python_random.seed(i)
        inside = set()
        try:
            result = fit(
                SAMPLES,
                WEIGHTS,
                SAMPLES,
                config,
                tmp_path / str(i),
                lambda _, inside=inside: inside.add(torch.get_num_threads()),
            )
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        assert inside == {1}
        results.append((checkpoint_tensors(tmp_path / str(i)), result.ledger.read_bytes(), result.accuracy))
    assert results[0] == results[1]


def test_fit_leaves_global_random_generators_alone():
    python_random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = (python_random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state())  # noqa: NPY002
    fit(SAMPLES, WEIGHTS, None, CONFIG)
    assert python_random.getstate() == before[0]
    assert np.random.get_state()[1].tobytes() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_trainer import CONFIG, SAMPLES, WEIGHTS
from tamis.training.trainer import fit

def on_progress(progress):
    if progress.steps == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

fit(SAMPLES, WEIGHTS, None, CONFIG, Path(sys.argv[1]), on_progress)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    steps = []
    result = fit(SAMPLES, WEIGHTS, SAMPLES, CONFIG, out, steps.append)
    return out, result, steps


def test_killed_and_resumed_is_bitwise_the_undisturbed_training(tmp_path, undisturbed):
    whole, result, steps = undisturbed
    # Between checkpoints in the first epoch, then right after one in the second, resumed from the first kill.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for at in (8, 15):
        command = [
            sys.executable,
            "-c",
            SCRIPT.format(tests=str(Path(__file__).parent)),
            str(tmp_path),
            str(at),
        ]
        killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    tail = []
    resumed = fit(SAMPLES, WEIGHTS, SAMPLES, CONFIG, tmp_path, tail.append)
    assert tail[0].steps == 16  # resumed from the checkpoint of step 15, not from the start
    assert tail == steps[15:]
    assert checkpoint_tensors(tmp_path) == checkpoint_tensors(whole)
    assert resumed.ledger.read_bytes() == result.ledger.read_bytes()
    assert resumed.accuracy == result.accuracy


def test_resumes_bitwise_after_every_single_step(tmp_path, undisturbed):
    whole, _, steps = undisturbed

    class Stop(Exception):  # noqa: N818
        pass

    config = replace(CONFIG, checkpoint_every=1)
    remaining = [step.steps for step in steps]

    def stop_once(progress: Progress):
        assert progress.steps == remaining.pop(0)
        if remaining:
            raise Stop

    while remaining:
        try:
            fit(SAMPLES, WEIGHTS, None, config, tmp_path, stop_once)
        except Stop:
            continue
    assert checkpoint_tensors(tmp_path) == checkpoint_tensors(whole)


def test_a_finished_training_is_not_trained_again(undisturbed):
    out, result, _ = undisturbed
    before = checkpoint_tensors(out)
    steps = []
    again = fit(SAMPLES, WEIGHTS, SAMPLES, CONFIG, out, steps.append)
    assert steps == []
    assert again == result
    assert checkpoint_tensors(out) == before


def test_another_training_and_damage_are_refused(tmp_path):
    fit(SAMPLES, WEIGHTS, None, CONFIG, tmp_path)
    fit(SAMPLES, WEIGHTS, None, replace(CONFIG, checkpoint_every=0), tmp_path)  # affects no result
    with pytest.raises(OutputError, match="another training"):
        fit(SAMPLES, WEIGHTS, None, replace(CONFIG, lr=0.5), tmp_path)
    with pytest.raises(OutputError, match="another training"):
        fit(Texts.of(TEXTS[::-1], LABELS), WEIGHTS, None, CONFIG, tmp_path)
    name, data = checkpoint_tensors(tmp_path)
    (tmp_path / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedManifestError, match="damaged"):
        fit(SAMPLES, WEIGHTS, None, CONFIG, tmp_path)
    (tmp_path / name).write_bytes(data)
    record = (tmp_path / "checkpoint.json").read_bytes()
    (tmp_path / "checkpoint.json").write_bytes(record.replace(b'"samples_seen":', b'"samples_seen":1'))
    with pytest.raises(DamagedManifestError, match="damaged"):
        fit(SAMPLES, WEIGHTS, None, CONFIG, tmp_path)


def test_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        fit(SAMPLES, WEIGHTS, None, CONFIG, tmp_path / "file" / "out")


def test_nan_loss_stops_with_the_ids_and_keeps_the_checkpoint(tmp_path):
    config = replace(CONFIG, lr=1e38, checkpoint_every=1)
    ids = [f"sample-{i}" for i in range(200)]
    with pytest.raises(NonFiniteLossError, match=r"'sample-\d+'.*checkpoint is kept") as caught:
        fit(SAMPLES, WEIGHTS, None, config, tmp_path, ids=ids)
    assert caught.value.exit_code == 8
    kept = checkpoint_tensors(tmp_path)
    with pytest.raises(NonFiniteLossError):
        fit(SAMPLES, WEIGHTS, None, config, tmp_path, ids=ids)
    assert checkpoint_tensors(tmp_path) == kept


def test_ledger_says_what_each_sample_went_through(tmp_path):
    config = TrainConfig(epochs=4, batch_size=8, sampler="random", prune_ratio=0.9, weights="linupper")
    ids = [f"id{i}" for i in range(200)]
    rows = np.arange(200) * 3
    steps = []
    result = fit(SAMPLES, WEIGHTS, None, config, tmp_path, steps.append, ids=ids, rows=rows)
    ledger = read_ledger(result.ledger)
    names = ["sample_id", "row", "last_loss", "mean_loss", "seen", "weight_mean", "elr_target", "elr_class"]
    assert ledger.column_names == names
    assert ledger["sample_id"].to_pylist() == ids
    assert ledger["row"].to_pylist() == rows.tolist()
    seen = ledger["seen"].to_numpy()
    assert seen.sum() == result.samples_seen == 80
    for name in ("last_loss", "mean_loss", "weight_mean"):
        assert (np.array(ledger[name].is_null()) == (seen == 0)).all()
    once = np.flatnonzero(seen == 1)
    last, mean = ledger["last_loss"].to_numpy(), ledger["mean_loss"].to_numpy()
    np.testing.assert_array_equal(last[once], mean[once])
    # Every batch's weights sum to 1, and are written as multiples of 1/m.
    given = np.nan_to_num(ledger["weight_mean"].to_numpy()) * seen
    assert given.sum() == pytest.approx(80, rel=1e-5)
    # The weighted losses of all steps are those of the samples.
    assert sum(step.loss for step in steps) > 0
    assert result.loss == pytest.approx(np.nanmean(last), rel=1e-6)


def test_sample_weights_count():
    # Two texts that contradict each other: the heavier wins.
    texts = ["same words here"] * 2 * 20
    labels = np.array([0, 1] * 20)
    for heavy in (0, 1):
        weights = np.where(labels == heavy, 9.0, 1.0).astype(np.float32)
        test = Texts.of(["same words here"], np.array([heavy]))
        assert fit(Texts.of(texts, labels), weights, test, TrainConfig(epochs=5, lr=0.05)).accuracy == 1.0


def test_total_samples_is_exact():
    for sampler, epoch_size in (("full", "pruned"), ("seta", "fixed"), ("infobatch", "pruned")):
        config = replace(CONFIG, sampler=sampler, epoch_size=epoch_size, total_samples=333)
        assert fit(SAMPLES, WEIGHTS, None, config).samples_seen == 333


def test_seta_saves_samples():
    full = fit(SAMPLES, WEIGHTS, None, replace(CONFIG, sampler="full", epochs=8))
    pruned = fit(SAMPLES, WEIGHTS, None, replace(CONFIG, epochs=8))
    assert full.samples_seen == 1600
    assert 400 < pruned.samples_seen < 1400


@pytest.mark.parametrize("sampler", ["random", "seta", "infobatch"])
def test_a_ceiling_holds_from_the_second_epoch_to_the_last(sampler):
    sizes = {}
    config = replace(CONFIG, sampler=sampler, epochs=8, ceiling=0.3)
    fit(SAMPLES, WEIGHTS, None, config, None, lambda step: sizes.update({step.epoch: step.epoch_samples}))
    assert (sizes[0], sizes[7]) == (200, 140)
    assert max(sizes[epoch] for epoch in range(1, 8)) == 140


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"config": {"sampler": "best"}}, RecipeError),
        ({"config": {"weights": "best"}}, RecipeError),
        ({"config": {"epochs": 0}}, RecipeError),
        ({"config": {"batch_size": 0}}, RecipeError),
        ({"config": {"lr": 0.0}}, RecipeError),
        ({"config": {"lr": float("nan")}}, RecipeError),
        ({"config": {"sampler": "full", "prune_ratio": 0.5}}, RecipeError),
        ({"config": {"sampler": "full", "ceiling": 0.1}}, RecipeError),
        ({"config": {"ceiling": 1.0}}, RecipeError),
        ({"texts": []}, DataError),
        ({"labels": LABELS[:5]}, DataError),
        ({"labels": LABELS - 1}, DataError),
        ({"weights": WEIGHTS * 0}, DataError),
        ({"test": ([], LABELS[:0])}, DataError),
        ({"ids": ["one"]}, DataError),
        ({"config": {"precision": "float8"}}, RecipeError),
        ({"config": {"width": 100}}, RecipeError),
        ({"config": {"layers": 0}}, RecipeError),
        ({"device": "tpu"}, RecipeError),
        ({"device": "meta"}, RecipeError),
    ],
)
def test_fit_refuses(change, error):
    weights = change.get("weights", WEIGHTS)
    config = replace(CONFIG, **change.get("config", {}))

    def attempt():
        samples = Texts.of(change.get("texts", TEXTS), change.get("labels", LABELS))
        test = Texts.of(*change["test"]) if "test" in change else None
        fit(samples, weights, test, config, ids=change.get("ids"), device=change.get("device", "cpu"))

    with pytest.raises(error):
        attempt()


# --- train, on a manifest ---

FIELDS = {"id": "tweet", "text": "body", "label": "mood"}
MOODS = np.array(["bad", "good", "so-so"])


def write_dataset(path, texts=TEXTS, labels=LABELS, ids=None):
    ids = [f"t{i}" for i in range(len(texts))] if ids is None else ids
    table = pa.table({"tweet": ids, "body": texts, "mood": MOODS[labels], "other": np.arange(len(texts))})
    path.parent.mkdir(exist_ok=True)
    pa.parquet.write_table(table, path)
    return path


def write_manifest(folder, dataset, rows, weights, schedule=None):
    """Commits a manifest of some rows of a dataset, as a run would."""
    (source,) = [scan(found) for found in resolve(str(dataset))]
    table = pa.parquet.read_table(dataset)
    n = table.num_rows
    hashes = content_hashes(
        pa.table({"text": table["body"].cast(pa.large_string()), "label": table["mood"].cast(pa.large_string())}),
        ("text", "label"),
    )
    files = [{"path": source.path, "bytes": source.bytes, "sha256": source.sha256, "rows": source.rows}]
    chosen = pa.array(rows)
    k = len(rows)
    columns = {
        "sample_id": table["tweet"].combine_chunks().take(chosen),
        "row": pa.array(rows, pa.int64()),
        "source": pa.array(np.zeros(k), pa.int32()),
        "source_row": pa.array(rows, pa.int64()),
        "content_hash": hashes.take(chosen),
        "rank": pa.array(np.arange(k), pa.int32()),
        "weight": pa.array(weights, pa.float32()),
        "reason": pa.array(np.zeros(k), pa.uint16()),
    }
    schema = select_schema([])
    select = pa.table([columns.get(f.name, pa.nulls(k, f.type)) for f in schema], schema=schema)
    decision = np.full(n, 4, np.int8)
    decision[rows] = 0
    audit = pa.table(
        [
            table["tweet"].combine_chunks(),
            pa.array(np.arange(n), pa.int64()),
            hashes,
            pa.array(decision),
            pa.array(np.zeros(n), pa.int16()),
            pa.array(np.zeros(n), pa.uint16()),
            pa.nulls(n, pa.int64()),
            pa.nulls(n, pa.float64()),
            pa.nulls(n, pa.int32()),
        ],
        schema=AUDIT,
    )
    body = {
        **dict.fromkeys(BODY_KEYS),
        "dataset": {
            "fingerprint": dataset_fingerprint(files, "schema", FIELDS),
            "rows": n,
            "schema": "schema",
            "fields": FIELDS,
            "sources": files,
        },
        "recipe": {},
        "seed": 0,
        "stages": [{"name": "select"}],
        "reasons": ["chosen"],
        "scores": {},
        "schedule": schedule,
        "required_features": [],
    }
    commit(folder, select=select, audit=audit, body=body)
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    dataset = write_dataset(root / "data" / "tweets.parquet")
    rows = np.random.default_rng(5).permutation(200)[:120]
    write_manifest(root / "manifest", dataset, rows, WEIGHTS[rows], {"method": "seta", "num_group": 3, "epochs": 3})
    (root / "run.json").write_text(f'{{"data": "{dataset}"}}')
    return root, dataset, rows


def test_train_reads_the_rows_in_rank_order(run_folder):
    root, dataset, rows = run_folder
    read = read_training(open_manifest(root), dataset)
    assert read.ids == [f"t{i}" for i in rows]
    assert read.samples.digest() == SAMPLES.take(rows).digest()
    assert read.samples.classes == tuple(MOODS)
    np.testing.assert_array_equal(read.rows, rows)
    np.testing.assert_array_equal(read.weights, WEIGHTS[rows])


def test_train_is_fit_on_those_rows(run_folder, tmp_path):
    root, _, rows = run_folder
    test = write_dataset(tmp_path / "test.parquet", *make_texts(50, 9))
    result = train(root, out=tmp_path / "out", config=replace(planned(open_manifest(root)), batch_size=16), test=test)
    config = TrainConfig(epochs=12, batch_size=16, sampler="seta", weights="linupper", num_group=3)
    expected = fit(SAMPLES.take(rows), WEIGHTS[rows], Texts.of(*make_texts(50, 9)), config)
    assert (result.accuracy, result.loss, result.samples_seen) == (
        expected.accuracy,
        expected.loss,
        expected.samples_seen,
    )
    ledger = read_ledger(result.ledger)
    assert ledger["sample_id"].to_pylist() == [f"t{i}" for i in rows]
    assert ledger["row"].to_pylist() == rows.tolist()


def test_a_second_selection_learns_from_the_first_training(small_recipe, tmp_path):
    def run(out, *stages):
        tamis.run({**small_recipe, "stages": list(stages)}, tmp_path / out, executor="sync")
        return open_manifest(tmp_path / out)

    run("first", {"kind": "select", "method": "random", "budget": 300})
    result = train(tmp_path / "first", out=tmp_path / "training", config=TrainConfig(epochs=2))
    from_ledger = {"kind": "score", "from": str(tmp_path / "training"), "missing": "median"}
    second = run("second", from_ledger, {"kind": "prune", "method": "loss", "drop_highest": 0.05})
    ledger = read_ledger(result.ledger)
    highest = np.argsort(-ledger["last_loss"].to_numpy(), kind="stable")[:35]
    pruned = second.audit["row"].to_numpy()[second.audit["decision"].to_numpy() == Decision.PRUNED]
    assert set(pruned.tolist()) == set(ledger["row"].to_numpy()[highest].tolist())
    with pytest.raises(DataError, match="has no loss for 400 of 700 rows"):
        run("third", {**from_ledger, "missing": "refuse"})


def test_train_counts_unknown_test_labels_as_wrong(run_folder, tmp_path, monkeypatch):
    root, _, _ = run_folder
    monkeypatch.setattr(sys.modules[__name__], "MOODS", np.array(["x1", "x2", "x3"]))
    test = write_dataset(tmp_path / "test.parquet")
    assert train(root, out=tmp_path / "out", config=TrainConfig(epochs=2), test=test).accuracy == 0.0


def test_train_refuses_another_dataset_unless_its_rows_are_the_same(run_folder, tmp_path):
    root, _, rows = run_folder
    renamed = write_dataset(tmp_path / "renamed.parquet")
    with pytest.raises(DatasetMismatchError, match="fingerprint"):
        train(root, out=tmp_path / "out", dataset=renamed, config=TrainConfig(epochs=1))
    trusted = train(root, out=tmp_path / "trusted", dataset=renamed, config=TrainConfig(epochs=1), trust_rows=True)
    plain = train(root, out=tmp_path / "plain", config=TrainConfig(epochs=1))
    assert checkpoint_tensors(tmp_path / "trusted") == checkpoint_tensors(tmp_path / "plain")
    assert trusted.samples_seen == plain.samples_seen

    row = int(rows[7])
    texts = list(TEXTS)
    texts[row] += "!"
    ids = [f"t{i}" for i in range(200)]
    ids[row] = "someone else"
    labels = LABELS.copy()
    labels[row] = (labels[row] + 1) % 3
    unselected = next(i for i in range(200) if i not in rows)
    harmless = list(TEXTS)
    harmless[unselected] = "nobody looks here"
    for name, options, error in (
        ("text", {"texts": texts}, f"content of 1 .*'t{row}'"),
        ("label", {"labels": labels}, f"content of 1 .*'t{row}'"),
        ("id", {"ids": ids}, f"id of 1 .*'t{row}'"),
        ("short", {"texts": TEXTS[:20], "labels": LABELS[:20]}, "has 20 rows"),
    ):
        changed = write_dataset(tmp_path / f"{name}.parquet", **options)
        with pytest.raises(DatasetMismatchError, match=error):
            train(root, out=tmp_path / "out", dataset=changed, config=TrainConfig(epochs=1), trust_rows=True)
    train(
        root,
        out=tmp_path / "ok",
        dataset=write_dataset(tmp_path / "h.parquet", harmless),
        config=TrainConfig(epochs=1),
        trust_rows=True,
    )


def test_train_needs_to_know_the_dataset(run_folder, tmp_path):
    _, dataset, rows = run_folder
    alone = write_manifest(tmp_path / "alone", dataset, rows[:9], WEIGHTS[:9])
    with pytest.raises(DatasetMismatchError, match="where its dataset lies"):
        train(alone, out=tmp_path / "out", config=TrainConfig(epochs=1))
    assert train(alone, out=tmp_path / "out", dataset=dataset, config=TrainConfig(epochs=1)).samples_seen == 9

"""The reference trainer with each of its models, alone and in several processes."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch

import tamis
from tamis.errors import DamagedManifestError, DataError, NonFiniteLossError, OutputError, RecipeError
from tamis.manifests.canonical import canonical_json, digest
from tamis.manifests.ledger import find_ledger
from tamis.training import Blocks, Images, Texts, TrainConfig, fit, planned
from tamis.training.image import SmallCNN
from tamis.training.learner import Ragged
from tamis.training.lm import Gpt
from tamis.training.ranks import Ranks

KINDS = ("text", "image", "lm")
SCRIPT = Path(__file__).with_name("fit_process.py")


N = 90


def samples_of(kind):
    """Samples of which a model can learn something, and a test set."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, N)
    if kind == "text":
        # No two alike, whose losses would differ by their rounding alone; an empty one has no feature at all.
        texts = ["" if i == 50 else f"{'abc'[label]}word {rng.integers(9)} {i}" for i, label in enumerate(labels)]
        samples = Texts.of(texts, labels)
    elif kind == "image":
        pixels = rng.integers(0, 80, (N, 1, 12, 12), np.uint8)
        pixels[np.arange(N), 0, labels * 3] = 255
        samples = Images(pixels, labels)
    else:
        lengths = rng.integers(1, 9, N)
        tokens = np.concatenate([(start + np.arange(size)) % 11 for start, size in zip(labels, lengths, strict=True)])
        samples = Blocks(Ragged(tokens.astype(np.int32), np.concatenate([[0], np.cumsum(lengths)])))
    return samples, samples.take(np.arange(0, N, 3))


def config_of(kind, **changes):
    options = {
        "epochs": 3,
        "lr": 3e-3,
        "sampler": "seta",
        "num_group": 4,
        "weights": "linupper",
        "width": 32,
        "layers": 1,
    }
    options |= {"batch_size": 12, "checkpoint_every": 4, "warmup_steps": 2, "token_weights": kind == "lm"}
    return TrainConfig(**options | changes)


WEIGHTS = np.linspace(0.5, 2, N).astype(np.float32)


def read(path):
    with pa.ipc.open_file(path) as reader:
        return reader.read_all()


def tensors_of(out):
    (path,) = Path(out).glob("checkpoint.*.safetensors")
    return safetensors.torch.load_file(path)


def start(size, out, kind, kill_at, **changes):
    """Runs `fit_process.py` as torchrun would, with `size` processes on loopback; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    common |= {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(SCRIPT), str(out), kind, str(kill_at), json.dumps(changes)]
    processes = [
        subprocess.Popen(command, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(size)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    return [process.returncode for process in processes], errors


@contextmanager
def exactly():
    """Models in float64: AdamW turns the rounding of a gradient that is zero into a step."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Each model, trained in this process."""
    found = {}
    with exactly():
        for kind in KINDS:
            samples, test = samples_of(kind)
            out = tmp_path_factory.mktemp(kind)
            found[kind] = (out, fit(samples, WEIGHTS, test, config_of(kind), out))
    return found


@pytest.mark.parametrize(("size", "kind"), [*((2, kind) for kind in KINDS), (4, "lm")])
def test_several_processes_train_to_the_model_and_ledger_of_one(alone, tmp_path, kind, size):
    codes, errors = start(size, tmp_path, kind, 0)
    assert codes == [0] * size, errors
    ours, theirs = tensors_of(tmp_path), tensors_of(alone[kind][0])
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")
    one, several = read(alone[kind][1].ledger), read(find_ledger(tmp_path))
    assert one.column_names == several.column_names
    assert one["seen"].equals(several["seen"])
    for name in ("last_loss", "mean_loss", "weight_mean"):
        np.testing.assert_allclose(several[name].to_numpy(), one[name].to_numpy(), rtol=1e-6)


def test_processes_that_are_killed_go_on_where_they_were_with_another_number(alone, tmp_path):
    codes, _ = start(1, tmp_path, "image", 6)
    assert codes == [-signal.SIGKILL]
    steps = int(tensors_of(tmp_path)["learner.optimiser.layers.0.bias.step"])
    assert steps == 4
    codes, errors = start(2, tmp_path, "image", 0)
    assert codes == [0, 0], errors
    ours, theirs = tensors_of(tmp_path), tensors_of(alone["image"][0])
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-9)


def test_processes_stop_after_a_number_of_samples_also_where_epochs_do_not_divide(tmp_path):
    # Epochs of 90 samples for 4 processes: the last batch of each has 10, and two beyond the end.
    codes, errors = start(4, tmp_path, "image", 0, sampler="full", total_samples=201, batch_size=16)
    assert codes == [0] * 4, errors
    assert 201 <= read(find_ledger(tmp_path))["seen"].to_numpy().sum() < 205


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    codes, errors = start(2, tmp_path, "image", 0, batch_size=15)
    assert codes == [1, 1]
    assert "2 processes must be able to share it" in errors[0]


@pytest.mark.parametrize("kind", KINDS)
def test_resumes_bitwise_after_every_single_step(alone, tmp_path, kind):
    samples, test = samples_of(kind)
    config = dataclasses.replace(config_of(kind), checkpoint_every=1)
    steps = []

    class Stop(Exception):  # noqa: N818
        pass

    def stop(progress):
        steps.append(progress.steps)
        raise Stop

    result = None
    with exactly():
        while result is None:
            try:
                result = fit(samples, WEIGHTS, test, config, tmp_path, stop)
            except Stop:
                continue
    assert steps == list(range(1, len(steps) + 1))
    out, whole = alone[kind]
    assert (result.accuracy, result.loss) == (whole.accuracy, whole.loss)
    assert result.ledger.read_bytes() == whole.ledger.read_bytes()
    ours, theirs = tensors_of(tmp_path), tensors_of(out)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("kind", KINDS)
def test_each_model_learns_and_mixed_precision_too(alone, kind):
    samples, test = samples_of(kind)
    config = config_of(kind, epochs=12, sampler="full", lr=None)
    start_loss = fit(samples, WEIGHTS, test, dataclasses.replace(config, lr=1e-12)).loss
    result = fit(samples, WEIGHTS, test, config)
    half = fit(samples, WEIGHTS, test, dataclasses.replace(config, precision="bfloat16"))
    assert result.loss < 0.6 * start_loss
    assert half.loss == pytest.approx(result.loss, rel=0.25, abs=0.05)
    assert half.loss != result.loss
    if kind == "lm":
        assert result.accuracy is None
    else:
        assert result.accuracy > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_of_samples_resumes_after_its_last_step_too(tmp_path, kind):
    samples, test = samples_of(kind)
    config = config_of(kind, total_samples=101, checkpoint_every=1)
    whole = fit(samples, WEIGHTS, test, config, tmp_path / "whole")
    assert whole.samples_seen == 101

    class Stop(Exception):  # noqa: N818
        pass

    def stop(progress):
        if progress.samples_seen == 101:
            raise Stop  # the checkpoint of this step is there, and does not say yet that it was the last

    with pytest.raises(Stop):
        fit(samples, WEIGHTS, test, config, tmp_path / "stopped", stop)
    again = fit(samples, WEIGHTS, test, config, tmp_path / "stopped")
    assert (again.samples_seen, again.accuracy, again.loss) == (101, whole.accuracy, whole.loss)
    ours, theirs = tensors_of(tmp_path / "stopped"), tensors_of(tmp_path / "whole")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_test_set_that_changes_the_model_makes_another_training(tmp_path):
    blocks = samples_of("lm")[0]
    longer = Blocks(Ragged(np.arange(15, dtype=np.int32), np.array([0, 15])))
    fit(blocks, WEIGHTS, None, config_of("lm", epochs=1), tmp_path)
    with pytest.raises(OutputError, match="another training"):
        fit(blocks, WEIGHTS, longer, config_of("lm", epochs=1), tmp_path)


def test_classes_keep_their_names_where_a_test_has_more_or_a_subset_fewer(tmp_path):
    samples = samples_of("image")[0]
    named = Images(samples.pixels, samples.labels, ("a", "b", "c"))
    more = Images(samples.pixels[:4], np.array([0, 1, 2, 3]), ("a", "b", "c", "d"))
    fewer = named.take(np.flatnonzero(named.labels < 2))
    for i, (training, test) in enumerate(((named, more), (fewer, None))):
        weights = np.ones(len(training), np.float32)
        ledger = read(fit(training, weights, test, config_of("image", epochs=1), tmp_path / str(i)).ledger)
        assert set(ledger["elr_class"].to_pylist()) <= {"a", "b", "c", "d"}
    with pytest.raises(DataError, match="must begin alike"):
        fit(named, WEIGHTS, Images(samples.pixels, samples.labels, ("c", "b", "a")), config_of("image"))


def test_moments_of_images_are_numpys():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3, 7, 5), np.uint8)
    mean, std = Images(pixels, np.zeros(50, np.int64))._moments()
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)) / 255)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)) / 255)


def test_a_record_leads_to_no_other_folder(tmp_path):
    samples = samples_of("image")[0]
    fit(samples, WEIGHTS, None, config_of("image", epochs=1), tmp_path)

    def again():
        fit(samples, WEIGHTS, None, config_of("image", epochs=1), tmp_path)

    for name, load in (("ledger.json", lambda: find_ledger(tmp_path)), ("checkpoint.json", again)):
        record = tmp_path / name
        body = json.loads(record.read_bytes())["body"]
        part = body["file"] if "file" in body else body["tensors"]
        part["sha256"] = "../../../../dev/zero".ljust(64, "0")
        record.write_bytes(canonical_json({"body": body, "sha256": digest(body)}))
        with pytest.raises(DamagedManifestError, match="is no sha256"):
            load()


def test_the_recipes_own_pruning_wins_over_the_schedules():
    schedule = {"num_group": 3, "window_scale": 0.5, "prune_ratio": 0.0, "delta": 0.8, "rule": "code"}
    for given, expected in ((None, 0.0), (0.3, 0.3)):
        section = {"model": "text", "sampler": "seta", "prune_ratio": given, "epochs": 4, "lr": None}
        config = planned(SimpleNamespace(record={"recipe": {"train": section}, "schedule": schedule}))
        assert (config.prune_ratio, config.num_group, config.delta, config.rule) == (expected, 3, 0.8, "code")
    ceiling = planned(SimpleNamespace(record={"recipe": {"train": section | {"ceiling": 0.1}}, "schedule": schedule}))
    assert (config.ceiling, ceiling.ceiling) == (0.0, 0.1)
    assert planned(SimpleNamespace(record={"recipe": {}, "schedule": None})).epochs == 12


def test_training_leaves_the_global_generators_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for kind in KINDS:
        samples, test = samples_of(kind)
        fit(samples, WEIGHTS, test, config_of(kind, epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_images_of_any_size_and_channels():
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 1), (3, 5, 9), (4, 40, 33)):
        images = Images(rng.integers(0, 256, (8, *shape), np.uint8), np.arange(8) % 3)
        assert fit(images, np.ones(8, np.float32), images, TrainConfig(epochs=1)).samples_seen == 8
    assert sum(p.numel() for p in SmallCNN(10, np.zeros(1), np.ones(1)).parameters()) == 206_922


def test_a_gpt_sees_nothing_of_a_token_or_after_it():
    torch.manual_seed(0)
    model = Gpt(17, 12, 64, 2).eval()
    tokens = torch.randint(0, 17, (3, 12))
    logits = model(tokens)
    for at in (0, 5, 11):
        other = tokens.clone()
        other[:, at] = (other[:, at] + 1) % 17
        changed = (model(other) - logits).abs().amax((0, 2))
        assert changed[: at + 1].max() < 1e-5
        assert at == 11 or changed[at + 1] > 1e-4


def test_a_blocks_loss_is_the_mean_over_its_tokens_whatever_stands_beside_it():
    blocks = Blocks(Ragged(np.array([1, 2, 3, 4, 0, 2], np.int32), np.array([0, 1, 4, 6])))
    torch.manual_seed(0)
    model = Gpt(5, 3, 32, 1).eval()
    together = blocks.outcome(model, np.arange(3), torch.device("cpu"))
    assert together.token_counts.tolist() == [1, 3, 2]
    for i, tokens in enumerate(([1], [2, 3, 4], [0, 2])):
        alone = blocks.outcome(model, np.array([i]), torch.device("cpu"))
        logits = model(torch.tensor([tokens]))[0]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(tokens))
        torch.testing.assert_close(alone.losses[0], expected)
        torch.testing.assert_close(together.losses[i], expected)


def test_the_ledgers_elr_target_is_the_papers(tmp_path):
    """t <- 0.7 t + 0.3 p from 0; with so small a learning rate that the probabilities p stay as they are."""
    few = samples_of("image")[0].take(np.arange(6))
    config = TrainConfig(epochs=5, batch_size=6, lr=1e-9, weight_decay=0.0)
    model = few.learner(None, config, torch.device("cpu"), Ranks())
    p = model.outcome(few, np.arange(6)).logits.softmax(1).detach().numpy()
    ledger = read(fit(few, np.ones(6, np.float32), None, config, tmp_path).ledger)
    np.testing.assert_allclose(np.array(ledger["elr_target"].to_pylist()), (1 - 0.7**5) * p, rtol=1e-4)
    assert ledger["elr_class"].to_pylist() == [str(i) for i in p.argmax(1)]


def test_elr_marks_wrong_labels(tmp_path):
    samples, _ = samples_of("image")
    wrong = np.zeros(len(samples), bool)
    wrong[::9] = True
    labels = np.where(wrong, (samples.labels + 1) % 3, samples.labels)
    names = ("no", "yes", "so-so")
    noisy = Images(samples.pixels, labels, names)
    ledger = read(fit(noisy, WEIGHTS * 0 + 1, None, TrainConfig(epochs=8, batch_size=10), tmp_path).ledger)
    suspects = np.array(ledger["elr_class"].to_pylist()) != np.array(names)[labels]
    assert suspects[wrong].mean() > 0.8
    assert suspects[~wrong].mean() < 0.1


def test_a_damaged_ledger_is_refused(alone, tmp_path):
    samples, _ = samples_of("text")
    path = fit(samples, WEIGHTS, None, config_of("text", epochs=1), tmp_path).ledger
    assert find_ledger(tmp_path) == path
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedManifestError, match="ledger"):
        find_ledger(tmp_path)
    path.write_bytes(data)
    record = tmp_path / "ledger.json"
    record.write_bytes(record.read_bytes().replace(b'"rows":90', b'"rows":91'))
    with pytest.raises(DamagedManifestError, match="ledger"):
        find_ledger(tmp_path)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Images(np.zeros((3, 8, 8), np.uint8), np.zeros(3, np.int64)), "shape"),
        (lambda: Images(np.zeros((3, 1, 8, 8), np.float32), np.zeros(3, np.int64)), "float32"),
        (lambda: Images(np.zeros((0, 1, 8, 8), np.uint8), np.zeros(0, np.int64)), "0 images"),
        (lambda: Blocks(Ragged(np.zeros(0, np.int32), np.zeros(1, np.int64))), "0 blocks"),
        (lambda: Blocks(Ragged(np.array([1], np.int32), np.array([0, 1, 1]))), "shortest of 0"),
        (lambda: Blocks(Ragged(np.array([-1], np.int32), np.array([0, 1]))), "least token -1"),
        (lambda: Blocks(Ragged(np.array([2**31 - 1], np.int32), np.array([0, 1]))), "largest token is 2147483647"),
        (lambda: Blocks(Ragged(np.zeros(9000, np.int32), np.array([0, 9000]))), "longest block has 9000"),
    ],
)
def test_samples_refuse(make, error):
    with pytest.raises(DataError, match=error):
        make()


def test_fit_refuses_samples_that_do_not_fit_together():
    images, blocks = samples_of("image")[0], samples_of("lm")[0]
    with pytest.raises(DataError, match="one kind"):
        fit(images, WEIGHTS, blocks, config_of("image"))
    other = Images(np.zeros((2, 1, 9, 9), np.uint8), np.zeros(2, np.int64))
    with pytest.raises(DataError, match="image_size"):
        fit(images, WEIGHTS, other, config_of("image"))
    with pytest.raises(NonFiniteLossError, match="at step"):
        fit(images, WEIGHTS, None, config_of("image", lr=1e30))


# --- from texts to a trained language model ---


@pytest.fixture
def corpus(tmp_path):
    rng = np.random.default_rng(0)
    words = [f"{a}{b}{c}" for a in "bdfg" for b in "aeiou" for c in "lmnr"]
    texts = [" ".join(rng.choice(words[:20] if i % 2 else words[40:], 30)) + " déjà-vu 😀" for i in range(60)]
    texts[7] = None
    path = tmp_path / "corpus.parquet"
    pa.parquet.write_table(pa.table({"body": texts}), path)
    return path, texts


def test_packing_loses_nothing(corpus, tmp_path):
    from tokenizers import Tokenizer

    path, texts = corpus
    packed = tamis.training.pack(path, tmp_path / "out", text="body", block=16, vocabulary=400)
    table = pa.parquet.read_table(packed.path)
    lists = table["tokens"].to_pylist()
    assert {len(tokens) for tokens in lists[:-1]} == {16}
    assert len(lists) == packed.blocks
    tokenizer = Tokenizer.from_file(str(packed.tokenizer))
    end = tokenizer.token_to_id("<|endoftext|>")
    documents, current, places = [], [], []
    for tokens, document in zip(lists, table["document"].to_pylist(), strict=True):
        # A block's document is the one that its first token is of.
        places.append((document, len(documents)))
        for token in tokens:
            if token == end:
                documents.append(tokenizer.decode(current))
                current = []
            else:
                current.append(token)
    assert documents == [text for text in texts if text is not None]
    there = [i for i, text in enumerate(texts) if text is not None]
    assert all(there[number] == document for document, number in places)
    assert packed.documents == 59
    again = tamis.training.pack(path, tmp_path / "again", text="body", block=16, vocabulary=400)
    assert again.path.read_bytes() == packed.path.read_bytes()
    other = tamis.training.pack(path, tmp_path / "other", text="body", block=5, tokenizer=packed.tokenizer)
    assert other.tokens == packed.tokens == sum(map(len, lists))
    with pytest.raises(OutputError, match="there already"):
        tamis.training.pack(path, tmp_path / "out", text="body")


def test_packing_with_a_tokenizer_that_cuts_and_texts_that_hold_an_end_mark(tmp_path):
    from tokenizers import Tokenizer

    texts = ["one two three " * 40, "a <|endoftext|> b", "c"]
    path = tmp_path / "texts.parquet"
    pa.parquet.write_table(pa.table({"text": texts}), path)
    first = tamis.training.pack(path, tmp_path / "first", block=8, vocabulary=300)
    cutting = Tokenizer.from_file(str(first.tokenizer))
    cutting.enable_truncation(5)
    cutting.enable_padding(length=50)
    cutting.save(str(tmp_path / "cutting.json"))
    second = tamis.training.pack(path, tmp_path / "second", block=8, tokenizer=tmp_path / "cutting.json")
    assert pa.parquet.read_table(second.path).equals(pa.parquet.read_table(first.path))
    assert first.documents == second.documents == 3
    flat = pa.parquet.read_table(first.path)["tokens"].combine_chunks().flatten().to_pylist()
    assert flat.count(cutting.token_to_id("<|endoftext|>")) == 3


def test_packing_refuses(corpus, tmp_path):
    path, _ = corpus
    with pytest.raises(RecipeError, match="at least 257"):
        tamis.training.pack(path, tmp_path / "a", text="body", vocabulary=100)
    with pytest.raises(DataError, match="no column"):
        tamis.training.pack(path, tmp_path / "b", text="boddy")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DataError, match="not a tokenizer"):
        tamis.training.pack(path, tmp_path / "c", text="body", tokenizer=tmp_path / "broken.json")


def test_a_language_model_trains_on_selected_blocks(corpus, tmp_path):
    path, _ = corpus
    packed = tamis.training.pack(path, tmp_path / "packed", text="body", block=16, vocabulary=400)
    recipe = {
        "name": "lm",
        "dataset": {"path": str(packed.path), "tokens": "tokens", "text": "text"},
        "stages": [
            {"kind": "embed", "dim": 8},
            {"kind": "cluster", "n_clusters": 2},
            {"kind": "select", "method": "facility_location", "budget": 0.5},
        ],
        "train": {"model": "lm", "epochs": 2, "batch_size": 8, "width": 32, "layers": 1, "token_weights": True},
    }
    tamis.run(recipe, tmp_path / "run", executor="sync")
    manifest = tamis.open_manifest(tmp_path / "run")
    config = planned(manifest)
    assert (config.width, config.layers, config.token_weights, config.lr) == (32, 1, True, None)
    result = tamis.train(tmp_path / "run", out=tmp_path / "training", test=packed.path)
    assert result.accuracy is None
    ledger = read(result.ledger)
    assert ledger["sample_id"].to_pylist() == manifest.select["sample_id"].to_pylist()
    assert "elr_target" not in ledger.column_names
    scored = {**recipe, "stages": [{"kind": "score", "from": str(tmp_path / "training"), "missing": "median"}]}
    tamis.run(scored, tmp_path / "scored", executor="sync")
    assert tamis.open_manifest(tmp_path / "scored").select.num_rows == packed.blocks


def test_an_image_model_trains_on_selected_images(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(60):
        name = "light" if i % 2 else "dark"
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 90, (10, 10), np.uint8) + (i % 2) * 100
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / name / f"{i:03}.png")
    recipe = {
        "name": "images",
        "dataset": {"path": str(tmp_path / "images"), "id": "path", "image": "image", "label": "label"},
        "stages": [{"kind": "select", "method": "random", "budget": 0.5}],
        "train": {"model": "image", "epochs": 10, "batch_size": 6, "sampler": "full", "image_size": 12},
    }
    tamis.run(recipe, tmp_path / "run", executor="sync")
    result = tamis.train(tmp_path / "run", out=tmp_path / "training", test=tmp_path / "images")
    assert result.accuracy > 0.95
    assert read(result.ledger).num_rows == 30
    moved = tmp_path / "moved"
    (tmp_path / "images").rename(moved)
    trusted = tamis.train(
        tmp_path / "run", out=tmp_path / "again", dataset=moved, trust_rows=True, config=TrainConfig(epochs=1)
    )
    assert trusted.samples_seen == 30


def test_the_command_line_under_torchrun(tmp_path):
    """`torchrun -m tamis train`: two processes, exit codes 0, one of them speaks."""
    texts = [f"{'good' if i % 2 else 'bad'} word{i % 7}" for i in range(64)]
    labels = [str(i % 2) for i in range(64)]
    pa.parquet.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "data.parquet")
    recipe = {
        "name": "two",
        "dataset": {"path": str(tmp_path / "data.parquet"), "text": "text", "label": "label"},
        "stages": [{"kind": "select", "method": "random", "budget": 0.5}],
        "train": {"epochs": 2, "batch_size": 8},
    }
    tamis.run(recipe, tmp_path / "run", executor="sync")
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1",
               "-m", "tamis", "train", str(tmp_path / "run"), "--json", "--out", str(tmp_path / "out")]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["samples_seen"] > 32
    assert find_ledger(tmp_path / "out") == Path(facts["ledger"])

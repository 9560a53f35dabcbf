"""Trainings that draw INGENIOUS's subset again every epoch: `train: {sampler: ingenious}`."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.errors import DataError, DatasetMismatchError, RecipeError
from tamis.pipelines.recipe import load_recipe
from tamis.training import Blocks, TrainConfig, fit, planned
from tamis.training.compare import compare
from tamis.training.held_out import hold_out
from tamis.training.learner import Ragged
from tamis.training.ranks import Ranks
from tamis.training.redraws import Redraws
from tamis.training.rows import read_any
from tamis.training.samplers import PlanSampler
from tamis.training.trainer import train

EMBED = {"kind": "embed", "encoder": "lsa", "dim": 8}
INGENIOUS = {"kind": "select", "method": "ingenious", "budget": 60, "partition_rows": 80, "temperature": 0.1}
TRAIN = {"sampler": "ingenious", "weights": "uniform", "epochs": 3, "batch_size": 16}


def recipe_of(dataset, *stages, **changes):
    fields = {"path": str(dataset), "id": "id", "text": "text", "label": "label"}
    return {"name": "t", "seed": 3, "dataset": fields, "stages": list(stages), "train": {**TRAIN, **changes}}


@pytest.fixture(scope="module")
def run(small_dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    tamis.run(recipe_of(small_dataset, EMBED, INGENIOUS), out, executor="sync")
    return out


@pytest.fixture(scope="module")
def manifest(run):
    return tamis.open_manifest(run)


def ledger_of(result):
    with pa.ipc.open_file(result.ledger) as reader:
        return reader.read_all()


def expected_seen(manifest, seed, epochs):
    """How often each row of the dataset is drawn, by the sampler for one's own loops."""
    sampler = tamis.IngeniousSampler(manifest, seed=seed)
    seen = np.zeros(manifest.audit.num_rows, np.int64)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        np.add.at(seen, list(sampler), 1)
    return seen


def test_every_epoch_is_a_draw_of_the_sampler_for_own_loops(run, manifest, tmp_path):
    result = train(run, out=tmp_path, config=replace(planned(manifest), seed=5))
    assert result.samples_seen == 3 * 60
    ledger = ledger_of(result)
    seen = np.zeros(manifest.audit.num_rows, np.int64)
    seen[ledger["row"].to_numpy()] = ledger["seen"].to_numpy()
    np.testing.assert_array_equal(seen, expected_seen(manifest, 5, 3))
    assert (seen[manifest.select["row"].to_numpy()] >= 1).all()
    assert np.count_nonzero(seen) > 60
    assert ledger["sample_id"].to_pylist() == [f"s{row}" for row in ledger["row"].to_pylist()]


def test_a_stopped_training_goes_on_with_the_same_draws(run, manifest, tmp_path):
    config = replace(planned(manifest), checkpoint_every=1)

    def stop(progress):
        if progress.epoch == 1 and progress.position == 32:
            raise KeyboardInterrupt

    whole = train(run, out=tmp_path / "whole", config=config)
    with pytest.raises(KeyboardInterrupt):
        train(run, out=tmp_path / "stopped", config=config, on_progress=stop)
    gone_on = train(run, out=tmp_path / "stopped", config=config)
    assert ledger_of(gone_on).equals(ledger_of(whole))
    names = [{path.name for path in folder.iterdir() if "safetensors" in path.name} for folder in tmp_path.iterdir()]
    assert names[0] == names[1] != set()  # content-named


def test_two_processes_share_the_draws(manifest):
    policy = Redraws.of(manifest).policy(7)
    alone, *both = (
        PlanSampler(700, policy, seed=7, epoch_size="pruned", num_replicas=size, rank=rank)
        for rank, size in ((0, 1), (0, 2), (1, 2))
    )
    for epoch in range(3):
        for sampler in (alone, *both):
            sampler.set_epoch(epoch)
        order = list(alone)
        assert [list(sampler) for sampler in both] == [order[::2], order[1::2]]


def test_rows_of_another_dataset_can_be_trusted(run, manifest, small_dataset, tmp_path):
    table = pq.read_table(small_dataset)
    pq.write_table(table.append_column("more", pa.array(range(700))), tmp_path / "more.parquet")
    options = {"dataset": tmp_path / "more.parquet", "trust_rows": True, "config": replace(planned(manifest), epochs=2)}
    assert train(run, out=tmp_path / "out", **options).samples_seen == 120
    # A row that only a later draw could take is checked too.
    other = int(np.flatnonzero(manifest.audit["decision"].to_numpy() != 0)[0])
    texts = table["text"].to_pylist()
    texts[other] = "something else"
    pq.write_table(table.set_column(1, "text", pa.array(texts)), tmp_path / "more.parquet")
    with pytest.raises(DatasetMismatchError, match=f"'s{other}'"):
        train(run, out=tmp_path / "out", **options)


def test_a_comparison_trains_it_as_the_recipe_says_and_never_on_what_is_held_out(run, manifest, small_dataset):
    facts = compare([run], seeds=2, epochs=2, as_recipe=True, stratified=False, threads=1)
    row = facts["results"][-1]
    assert row["name"] == "selected, drawn again"
    samples, contents = read_any(manifest, small_dataset, np.arange(700), "text")
    held = hold_out(contents, samples.labels, 0.2)
    whole = Redraws.of(manifest)
    redraws = whole.only(~held[whole.rows])
    assert 0 < redraws.chosen.sum() == row["size"] < 60
    config = TrainConfig(
        epochs=2, batch_size=16, seed=2, sampler="ingenious", lr=None, total_samples=row["samples_seen"]
    )
    by_hand = fit(
        samples.take(redraws.rows),
        np.ones(len(redraws.rows), np.float32),
        samples.take(np.flatnonzero(held)),
        config,
        redraws=redraws.at(np.arange(len(redraws.rows))),
    )
    assert row["accuracies"][1] == by_hand.accuracy


def test_the_command_line_trains_it(run, cli, tmp_path):
    facts = json.loads(cli("train", run, "--out", tmp_path, "--json").stdout)
    assert facts["samples_seen"] == facts["whole_epochs"] == 180


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([EMBED, {"kind": "select", "method": "facility_location", "budget": 60}], "let the last select stage be"),
        ([EMBED, INGENIOUS, {"kind": "select", "method": "random", "budget": 30}], "let the last select stage be"),
        ([EMBED, {"kind": "score", "method": "proxy"}, INGENIOUS, {"kind": "reweight"}], "leave the stage out"),
    ],
)
def test_recipes_that_cannot_draw_again_are_refused(stages, message, small_dataset):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_of(small_dataset, *stages))


def test_manifests_that_cannot_be_drawn_from_again_are_refused(small_dataset, tmp_path):
    config = TrainConfig(epochs=1, sampler="ingenious")
    drawn = {"kind": "select", "method": "random", "budget": 30}
    tamis.run(recipe_of(small_dataset, drawn, sampler="full"), tmp_path / "random", executor="sync")
    with pytest.raises(DataError, match="not drawn by INGENIOUS"):
        train(tmp_path / "random", out=tmp_path / "out", config=config)
    stages = [EMBED, {"kind": "score", "method": "proxy"}, INGENIOUS, {"kind": "reweight"}]
    tamis.run(recipe_of(small_dataset, *stages, sampler="full"), tmp_path / "weighted", executor="sync")
    with pytest.raises(DataError, match="have no weight in it"):
        train(tmp_path / "weighted", out=tmp_path / "out", config=config)


def test_in_memory_the_draws_must_be_given_to_this_sampler_alone(manifest):
    blocks = Blocks(Ragged(np.arange(20, dtype=np.int32), np.arange(0, 21, 2)))
    redraws = Redraws.of(manifest)
    for sampler, given in (("ingenious", None), ("full", redraws)):
        with pytest.raises(RecipeError, match="needs them"):
            fit(blocks, np.ones(10, np.float32), None, TrainConfig(epochs=1, sampler=sampler), redraws=given)
    with pytest.raises(DataError, match="there are 10 samples"):
        fit(blocks, np.ones(10, np.float32), None, TrainConfig(epochs=1, sampler="ingenious"), redraws=redraws)


def test_the_model_is_of_the_same_size_whatever_blocks_are_taken():
    blocks = Blocks(Ragged(np.array([1, 2, 3, 9, 0], np.int32), np.array([0, 1, 4, 5])))
    shapes = [
        {
            name: tensor.shape
            for name, tensor in part.learner(None, TrainConfig(epochs=1), "cpu", Ranks()).tensors().items()
        }
        for part in (blocks, blocks.take(np.array([2])), blocks.take(np.array([0])).take(np.array([0])))
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    assert shapes[0]["model.tokens.weight"][0] == 10
    few = blocks.take(np.array([2]))
    assert few.digest() != Blocks(few.tokens).digest() == Blocks(few.tokens, 1, 1).digest()

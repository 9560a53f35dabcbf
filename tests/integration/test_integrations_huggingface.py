"""Our samplers in the real transformers Trainer. Run as a script with OPTIONS it is one process of a training."""

import json
import os
import sys
from functools import cache
from itertools import pairwise

import datasets
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from tamis.errors import DataError, RecipeError
from tamis.integrations.huggingface import STATE, SamplerTrainer, causal_lm_losses
from tamis.training import InfoBatchSampler, SeTaSampler

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_accelerator")
N, D, CLASSES, EPOCHS, BATCH = 53, 5, 3, 4, 8
VOCABULARY, TOKENS = 11, 6


class Classifier(torch.nn.Module):
    """Returns what transformers' own models do, for given labels the mean loss too."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(1)
        self.net = torch.nn.Linear(D, CLASSES, dtype=torch.float64)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, features, labels=None):
        logits = self.net(self.dropout(features.double()))
        if labels is None:
            return {"logits": logits}
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def make_gpt():
    torch.manual_seed(1)
    sizes = {"vocab_size": VOCABULARY, "n_positions": TOKENS, "n_embd": 8, "n_layer": 1, "n_head": 2}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **none)).double()


@cache
def make_data():
    rng = np.random.default_rng(0)
    # A column that the model does not take, as datasets have them.
    return datasets.Dataset.from_dict(
        {
            "features": rng.standard_normal((N, D)).astype(np.float32),
            "label": rng.integers(0, CLASSES, N),
            "number": np.arange(N),
        }
    )


@cache
def make_sequences():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (N, TOKENS))
    labels = np.where(np.arange(TOKENS) < rng.integers(2, TOKENS + 1, N)[:, None], tokens, -100)
    return datasets.Dataset.from_dict({"input_ids": tokens, "labels": labels})


def make_sampler(kind):
    if kind == "infobatch":
        return InfoBatchSampler(N, epochs=EPOCHS, seed=5)
    size = "fixed" if kind == "fixed" else "pruned"
    return SeTaSampler(N, epochs=EPOCHS, seed=5, num_group=4, strategy="linupper", epoch_size=size)


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **others):  # noqa: ARG002 - as the Trainer calls it
        control.should_training_stop |= state.global_step == self.step


class Recording(SamplerTrainer):
    """Notes the positions of what it trains on."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.batches = []

    def training_step(self, model, inputs, *args, **options):
        self.batches.append((self.sampler.epoch, inputs["tamis_ids"].tolist()))
        return super().training_step(model, inputs, *args, **options)


def arguments(folder, **options):
    given = {
        "output_dir": str(folder), "num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH, "optim": "sgd",
        "learning_rate": 0.3, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
        "logging_strategy": "no", "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(**given | options)


def make_trainer(
    folder, kind="seta", sampler=None, stop=None, model=None, data=None, losses=None, weigh=False, **options
):
    args = arguments(folder, **options)
    more = {} if losses is None else {"losses": losses, "weigh_tokens": weigh}
    return Recording(
        model=Classifier() if model is None else model,
        args=args,
        train_dataset=make_data() if data is None else data,
        callbacks=None if stop is None else [Stop(stop)],
        sampler=make_sampler(kind) if sampler is None else sampler,
        **more,
    )


def train(folder, kind="seta", resume=None, **options):
    trainer = make_trainer(folder, kind, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def plain(kind, losses_of, model, accumulation=1, batch=BATCH):
    """The same training without the library; `losses_of` gives losses and token counts of positions."""
    sampler = make_sampler(kind)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.3)
    loader = DataLoader(range(N), sampler=sampler, batch_size=batch)
    batches = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for micros in list_of(loader, accumulation):
            for ids in micros:
                losses, counts = losses_of(model, ids)
                (sampler.step(ids, losses, counts) / len(micros)).backward()
                batches.append((epoch, ids.tolist()))
            optimiser.step()
            optimiser.zero_grad()
    return model, sampler, batches


def list_of(loader, accumulation):
    batches = list(loader)
    return [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]


def classification(model, ids):
    part = make_data()[ids.tolist()]
    logits = model(torch.tensor(part["features"], dtype=torch.float32))["logits"]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(part["label"]), reduction="none"), None


def assert_same(expected, model, sampler, tolerance=0.0):
    for name, value in expected[0].state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=tolerance, atol=tolerance)
    assert sampler.state_dict() == expected[1].state_dict()
    for name, value in expected[1].scores.state_dict().items():
        np.testing.assert_allclose(sampler.scores.state_dict()[name], value, rtol=1e-6 if tolerance else 0)


def outcome(trainer):
    return trainer.model, trainer.sampler, trainer.batches


def lengths_of(trainer):
    return [sum(epoch == e for e, _ in trainer.batches) for epoch in range(EPOCHS)]


@pytest.mark.parametrize("kind", ["fixed", "seta", "infobatch"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_trains_to_the_weights_of_a_plain_loop(tmp_path, kind, accumulation):
    expected = plain(kind, classification, Classifier(), accumulation)
    trainer = train(tmp_path, kind, gradient_accumulation_steps=accumulation)
    assert trainer.batches == expected[2]
    assert_same(expected, trainer.model, trainer.sampler, 1e-12 if accumulation > 1 else 0.0)
    assert trainer.state.global_step == sum(-(-length // accumulation) for length in lengths_of(trainer))
    assert trainer.state.epoch == EPOCHS


def test_epochs_are_as_long_as_their_plans(tmp_path):
    class Noting(TrainerCallback):
        planned = ()

        def on_epoch_end(self, args, state, control, **others):  # noqa: ARG002 - as the Trainer calls it
            self.planned = (*self.planned, trainer.sampler.plan.indices.size)

    trainer = make_trainer(tmp_path)
    noting = Noting()
    trainer.add_callback(noting)
    trainer.train()
    lengths = [sum(len(ids) for e, ids in trainer.batches if e == epoch) for epoch in range(EPOCHS)]
    assert tuple(lengths) == noting.planned
    assert any(one < other for one, other in pairwise(lengths))
    assert any(one > other for one, other in pairwise(lengths))


@pytest.mark.parametrize("epochs", [2.5, 4])
def test_saves_at_the_end_although_epochs_were_shorter_than_the_first(tmp_path, epochs):
    trainer = train(tmp_path, "infobatch", num_train_epochs=epochs, save_strategy="steps", save_steps=1)
    lengths = lengths_of(trainer)
    end = trainer.state.global_step
    assert end == len(trainer.batches) < EPOCHS * lengths[0]
    whole = -(-len(trainer.sampler) // BATCH)  # of the last epoch
    assert lengths[trainer.sampler.epoch] == (whole if epochs == 4 else -(-whole // 2))
    assert (tmp_path / f"checkpoint-{end}" / STATE).exists()
    last = str(tmp_path / f"checkpoint-{end - 1}")
    rest = train(tmp_path / "rest", "infobatch", last, num_train_epochs=epochs, save_strategy="steps", save_steps=50)
    assert rest.batches == trainer.batches[end - 1 :]
    assert (tmp_path / "rest" / f"checkpoint-{end}" / STATE).exists()


def test_max_steps_are_reached_with_epochs_shorter_than_the_first(tmp_path):
    trainer = train(tmp_path, "infobatch", max_steps=4 * -(-N // BATCH))
    assert trainer.state.global_step == 4 * -(-N // BATCH)
    assert trainer.sampler.epoch == 4


def test_takes_any_map_style_dataset(tmp_path):
    expected = train(tmp_path)
    rows = [make_data()[i] for i in range(N)]
    assert "number" in rows[0]  # what the model does not take is left out here too
    found = train(tmp_path, data=rows)
    assert_same(outcome(expected), found.model, found.sampler)


@pytest.mark.parametrize("weigh", [False, True])
def test_trains_a_causal_language_model(tmp_path, weigh):
    data = make_sequences()

    def losses_of(model, ids):
        part = data[ids.tolist()]
        tokens, labels = torch.tensor(part["input_ids"]), torch.tensor(part["labels"])
        log_p = torch.log_softmax(model(input_ids=tokens).logits, -1)
        losses, counts = [], []
        for row, label in zip(log_p, labels, strict=True):
            taken = [-row[t - 1, label[t]] for t in range(1, TOKENS) if label[t] != -100]
            losses.append(torch.stack(taken).mean())
            counts.append(len(taken))
        return torch.stack(losses), torch.tensor(counts) if weigh else None

    expected = plain("seta", losses_of, make_gpt(), accumulation=2)
    trainer = train(
        tmp_path, model=make_gpt(), data=data, losses=causal_lm_losses, weigh=weigh, gradient_accumulation_steps=2
    )
    assert trainer.batches == expected[2]
    assert_same(expected, trainer.model, trainer.sampler, 1e-10)


def test_weighed_by_tokens_it_is_the_loss_of_the_trainer_alone(tmp_path):
    data = make_sequences()
    trainer = make_trainer(tmp_path, "infobatch", model=make_gpt(), data=data, losses=causal_lm_losses, weigh=True)
    rows = data[:BATCH]
    inputs = {name: torch.tensor(rows[name]) for name in ("input_ids", "labels")}
    ours = trainer.compute_loss(trainer.model, {**inputs, "tamis_ids": torch.arange(BATCH)})
    theirs = trainer.compute_loss(trainer.model, inputs)
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-6, atol=0)  # the library rounds to float32


@pytest.mark.parametrize(("kind", "accumulation"), [("fixed", 2), ("seta", 1), ("seta", 2), ("infobatch", 1)])
def test_resumes_from_every_checkpoint(tmp_path, kind, accumulation):
    options = {"gradient_accumulation_steps": accumulation}
    whole = train(tmp_path, kind, model=Classifier(dropout=0.2), save_strategy="steps", save_steps=1, **options)
    assert (tmp_path / "checkpoint-1" / STATE).exists()
    checkpoints = list(tmp_path.glob("checkpoint-*"))
    assert len(checkpoints) == whole.state.global_step
    ends = np.cumsum(lengths_of(whole)).tolist()
    for path in checkpoints:
        step = int(path.name.removeprefix("checkpoint-"))
        if accumulation == 1 and step not in ends and step % 5:
            continue  # for time
        rest = train(tmp_path / "rest", kind, resume=str(path), model=Classifier(dropout=0.2), **options)
        done = len(whole.batches) - len(rest.batches)
        assert rest.batches == whole.batches[done:]
        assert_same(outcome(whole), rest.model, rest.sampler)
        assert rest.state.global_step == whole.state.global_step
        assert rest.state.epoch == whole.state.epoch == EPOCHS


def test_resumes_with_another_batch_size(tmp_path):
    whole = train(tmp_path, save_strategy="steps", save_steps=9)
    rest = train(
        tmp_path / "rest", resume=str(tmp_path / "checkpoint-9"), per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    taken = [i for epoch, ids in whole.batches[:9] if epoch == 1 for i in ids]
    left = [i for epoch, ids in rest.batches if epoch == 1 for i in ids]
    assert sorted(taken + left) == sorted(i for epoch, ids in whole.batches if epoch == 1 for i in ids)
    assert rest.sampler.epoch == EPOCHS - 1
    assert rest.state.epoch == EPOCHS


def test_workers_fetch_what_the_sampler_yields(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 9}
    whole = train(tmp_path, dataloader_num_workers=2, **options)
    assert whole.batches == train(tmp_path / "alone").batches
    rest = train(tmp_path / "rest", resume=str(tmp_path / "checkpoint-9"), dataloader_num_workers=2)
    assert rest.batches == whole.batches[9:]
    assert_same(outcome(whole), rest.model, rest.sampler)


def test_a_second_training_begins_anew(tmp_path):
    sampler = InfoBatchSampler(N, epochs=EPOCHS, seed=5, prune_ratio=0.9, delta=0.25)
    logging = {"logging_strategy": "steps", "logging_steps": 1, "lr_scheduler_type": "linear"}
    trainer = train(tmp_path, sampler=sampler, stop=9, **logging)
    assert len(trainer.batches) == 9
    trainer.pop_callback(Stop)
    trainer.batches = []
    trainer.train()
    # The losses are known now, so that the first epoch is pruned, and the last one is the longest.
    lengths = lengths_of(trainer)
    assert lengths[1:] == [7, 7, 7]
    assert 4 * lengths[0] < lengths[0] + 14
    assert trainer.state.global_step == sum(lengths)
    # The learning rates count on four epochs like the first.
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    np.testing.assert_allclose(rates[:3], [0.3 * (1 - i / (4 * lengths[0])) for i in range(3)])
    assert trainer.sampler.position == N


def test_evaluates_as_without_the_sampler(tmp_path):
    options = {"model": Classifier(), "args": arguments(tmp_path)}
    expected = Trainer(**options, eval_dataset=make_data()).evaluate()
    ours = SamplerTrainer(**options, train_dataset=make_data(), eval_dataset=make_data(), sampler=make_sampler("seta"))
    assert ours.evaluate()["eval_loss"] == expected["eval_loss"]


def test_two_processes_train_to_the_weights_of_one_and_one_continues(run, tmp_path):
    expected = plain("seta", classification, Classifier(), accumulation=2)
    first, second = run(2, "two", save_steps=5, per_device_train_batch_size=BATCH // 2)
    pairs = zip(first["batches"], second["batches"], strict=True)
    for both, (epoch, batch) in zip(pairs, expected[2], strict=True):
        assert {e for e, _ in both} == {epoch}
        joined = [i for pair in zip(both[0][1], both[1][1], strict=True) for i in pair]
        assert joined[: len(batch)] == batch
    for process in (first, second):
        assert_same((expected[0].net, expected[1]), process["net"], process["sampler"], 1e-12)
    rest = train(tmp_path / "rest", resume=str(tmp_path / "checkpoint-5"), gradient_accumulation_steps=2)
    assert rest.batches == expected[2][9:]  # the second epoch but its first step
    assert_same(expected, rest.model, rest.sampler, 1e-12)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("label_smoothing_factor", 0.1),
        ("train_sampling_strategy", "sequential"),
        ("ignore_data_skip", True),
        ("auto_find_batch_size", True),
    ],
)
def test_refuses_what_would_not_be_done(tmp_path, option, value):
    model = make_gpt() if option == "label_smoothing_factor" else None
    with pytest.raises(RecipeError, match=f"{option} was given, but the sampler decides"):
        make_trainer(tmp_path, model=model, **{option: value})


def test_refuses_other_parallelism_and_searches(tmp_path):
    class Halved(SamplerTrainer):
        def get_total_train_batch_size(self, args):
            return super().get_total_train_batch_size(args) // 2

    with pytest.raises(RecipeError, match="tensor, context or sequence parallelism was given"):
        Halved(model=Classifier(), args=arguments(tmp_path), train_dataset=make_data(), sampler=make_sampler("seta"))
    with pytest.raises(RecipeError, match="make a trainer and a sampler for each trial"):
        make_trainer(tmp_path).train(trial={"learning_rate": 0.1})


def test_refuses_samplers_that_do_not_fit(tmp_path):
    with pytest.raises(RecipeError, match="sampler is SequentialSampler; it must be a sampler of tamis"):
        make_trainer(tmp_path, sampler=torch.utils.data.SequentialSampler(range(N)))
    other = SeTaSampler(N, epochs=EPOCHS, num_replicas=2, rank=1)
    with pytest.raises(RecipeError, match=r"process 1 of 2, but this is process 0 of 1; .* after the TrainingArgum"):
        make_trainer(tmp_path, sampler=other)
    with pytest.raises(DataError, match=f"train_dataset has {N} samples, and the sampler was made for 7"):
        train(tmp_path, sampler=SeTaSampler(7, epochs=EPOCHS))
    with pytest.raises(RecipeError, match="in_order=False"):
        train(tmp_path, dataloader_in_order=False, dataloader_num_workers=1)


def test_refuses_a_checkpoint_without_a_sampler(tmp_path):
    Trainer(
        model=Classifier(), args=arguments(tmp_path, max_steps=1, save_strategy="steps", save_steps=1),
        train_dataset=make_data(),
    ).train()  # fmt: skip
    with pytest.raises(RecipeError, match=rf"{STATE} does not exist: the checkpoint is of a training without"):
        train(tmp_path, resume=True)


def test_refuses_sequences_without_a_token_to_train_on(tmp_path):
    data = make_sequences().to_dict()
    data["labels"][20] = [3, *[-100] * (TOKENS - 1)]  # the first token is not predicted
    data = datasets.Dataset.from_dict(data)
    with pytest.raises(DataError, match=r"the sequences at \[20\] have no token to train on, all labels are -100"):
        train(tmp_path, model=make_gpt(), data=data, losses=causal_lm_losses)


def test_refuses_losses_of_another_task(tmp_path):
    with pytest.raises(DataError, match=r"logits have shape .*give losses=causal_lm_losses"):
        train(tmp_path, model=make_gpt(), data=make_sequences())
    with pytest.raises(DataError, match="a causal language model has"):
        train(tmp_path, losses=causal_lm_losses)
    with pytest.raises(DataError, match="but no labels"):
        train(tmp_path, data=make_data().remove_columns("label"))


def test_leaves_torch_and_the_generators_as_the_library_does(tmp_path):
    before = dict(vars(DataLoader))

    def drawn(make):
        trainer = make()
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002 - the global generator is what is looked at
        trainer.train()
        return torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002

    found = drawn(lambda: make_trainer(tmp_path, "fixed"))
    alone = arguments(tmp_path, train_sampling_strategy="sequential")
    expected = drawn(lambda: Trainer(model=Classifier(), args=alone, train_dataset=make_data()))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert dict(vars(DataLoader)) == before


def main(options):
    store, out = options.pop("store"), options.pop("out")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # A file to meet in, where the Trainer would want a free port.
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    trainer = train(ddp_backend="gloo", gradient_accumulation_steps=2, save_strategy="steps", **options)
    torch.save({"net": trainer.model.net, "sampler": trainer.sampler, "batches": trainer.batches}, out)
    dist.barrier()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    os._exit(0)  # gloo's threads may abort the interpreter's own end

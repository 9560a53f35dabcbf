"""Our samplers under the real Accelerate. Run as a script with OPTIONS it is one process of a training."""

import json
import os
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import BatchSampler, DataLoader

from tamis.errors import RecipeError
from tamis.integrations.accelerate import prepare_loader
from tamis.training import InfoBatchSampler, SeTaSampler, WithIndex

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_accelerator")
N, D, CLASSES, EPOCHS = 53, 5, 3, 4


def make_parts(sampler):
    rng = np.random.default_rng(0)
    X = torch.from_numpy(rng.standard_normal((N, D)))
    y = torch.from_numpy(rng.integers(0, CLASSES, N))
    torch.manual_seed(1)
    model = torch.nn.Linear(D, CLASSES, dtype=torch.float64)
    common = {"epochs": EPOCHS, "seed": 5, "epoch_size": "pruned"}
    made = (
        SeTaSampler(N, num_group=4, strategy="linupper", **common)
        if sampler == "seta"
        else InfoBatchSampler(N, **common)
    )
    return model, torch.optim.SGD(model.parameters(), lr=0.3), made, WithIndex(list(zip(X, y, strict=True)))


def plain(sampler="seta", batch=8, accumulation=1):
    """The same training without the library; under accumulation an epoch's last step may be of fewer batches."""
    model, optimiser, sampler, data = make_parts(sampler)
    loader = DataLoader(data, sampler=sampler, batch_size=batch)
    batches, lengths = [], []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        lengths.append(len(loader))
        for i, (ids, (X, y)) in enumerate(loader, 1):
            losses = torch.nn.functional.cross_entropy(model(X), y, reduction="none")
            (sampler.step(ids, losses) / accumulation).backward()
            batches.append(ids.tolist())
            if i % accumulation == 0 or i == lengths[-1]:
                optimiser.step()
                optimiser.zero_grad()
    return results(model, sampler, batches, lengths)


def with_accelerate(folder, sampler="seta", batch=8, accumulation=1, stop=None, resume=False):
    """A training under Accelerate, in the processes there are; stops and saves after so many batches."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model, optimiser, sampler, data = make_parts(sampler)
    loader = DataLoader(data, sampler=sampler, batch_size=batch // accelerator.num_processes)
    model, optimiser = accelerator.prepare(model, optimiser)
    loader = accelerator.prepare(prepare_loader(accelerator, loader))  # preparing it twice does no harm
    if resume:
        accelerator.load_state(folder)
    batches, lengths = [], []
    for epoch in range(sampler.epoch, EPOCHS):
        sampler.set_epoch(epoch)
        lengths.append(len(loader))
        for ids, (X, y) in loader:
            with accelerator.accumulate(model):
                losses = torch.nn.functional.cross_entropy(model(X), y, reduction="none")
                accelerator.backward(sampler.step(ids, losses))
                optimiser.step()
                optimiser.zero_grad()
            batches.append(ids.tolist())
            if len(batches) == stop:
                accelerator.save_state(folder)
                return results(accelerator.unwrap_model(model), sampler, batches, lengths)
    return results(accelerator.unwrap_model(model), sampler, batches, lengths)


def results(model, sampler, batches, lengths):
    return {
        "model": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "sampler": sampler.state_dict(),
        "scores": sampler.scores.state_dict(),
        "batches": batches,
        "lengths": lengths,
    }


def assert_same(one, other, tolerance=0.0):
    for name, value in one["model"].items():
        torch.testing.assert_close(other["model"][name], value, rtol=tolerance, atol=tolerance)
    assert other["sampler"] == one["sampler"]
    for name, value in one["scores"].items():
        np.testing.assert_allclose(other["scores"][name], value, rtol=1e-6 if tolerance else 0)


@pytest.mark.parametrize("sampler", ["seta", "infobatch"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_trains_to_the_weights_of_a_plain_loop(tmp_path, sampler, accumulation):
    expected = plain(sampler, accumulation=accumulation)
    found = with_accelerate(tmp_path, sampler, accumulation=accumulation)
    assert found["batches"] == expected["batches"]
    assert_same(expected, found, 1e-12 if accumulation > 1 else 0.0)


@pytest.mark.parametrize("sampler", ["seta", "infobatch"])
def test_resumes_after_any_step(tmp_path, sampler):
    whole = with_accelerate(tmp_path, sampler)
    assert len(whole["batches"]) > 2 * EPOCHS
    for stop in range(1, len(whole["batches"]), 2):
        fresh = tmp_path / str(stop)
        cut = with_accelerate(fresh, sampler, stop=stop)
        rest = with_accelerate(fresh, sampler, resume=True)
        assert cut["batches"] + rest["batches"] == whole["batches"]
        assert_same(whole, rest)


def test_resumes_under_accumulation(tmp_path):
    whole = with_accelerate(tmp_path, accumulation=2)
    at = whole["lengths"][0] + 2  # an optimiser step of the second epoch
    with_accelerate(tmp_path, accumulation=2, stop=at)
    assert_same(whole, with_accelerate(tmp_path, accumulation=2, resume=True))


def test_epochs_are_as_long_as_their_plans(tmp_path):
    found = with_accelerate(tmp_path, "infobatch")
    assert sum(found["lengths"]) == len(found["batches"])
    assert min(found["lengths"]) < max(found["lengths"]) == -(-N // 8)


def test_two_processes_train_to_the_weights_of_one(run):
    expected = plain("seta", batch=12)
    first, second = run(2, "two", batch=12)
    both = zip(first["batches"], second["batches"], strict=True)
    joined = [[i for pair in zip(one, other, strict=True) for i in pair] for one, other in both]
    for pair, batch in zip(joined, expected["batches"], strict=True):
        assert pair[: len(batch)] == batch
    for process in (first, second):
        assert_same(expected, process, 1e-12)


def test_two_processes_resume_and_one_continues(run, tmp_path):
    expected = plain("infobatch", batch=12)
    run(2, "cut", sampler="infobatch", batch=12, stop=7)
    assert_same(expected, run(2, "rest", sampler="infobatch", batch=12, resume=True)[1], 1e-12)
    assert_same(expected, with_accelerate(tmp_path, "infobatch", batch=12, resume=True), 1e-12)


def test_refuses_what_would_train_on_the_wrong_samples():
    accelerator = Accelerator(cpu=True)
    with pytest.raises(RecipeError, match="the loader's sampler is SequentialSampler; it must be a sampler of tamis"):
        prepare_loader(accelerator, DataLoader(range(N), batch_size=4))
    early = SeTaSampler(N, epochs=2, num_replicas=2, rank=1)
    with pytest.raises(RecipeError, match=r"process 1 of 2, but this is process 0 of 1; make the sampler after"):
        prepare_loader(accelerator, DataLoader(range(N), sampler=early))
    unordered = DataLoader(range(N), sampler=SeTaSampler(N, epochs=2), num_workers=1, in_order=False)
    with pytest.raises(RecipeError, match="in_order=False"):
        prepare_loader(accelerator, unordered)
    with pytest.raises(RecipeError, match="the loader's sampler is NoneType"):
        prepare_loader(accelerator, DataLoader(range(N), sampler=SeTaSampler(N, epochs=2), batch_size=None))


def test_refuses_to_split_batches():
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
    with pytest.raises(RecipeError, match="split_batches=True, but every process has its own samples"):
        prepare_loader(accelerator, DataLoader(range(N), sampler=SeTaSampler(N, epochs=2)))


def test_gives_tensors_on_the_device():
    accelerator = Accelerator(cpu=True)
    accelerator.state.device = torch.device("meta")  # one that every machine has
    data = WithIndex(torch.arange(N))
    loader = prepare_loader(accelerator, DataLoader(data, sampler=SeTaSampler(N, epochs=2)))
    assert {values.device.type for _, values in loader} == {"meta"}


def test_takes_a_batch_sampler():
    accelerator = Accelerator(cpu=True)
    sampler = SeTaSampler(N, epochs=2, seed=1)
    data = WithIndex(torch.arange(N))
    loader = prepare_loader(accelerator, DataLoader(data, batch_sampler=BatchSampler(sampler, 6, drop_last=True)))
    assert len(loader) == N // 6
    assert [i for ids, _ in loader for i in ids.tolist()] == list(sampler)[: N // 6 * 6]


def test_leaves_torch_and_the_generators_as_the_library_does():
    before = dict(vars(DataLoader))

    def drawn(make):
        accelerator = Accelerator(cpu=True)
        loader = make(accelerator)
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002 - the global generator is what is looked at
        for _ in loader:
            pass
        return torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002

    found = drawn(
        lambda accelerator: prepare_loader(accelerator, DataLoader(range(N), sampler=SeTaSampler(N, epochs=2)))
    )
    expected = drawn(lambda accelerator: accelerator.prepare(DataLoader(range(N))))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert dict(vars(DataLoader)) == before


def main(options):
    store, out = options.pop("store"), options.pop("out")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # A file to meet in, where Accelerate would want a free port.
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    torch.save(with_accelerate(**options), out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    os._exit(0)  # gloo's threads may abort the interpreter's own end

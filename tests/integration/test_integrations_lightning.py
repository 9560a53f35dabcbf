"""Our samplers under the real Lightning. Run as a script with OPTIONS it is one process of a training."""

import json
import logging
import os
import sys
from functools import cache

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, SequentialSampler

from tamis.errors import RecipeError
from tamis.integrations.lightning import SamplerCallback
from tamis.training import InfoBatchSampler, SeTaSampler, WithIndex

# What torchrun sets besides the ranks.
ENVIRONMENT = {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "MASTER_PORT": "1"}
N, D, CLASSES, EPOCHS, BATCH = 37, 5, 3, 4, 4

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Lightning advises on speed, on what it cannot know of our sampler, and on resuming without saving again.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
    # Lightning 2.6 uses what torch 2.13 deprecates.
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


@cache
def make_data():
    rng = np.random.default_rng(0)
    X = torch.from_numpy(rng.standard_normal((N, D)))
    y = torch.from_numpy(rng.integers(0, CLASSES, N))
    return WithIndex(list(zip(X, y, strict=True)))


def make_net():
    torch.manual_seed(1)
    return torch.nn.Linear(D, CLASSES, dtype=torch.float64)


def make_sampler(kind):
    if kind == "infobatch":
        return InfoBatchSampler(N, epochs=EPOCHS, seed=5)
    size = "fixed" if kind == "fixed" else "pruned"
    return SeTaSampler(N, epochs=EPOCHS, seed=5, num_group=4, strategy="linupper", epoch_size=size)


def losses_of(net, batch):
    return torch.nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")


class Module(LightningModule):
    def __init__(self, kind, workers=0, batch=BATCH):
        super().__init__()
        self.net = make_net()
        self.options = kind, workers, batch
        self.batches = []
        self.validated = []

    def setup(self, stage):  # noqa: ARG002 - as Lightning calls it, like the next two
        self.sampler = make_sampler(self.options[0])

    def train_dataloader(self):
        _, workers, batch = self.options
        return DataLoader(make_data(), sampler=self.sampler, batch_size=batch, num_workers=workers)

    def training_step(self, batch, batch_idx):  # noqa: ARG002
        ids, batch = batch
        self.batches.append((self.sampler.epoch, ids.tolist()))
        return self.sampler.step(ids, losses_of(self.net, batch))

    def val_dataloader(self):
        return DataLoader(range(2))

    def validation_step(self, batch, batch_idx):  # noqa: ARG002
        if batch_idx == 0:
            self.validated.append(self.current_epoch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


def trainer(folder, reload=1, callbacks=(), **options):
    return Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=reload,
        default_root_dir=folder,
        callbacks=[SamplerCallback(), *callbacks],
        **options,
    )


def fit(folder, kind, workers=0, resume=None, saving=None, **options):
    module = Module(kind, workers)
    callbacks = () if saving is None else (ModelCheckpoint(folder, "{step}", save_top_k=-1, **saving),)
    trainer(folder, callbacks=callbacks, **options).fit(module, ckpt_path=resume, weights_only=True)
    return module


def plain(kind, accumulation=1, batch=BATCH):
    """The same training without the library."""
    net, sampler = make_net(), make_sampler(kind)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.3)
    loader = DataLoader(make_data(), sampler=sampler, batch_size=batch)
    batches = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for i, (ids, data) in enumerate(loader, 1):
            (sampler.step(ids, losses_of(net, data)) / accumulation).backward()
            batches.append((epoch, ids.tolist()))
            if i % accumulation == 0 or i == len(loader):
                optimiser.step()
                optimiser.zero_grad()
    return net, sampler, batches


def assert_same(expected, net, sampler, tolerance=0.0):
    other_net, other, _ = expected
    for name, value in other_net.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=tolerance, atol=tolerance)
    assert sampler.state_dict() == other.state_dict()
    for name, value in other.scores.state_dict().items():
        np.testing.assert_allclose(sampler.scores.state_dict()[name], value, rtol=1e-6 if tolerance else 0)


@pytest.mark.parametrize("kind", ["fixed", "seta", "infobatch"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_trains_to_the_weights_of_a_plain_loop(tmp_path, kind, accumulation):
    expected = plain(kind, accumulation)
    module = fit(tmp_path, kind, accumulate_grad_batches=accumulation, reload=kind != "fixed")
    assert module.batches == expected[2]
    assert_same(expected, module.net, module.sampler, 1e-12 if accumulation > 1 else 0.0)


def test_epochs_are_as_long_as_their_plans_and_validated_at_their_ends(tmp_path):
    module = fit(tmp_path, "seta")
    lengths = [sum(epoch == e for e, _ in module.batches) for epoch in range(EPOCHS)]
    # Shorter and longer than the one before: what Lightning measures once would cut the last.
    assert lengths[0] > lengths[1] > lengths[2] < lengths[3]
    assert module.validated == list(range(EPOCHS))


def ends_of_epochs(module):
    return np.cumsum([sum(epoch == e for e, _ in module.batches) for epoch in range(EPOCHS)]).tolist()


SAVING = {
    "each step": {"every_n_train_steps": 1, "save_on_train_epoch_end": False},
    "after validation": {"save_on_train_epoch_end": False},
    "at epochs' ends": {"save_on_train_epoch_end": True},
}


@pytest.mark.parametrize("kind", ["fixed", "seta", "infobatch"])
@pytest.mark.parametrize("saving", SAVING)
def test_resumes_from_every_checkpoint(tmp_path, kind, saving):
    reload = kind != "fixed"
    whole = fit(tmp_path / "whole", kind, saving=SAVING[saving], reload=reload)
    checkpoints = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(checkpoints) == (len(whole.batches) if saving == "each step" else EPOCHS)
    ends = ends_of_epochs(whole)
    for path in checkpoints:
        done = int(path.stem.removeprefix("step="))
        if done not in ends and done % 3:
            continue  # for time
        resumed = fit(tmp_path / "rest", kind, resume=path, reload=reload)
        assert resumed.batches == whole.batches[done:]
        assert_same((whole.net, whole.sampler, None), resumed.net, resumed.sampler)


@pytest.mark.parametrize("kind", ["fixed", "seta"])
def test_resumes_with_workers(tmp_path, kind):
    reload = kind != "fixed"
    whole = fit(tmp_path / "whole", kind, workers=2, saving=SAVING["each step"], reload=reload)
    ends = ends_of_epochs(whole)
    for done in (5, ends[0], ends[1] + 1, ends[2]):
        resumed = fit(tmp_path / "rest", kind, 2, tmp_path / "whole" / f"step={done}.ckpt", reload=reload)
        assert resumed.batches == whole.batches[done:]
        assert_same((whole.net, whole.sampler, None), resumed.net, resumed.sampler)


def test_two_processes_train_to_the_weights_of_one(run):
    expected = plain("seta", batch=2 * BATCH)
    first, second = run(2, "two", kind="seta")
    pairs = zip(first["batches"], second["batches"], strict=True)
    for both, (epoch, batch) in zip(pairs, expected[2], strict=True):
        assert {e for e, _ in both} == {epoch}
        joined = [i for pair in zip(both[0][1], both[1][1], strict=True) for i in pair]
        assert joined[: len(batch)] == batch
    for process in (first, second):
        assert_same(expected, process["net"], process["sampler"], 1e-12)


def test_refuses_the_sampler_that_lightning_puts_in_place_of_ours(run):
    for process in run(2, "replaced", kind="fixed", distributed=True):
        assert "sampler is DistributedSamplerWrapper, not the module's" in process["error"]
        assert "use_distributed_sampler=False" in process["error"]


def test_refuses_a_sampler_made_for_other_processes(tmp_path):
    class Early(Module):
        def setup(self, stage):  # noqa: ARG002
            self.sampler = SeTaSampler(N, epochs=EPOCHS, num_replicas=2, rank=1)

    with pytest.raises(RecipeError, match=r"process 1 of 2, but this is process 0 of 1; make it in the module's setup"):
        trainer(tmp_path).fit(Early("fixed"))


def test_refuses_epochs_of_several_lengths_measured_once(tmp_path):
    with pytest.raises(RecipeError, match="reload_dataloaders_every_n_epochs is 0"):
        fit(tmp_path, "infobatch", reload=0)


def test_refuses_other_samplers(tmp_path):
    class Without(Module):
        def setup(self, stage):  # noqa: ARG002
            self.sampler = SequentialSampler(make_data())

    with pytest.raises(RecipeError, match=r"Without.sampler is SequentialSampler; it must be a sampler of tamis"):
        trainer(tmp_path).fit(Without("fixed"))

    class Another(Module):
        def train_dataloader(self):
            return DataLoader(make_data(), batch_size=BATCH)

    with pytest.raises(RecipeError, match="sampler is SequentialSampler, not the module's attribute sampler"):
        trainer(tmp_path).fit(Another("fixed"))

    class Unordered(Module):
        def train_dataloader(self):
            return DataLoader(make_data(), sampler=self.sampler, num_workers=1, in_order=False)

    with pytest.raises(RecipeError, match="in_order=False"):
        trainer(tmp_path).fit(Unordered("fixed"))


def test_refuses_a_checkpoint_without_a_sampler(tmp_path):
    alone = trainer(tmp_path)
    alone.callbacks = [callback for callback in alone.callbacks if not isinstance(callback, SamplerCallback)]
    alone.fit(Module("fixed"))
    alone.save_checkpoint(tmp_path / "alone.ckpt")
    with pytest.raises(RecipeError, match="the checkpoint holds no sampler"):
        fit(tmp_path, "fixed", resume=tmp_path / "alone.ckpt")
    trainer(tmp_path).validate(Module("fixed"), ckpt_path=tmp_path / "alone.ckpt", verbose=False)


def test_leaves_torch_and_the_generators_as_the_library_does(tmp_path):
    def drawn(callbacks, make):
        module = Module("fixed")
        module.train_dataloader = lambda: make(module)
        alone = trainer(tmp_path)
        alone.callbacks = callbacks
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002 - the global generator is what is looked at
        alone.fit(module)
        return torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002

    before = dict(vars(DataLoader))
    found = drawn([SamplerCallback()], Module.train_dataloader)
    expected = drawn([], lambda _: DataLoader(make_data(), batch_size=BATCH))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert dict(vars(DataLoader)) == before


def main(options):
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    module = Module(options["kind"])
    # A file to meet in, where Lightning would want a free port.
    dist.init_process_group("gloo", init_method=f"file://{options['store']}", rank=rank, world_size=size)
    under = trainer(
        options["folder"], devices=size, strategy="ddp", use_distributed_sampler=options.get("distributed", False)
    )
    try:
        under.fit(module)
        result = {"net": module.net, "sampler": module.sampler, "batches": module.batches}
    except RecipeError as error:
        result = {"error": str(error)}
    torch.save(result, options["out"])
    if dist.is_initialized():
        dist.barrier()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    os._exit(0)  # gloo's threads may abort the interpreter's own end

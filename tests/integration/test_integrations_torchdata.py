"""Our samplers in the real StatefulDataLoader."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from tamis.errors import RecipeError
from tamis.integrations.torchdata import SamplerDataLoader
from tamis.training import InfoBatchSampler, SeTaSampler, WithIndex

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torchdata 0.11 calls a function that torch 2.13 no longer wants called.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

N, D, CLASSES, EPOCHS, BATCH = 37, 5, 3, 4, 4


class Sums(torch.utils.data.Dataset):
    """A dataset that draws from the global generator of its process, as augmentations do."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.X = torch.from_numpy(rng.standard_normal((N, D)))
        self.y = torch.from_numpy(rng.integers(0, CLASSES, N))

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.X[i], self.y[i]


class Training:
    """Everything that a checkpoint must carry, and the loop around it."""

    def __init__(self, make_loader, sampler="seta"):
        torch.manual_seed(1)
        self.model = torch.nn.Linear(D, CLASSES, dtype=torch.float64)
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=0.3)
        if sampler == "seta":
            self.sampler = SeTaSampler(N, epochs=EPOCHS, seed=5, num_group=4, strategy="linupper", epoch_size="pruned")
        else:
            self.sampler = InfoBatchSampler(N, epochs=EPOCHS, seed=5)
        self.loader = make_loader(self.sampler)
        self.batches = []

    def run(self, on_step=lambda: None):
        for epoch in range(self.sampler.epoch, EPOCHS):
            self.sampler.set_epoch(epoch)
            for ids, (X, y) in self.loader:
                losses = torch.nn.functional.cross_entropy(self.model(X), y, reduction="none")
                self.optimiser.zero_grad()
                self.sampler.step(ids, losses).backward()
                self.optimiser.step()
                self.batches.append(ids.tolist())
                on_step()
        return self

    def state(self):
        return {
            "model": {name: value.clone() for name, value in self.model.state_dict().items()},
            "loader": self.loader.state_dict(),
        }

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.loader.load_state_dict(state["loader"])
        return self


def ours(workers=0):
    return lambda sampler: SamplerDataLoader(WithIndex(Sums()), sampler, BATCH, num_workers=workers)


def plain(sampler):
    return DataLoader(WithIndex(Sums()), sampler=sampler, batch_size=BATCH)


def assert_same(one, other):
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], value, rtol=0, atol=0)
    assert one.sampler.state_dict() == other.sampler.state_dict()
    for name, value in one.sampler.scores.state_dict().items():
        np.testing.assert_array_equal(other.sampler.scores.state_dict()[name], value)


@pytest.mark.parametrize("sampler", ["seta", "infobatch"])
@pytest.mark.parametrize("workers", [0, 2])
def test_trains_to_the_weights_of_a_plain_loop(sampler, workers):
    expected = Training(plain, sampler).run()
    found = Training(ours(workers), sampler).run()
    assert found.batches == expected.batches
    assert_same(expected, found)


@pytest.mark.parametrize("sampler", ["seta", "infobatch"])
def test_resumes_after_any_step(sampler):
    whole = Training(ours(), sampler)
    states = []
    whole.run(lambda: states.append(whole.state()))
    assert len(states) > 2 * EPOCHS
    for done, state in enumerate(states, 1):
        resumed = Training(ours(), sampler).load(state).run()
        assert resumed.batches == whole.batches[done:]
        assert_same(whole, resumed)


@pytest.mark.parametrize(("before", "after"), [(2, 2), (0, 2), (2, 0)])
def test_resumes_with_workers_that_had_fetched_ahead(before, after):
    whole = Training(ours(before))
    states = []
    whole.run(lambda: states.append(whole.state()))
    for done in (1, 5, 12, len(states) - 1):
        resumed = Training(ours(after)).load(states[done - 1]).run()
        assert resumed.batches == whole.batches[done:]
        assert_same(whole, resumed)


def test_a_state_is_taken_over_within_an_iteration():
    training = Training(ours())
    begun = iter(training.loader)
    ids, _ = next(begun)
    fresh = training.loader.state_dict()
    training.sampler.step(ids, torch.ones(len(ids)))
    training.loader.load_state_dict(fresh)
    again, _ = next(iter(training.loader))
    assert again.tolist() == ids.tolist()


def test_a_state_can_be_read_without_pickled_code(tmp_path):
    training = Training(ours()).run()
    torch.save(training.loader.state_dict(), tmp_path / "loader.pt")
    state = torch.load(tmp_path / "loader.pt", weights_only=True)
    resumed = Training(ours())
    resumed.loader.load_state_dict(state)
    assert resumed.sampler.state_dict() == training.sampler.state_dict()
    np.testing.assert_array_equal(resumed.sampler.scores.live, training.sampler.scores.live)


def test_epochs_are_as_long_as_their_plans():
    training = Training(ours(), "infobatch")
    lengths, planned = [], []
    for epoch in range(EPOCHS):
        training.sampler.set_epoch(epoch)
        planned.append(len(training.loader))
        lengths.append(0)
        for ids, (X, y) in training.loader:
            losses = torch.nn.functional.cross_entropy(training.model(X), y, reduction="none")
            training.sampler.step(ids, losses.detach())
            lengths[-1] += 1
    assert lengths == planned
    assert min(lengths) < max(lengths) == -(-N // BATCH)


def test_the_loader_alone_would_resume_wrongly_with_workers():
    """What the class is for: if this fails, torchdata has changed, and the class may be needless."""

    def theirs(sampler):
        return StatefulDataLoader(WithIndex(Sums()), sampler=sampler, batch_size=BATCH, num_workers=2)

    whole = Training(theirs)
    states = []
    whole.run(lambda: states.append((whole.state(), whole.sampler.scores.state_dict())))
    state, scores = states[4]
    resumed = Training(theirs)
    resumed.sampler.scores.load_state_dict(scores)
    assert resumed.load(state).run().batches != whole.batches[5:]


def test_refuses_other_samplers_and_other_states():
    with pytest.raises(RecipeError, match="sampler is SequentialSampler; it must be a sampler of tamis"):
        SamplerDataLoader(WithIndex(Sums()), torch.utils.data.SequentialSampler(range(N)))
    with pytest.raises(RecipeError, match="in_order=False"):
        SamplerDataLoader(WithIndex(Sums()), SeTaSampler(N, epochs=EPOCHS), num_workers=1, in_order=False)
    state = Training(ours()).loader.state_dict()
    other = SamplerDataLoader(WithIndex(Sums()), SeTaSampler(N, epochs=EPOCHS, seed=6), BATCH)
    with pytest.raises(RecipeError, match="seed"):
        other.load_state_dict(state)


def test_leaves_torch_and_the_generators_as_the_library_does():
    before = dict(vars(DataLoader)), dict(vars(StatefulDataLoader))

    def drawn(loader):
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002 - the global generator is what is looked at
        for _ in loader:
            pass
        return torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002

    found = drawn(ours()(SeTaSampler(N, epochs=EPOCHS)))
    expected = drawn(StatefulDataLoader(WithIndex(Sums()), batch_size=BATCH))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (dict(vars(DataLoader)), dict(vars(StatefulDataLoader))) == before


def test_the_package_imports_no_library_and_names_the_extra_of_a_missing_one():
    code = """
import sys, importlib, tamis.integrations
libraries = dict(accelerate="accelerate", huggingface="transformers", lightning="lightning", torchdata="torchdata")
assert not {*libraries.values(), "pytorch_lightning"} & set(sys.modules)
for module, library in libraries.items():
    sys.modules[library] = None
    try:
        importlib.import_module(f"tamis.integrations.{module}")
    except ImportError as error:
        assert f"pip install 'tamis[{module}]'" in str(error), error
        print(module)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["accelerate", "huggingface", "lightning", "torchdata"]

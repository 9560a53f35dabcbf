import copy
import itertools
import pickle
import random as python_random
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from tamis.errors import DataError, NonFiniteLossError, RecipeError
from tamis.selectors import dynamic
from tamis.training import (
    InfoBatchSampler,
    LinearSchedule,
    ManifestSampler,
    PlanSampler,
    ScoreTable,
    SeTaSampler,
    WithIndex,
    reweight,
    with_importance,
)

# On a machine of one core torch warns of two worker processes.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

N = 50


def losses_of(ids, epoch):
    """A made-up training: losses that differ by sample and fall with the epochs."""
    return torch.tensor([(7 * int(i) % 13) / (1 + epoch) + 0.1 for i in ids])


def make(**options):
    return SeTaSampler(N, **{"epochs": 8, "seed": 7, "num_group": 5, "epoch_size": "pruned", **options})


def train(sampler, epochs, batch_size=8, first=0, on_step=None):
    """Runs epochs with a DataLoader; returns the ids of all batches."""
    loader = DataLoader(WithIndex(np.arange(N)), sampler=sampler, batch_size=batch_size)
    batches = []
    for epoch in range(first, epochs):
        sampler.set_epoch(epoch)
        for ids, values in loader:
            assert torch.equal(ids, values)
            sampler.step(ids, losses_of(ids, epoch))
            batches.append(ids.tolist())
            if on_step is not None:
                on_step(sampler)
    return batches


@pytest.mark.parametrize("kind", [SeTaSampler, InfoBatchSampler])
def test_a_ceiling_leaves_out_the_highest_losses_from_the_second_epoch_to_the_last(kind):
    sampler = kind(N, epochs=8, seed=7, ceiling=0.1, epoch_size="pruned")
    assert sorted(sampler) == list(range(N))
    for epoch in range(8):
        batches = train(sampler, epoch + 1, first=epoch)
        highest = np.argsort(sampler.scores.frozen, kind="stable")[-5:]
        assert epoch == 0 or set(highest.tolist()).isdisjoint(itertools.chain(*batches))
    assert sampler.epoch_samples == 45
    with pytest.raises(RecipeError, match="ceiling"):
        kind(N, epochs=8, ceiling=1.0)


def test_first_epoch_is_a_permutation_and_later_ones_follow_the_window():
    sampler = make()
    seen = sorted(sampler)
    assert seen == list(range(N))
    train(sampler, 1)
    sampler.set_epoch(1)
    plan = dynamic.seta(
        losses_of(range(N), 0).numpy(),
        np.ones(N, int),
        1,
        np.random.default_rng(0),
        epochs=8,
        num_group=5,
    )
    assert sorted(sampler) == plan.indices.tolist()
    assert len(sampler) == plan.indices.size < N
    assert sampler.plan.groups == 5


def test_order_depends_on_seed_and_epoch_only():
    assert list(make()) == list(make())
    assert list(make()) != list(make(seed=8))
    sampler = make()
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_live_losses_do_not_touch_the_running_epoch():
    sampler = make()
    train(sampler, 1)
    sampler.set_epoch(1)
    before = list(sampler)
    sampler.observe(before[:10], torch.full((10,), 99.0))
    assert list(sampler) == before


def test_fixed_epochs_are_full_length_and_even():
    sampler = make(epoch_size="fixed")
    train(sampler, 1)
    sampler.set_epoch(1)
    order = list(sampler)
    assert len(order) == len(sampler) == N
    allowed = set(sampler.plan.indices.tolist())
    assert set(order) == allowed
    counts = np.bincount(order, minlength=N)[sampler.plan.indices]
    assert counts.max() - counts.min() <= 1
    # The first repeat is a whole permutation of the plan.
    assert sorted(order[: len(allowed)]) == sorted(allowed)


@pytest.mark.parametrize("epoch_size", ["pruned", "fixed"])
def test_resume_after_every_step_gives_the_same_tail(epoch_size):
    saved = []

    def remember(sampler):
        saved.append((sampler.state_dict(), sampler.scores.state_dict()))

    whole_sampler = make(epoch_size=epoch_size)
    whole = train(whole_sampler, 4, on_step=remember)
    for step, (state, scores) in enumerate(saved):
        sampler = make(epoch_size=epoch_size)
        # The scores may come before or after the position.
        if step % 2:
            sampler.load_state_dict(state)
            sampler.scores.load_state_dict(scores)
        else:
            sampler.scores.load_state_dict(scores)
            sampler.load_state_dict(state)
        tail = train(sampler, 4, first=state["epoch"])
        assert tail == whole[step + 1 :]
        np.testing.assert_array_equal(sampler.scores.live, whole_sampler.scores.live)
        np.testing.assert_array_equal(sampler.scores.seen, whole_sampler.scores.seen)
        assert sampler.state_dict() == whole_sampler.state_dict()


def test_losses_loaded_after_a_first_look_at_the_epoch_count():
    trained = make()
    train(trained, 1)
    trained.set_epoch(1)
    resumed = make()
    resumed.load_state_dict(trained.state_dict())
    assert len(resumed) == N
    resumed.scores.load_state_dict(trained.scores.state_dict())
    assert len(resumed) == len(trained) < N
    assert list(resumed) == list(trained)


def test_state_is_of_constant_size_and_plain():
    small, large = SeTaSampler(10, epochs=2), SeTaSampler(100_000, epochs=2)
    assert small.state_dict().keys() == large.state_dict().keys()
    assert all(type(value) is int for value in large.state_dict().values())


def test_loader_workers_do_not_run_ahead_of_the_position():
    sampler = make()
    loader = DataLoader(WithIndex(np.arange(N)), sampler=sampler, batch_size=8, num_workers=2)
    seen, states = [], []
    for ids, _ in loader:
        sampler.step(ids, losses_of(ids, 0))
        seen += ids.tolist()
        states.append(sampler.state_dict())
    assert seen == list(make())
    assert [state["position"] for state in states] == [8, 16, 24, 32, 40, 48, 50]
    resumed = make()
    resumed.load_state_dict(states[2])
    assert list(resumed) == seen[24:]


def test_an_epoch_iterated_again_starts_anew():
    sampler = make()
    train(sampler, 1)
    sampler.set_epoch(0)
    assert len(list(sampler)) == N


def test_pickling_keeps_everything():
    sampler = make()
    train(sampler, 2)
    sampler.set_epoch(2)
    copy = pickle.loads(pickle.dumps(sampler))
    assert list(copy) == list(sampler)
    assert copy.state_dict() == sampler.state_dict()
    assert pickle.loads(pickle.dumps(WithIndex([5, 6])))[1] == (1, 6)


def test_state_of_another_sampler_is_refused():
    state = make().state_dict()
    for change in ({"n": 51}, {"seed": 8}, {"version": 2}):
        with pytest.raises(RecipeError):
            make().load_state_dict({**state, **change})


def test_global_random_generators_are_left_alone():
    python_random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = (python_random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
    sampler = make(prune_ratio=0.2, strategy="linupper")
    order = []
    for epoch in range(8):
        sampler.set_epoch(epoch)
        order = list(sampler)
        sampler.step(order[:8], losses_of(order[:8], epoch))
    after = (python_random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
    assert before[0] == after[0]
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert torch.equal(before[2], after[2])
    # Nor do they matter: whatever their state, the order is the same.
    torch.manual_seed(2)
    assert list(sampler) == order


def test_step_is_the_weighted_sum_and_has_the_weighted_gradient():
    importance = np.linspace(1, 3, N)
    sampler = make(strategy="linupper", r=0.4, importance=importance)
    ids = torch.tensor([3, 1, 4, 15])
    losses = torch.tensor([0.5, 2.0, 1.0, 3.0], requires_grad=True)
    expected = with_importance(reweight(losses, "linupper", 0.4), torch.from_numpy(importance[ids]).float())
    loss = sampler.step(ids, losses)
    assert loss.shape == ()
    torch.testing.assert_close(loss, (expected * losses).sum())
    loss.backward()
    torch.testing.assert_close(losses.grad, expected)
    assert sampler.scores.live[[3, 1, 4, 15]].tolist() == [0.5, 2.0, 1.0, 3.0]
    assert sampler.scores.seen.sum() == 4


def test_warmup_steps_weigh_uniformly():
    sampler = make(strategy="linupper", warmup_steps=2)
    losses = torch.tensor([0.0, 1.0, 2.0])
    values = [sampler.step([0, 1, 2], losses).item() for _ in range(3)]
    assert values[:2] == pytest.approx([1, 1])
    assert values[2] > 1.1


def test_infobatch_factors():
    for epoch_size, mean in (("pruned", None), ("fixed", 1.0)):
        sampler = InfoBatchSampler(N, epochs=8, seed=1, epoch_size=epoch_size)
        sampler.observe(np.arange(N), losses_of(range(N), 0))
        sampler.set_epoch(1)
        plan = sampler.plan
        assert set(plan.weights.tolist()) == {1.0, 2.0}
        easy, hard = plan.indices[plan.weights == 2][0], plan.indices[plan.weights == 1][0]
        weights = sampler.observe([easy, hard], torch.tensor([0.1, 5.0]))
        assert weights[0] / weights[1] == pytest.approx(2)
        expected = 1.0 if mean is None else 1 / plan.weights.mean()
        assert weights[1].item() == pytest.approx(expected / 2, rel=1e-5)


def test_manifest_sampler_yields_the_chosen_rows_with_their_weights():
    table = pa.table({"row": pa.array([9, 2, 40], pa.int64()), "weight": pa.array([1.0, 2.0, 5.0], pa.float32())})
    manifest = SimpleNamespace(record={"dataset": {"rows": N}}, select=table)
    sampler = ManifestSampler(manifest, seed=3)
    orders = []
    for epoch in range(10):
        sampler.set_epoch(epoch)
        orders.append(tuple(sampler))
        assert sorted(orders[-1]) == [2, 9, 40]
    assert len(set(orders)) > 1
    assert len(sampler) == 3
    weights = sampler.observe([2, 9, 40], torch.ones(3))
    torch.testing.assert_close(weights, torch.tensor([2.0, 1.0, 5.0]) / 8)


def test_bad_losses_are_refused_and_nothing_is_recorded():
    sampler = make()
    with pytest.raises(NonFiniteLossError, match=r"\[31, 7\]"):
        sampler.step(torch.tensor([5, 31, 7]), torch.tensor([1.0, float("nan"), float("inf")]))
    assert sampler.scores.seen.sum() == 0
    assert sampler.state_dict()["position"] == 0
    for ids, losses in (
        ([0, 1], torch.ones(3)),
        ([N], torch.ones(1)),
        ([-1], torch.ones(1)),
        ([0.5], torch.ones(1)),
    ):
        with pytest.raises(DataError):
            sampler.step(ids, losses)
    with pytest.raises(DataError, match="reduction"):
        sampler.step([0, 1], torch.ones(()))


@pytest.mark.parametrize(
    "options",
    [
        {"n": 0},
        {"n": 2.5},
        {"n": True},
        {"seed": -1},
        {"warmup_steps": -1},
        {"epoch_size": "half"},
        {"strategy": "linear"},
        {"r": 0},
    ],
)
def test_sampler_refuses_options(options):
    with pytest.raises(RecipeError):
        PlanSampler(**{"n": 3, "policy": dynamic.random, **options})
    with pytest.raises(RecipeError):
        make().set_epoch(-1)


@pytest.mark.parametrize("importance", [[1.0, 2.0], [1.0, 0.0, 1.0], [1.0, np.nan, 1.0]])
def test_sampler_refuses_importance(importance):
    with pytest.raises(DataError):
        PlanSampler(3, partial(dynamic.random), importance=importance)


def test_scores_keep_live_and_frozen_apart():
    scores = ScoreTable(4)
    scores.record([1, 3, 1], [0.5, 2.0, 0.75])
    np.testing.assert_array_equal(scores.live, np.float32([np.nan, 0.75, np.nan, 2.0]))
    assert scores.seen.tolist() == [0, 2, 0, 1]
    assert np.isnan(scores.frozen).all()
    scores.freeze()
    scores.record([0], [9.0])
    np.testing.assert_array_equal(scores.frozen, np.float32([np.nan, 0.75, np.nan, 2.0]))
    assert scores.frozen_seen.tolist() == [0, 2, 0, 1]
    other = ScoreTable(4)
    other.load_state_dict(scores.state_dict())
    for name, value in scores.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], value)
    scores.record([0], [1.0])
    assert other.live[0] == 9.0


def test_scores_refuse_what_does_not_fit():
    scores = ScoreTable(4)
    with pytest.raises(NonFiniteLossError):
        scores.record([0], [1e300])  # infinite in float32
    with pytest.raises(DataError):
        scores.load_state_dict(ScoreTable(5).state_dict())
    with pytest.raises(DataError):
        scores.load_state_dict({**scores.state_dict(), "version": 9})
    scores.record([], [])
    assert scores.seen.sum() == 0


def test_token_counts_weigh_and_are_checked():
    sampler = SeTaSampler(N, epochs=2)
    weights = sampler.observe([3, 1], torch.tensor([1.0, 5.0]), torch.tensor([30, 10]))
    torch.testing.assert_close(weights, torch.tensor([0.75, 0.25]))
    for counts in ([1.0], [0, 1], [float("nan"), 1.0]):
        with pytest.raises(DataError, match="token_counts"):
            sampler.observe([3, 1], torch.ones(2), counts)


def test_a_schedule_of_r_counts_from_the_end_of_the_warm_up():
    options = {"strategy": "upper", "warmup_steps": 2}
    sampler = SeTaSampler(N, epochs=2, r=LinearSchedule(1.0, 0.5, steps=2), **options)
    losses = torch.tensor([1.0, 3.0])
    ratios = [float(w[1] / w[0]) for w in (sampler.observe([0, 1], losses) for _ in range(6))]
    np.testing.assert_allclose(np.log(ratios), [0, 0, 1, 1 / 0.75, 2, 2], rtol=1e-5)


def test_an_epoch_of_a_given_size_repeats_the_plan():
    sampler = SeTaSampler(N, epochs=8, seed=7, epoch_size=120)
    assert len(sampler) == 120
    assert np.bincount(list(sampler), minlength=N).tolist().count(2) == 30
    for size in (0, -1, True, "half", 1.5):
        with pytest.raises(RecipeError, match="epoch_size"):
            SeTaSampler(N, epochs=8, epoch_size=size)


def test_an_ordered_plan_is_not_shuffled():
    sampler = PlanSampler(N, partial(dynamic.hard_batches, batch_size=5, keep=0.4), seed=2, epoch_size="pruned")
    assert list(sampler) == sampler.plan.indices.tolist()
    assert len(sampler) == 20


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 0},
        {"num_workers": 2},
        {"num_workers": 2, "multiprocessing_context": "spawn"},
        {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 4},
    ],
)
def test_every_kind_of_loader_gives_the_same_batches(options):
    sampler = make()
    expected = train(make(), 3)
    loader = DataLoader(WithIndex(np.arange(N)), sampler=copy.deepcopy(sampler), batch_size=8, **options)
    sampler = loader.sampler
    batches = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for ids, _ in loader:
            sampler.step(ids, losses_of(ids, epoch))
            batches.append(ids.tolist())
    assert batches == expected


def test_torchs_loader_is_left_as_it_is():
    code = (
        "import torch.utils.data as d; before = dict(vars(d.DataLoader)), dict(vars(d.Sampler));"
        "import tamis, tamis.training; s = tamis.SeTaSampler(9, epochs=2); "
        "[s.step(ids, ids.float()) for ids, _ in d.DataLoader(tamis.WithIndex(list(range(9))), sampler=s)];"
        "assert before == (dict(vars(d.DataLoader)), dict(vars(d.Sampler)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_schedule_that_gives_no_temperature_is_refused_at_its_step():
    sampler = SeTaSampler(8, epochs=2, strategy="linupper", r=lambda step: 1.0 - step)
    sampler.step(torch.arange(4), torch.ones(4))
    with pytest.raises(RecipeError, match=r"r is 0\.0 at step 1"):
        sampler.step(torch.arange(4, 8), torch.ones(4))

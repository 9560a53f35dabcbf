import functools
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import DataError, RecipeError
from tamis.selectors.dynamic import (
    hard_batches,
    hard_first,
    infobatch,
    kmeans_1d,
    random,
    seta,
    seta_window,
    with_ceiling,
)

losses = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=12)


def squared_error(values, labels):
    return sum(((values[labels == g] - values[labels == g].mean()) ** 2).sum() for g in np.unique(labels))


def best_partition_error(values, groups):
    """Least error over every split of the sorted values into `groups` runs."""
    ordered = np.sort(values)
    cuts = itertools.combinations(range(1, len(values)), groups - 1)
    return min(squared_error(ordered, np.searchsorted(cut, np.arange(len(values)), side="right")) for cut in cuts)


@given(losses, st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_kmeans_1d_is_optimal(values, groups):
    values = np.array(values)
    labels = kmeans_1d(values, groups)
    expected = min(groups, len(np.unique(values)))
    assert labels.dtype == np.int64
    assert sorted(set(labels.tolist())) == list(range(expected))
    best = best_partition_error(values, expected)
    assert squared_error(values, labels) <= best + 1e-9 * (1 + np.square(values).sum())


@given(losses, st.integers(1, 6))
@settings(deadline=None)
def test_kmeans_1d_groups_are_ordered_and_keep_equal_values_together(values, groups):
    values = np.array(values)
    labels = kmeans_1d(values, groups)
    order = np.argsort(values, kind="stable")
    assert (np.diff(labels[order]) >= 0).all()
    for value in np.unique(values):
        assert len(set(labels[values == value].tolist())) == 1


def test_kmeans_1d_does_not_depend_on_the_order_of_the_values():
    rng = np.random.default_rng(3)
    values = rng.exponential(size=500).round(2)
    shuffle = rng.permutation(500)
    np.testing.assert_array_equal(kmeans_1d(values[shuffle], 7), kmeans_1d(values, 7)[shuffle])


def test_kmeans_1d_weighs_repeated_values():
    # Two groups: the mass at 0 and 1 is great, so they part, although 1 is nearer to 0 than 2.6 to 1.
    values = np.repeat([0.0, 1.0, 2.6], [100, 100, 1])
    np.testing.assert_array_equal(kmeans_1d(values, 2), np.repeat([0, 1, 1], [100, 100, 1]))


def test_kmeans_1d_ties_go_to_smaller_lower_groups():
    np.testing.assert_array_equal(kmeans_1d(np.array([0.0, 1.0, 2.0]), 2), [0, 1, 1])


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e200])
def test_kmeans_1d_at_extreme_scales(scale):
    values = np.array([0.0, 1.0, 10.0, 11.0]) * scale
    np.testing.assert_array_equal(kmeans_1d(values, 2), [0, 0, 1, 1])


def optimal_starts(points, mass, groups):
    """The quadratic dynamic programme, in float64 two-pass errors, lower groups the shorter where equal."""

    @functools.cache
    def error(i, j):
        mean = np.average(points[i:j], weights=mass[i:j])
        return float((mass[i:j] * (points[i:j] - mean) ** 2).sum())

    @functools.cache
    def best(j, layer):
        if layer == 1:
            return error(0, j), (0,)
        options = ((best(i, layer - 1), i) for i in range(layer - 1, j))
        return min((cost + error(i, j), (*starts, i)) for (cost, starts), i in options)

    return list(best(len(points), groups)[1])


@pytest.mark.parametrize("seed", range(10))
def test_kmeans_1d_against_the_quadratic_programme(seed):
    rng = np.random.default_rng(seed)
    values = np.repeat(rng.lognormal(sigma=1.5, size=60), rng.integers(1, 4, size=60))
    points, mass = np.unique(values, return_counts=True)
    for groups in (2, 5, 11):
        starts = optimal_starts(points, mass, groups)
        expected = np.searchsorted(starts, np.searchsorted(points, values), side="right") - 1
        np.testing.assert_array_equal(kmeans_1d(values, groups), expected)


def least_error(values, groups):
    """The least squared error by the quadratic programme over all pairs of positions, for values without repeats."""
    x = np.sort(values) - values.mean()
    sums, squares = np.concatenate(([0], np.cumsum(x))), np.concatenate(([0], np.cumsum(x * x)))
    i, j = np.triu_indices(len(x) + 1, 1)
    error = np.full((len(x) + 1, len(x) + 1), np.inf)
    error[i, j] = squares[j] - squares[i] - (sums[j] - sums[i]) ** 2 / (j - i)
    best = error[0]
    for _ in range(groups - 1):
        best = (best[:, None] + error).min(axis=0)
    return best[-1]


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.random(1500),
        lambda rng: rng.gamma(0.7, size=1500),
        lambda rng: rng.standard_cauchy(1500),
        lambda rng: rng.normal(rng.integers(0, 9, 1500), 1e-3),
        lambda rng: np.where(rng.random(1500) < 0.01, 1e6, 1.0) * rng.random(1500),
    ],
)
def test_narrowing_the_positions_loses_no_optimum(draw):
    # 1,500 values and 4 groups or more are beyond what the programme takes without narrowing first.
    for seed in range(3):
        values = draw(np.random.default_rng(seed))
        for groups in (4, 7, 10, 16):
            least = least_error(values, groups)
            assert squared_error(values, kmeans_1d(values, groups)) <= least * (1 + 1e-9) + 1e-12 * (values**2).sum()


def test_kmeans_1d_of_evenly_spaced_values_is_even():
    # Far from 0, where sums of squares that are not centred would have no digits left.
    values = 1e9 + np.arange(60_000.0)
    labels = kmeans_1d(values, 6)
    np.testing.assert_array_equal(np.bincount(labels), np.full(6, 10_000))
    assert (np.diff(labels) >= 0).all()


def test_kmeans_1d_of_many_values_is_at_a_fixed_point():
    # Where no value is nearer to the mean of another group, none can be moved for a lower error.
    values = np.random.default_rng(0).exponential(size=100_000)
    labels = kmeans_1d(values, 8)
    means = np.array([values[labels == g].mean() for g in range(8)])
    nearest = np.abs(values[:, None] - means).argmin(axis=1)
    assert np.count_nonzero(nearest != labels) <= 7  # one value at each boundary may lie within the rounding


def test_kmeans_1d_of_equal_values_and_of_more_groups_than_values():
    assert kmeans_1d(np.full(5, 3.5), 4).tolist() == [0] * 5
    assert kmeans_1d(np.array([2.0, 1.0, 2.0, 3.0]), 9).tolist() == [1, 0, 1, 2]


def test_kmeans_1d_of_nothing():
    assert kmeans_1d(np.zeros(0), 3).size == 0


@pytest.mark.parametrize(
    ("values", "groups", "error"),
    [
        ([1.0, np.nan], 2, DataError),
        ([np.inf], 2, DataError),
        ([[1.0]], 2, DataError),
        ([1.0], 0, RecipeError),
    ],
)
def test_kmeans_1d_refuses(values, groups, error):
    with pytest.raises(error):
        kmeans_1d(np.array(values), groups)


def test_window_of_the_paper_slides_one_group_an_epoch_and_wraps():
    assert [seta_window(n, 5, 0.6) for n in range(5)] == [(0, 3), (1, 4), (2, 5), (0, 3), (1, 4)]
    assert seta_window(0, 5, 0.5) == (0, 3)  # ceil(2.5)
    assert seta_window(0, 20, 0.55) == (0, 11)  # not 12, which rounding errors would give
    assert seta_window(7, 1, 0.5) == (0, 1)
    assert seta_window(3, 4, 1.0) == (0, 4)


def test_window_of_the_code_rounds_and_starts_with_everything():
    assert [seta_window(n, 5, 0.5, "code") for n in range(5)] == [(0, 5), (1, 3), (2, 4), (3, 5), (0, 2)]
    assert seta_window(1, 10, 0.01, "code") == (1, 2)


@pytest.mark.parametrize(
    "arguments",
    [(-1, 5, 0.5), (0, 0, 0.5), (0, 5, 0.0), (0, 5, 1.1), (0, 5, math.nan), (0, 5, 0.5, "authors")],
)
def test_window_refuses(arguments):
    with pytest.raises(RecipeError):
        seta_window(*arguments)


def seta_by_hand(scores, epoch, *, epochs, num_group, window_scale, delta, rule):
    """The paper's section 3, sample by sample, without the uniform draw."""
    n = len(scores)
    if epoch >= delta * epochs:
        return list(range(n))
    known = [i for i in range(n) if not math.isnan(scores[i])]
    levels = sorted({scores[i] for i in known})
    group_of = {}
    if known:
        groups = min(num_group, len(levels))
        ordered = sorted(known, key=lambda i: scores[i])
        values = np.array([scores[i] for i in ordered], dtype=float)
        best = None
        for cut in itertools.combinations(range(1, len(values)), groups - 1):
            labels = np.searchsorted(cut, np.arange(len(values)), side="right")
            error = squared_error(values, labels)
            if best is None or error < best[0] - 1e-12:
                best = (error, labels)
        group_of = dict(zip(ordered, best[1].tolist(), strict=True))
    else:
        groups = num_group
    w = math.ceil(window_scale * groups) if rule == "paper" else max(1, round(window_scale * groups))
    start = epoch % (groups - w + 1)
    if rule == "code" and epoch == 0:
        start, w = 0, groups
    return [i for i in range(n) if i not in group_of or start <= group_of[i] < start + w]


@pytest.mark.parametrize("rule", ["paper", "code"])
@pytest.mark.parametrize(
    "scores",
    [
        [0.3, 5.0, 1.1, 0.2, 9.5, 2.3, 0.9, 7.2, 3.14],
        [0.5, 0.25, math.nan, 4.0, math.nan, 1.75, 8.25],
        [math.nan] * 5,
        [2.0] * 6,
        [1.0, 1.0, 3.0, 3.0, 3.0],
        [1.5],
    ],
)
def test_seta_against_a_transcription(scores, rule):
    scores = np.array(scores, dtype=np.float32)
    seen = (~np.isnan(scores)).astype(int)
    options = {"epochs": 8, "num_group": 4, "window_scale": 0.5, "delta": 0.875, "rule": rule}
    for epoch in range(8):
        plan = seta(scores, seen, epoch, np.random.default_rng(0), **options)
        expected = seta_by_hand(scores.astype(float), epoch, **options)
        assert plan.indices.tolist() == expected
        assert plan.indices.dtype == np.int64
        assert plan.weights.dtype == np.float32
        assert plan.weights.tolist() == [1.0] * len(expected)


def test_seta_counts_as_unseen_what_has_no_count_or_no_loss():
    scores = np.array([0.0, 1.0, 2.0, 3.0, np.nan])
    plan = seta(
        scores,
        np.array([1, 1, 1, 0, 1]),
        0,
        np.random.default_rng(0),
        epochs=10,
        num_group=3,
        window_scale=0.3,
    )
    assert plan.indices.tolist() == [0, 3, 4]
    assert plan.groups == 3


def test_seta_thins_uniformly_before_the_window_and_in_the_last_epochs():
    n, scores = 1000, np.linspace(0, 1, 1000)
    options = {"epochs": 8, "num_group": 10, "window_scale": 0.5, "prune_ratio": 0.1}
    plans = [seta(scores, np.ones(n, int), epoch, np.random.default_rng(epoch), **options) for epoch in range(8)]
    assert plans[7].indices.size == 900
    for plan in plans[:7]:
        assert 400 <= plan.indices.size <= 500
        assert (np.diff(plan.indices) > 0).all()
        # Equally spaced losses: the window is one run of them.
        assert np.ptp(plan.indices) < 560
    assert plans[0].indices.max() < plans[5].indices.min() + 60


@given(st.integers(1, 60), st.integers(0, 11), st.floats(0, 0.9), st.sampled_from([0.0, 0.3]), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_policy_gives_a_plan_of_the_documented_form(n, epoch, prune_ratio, ceiling, seed):
    rng = np.random.default_rng(seed)
    seen = rng.integers(0, 3, n)
    scores = np.where(seen > 0, rng.exponential(size=n), np.nan)
    before = scores.copy()
    for policy, options in (
        (seta, {"epochs": 12, "prune_ratio": prune_ratio}),
        (infobatch, {"epochs": 12, "prune_ratio": prune_ratio}),
        (random, {"prune_ratio": prune_ratio}),
        (hard_first, {"epochs": 12, "prune_ratio": prune_ratio}),
        (hard_batches, {"batch_size": 7, "keep": 1 - prune_ratio}),
    ):
        policy = with_ceiling(functools.partial(policy, **options), ceiling)
        plan = policy(scores, seen, epoch, np.random.default_rng(seed))
        again = policy(scores, seen, epoch, np.random.default_rng(seed))
        np.testing.assert_array_equal(plan.indices, again.indices)
        np.testing.assert_array_equal(plan.weights, again.weights)
        assert plan.indices.dtype == np.int64
        assert plan.weights.dtype == np.float32
        assert 1 <= plan.indices.size == plan.weights.size
        assert plan.indices.min() >= 0
        assert plan.indices.max() < n
        assert len(np.unique(plan.indices)) == plan.indices.size
        assert plan.ordered or (np.diff(plan.indices) > 0).all()
        assert (plan.weights > 0).all()
    np.testing.assert_array_equal(scores, before)


def test_infobatch_drops_only_below_the_mean_and_keeps_the_expected_sum():
    scores = np.array([0.0, 0.5, 1.0, 6.5, np.nan])  # mean of the seen ones: 2
    seen = np.array([1, 1, 1, 1, 0])
    drops, total = np.zeros(5), np.zeros(5)
    for trial in range(2000):
        plan = infobatch(scores, seen, 1, np.random.default_rng(trial), epochs=10, prune_ratio=0.25)
        present = np.zeros(5)
        present[plan.indices] = 1
        drops += 1 - present
        total[plan.indices] += plan.weights
    assert drops[3:].tolist() == [0, 0]
    np.testing.assert_allclose(drops[:3] / 2000, 0.25, atol=0.04)
    np.testing.assert_allclose(total / 2000, 1, atol=0.05)


def test_infobatch_anneals_with_all_data_and_weight_one_even_for_fractional_limits():
    scores, seen = np.array([0.0, 1.0, 5.0]), np.ones(3, int)
    for epochs, first in ((12, 11), (8, 7), (10, 9)):
        for epoch in range(first, epochs):
            plan = infobatch(scores, seen, epoch, np.random.default_rng(0), epochs=epochs)
            assert plan.indices.tolist() == [0, 1, 2]
            assert plan.weights.tolist() == [1, 1, 1]
        pruning = infobatch(scores, seen, first - 1, np.random.default_rng(0), epochs=epochs)
        assert pruning.weights.max() == 2


def test_infobatch_keeps_equal_losses():
    plan = infobatch(np.full(10, 0.1), np.ones(10, int), 0, np.random.default_rng(0), epochs=4)
    assert plan.indices.size == 10


def test_random_keeps_the_exact_count():
    plan = random(np.full(10, np.nan), np.zeros(10, int), 0, np.random.default_rng(0), prune_ratio=0.3)
    assert plan.indices.size == 7


def test_hard_first_keeps_the_highest_losses_and_what_was_never_seen():
    scores, seen = np.array([0.5, 3.0, np.nan, 0.1, 2.0, 2.0]), np.array([1, 1, 0, 1, 1, 1])
    options = {"epochs": 8, "prune_ratio": 0.5}
    assert hard_first(scores, seen, 3, np.random.default_rng(0), **options).indices.tolist() == [1, 2, 4]
    assert hard_first(scores, seen, 7, np.random.default_rng(0), **options).indices.tolist() == list(range(6))


def test_hard_batches_are_whole_batches_of_the_highest_mean_loss():
    scores = np.random.default_rng(0).exponential(size=23)
    plan = hard_batches(scores, np.ones(23, int), 0, np.random.default_rng(4), batch_size=5, keep=0.6)
    dealt = np.random.default_rng(4).permutation(23)
    batches = [dealt[start : start + 5] for start in range(0, 23, 5)]
    hardest = sorted(range(5), key=lambda b: -scores[batches[b]].mean())[:3]
    assert plan.ordered
    assert plan.indices.tolist() == np.concatenate([batches[b] for b in sorted(hardest)]).tolist()
    # A batch with a sample of which nothing is known comes first.
    scores[dealt[7]] = np.nan
    plan = hard_batches(scores, np.ones(23, int), 0, np.random.default_rng(4), batch_size=5, keep=0.01)
    assert plan.indices.tolist() == batches[1].tolist()


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (hard_first, {"epochs": 0}),
        (hard_first, {"epochs": 3, "prune_ratio": 1.0}),
        (hard_batches, {"batch_size": 0}),
        (hard_batches, {"batch_size": 2, "keep": 0.0}),
        (hard_batches, {"batch_size": 2, "keep": 1.1}),
    ],
)
def test_hard_policies_refuse(policy, options):
    with pytest.raises(RecipeError):
        policy(np.ones(4), np.ones(4, int), 0, np.random.default_rng(0), **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"epochs": 0}, RecipeError),
        ({"epochs": 4, "delta": 0}, RecipeError),
        ({"epochs": 4, "delta": math.nan}, RecipeError),
        ({"epochs": 4, "prune_ratio": 1.0}, RecipeError),
        ({"epochs": 4, "prune_ratio": -0.1}, RecipeError),
        ({"epochs": 4, "num_group": 0}, RecipeError),
        ({"epochs": 4, "rule": "both"}, RecipeError),
        ({"epochs": 4, "scores": [1.0, np.inf]}, DataError),
        ({"epochs": 4, "scores": [1.0]}, DataError),
    ],
)
def test_seta_refuses(options, error):
    scores = np.array(options.pop("scores", [1.0, 2.0]))
    with pytest.raises(error):
        seta(scores, np.ones(2, int), 0, np.random.default_rng(0), **options)


def below(scores, seen, ceiling):
    """Which samples a ceiling leaves, one after the other."""
    known = [i for i in range(len(scores)) if seen[i] > 0 and not math.isnan(scores[i])]
    highest_first = sorted(known, key=lambda i: (-scores[i], -i))  # of equal losses the last is the first to go
    left_out = set(highest_first[: int(Fraction(str(ceiling)) * len(known))])
    return [i for i in range(len(scores)) if i not in left_out]


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0, math.nan]), st.integers(0, 2)), min_size=1, max_size=30
    ),
    st.sampled_from([0.1, 0.29, 0.3, 0.5, 0.7, 0.9]),
    st.integers(0, 7),
)
@settings(max_examples=200, deadline=None)
def test_a_ceiling_is_the_same_policy_without_the_highest_losses(history, ceiling, epoch):
    scores, seen = np.array([score for score, _ in history]), np.array([count for _, count in history])
    rows = np.array(below(scores, seen, ceiling))
    for policy in (
        functools.partial(seta, epochs=8, num_group=3, prune_ratio=0.2),
        functools.partial(infobatch, epochs=8),
        functools.partial(random, prune_ratio=0.0),
        functools.partial(hard_first, epochs=8),
        functools.partial(hard_batches, batch_size=4),
    ):
        plan = with_ceiling(policy, ceiling)(scores, seen, epoch, np.random.default_rng(3))
        expected = policy(scores[rows], seen[rows], epoch, np.random.default_rng(3))
        assert plan.indices.tolist() == rows[expected.indices].tolist()
        assert plan.indices.dtype == np.int64
        assert plan.weights.tolist() == expected.weights.tolist()
        assert (plan.groups, plan.ordered) == (expected.groups, expected.ordered)


def test_a_ceiling_holds_in_the_last_epochs_and_never_for_what_was_not_seen():
    scores, seen = np.array([9.0, 0.1, 5.0, np.nan, 5.0, 0.3]), np.array([0, 1, 1, 0, 1, 1])
    for policy in (functools.partial(seta, epochs=8, num_group=2), functools.partial(infobatch, epochs=8)):
        capped = with_ceiling(policy, 0.25)
        assert capped(scores, seen, 7, np.random.default_rng(0)).indices.tolist() == [0, 1, 2, 3, 5]
        nothing = capped(scores, np.zeros(6, int), 0, np.random.default_rng(0))
        assert nothing.indices.tolist() == list(range(6))


def test_no_ceiling_is_the_policy_itself():
    assert with_ceiling(random, 0) is random


@pytest.mark.parametrize("ceiling", [-0.1, 1.0, math.nan])
def test_a_ceiling_out_of_range_is_refused(ceiling):
    with pytest.raises(RecipeError, match=r"ceiling is .* it must be in \[0, 1\)"):
        with_ceiling(random, ceiling)


def test_a_ceiling_refuses_what_its_policy_refuses():
    capped = with_ceiling(random, 0.5)
    for scores, seen in (([1.0, np.inf], [1, 1]), ([1.0], [1, 1])):
        with pytest.raises(DataError):
            capped(np.array(scores), np.array(seen), 1, np.random.default_rng(0))

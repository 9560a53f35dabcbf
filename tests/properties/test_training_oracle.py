"""Plans and weights of dynamic training against a second, slow transcription of the papers' formulas.

The first half of the file is the transcription: exact rational numbers where the formulas only add and compare,
decimals of sixty digits where they exponentiate, and nothing shared with the library. Where a document leaves a choice
(which samples a random draw takes, which of several equally good groupings is found), what is left open is tested as
such: the draw is read off a plan that shows nothing else, and every best grouping is allowed.

Sources: SeTa is arXiv 2503.13385, InfoBatch 2303.04947, hard mini-batches 2304.03486, the weights by loss 2502.06733,
the focal weights 2506.20923.
"""

import copy
import itertools
import math
import pickle
import random as python_random
import subprocess
import sys
import threading
import tracemalloc
import warnings
from collections import Counter
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler

import tamis
from tamis.selectors.dynamic import hard_batches, hard_first, infobatch, kmeans_1d, random, seta, seta_window
from tamis.training import (
    InfoBatchSampler,
    IngeniousSampler,
    LinearSchedule,
    ManifestSampler,
    PlanSampler,
    ScoreTable,
    SeTaSampler,
    WithIndex,
    focal,
    reweight,
    with_importance,
)

pytestmark = [
    # On a machine of one core torch warns of two worker processes; Python 3.12 warns of every fork beside threads.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks"),
]


# ---- The transcription: plans ----


def as_written(number):
    """The number that the decimal digits mean: 0.3 is three tenths."""
    return Fraction(str(number))


def last_losses(scores, seen):
    """Each sample's last loss as a rational number; None where it was never seen."""
    return [
        Fraction(float(score)) if count > 0 and not math.isnan(score) else None
        for score, count in zip(scores, seen, strict=True)
    ]


def is_one_of_the_last(epoch, epochs, delta):
    """SeTa's step 4, and InfoBatch's: the last (1 - delta) of the epochs."""
    return epoch >= as_written(delta) * epochs


def how_many(n, r):
    """A fraction (1 - r) of n samples: n - floor(r n)."""
    return n - math.floor(as_written(r) * n)


def window(epoch, K, alpha, rule):
    """SeTa's step 3: w groups from n mod (K - w + 1) on; the code takes every group at n = 0."""
    w = math.ceil(as_written(alpha) * K) if rule == "paper" else max(1, round(alpha * K))
    if rule == "code" and epoch == 0:
        return 0, K
    start = epoch % (K - w + 1)
    return start, start + w


def best_groupings(losses, K):
    """SeTa's step 2: every way to part the losses into K intervals of least squared error.

    All intervals are tried, in whole numbers. Groupings that differ by less than float64 can tell are equally good.

    Returns:
        For each, a dictionary from a loss to its group's number, easy to hard.
    """
    levels = sorted(set(losses))
    K = min(K, len(levels))
    unit = math.lcm(*(level.denominator for level in levels))
    points = [int(level * unit) for level in levels]
    mass = [losses.count(level) for level in levels]
    common = math.lcm(*range(1, len(losses) + 1))

    def error(i, j):
        """Common times the squared distances of levels i .. j - 1 to their mean."""
        W = sum(mass[i:j])
        first = sum(m * x for m, x in zip(mass[i:j], points[i:j], strict=True))
        second = sum(m * x * x for m, x in zip(mass[i:j], points[i:j], strict=True))
        return (W * second - first * first) * (common // W)

    m, n = len(levels), len(losses)
    errors = {(i, j): error(i, j) for i in range(m) for j in range(i + 1, m + 1)}
    totals = {}
    for cut in itertools.combinations(range(1, m), K - 1):
        borders = (0, *cut, m)
        totals[borders] = sum(errors[pair] for pair in itertools.pairwise(borders))
    spread, rounding = errors[0, m] // common, max(map(abs, points)) >> 50
    slack = spread // 10**13 + 4 * math.isqrt(n * spread) * rounding + n * rounding**2
    limit = min(totals.values()) + common * slack
    return [
        {levels[p]: group for group in range(K) for p in range(borders[group], borders[group + 1])}
        for borders, total in totals.items()
        if total <= limit
    ]


def seta_plans(losses, drawn, epoch, groupings, *, epochs, alpha, delta, rule):
    """SeTa's steps 3 and 4 on a uniform draw, for each of the best groupings of its losses."""
    if is_one_of_the_last(epoch, epochs, delta) or not groupings:
        return [drawn]
    plans = []
    for group_of in groupings:
        start, stop = window(epoch, max(group_of.values()) + 1, alpha, rule)
        plans.append([i for i in drawn if losses[i] is None or start <= group_of[losses[i]] < stop])
    return plans


def below_the_mean(losses):
    """InfoBatch: True for samples below the mean of all last losses; None where float64 cannot tell."""
    known = [loss for loss in losses if loss is not None]
    if len(set(known)) < 2:
        return [False] * len(losses)
    mean = sum(known) / len(known)
    plain = 0.0
    exact = True
    for loss in known:
        exact = exact and Fraction(plain) + loss == Fraction(plain + float(loss))
        plain += float(loss)
    exact = exact and Fraction(plain / len(known)) == mean
    doubt = 0 if exact else len(known) * max(map(abs, known)) / 2**51
    return [
        False if loss is None else None if doubt > 0 and abs(loss - mean) <= doubt else loss < mean for loss in losses
    ]


def highest(losses, r):
    """The greedy baseline: never-seen samples first, then by falling loss, ties to the lowest index."""
    order = sorted(range(len(losses)), key=lambda i: (losses[i] is not None, -(losses[i] or 0), i))
    return sorted(order[: how_many(len(losses), r)])


# ---- The transcription: weights ----


def decimal(number):
    fraction = Fraction(number)
    return Decimal(fraction.numerator) / Decimal(fraction.denominator)


def softmax_weights(losses, strategy, r):
    """Section 3 of the paper with delta = 1, one sample at a time."""
    losses = [Fraction(float(loss)) for loss in losses]
    top, bottom = max(losses), min(losses)
    scores = []
    for loss in losses:
        h = (2 * loss - (top + bottom)) / max(top - bottom, Fraction(1, 10**6))
        if strategy == "linupper":
            s = min(h + 1, Fraction(1))
        elif strategy == "quadratic":
            s = 1 - h**2
        elif strategy == "extremes":
            s = abs(h)
        elif strategy == "upper":
            s = (h + 1) / 2
        else:
            s = Fraction(0)
        scores.append((decimal(s) / decimal(float(r))).exp() if r != math.inf else Decimal(1))
    return [score / sum(scores) for score in scores]


def held_below_two_over_m(weights):
    """The theory's clip: the k greatest at 2/m, the others in proportion, for the least k at which none is above."""
    m = len(weights)
    cap = Decimal(2) / m
    order = sorted(range(m), key=lambda i: -weights[i])
    for k in range(m):
        scale = (1 - k * cap) / sum(weights[i] for i in order[k:])
        if weights[order[k]] * scale <= cap:
            break
    held = set(order[:k])
    return [cap if i in held else weights[i] * scale for i in range(m)]


def batch_weights(losses, strategy="uniform", r=1.0, clip=False, importance=None, tokens=None, factors=None):
    """Weights by loss, times importance and token counts, scaled to sum 1; times the policy's own factors."""
    with localcontext() as context:
        context.prec = 60
        weights = softmax_weights(losses, strategy, r)
        if clip:
            weights = held_below_two_over_m(weights)
        for factor in (importance, tokens):
            if factor is not None:
                weights = [w * decimal(float(f)) for w, f in zip(weights, factor, strict=True)]
        weights = [w / sum(weights) for w in weights]
        if factors is not None:
            weights = [w * decimal(f) for w, f in zip(weights, factors, strict=True)]
        return [float(w) for w in weights]


# ---- Losses to try them on ----

NAN = math.nan
DEGENERATE = {
    "one sample": [0.7],
    "one sample, never seen": [NAN],
    "none seen": [NAN] * 6,
    "all equal": [0.1] * 9,
    "zeros": [0.0] * 5,
    "two values": [1.0, 3.0, 1.0, 1.0, 3.0, 1.0, 3.0],
    "fewer values than groups": [2.0, 0.5, 2.0, 7.0, 0.5, 0.5, 7.0, 2.0],
    "some never seen": [0.5, NAN, 4.0, NAN, 1.75, 8.25, 0.25, NAN],
    "already sorted": [0.0, 0.1, 0.4, 0.9, 1.6, 2.5, 3.6, 4.9, 6.4, 8.1],
    "reversed": [8.1, 6.4, 4.9, 3.6, 2.5, 1.6, 0.9, 0.4, 0.1, 0.0],
    "evenly spaced": [5.0, 3.0, 1.0, 0.0, 2.0, 4.0],
    "huge": [1e30, 3e30, 2.5e29, 9e30, 8.5e30, 3.1e30, 1e29],
    "tiny": [1e-30, 3e-30, 2.5e-31, 9e-30, 8.5e-30, 3.1e-30, 1e-31],
    "tiny and huge": [1e-30, 1e30, 1.0, 2e-30, 3e30, 2.0, NAN, 1e15],
    "denormal": [1e-45, 4e-45, 1.4e-44, 0.0, 7e-45, 1.3e-44, 1e-40],
    "negative": [-3.0, -1.0, 2.0, -2.5, 0.0, 1.5],
    "far from zero": [1e7 + 1, 1e7 + 2, 1e7 + 9, 1e7 + 4, 1e7 + 8],
}


def arrays(values, dtype=np.float32):
    """Scores and seen counts, of which a policy takes a sample for unseen by either."""
    scores = np.array(values, dtype=dtype)
    return scores, np.where(np.isnan(scores), 0, 1 + np.arange(len(values)) % 3)


@st.composite
def histories(draw, most=9):
    """Scores and seen counts: few or many values, any scale, some never seen in either of the two ways."""
    value = draw(
        st.sampled_from(
            [
                st.floats(0, 20, width=32),
                st.sampled_from([0.0, 0.25, 1.0, 2.5]),
                st.integers(0, 6).map(float),
                st.floats(2**-149, 2**127, width=32),
                st.integers(-30, 30).map(lambda exponent: 10.0**exponent),
            ]
        )
    )
    values = draw(st.lists(value | st.just(NAN) if draw(st.booleans()) else value, min_size=1, max_size=most))
    scores, seen = arrays(values, draw(st.sampled_from([np.float32, np.float64])))
    if draw(st.booleans()):
        seen[draw(st.integers(0, len(values) - 1))] = 0
    return scores, seen


RATIOS = (0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9)
SEEDS = st.integers(0, 2**32)


def generator(seed):
    return np.random.default_rng(seed)


def assert_plan(plan, indices, weights=None):
    """The same samples and the same weights, of the documented types."""
    assert plan.indices.dtype == np.int64
    assert plan.weights.dtype == np.float32
    assert plan.indices.tolist() == list(indices)
    assert plan.weights.tolist() == ([1.0] * len(indices) if weights is None else weights)


def assert_uniform(counts, expected):
    """Chi-squared, for counts that were drawn with fixed seeds."""
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    freedom = counts.size - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * math.sqrt(2 * freedom)


def each_history(test):
    """On every degenerate history, and on generated ones."""
    test = given(history=histories(), seed=SEEDS, data=st.data())(test)
    return settings(max_examples=200, deadline=None)(test)


# ---- One-dimensional k-means ----


def assert_best_partition(values, groups):
    """The labels are those of a best partition into intervals, of which all were tried."""
    losses = [Fraction(float(value)) for value in values]
    best = [[group_of[loss] for loss in losses] for group_of in best_groupings(losses, groups)]
    assert kmeans_1d(values, groups).tolist() in best


@pytest.mark.parametrize("name", [name for name in DEGENERATE if NAN not in DEGENERATE[name]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kmeans_1d_of_degenerate_losses_is_the_best_of_all_partitions(name, dtype):
    values = np.array(DEGENERATE[name], dtype)
    for groups in range(1, 9):
        assert_best_partition(values, groups)


@given(st.lists(st.floats(-(2**100), 2**100, width=32), min_size=1, max_size=8), st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_kmeans_1d_is_the_best_of_all_partitions_at_any_scale(values, groups):
    assert_best_partition(np.array(values), groups)


@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=8),
    st.integers(1, 6),
    st.sampled_from([-1040, -600, -160, 100, 500, 990]),
    st.sampled_from([0, 1000, 2**30]),
)
@settings(max_examples=150, deadline=None)
def test_kmeans_1d_is_the_best_of_all_partitions_where_squares_overflow_and_float32_is_too_coarse(
    steps, groups, exponent, offset
):
    assert_best_partition(np.ldexp(np.array(steps, float) + offset, exponent), groups)


@pytest.mark.parametrize("seed", range(4))
def test_kmeans_1d_of_hundreds_of_losses_has_the_least_squared_error(seed):
    rng = generator(seed)
    values = np.sort(rng.permutation(np.concatenate([rng.exponential(size=150), rng.normal(6, 0.1, 50).round(1)])))
    n = values.size
    error = np.zeros((n + 1, n + 1))
    for i in range(n):
        # Welford's updates: the squared distances to the mean, of ever more values.
        mean = total = 0.0
        for j in range(i, n):
            step = values[j] - mean
            mean += step / (j - i + 1)
            total += step * (values[j] - mean)
            error[i, j + 1] = total
    best = error[0].copy()
    for groups in range(1, 13):
        if groups > 1:
            best = np.array([min((best[i] + error[i, j] for i in range(j)), default=0.0) for j in range(n + 1)])
        labels = kmeans_1d(values, groups)
        found = sum(((values[labels == g] - values[labels == g].mean()) ** 2).sum() for g in range(groups))
        assert found == pytest.approx(best[n], rel=1e-10)


# ---- SeTa ----


@pytest.mark.parametrize("rule", ["paper", "code"])
def test_the_window_is_the_papers_and_the_codes_over_the_whole_grid(rule):
    # Hundredths, because 0.55 * 20 and 0.07 * 100 are a rounding error above what they mean.
    for K in (*range(1, 9), 10, 20, 100):
        for hundredths in range(1, 101):
            for epoch in (*range(4), K, 3 * K + 1):
                assert seta_window(epoch, K, hundredths / 100, rule) == window(epoch, K, hundredths / 100, rule)


def test_what_is_left_out_is_the_floor_of_what_the_digits_of_r_mean():
    # 0.29 * 100 is a rounding error below 29.
    for n in (1, 7, 10, 99, 100, 200):
        for hundredths in range(100):
            r = hundredths / 100
            assert random(np.zeros(n), np.zeros(n, int), 0, generator(0), prune_ratio=r).indices.size == how_many(n, r)


def check_seta(scores, seen, seed, *, r, K, alpha, delta, epochs):
    losses = last_losses(scores, seen)
    # An epoch without window is the uniform draw and nothing else.
    drawn = seta(scores, seen, 1, generator(seed), epochs=2, delta=0.5, prune_ratio=r).indices.tolist()
    assert len(drawn) == len(set(drawn)) == how_many(len(losses), r)
    assert drawn == sorted(drawn)
    assert set(drawn) <= set(range(len(losses)))
    known = [losses[i] for i in drawn if losses[i] is not None]
    groupings = best_groupings(known, K) if known else []
    for rule in ("paper", "code"):
        for epoch in range(epochs):
            rng = generator(seed)
            plan = seta(
                scores, seen, epoch, rng,
                epochs=epochs, num_group=K, window_scale=alpha, prune_ratio=r, delta=delta, rule=rule,
            )  # fmt: skip
            allowed = seta_plans(losses, drawn, epoch, groupings, epochs=epochs, alpha=alpha, delta=delta, rule=rule)
            assert plan.indices.tolist() in allowed
            assert_plan(plan, plan.indices)
            assert not plan.ordered
            windowed = known and not is_one_of_the_last(epoch, epochs, delta)
            assert plan.groups == (min(K, len(set(known))) if windowed else 0)
            if r == 0:
                assert rng.bit_generator.state == generator(seed).bit_generator.state


@each_history
def test_seta_is_the_transcription(history, seed, data):
    options = {
        "r": data.draw(st.sampled_from(RATIOS)),
        "K": data.draw(st.integers(1, 6)),
        "alpha": data.draw(st.integers(1, 20)) / 20,
        "delta": data.draw(st.sampled_from([0.1, 0.3, 0.5, 0.875, 0.9, 1.0])),
        "epochs": data.draw(st.integers(1, 12)),
    }
    check_seta(*history, seed, **options)


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize(
    "options",
    [
        # The paper's: in general, CIFAR, ImageNet; then a window that wraps often, and none of the last epochs.
        {"r": 0.0, "K": 10, "alpha": 0.5, "delta": 0.875, "epochs": 16},
        {"r": 0.1, "K": 5, "alpha": 0.9, "delta": 0.875, "epochs": 12},
        {"r": 0.0, "K": 5, "alpha": 0.6, "delta": 0.875, "epochs": 12},
        {"r": 0.5, "K": 3, "alpha": 0.3, "delta": 1.0, "epochs": 10},
    ],
)
def test_seta_of_degenerate_losses_is_the_transcription(name, options):
    for dtype in (np.float32, np.float64):
        check_seta(*arrays(DEGENERATE[name], dtype), 11, **options)


def test_a_loss_counts_only_where_the_sample_was_seen():
    scores = np.array([0.0, 9.0, 1.0, 5.0, NAN, 2.0])
    for seen in itertools.product([0, 2], repeat=6):
        check_seta(scores, np.array(seen), 5, r=0.0, K=3, alpha=0.5, delta=1.0, epochs=4)


def test_the_uniform_draw_is_uniform_over_all_subsets():
    scores, seen = arrays([1.0, 2.0, NAN, 4.0, 5.0])
    for policy in (partial(random, prune_ratio=0.4), partial(seta, epochs=2, delta=0.5, prune_ratio=0.4)):
        counts = Counter(tuple(policy(scores, seen, 1, generator(seed)).indices.tolist()) for seed in range(3000))
        assert set(counts) == set(itertools.combinations(range(5), 3))
        assert_uniform(list(counts.values()), 300)


# ---- InfoBatch, and the baselines ----


def check_infobatch(scores, seen, seed, *, r, delta, epochs):
    losses = last_losses(scores, seen)
    easy = below_the_mean(losses)
    for epoch in range(epochs):
        plan = infobatch(scores, seen, epoch, generator(seed), epochs=epochs, prune_ratio=r, delta=delta)
        kept = plan.indices.tolist()
        assert not plan.ordered
        if is_one_of_the_last(epoch, epochs, delta) or r == 0:
            assert_plan(plan, range(len(losses)))
            continue
        heavy = float(np.float32(1 / (1 - as_written(r))))
        assert kept == sorted(set(kept))
        assert set(kept) <= set(range(len(losses)))
        # Only what is below the mean is ever dropped, and what is below the mean and kept always weighs more.
        assert {i for i in range(len(losses)) if easy[i] is False} <= set(kept)
        for i, weight in zip(kept, plan.weights.tolist(), strict=True):
            allowed = {False: {1.0}, True: {heavy}, None: {1.0, heavy}}
            assert weight in allowed[easy[i]]
        assert_plan(plan, kept, plan.weights.tolist())


@each_history
def test_infobatch_is_the_transcription(history, seed, data):
    check_infobatch(
        *history,
        seed,
        r=data.draw(st.sampled_from(RATIOS)),
        delta=data.draw(st.sampled_from([0.1, 0.5, 0.875, 1.0])),
        epochs=data.draw(st.integers(1, 12)),
    )


@pytest.mark.parametrize("name", DEGENERATE)
def test_infobatch_of_degenerate_losses_is_the_transcription(name):
    for seed, dtype in itertools.product(range(5), (np.float32, np.float64)):
        check_infobatch(*arrays(DEGENERATE[name], dtype), seed, r=0.5, delta=0.875, epochs=8)


def test_infobatch_drops_each_easy_sample_with_probability_r_whatever_becomes_of_the_others():
    # The mean of the seen ones is 2; the median 1, which is easy too.
    scores, seen = arrays([0.0, 0.5, 1.0, 6.5, NAN])
    r, trials = 0.3, 4000
    kept = [infobatch(scores, seen, 0, generator(s), epochs=4, prune_ratio=r).indices for s in range(trials)]
    counts = Counter(tuple(k for k in indices.tolist() if k < 3) for indices in kept)
    patterns = [p for size in range(4) for p in itertools.combinations(range(3), size)]
    assert_uniform([counts[p] for p in patterns], [trials * (1 - r) ** len(p) * r ** (3 - len(p)) for p in patterns])
    assert all({3, 4} <= set(indices.tolist()) for indices in kept)


@each_history
def test_random_and_hard_first_are_the_transcription(history, seed, data):
    scores, seen = history
    losses = last_losses(scores, seen)
    r = data.draw(st.sampled_from(RATIOS))
    epochs = data.draw(st.integers(1, 10))
    delta = data.draw(st.sampled_from([0.1, 0.3, 0.875, 1.0]))
    for epoch in range(epochs):
        rng = generator(seed)
        plan = random(scores, seen, epoch, rng, prune_ratio=r)
        assert plan.indices.size == how_many(len(losses), r)
        assert_plan(plan, sorted(set(range(len(losses))) & set(plan.indices.tolist())))
        if r == 0:
            assert rng.bit_generator.state == generator(seed).bit_generator.state
        rng = generator(seed)
        plan = hard_first(scores, seen, epoch, rng, epochs=epochs, prune_ratio=r, delta=delta)
        everything = is_one_of_the_last(epoch, epochs, delta)
        assert_plan(plan, range(len(losses)) if everything else highest(losses, r))
        assert rng.bit_generator.state == generator(seed).bit_generator.state


@pytest.mark.parametrize("name", DEGENERATE)
def test_hard_first_of_degenerate_losses_is_the_transcription(name):
    for r, dtype in itertools.product(RATIOS, (np.float32, np.float64)):
        scores, seen = arrays(DEGENERATE[name], dtype)
        plan = hard_first(scores, seen, 0, generator(0), epochs=8, prune_ratio=r)
        assert_plan(plan, highest(last_losses(scores, seen), r))


def check_hard_batches(scores, seen, seed, *, size, keep):
    losses = last_losses(scores, seen)
    # With keep = 1 the plan is the deal.
    deal = hard_batches(scores, seen, 0, generator(seed), batch_size=size, keep=1.0).indices.tolist()
    assert sorted(deal) == list(range(len(losses)))
    batches = [deal[start : start + size] for start in range(0, len(deal), size)]
    plan = hard_batches(scores, seen, 0, generator(seed), batch_size=size, keep=keep)
    assert plan.ordered
    kept = [batch for batch in batches if batch[0] in plan.indices]
    assert_plan(plan, [i for batch in kept for i in batch])
    assert len(kept) == 1 or abs(len(kept) - as_written(keep) * len(batches)) <= Fraction(1, 2)
    assert kept

    def hardness(batch):
        if any(losses[i] is None for i in batch):
            return math.inf
        return sum(losses[i] for i in batch) / len(batch)

    least = min(map(hardness, kept))
    for batch in batches:
        if batch not in kept:
            # Means that float64 cannot tell apart are ties.
            assert hardness(batch) <= least or abs(hardness(batch) - least) <= abs(least) / 2**48


@each_history
def test_hard_batches_are_the_transcription(history, seed, data):
    size, keep = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([0.05, 0.3, 0.4, 0.5, 0.75, 1.0]))
    check_hard_batches(*history, seed, size=size, keep=keep)


@pytest.mark.parametrize("name", DEGENERATE)
def test_hard_batches_of_degenerate_losses_are_the_transcription(name):
    for size, keep, seed in itertools.product((1, 2, 3, 20), (0.01, 0.3, 0.6, 1.0), range(3)):
        check_hard_batches(*arrays(DEGENERATE[name]), seed, size=size, keep=keep)


def test_hard_batches_deal_every_order_alike():
    scores, seen = arrays([1.0, 2.0, 3.0, 4.0])
    deals = [hard_batches(scores, seen, 0, generator(s), batch_size=2, keep=1.0).indices for s in range(3000)]
    counts = Counter(tuple(deal.tolist()) for deal in deals)
    assert set(counts) == set(itertools.permutations(range(4)))
    assert_uniform(list(counts.values()), 125)


# ---- Weights ----

STRATEGIES = ("uniform", "linupper", "quadratic", "extremes", "upper")
TEMPERATURES = (0.05, 0.4, 1.0, 7.5, math.inf)
# A tensor's weights have its own dtype.
PRECISION = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
BATCHES = {name: [loss for loss in values if not math.isnan(loss)] for name, values in DEGENERATE.items()}
BATCHES["an outlier"] = [0.1, 0.2, 0.3, 0.1, 0.4, 90.0]
BATCHES["nearly equal"] = [1.0, 1.0 + 2e-7, 1.0 + 4e-7, 1.0 + 8e-7]
BATCHES = {name: losses for name, losses in BATCHES.items() if losses}

batches = st.one_of(
    st.lists(st.floats(0, 50, width=32), min_size=1, max_size=12),
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=12),
    st.lists(st.integers(-30, 30).map(lambda exponent: 10.0**exponent), min_size=1, max_size=12),
)


def assert_weights(losses, strategy, r, clip):
    expected = batch_weights(losses, strategy, r, clip)
    weights = reweight(np.array(losses), strategy, r, clip=clip)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, expected, rtol=1e-9)
    np.testing.assert_allclose(reweight(torch.tensor(losses, dtype=torch.float64), strategy, r, clip=clip), expected)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
@given(losses=batches, r=st.sampled_from(TEMPERATURES) | st.floats(0.05, 10))
@settings(max_examples=80, deadline=None)
def test_weights_are_the_transcription(strategy, clip, losses, r):
    assert_weights(losses, strategy, r, clip)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_of_degenerate_batches_are_the_transcription(strategy, name):
    for r, clip in itertools.product(TEMPERATURES, (False, True)):
        assert_weights(BATCHES[name], strategy, r, clip)
        for dtype, precision in PRECISION.items():
            losses = torch.tensor(BATCHES[name], dtype=dtype)
            if not losses.isfinite().all() or r < 0.4:
                continue
            weights = reweight(losses, strategy, r, clip=clip)
            assert weights.dtype == dtype
            expected = batch_weights(losses.double().tolist(), strategy, r, clip)
            np.testing.assert_allclose(weights.double(), expected, rtol=precision)


@given(batches, st.data())
@settings(max_examples=100, deadline=None)
def test_importance_is_the_transcription(losses, data):
    factors = data.draw(st.lists(st.floats(2**-40, 2**40), min_size=len(losses), max_size=len(losses)))
    weights = with_importance(reweight(np.array(losses), "upper", 0.4), np.array(factors))
    np.testing.assert_allclose(weights, batch_weights(losses, "upper", 0.4, importance=factors), rtol=1e-9)


@given(st.lists(st.floats(0, 90), min_size=1, max_size=8), st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]))
@settings(max_examples=40, deadline=None)
def test_focal_weights_are_the_transcription(losses, gamma):
    with localcontext() as context:
        context.prec = 700  # 1 - exp(-loss) of a denormal loss
        expected = [float((1 - (-decimal(loss)).exp()) ** decimal(gamma)) if gamma else 1.0 for loss in losses]
    np.testing.assert_allclose(focal(np.array(losses), gamma), expected, rtol=1e-12, atol=1e-300)


# ---- The sampler: the same plan from its own record of losses, the same weights in every batch ----

N = 36


def loss_of(i, epoch):
    """A made-up training, with losses that sixteen bits hold exactly, so that float32 does."""
    return (7 * i % 13 + 1) / (1 + epoch) // 0.125 / 8 + (i % 5) / 64


def assert_order(order, plan, size, shuffled):
    """Whole repeats of the plan, and the beginning of one more."""
    assert len(order) == size
    m = len(plan)
    for start in range(0, size, m):
        part = order[start : start + m]
        assert len(set(part)) == len(part)
        assert set(part) <= set(plan)
        assert len(part) == min(m, size - start)
        if not shuffled:
            assert part == plan[: len(part)]


@pytest.mark.parametrize("epoch_size", ["pruned", "fixed", 50])
@pytest.mark.parametrize("kind", ["seta", "infobatch", "hard_first", "hard_batches"])
@pytest.mark.parametrize(("strategy", "clip"), [("uniform", False), ("linupper", False), ("upper", True)])
def test_a_training_is_the_transcription(kind, epoch_size, strategy, clip):
    epochs, seed, size, warmup = 8, 5, 8, 3
    importance = (1 + np.arange(N) % 4).astype(np.float32) / 2
    options = {
        "seed": seed, "epoch_size": epoch_size, "strategy": strategy, "clip": clip, "warmup_steps": warmup,
        "r": lambda step: 1.0 - step / 100, "importance": importance,
    }  # fmt: skip
    sampler = {
        "seta": partial(SeTaSampler, N, epochs=epochs, num_group=4),
        "infobatch": partial(InfoBatchSampler, N, epochs=epochs, prune_ratio=0.25),
        "hard_first": partial(PlanSampler, N, partial(hard_first, epochs=epochs, prune_ratio=0.25)),
        "hard_batches": partial(PlanSampler, N, partial(hard_batches, batch_size=size, keep=0.6)),
    }[kind](**options)
    last, step = [None] * N, 0
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        frozen = list(last)
        order = list(sampler)
        plan, factors = sampler.plan.indices.tolist(), [Fraction(1)] * N
        if kind == "seta":
            groupings = best_groupings([loss for loss in frozen if loss is not None], 4) if epoch else []
            options = {"epochs": epochs, "alpha": 0.5, "delta": 0.875, "rule": "paper"}
            assert plan in seta_plans(frozen, list(range(N)), epoch, groupings, **options)
        elif kind == "hard_first":
            assert plan == (list(range(N)) if epoch == 7 else highest(frozen, 0.25))
        else:
            # Epoch e draws from SeedSequence([seed, e]); the policy's own tests are above.
            rng = np.random.default_rng(np.random.SeedSequence([seed, epoch]))
            scores = np.array([NAN if loss is None else float(loss) for loss in frozen])
            seen = np.array([int(loss is not None) for loss in frozen])
            policy = {
                "infobatch": partial(infobatch, epochs=epochs, prune_ratio=0.25),
                "hard_batches": partial(hard_batches, batch_size=size, keep=0.6),
            }[kind]
            own = policy(scores, seen, epoch, rng)
            assert_plan(sampler.plan, own.indices.tolist(), own.weights.tolist())
            if kind == "infobatch" and epoch < 7:
                easy = below_the_mean(frozen)
                factors = [Fraction(4, 3) if easy[i] else Fraction(1) for i in range(N)]
            if epoch_size != "pruned":
                mean = sum(factors[i] for i in plan) / len(plan)
                factors = [factor / mean for factor in factors]
        assert_order(order, plan, {"pruned": len(plan), "fixed": N}.get(epoch_size, 50), kind != "hard_batches")
        for start in range(0, len(order), size):
            ids = order[start : start + size]
            losses = [loss_of(i, epoch) for i in ids]
            tokens = [1 + i % 3 for i in ids] if step % 2 else None
            weights = sampler.observe(ids, torch.tensor(losses, dtype=torch.float64), tokens)
            expected = batch_weights(
                losses,
                "uniform" if step < warmup else strategy,
                1.0 - max(0, step - warmup) / 100,
                clip,
                importance[ids],
                tokens,
                [factors[i] for i in ids],
            )
            np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
            step += 1
            for i, loss in zip(ids, losses, strict=True):
                last[i] = Fraction(loss)
    assert sampler.steps == step


def test_the_order_is_uniform_over_all_permutations():
    counts = Counter()
    for seed in range(300):
        sampler = PlanSampler(4, random, seed=seed, epoch_size=8)
        for epoch in range(4):
            sampler.set_epoch(epoch)
            order = list(sampler)
            counts[tuple(order[:4])] += 1
            counts[tuple(order[4:])] += 1
    assert set(counts) == set(itertools.permutations(range(4)))
    assert_uniform(list(counts.values()), 100)


def test_a_linear_schedule_is_a_straight_line():
    schedule = LinearSchedule(2.0, 0.5, steps=6)
    line = [Fraction(2) + (Fraction(1, 2) - 2) * Fraction(min(step, 6), 6) for step in range(9)]
    assert [schedule(step) for step in range(9)] == pytest.approx([float(r) for r in line], rel=1e-15)


@pytest.fixture
def processes(monkeypatch):
    """Run a function of the rank in so many threads, which stand for the processes of torch.distributed."""

    def run(size, work):
        own, barrier, board, results = threading.local(), threading.Barrier(size, timeout=60), {}, [None] * size

        def all_gather(parts, values):
            board[own.rank] = values.clone()
            barrier.wait()
            for rank, part in enumerate(parts):
                part.copy_(board[rank])
            barrier.wait()

        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
        monkeypatch.setattr(torch.distributed, "all_gather", all_gather)

        def thread(rank):
            own.rank = rank
            try:
                results[rank] = work(rank)
            except BaseException:
                barrier.abort()
                raise

        threads = [threading.Thread(target=thread, args=(rank,)) for rank in range(size)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return results

    return run


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("epoch_size", ["pruned", "fixed", 25])
def test_the_weights_of_several_processes_are_those_of_one_with_the_joined_batch(processes, size, epoch_size):
    def train(rank, size, batch):
        sampler = InfoBatchSampler(
            N, epochs=4, seed=3, epoch_size=epoch_size, strategy="linupper", clip=True,
            importance=1 + np.arange(N) % 4, num_replicas=size, rank=rank,
        )  # fmt: skip
        steps = []
        for epoch in range(4):
            sampler.set_epoch(epoch)
            order = list(sampler)
            for start in range(0, len(order), batch):
                ids = order[start : start + batch]
                losses = torch.tensor([loss_of(i, epoch) for i in ids], dtype=torch.float64)
                weights = sampler.observe(ids, losses, 1 + np.array(ids) % 3)
                steps.append(list(zip(ids, weights.tolist(), strict=True)))
        return steps, sampler.scores.live, sampler.scores.seen, sampler.state_dict()

    one, live, seen, state = train(0, 1, 4 * size)
    several = processes(size, lambda rank: train(rank, size, 4))
    for steps, live_of_rank, seen_of_rank, state_of_rank in several:
        np.testing.assert_array_equal(live_of_rank, live)
        np.testing.assert_array_equal(seen_of_rank, seen)
        assert state_of_rank == state
        assert len(steps) == len(one)
    for step, joined in enumerate(one):
        parts = [several[rank][0][step] for rank in range(size)]
        # In turn: first each process's first sample. Where samples ran out, the last are there twice and weigh nothing.
        together = [part[t] for t in range(len(parts[0])) for part in parts]
        assert [i for i, _ in together[: len(joined)]] == [i for i, _ in joined]
        # DistributedDataParallel averages the gradients.
        expected = [weight * size for _, weight in joined] + [0.0] * (len(together) - len(joined))
        assert [weight for _, weight in together] == pytest.approx(expected, rel=1e-12)


# ---- Ids beyond what float32 can count ----

MANY = 17_000_000
AROUND = [*range(2**24 - 1, 2**24 + 4), MANY - 1]


def missing(plan):
    """The ids that are not in a plan of MANY."""
    absent = np.ones(MANY, bool)
    absent[plan.indices] = False
    assert np.count_nonzero(absent) == MANY - plan.indices.size
    return np.flatnonzero(absent).tolist()


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
def test_ids_beyond_two_to_the_24th_stay_exact_in_records_plans_and_weights():
    sampler = InfoBatchSampler(MANY, epochs=4, seed=2)
    loader = DataLoader(WithIndex(range(MANY)), sampler=AROUND, batch_size=1)
    for step, (ids, values) in enumerate(loader):
        assert ids.dtype == torch.int64
        assert ids.tolist() == values.tolist() == [AROUND[step]]
        sampler.observe(ids, torch.tensor([float(step)]))
        assert np.flatnonzero(sampler.scores.seen).tolist() == AROUND[: step + 1]
    assert np.flatnonzero(~np.isnan(sampler.scores.live)).tolist() == AROUND
    assert sampler.scores.live[AROUND].tolist() == [0, 1, 2, 3, 4, 5]
    assert sampler.scores.seen[AROUND].tolist() == [1] * 6

    # The mean is 2.5: the first three may go, and weigh twice if they stay.
    sampler.set_epoch(1)
    gone = missing(sampler.plan)
    heavy = [i for i in AROUND[:3] if i not in gone]
    assert gone
    assert heavy
    assert sorted(gone + heavy) == AROUND[:3]
    assert sampler.plan.indices[sampler.plan.weights != 1].tolist() == heavy
    weights = sampler.observe([*heavy, *AROUND[3:]], torch.ones(len(heavy) + 3))
    assert weights.tolist() == pytest.approx([2 / weights.numel()] * len(heavy) + [1 / weights.numel()] * 3)
    del sampler

    scores, seen = np.full(MANY, NAN, np.float32), np.zeros(MANY, np.int64)
    scores[AROUND], seen[AROUND] = [0, 1, 2, 3, 4, 5], 1
    # Six groups of one sample each, beside all that was never seen: groups 2, 3 and 4 are in the window.
    assert missing(seta(scores, seen, 2, generator(0), epochs=8, num_group=6)) == [*AROUND[:2], AROUND[5]]
    assert missing(hard_first(scores, seen, 2, generator(0), epochs=8, prune_ratio=5 / MANY)) == AROUND[:5]
    assert tracemalloc.get_traced_memory()[1] < 1.5e9


def test_an_epoch_of_seventeen_million_is_every_id_once():
    sampler = PlanSampler(MANY, random, seed=4, epoch_size="pruned")
    count = np.bincount(np.fromiter(sampler, np.int64, MANY), minlength=MANY)
    assert count.size == MANY
    assert count.min() == count.max() == 1


# ---- Loaders, copies, and what must stay untouched ----

ROWS = 90


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that chose 30 of 90 rows by INGENIOUS."""
    folder = tmp_path_factory.mktemp("oracle")
    words = [f"{kind}{i}" for kind in "abc" for i in range(9)]
    texts = [" ".join(words[(row * k + k * k) % 27] for k in range(1, 8)) for row in range(ROWS)]
    pq.write_table(pa.table({"id": [f"s{row}" for row in range(ROWS)], "text": texts}), folder / "rows.parquet")
    recipe = {
        "name": "oracle",
        "seed": 3,
        "dataset": {"path": str(folder / "rows.parquet"), "id": "id", "text": "text"},
        "stages": [
            {"kind": "embed", "encoder": "lsa", "dim": 8},
            {"kind": "select", "method": "ingenious", "budget": 30, "partition_rows": 20},
        ],
    }
    tamis.run(recipe, folder / "run", executor="sync")
    return folder / "run"


@pytest.fixture(scope="module")
def manifest(run):
    return tamis.open_manifest(run)


SAMPLERS = {
    "seta": lambda _, **more: SeTaSampler(ROWS, epochs=4, num_group=5, prune_ratio=0.1, **more),
    "infobatch": lambda _, **more: InfoBatchSampler(ROWS, epochs=4, **more),
    "random": lambda _, **more: PlanSampler(ROWS, partial(random, prune_ratio=0.4), **more),
    "hard_first": lambda _, **more: PlanSampler(ROWS, partial(hard_first, epochs=4), **more),
    "hard_batches": lambda _, **more: PlanSampler(ROWS, partial(hard_batches, batch_size=16), **more),
    "manifest": lambda manifest, **more: ManifestSampler(manifest, **more),
    "ingenious": lambda manifest, **more: IngeniousSampler(manifest, **more),
}


def build(kind, manifest, epoch_size="pruned"):
    return SAMPLERS[kind](
        manifest,
        seed=9,
        epoch_size=epoch_size,
        strategy="linupper",
        r=LinearSchedule(1.0, 0.4, steps=9),
        warmup_steps=2,
        importance=1 + np.arange(ROWS) % 3,
    )


class Turns:
    """Batches of whichever sampler has its turn, so that all of them share a loader's worker processes."""

    def __init__(self, batch_size):
        self.batch_size = batch_size
        self.sampler = None

    def __iter__(self):
        return iter(BatchSampler(self.sampler, self.batch_size, drop_last=False))


def loader_of(dataset, batch_size=16, **options):
    """A loader with a generator of its own: without, torch itself draws from the global one."""
    turns = Turns(batch_size)
    return turns, DataLoader(WithIndex(dataset), batch_sampler=turns, generator=torch.Generator(), **options)


def go_on(sampler, turns, loader):
    """Trains to the end of the sampler's epoch; gives ids and weights of each batch."""
    turns.sampler = sampler
    for ids, values in loader:
        assert torch.equal(ids, values)
        losses = torch.tensor([loss_of(int(i), sampler.epoch) for i in ids], dtype=torch.float64)
        yield ids.tolist(), sampler.observe(ids, losses).tolist()


def what_follows(sampler):
    """All that a training goes on from after the sampler's epoch."""
    sampler.set_epoch(sampler.epoch + 1)
    scores = sampler.scores.state_dict()
    return sampler.state_dict(), {name: np.asarray(value).tobytes() for name, value in scores.items()}, list(sampler)


def generators():
    """The states of the global random generators."""
    state = np.random.get_state()  # noqa: NPY002
    return python_random.getstate(), state[0], state[1].tobytes(), state[2:], torch.get_rng_state().numpy().tobytes()


def torchs_own():
    """What torch, numpy and Python share with all code of a process."""
    classes = (DataLoader, Sampler, BatchSampler, RandomSampler, Dataset)
    settings = (torch.get_default_dtype(), torch.is_grad_enabled(), np.geterr(), warnings.showwarning)
    return [dict(vars(each)) for each in classes], dict(vars(torch.utils.data)), settings


WORKERS = {
    "none": {},
    "fork": {"num_workers": 2, "multiprocessing_context": "fork", "persistent_workers": True, "prefetch_factor": 4},
    "forkserver": {"num_workers": 2, "multiprocessing_context": "forkserver", "persistent_workers": True},
    "spawn": {"num_workers": 2, "multiprocessing_context": "spawn", "persistent_workers": True, "prefetch_factor": 3},
}


@pytest.mark.parametrize("workers", WORKERS)
def test_every_sampler_and_loader_leaves_the_global_generators_alone_and_gives_the_same_batches(manifest, workers):
    plain = loader_of(range(ROWS))
    loader = loader_of(range(ROWS), **WORKERS[workers])
    for kind in SAMPLERS:
        expected = build(kind, manifest)
        for epoch in range(4):
            expected.set_epoch(epoch)
            list(go_on(expected, *plain))
        python_random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        before = generators(), torchs_own()
        sampler = build(kind, manifest)
        for epoch in range(4):
            sampler.set_epoch(epoch)
            list(go_on(sampler, *loader))
        assert (generators(), torchs_own()) == before
        assert sampler.state_dict() == expected.state_dict()
        np.testing.assert_array_equal(sampler.scores.live, expected.scores.live)
        np.testing.assert_array_equal(sampler.scores.seen, expected.scores.seen)
        assert list(sampler) == list(expected)


class States(Dataset):
    """Gives the states of the worker's own global generators, and says whether they have moved since the first."""

    first = None

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        if self.first is None:
            self.first = generators()
        return int(generators() == self.first)


def test_with_index_leaves_the_generators_of_the_workers_alone(manifest):
    for options in ({}, {"num_workers": 2, "multiprocessing_context": "fork"}):
        turns, loader = loader_of(States(), **options)
        turns.sampler = build("seta", manifest)
        assert [value for _, values in loader for value in values.tolist()] == [1] * len(turns.sampler)


def exercise(folder):
    """Uses every name of the training side, once; the manifest is in the folder."""
    scores, seen = arrays(DEGENERATE["some never seen"])
    kmeans_1d(scores[seen > 0], 3)
    for policy in (
        partial(seta, epochs=4, prune_ratio=0.3),
        partial(infobatch, epochs=4),
        partial(random, prune_ratio=0.3),
        partial(hard_first, epochs=4),
        partial(hard_batches, batch_size=2),
    ):
        for epoch in range(4):
            policy(scores, seen, epoch, generator(0))
    for strategy in STRATEGIES:
        for losses in (np.array([1.0, 2.0, 5.0]), torch.tensor([1.0, 2.0, 5.0])):
            with_importance(reweight(losses, strategy, LinearSchedule(1.0, 0.4, steps=5)(3), clip=True), losses)
            focal(losses)
    ScoreTable(3).record([0, 2], [1.0, 2.0])
    manifest = tamis.open_manifest(folder)
    for options in ({}, {"num_workers": 1, "persistent_workers": True}):
        turns, loader = loader_of(range(ROWS), **options)
        for kind in SAMPLERS:
            sampler = copy.deepcopy(pickle.loads(pickle.dumps(build(kind, manifest))))
            for epoch in range(2):
                sampler.set_epoch(epoch)
                list(go_on(sampler, turns, loader))


def test_importing_and_using_it_all_leaves_torch_numpy_and_random_untouched(run):
    # The snapshot is taken before anything of the library is imported.
    code = """
import pathlib, random, runpy, sys, warnings
import numpy as np, torch, torch.utils.data as data
path, folder = map(pathlib.Path, sys.argv[1:])
def snapshot():
    state = np.random.get_state()
    return (
        [dict(vars(each)) for each in (data, data.DataLoader, data.Sampler, data.BatchSampler, data.Dataset)],
        random.getstate(), state[1].tobytes(), state[2:], torch.get_rng_state().tolist(),
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), np.geterr(),
        [vars(module)[name] for module, names in ((random, ("random", "shuffle", "choice", "seed")),
            (np.random, ("rand", "permutation", "seed", "default_rng")), (torch, ("rand", "randperm", "manual_seed")))
            for name in names],
    )
assert "tamis" not in sys.modules
before = snapshot()
runpy.run_path(str(path))["exercise"](folder)
assert "tamis.training.samplers" in sys.modules
after = snapshot()
assert before == after, [i for i, (a, b) in enumerate(zip(before, after)) if a != b]
"""
    arguments = [sys.executable, "-W", "error::RuntimeWarning", "-c", code, str(Path(__file__)), str(run)]
    subprocess.run(arguments, check=True)


@pytest.mark.parametrize("epoch_size", ["pruned", "fixed"])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_copies_in_mid_epoch_go_on_identically(kind, epoch_size, manifest):
    for clone in (copy.deepcopy, lambda sampler: pickle.loads(pickle.dumps(sampler))):
        original = build(kind, manifest, epoch_size)
        for epoch in range(3):
            original.set_epoch(epoch)
            batches = go_on(original, *loader_of(range(ROWS), 8))
            if epoch < 2:
                list(batches)
        next(batches)
        twin, resumed = clone(original), clone(original)
        resumed.load_state_dict(resumed.state_dict())
        assert twin.state_dict() == resumed.state_dict() == original.state_dict()
        tail = []
        for ids, weights in batches:
            # Each has a record of its own: what the original is given does not reach the twin.
            assert twin.scores.seen.sum() == original.scores.seen.sum() - len(ids)
            losses = torch.tensor([loss_of(i, 2) for i in ids], dtype=torch.float64)
            assert twin.observe(ids, losses).tolist() == weights
            tail.append((ids, weights))
        assert tail
        assert list(go_on(resumed, *loader_of(range(ROWS), 8))) == tail
        # What remained is given once: then the epoch is whole again, for the original too.
        assert list(resumed) == list(original)
        assert len(list(original)) == len(original)
        assert what_follows(twin) == what_follows(resumed) == what_follows(original)


@pytest.mark.parametrize("epoch_size", ["pruned", "fixed"])
def test_resuming_after_every_step_gives_the_same_tail_with_prefetching_workers(epoch_size, manifest):
    pool = loader_of(range(ROWS), **WORKERS["fork"])
    for kind in SAMPLERS:
        sampler = build(kind, manifest, epoch_size)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            whole, saved = [], [(sampler.state_dict(), sampler.scores.state_dict())]
            for batch in go_on(sampler, *pool):
                whole.append(batch)
                saved.append((sampler.state_dict(), sampler.scores.state_dict()))
            expected = what_follows(copy.deepcopy(sampler))
            for step, (state, scores) in enumerate(saved):
                assert state["position"] == sum(len(ids) for ids, _ in whole[:step])
                resumed = build(kind, manifest, epoch_size)
                resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
                resumed.scores.load_state_dict(pickle.loads(pickle.dumps(scores)))
                assert list(go_on(resumed, *pool)) == whole[step:]
                assert what_follows(resumed) == expected


def test_a_loader_that_is_broken_off_resumes_from_what_was_trained_not_from_what_was_fetched(manifest):
    pool = loader_of(range(ROWS), 4, **WORKERS["fork"])
    for kind in SAMPLERS:
        expected = list(build(kind, manifest))
        sampler, ids = build(kind, manifest), []
        while len(ids) < len(expected):
            # Two steps, while eight more batches are fetched; then a fresh start from the state.
            for batch, _ in itertools.islice(go_on(sampler, *pool), 2):
                ids += batch
            state, scores = sampler.state_dict(), sampler.scores.state_dict()
            sampler = build(kind, manifest)
            sampler.load_state_dict(state)
            sampler.scores.load_state_dict(scores)
        assert ids == expected

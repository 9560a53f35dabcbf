import itertools

import numpy as np
import pytest

from tamis.errors import DataError, RecipeError
from tamis.selectors.facility_location import rank_partition, split_into_cells
from tamis.selectors.ingenious import draw, draw_shares, ingenious, overlap_diagnostics, taylor_softmax
from tamis.selectors.selection import as_unit_rows


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("temperature", [0.01, 0.5, 1.0, 30.0])
def test_taylor_softmax_is_the_formula(temperature):
    gains = rng().exponential(size=40)
    phi = [1 + g / temperature + (g / temperature) ** 2 / 2 for g in gains.tolist()]
    np.testing.assert_allclose(taylor_softmax(gains, temperature), np.array(phi) / sum(phi), rtol=1e-12)


def test_taylor_softmax_is_positive_even_for_negative_gains():
    p = taylor_softmax(np.array([-1.0, -100.0, 0.0, 7000.0]), 0.1)
    assert (p > 0).all()
    assert p.sum() == pytest.approx(1.0)


def test_scale_free_does_not_depend_on_the_scale():
    gains = rng().exponential(size=31)
    np.testing.assert_allclose(
        taylor_softmax(gains, 0.7, scale_free=True),
        taylor_softmax(gains * 512.0, 0.7, scale_free=True),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        taylor_softmax(gains, 0.7, scale_free=True), taylor_softmax(gains / np.median(gains), 0.7), rtol=1e-12
    )
    mostly_zero = np.array([8.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(taylor_softmax(mostly_zero, 1.0, True), taylor_softmax(mostly_zero / 2.0, 1.0))
    assert taylor_softmax(np.zeros(4), 1.0, True).tolist() == [0.25] * 4


def test_taylor_softmax_refusals():
    for temperature in (0.0, -1.0, np.nan, np.inf, 1e-300):
        with pytest.raises(RecipeError, match="temperature"):
            taylor_softmax(np.array([1.0, 2.0]), temperature)
    for gains in ([], [np.nan], [np.inf], [[1.0]]):
        with pytest.raises(DataError):
            taylor_softmax(np.array(gains), 1.0)


def test_draws_follow_the_exact_probabilities_of_successive_sampling():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    exact = {}
    for first, second in itertools.permutations(range(4), 2):
        exact[first, second] = p[first] * p[second] / (1 - p[first])
    assert sum(exact.values()) == pytest.approx(1.0)
    generator, trials = rng(3), 20_000
    seen = dict.fromkeys(exact, 0)
    for _ in range(trials):
        first, second = draw(p, 2, generator).tolist()
        seen[first, second] += 1
    for pair, probability in exact.items():
        deviation = (trials * probability * (1 - probability)) ** 0.5
        assert abs(seen[pair] - trials * probability) < 4.5 * deviation, pair


def test_draw_needs_no_normalisation_and_is_a_function_of_the_generator():
    p = rng().random(50) + 0.01
    np.testing.assert_array_equal(draw(p, 20, rng(5)), draw(p, 20, rng(5)))
    np.testing.assert_array_equal(draw(p, 20, rng(5)), draw(p * 4.0, 20, rng(5)))
    np.testing.assert_array_equal(draw(p, 20, rng(5)), draw(p, 50, rng(5))[:20])
    assert sorted(draw(p, 50, rng(6)).tolist()) == list(range(50))
    assert draw(p, 0, rng()).tolist() == []


def test_draw_refusals():
    with pytest.raises(RecipeError):
        draw(np.ones(3), 4, rng())
    for p in ([0.0, 1.0], [np.nan, 1.0], [-1.0, 1.0]):
        with pytest.raises(DataError):
            draw(np.array(p), 1, rng())


def ranked(X, partitions):
    rankings = []
    for part in np.unique(partitions):
        rows = np.flatnonzero(partitions == part)
        local, gains = rank_partition(np.ascontiguousarray(X[rows]), len(rows))
        rankings.append((rows[local], gains))
    return rankings


def test_shares_are_exact_and_the_result_is_ordered_by_gain():
    X = as_unit_rows(rng(1).normal(size=(90, 6)))
    partitions = np.repeat([0, 1, 2], [45, 30, 15])
    indices, gains = draw_shares(ranked(X, partitions), 20, rng(2))
    assert np.bincount(partitions[indices]).tolist() == [10, 7, 3]
    assert len(set(indices.tolist())) == 20
    keys = list(zip((-gains).tolist(), indices.tolist(), strict=True))
    assert keys == sorted(keys)


def test_ingenious_is_its_parts():
    X = rng(3).normal(size=(80, 5))
    partitions = rng(4).integers(-2, 2, size=80)
    selection = ingenious(X, budget=0.25, rng=rng(9), temperature=0.5, partitions=partitions)
    indices, gains = draw_shares(ranked(as_unit_rows(X), partitions), 20, rng(9), temperature=0.5)
    np.testing.assert_array_equal(selection.indices, indices)
    np.testing.assert_array_equal(selection.gains, gains)
    whole = ingenious(X, budget=20, rng=rng(9))
    together = ingenious(X, budget=20, rng=rng(9), partitions=np.zeros(80, np.int64))
    np.testing.assert_array_equal(whole.indices, together.indices)


def test_every_row_can_be_drawn_the_last_ranked_too():
    X = rng(5).normal(size=(6, 3))
    seen = set()
    generator = rng(6)
    for _ in range(60):
        seen.update(ingenious(X, budget=2, rng=generator).indices.tolist())
    assert seen == set(range(6))
    full = ingenious(X, budget=6, rng=rng())
    order, gains = rank_partition(as_unit_rows(X), 6)
    np.testing.assert_array_equal(np.sort(full.indices), np.arange(6))
    np.testing.assert_array_equal(full.gains, gains)
    np.testing.assert_array_equal(full.indices, order)


def test_low_temperature_prefers_large_gains():
    rankings = [(np.arange(100), np.concatenate((np.full(10, 5.0), np.full(90, 0.01))))]
    warm = [np.isin(draw_shares(rankings, 10, rng(s), 1e3)[0], np.arange(10)).sum() for s in range(20)]
    cold = [np.isin(draw_shares(rankings, 10, rng(s), 0.01)[0], np.arange(10)).sum() for s in range(20)]
    assert np.mean(cold) > 9
    assert np.mean(warm) < 4


def test_overlap_diagnostics():
    gains = np.sort(rng(7).exponential(size=400))[::-1].copy()
    rankings = [(np.arange(0, 400, 2), gains[::2]), (np.arange(1, 400, 2), gains[1::2])]
    overlap = overlap_diagnostics(rankings, 0.25, rng(8), temperature=0.001)
    uniform = overlap["overlap_of_two_uniform_draws"]
    assert type(uniform) is int
    assert 10 <= uniform <= 40  # hypergeometric, mean 25
    assert overlap["overlap_of_two_draws"] > uniform + 15
    flat = [(i, np.ones(len(i))) for i, _ in rankings]
    same = overlap_diagnostics(flat, 0.25, rng(8))
    assert abs(same["overlap_of_two_draws"] - same["overlap_of_two_uniform_draws"]) < 25
    assert overlap_diagnostics(rankings, 1.0, rng())["overlap_of_two_draws"] == 400


def test_empty_partitions_are_passed_over():
    empty = (np.array([], np.int64), np.array([]))
    indices, _ = draw_shares([empty, (np.array([3, 1]), np.array([2.0, 1.0])), empty], 2, rng())
    assert indices.tolist() == [3, 1]


def test_refusals():
    X = np.eye(4)
    with pytest.raises(RecipeError, match="objective"):
        ingenious(X, budget=1, rng=rng(), objective="graph_cut")
    for partitions in (np.zeros(3, int), np.zeros(4), np.zeros((4, 1), int)):
        with pytest.raises(RecipeError, match="partitions"):
            ingenious(X, budget=1, rng=rng(), partitions=partitions)
    with pytest.raises(RecipeError, match="budget"):
        ingenious(X, budget=5, rng=rng())
    with pytest.raises(RecipeError, match="budget"):
        draw_shares([], 1, rng())


def test_many_rows_fall_back_to_cells(monkeypatch):
    X = rng(10).normal(size=(60, 4))
    unit = as_unit_rows(X)
    cells = split_into_cells(unit, rows_per_cell=20)
    assert len(cells) > 1
    labels = np.empty(60, np.int64)
    for label, rows in enumerate(cells):
        labels[rows] = label
    whole = ingenious(X, budget=20, rng=rng(1))
    partitioned = ingenious(X, budget=20, rng=rng(1), partitions=labels)
    assert whole.indices.tolist() != partitioned.indices.tolist()
    # The package attribute `ingenious` is the function, so the module is taken from its globals.
    monkeypatch.setitem(ingenious.__globals__, "split_into_cells", lambda _: cells)
    for memory_bytes, expected in ((2 * 60 * 60, whole), (2 * 60 * 60 - 1, partitioned)):
        monkeypatch.setitem(ingenious.__globals__, "DEFAULT_MEMORY_BYTES", memory_bytes)
        selection = ingenious(X, budget=20, rng=rng(1))
        np.testing.assert_array_equal(selection.indices, expected.indices)
        np.testing.assert_array_equal(selection.gains, expected.gains)

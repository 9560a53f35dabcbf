import numpy as np
import pytest

from tamis.errors import DataError, RecipeError
from tamis.selectors.loss import confidence_thresholds, drop_by_loss, suspects
from tamis.selectors.uniform import random, stratified


def rng(seed=0):
    return np.random.default_rng(seed)


def test_drops_exact_counts_at_both_ends():
    losses = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 8.0, 7.0, 6.0, 0.0])
    assert drop_by_loss(losses, drop_highest=0.2).tolist() == [0, 1, 2, 3, 4, 7, 8, 9]
    assert drop_by_loss(losses, drop_lowest=0.3).tolist() == [0, 2, 4, 5, 6, 7, 8]
    assert drop_by_loss(losses, drop_highest=0.19, drop_lowest=0.29).tolist() == [0, 2, 3, 4, 6, 7, 8]
    assert drop_by_loss(losses).tolist() == list(range(10))
    assert len(drop_by_loss(rng().random(100), drop_highest=0.29)) == 71


def test_of_equal_losses_the_lowest_index_is_kept():
    assert drop_by_loss(np.ones(10), drop_highest=0.3).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert drop_by_loss(np.ones(10), drop_lowest=0.3).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert drop_by_loss(np.ones(10), drop_highest=0.2, drop_lowest=0.2).tolist() == [0, 1, 2, 3, 4, 5]
    assert drop_by_loss(np.array([2.0, 1.0, 2.0, 1.0]), drop_lowest=0.25).tolist() == [0, 1, 2]


def test_losses_of_other_kinds():
    assert drop_by_loss(np.array([3, 1, 2]), drop_highest=0.34).tolist() == [1, 2]
    assert drop_by_loss(np.array([np.inf, 1.0, -np.inf], np.float32), drop_highest=0.34).tolist() == [1, 2]
    assert drop_by_loss(np.empty(0)).tolist() == []
    with pytest.raises(DataError, match=r"2 of 3 losses are NaN: row 0, 2"):
        drop_by_loss(np.array([np.nan, 1.0, np.nan]))
    for losses in (np.ones((2, 2)), np.array(["a"]), np.array([True])):
        with pytest.raises(DataError):
            drop_by_loss(losses)


@pytest.mark.parametrize(
    "options",
    [
        {"drop_highest": 1.0},
        {"drop_lowest": -0.1},
        {"drop_highest": "0.1"},
        {"drop_highest": True},
        {"drop_highest": np.nan},
    ],
)
def test_fractions_out_of_range(options):
    with pytest.raises(RecipeError, match="give a fraction"):
        drop_by_loss(np.ones(4), **options)


def test_fractions_that_leave_nothing_show_the_arithmetic():
    with pytest.raises(RecipeError, match=r"0\.5 \+ drop_lowest 0\.5 = 1 leaves no row"):
        drop_by_loss(np.ones(4), drop_highest=0.5, drop_lowest=0.5)


def test_suspects_are_those_that_the_definition_names():
    """Equations 1 and 2 of arXiv 1911.00068 as loops over rows and classes."""
    draw = rng(5)
    probability = draw.dirichlet(np.full(4, 0.4), 300)
    labels = draw.integers(0, 3, 300)  # nobody has the label 3
    thresholds = confidence_thresholds(labels, probability[np.arange(300), labels], 4)
    found = suspects(labels, probability, thresholds)
    mean = {}
    for j in range(3):
        own = [probability[i, j] for i in range(300) if labels[i] == j]
        mean[j] = sum(own) / len(own)
    for i in range(300):
        confident = {j: probability[i, j] for j in mean if probability[i, j] >= mean[j]}
        assert found[i] == (bool(confident) and max(confident, key=confident.get) != labels[i])
    assert 20 < found.sum() < 250
    assert thresholds[3] == np.inf


def test_suspects_where_nothing_is_wrong_or_given():
    assert not suspects(np.arange(3), np.eye(3), np.full(3, 0.5)).any()
    assert not suspects(np.arange(3)[::-1], np.full((3, 3), 1 / 3), np.full(3, 0.5)).any()  # confident of nothing
    assert suspects(np.empty(0, np.int64), np.empty((0, 2)), np.ones(2)).tolist() == []
    for shapes in ((2, (3, 3), 3), (3, (3, 2), 3), (3, (9,), 3)):
        with pytest.raises(DataError, match="do not fit together"):
            suspects(np.zeros(shapes[0], np.int64), np.zeros(shapes[1]), np.zeros(shapes[2]))


def test_random_is_uniform_and_nested():
    generator = rng(1)
    counts = np.zeros(10)
    for _ in range(4000):
        counts[random(10, budget=3, rng=generator).indices] += 1
    np.testing.assert_allclose(counts, 1200, atol=130)
    np.testing.assert_array_equal(
        random(50, budget=10, rng=rng(2)).indices, random(50, budget=50, rng=rng(2)).indices[:10]
    )


def test_stratified_shares_are_exact():
    strata = np.array(["b"] * 50 + ["a"] * 30 + ["c"] * 15 + ["d"] * 5)
    selection = stratified(strata, budget=10, rng=rng(3))
    chosen, counts = np.unique(strata[selection.indices], return_counts=True)
    assert dict(zip(chosen.tolist(), counts.tolist(), strict=True)) == {"a": 3, "b": 5, "c": 2}
    assert len(set(selection.indices.tolist())) == 10


def test_stratified_is_uniform_in_each_stratum():
    strata = np.array([0, 1, 0, 1, 0, 1, 0, 0, 0])
    generator = rng(4)
    counts = np.zeros(9)
    for _ in range(3000):
        counts[stratified(strata, budget=3, rng=generator).indices] += 1
    np.testing.assert_allclose(counts, 1000, atol=120)


def test_one_stratum_is_random():
    np.testing.assert_array_equal(
        stratified(np.zeros(20, int), budget=7, rng=rng(5)).indices, random(20, budget=7, rng=rng(5)).indices
    )


@pytest.mark.parametrize("strata", [np.array([0.5, 1.0]), np.zeros((2, 2), int), np.array([None, "a"])], ids=str)
def test_stratified_refusals(strata):
    with pytest.raises(DataError):
        stratified(strata, budget=1, rng=rng())

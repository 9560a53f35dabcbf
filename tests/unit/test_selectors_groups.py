import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import DataError, RecipeError
from tamis.selectors.duqgen import duqgen
from tamis.selectors.graph_cut import graph_cut
from tamis.selectors.groups import per_group
from tamis.selectors.k_center import k_center
from tamis.selectors.log_det import log_det
from tamis.selectors.selection import Selection
from tamis.selectors.shares import largest_remainder

few = settings(max_examples=60, deadline=None)


def rows(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)


def cut(X, share):
    return graph_cut(X, budget=share)


def test_it_is_the_selector_in_every_group():
    X = rows(90)
    groups = np.random.default_rng(1).choice(["a", "b", "c"], 90, p=[0.5, 0.3, 0.2])
    selection = per_group(cut, X, groups, budget=0.3)
    assert len(selection.indices) == 27
    sizes = np.array([(groups == name).sum() for name in "abc"])
    shares = largest_remainder(sizes.astype(float), 27, sizes)
    objective = bound = 0.0
    for name, share in zip("abc", shares.tolist(), strict=True):
        own = np.flatnonzero(groups == name)
        alone = graph_cut(X[own], budget=share)
        here = np.isin(selection.indices, own)
        # Ranked by gain, so a part comes in another order only where its gains rise.
        assert set(selection.indices[here].tolist()) == set(own[alone.indices].tolist())
        gain = dict(zip(own[alone.indices].tolist(), alone.gains.tolist(), strict=True))
        assert selection.gains[here].tolist() == [gain[i] for i in selection.indices[here].tolist()]
        objective += alone.certificate["objective"]
        bound += alone.certificate["upper_bound"]
    assert (np.diff(selection.gains) <= 0).all()
    assert selection.certificate == {
        "objective": pytest.approx(objective),
        "upper_bound": pytest.approx(bound),
        "ratio": pytest.approx(objective / bound),
    }
    assert selection.weights is None


def test_budgets_by_name():
    X, groups = rows(30), np.arange(30) % 3
    selection = per_group(cut, X, groups, budget={0: 4, 2: 1})
    assert np.bincount(groups[selection.indices], minlength=3).tolist() == [4, 0, 1]
    every = per_group(cut, X, groups, budget={0: 10, 1: 10, 2: 10})
    assert sorted(every.indices.tolist()) == list(range(30))


def test_equal_gains_go_to_the_lowest_index():
    # Every group holds the same two rows, so gains tie across groups.
    X = np.tile(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), (3, 1))
    groups = np.array([2, 2, 0, 0, 1, 1])
    selection = per_group(lambda X, share: log_det(X, budget=share), X, groups, budget=6)
    assert selection.indices.tolist() == [0, 1, 2, 3, 4, 5]


def test_weights_go_with_their_rows():
    X, groups = rows(60), np.arange(60) % 2
    selection = per_group(lambda X, share: k_center(X, budget=share), X, groups, budget=10)
    assert selection.weights.dtype == np.float32
    assert selection.weights.sum() == 60
    for group in (0, 1):
        own = np.flatnonzero(groups == group)
        alone = k_center(X[own], budget=5)
        weight = dict(zip(own[alone.indices].tolist(), alone.weights.tolist(), strict=True))
        here = groups[selection.indices] == group
        assert selection.weights[here].tolist() == [weight[i] for i in selection.indices[here].tolist()]
    assert selection.certificate is None  # radii do not add up


def test_without_gains_the_groups_take_turns():
    def first(X, share):
        return Selection(np.arange(share), None, None, None)

    groups = ["b", "a", "b", "a", "b", "c"]
    selection = per_group(first, np.zeros((6, 1)), groups, budget={"a": 2, "b": 3, "c": 1})
    assert selection.indices.tolist() == [1, 0, 5, 3, 2, 4]
    assert (selection.gains, selection.weights, selection.certificate) == (None, None, None)


def test_gains_of_some_groups_only_are_none():
    def mixed(X, share):
        gains = np.ones(share) if len(X) > 2 else None
        return Selection(np.arange(share), gains, None, {"objective": 1.0, "upper_bound": 2.0} if len(X) > 2 else None)

    selection = per_group(mixed, np.zeros((5, 1)), [0, 0, 0, 1, 1], budget=3)
    assert (selection.gains, selection.certificate) == (None, None)
    only = per_group(mixed, np.zeros((5, 1)), [0, 0, 0, 1, 1], budget={0: 2})
    assert only.certificate == {"objective": 1.0, "upper_bound": 2.0, "ratio": 0.5}


def test_a_generator_is_used_in_a_fixed_order():
    X, groups = rows(80), np.random.default_rng(2).integers(4, size=80)

    def draw(seed):
        rng = np.random.default_rng(seed)
        return per_group(lambda X, share: duqgen(X, budget=share, rng=rng), X, groups, budget=20).indices.tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@few
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.data())
def test_any_groups_meet_the_budget(groups, data):
    n = len(groups)
    budget = data.draw(st.integers(1, n))
    selection = per_group(cut, rows(n), groups, budget=budget)
    assert len(set(selection.indices.tolist())) == budget
    sizes = np.bincount(groups, minlength=5)
    taken = np.bincount(np.array(groups)[selection.indices], minlength=5)
    assert (np.abs(taken - budget * sizes / n) < 1).all()


@pytest.mark.parametrize(
    ("groups", "budget", "error", "message"),
    [
        ([0, 1, 2], 1, DataError, "one integer, boolean or string for each row"),
        ([0.5] * 4, 1, DataError, "groups"),
        ([[0]] * 4, 1, DataError, "groups"),
        ([0, 0, 1, 1], 5, RecipeError, "budget 5 of 4 rows"),
        ([0, 0, 1, 1], {0: 3}, RecipeError, r"budget 3 of group 0, which has 2 rows: .*\[0, 2\]"),
        ([0, 0, 1, 1], {0: -1}, RecipeError, "group 0"),
        ([0, 0, 1, 1], {0: 0.5}, RecipeError, "group 0"),
        ([0, 0, 1, 1], {7: 1}, RecipeError, "group 7, which no row has; there are 0, 1"),
        ([0, 0, 1, 1], {0: 0}, RecipeError, "keeps no row"),
        ([0, 0, 1, 1], {}, RecipeError, "keeps no row"),
    ],
)
def test_refusals(groups, budget, error, message):
    with pytest.raises(error, match=message):
        per_group(cut, rows(4), groups, budget=budget)


def test_a_selector_that_misses_its_share_is_caught():
    def short(X, share):
        return Selection(np.arange(share - 1), None, None, None)

    with pytest.raises(DataError, match="0 rows of group 0, not its share 1"):
        per_group(short, rows(4), [0, 0, 1, 1], budget=2)

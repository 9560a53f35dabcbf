"""What every registered selector promises, whatever it selects by."""

import numpy as np
import pytest

from tamis.errors import RecipeError
from tamis.selectors import REGISTRY, Selection

N, D = 60, 8


def embeddings(n=N, d=D, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def beside(X):
    """A target set, or one to avoid: so many rows that a target leaves something to gain for long."""
    return np.random.default_rng(99).normal(size=(40, X.shape[1])) + 0.3


# How each selector is called on the same embeddings; a new selector needs a line here.
CALLS = {
    "conditional": lambda X, budget, _rng: REGISTRY["conditional"](X, avoid=beside(X), budget=budget),
    "disparity_sum": lambda X, budget, _rng: REGISTRY["disparity_sum"](X, budget=budget),
    "duqgen": lambda X, budget, rng: REGISTRY["duqgen"](X, budget=budget, rng=rng),
    "facility_location": lambda X, budget, _rng: REGISTRY["facility_location"](X, budget=budget),
    "graph_cut": lambda X, budget, _rng: REGISTRY["graph_cut"](X, budget=budget),
    "ingenious": lambda X, budget, rng: REGISTRY["ingenious"](X, budget=budget, rng=rng),
    "k_center": lambda X, budget, _rng: REGISTRY["k_center"](X, budget=budget),
    "log_det": lambda X, budget, _rng: REGISTRY["log_det"](X, budget=budget),
    "random": lambda X, budget, rng: REGISTRY["random"](len(X), budget=budget, rng=rng),
    "stratified": lambda X, budget, rng: REGISTRY["stratified"]((np.arange(len(X)) % 3), budget=budget, rng=rng),
    "targeted": lambda X, budget, _rng: REGISTRY["targeted"](X, queries=beside(X), budget=budget),
}
DRAWN = {"duqgen", "ingenious", "random", "stratified"}  # the random stream meets rows in their order
RISING = {"disparity_sum", "graph_cut"}  # gains may rise: the latter's where cosines are negative
STAND_FOR_ALL = {"facility_location", "k_center"}  # every row is represented by a chosen one


def select(name, budget=0.25, X=None, seed=7):
    return CALLS[name](embeddings() if X is None else X, budget, np.random.default_rng(seed))


def test_every_selector_is_covered():
    assert set(CALLS) == set(REGISTRY)


@pytest.fixture(params=sorted(REGISTRY))
def name(request):
    return request.param


def assert_sound(name, selection, n, count):
    """Types, shapes and what figures must be."""
    assert isinstance(selection, Selection)
    assert selection.indices.dtype == np.int64
    assert selection.indices.shape == (count,)
    assert len(set(selection.indices.tolist())) == count
    assert selection.indices.min() >= 0
    assert selection.indices.max() < n
    if selection.gains is not None:
        assert selection.gains.dtype == np.float64
        assert selection.gains.shape == (count,)
        assert np.isfinite(selection.gains).all()
        assert name in RISING or (np.diff(selection.gains) <= 0).all()
    if selection.weights is not None:
        assert selection.weights.dtype == np.float32
        assert selection.weights.shape == (count,)
        assert (selection.weights > 0).all()
        assert selection.weights.sum() <= n
    assert name not in STAND_FOR_ALL or selection.weights.sum() == n
    if selection.certificate is not None:
        assert all(type(value) is float and np.isfinite(value) for value in selection.certificate.values())
        if "upper_bound" in selection.certificate:
            assert selection.certificate["objective"] <= selection.certificate["upper_bound"] + 1e-9


@pytest.mark.parametrize(
    ("budget", "count"), [(0.25, 15), (1, 1), (2, 2), (17, 17), (N - 1, N - 1), (N, N), (1.0, N), (0.001, 1)]
)
def test_the_budget_is_met_with_distinct_rows_in_range(name, budget, count):
    assert_sound(name, select(name, budget), N, count)
    assert_sound(name, select(name, np.float64(budget) if type(budget) is float else np.int32(budget)), N, count)


@pytest.mark.parametrize("budget", [0, N + 1, -1, 1.5, 0.0, True, "25 %", float("nan"), None])
def test_unusable_budgets_are_refused(name, budget):
    with pytest.raises(RecipeError, match="budget"):
        select(name, budget)


def same(a, b):
    np.testing.assert_array_equal(a.indices, b.indices)
    for left, right in ((a.gains, b.gains), (a.weights, b.weights)):
        assert (left is None) == (right is None)
        if left is not None:
            np.testing.assert_array_equal(left, right)
    assert a.certificate == b.certificate
    assert a.engine == b.engine


def test_deterministic(name):
    same(select(name), select(name))


def test_a_generator_matters_only_where_rows_are_drawn(name):
    assert (select(name).indices.tolist() != select(name, seed=8).indices.tolist()) == (name in DRAWN)


def test_the_input_and_the_global_generator_are_untouched(name):
    X = embeddings()
    before = X.copy()
    np.random.seed(1)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    selection = select(name, X=X)
    selection.indices[:] = 0  # what is returned is not a view of the input either
    np.testing.assert_array_equal(X, before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_read_only_input_is_enough(name):
    X = embeddings()
    X.setflags(write=False)
    same(select(name, X=X), select(name))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_how_the_input_lies_in_memory_does_not_matter(name, dtype):
    X = embeddings().astype(dtype)
    expected = select(name, X=X)
    assert_sound(name, expected, N, 15)
    wide = np.full((2 * N, 3 * D), 7, dtype)
    wide[::2, ::3] = X
    backwards = X[::-1, ::-1].copy()
    for other in (np.asfortranarray(X), wide[::2, ::3], backwards[::-1, ::-1], X.astype(X.dtype.newbyteorder())):
        assert not other.flags.c_contiguous or not other.dtype.isnative
        same(select(name, X=other), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_wider_type_of_the_same_values_changes_nothing(name, dtype):
    X = np.round(embeddings() * 4)  # exact in each
    X[~X.any(axis=1), 0] = 1
    same(select(name, X=X.astype(dtype)), select(name, X=X))


@pytest.mark.parametrize("budget", [1, 7, 30])
def test_identical_rows_are_distinct_choices(name, budget):
    X = np.tile(embeddings(1), (30, 1))
    selection = select(name, budget, X)
    assert_sound(name, selection, 30, budget)
    if name not in DRAWN:
        assert selection.indices.tolist() == list(range(budget))  # all tie: the lowest come first


@pytest.mark.parametrize("budget", [1, 10, 40])
def test_copies_and_opposite_rows(name, budget):
    X = embeddings(10)
    assert_sound(name, select(name, budget, np.vstack([X, X, -X, -X])), 40, budget)


def test_orthogonal_rows(name):
    assert_sound(name, select(name, 5, np.eye(12)), 12, 5)
    assert sorted(select(name, 1.0, np.eye(12)).indices.tolist()) == list(range(12))


@pytest.mark.parametrize("budget", [1, 1.0, 0.5])
def test_one_row_is_a_subset_of_one(name, budget):
    for X in (embeddings(1), embeddings(1, 1)):
        selection = select(name, budget, X)
        assert_sound(name, selection, 1, 1)
        assert selection.indices.tolist() == [0]


def test_one_dimension_and_two_rows(name):
    for X in (np.array([[2.0], [0.5]]), np.array([[2.0], [-0.5]])):
        assert_sound(name, select(name, 1, X), 2, 1)
        assert_sound(name, select(name, 2, X), 2, 2)


@pytest.mark.parametrize("name", sorted(set(REGISTRY) - DRAWN))
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_rows_does_not_matter(name, seed):
    X, budget = embeddings(200, 12, seed), 20  # so few random rows of so many dimensions do not tie
    order = np.random.default_rng(seed).permutation(200)
    if name == "log_det":  # but for its first gains, all of which do: the lowest index stays where it is
        order = np.concatenate(([0], order[order != 0]))
    one, other = select(name, budget, X), select(name, budget, X[order])
    np.testing.assert_array_equal(one.indices, order[other.indices])
    np.testing.assert_allclose(one.gains, other.gains, rtol=1e-9, atol=1e-9)
    if one.weights is not None:
        np.testing.assert_array_equal(one.weights, other.weights)


@pytest.mark.parametrize("name", sorted(set(REGISTRY) - DRAWN))
@pytest.mark.parametrize("seed", range(3))
def test_a_smaller_budget_is_the_beginning_of_a_larger_one(name, seed):
    X = embeddings(80, seed=seed)
    whole = select(name, 80, X)
    for budget in (2, 9, 40):
        few = select(name, budget, X)
        np.testing.assert_array_equal(few.indices, whole.indices[:budget])
        np.testing.assert_allclose(few.gains, whole.gains[:budget], rtol=1e-9, atol=1e-12)

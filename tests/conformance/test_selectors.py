"""What every registered selector promises, whatever it selects by."""

import numpy as np
import pytest

from tamis.errors import RecipeError
from tamis.selectors import REGISTRY, Selection

# How each selector is called on the same embeddings; a new selector needs a line here.
CALLS = {
    "facility_location": lambda X, budget, _rng: REGISTRY["facility_location"](X, budget=budget),
    "ingenious": lambda X, budget, rng: REGISTRY["ingenious"](X, budget=budget, rng=rng),
    "random": lambda X, budget, rng: REGISTRY["random"](len(X), budget=budget, rng=rng),
    "stratified": lambda X, budget, rng: REGISTRY["stratified"]((np.arange(len(X)) % 3), budget=budget, rng=rng),
}
N = 60


def embeddings(n=N):
    return np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)


def select(name, budget=0.25, X=None, seed=7):
    return CALLS[name](embeddings() if X is None else X, budget, np.random.default_rng(seed))


def test_every_selector_is_covered():
    assert set(CALLS) == set(REGISTRY)


@pytest.fixture(params=sorted(REGISTRY))
def name(request):
    return request.param


@pytest.mark.parametrize(("budget", "count"), [(0.25, 15), (1, 1), (17, 17), (N, N), (1.0, N), (0.001, 1)])
def test_the_budget_is_met_with_distinct_rows_in_range(name, budget, count):
    indices = select(name, budget).indices
    assert len(indices) == len(set(indices.tolist())) == count
    assert indices.min() >= 0
    assert indices.max() < N


@pytest.mark.parametrize("budget", [0, N + 1, -1, 1.5, 0.0, True, "25 %", float("nan")])
def test_unusable_budgets_are_refused(name, budget):
    with pytest.raises(RecipeError, match="budget"):
        select(name, budget)


def test_types_and_shapes(name):
    selection = select(name)
    assert isinstance(selection, Selection)
    assert selection.indices.dtype == np.int64
    assert selection.indices.shape == (15,)
    if selection.gains is not None:
        assert selection.gains.dtype == np.float64
        assert selection.gains.shape == (15,)
        assert (np.diff(selection.gains) <= 0).all()
    if selection.weights is not None:
        assert selection.weights.dtype == np.float32
        assert selection.weights.shape == (15,)
        assert (selection.weights > 0).all()
        assert selection.weights.sum() == N
    if selection.certificate is not None:
        assert all(type(value) is float and np.isfinite(value) for value in selection.certificate.values())


def same(a, b):
    np.testing.assert_array_equal(a.indices, b.indices)
    for left, right in ((a.gains, b.gains), (a.weights, b.weights)):
        assert (left is None) == (right is None)
        if left is not None:
            np.testing.assert_array_equal(left, right)
    assert a.certificate == b.certificate


def test_deterministic(name):
    same(select(name), select(name))


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


def test_one_row_is_a_subset_of_one(name):
    assert select(name, 1.0, embeddings(1)).indices.tolist() == [0]

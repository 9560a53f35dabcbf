import math
from fractions import Fraction

import numpy as np
import pytest

from tamis.errors import DataError, RecipeError
from tamis.selectors.selection import Selection, as_unit_rows, floor_share, resolve_budget


@pytest.mark.parametrize(
    ("budget", "n", "count"),
    [
        (0.25, 10, 2),
        (0.29, 100, 29),
        (0.07, 100, 7),
        (0.01, 10, 1),
        (1.0, 7, 7),
        (1, 7, 1),
        (7, 7, 7),
        (np.int32(3), 7, 3),
        (np.float64(0.5), 7, 3),
        (np.float32(0.5), 8, 4),
        (1e-12, 5, 1),
        (1.0, 10**12, 10**12),
    ],
)
def test_budget_counts(budget, n, count):
    resolved = resolve_budget(budget, n)
    assert resolved == count
    assert type(resolved) is int


@pytest.mark.parametrize("n", [1, 9, 100, 12_345, 10**9])
def test_decimal_fractions_give_the_decimal_floor(n):
    for percent in range(1, 101):
        assert floor_share(percent / 100, n) == math.floor(Fraction(percent, 100) * n)


@pytest.mark.parametrize(
    "budget",
    [
        0,
        -1,
        11,
        0.0,
        -0.5,
        1.5,
        2.0,
        True,
        False,
        np.bool_(True),
        math.nan,
        math.inf,
        "25 %",
        None,
        [3],
        1 + 0j,
    ],
)
def test_unusable_budgets_are_refused(budget):
    with pytest.raises(RecipeError):
        resolve_budget(budget, 10)


def test_budget_messages_show_the_arithmetic():
    with pytest.raises(RecipeError, match=r"12 of 10 rows is 2 more"):
        resolve_budget(12, 10)
    with pytest.raises(RecipeError, match=r"1\.5 x 10 rows = 15 rows"):
        resolve_budget(1.5, 10)
    with pytest.raises(RecipeError, match="nothing to choose from"):
        resolve_budget(1, 0)


def test_selection_is_frozen():
    selection = Selection(np.arange(2), None, None, None)
    with pytest.raises(AttributeError):
        selection.indices = np.arange(3)  # type: ignore[misc]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
def test_unit_rows_match_float64(dtype):
    X = np.random.default_rng(0).normal(size=(50, 7)).astype(dtype)
    before = X.copy()
    unit = as_unit_rows(X)
    exact = X.astype(np.float64) / np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
    assert unit.dtype == np.float32
    assert unit.flags.c_contiguous
    np.testing.assert_array_equal(unit, exact.astype(np.float32))
    np.testing.assert_array_equal(X, before)


def test_unit_rows_are_idempotent_and_then_shared():
    unit = as_unit_rows(np.random.default_rng(1).normal(size=(200, 33)) * 1e-3)
    assert as_unit_rows(unit) is unit


def test_unit_rows_take_any_strides():
    X = np.random.default_rng(2).normal(size=(40, 12)).astype(np.float32)
    expected = as_unit_rows(X)
    np.testing.assert_array_equal(as_unit_rows(np.asfortranarray(X)), expected)
    wide = np.zeros((80, 24), np.float32)
    wide[::2, ::2] = X
    np.testing.assert_array_equal(as_unit_rows(wide[::2, ::2]), expected)
    np.testing.assert_array_equal(as_unit_rows(X[::-1])[::-1], expected)


def test_tiny_and_large_rows_keep_their_direction():
    X = np.array([[3e-20, 4e-20], [6e5, 8e5]], np.float32)
    np.testing.assert_allclose(as_unit_rows(X), [[0.6, 0.8], [0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e6, -2e6])
def test_bad_rows_are_named(value):
    X = np.ones((30, 3))
    X[4:20, 1] = value
    with pytest.raises(DataError, match=r"16 of 30 .* row 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 and 6 more"):
        as_unit_rows(X)


def test_zero_rows_are_named():
    X = np.ones((5, 3), np.float32)
    X[3] = 0
    with pytest.raises(DataError, match=r"1 of 5 .* row 3"):
        as_unit_rows(X)


@pytest.mark.parametrize(
    "X",
    [
        np.ones(3),
        np.ones((2, 2, 2)),
        np.ones((0, 3)),
        np.ones((3, 0)),
        np.ones((2, 2), np.int64),
        np.ones((2, 2), bool),
        np.ones((2, 2), complex),
        np.array([[object()]]),
        np.array([["a"]]),
        [[1.0], [1.0, 2.0]],
        3.0,
    ],
)
def test_other_arrays_are_refused(X):
    with pytest.raises(DataError):
        as_unit_rows(X)

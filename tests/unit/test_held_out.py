"""What is held out: the share, class by class, equal contents together, and the same rows in whatever order."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from tamis.errors import DataError, RecipeError
from tamis.training.held_out import hold_out


def contents_of(numbers):
    return pa.array([hashlib.sha256(str(number).encode()).digest()[:16] for number in numbers], pa.binary(16))


def test_the_share_of_each_class():
    labels = np.repeat([0, 1, 2], [500, 300, 10])
    held = hold_out(contents_of(range(810)), labels, 0.2)
    assert np.bincount(labels[held]).tolist() == [100, 60, 2]
    assert hold_out(contents_of(range(810)), None, 0.5).sum() == 405


def test_equal_contents_go_together_also_with_other_labels():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 150, 600)
    labels = rng.integers(0, 3, 600)
    held = hold_out(contents_of(numbers), labels, 0.3)
    assert not set(numbers[held]) & set(numbers[~held])
    assert 0.25 < held.mean() <= 0.3


def test_the_order_of_the_rows_does_not_matter():
    rng = np.random.default_rng(1)
    numbers = np.arange(200)
    order = rng.permutation(200)
    held = hold_out(contents_of(numbers), numbers % 3, 0.2)
    again = hold_out(contents_of(numbers[order]), numbers[order] % 3, 0.2)
    assert set(numbers[held]) == set(numbers[order][again])


def test_a_content_that_does_not_fit_is_trained_on():
    numbers = np.concatenate([np.zeros(90, int), np.arange(1, 11)])
    held = hold_out(contents_of(numbers), None, 0.05)
    assert held.sum() == 5
    assert not held[:90].any()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_rows(n):
    if n == 1:
        with pytest.raises(DataError, match="of 1 rows, 1 of them different, none can be held out"):
            hold_out(contents_of(range(n)), None, 0.2)
    else:
        assert hold_out(contents_of(range(n)), None, 0.01).sum() == 1
        assert hold_out(contents_of(range(n)), None, 0.99).sum() == n - 1


def test_what_cannot_be_held_out_is_refused():
    with pytest.raises(DataError, match="of 9 rows, 1 of them different"):
        hold_out(contents_of([7] * 9), None, 0.5)
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(RecipeError, match="above 0 and below 1"):
            hold_out(contents_of(range(9)), None, share)

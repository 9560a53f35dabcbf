"""Splits: nothing is on both sides, classes keep their shares, and equal contents stay together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.advice.splits import FOLDS, OVERLAP, splits


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=10, max_size=80), st.integers(0, 5))
def test_parts_are_disjoint_and_whole_and_contents_stay_together(rows, seed):
    contents, labels = np.array(rows).T
    found = list(splits(contents, labels, 7, seed))
    assert [split.number for split in found] == list(range(7))
    for split in found:
        assert sorted([*split.pool, *split.test]) == list(range(len(rows)))
        assert not set(contents[split.pool]) & set(contents[split.test])
        assert (np.diff(split.pool) > 0).all()
        assert (np.diff(split.test) > 0).all()
    assert sorted(np.concatenate([split.test for split in found[:FOLDS]])) == list(range(len(rows)))  # once a deal


def test_every_class_has_its_share_in_every_part():
    labels = np.repeat([0, 1, 2], [100, 50, 7])
    for split in splits(np.arange(157), labels, 10, 0):
        measured = np.bincount(labels[split.test], minlength=3)
        assert measured[:2].tolist() == [20, 10]
        assert measured[2] in (1, 2)
        assert len(split.test) / len(split.pool) == pytest.approx(OVERLAP, abs=0.01)


def test_deals_differ_and_are_those_of_the_seed():
    def drawn(seed):
        return [split.test.tolist() for split in splits(np.arange(50), np.arange(50) % 2, 10, seed)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1)[:5] != drawn(1)[5:]

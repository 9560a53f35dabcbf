"""When a selection pays: the arithmetic, and its words."""

import pytest

from tamis.training.arms import Result
from tamis.training.break_even import break_even


def result(size, samples_seen, seconds):
    return Result("x", size, samples_seen, 0.5, None, (0.5,), seconds)


def test_it_pays_from_the_training_whose_savings_reach_the_cost():
    full, subset = result(1000, 12_000, 15.0), result(200, 2400, 3.0)
    found = break_even("it", 61.0, full, subset, 12)
    assert found["saved_seconds"] == pytest.approx(12)
    assert found["trainings"] == 6  # 5 save 60 s
    assert found["line"] == (
        "it: selection cost 61 s; a training of 12 epochs on it saves 12 s of 15 s: "
        "worth it in time from the 6th training on"
    )
    assert break_even("it", 60.0, full, subset, 12)["trainings"] == 5
    assert break_even("it", 0.0, full, subset, 12)["trainings"] == 1


def test_what_counts_is_the_time_of_a_training_at_equal_epochs():
    # At equal samples seen both took as long; 12 epochs on the full data take five times as long.
    found = break_even("it", 61.0, result(1000, 2400, 3.0), result(200, 2400, 3.0), 12)
    assert found["saved_seconds"] == pytest.approx(12)


def test_never_and_not_known():
    full, slow = result(1000, 1000, 1.0), result(900, 900, 1.5)
    found = break_even("it", 61.0, full, slow, 1)
    assert found["trainings"] is None
    assert found["line"].endswith("a training of 1 epoch on it takes 0.5 s more of 1 s: never worth it")
    unknown = break_even("it", None, full, result(100, 100, 0.1), 1)
    assert unknown["trainings"] is None
    assert unknown["line"].startswith("it: a training of")
    assert unknown["line"].endswith("the selection's own seconds are not known")

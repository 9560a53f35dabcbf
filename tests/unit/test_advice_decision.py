"""What is recommended follows from the numbers: the corrected test is its paper's, and chance is seldom believed."""

import math

import numpy as np
import pytest
from scipy import stats

from tamis.advice.decision import HARM, best, judge
from tamis.training.significance import LEVEL, half_interval, paired_p

OVERLAP = 0.25
SPLITS = 10


def around(mean, spread=0.004, seed=0):
    """Ten values with exactly this mean and deviation."""
    values = np.random.default_rng(seed).normal(size=SPLITS)
    return mean + spread * (values - values.mean()) / values.std(ddof=1)


def alike(values):
    return {"one": list(values), "other": list(values)}


def test_the_corrected_test_by_hand():
    values = [0.01, 0.03, 0.02]
    error = 0.01 * math.sqrt(1 / 3 + 1 / 4)  # the deviation is 0.01
    low, high = stats.t.interval(0.95, 2, loc=0.02, scale=error)
    assert half_interval(values, OVERLAP) == pytest.approx((high - low) / 2)
    assert paired_p(values, [0, 0, 0], OVERLAP) == pytest.approx(2 * stats.t.sf(0.02 / error, 2))
    assert paired_p(values, [0, 0, 0]) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_judged_by_hand():
    (found,) = judge({"a": {"one": [0.0, 0.04, 0.02], "other": [0.02, 0.02, 0.02]}}, OVERLAP)
    error = 0.01 * math.sqrt(1 / 3 + 1 / 4)
    low, high = stats.t.interval(0.95, 2, loc=0.02, scale=error)
    assert (found.mean, found.low, found.high) == pytest.approx((0.02, low, high))
    assert found.corrected == pytest.approx(2 * stats.t.sf(0.02 / error, 2))
    assert found.families == pytest.approx({"one": 0.02, "other": 0.02})


def test_the_clearly_better_one_of_the_highest_lower_bound():
    gains = {
        "steady": alike(around(0.02, 0.002)),
        "high but loose": alike(around(0.025, 0.02)),
        "worse": alike(around(-0.02)),
        "nothing": alike(around(0.001)),
    }
    judged = judge(gains, OVERLAP)
    verdicts = ["clearly better", "not clearly different", "clearly worse", "not clearly different"]
    assert [one.verdict for one in judged] == verdicts
    assert best(judged).name == "steady"
    assert best(judged[1:]) is None
    assert best([]) is None


def test_many_candidates_need_more():
    barely = around(0.0065)
    alone = judge({"a": alike(barely)}, OVERLAP)
    assert alone[0].verdict == "clearly better"
    among = judge({"a": alike(barely)} | {f"n{i}": alike(around(0.0001, seed=i)) for i in range(5)}, OVERLAP)
    assert among[0].verdict == "not clearly different"
    assert among[0].corrected == pytest.approx(6 * alone[0].corrected)


@pytest.mark.parametrize(
    ("harmed", "verdict"),
    [
        (around(-0.002, 0.0001), "uneven"),  # little, but surely
        (around(-HARM - 0.001, 0.02), "uneven"),  # much, but not surely
        (around(-0.002, 0.02), "clearly better"),  # neither
    ],
)
def test_what_harms_one_family_is_not_recommended(harmed, verdict):
    mean = around(0.03, 0.001)
    (found,) = judge({"a": {"one": list(2 * mean - harmed), "other": list(harmed)}}, OVERLAP)
    assert found.mean == pytest.approx(0.03)
    assert found.verdict == verdict
    assert (best([found]) is None) == (verdict == "uneven")


def test_chance_is_believed_no_more_often_than_the_level_says():
    """Splits of one dataset go wrong together: so do these, as much as the correction supposes, and somewhat less."""
    rng = np.random.default_rng(0)
    for shared in (OVERLAP / (1 + OVERLAP), 0.1):
        false = 0
        for _ in range(500):
            common = rng.normal(0, math.sqrt(shared), (4, 2, 1))
            gains = 0.01 * (common + rng.normal(0, math.sqrt(1 - shared), (4, 2, SPLITS)))
            named = {f"c{i}": {"one": list(one), "other": list(other)} for i, (one, other) in enumerate(gains)}
            false += best(judge(named, OVERLAP)) is not None
        assert false / 500 <= LEVEL

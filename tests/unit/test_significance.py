"""Intervals and p-values are scipy's; Holm's correction is the one by hand; the words say what the numbers say."""

import numpy as np
import pytest
from scipy import stats

from tamis.errors import RecipeError
from tamis.training.significance import LEVEL, differences, half_interval, holm, paired_p, verdict

RANDOM = [0.70, 0.71, 0.72, 0.71]
BETTER = [0.74, 0.76, 0.76, 0.75]
WORSE = [0.60, 0.62, 0.61, 0.62]
SAME = [0.71, 0.70, 0.73, 0.70]


def test_interval_and_p_value_are_scipys():
    rng = np.random.default_rng(0)
    for seeds in (2, 5, 10):
        ours, theirs = rng.normal(0.8, 0.01, seeds), rng.normal(0.79, 0.01, seeds)
        low, high = stats.t.interval(0.95, seeds - 1, loc=ours.mean(), scale=stats.sem(ours))
        assert half_interval(ours) == pytest.approx((high - low) / 2)
        assert paired_p(ours, theirs) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert half_interval([0.5]) is None
    assert paired_p([0.5, 0.6], [0.5, 0.6]) == 1
    assert paired_p([0.6, 0.7], [0.5, 0.6]) == 0


def test_holm_by_hand():
    # Smallest first: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1 -> at least the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    assert holm([0.03, 0.03]) == pytest.approx([0.06, 0.06])


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(1)
    for _ in range(200):
        p = rng.random(rng.integers(1, 9)) ** 3
        rejected = set()
        for step, i in enumerate(np.argsort(p)):  # as it is defined: stop at the first that is not small enough
            if p[i] > LEVEL / (len(p) - step):
                break
            rejected.add(int(i))
        assert {i for i, corrected in enumerate(holm(p)) if corrected <= LEVEL} == rejected


def test_the_pairs_given_together_are_corrected_together():
    values = {"random": RANDOM, "other": [0.5, 0.6, 0.5, 0.6], "better": BETTER, "worse": WORSE, "same": SAME}
    pairs = [("better", "random"), ("worse", "other"), ("same", "random")]
    found = differences(values, pairs)
    raw = [stats.ttest_rel(values[ours], values[theirs]).pvalue for ours, theirs in pairs]
    assert [each.p for each in found] == pytest.approx(raw)
    assert [each.corrected for each in found] == pytest.approx(holm(raw))
    assert [each.mean for each in found] == pytest.approx([0.0425, 0.0625, 0.0])
    assert {(each.together, each.seeds) for each in found} == {(3, 4)}
    assert [(each.name, each.against) for each in found] == pairs


def words(ours, theirs=RANDOM, measure="accuracy", others=0):
    pairs = [("it", "random"), *[("noise", "random")] * others]
    return verdict(differences({"it": ours, "random": theirs, "noise": SAME}, pairs)[0], measure)


def test_the_words():
    assert words(BETTER).startswith("it: better than random (+4.25 points, p = ")
    assert words(BETTER).endswith(", 4 seeds)")
    assert "Holm" not in words(BETTER)
    assert words(WORSE).startswith("it: worse than random (-9.75 points, p = ")
    assert words(SAME).startswith("it: not distinguishable from random (+0.00 points, p = 1, 4 seeds)")


def test_what_is_significant_alone_may_not_be_among_many():
    ours = [0.70, 0.72, 0.74, 0.73]
    assert 0.01 < paired_p(ours, RANDOM) < 0.1
    ours = [0.71, 0.72, 0.74, 0.73]
    assert 0.005 < paired_p(ours, RANDOM) < 0.025
    assert words(ours).startswith("it: better than random")
    among = words(ours, others=9)
    assert among.startswith("it: not distinguishable from random (+1.50 points, p = 0.0")
    assert "by Holm over 10, 4 seeds)" in among


def test_less_loss_is_better():
    assert words(BETTER, measure="loss").startswith("it: worse than random (+0.0425 of loss, p = ")
    assert words(WORSE, measure="loss").startswith("it: better than random (-0.0975 of loss, p = ")
    assert words(SAME, measure="loss").startswith("it: not distinguishable")


@pytest.mark.parametrize(("seeds", "said"), [(1, "with 1 seed,"), (2, "with 2 seeds,")])
def test_one_or_two_seeds_say_nothing(seeds, said):
    sentence = words([0.9, 0.8][:seeds], [0.1, 0.2][:seeds])
    assert said in sentence
    assert sentence.endswith("which says nothing; use at least 3")
    assert "better" not in sentence


def test_what_cannot_be_tested_is_refused():
    with pytest.raises(RecipeError, match="no 'random' to compare with among a, b"):
        differences({"a": [1.0], "b": [1.0]}, [("a", "random")])
    with pytest.raises(RecipeError, match="a has 1 seeds, b has 2"):
        differences({"a": [1.0], "b": [1.0, 2.0]}, [("a", "b")])
    assert differences({"a": [1.0]}, []) == []

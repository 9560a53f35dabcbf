"""The evidence on language models: what is compared, and how it is told."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tamis.training import Blocks
from tamis.training.learner import Ragged

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"


@pytest.fixture
def language(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS / "evidence")
    monkeypatch.syspath_prepend(BENCHMARKS)
    sys.modules.pop("language", None)
    import language

    return language


def test_every_arm_is_compared_with_random_and_redraws_with_their_twins(language):
    arms = set(language.ARMS)
    assert {name for name, against in language.COMPARISONS if against == language.RANDOM} == arms - {language.RANDOM}
    for again, once in language.REDRAWN.items():
        assert language.ARMS[again].selection == language.ARMS[once].selection == once
        assert {(again, once), (again, language.RANDOM_AGAIN)} <= set(language.COMPARISONS)
    assert len(set(language.COMPARISONS)) == len(language.COMPARISONS) == len(arms) - 1 + 2 * 3


def test_the_unigram_loss_is_the_cross_entropy_of_the_counts(language):
    train = Blocks(Ragged(np.array([0, 0, 1], np.int32), np.array([0, 3])), vocabulary=3)
    test = Blocks(Ragged(np.array([0, 2], np.int32), np.array([0, 2])))
    assert language.unigram_loss(train, test) == pytest.approx(-(np.log(3 / 6) + np.log(1 / 6)) / 2)


def test_the_tables_say_what_is_lower_and_what_cannot_be_told(language):
    rng = np.random.default_rng(0)

    def run(loss):
        losses = {"dictionary": loss - 0.1, "kernel": loss + 0.1}
        return {"losses": losses, "loss": loss, "samples_seen": 90, "seconds": 2.0, "cpu_seconds": 1.0}

    means = {name: 4.0 - (name == language.HUNDREDTH) for name in language.ARMS}
    runs = {name: [run(mean + rng.normal(scale=1e-3)) for _ in range(5)] for name, mean in means.items()}
    overlap = {"overlap_of_two_draws": 0.4, "overlap_of_two_uniform_draws": 0.25}
    one = {"subset_id": "s", "rows": 9, "seconds": 3.0, "share_of_kernel_blocks": 0.5, "overlap": overlap}
    selected = {name: [one] * 5 for name in language.SELECTIONS}
    results = {
        "corpus": {
            "tokens": {"train": 1000},
            "unigram_loss": {"dictionary": 5.0, "kernel": 6.0},
            "share_of_kernel_blocks": 0.4,
        },
        "seeds": 5, "block": 8, "passes": 1.5, "tokens_seen": 720, "config": {"layers": 2, "width": 96},
        **language.summary(runs, selected),
    }  # fmt: skip
    lines = language.tables(results).splitlines()
    assert "the full data 1.5 times, a quarter 6 times), 5 seeds" in lines[0]
    assert lines[4].startswith("| INGENIOUS, T = .01 | 3.00")
    assert lines[4].endswith("| 50 % | 40 % | 3 | 1 |")
    (found,) = (line for line in lines if line.startswith("| INGENIOUS, T = .01 | random |"))
    assert found.endswith("| lower |")
    assert sum(line.endswith("| not distinguishable |") for line in lines) == len(language.COMPARISONS) - 2
    (worse,) = (line for line in lines if line.endswith("| higher |"))  # drawn again, against its twin
    assert worse.startswith("| INGENIOUS, T = .01, drawn again | INGENIOUS, T = .01 | +1.0")

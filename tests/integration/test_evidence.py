"""The evidence's scripts measure with what they say, and their tables say what was measured."""

import importlib
from pathlib import Path

import numpy as np
import pytest

EVIDENCE = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "evidence"


@pytest.fixture
def module(monkeypatch):
    """Import a module of the evidence by name."""
    monkeypatch.syspath_prepend(EVIDENCE)
    return importlib.import_module


@pytest.fixture
def small(module, monkeypatch, make_columns):
    """One set of 400 texts in 3 classes under the name `small`, a quarter of it to measure on."""
    sets = module("sets")
    columns = make_columns(400)
    part = sets.Part(np.array([int(name[1]) for name in columns["label"]]), tuple(columns["text"]))
    monkeypatch.setitem(sets.SETS, "small", lambda: (part.take(np.arange(300)), part.take(np.arange(300, 400))))
    return sets


def test_a_part_of_the_labels_is_wrong_and_no_content_is_on_both_sides(small):
    clean, test = small.load("small")
    noisy, same = small.load("small, 20 % wrong")
    assert np.count_nonzero(clean.labels != noisy.labels) == 60
    assert np.array_equal(test.labels, same.labels)
    assert set(noisy.labels.tolist()) == {0, 1, 2}
    assert not set(clean.contents()) & set(test.contents())


def test_a_pool_is_measured_once_and_again_where_a_recipe_changed(module, small, tmp_path, monkeypatch):
    selection = module("selection")
    monkeypatch.setattr(selection, "BUDGETS", (0.1,))
    keep, only = tmp_path / "kept.jsonl", ["noise-aware", "label-free"]
    for seed in range(2):
        selection.measure("small", seed, keep, only)
    lines = selection.read(keep)
    assert len(lines) == 2 * (4 + 1)  # two recipes, two baselines, the whole pool
    assert {line["rows"] for line in lines if line["budget"] == 0.1} == {24}
    selection.measure("small", 0, keep, only)
    assert selection.read(keep) == lines
    monkeypatch.setitem(selection.RECIPES, "label-free", [selection.COVER])
    selection.measure("small", 0, keep, only)
    assert len(selection.read(keep)) == len(lines) + 1

    results = selection.summary(lines, ["small"], 2)
    cell = results["cells"]["noise-aware"]["small|0.1"]
    value = {(line["what"].split("|")[0], line["seed"]): np.mean(line["accuracies"]) for line in lines}
    gains = [value["noise-aware", seed] - value["stratified", seed] for seed in range(2)]
    assert cell["gain"] == pytest.approx(np.mean(gains))
    assert cell["pools"] == 2
    assert cell["gain_by_family"] == pytest.approx(
        np.mean([np.subtract(*[line["accuracies"] for line in pair]) for pair in pairs(lines)], axis=0).tolist()
    )
    assert "small" in selection.tables(results)


def pairs(lines):
    """The noise-aware line and the stratified line of each pool."""
    for seed in range(2):
        yield [
            next(line for line in lines if line["seed"] == seed and line["what"].startswith(what))
            for what in ("noise-aware", "stratified")
        ]


def test_what_a_subset_is_worth(module):
    worth = module("selection").worth
    curve = [(0.01, 0.5), (0.1, 0.7), (1.0, 0.9)]
    assert worth(curve, 0.01, 0.5) == pytest.approx(1)
    assert worth(curve, 0.01, 0.6) == pytest.approx(10**0.5)
    assert worth(curve, 0.1, 0.99) == pytest.approx(10)  # no more than the whole pool can be said
    assert worth(curve, 0.1, 0.6) == pytest.approx(10**-0.5)


def test_the_shipped_recipes_are_what_was_measured(module):
    from importlib.resources import files

    from tamis.pipelines.strict_yaml import load_recipe_text

    for name in module("selection").PRIMARY:
        text = (files("tamis.pipelines") / "recipes" / f"{name}.yaml").read_text()
        stages = load_recipe_text(text, name)[0]["stages"][1:]
        stages[-1].pop("budget")
        assert stages == module("selection").RECIPES[name]


def test_a_variant_changes_one_thing(module, small):
    variants = module("variants")
    part, _ = small.load("small, 20 % wrong")
    pool = variants.read_pool(part, None, 0)
    shipped = variants.choose(pool, 30)
    assert len(np.unique(shipped)) == 30
    assert not pool.suspect[shipped].any()
    assert pool.suspect[variants.choose(pool, 30, last=np.zeros(len(pool), bool))].any()
    counts = np.bincount(pool.labels[shipped])
    assert np.abs(counts - 30 * np.bincount(pool.labels[pool.kept]) / len(pool.kept)).max() < 1
    full = variants.choose(pool, len(pool.kept))
    assert np.array_equal(np.sort(full), pool.kept)
    for what, variant in variants.VARIANTS.items():
        chosen = variant(pool, 60)
        assert len(np.unique(chosen)) == len(chosen) == 60, what


def test_the_advisers_table_counts_what_it_shows(module):
    advice = module("advice")
    cells = {"noise-aware": {}, "label-free": {}}
    for what, gain, holm in (("noise-aware", 0.05, 0.01), ("label-free", -0.02, 0.2)):
        for key in ("a|0.05", "a|0.5", "b|0.05", "b|0.5"):
            cells[what][key] = {"gain": gain, "half_interval": 0.01, "holm": holm}
    names = ("noise-aware", "label-free", "stratified", "stratified")
    asked = {
        key: {"recommended": what, "expected": [0.04, 0.01, 0.07], "splits": 5, "seconds": 1.0}
        for key, what in zip(cells["label-free"], names, strict=True)
    }
    found = {key: advice.judged(one, cells, key) for key, one in asked.items()}
    assert [one["verdict"] for one in found.values()] == [
        "better", "not distinguishable", "the baseline itself", "the baseline itself",
    ]  # fmt: skip
    text = advice.tables({"cells": found, "sets": ["a", "b"]})
    assert "noise-aware: +4.0 expected, +5.0 found" in text
    assert "Of 4 cells, 2 were given another recipe" in text
    assert "1 of these are better after Holm's correction, and 0 worse" in text
    assert "+0.8 points" in text  # the mean of +5, -2, 0 and 0

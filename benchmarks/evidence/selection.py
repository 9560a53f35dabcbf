"""Does what the shipped recipes select train better models than random rows, and by how much?

Every recipe runs as it is shipped, through `tamis.run`, on 10 pools of up to 5,000 rows of each real set
(`sets.py`), at 1, 5, 10, 25 and 50 % of the pool. Two model families are trained on what it kept and measured on
rows that no choice was made on: for texts a linear SVM and complement naive Bayes on TF-IDF of words, for vectors an
SVM with an RBF kernel and extremely randomised trees. Neither is what selects (logistic regression on embeddings).
Beside them, uniform and stratified random rows, two draws a pool, and the whole pool.

A cell is a set and a budget. What is compared is the mean accuracy of both families, against the mean of the pool's
two stratified draws, pool by pool: paired t-tests, Holm over all cells of one recipe. The pools of a set share rows,
and its test rows are the same for all: the intervals are about other draws from this data, not about other data.

"Worth" is how many times the rows stratified random needs for the same accuracy, by interpolation of its curve over the
logarithm of the budget; up to the whole pool, where more is meant by it.

    python benchmarks/evidence/selection.py [--seeds 10] [--sets newsgroups,tweets] [--quick]

Finished cells are kept under .cache/evidence; a stopped run goes on.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sets
from _beside import ROOT
from _beside import measure as _measure

import tamis
from tamis.errors import RecipeError
from tamis.manifests.canonical import digest
from tamis.selectors import random, stratified
from tamis.training.break_even import selection_seconds
from tamis.training.significance import half_interval, holm, paired_p

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from sets import Part

POOL_ROWS, POOL_SHARE, TEST_ROWS, DRAWS = 5000, 0.8, 2500, 2
BUDGETS = (0.01, 0.05, 0.1, 0.25, 0.5)
LEVEL = 0.05
CACHE = ROOT / ".cache" / "evidence"

DEDUP, SCORE = {"kind": "dedup", "eps": 0.05}, {"kind": "score", "method": "proxy", "min_accuracy": 0.0}
COVER: dict[str, Any] = {"kind": "select", "method": "facility_location", "random_beyond": 0.1}
# What is selected by: the stages after embed; the budget goes to the last one, as `budget` or `keep`.
RECIPES: dict[str, list[dict[str, Any]]] = {
    "noise-aware": [DEDUP, SCORE, {**COVER, "per": "label", "suspects": "last"}],
    "label-free": [DEDUP, COVER],
    "stratified, suspects last": [DEDUP, SCORE, {"kind": "select", "method": "stratified", "suspects": "last"}],
    "INGENIOUS, T = 1": [DEDUP, {"kind": "select", "method": "ingenious", "temperature": 1.0}],
    "DBP": [DEDUP, {"kind": "cluster"}, {"kind": "prune", "method": "density"}],
}
# Registered before the fresh sets were run: these recipes against stratified random, in every cell.
PRIMARY = ("noise-aware", "label-free")
RANDOM, STRATIFIED, FULL = "random", "stratified", "full"


def pool_of(train: Part, seed: int) -> Part:
    """The rows that a seed selects from."""
    count = min(POOL_ROWS, round(POOL_SHARE * len(train)))
    return train.take(np.random.default_rng([seed, 7]).permutation(len(train))[:count])


class Families:
    """Two kinds of model, on features that are made once for a pool.

    Args:
        pool: What subsets are of.
        test: What is measured on.
        seed: Of the trees.
    """

    def __init__(self, pool: Part, test: Part, seed: int) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.pool, self.test, self.seed = pool, test, seed
        if pool.texts is not None:
            vectorizer = TfidfVectorizer(sublinear_tf=True)
            self.rows, self.measured = vectorizer.fit_transform(pool.texts), vectorizer.transform(test.texts)
        else:
            self.rows, self.measured = features(pool, test)

    def accuracies(self, rows: npt.NDArray[np.int64]) -> tuple[list[float], float]:
        """Trains both on some rows; their accuracies on the test, and the seconds that both took."""
        from sklearn.ensemble import ExtraTreesClassifier
        from sklearn.naive_bayes import ComplementNB
        from sklearn.svm import SVC, LinearSVC

        labels = self.pool.labels[rows]
        if len(np.unique(labels)) < 2:
            return [float(np.mean(self.test.labels == labels[0]))] * 2, 0.0
        if self.pool.texts is not None:
            models = [LinearSVC(tol=1e-3, max_iter=2000), ComplementNB(alpha=0.3)]
        else:
            models = [SVC(C=5.0), ExtraTreesClassifier(60, random_state=self.seed)]
        began = time.perf_counter()
        for model in models:
            model.fit(self.rows[rows], labels)
        seconds = time.perf_counter() - began
        return [float(np.mean(model.predict(self.measured) == self.test.labels)) for model in models], seconds


def features(pool: Part, test: Part) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Vectors as models take them: a few numbers standardised, pixels by their first 50 principal components."""
    assert pool.vectors is not None
    assert test.vectors is not None
    centre = pool.vectors.mean(axis=0)
    if pool.vectors.shape[1] <= 100:
        scale = np.maximum(pool.vectors.std(axis=0), 1e-6)
        return (pool.vectors - centre) / scale, (test.vectors - centre) / scale
    _, _, axes = np.linalg.svd(pool.vectors - centre, full_matrices=False)
    rows, measured = ((part.vectors - centre) @ axes[:50].T for part in (pool, test))
    return rows / rows.std(), measured / rows.std()


def write_pool(pool: Part, features: Any, folder: Path) -> dict[str, Any]:
    """The pool as a Parquet file, and the recipe's dataset section."""
    columns: dict[str, Any] = {"id": [f"r{row:05d}" for row in range(len(pool))]}
    columns["label"] = [f"c{label:02d}" for label in pool.labels]
    role = "text" if pool.texts is not None else "vectors"
    columns[role] = list(pool.texts) if pool.texts is not None else features.tolist()
    path = folder / "pool.parquet"
    pq.write_table(pa.table(columns), path)
    return {"path": str(path), "id": "id", "label": "label", role: role}


def recipe(name: str, dataset: dict[str, Any], budget: float, seed: int) -> dict[str, Any]:
    """A recipe of the list, for a dataset and a budget."""
    *before, last = RECIPES[name]
    rows = pq.read_metadata(dataset["path"]).num_rows
    count = round(budget * rows)
    # Every cluster keeps a row, so that there can be no more clusters than rows are kept.
    few = {"n_clusters": min(round(rows**0.5), max(2, count // 2))}
    before = [stage | few if stage["kind"] == "cluster" else stage for stage in before]
    encoder = "lsa" if "text" in dataset else "vectors"
    last = {**last, "keep" if last["kind"] == "prune" else "budget": count}
    return {
        "name": "evidence",
        "seed": seed,
        "dataset": dataset,
        "stages": [{"kind": "embed", "encoder": encoder}, *before, last],
    }


def selected(name: str, dataset: dict[str, Any], budget: float, seed: int, folder: Path) -> tuple[Any, float]:
    """The rows that a recipe keeps, and the seconds of its work (what other budgets share is counted in each)."""
    out = folder / digest([name, budget])[:16]
    run = tamis.run(recipe(name, dataset, budget, seed), out, executor="sync", work=str(folder / "work"))
    manifest = run.open_manifest()
    kept = manifest.select
    order = np.argsort(kept["rank"].to_numpy()) if "rank" in kept.column_names else slice(None)
    return kept["row"].to_numpy()[order], selection_seconds(manifest) or 0.0


def measure(name: str, seed: int, keep: Path, only: Sequence[str]) -> None:
    """All cells of one set and pool that are not there yet."""
    train, test = sets.load(name)
    pool, test = pool_of(train, seed), test.take(np.arange(min(len(test), TEST_ROWS)))
    there = {(line["what"], line["budget"]) for line in read(keep) if (line["set"], line["seed"]) == (name, seed)}
    wanted = [(what, budget) for what in (*only, RANDOM, STRATIFIED) for budget in BUDGETS] + [(FULL, 1.0)]
    if there >= {(_key(what), budget) for what, budget in wanted}:
        return
    families = Families(pool, test, seed)
    with tempfile.TemporaryDirectory() as work, keep.open("a") as file:
        dataset = write_pool(pool, families.rows, Path(work))
        for what, budget in wanted:
            if (_key(what), budget) in there:
                continue
            count, spent = round(budget * len(pool)), 0.0
            cell = {"set": name, "seed": seed, "what": _key(what), "budget": budget}
            if what in RECIPES:
                try:
                    rows, spent = selected(what, dataset, budget, seed, Path(work))
                except RecipeError as error:  # so much was dropped that the budget cannot be met
                    file.write(json.dumps({**cell, "refused": str(error)}) + "\n")
                    continue
                drawn = [rows]
            elif what == FULL:
                drawn = [np.arange(len(pool))]
            else:
                generators = [np.random.default_rng([seed, 3, number]) for number in range(DRAWS)]
                drawn = [
                    random(len(pool), budget=count, rng=rng).indices
                    if what == RANDOM
                    else stratified(pool.labels, budget=count, rng=rng).indices
                    for rng in generators
                ]
            found = [families.accuracies(rows) for rows in drawn]
            line = {
                **cell,
                "rows": len(drawn[0]),
                "accuracies": np.mean([one for one, _ in found], axis=0).tolist(),
                "training_seconds": float(np.mean([seconds for _, seconds in found])),
                "selection_seconds": spent,
            }
            file.write(json.dumps(line) + "\n")
            file.flush()


def _key(what: str) -> str:
    """A name with what it stands for, so that a changed recipe is measured anew."""
    return f"{what}|{digest(RECIPES[what])[:12]}" if what in RECIPES else what


def read(keep: Path) -> list[dict[str, Any]]:
    """The finished cells; a torn last line is left out."""
    lines = keep.read_text().splitlines() if keep.is_file() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def summary(lines: Sequence[dict[str, Any]], names: Sequence[str], seeds: int) -> dict[str, Any]:
    """Means, intervals, tests and worths, of the pools that every name of a set has."""
    values: dict[tuple[str, str, float], dict[int, dict[str, Any]]] = {}
    for line in lines:
        if line["seed"] < seeds and "refused" not in line:
            values.setdefault((line["set"], line["what"], line["budget"]), {})[line["seed"]] = line
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names:
        curve = [
            (budget, float(np.mean([np.mean(one["accuracies"]) for one in values[name, what, budget].values()])))
            for what, budget in [(STRATIFIED, budget) for budget in BUDGETS] + [(FULL, 1.0)]
        ]
        for budget in BUDGETS:
            base = values[name, STRATIFIED, budget]
            for what in (RANDOM, *RECIPES):
                own = values.get((name, _key(what), budget), {})
                pools = sorted(own.keys() & base.keys())
                if len(pools) < 2:
                    continue
                both = np.array([np.subtract(own[s]["accuracies"], base[s]["accuracies"]) for s in pools])
                mean = float(np.mean([np.mean(own[s]["accuracies"]) for s in pools]))
                cells.setdefault(what, {})[f"{name}|{budget}"] = {
                    "pools": len(pools),
                    "rows": own[pools[0]]["rows"],
                    "accuracy": mean,
                    "stratified": float(np.mean([np.mean(base[s]["accuracies"]) for s in pools])),
                    "gain": float(both.mean()),
                    "half_interval": half_interval(both.mean(axis=1).tolist()),
                    "gain_by_family": both.mean(axis=0).tolist(),
                    "p": paired_p(both.mean(axis=1).tolist(), [0.0] * len(pools)),
                    "worth": worth(curve, budget, mean),
                    "selection_seconds": float(np.median([own[s]["selection_seconds"] for s in pools])),
                    "training_seconds": float(np.median([own[s]["training_seconds"] for s in pools])),
                }
    for of in cells.values():
        for cell, corrected in zip(of.values(), holm([cell["p"] for cell in of.values()]), strict=True):
            cell["holm"] = corrected
    full = {
        name: {
            "accuracy": float(np.mean([np.mean(one["accuracies"]) for one in values[name, FULL, 1.0].values()])),
            "training_seconds": float(np.median([one["training_seconds"] for one in values[name, FULL, 1.0].values()])),
        }
        for name in names
    }
    return {"cells": cells, "full": full, "sets": list(names), "seeds": seeds, "pool_rows": POOL_ROWS, "draws": DRAWS}


def worth(curve: Sequence[tuple[float, float]], budget: float, accuracy: float) -> float:
    """How many times a budget stratified random needs for an accuracy; at most what the whole pool is.

    >>> round(worth([(0.1, 0.5), (1.0, 0.9)], 0.1, 0.7), 2)
    3.16
    """
    budgets, reached = (np.array(part) for part in zip(*curve, strict=True))
    reached = np.maximum.accumulate(reached)
    return float(np.exp(np.interp(accuracy, reached, np.log(budgets))) / budget)


def verdict(cell: dict[str, Any]) -> str:
    """What a cell says after Holm's correction."""
    if cell["holm"] >= LEVEL:
        return "not distinguishable"
    return "better" if cell["gain"] > 0 else "worse"


def tables(results: dict[str, Any]) -> str:
    """Markdown: for each recipe the gains over stratified random in points, sets by budgets, with 95 % intervals.

    Bold where it differs after Holm's correction; for the primary recipes with what it is worth in rows. Refused is
    what cannot be met, because fewer rows are left when near duplicates are dropped.
    """
    parts = []
    for what in (what for what in (*RECIPES, RANDOM) if what in results["cells"]):
        cells = results["cells"][what]
        head = f"**{what}** against stratified random"
        lines = [head, "", "| set | " + " | ".join(f"{budget:.0%}" for budget in BUDGETS) + " |"]
        lines.append("|---|" + "---:|" * len(BUDGETS))
        for name in results["sets"]:
            row = [_cell(cells.get(f"{name}|{budget}"), what) for budget in BUDGETS]
            lines.append(f"| {name} | " + " | ".join(row) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(cell: dict[str, Any] | None, what: str) -> str:
    if cell is None:
        return "refused"
    gain = f"{100 * cell['gain']:+.1f} ± {100 * cell['half_interval']:.1f}"
    if verdict(cell) != "not distinguishable":
        gain = f"**{gain}**"
    return f"{gain}, {cell['worth']:.1f}x" if what in PRIMARY else gain


@click.command()
@click.option("--seeds", type=click.IntRange(2), default=10, show_default=True, help="Pools of each set.")
@click.option("--sets", "chosen", help="Names with ; between them; default: all.")
@click.option("--quick", is_flag=True, help="Two pools of the smallest set; prints, and writes nothing.")
@click.option("--repeat", type=click.IntRange(1), default=1, hidden=True)
def main(seeds: int, chosen: str | None, quick: bool, repeat: int) -> None:  # noqa: ARG001
    """Measure, and write results/evidence_selection.json."""
    names = chosen.split(";") if chosen else [*sets.DEVELOPMENT, *sets.FRESH]
    if quick:
        names, seeds = ["bbc"], 2
    CACHE.mkdir(parents=True, exist_ok=True)
    keep = CACHE / ("quick.jsonl" if quick else "selection.jsonl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(seeds):
            for name in names:
                began = time.perf_counter()
                measure(name, seed, keep, list(RECIPES))
                print(f"{name}, pool {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    results = summary(read(keep), names, seeds)
    _measure.finish("evidence_selection", results, not quick and chosen is None)


if __name__ == "__main__":
    main()

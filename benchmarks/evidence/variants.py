"""Which other ways to select are better than the shipped `noise-aware` recipe? What was tried, and did not stay.

On some of the development sets, 3 pools of up to 5,000 rows each, the families and baselines of `selection.py`. Every
variant changes one thing in the shipped way: near duplicates dropped; suspects (rows with a label that is likely wrong)
last; facility location within each class up to a tenth of the pool, beyond at random; classes in proportion. So few
pools rank ideas and prove nothing: a difference below about a point says little.

    python benchmarks/evidence/variants.py [--pools 3] [--quick]
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import sets
from _beside import measure as _measure
from selection import BUDGETS, DRAWS, TEST_ROWS, Families, pool_of

from tamis.embeddings.encoders import Lsa
from tamis.selectors import (
    as_unit_rows,
    confidence_thresholds,
    drop_by_loss,
    facility_location,
    ingenious,
    k_center,
    largest_remainder,
    near_duplicates,
    stratified,
    suspects,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from sets import Part

    Rows = npt.NDArray[np.int64]
    Vectors = npt.NDArray[np.float32]

SETS = ("newsgroups", "newsgroups, 20 % wrong", "glosses", "tweets", "fashion", "reuters")
FOLDS, PROJECTED, WHITENED, GREEDY = 5, 512, 128, 0.1


@dataclass(frozen=True)
class Pool:
    """What a variant chooses from.

    Attributes:
        unit: float32 [n, d], rows of length 1.
        labels: int64 [n].
        probabilities: float64 [n, k], out of fold.
        loss: float64 [n], of each row's label.
        suspect: bool [n].
        kept: The rows that are left when near duplicates are dropped.
        seed: Of draws.
    """

    unit: Vectors
    labels: Rows
    probabilities: npt.NDArray[np.float64]
    loss: npt.NDArray[np.float64]
    suspect: npt.NDArray[np.bool_]
    kept: Rows
    seed: int

    def __len__(self) -> int:
        return len(self.labels)

    def rng(self, stream: int) -> np.random.Generator:
        """A generator of its own."""
        return np.random.default_rng([self.seed, 11, stream])


def read_pool(part: Part, features: Any, seed: int) -> Pool:
    """Embeds a pool, and asks a proxy that has not seen a row what it makes of it."""
    from sklearn.linear_model import LogisticRegression

    unit = as_unit_rows(Lsa.fit(part.texts, 256, 50_000).encode(part.texts) if part.texts is not None else features)
    classes = int(part.labels.max()) + 1
    fold = np.random.default_rng([seed, 12]).permutation(len(part)) % FOLDS
    probabilities = np.full((len(part), classes), 1e-9)
    for own in range(FOLDS):
        model = LogisticRegression(C=10.0, max_iter=300, tol=1e-3).fit(unit[fold != own], part.labels[fold != own])
        probabilities[np.ix_(fold == own, model.classes_)] = np.maximum(model.predict_proba(unit[fold == own]), 1e-9)
    confidence = probabilities[np.arange(len(part)), part.labels]
    doubted = suspects(part.labels, probabilities, confidence_thresholds(part.labels, confidence, classes))
    stands, _ = near_duplicates(unit, 0.05)
    kept = np.flatnonzero(stands == np.arange(len(part)))
    return Pool(unit, part.labels, probabilities, -np.log(confidence), doubted, kept, seed)


def choose(
    pool: Pool,
    count: int,
    *,
    unit: Vectors | None = None,
    rows: Rows | None = None,
    last: npt.NDArray[np.bool_] | None = None,
    greedy: float = GREEDY,
    power: float = 1.0,
    pick: Callable[[Vectors, int], Rows] | None = None,
) -> Rows:
    """The shipped way, with one thing changed.

    Args:
        pool: Of n rows.
        count: How many to choose.
        unit: Vectors to choose by.
        rows: What to choose from.
        last: bool [n], what is chosen only where a class has too few others.
        greedy: The fraction of the pool that is chosen by gain at most.
        power: Of the classes' sizes, in whose proportion they get their shares.
        pick: Chooses so many of some vectors in place of facility location.
    """
    vectors = pool.unit if unit is None else unit
    rows = pool.kept if rows is None else rows
    last = pool.suspect if last is None else last
    pick = pick or (lambda X, k: facility_location(X, budget=k).indices)
    sizes = np.bincount(pool.labels[rows])
    shares = largest_remainder(sizes.astype(np.float64) ** power, min(count, len(rows)), sizes)
    by_gain = largest_remainder(shares.astype(np.float64), min(round(greedy * len(pool)), int(shares.sum())), shares)
    chosen, rng = [], pool.rng(1)
    for label, (share, first) in enumerate(zip(shares.tolist(), by_gain.tolist(), strict=True)):
        own = rows[pool.labels[rows] == label]
        order = [own[~last[own]], own[last[own]]]
        for members, want in zip(order, (min(share, len(order[0])), max(0, share - len(order[0]))), strict=True):
            best = members[pick(vectors[members], min(first, want))] if min(first, want) else members[:0]
            others = np.setdiff1d(members, best)
            chosen += [best, rng.permutation(others)[: want - len(best)]]
            first = max(0, first - want)
    return np.concatenate(chosen)


def unit_rows(X: npt.NDArray[Any]) -> Vectors:
    """Rows of length 1."""
    return as_unit_rows(X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12))


def centred(pool: Pool) -> Vectors:
    """Embeddings less their mean."""
    return unit_rows(pool.unit - pool.unit.mean(axis=0))


def whitened(pool: Pool) -> Vectors:
    """The first 128 principal components, each scaled to the root of its spread."""
    left, spread, _ = np.linalg.svd(pool.unit - pool.unit.mean(axis=0), full_matrices=False)
    return unit_rows(left[:, :WHITENED] * np.sqrt(spread[:WHITENED]))


def task_vectors(pool: Pool) -> Vectors:
    """Embeddings beside the proxy's log-probabilities."""
    logs = np.log(pool.probabilities)
    return unit_rows(np.hstack([pool.unit, unit_rows(logs - logs.mean(axis=1, keepdims=True))]))


def gradients(pool: Pool) -> Vectors:
    """The proxy's gradient of each row's loss, (p - y) times x, projected at random."""
    error = pool.probabilities.copy()
    error[np.arange(len(pool)), pool.labels] -= 1
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((part.shape[1], PROJECTED)) for part in (error, pool.unit))
    return unit_rows((error @ left) * (pool.unit @ right))


def without_loss_tail(pool: Pool, share: float) -> Rows:
    """The rows whose loss is not among the highest of their class."""
    parts = [pool.kept[pool.labels[pool.kept] == label] for label in np.unique(pool.labels[pool.kept])]
    return np.sort(np.concatenate([part[drop_by_loss(pool.loss[part], drop_highest=share)] for part in parts]))


VARIANTS: dict[str, Callable[[Pool, int], Rows]] = {
    "shipped": choose,
    "suspects like all others": lambda pool, count: choose(pool, count, last=np.zeros(len(pool), bool)),
    "suspects dropped": lambda pool, count: choose(pool, count, rows=pool.kept[~pool.suspect[pool.kept]]),
    "the tenth of highest loss of each class dropped instead": lambda pool, count: choose(
        pool, count, rows=without_loss_tail(pool, 0.1), last=np.zeros(len(pool), bool)
    ),
    "the easier half up to 10 %": lambda pool, count: choose(
        pool, count, rows=without_loss_tail(pool, 0.5) if count <= GREEDY * len(pool) else None
    ),
    "all by gain": lambda pool, count: choose(pool, count, greedy=1.0),
    "half by gain, half at random": lambda pool, count: choose(pool, count, greedy=0.5 * count / len(pool)),
    "all at random": lambda pool, count: choose(pool, count, greedy=0.0),
    "shares by the root of a class's size": lambda pool, count: choose(pool, count, power=0.5),
    "centred embeddings": lambda pool, count: choose(pool, count, unit=centred(pool)),
    "whitened embeddings": lambda pool, count: choose(pool, count, unit=whitened(pool)),
    "the proxy's log-probabilities beside": lambda pool, count: choose(pool, count, unit=task_vectors(pool)),
    "the proxy's gradients": lambda pool, count: choose(pool, count, unit=gradients(pool)),
    "INGENIOUS within classes, T = 0.01": lambda pool, count: choose(
        pool, count, pick=lambda X, k: ingenious(X, budget=k, temperature=0.01, rng=pool.rng(2)).indices
    ),
    "k-center within classes": lambda pool, count: choose(pool, count, pick=lambda X, k: k_center(X, budget=k).indices),
    "highest loss first": lambda pool, count: pool.kept[np.argsort(-pool.loss[pool.kept], kind="stable")[:count]],
    "lowest loss first": lambda pool, count: pool.kept[np.argsort(pool.loss[pool.kept], kind="stable")[:count]],
}


def measure(name: str, seed: int) -> dict[str, dict[str, float]]:
    """The gains over stratified random rows of each variant at each budget, mean of both families."""
    train, test = sets.load(name)
    part, test = pool_of(train, seed), test.take(np.arange(min(len(test), TEST_ROWS)))
    families = Families(part, test, seed)
    pool = read_pool(part, families.rows, seed)
    gains: dict[str, dict[str, float]] = {what: {} for what in VARIANTS}
    for budget in BUDGETS:
        count = round(budget * len(part))
        draws = [
            stratified(part.labels, budget=count, rng=np.random.default_rng([seed, 3, number])).indices
            for number in range(DRAWS)
        ]
        base = np.mean([families.accuracies(rows)[0] for rows in draws])
        for what, variant in VARIANTS.items():
            gains[what][str(budget)] = float(np.mean(families.accuracies(variant(pool, count))[0]) - base)
    return gains


def tables(results: dict[str, Any]) -> str:
    """Markdown: a row for each variant; its gain over stratified random in points, the mean over sets and pools."""
    lines = [
        "| variant | " + " | ".join(f"{budget:.0%}" for budget in BUDGETS) + " | at 10 % and less, worst set |",
        "|---|" + "---:|" * (len(BUDGETS) + 1),
    ]
    for what in (what for what in VARIANTS if what in results["gains"]):
        by_set = results["gains"][what]
        means = [np.mean([of[str(budget)] for of in by_set.values()]) for budget in BUDGETS]
        low = {
            name: np.mean([of[str(budget)] for budget in BUDGETS if budget <= GREEDY]) for name, of in by_set.items()
        }
        worst = min(low, key=low.__getitem__)
        cells = " | ".join(f"{100 * mean:+.1f}" for mean in means)
        lines.append(f"| {what} | {cells} | {100 * low[worst]:+.1f} ({worst}) |")
    return "\n".join(lines)


@click.command()
@click.option("--pools", type=click.IntRange(1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="One pool of the smallest set; prints, and writes nothing.")
@click.option("--repeat", type=click.IntRange(1), default=1, hidden=True)
def main(pools: int, quick: bool, repeat: int) -> None:  # noqa: ARG001
    """Measure, and write results/evidence_variants.json."""
    names, pools = (("bbc",), 1) if quick else (SETS, pools)
    gains: dict[str, dict[str, dict[str, float]]] = {what: {} for what in VARIANTS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            found = [measure(name, 100 + seed) for seed in range(pools)]  # pools that selection.py does not take
            for what in VARIANTS:
                gains[what][name] = {
                    str(budget): float(np.mean([one[what][str(budget)] for one in found])) for budget in BUDGETS
                }
            print(f"{name}: {pools} pools", file=sys.stderr, flush=True)
    _measure.finish("evidence_variants", {"gains": gains, "pools": pools, "sets": list(names)}, not quick)


if __name__ == "__main__":
    main()

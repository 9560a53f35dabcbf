"""Where the kept rows lie among all: a map, how well they cover the others, how many dimensions they use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.embeddings.rankme import rankme
from tamis.pipelines.state import alive_rows, vectors
from tamis.reports.brief import rounded
from tamis.reports.nearest import coverage

if TYPE_CHECKING:
    from tamis.pipelines.finished import Finished, FinishedStage
    from tamis.pipelines.node import Inputs
    from tamis.pipelines.state import Rows

_MAP_KEPT, _MAP_DROPPED = 800, 1600
_DRAWS = 5
_MOST_QUERIES, _FEWEST_QUERIES = 4096, 200
_PRODUCTS = 3e11  # of two numbers, for the coverage: some seconds
_COMPARING = 256  # so many products take as long as what is done with a cosine
_RANK_PRODUCTS = 1.6e10  # likewise, for one RankMe
_RANK_ROWS = 25_600  # as many as the paper takes
_STREAM = (0x7E90, 0)  # the report's own of the recipe's seed


def space(run: Finished) -> dict[str, Any]:
    """Look at the embeddings of the last embed stage.

    All is computed on samples drawn from the recipe's seed; time and memory are bounded by them and by one pass over
    the blocks.

    Returns:
        `map`: the first two principal components of a sample, of kept and of dropped rows apart. `coverage`: mean and
        95th percentile of the cosine distance from sampled rows to the nearest kept one, and to the nearest of as many
        uniform random ones, for each of several draws. `rankme`: of all rows, the kept ones, and as many random ones.
        Each is None without embeddings; coverage also where no embedded row was dropped.
    """
    stage = run.last("embed")
    blocks, check = (stage.of("block"), stage.of("check")) if stage is not None else ((), ())
    if stage is None or not blocks or not check:
        return {"map": None, "coverage": None, "rankme": None}
    inputs = run.inputs(embeddings=blocks, alive=check)
    rows, kept = alive_rows(inputs), run.kept
    dropped = np.setdiff1d(rows, kept, assume_unique=True)
    rng = np.random.default_rng([run.seed, *_STREAM])
    draws = [_sample(rows, len(kept), rng) for _ in range(_DRAWS)]
    dim = next(block.facts["dim"] for block in blocks if block.facts["encoded"])
    places = _map(inputs, _sample(kept, _MAP_KEPT, rng), _sample(dropped, _MAP_DROPPED, rng))
    return {
        "map": places | {"rows": {"kept": len(kept), "dropped": len(dropped)}},
        "rankme": _rankme(inputs, {"all": rows, "kept": kept, "random": draws[0]}, dim, rng),
        "coverage": _coverage(run, stage, rows, [kept, *draws], dim, rng) if len(dropped) else None,
    }


def _sample(rows: Rows, count: int, rng: np.random.Generator) -> Rows:
    """At most so many of the rows, uniform without replacement, ascending."""
    picked: Rows = np.sort(rng.choice(rows, min(count, len(rows)), replace=False))
    return picked


def _map(inputs: Inputs, kept: Rows, dropped: Rows) -> dict[str, Any]:
    X = vectors(inputs, np.concatenate([kept, dropped])).astype(np.float64)
    X -= X.mean(axis=0)
    left, sigma, _ = np.linalg.svd(X, full_matrices=False)
    places = np.zeros((len(X), 2))
    shown = min(2, len(sigma))
    places[:, :shown] = left[:, :shown] * sigma[:shown]
    # The sign of a component means nothing: its farthest point is on the right, or above.
    far = np.abs(places).argmax(axis=0)
    places *= np.where(places[far, (0, 1)] < 0, -1.0, 1.0)
    total = float((sigma**2).sum())
    parts = {"kept": places[: len(kept)], "dropped": places[len(kept) :]}
    return {
        "explained": rounded(sigma[:shown] ** 2 / total, 4) if total > 0 else [0.0] * shown,
        **{name: {"x": rounded(part[:, 0], 4), "y": rounded(part[:, 1], 4)} for name, part in parts.items()},
    }


def _rankme(inputs: Inputs, sets: dict[str, Rows], dim: int, rng: np.random.Generator) -> dict[str, Any]:
    wide = int((_RANK_PRODUCTS / dim) ** 0.5)  # where rows are fewer than dimensions, their square counts
    most = min(_RANK_ROWS, max(int(_RANK_PRODUCTS / dim**2), min(wide, dim)))
    found: dict[str, Any] = {"dim": dim, "rows": {}}
    for name, rows in sets.items():
        taken = _sample(rows, most, rng)
        found |= {name: rounded(rankme(vectors(inputs, taken)), 5), "rows": found["rows"] | {name: len(taken)}}
    return found


def _coverage(
    run: Finished, stage: FinishedStage, rows: Rows, sets: list[Rows], dim: int, rng: np.random.Generator
) -> dict[str, Any]:
    affordable = int(_PRODUCTS / (len(np.unique(np.concatenate(sets))) * (dim + _COMPARING)))
    asked = _sample(rows, max(_FEWEST_QUERIES, min(_MOST_QUERIES, affordable)), rng)
    found = [{name: rounded(one[name], 4) for name in ("mean", "p95")} for one in coverage(run, stage, asked, sets)]
    return {"rows": len(rows), "sampled": len(asked), "kept": found[0], "random": found[1:]}

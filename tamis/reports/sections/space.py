"""Where the kept rows lie among all: a map, how well they cover the others, how many dimensions they use."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tamis.embeddings.rankme import rankme
from tamis.pipelines.state import alive_rows, matrix_of, vectors
from tamis.reports.finished import rounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tamis.pipelines.node import Artifact, Inputs
    from tamis.pipelines.state import Rows
    from tamis.reports.finished import Finished

    Float32 = npt.NDArray[np.float32]

_MAP_KEPT, _MAP_DROPPED = 800, 1600
_DRAWS = 5
_MOST_QUERIES, _FEWEST_QUERIES = 4096, 200
_PRODUCTS = 3e11  # of two numbers, for the coverage: some seconds
_COMPARING = 256  # so many products take as long as what is done with a cosine
_RANK_PRODUCTS = 1.6e10  # likewise, for one RankMe
_RANK_ROWS = 25_600  # as many as the paper takes
_TILE = 1024


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
    blocks, check = run.made(stage, "embed.block"), run.made(stage, "embed.check")
    if not blocks or not check:
        return {"map": None, "coverage": None, "rankme": None}
    inputs = run.inputs(embeddings=blocks, alive=check)
    rows, kept = alive_rows(inputs), run.kept
    dropped = np.setdiff1d(rows, kept, assume_unique=True)
    rng = run.generator(0)
    draws = [_sample(rows, len(kept), rng) for _ in range(_DRAWS)]
    dim = next(block.facts["dim"] for block in blocks if block.facts["encoded"])
    places = _map(inputs, _sample(kept, _MAP_KEPT, rng), _sample(dropped, _MAP_DROPPED, rng))
    return {
        "map": places | {"rows": {"kept": len(kept), "dropped": len(dropped)}},
        "rankme": _rankme(inputs, {"all": rows, "kept": kept, "random": draws[0]}, dim, rng),
        "coverage": _coverage(run, inputs, blocks, rows, [kept, *draws], dim, rng) if len(dropped) else None,
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
    run: Finished,
    inputs: Inputs,
    blocks: Sequence[Artifact],
    rows: Rows,
    sets: list[Rows],
    dim: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    union = np.unique(np.concatenate(sets))
    chosen = [np.isin(union, rows_of_set, assume_unique=True) for rows_of_set in sets]
    affordable = int(_PRODUCTS / (len(union) * (dim + _COMPARING)))
    asked = _sample(rows, max(_FEWEST_QUERIES, min(_MOST_QUERIES, affordable)), rng)
    queries = vectors(inputs, asked).T
    best = np.full((len(sets), len(asked)), -1.0, np.float32)
    starts = np.concatenate([[0], np.cumsum([block.facts["block_rows"] for block in blocks])])
    bounds = np.searchsorted(union, starts).tolist()
    for block, start, (first, last) in zip(blocks, starts.tolist(), pairwise(bounds), strict=False):
        if first == last:
            continue
        table = run.inputs().open(block)
        X = matrix_of(table)[np.searchsorted(table["row"].to_numpy(), union[first:last] - start)]
        for low in range(0, last - first, _TILE):
            cosines = X[low : low + _TILE] @ queries
            for number, members in enumerate(chosen):
                among = members[first + low : min(first + low + _TILE, last)]
                if among.any():
                    np.maximum(best[number], cosines[among].max(axis=0), out=best[number])
    distances = np.maximum(1.0 - best.astype(np.float64), 0.0)
    found = [{"mean": rounded(item.mean(), 4), "p95": rounded(np.percentile(item, 95), 4)} for item in distances]
    return {"rows": len(rows), "sampled": len(asked), "kept": found[0], "random": found[1:]}

"""Near duplicates: how many rows each threshold would remove, and the pairs that it is about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.pipelines.finished import GoneError
from tamis.pipelines.threshold import pairs_of
from tamis.reports.brief import rounded

if TYPE_CHECKING:
    from tamis.pipelines.finished import Finished
    from tamis.pipelines.threshold import Pair, StoredPairs

_SHOWN = 4  # pairs on either side of the threshold
_STEPS, _FEWEST = 20, 5
_VISITS = 4e7  # of pairs, for the whole curve: some seconds
_PRODUCTS = 1e11  # likewise, where pairs were too many to be stored


def near_duplicates(run: Finished) -> dict[str, Any] | None:
    """Decide again at other thresholds, from the pairs that the last dedup stage with eps > 0 stored.

    Returns:
        `curve`: rows that would be removed at each eps up to 1 - floor, by the stage's own rule. Rows of cells whose
        pairs were too many to be stored are compared anew; where that would take long they are `left_out` of it.
        `borderline`: the stored pairs nearest to the threshold on either side, each with its cosine and its two rows.
        None without such a stage.
    """
    stages = [stage for stage in run.stages if stage.kind == "dedup" and stage.config["eps"] > 0]
    decided = stages[-1].of("near") if stages else ()
    if not decided:
        return None
    try:
        stored = pairs_of(run, stages[-1])
    except GoneError:
        return None
    eps, floor, pairs = stored.config["eps"], stored.config["floor"], stored.counts()["pairs"]
    grid = _grid(eps, floor, pairs)
    whole = stored.compared.whole
    dim = max(block.facts["dim"] for block in stored.inputs.all("embeddings"))
    again = len(grid) * dim * sum(len(rows) ** 2 for rows in whole) <= _PRODUCTS
    return {
        "stage": stored.label,
        "eps": eps,
        "floor": floor,
        "rows": stored.rows,
        "pairs": pairs,
        "removed": decided[0].facts["near_duplicates"],
        "left_out": 0 if again else sum(map(len, whole)),
        "curve": {"eps": grid, "removed": [stored.removed(at, again=again) for at in grid]},
        "borderline": [
            {"cosine": rounded(cosine, 6), "close": cosine >= 1.0 - eps, "rows": [i, j]}
            for i, j, cosine in _borderline(stored, eps)
        ],
    }


def _grid(eps: float, floor: float, pairs: int) -> list[float]:
    """Even steps from 0 to what the stored pairs allow, fewer where there are very many; the run's own among them."""
    steps = int(min(_STEPS, max(_FEWEST, _VISITS / max(pairs, 1))))
    widest = max(eps, 1.0 - floor)
    return sorted({*rounded(np.linspace(0.0, widest, steps + 1)), eps})


def _borderline(stored: StoredPairs, eps: float) -> list[Pair]:
    """The pairs nearest to the threshold, on either side, from the closest pair on; no row twice."""
    chosen: list[Pair] = []
    for close in (True, False):
        found = 0
        # More than are shown, as rows may be repeated.
        for pair in stored.nearest(eps, 64 * _SHOWN, close):
            if found < _SHOWN and not {row for one in chosen for row in one[:2]} & set(pair[:2]):
                chosen.append(pair)
                found += 1
    return sorted(chosen, key=lambda pair: (-pair[2], pair))

"""Near duplicates: how many rows each threshold would remove, and the pairs that it is about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.pipelines.stages.dedup import stored_pairs, visiting_order, with_vectors
from tamis.reports.finished import rounded
from tamis.selectors.near_duplicates import settle

if TYPE_CHECKING:
    import numpy.typing as npt

    from tamis.pipelines.state import Rows
    from tamis.reports.finished import Finished
    from tamis.selectors.near_duplicates import Pairs

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
    stage = next((item for item in reversed(run.stages) if item["kind"] == "dedup" and item["config"]["eps"] > 0), None)
    if stage is None:
        return None
    roles = {"assigned": "dedup.gather", "pairs": "dedup.pairs", "near": "dedup.near"}
    made = {role: run.made(stage, task) for role, task in roles.items()}
    made["embeddings"] = run.made(run.last("embed", before=stage), "embed.block")
    made["index"], before = (run.made(run.stages[0], f"ingest.{task}") for task in ("index", "before"))
    # A dataset that grows has a second index, of the files that there were then.
    made["index"] = tuple(item for item in made["index"] if item.name.count("/") == 1)
    if not all(made.values()):
        return None
    inputs = run.inputs(**made, before=before)
    eps, floor = stage["config"]["eps"], stage["config"]["floor"]
    params = {
        "which_to_keep": stage["config"]["which_to_keep"],
        "seed": [run.manifest.record["seed"], run.position(stage)],
    }
    alive, priority, always = visiting_order(params, inputs)
    pairs, whole = stored_pairs(inputs, alive, -1.0)
    facts = inputs.one("near").facts
    grid = _grid(eps, floor, len(pairs[0]))
    dim = max(block.facts["dim"] for block in inputs.all("embeddings"))
    again = len(grid) * dim * sum(len(rows) ** 2 for rows in whole) <= _PRODUCTS

    def removed(at: float) -> int:
        loaded = with_vectors(inputs, alive, whole) if again else ()
        kept_of, _ = settle(len(alive), *pairs, at, priority, whole, loaded, always)
        return int(np.count_nonzero(kept_of != np.arange(len(alive))))

    return {
        "stage": stage["stage"],
        "eps": eps,
        "floor": floor,
        "rows": len(alive),
        "pairs": len(pairs[0]),
        "removed": facts["near_duplicates"],
        "left_out": 0 if again else sum(map(len, whole)),
        "curve": {"eps": grid, "removed": [removed(at) for at in grid]},
        "borderline": [
            {"cosine": rounded(pairs[2][at], 6), "close": bool(pairs[2][at] >= 1.0 - eps), "rows": [i, j]}
            for at in _borderline(pairs, 1.0 - eps)
            for i, j in [(int(alive[pairs[0][at]]), int(alive[pairs[1][at]]))]
        ],
    }


def _grid(eps: float, floor: float, pairs: int) -> list[float]:
    """Even steps from 0 to what the stored pairs allow, fewer where there are very many; the run's own among them."""
    steps = int(min(_STEPS, max(_FEWEST, _VISITS / max(pairs, 1))))
    widest = max(eps, 1.0 - floor)
    return sorted({*rounded(np.linspace(0.0, widest, steps + 1)), eps})


def _borderline(pairs: Pairs, threshold: float) -> list[int]:
    """The pairs nearest to the threshold, on either side, from the closest pair on; no row twice."""
    i, j, cosine = pairs
    chosen: list[int] = []
    seen: set[int] = set()
    for side in (cosine >= threshold, cosine < threshold):
        found = 0
        for at in _nearest(np.flatnonzero(side), np.abs(cosine - threshold), i, j):
            if found < _SHOWN and not seen & {int(i[at]), int(j[at])}:
                seen |= {int(i[at]), int(j[at])}
                chosen.append(int(at))
                found += 1
    return sorted(chosen, key=lambda at: (-cosine[at], i[at], j[at]))


def _nearest(among: Rows, far: npt.NDArray[np.float64], i: Rows, j: Rows) -> Rows:
    """Some of the nearest, nearest first, ties to the lowest rows: more than are shown, as rows may be repeated."""
    count = 64 * _SHOWN
    if len(among) > count:
        among = among[far[among] <= np.partition(far[among], count)[count]]
    picked: Rows = among[np.lexsort((j[among], i[among], far[among]))][:count]
    return picked

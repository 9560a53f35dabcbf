"""What the rows were scored by: losses, difficulty groups, weights, gains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from tamis.reports.brief import rounded

if TYPE_CHECKING:
    import numpy.typing as npt

    from tamis.pipelines.finished import Finished

    Floats = npt.NDArray[np.float64]

_BINS = 32
_POINTS = 200


def losses(run: Finished) -> dict[str, Any] | None:
    """Histogram of the last score stage's losses, of all rows that had one and of the kept ones.

    Bins are even up to the 99th percentile; what lies beyond is counted in `beyond`. None without a score stage.
    """
    stage = run.last("score")
    table = run.table(stage, "join", "read")
    if stage is None or table is None or not table.num_rows:
        return None
    every, rows = table["loss"].to_numpy(), table["row"].to_numpy()
    kept = every[np.searchsorted(rows, run.kept)]
    top = float(np.percentile(every, 99))
    edges = _edges(float(every.min()), top if top > every.min() else float(every.max()))
    return {
        "stage": stage.label,
        "edges": rounded(edges),
        "all": _histogram(every, edges),
        "kept": _histogram(kept, edges),
        "beyond": {name: int((part > edges[-1]).sum()) for name, part in (("all", every), ("kept", kept))},
        "mean": {name: rounded(float(part.mean())) for name, part in (("all", every), ("kept", kept))},
        "largest": rounded(float(every.max())),
    }


def difficulty(run: Finished) -> dict[str, Any] | None:
    """The rows of each of SeTa's difficulty groups, easy to hard, with their losses; None without a schedule."""
    select = run.manifest.select
    if run.manifest.record["schedule"] is None or not select["difficulty"].null_count < select.num_rows:
        return None
    groups = select["difficulty"].to_numpy()
    loss = select["score"].to_numpy()
    count = int(groups.max()) + 1
    least, largest = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(least, groups, loss)
    np.maximum.at(largest, groups, loss)
    return {
        "rows": np.bincount(groups, minlength=count).tolist(),
        "least_loss": rounded(least),
        "largest_loss": rounded(largest),
    }


def weights(run: Finished) -> dict[str, Any]:
    """The least and the largest weight of the kept rows, and, where they differ, a histogram."""
    weight = run.manifest.select["weight"].to_numpy().astype(np.float64)
    least, largest = float(weight.min()), float(weight.max())
    found: dict[str, Any] = {"min": least, "max": largest, "histogram": None}
    if largest > least:
        edges = _edges(least, largest)
        found["histogram"] = {"edges": rounded(edges), "rows": _histogram(weight, edges)}
    return found


def gains(run: Finished) -> dict[str, Any] | None:
    """What the subset gained of the objective by the time it had so many rows, in rank order.

    At most 200 ranks are given, the first and the last among them. None where the last selection has no gains.
    """
    gain = run.manifest.select["gain"]
    known = pc.drop_null(gain).to_numpy()
    if not len(known):
        return None
    total = np.cumsum(known)
    at = np.unique(np.linspace(0, len(known) - 1, min(_POINTS, len(known))).astype(np.int64))
    certificate = run.manifest.record["certificate"]
    return {
        "rows": (at + 1).tolist(),
        "objective": rounded(total[at]),
        "upper_bound": None if certificate is None else certificate["upper_bound"],
        "half": int(np.searchsorted(total, total[-1] / 2)) + 1,
    }


def _edges(low: float, high: float) -> Floats:
    edges: Floats = np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    return edges


def _histogram(values: Floats, edges: Floats) -> list[int]:
    counts: list[int] = np.histogram(values, edges)[0].tolist()
    return counts

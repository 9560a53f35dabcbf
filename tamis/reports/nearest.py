"""Kept rows that are nearest: to one row, and, as coverage, to many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.pipelines.state import vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from tamis.pipelines.finished import Finished, FinishedStage
    from tamis.pipelines.state import Rows

_TILE = (1024, 4096)  # rows of a subset and measured rows at a time: 16 MiB of cosines


def nearest_kept(run: Finished, row: int, kept: Rows) -> dict[str, Any] | None:
    """The kept row that is most like a row, by the last embed stage that has a vector of it; ties to the lowest row.

    Args:
        run: Of whose dataset they are rows.
        row: The one.
        kept: int64[k], those that were kept.

    Returns:
        `row`, `cosine` and `embeddings` (the stage's label); None where no vector of the row is left.

    Raises:
        DamagedArtifactError: A file of the run's store is damaged.
    """
    for stage in reversed([stage for stage in run.stages if stage.kind == "embed"]):
        own = [X[rows == row] for rows, X in run.vectors(stage)]
        vector = next((found[0].astype(np.float64) for found in own if len(found)), None)
        if vector is None:
            continue
        best, highest = -1, -np.inf
        for rows, X in run.vectors(stage):
            among = np.isin(rows, kept)
            cosines = X[among].astype(np.float64) @ vector
            if len(cosines) and cosines.max() > highest:
                best, highest = int(rows[among][np.argmax(cosines)]), float(cosines.max())
        if best >= 0:
            return {"row": best, "cosine": min(1.0, highest), "embeddings": stage.label}
    return None


def coverage(run: Finished, stage: FinishedStage, measured: Rows, subsets: Sequence[Rows]) -> list[dict[str, Any]]:
    """How far rows are from the nearest row of each subset, in cosine distance.

    The vectors of the measured rows are held, those of the subsets are read once, block by block.

    Args:
        run: Of whose dataset they are rows.
        stage: The embed stage whose vectors count.
        measured: int64[q], rows that have vectors.
        subsets: int64[k] each; rows without a vector cover nothing.

    Returns:
        For each subset `kept` (how many of it have vectors), `mean` and `p95` (the 95th percentile); these are None
        where none has.

    Raises:
        DamagedArtifactError: A file of the run's store is damaged.
    """
    # A row that is in several subsets is compared once: its group is the subsets that it is in.
    chosen = np.unique(np.concatenate(subsets))
    member = np.array([np.isin(chosen, subset) for subset in subsets])
    groups, group_of = np.unique(member, axis=1, return_inverse=True)
    queries = vectors(run.inputs(embeddings=stage.of("block")), measured)
    best = np.full((groups.shape[1], len(measured)), -np.inf, np.float32)
    sizes = np.zeros(groups.shape[1], np.int64)
    for rows, X in run.vectors(stage):
        mine = np.isin(rows, chosen)
        group = group_of.reshape(-1)[np.searchsorted(chosen, rows[mine])]
        sizes += np.bincount(group, minlength=len(sizes))
        X = X[mine]
        for number in np.unique(group):
            _raise(best[number], queries, X[group == number])
    return [_spread(best[inside], int(sizes[inside].sum())) for inside in groups]


def _raise(best: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], X: npt.NDArray[np.float32]) -> None:
    """Raise each query's highest cosine to that of the nearest of some rows."""
    for first in range(0, len(queries), _TILE[1]):
        part, to = queries[first : first + _TILE[1]].T, best[first : first + _TILE[1]]
        for start in range(0, len(X), _TILE[0]):
            np.maximum(to, (X[start : start + _TILE[0]] @ part).max(axis=0), out=to)


def _spread(best: npt.NDArray[np.float32], kept: int) -> dict[str, Any]:
    """The distances of the nearest of some groups' highest cosines, float32[groups, q], in short."""
    if not kept:
        return {"kept": 0, "mean": None, "p95": None}
    distance = np.clip(1.0 - best.max(axis=0).astype(np.float64), 0.0, None)
    return {"kept": kept, "mean": float(distance.mean()), "p95": float(np.percentile(distance, 95))}

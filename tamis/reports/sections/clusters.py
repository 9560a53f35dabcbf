"""The clusters: their sizes before and after, and the concept complexity that a density prune goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from tamis.pipelines.state import KEPT, matrix_of
from tamis.reports.brief import rounded
from tamis.selectors.density import concept_complexity, inter_distance

if TYPE_CHECKING:
    import pyarrow as pa

    from tamis.pipelines.finished import Finished, FinishedStage

_LISTED = 10


def clusters(run: Finished) -> dict[str, Any] | None:
    """Give the rows of each cluster of the last cluster stage, when it was made and among the kept.

    Returns:
        Lists with an item for each cluster, `before` and `after`, and the numbers of the `largest`. In `complexity`,
        where a density prune followed, each one's `d_intra`, `d_inter` and `complexity` (arXiv 2401.04578), and its
        rows at that stage, `rows`, and after it, `left`.
        None without a cluster stage.
    """
    stage = run.last("cluster")
    gathered, centroids = run.table(stage, "gather"), run.table(stage, "fit")
    if stage is None or gathered is None or centroids is None:
        return None
    count = centroids.num_rows
    labels, rows = gathered["cluster"].to_numpy(), gathered["row"].to_numpy()
    before = np.bincount(labels, minlength=count)
    return {
        "stage": stage.label,
        "clusters": count,
        "largest": np.argsort(-before, kind="stable")[:_LISTED].tolist(),
        "before": before.tolist(),
        "after": np.bincount(labels[np.searchsorted(rows, run.kept)], minlength=count).tolist(),
        "complexity": _complexity(run, stage, gathered, centroids),
    }


def _complexity(run: Finished, stage: FinishedStage, gathered: pa.Table, centroids: pa.Table) -> dict[str, Any] | None:
    prune = run.last("prune", method="density")
    effect = run.table(prune, "density")
    if prune is None or effect is None or prune.number < stage.number:
        return None
    rows, stays = effect["row"].to_numpy(), pc.equal(effect["decision"], KEPT).to_numpy()
    at = np.searchsorted(gathered["row"].to_numpy(), rows)
    labels = gathered["cluster"].to_numpy()[at]
    distance = gathered["cluster_dist"].to_numpy()[at].astype(np.float64)
    count = centroids.num_rows
    sizes = np.bincount(labels, minlength=count)
    d_intra = np.bincount(labels, weights=distance, minlength=count) / np.maximum(sizes, 1)
    d_inter = inter_distance(matrix_of(centroids), prune.config["neighbours"])
    return {
        "stage": prune.label,
        "temperature": prune.config["temperature"],
        "rows": sizes.tolist(),
        "left": np.bincount(labels[stays], minlength=count).tolist(),
        "d_intra": rounded(d_intra, 4),
        "d_inter": rounded(d_inter, 4),
        "complexity": rounded(concept_complexity(d_intra, d_inter), 4),
    }

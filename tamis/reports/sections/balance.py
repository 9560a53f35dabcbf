"""Classes and source files, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

if TYPE_CHECKING:
    from tamis.pipelines.finished import Finished


def classes(run: Finished) -> list[dict[str, Any]]:
    """Rows of each class before and after; empty where the dataset has no labels."""
    names, index = run.manifest.record.get("classes"), run.index
    if not names or index is None:
        return []
    labels = index["label"]
    return _counted("class", names, pc.fill_null(labels, -1).to_numpy(), run)


def sources(run: Finished) -> list[dict[str, Any]]:
    """Rows of each file of the dataset before and after, without files of which a limit left none."""
    index = run.index
    if index is None:
        return []
    names = [source["path"] for source in run.manifest.record["dataset"]["sources"]]
    return [item for item in _counted("source", names, index["source"].to_numpy(), run) if item["before"]]


def _counted(what: str, names: list[str], codes: np.ndarray[Any, Any], run: Finished) -> list[dict[str, Any]]:
    kept = codes[run.kept]
    before, after = (np.bincount(part[part >= 0], minlength=len(names)).tolist() for part in (codes, kept))
    return [{what: name, "before": before[code], "after": after[code]} for code, name in enumerate(names)]

"""What `tamis diff` says of two subsets: from the manifests, and from what their runs' folders still hold."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.embeddings.kmeans import evenly_spaced
from tamis.errors import TamisError
from tamis.manifests.diff import lost, match, overlap, shift, source_files, weight_changes
from tamis.pipelines.finished import finished_of, readable
from tamis.reports.nearest import coverage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tamis.manifests.diff import Match
    from tamis.manifests.reader import Manifest
    from tamis.pipelines.finished import Finished
    from tamis.pipelines.state import Rows

T = TypeVar("T")

_MOST_MEASURED = 65_536  # rows from which the coverage is measured: their vectors are held
_MOST_PAIRS = 4_000_000_000  # of these and of kept rows; about a minute for 384 dimensions on two cores


def describe(given: Path, manifest: Manifest) -> dict[str, Any]:
    """Which subset is meant."""
    return {
        "given": str(given),
        "manifest": str(manifest.folder),
        "version": manifest.version,
        "subset_id": manifest.subset_id,
        "rows": manifest.audit.num_rows,
        "kept": manifest.select.num_rows,
    }


def compare(a: Manifest, b: Manifest, examples: int = 0) -> dict[str, Any]:
    """Compare two subsets.

    Args:
        a: The one.
        b: The other.
        examples: How many of the rows that came or went to list in each group.

    Returns:
        `rows` (of both datasets and of one), `kept` (`tamis.manifests.diff.overlap`), `went` and `came` (`lost`, from a
        to b and from b to a), `shares` by source, class and cluster (`shift`; null where not known), `coverage`
        (`tamis.reports.nearest.coverage` of `a` and `b`; `of`, whose vectors were taken, and `embeddings`, which
        stage's; `rows` that have one, and how many of these were `measured`; or null), `weights` (`weight_changes`, or
        null) and `notes`, which say what could not be compared, or how it was.

    Raises:
        DatasetMismatchError: No row is in both datasets.
    """
    pair = match(a, b)
    notes: list[str] = []
    left = {
        name: _tried(partial(finished_of, manifest), f"the working folder of {name}", notes)
        for name, manifest in (("A", a), ("B", b))
    }
    return {
        "rows": {
            "both": pair.rows,
            "only_a": a.audit.num_rows - pair.rows,
            "only_b": b.audit.num_rows - pair.rows,
            "changed": pair.changed,
        },
        "kept": overlap(pair),
        "went": lost(pair, examples),
        "came": lost(pair.turned, examples),
        "shares": {
            "source": shift(source_files(a), source_files(b)),
            "class": _classes(pair, left, notes),
            "cluster": _clusters(pair, left["B"], notes),
        },
        "coverage": _coverage(pair, left, notes),
        "weights": weight_changes(pair),
        "notes": notes,
    }


def _tried(read: Callable[[], T], what: str, notes: list[str]) -> T | None:
    """What can be read of a working folder, or None: it is no part of the manifest, and may be gone."""
    try:
        with readable():
            return read()
    except TamisError as error:
        notes.append(f"{what} is not at hand: {error}")
        return None


def _classes(pair: Match, left: Mapping[str, Finished | None], notes: list[str]) -> dict[str, Any] | None:
    """Shares by class. The content hash is over the label too: rows that are the same have the same class."""
    of_a, of_b = (
        None if run is None else _tried(partial(_labels, run), f"the labels of {name}", notes)
        for name, run in left.items()
    )
    if of_a is None and of_b is None:
        return None
    return shift(_kept_labels(pair, of_a, of_b), _kept_labels(pair.turned, of_b, of_a))


def _labels(run: Finished) -> pa.Array | None:
    """Each row's label, string[n]; None where the run read none."""
    index = run.index
    if index is None or "label" not in index.column_names:
        return None
    names = pa.array(run.manifest.record["classes"], pa.string())
    return names.take(index["label"].combine_chunks())


def _kept_labels(pair: Match, own: pa.Array | None, other: pa.Array) -> list[str | None]:
    """The labels of the rows that a keeps: its own, or else those of the same rows in b's dataset."""
    rows = pa.array(pair.a.select["row"].to_numpy())
    if own is None:
        there = pa.array(pair.in_b).take(rows)
        own, rows = other, pc.if_else(pc.less(there, 0), None, there)
    labels: list[str | None] = own.take(rows).to_pylist()
    return labels


def _clusters(pair: Match, left: Finished | None, notes: list[str]) -> dict[str, Any] | None:
    """Shares by cluster: each subset's own where both were clustered alike, else both by B's."""
    columns = [manifest.select["cluster"] for manifest in (pair.a, pair.b)]
    if any(column.null_count == len(column) for column in columns):
        return None
    keys = [_last_key(manifest, "cluster") for manifest in (pair.a, pair.b)]
    of_b = columns[1].to_pylist()
    if keys[0] is not None and keys[0] == keys[1]:
        return shift(columns[0].to_pylist(), of_b)
    notes.append("A and B were clustered apart: both are compared by B's clusters")
    clusters = None
    if left is not None:
        clusters = _tried(partial(_all_clusters, left, len(pair.in_a)), "the clusters of B", notes)
    if clusters is None:
        clusters = np.full(len(pair.in_a), -1)
        known = columns[1].is_valid().to_numpy()
        clusters[pair.b.select["row"].to_numpy()[known]] = columns[1].drop_null().to_numpy()
        notes.append("of rows that B does not keep, B's cluster is not known")
    there = pair.in_b[pair.a.select["row"].to_numpy()]
    of_a = np.where(there < 0, -1, clusters[there])
    return shift([None if cluster < 0 else cluster for cluster in of_a.tolist()], of_b)


def _all_clusters(run: Finished, n: int) -> Rows | None:
    """Each row's cluster of the last cluster stage, int64[n]; -1 where it had left before; None if they are gone."""
    table = run.table(run.last("cluster"), "gather")
    if table is None:
        return None
    clusters = np.full(n, -1, np.int64)
    clusters[table["row"].to_numpy()] = table["cluster"].to_numpy()
    return clusters


def _last_key(manifest: Manifest, kind: str) -> str | None:
    """The identity of a manifest's last stage of a kind."""
    return next((stage.get("key") for stage in reversed(manifest.stages) if stage.get("kind") == kind), None)


def _coverage(pair: Match, left: Mapping[str, Finished | None], notes: list[str]) -> dict[str, Any] | None:
    kept = [manifest.select["row"].to_numpy() for manifest in (pair.a, pair.b)]
    in_a = pair.in_a[kept[1]]
    in_b = pair.in_b[kept[0]]
    subsets = {"A": (kept[0], in_a[in_a >= 0]), "B": (in_b[in_b >= 0], kept[1])}
    for name, run in left.items():
        if run is not None:
            found = _tried(partial(_covered, run, subsets[name]), f"the vectors of {name}", notes)
            if found is not None:
                return {"of": name, **found}
    return None


def _covered(run: Finished, subsets: Sequence[Rows]) -> dict[str, Any] | None:
    """The coverage of a and b, by the vectors of the last embed stage; None where there are none any more."""
    stage = run.last("embed")
    found = [rows for rows, _ in run.vectors(stage)] if stage is not None else []
    if stage is None or not found:
        return None
    rows = np.concatenate(found)
    most = min(_MOST_MEASURED, _MOST_PAIRS // max(1, len(np.unique(np.concatenate(subsets)))))
    measured = rows[evenly_spaced(len(rows), most)]
    a, b = (
        {name: round(value, 6) if isinstance(value, float) else value for name, value in covered.items()}
        for covered in coverage(run, stage, measured, subsets)
    )
    return {"embeddings": stage.label, "rows": len(rows), "measured": len(measured), "a": a, "b": b}

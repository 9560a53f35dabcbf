"""What a finished run's working folder still holds: labels, clusters and vectors, beyond what its manifests say."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tamis.errors import OutputError
from tamis.manifests.canonical import digest
from tamis.pipelines.node import DamagedArtifactError, Inputs
from tamis.pipelines.run import read_run_of, recorded
from tamis.pipelines.state import matrix_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from tamis.manifests.reader import Manifest
    from tamis.pipelines.node import Artifact
    from tamis.pipelines.state import Rows

    Float32 = npt.NDArray[np.float32]
    Float64 = npt.NDArray[np.float64]

MEND = "`tamis run` with another value for that stage makes again what it needs"

_PRODUCTS = 1 << 22  # at a time: 16 MiB of float32
_MOST_PAIRS = 4_000_000_000  # of rows and kept rows; about a minute for 384 dimensions on two cores


@dataclass(frozen=True, slots=True)
class FinishedStage:
    """A stage of a run all of whose files are there.

    Attributes:
        number: Its place in the run, from 0.
        label: Such as `02-dedup`.
        kind: Of the recipe's stage.
        config: Its part of the recipe.
        artifacts: What its nodes made, in plan order.
    """

    number: int
    label: str
    kind: str
    config: Mapping[str, Any]
    artifacts: tuple[Artifact, ...]

    def of(self, task: str) -> tuple[Artifact, ...]:
        """What the nodes of one task made, in plan order."""
        return tuple(artifact for artifact in self.artifacts if artifact.task == f"{self.kind}.{task}")


@dataclass(frozen=True, slots=True)
class Workings:
    """The stages of a run whose files are all there.

    Attributes:
        work: Location of the store that they lie in.
        stages: In the run's order.
    """

    work: str
    stages: tuple[FinishedStage, ...]

    def last(self, kind: str) -> FinishedStage | None:
        """The last stage of a kind."""
        return next((stage for stage in reversed(self.stages) if stage.kind == kind), None)

    def open(self, artifact: Artifact) -> pa.Table:
        """Open a node's file; raises OutputError where it is damaged or gone."""
        with readable():
            return Inputs(self.work, {}, {}).open(artifact)


@contextmanager
def readable() -> Iterator[None]:
    """Outside of a run nothing mends a damaged working file: say what does.

    Raises:
        OutputError: For a DamagedArtifactError in the body.
    """
    try:
        yield
    except DamagedArtifactError as error:
        raise OutputError(f"{error}; {MEND}") from error


def workings_in(folder: Path, described: Mapping[str, Any]) -> Workings:
    """The workings of a run that `read_run` describes.

    Raises:
        OutputError: The store cannot be read.
    """
    store, artifacts = recorded(folder, described)
    stages = []
    for number, stage in enumerate(described["stages"]):
        names = [name for name, _, _ in stage["nodes"]]
        if all(name in artifacts for name in names):
            made = tuple(artifacts[name] for name in names)
            stages.append(FinishedStage(number, stage["stage"], stage["kind"], stage["config"], made))
    return Workings(store.location, tuple(stages))


def workings_of(manifest: Manifest) -> Workings:
    """What is left of the run that committed a manifest: the stages that are its own still.

    The folder's last run may have been another one; a stage is the manifest's where the keys of its nodes are.

    Raises:
        OutputError: The manifest lies in no run's folder, or the run's store cannot be read.
    """
    left = workings_in(*read_run_of(manifest))
    keys = {stage["name"]: stage.get("key") for stage in manifest.stages}
    own = [stage for stage in left.stages if keys.get(stage.label) == digest([made.key for made in stage.artifacts])]
    return Workings(left.work, tuple(own))


def labels_of(workings: Workings) -> pa.Array | None:
    """Each row's label, string[n]; None where the run read none."""
    ingest = workings.last("ingest")
    index = None if ingest is None else ingest.of("index")[0]
    if index is None or "classes" not in index.facts:
        return None
    codes = workings.open(index)["label"].combine_chunks()
    return pa.array(index.facts["classes"], pa.string()).take(codes)


def clusters_of(workings: Workings, n: int) -> Rows | None:
    """Each row's cluster of the last cluster stage, int64[n]; -1 where it had left before; None if there is none."""
    stage = workings.last("cluster")
    if stage is None:
        return None
    table = workings.open(stage.of("gather")[0])
    clusters = np.full(n, -1, np.int64)
    clusters[table["row"].to_numpy()] = table["cluster"].to_numpy()
    return clusters


def vector_blocks(workings: Workings, stage: FinishedStage) -> Iterator[tuple[Rows, Float32]]:
    """Block by block, the rows that an embed stage has usable vectors of, int64[m], ascending, and float32[m, d]."""
    start = 0
    for artifact in stage.of("block"):
        table = workings.open(artifact)
        rows = table["row"].to_numpy()
        matrix: Float32 = matrix_of(table)
        usable = ~np.isin(rows, [row for row, _ in artifact.facts["bad"]])
        if usable.any():
            yield rows[usable].astype(np.int64) + start, matrix if usable.all() else matrix[usable]
        start += artifact.facts["block_rows"]


def nearest_kept(workings: Workings, row: int, kept: Rows) -> dict[str, Any] | None:
    """The kept row that is most like a row, by the last embed stage that has a vector of it; ties to the lowest row.

    Args:
        workings: Of the manifest.
        row: Of the dataset.
        kept: int64[k], the rows that were kept.

    Returns:
        `row`, `cosine` and `embeddings` (the stage's label); None where no vector of the row is left.
    """
    for stage in reversed([stage for stage in workings.stages if stage.kind == "embed"]):
        own = [matrix[rows == row] for rows, matrix in vector_blocks(workings, stage)]
        vector = next((found[0].astype(np.float64) for found in own if len(found)), None)
        if vector is None:
            continue
        best, highest = -1, -np.inf
        for rows, matrix in vector_blocks(workings, stage):
            among = np.isin(rows, kept)
            cosines = matrix[among].astype(np.float64) @ vector
            if len(cosines) and cosines.max() > highest:
                best, highest = int(rows[among][np.argmax(cosines)]), float(cosines.max())
        if best >= 0:
            return {"row": best, "cosine": min(1.0, highest), "embeddings": stage.label}
    return None


def coverage(workings: Workings, subsets: Sequence[Rows]) -> dict[str, Any] | None:
    """How far all rows are from the nearest row of each subset: cosine distances by the last embed stage's vectors.

    Memory grows with the subsets' vectors and with one number a row. Beyond 4 * 10^9 pairs of rows and chosen rows,
    only evenly spaced rows are measured.

    Args:
        workings: Of the run whose rows they are.
        subsets: int64[k] each, rows of its dataset.

    Returns:
        `embeddings` (the stage's label), `rows` (those that have vectors), `measured` (how many of them), and for each
        subset in `subsets`: `kept` (how many of it have vectors), `mean` and `p95`, null where none has; None where no
        vectors are left.
    """
    stage = workings.last("embed")
    if stage is None:
        return None
    # A row that is in several subsets is compared once: its group is the subsets that it is in.
    chosen = np.unique(np.concatenate(subsets))
    member = np.array([np.isin(chosen, subset) for subset in subsets])
    groups, group_of = np.unique(member, axis=1, return_inverse=True)
    rows_of, vectors = [], []
    total = 0
    for rows, matrix in vector_blocks(workings, stage):
        mine = np.isin(rows, chosen)
        rows_of.append(rows[mine])
        vectors.append(matrix[mine])
        total += len(rows)
    at = np.searchsorted(chosen, np.concatenate(rows_of))
    X = np.concatenate(vectors)
    parts = [X[group_of.reshape(-1)[at] == group] for group in range(groups.shape[1])]
    every = max(1, -(-total * len(X) // _MOST_PAIRS))
    nearest: list[Float32] = []
    start = 0
    for rows, matrix in vector_blocks(workings, stage):
        nearest.append(_highest(matrix[-start % every :: every], parts))
        start += len(rows)
    by_group = np.concatenate(nearest, axis=1)
    found = []
    for subset, inside in enumerate(groups):
        kept = int(member[subset][at].sum())
        distance = np.clip(1.0 - by_group[inside].max(axis=0).astype(np.float64), 0.0, None) if kept else None
        found.append(
            {
                "kept": kept,
                "mean": None if distance is None else round(float(distance.mean()), 6),
                "p95": None if distance is None else round(float(np.percentile(distance, 95)), 6),
            }
        )
    return {"embeddings": stage.label, "rows": total, "measured": by_group.shape[1], "subsets": found}


def _highest(rows: Float32, parts: Sequence[Float32]) -> Float32:
    """The highest cosine of each row to each part's rows, float32[parts, m]; -inf where a part is empty."""
    out = np.full((len(parts), len(rows)), -np.inf, np.float32)
    for best, part in zip(out, parts, strict=True):
        step = max(1, _PRODUCTS // max(1, len(rows)))
        for start in range(0, len(part), step):
            np.maximum(best, (rows @ part[start : start + step].T).max(axis=1), out=best)
    return out

"""The rows that candidates are tried on: a sample of the dataset, with what the proxies learn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.advice.proxies import OF_VECTORS, OF_WORDS, word_counts
from tamis.embeddings.encoders import count_vectors, read_vectors
from tamis.errors import DataError
from tamis.manifests.schema import Decision
from tamis.pipelines.finished import finished_in
from tamis.pipelines.run import run
from tamis.pipelines.sources import take_rows
from tamis.pipelines.stages.ingest import CONTENT_ROLES, sample_table
from tamis.selectors.uniform import random

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from tamis.advice.proxies import Proxy
    from tamis.pipelines.sources import SourceFile

    Rows = npt.NDArray[np.int64]

_FITTED = ("lsa", "pixels")  # encoders that are fitted on the rows that they embed
_PIECE = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """n rows that can be used.

    Attributes:
        table: Their columns, named by role.
        labels: int64 [n], from 0.
        contents: int64 [n], the same for rows of the same content without its label.
        X: Word counts (sparse) or vectors [n, d]: what the proxies learn from.
        proxies: The families that learn.
        embed: The embed stage.
        vectors: float32 [n, d], what that stage makes of each row, where it does so without being fitted on others:
            then no split has to embed again. None elsewhere.
    """

    table: pa.Table
    labels: npt.NDArray[np.int64]
    contents: npt.NDArray[np.int64]
    X: Any
    proxies: dict[str, Proxy]
    embed: Mapping[str, Any]
    vectors: npt.NDArray[np.float32] | None

    def write(self, rows: Rows, folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
        """Write some rows as a dataset.

        Returns:
            (The recipe's dataset section, its embed stage.)
        """
        path = folder / "pool.parquet"
        pq.write_table(self.table.take(pa.array(rows)), path)
        section = {"path": str(path), **{name: name for name in self.table.column_names}}
        if self.vectors is None:
            return section, dict(self.embed)
        np.save(folder / "pool.npy", self.vectors[rows])
        return section, {"kind": "embed", "encoder": f"vectors: {folder / 'pool.npy'}"}


def survey(
    sources: Sequence[SourceFile],
    fields: Mapping[str, str],
    embed: Mapping[str, Any],
    most: int,
    seed: int,
    folder: Path,
) -> Survey:
    """Draw rows at random, and read them as a run does.

    Args:
        sources: The dataset's files.
        fields: Role -> column; the label is one of them.
        embed: The embed stage, with paths that hold from any folder.
        most: How many rows at most.
        seed: Of the draw.
        folder: Where to work.

    Raises:
        DataError: The data cannot be read.
        RecipeError: The embed stage does not suit them.
    """
    total = sum(source.rows for source in sources)
    rows = np.arange(total)
    if total > most:
        rows = np.sort(random(total, budget=most, rng=np.random.default_rng(seed)).indices)
    used = {role: column for role, column in fields.items() if role in CONTENT_ROLES}
    table = sample_table(take_rows(sources, rows, list(dict.fromkeys(used.values()))), used)
    path = folder / "sample.parquet"
    pq.write_table(table, path)
    encoder, _, argument = (part.strip() for part in embed["encoder"].partition(":"))
    if encoder == "vectors" and argument:
        np.save(folder / "sample.npy", _of_file(Path(argument), rows, total))
        embed = {**embed, "encoder": f"vectors: {folder / 'sample.npy'}"}
    fitted = encoder in _FITTED
    of_words = "text" in used
    needed = not (fitted and of_words)
    recipe = {
        "name": "survey",
        "dataset": {"path": str(path), **{role: role for role in used}},
        "stages": [*([embed] if needed else []), {"kind": "select", "method": "random", "budget": 1}],
        "max_bad_fraction": 1.0,
    }
    run(recipe, folder / "survey", executor="sync")
    found = finished_in(folder / "survey")
    good = np.flatnonzero(found.manifest.audit["decision"].to_numpy() != Decision.QUARANTINED)
    table = table.take(pa.array(good))
    index = found.index
    assert index is not None  # the run has just been finished
    index = index.take(pa.array(good))
    matrix = None
    if needed:
        stage = found.last("embed")
        assert stage is not None
        matrix = np.concatenate([X for _, X in found.vectors(stage)])
    return Survey(
        table,
        index["label"].to_numpy().astype(np.int64),
        index["payload_hash"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64),
        word_counts(table["text"].to_pylist()) if of_words else matrix,
        OF_WORDS if of_words else OF_VECTORS,
        embed,
        None if fitted else matrix,
    )


def _of_file(path: Path, rows: Rows, total: int) -> npt.NDArray[np.float32]:
    """The vectors of some rows in a file that has one for each row of the dataset."""
    if not path.is_file():
        raise DataError(f"there is no file of vectors at {path}")
    there = count_vectors(path)
    if there != total:
        raise DataError(f"{path} holds {there} vectors, the dataset {total} rows; the two must be equal")
    pieces = []
    for start in range(0, total, _PIECE):
        own = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + _PIECE)]
        pieces.append(read_vectors(path, start, min(start + _PIECE, total))[own - start])
    return np.concatenate(pieces)

"""What stages know of the rows, and how they say what they did: one table shape for all of them.

An *effect* has one row for each row that was alive when the stage began: `row` (int64, ascending), `decision`
(int8, 0 where the row stays), `reason`, `kept_row` (who stands for it), `score`, and whatever columns the stage
computes (`cluster`, `loss`, `rank`, ...). The rows with decision 0 are what the next stage begins with; the
effects of a run, in order, are its ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tamis.manifests.schema import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tamis.pipelines.node import Artifact, Inputs

KEPT, EXACT_DUP, NEAR_DUP, PRUNED, NOT_IN_BUDGET, QUARANTINED = (int(decision) for decision in Decision)

Rows = npt.NDArray[np.int64]


def effect(
    rows: Rows,
    decision: npt.NDArray[np.int8] | None = None,
    reason: str | Sequence[str | None] = "",
    kept_row: Rows | None = None,
    score: npt.NDArray[np.float64] | None = None,
    **columns: pa.Array,
) -> pa.Table:
    """Build an effect.

    Args:
        rows: The rows alive when the stage began, ascending.
        decision: What becomes of each (default: all stay).
        reason: Why the dropped ones are dropped: one text for all, or one for each row; then that of a row which stays,
            if it has one, is what the manifest says of it.
        kept_row: The row that stands for each dropped one; ignored where a row stays.
        score: The number that decided; NaN where there is none.
        **columns: What the stage computed, one value a row.
    """
    decision = np.zeros(len(rows), np.int8) if decision is None else decision.astype(np.int8)
    stays = decision == KEPT
    if isinstance(reason, str):
        reasons = pc.if_else(pa.array(stays), pa.scalar(None, pa.string()), pa.scalar(reason, pa.string()))
    else:
        reasons = pa.array(list(reason), pa.string())
    data = {
        "row": pa.array(rows, pa.int64()),
        "decision": pa.array(decision, pa.int8()),
        "reason": reasons,
        "kept_row": pa.nulls(len(rows), pa.int64()) if kept_row is None else pa.array(kept_row, pa.int64(), mask=stays),
        "score": pa.nulls(len(rows), pa.float64())
        if score is None
        else pa.array(score, pa.float64(), mask=np.isnan(score)),
    }
    return pa.table({**data, **columns})


def alive_rows(inputs: Inputs, role: str = "alive") -> Rows:
    """Return the rows that the effect in `role` left, ascending."""
    table = inputs.table(role).select(["row", "decision"])
    rows: Rows = table["row"].to_numpy()
    stays: Rows = rows[table["decision"].to_numpy() == KEPT]
    return stays


def alive_between(inputs: Inputs, start: int, stop: int) -> Rows:
    """The rows from `start` to the one before `stop` that the effect in role `alive` left, ascending."""
    table = inputs.table("alive")
    first, last = np.searchsorted(table["row"].to_numpy(), (start, stop)).tolist()
    part = table.slice(first, last - first)
    rows: Rows = part["row"].to_numpy()
    stays: Rows = rows[part["decision"].to_numpy() == KEPT]
    return stays


def kept_before(inputs: Inputs, rows: Rows) -> npt.NDArray[np.bool_]:
    """Which rows the manifest that is continued has kept: those in the table of role `before`, if there is one."""
    if not inputs.all("before"):
        return np.zeros(len(rows), np.bool_)
    mine: npt.NDArray[np.bool_] = np.isin(rows, inputs.table("before")["row"].to_numpy())
    return mine


def values(inputs: Inputs, role: str, name: str, rows: Rows) -> npt.NDArray[Any]:
    """Return the values of one column of an effect for the given rows (all of them must be in it)."""
    table = inputs.table(role)
    at = np.searchsorted(table["row"].to_numpy(), rows)
    column = table[name].combine_chunks()
    if pa.types.is_fixed_size_binary(column.type):
        raw: npt.NDArray[Any] = fixed_bytes(column)[at]
        return raw
    # Picked before it leaves Arrow: a null among the other rows would make floats of integers.
    picked: npt.NDArray[Any] = column.take(pa.array(at)).to_numpy(zero_copy_only=False)
    return picked


def fixed_bytes(column: pa.FixedSizeBinaryArray) -> npt.NDArray[np.bytes_]:
    """A column of hashes without nulls as numpy has them, without copying."""
    raw = np.frombuffer(column.buffers()[1], f"S{column.type.byte_width}")
    return raw[column.offset : column.offset + len(column)]


def vectors(inputs: Inputs, rows: Rows, start: int = 0) -> npt.NDArray[np.float32]:
    """Gather the unit vectors of rows from the embedding blocks (role `embeddings`).

    Args:
        inputs: With the embedding blocks in block order; each says in its facts how many dataset rows it spans.
        rows: int64[m], any order.
        start: The dataset row that the first of the blocks begins with.

    Returns:
        float32[m, d], C-contiguous.
    """
    blocks = inputs.all("embeddings")
    starts = start + np.concatenate([[0], np.cumsum([block.facts["block_rows"] for block in blocks])])
    by_row = np.argsort(rows, kind="stable")
    ordered = rows[by_row]
    bounds = np.searchsorted(ordered, starts)
    out: npt.NDArray[np.float32] | None = None
    for b in np.flatnonzero(np.diff(bounds)):
        table = inputs.open(blocks[b])
        matrix = matrix_of(table)
        if out is None:
            out = np.empty((len(rows), matrix.shape[1]), np.float32)
        mine = slice(bounds[b], bounds[b + 1])
        at = np.searchsorted(table["row"].to_numpy(), ordered[mine] - starts[b])
        out[by_row[mine]] = matrix[at]
    return np.empty((0, 1), np.float32) if out is None else out


def usable_vectors(inputs: Inputs, block: Artifact) -> tuple[Rows, npt.NDArray[np.float32]]:
    """The rows of an embedding block that have a usable vector, int64[m] from 0 on, and these, float32[m, d]."""
    table = inputs.open(block)
    rows, matrix = table["row"].to_numpy().astype(np.int64), matrix_of(table)
    usable = ~np.isin(rows, [row for row, _ in block.facts["bad"]])
    return (rows, matrix) if usable.all() else (rows[usable], matrix[usable])


def matrix_column(matrix: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    """Wrap an array [m, d] as a fixed-size-list column of its dtype, without copying where it is C-contiguous."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def matrix_of(table: pa.Table, name: str = "vector") -> npt.NDArray[Any]:
    """Read a fixed-size-list column without nulls back as an array [m, d], of one chunk without copying."""
    width, column = table.schema.field(name).type.list_size, table[name]
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    flat: npt.NDArray[Any] = chunk.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, width)


def generator(params: Mapping[str, Any], *stream: int) -> np.random.Generator:
    """Return the stage's own random generator; `params["seed"]` is [recipe's seed, stage]."""
    return np.random.default_rng(np.random.SeedSequence([*params["seed"], *stream]))

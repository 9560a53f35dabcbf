"""Leakage: rows of a dataset that are in a reference set, such as one to evaluate on, or near to one of its rows.

A part of the dedup stage, before duplicates: of two rows that are alike it may be the dropped one that leaks. Every row
is compared with every row of the reference sets, block by block, so that nothing is missed.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tamis.errors import DataError, RecipeError
from tamis.pipelines.node import Inputs, Output, Task
from tamis.pipelines.sources import SourceFile, check_types, read_rows, require_columns, resolve, scan
from tamis.pipelines.stages import embed, ingest
from tamis.pipelines.state import (
    EXACT_DUP,
    KEPT,
    NEAR_DUP,
    Rows,
    alive_rows,
    effect,
    fixed_bytes,
    kept_before,
    usable_vectors,
    values,
)
from tamis.selectors.dedup import near_pairs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tamis.pipelines.node import Node
    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import DedupConfig

Matches = tuple[Rows, Rows, npt.NDArray[np.float64]]
"""Rows of the dataset, rows of a reference file, and their cosines."""

LISTED = 10  # matches of a row in a file that are listed, the nearest
_RUN_ROWS = 16_384  # rows of the dataset that one task compares
_SIDE = (512, 4096)  # rows of both that are compared at once: their matches take 48 MiB at most
_LEAK = pa.struct(
    [
        ("reference", pa.int32()),
        ("row", pa.int64()),
        ("cosine", pa.float64()),
        ("exact", pa.bool_()),
        ("matches", pa.int64()),
    ]
)
"""A match: which file, which row of it, their cosine, whether their content is equal; and of how many in this file."""


def add_leakage(config: DedupConfig, flow: Flow, context: Context, add: Add) -> Flow:
    """Add the nodes that read the reference sets, embed them as the dataset was, compare, and flag or drop.

    Raises:
        RecipeError: A reference is a file of the dataset, or its rows cannot be embedded.
        DataError: A reference cannot be read, or lacks a column of the dataset's content.
    """
    fields = {role: name for role, name in flow.dataset.fields.items() if role in ingest.CONTENT_ROLES}
    fields.pop("label", None)  # as for duplicates, a label is no content
    sources = _scanned(config, flow, context, fields)
    references: list[Node] = []
    places: list[list[int]] = []
    for number, source in enumerate(sources):
        for start in range(0, source.rows, context.block_rows):
            params = {
                **flow.blocks[0].params,
                "sha256": source.sha256,
                "format": source.format,
                "start": start,
                "stop": min(start + context.block_rows, source.rows),
                "fields": fields,
            }
            references.append(add("dedup.reference", params, {}, part=len(references), hints={"source": source}))
            places.append([number, start])
    inputs = flow.with_before({"alive": [flow.alive], "index": [flow.index], "references": references})
    if config.eps > 0:
        inputs["compared"] = _compared(config, flow, add, references, places)
    params = {
        "eps": config.eps,
        "action": config.against_action,
        "files": _names(sources),
        "of_file": [number for number, _ in places],
    }
    mark = add("dedup.mark", params, inputs)
    return dataclasses.replace(flow, alive=mark, effects=(*flow.effects, mark))


def _scanned(config: DedupConfig, flow: Flow, context: Context, fields: Mapping[str, str]) -> list[SourceFile]:
    """The reference files, hashed, with the columns that they need."""
    own = {block.params["sha256"] for block in flow.blocks}
    columns = list(dict.fromkeys(fields.values()))
    sources = []
    for given in config.against:
        for found in resolve(context.folder / given):
            source = scan(found)
            if source.sha256 in own:
                raise RecipeError(f"dedup.against: {given} holds a file of the dataset itself; leave it out of one")
            require_columns(source, columns)
            check_types(source, read_rows(source, columns, 0, 0)[0], fields)
            sources.append(source)
    return sources


def _names(sources: Sequence[SourceFile]) -> list[str]:
    """What the files are called: their relative paths, those that are there twice with a number."""
    paths = [source.path for source in sources]
    return [f"{path} ({paths[:i].count(path) + 1})" if paths.count(path) > 1 else path for i, path in enumerate(paths)]


def _compared(
    config: DedupConfig, flow: Flow, add: Add, references: Sequence[Node], places: Sequence[list[int]]
) -> list[Node]:
    embeddings = flow.need_embeddings("dedup with eps > 0")
    encoder = flow.encoder
    if encoder is None:
        raise RecipeError(
            "dedup.against: the vectors are of the dataset's rows alone, from a file; put them into a column of the "
            "dataset and of the reference sets (dataset: {vectors: COLUMN}), or seek equal content only, with eps: 0"
        )
    encoded = [
        add("dedup.encode", encoder.params, {"block": [block], **encoder.inputs}, part=part, hints=encoder.hints)
        for part, block in enumerate(references)
    ]
    params = {"eps": config.eps, "places": places}
    return [
        add("dedup.compare", params, {"embeddings": some, "references": encoded}, part=part)
        for part, (some, _, _) in enumerate(flow.runs(embeddings, _RUN_ROWS))
    ]


def compare(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Find the nearest rows of each reference file, from cosine 1 - eps on, of every row of some blocks.

    A row of the result is a match: `row` is counted from the first of these blocks on.
    """
    found: list[pa.Table] = []
    starts = np.cumsum([0, *(item.facts["block_rows"] for item in inputs.all("embeddings"))])
    numbered = zip(params["places"], inputs.all("references"), strict=True)
    for number, group in itertools.groupby(numbered, key=lambda item: item[0][0]):
        matches, total = _none(), np.zeros(starts[-1], np.int64)
        for (_, first), item in group:
            others, Y = usable_vectors(inputs, item)
            parts = [matches]
            for start, block in zip(starts.tolist(), inputs.all("embeddings"), strict=False):
                rows, X = usable_vectors(inputs, block)
                for i, j, cosine in _pairs(X, Y, 1.0 - params["eps"], item.name):
                    np.add.at(total, start + rows[i], 1)
                    parts.append(_nearest((start + rows[i], first + others[j], cosine)))
            matches = _nearest(_joined(parts))
        row, other, cosine = matches
        found.append(
            pa.table(
                {
                    "row": pa.array(row, pa.int64()),
                    "reference": pa.array(np.full(len(row), number), pa.int32()),
                    "other": pa.array(other, pa.int64()),
                    "cosine": pa.array(cosine, pa.float64()),
                    "matches": pa.array(total[row], pa.int64()),
                }
            )
        )
    return Output(pa.concat_tables(found), {"block_rows": int(starts[-1])})


def _pairs(
    X: npt.NDArray[np.float32], Y: npt.NDArray[np.float32], lowest: float, name: str
) -> Iterator[tuple[Rows, Rows, npt.NDArray[np.float64]]]:
    """The pairs of rows from a cosine on, a few rows at a time."""
    if not len(X) or not len(Y):
        return
    if X.shape[1] != Y.shape[1]:
        raise DataError(
            f"{name}: the reference's vectors have {Y.shape[1]} numbers, the dataset's {X.shape[1]}; the two must be "
            "equal"
        )
    for row in range(0, len(X), _SIDE[0]):
        for column in range(0, len(Y), _SIDE[1]):
            some = near_pairs(X[row : row + _SIDE[0]], lowest, others=Y[column : column + _SIDE[1]])
            assert some is not None  # there is no limit
            i, j, cosine = some
            if len(i):
                yield row + i, column + j, cosine


def _none() -> Matches:
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)


def _joined(parts: Sequence[Matches]) -> Matches:
    row, other, cosine = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return row, other, cosine


def _nearest(matches: Matches) -> Matches:
    """The nearest few matches of each row, in order; of equally near ones the first."""
    row, other, cosine = matches
    order = np.lexsort((other, -cosine, row))
    order = order[_place_in_group(row[order]) < LISTED]
    return row[order], other[order], cosine[order]


def _place_in_group(groups: Rows) -> Rows:
    """For each of some sorted numbers, how many equal ones stand before it."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    return np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))


def mark(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Gather each row's matches, with those of equal content, and flag or drop what has one.

    The effect's column `leaks` has them, the nearest first.
    """
    alive = alive_rows(inputs)
    found = [_equal(params, inputs, alive)]
    start = 0
    for item in inputs.all("compared"):
        table = inputs.open(item)
        at = np.searchsorted(alive, start + table["row"].to_numpy())
        there = alive[np.minimum(at, len(alive) - 1)] == start + table["row"].to_numpy() if len(alive) else at < 0
        columns = {"row": pa.array(at, pa.int64()), "exact": pa.array(np.zeros(len(at), np.bool_))}
        found.append(
            table.set_column(0, "row", columns["row"]).append_column("exact", columns["exact"]).filter(pa.array(there))
        )
        start += item.facts["block_rows"]
    matches = _merged(pa.concat_tables([table.select(found[0].column_names) for table in found]))
    row, reference = matches["row"].to_numpy(), matches["reference"].to_numpy()
    leaking, first = np.unique(row, return_index=True)
    same = matches["exact"].to_numpy()[first]
    texts = [
        f"same content as a row of {name}" if exact else f"cosine to a row of {name} from {1 - params['eps']:g} on"
        for exact, name in zip(same.tolist(), (params["files"][n] for n in reference[first].tolist()), strict=True)
    ]
    before = kept_before(inputs, alive)
    drops = np.zeros(len(alive), np.bool_)
    drops[leaking] = params["action"] == "drop"
    drops &= ~before
    decision, score = np.full(len(alive), KEPT, np.int8), np.full(len(alive), np.nan)
    decision[leaking] = np.where(drops[leaking], np.where(same, EXACT_DUP, NEAR_DUP), KEPT)
    score[leaking] = matches["cosine"].to_numpy()[first]
    reasons: list[str | None] = [None] * len(alive)
    for place, text in zip(leaking.tolist(), texts, strict=True):
        reasons[place] = text if drops[place] else f"leaks: {text}"
    offsets = np.searchsorted(row, np.arange(len(alive) + 1))
    fields = {"reference": "reference", "row": "other", "cosine": "cosine", "exact": "exact", "matches": "matches"}
    flat = pa.StructArray.from_arrays([matches[name].combine_chunks() for name in fields.values()], fields=list(_LEAK))
    leaks = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
    facts = {
        "leaks": len(leaking),
        "leaks_of_equal_content": int(np.count_nonzero(same)),
        "leaks_dropped": int(np.count_nonzero(drops)),
        "against": _by_file(params, inputs, row, reference),
    }
    return Output(effect(alive, decision, reasons, score=score, leaks=leaks), facts)


def _by_file(params: Mapping[str, Any], inputs: Inputs, row: Rows, reference: Rows) -> dict[str, dict[str, int]]:
    """Of each reference file its rows, those that are bad, and how many rows of the dataset match one."""
    facts = {name: {"rows": 0, "bad": 0, "leaks": 0} for name in params["files"]}
    for number, item in zip(params["of_file"], inputs.all("references"), strict=True):
        own = facts[params["files"][number]]
        own["rows"] += item.facts["block_rows"]
        own["bad"] += item.facts["bad"]
    for number, name in enumerate(params["files"]):
        facts[name]["leaks"] = len(np.unique(row[reference == number]))
    return facts


def _equal(params: Mapping[str, Any], inputs: Inputs, alive: Rows) -> pa.Table:
    """The matches by content; `row` is a place among the alive ones."""
    mine = values(inputs, "index", "payload_hash", alive)
    tables = []
    blocks = zip(params["of_file"], inputs.all("references"), strict=True)
    for number, group in itertools.groupby(blocks, key=lambda item: item[0]):
        parts = [inputs.open(item).select(["source_row", "payload_hash", "problem"]) for _, item in group]
        table = pa.concat_tables([part.filter(part["problem"].is_null()) for part in parts]).combine_chunks()
        hashes = fixed_bytes(table["payload_hash"].combine_chunks())
        order = np.argsort(hashes, kind="stable")
        first, last = (np.searchsorted(hashes[order], mine, side) for side in ("left", "right"))
        total = last - first
        listed = np.minimum(total, LISTED)
        row = np.repeat(np.arange(len(alive)), listed)
        at = np.repeat(first, listed) + _place_in_group(row)
        tables.append(
            pa.table(
                {
                    "row": pa.array(row, pa.int64()),
                    "reference": pa.array(np.full(len(row), number), pa.int32()),
                    "other": pa.array(table["source_row"].to_numpy()[order[at]], pa.int64()),
                    "cosine": pa.array(np.ones(len(row)), pa.float64()),
                    "matches": pa.array(total[row], pa.int64()),
                    "exact": pa.array(np.ones(len(row), np.bool_)),
                }
            )
        )
    return pa.concat_tables(tables)


def _merged(matches: pa.Table) -> pa.Table:
    """One list of matches, each once: by row, then those of equal content, then the nearest, then in file order."""
    columns = {name: matches[name].to_numpy() for name in matches.column_names}
    row, reference, other = columns["row"], columns["reference"], columns["other"]
    exact, cosine = columns["exact"], columns["cosine"]
    # Equal content is near as well: of the two entries the exact one stays, and the larger count.
    order = np.lexsort((~exact, other, reference, row))
    again = np.zeros(len(row), np.bool_)
    again[order[1:]] = (np.diff(row[order]) == 0) & (np.diff(reference[order]) == 0) & (np.diff(other[order]) == 0)
    group = np.unique(np.stack([row, reference]), axis=1, return_inverse=True)[1].reshape(-1)
    most = np.zeros(int(group.max(initial=-1)) + 1, np.int64)
    np.maximum.at(most, group, columns["matches"])
    order = np.lexsort((other, -cosine, ~exact, reference, row))
    order = order[~again[order]]
    order = order[_place_in_group(group[order]) < LISTED]
    order = order[np.lexsort((other[order], reference[order], -cosine[order], ~exact[order], row[order]))]
    table = matches.set_column(matches.column_names.index("matches"), "matches", pa.array(most[group], pa.int64()))
    return table.take(pa.array(order)).combine_chunks()


LEAKAGE_TASKS = {
    # The reference's rows go the dataset's way.
    "reference": ingest.TASKS["block"],
    "encode": embed.TASKS["block"],
    "compare": Task(compare, libraries=("numba",), packages=("numba",)),
    "mark": Task(mark),
}

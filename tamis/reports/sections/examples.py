"""Rows to look at: a few of each fate, with their content as it was ingested."""

from __future__ import annotations

import base64
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.manifests.schema import DECISIONS
from tamis.pipelines.state import KEPT
from tamis.reports.brief import clipped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tamis.pipelines.finished import Finished
    from tamis.pipelines.state import Rows

_TEXT, _NAME, _TOKENS = 240, 80, 40
_THUMBNAIL = 64
_MOST_FATES = 24


def examples(run: Finished) -> list[dict[str, Any]]:
    """Choose rows of each fate: stage, decision and reason; first the kept ones, then in the order of the stages.

    Of each up to three: where it has scores those with the least, the middle and the largest, else evenly spaced
    ones; of the kept the first, the middle and the last by rank. At most 24 fates are shown, those with the most rows.

    Returns:
        For each fate `stage`, `decision`, `reason`, `rows` (how many) and `examples`: `row`, `score`, `stands_for_it`
        (the row that a duplicate was dropped for), and of kept rows `rank`, `gain`, `weight`, `difficulty`.
    """
    manifest, audit = run.manifest, run.manifest.audit
    names = list(DECISIONS)
    fate = pa.table({name: audit[name] for name in ("stage", "decision", "reason")})
    groups = fate.append_column("row", audit["row"]).group_by(fate.column_names).aggregate([("row", "count")])
    found = sorted(groups.to_pylist(), key=lambda item: -item["row_count"])[:_MOST_FATES]
    found.sort(key=lambda item: (item["decision"] != KEPT, item["stage"], item["decision"], item["reason"]))
    return [
        {
            "stage": manifest.stages[item["stage"]]["name"],
            "decision": names[item["decision"]],
            "reason": manifest.reasons[item["reason"]],
            "rows": item["row_count"],
            "examples": _kept(run, item) if item["decision"] == KEPT else _dropped(run, item),
        }
        for item in found
    ]


def _kept(run: Finished, fate: dict[str, Any]) -> list[dict[str, Any]]:
    select = run.manifest.select
    names = ("row", "rank", "score", "gain", "weight", "difficulty", "cluster")
    table = select.filter(pc.equal(select["reason"], fate["reason"])).select(list(names))
    rows = table.take(pa.array(_ends_and_middle(table.num_rows))).to_pylist()
    return [{**row, "stands_for_it": None} for row in rows]


def _dropped(run: Finished, fate: dict[str, Any]) -> list[dict[str, Any]]:
    audit = run.manifest.audit
    same = [pc.equal(audit[name], fate[name]) for name in ("stage", "decision", "reason")]
    table = audit.filter(pc.and_(pc.and_(same[0], same[1]), same[2])).select(["row", "score", "kept_row"])
    order = pc.sort_indices(table, [("score", "ascending"), ("row", "ascending")])
    rows = table.take(order.take(pa.array(_ends_and_middle(table.num_rows)))).to_pylist()
    return [{"row": row["row"], "score": row["score"], "stands_for_it": row["kept_row"]} for row in rows]


def _ends_and_middle(count: int) -> list[int]:
    return sorted({0, count // 2, count - 1})


def contents(run: Finished, rows: Iterable[int]) -> list[dict[str, Any]]:
    """What some rows hold, each once, by ascending row.

    It is read from the ingested blocks in the run's store, which are what the run saw, wherever the dataset may be now.

    Returns:
        For each `row`, `sample_id`, `label`, `text` (also of tokens), `image` (a PNG as a data address); clipped, and
        None where the row has none, or where the blocks are gone.
    """
    wanted = np.unique(np.fromiter(rows, np.int64))
    blocks = run.stages[0].of("block")
    starts = np.concatenate([[0], np.cumsum([block.facts["block_rows"] for block in blocks], dtype=np.int64)])
    held: dict[int, dict[str, Any]] = {}
    for block, (start, stop) in zip(blocks, pairwise(starts.tolist()), strict=True):
        mine = wanted[(wanted >= start) & (wanted < stop)]
        if len(mine):
            held |= zip(mine.tolist(), _content(run.open(block), mine - start), strict=True)
    audit, nothing = run.manifest.audit, {"label": None, "text": None, "image": None}
    ids = audit["sample_id"].take(pa.array(wanted)).to_pylist()
    return [
        {"row": row, "sample_id": clipped(name, _NAME), **held.get(row, nothing)}
        for row, name in zip(wanted.tolist(), ids, strict=True)
    ]


def _content(block: pa.Table, local: Rows) -> list[dict[str, Any]]:
    roles = [role for role in ("label", "text", "tokens", "image") if role in block.column_names]
    rows = block.select(roles).take(pa.array(local))
    found: dict[str, list[Any]] = {name: [None] * len(local) for name in ("label", "text", "image")}
    if "tokens" in roles:
        lists = (item.values[: _TOKENS + 1].to_pylist() if item.is_valid else None for item in rows["tokens"])
        found["text"] = [None if tokens is None else _tokens(tokens) for tokens in lists]
    for role, most in (("text", _TEXT), ("label", _NAME)):
        if role in roles:
            begun = pc.utf8_slice_codeunits(rows[role].cast(pa.large_string()), 0, most + 1)
            found[role] = [text and clipped(text, most) for text in begun.to_pylist()]
    if "image" in roles:
        found["image"] = [_thumbnail(item) for item in rows["image"].to_pylist()]
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def _tokens(tokens: list[Any]) -> str:
    return " ".join(map(str, tokens[:_TOKENS])) + (" …" if len(tokens) > _TOKENS else "")


def _thumbnail(image: bytes | None) -> str | None:
    """A data address; None of a quarantined row, whose content no stage reads."""
    if not image:
        return None
    from tamis.embeddings.images import thumbnail

    return "data:image/png;base64," + base64.b64encode(thumbnail(image, _THUMBNAIL)).decode()

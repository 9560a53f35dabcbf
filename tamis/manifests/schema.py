"""The format of a subset manifest: its two tables, its codes, and the rules that both obey together."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FORMAT = "tamis-manifest"
VERSION = (1, 0)
"""Major and minor. A reader refuses another major; a newer minor only adds."""

FEATURES: frozenset[str] = frozenset()
"""What a record may demand of its reader (`required_features`). The first version demands nothing."""

BODY_KEYS = (
    "dataset",
    "recipe",
    "seed",
    "stages",
    "reasons",
    "numeric",
    "libraries",
    "weight_semantics",
    "scores",
    "certificate",
    "schedule",
    "parent",
    "required_features",
)
"""What the run gives for the record's body."""

COMPUTED_KEYS = ("format", "version", "counts", "files", "subset_id")
"""What the commit adds to it."""


CERTIFIED = ("objective", "upper_bound", "ratio")
"""What a certificate says at least."""


class Decision(IntEnum):
    """What became of an input row: the codes of the audit's `decision` column."""

    KEPT = 0
    EXACT_DUP = 1
    NEAR_DUP = 2
    PRUNED = 3
    NOT_IN_BUDGET = 4
    QUARANTINED = 5


DECISIONS: dict[str, int] = {decision.name.lower(): int(decision) for decision in Decision}


def _field(name: str, kind: pa.DataType, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


SELECT = pa.schema(
    [
        _field("sample_id", pa.string()),
        _field("row", pa.int64()),
        _field("source", pa.int32()),
        _field("source_row", pa.int64()),
        _field("content_hash", pa.binary(16)),
        _field("rank", pa.int32()),
        _field("weight", pa.float32()),
        _field("score", pa.float64(), nullable=True),
        _field("gain", pa.float64(), nullable=True),
        _field("cluster", pa.int32(), nullable=True),
        _field("cluster_dist", pa.float32(), nullable=True),
        _field("difficulty", pa.int16(), nullable=True),
        _field("group", pa.int64(), nullable=True),
        _field("reason", pa.uint16()),
    ]
)
"""One row per sample to train on, in rank order; `select_schema` adds the declared scores."""

AUDIT = pa.schema(
    [
        _field("sample_id", pa.string()),
        _field("row", pa.int64()),
        _field("content_hash", pa.binary(16)),
        _field("decision", pa.int8()),
        _field("stage", pa.int16()),
        _field("reason", pa.uint16()),
        _field("kept_row", pa.int64(), nullable=True),
        _field("score", pa.float64(), nullable=True),
        _field("partition", pa.int32(), nullable=True),
    ]
)
"""One row per input row, in row order. `stage` and `reason` are positions in the record's lists.

`partition` names, where INGENIOUS drew the subset, the partition that each row was ranked in; `score` is then the gain
of a row that was not drawn.
"""


def select_schema(scores: Iterable[str]) -> pa.Schema:
    """SELECT with a nullable float32 column `score_<name>` for every declared score, sorted by name.

    Raises:
        ValueError: A name is not made of lower-case letters, digits and underscores.
    """
    fields = list(SELECT)
    for name in sorted(scores):
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"the score {name!r} is not named by lower-case letters, digits and underscores")
        fields.append(_field(f"score_{name}", pa.float32(), nullable=True))
    return pa.schema(fields)


def count_decisions(audit: pa.Table) -> dict[str, int]:
    """Rows in all (key `rows`) and by decision, every decision named even at zero."""
    decision = audit["decision"].to_numpy()
    by_code = np.bincount(decision[decision >= 0], minlength=len(DECISIONS))
    return {"rows": audit.num_rows} | {name: int(by_code[code]) for name, code in DECISIONS.items()}


def check_body(body: Mapping[str, Any]) -> None:
    """Check the parts of a record's body that the tables refer to.

    Raises:
        ValueError: Something is missing or of another form; the message says what.
    """
    missing = [key for key in BODY_KEYS if key not in body]
    if missing:
        raise ValueError(f"the record's body lacks {missing}")
    dataset = body["dataset"]
    _demand(isinstance(dataset, dict), "dataset is not a mapping")
    _demand(isinstance(dataset.get("fingerprint"), str), "dataset.fingerprint is not a string")
    _demand(_is_count(dataset.get("rows")), "dataset.rows is not a count")
    _demand(isinstance(dataset.get("schema"), str), "dataset.schema is not a string")
    fields = dataset.get("fields")
    _demand(
        isinstance(fields, dict) and all(isinstance(column, str | None) for column in fields.values()),
        "dataset.fields is not a mapping from role to column",
    )
    sources = dataset.get("sources")
    _demand(
        isinstance(sources, list) and all(isinstance(s, dict) and _is_count(s.get("rows")) for s in sources),
        "dataset.sources is not a list of mappings with rows",
    )
    _demand(
        all(isinstance(s.get(name), str) for s in sources for name in ("path", "sha256")),
        "a source in dataset.sources lacks its path or sha256",
    )
    parent = body["parent"]
    _demand(
        parent is None or (isinstance(parent, dict) and isinstance(parent.get("subset_id"), str)),
        "parent is not a mapping with a subset_id, or null",
    )
    _demand(
        isinstance(body["reasons"], list) and all(isinstance(reason, str) for reason in body["reasons"]),
        "reasons is not a list of strings",
    )
    _demand(
        isinstance(body["stages"], list)
        and all(isinstance(stage, dict) and isinstance(stage.get("name"), str) for stage in body["stages"]),
        "stages is not a list of mappings with a name",
    )
    _demand(isinstance(body["recipe"], dict), "recipe is not a mapping")
    _demand(isinstance(body["recipe"].get("train", {}), dict), "recipe.train is not a mapping")
    classes = body.get("classes", [])
    _demand(
        isinstance(classes, list) and all(isinstance(name, str) for name in classes), "classes is not a list of strings"
    )
    _demand(isinstance(body["schedule"], dict | None), "schedule is not a mapping or null")
    certificate = body["certificate"]
    _demand(
        certificate is None
        or (isinstance(certificate, dict) and all(_is_number(certificate.get(name)) for name in CERTIFIED)),
        f"certificate is not a mapping with the numbers {', '.join(CERTIFIED)}, or null",
    )
    _demand(isinstance(body["scores"], dict), "scores is not a mapping from name to declaration")
    _demand(
        isinstance(body["required_features"], list)
        and all(isinstance(feature, str) for feature in body["required_features"]),
        "required_features is not a list of strings",
    )


def check_tables(select: pa.Table, audit: pa.Table, body: Mapping[str, Any]) -> None:
    """Check that nothing is lost and nothing contradicts: the balance of a manifest.

    Every input row is in the audit once; the kept ones are exactly those of `select`, with the same id and
    content hash; ranks are dense in file order; weights are positive and finite; no NaN, no null where none
    is allowed; codes and positions are within their lists.

    Args:
        select: Schema `select_schema(body["scores"])`.
        audit: Schema `AUDIT`.
        body: A record's body that passes `check_body`.

    Raises:
        ValueError: Something does not hold; the message says what, with the first offending row.
    """
    for name, table in (("select", select), ("audit", audit)):
        for field in table.schema:
            column = table[field.name]
            _demand(field.nullable or column.null_count == 0, f"{name}.{field.name} has nulls")
            if pa.types.is_floating(field.type):
                _demand(not pc.any(pc.is_nan(column), min_count=0).as_py(), f"{name}.{field.name} has a NaN")

    rows = body["dataset"]["rows"]
    _demand(audit.num_rows == rows, f"the audit has {audit.num_rows} rows, the dataset {rows}")
    number = audit["row"].to_numpy()
    _every(number == np.arange(rows), "the audit does not list every row once, in order")
    _demand(pc.count_distinct(audit["sample_id"]).as_py() == rows, "sample ids are not unique")
    decision = audit["decision"].to_numpy()
    _every((decision >= 0) & (decision < len(DECISIONS)), "unknown decision in the audit")
    _every(_within(audit["stage"], len(body["stages"])), "audit.stage is not a position in stages")
    _every(_within(audit["reason"], len(body["reasons"])), "audit.reason is not a position in reasons")
    _every(_within(audit["kept_row"].drop_null(), rows), "audit.kept_row is not a row of the dataset")

    chosen = select["row"].to_numpy()
    kept = np.flatnonzero(decision == Decision.KEPT)
    _demand(len(kept) == len(chosen), f"{len(kept)} rows are kept in the audit, select has {len(chosen)}")
    _every(np.sort(chosen) == kept, "the rows of select are not the kept rows of the audit")
    for name in ("sample_id", "content_hash"):
        _demand(
            select[name].combine_chunks().equals(audit[name].take(pa.array(chosen)).combine_chunks()),
            f"select.{name} is not the audit's for the same row",
        )
    _every(select["rank"].to_numpy() == np.arange(len(chosen)), "ranks are not 0, 1, 2, ... in file order")
    weight = select["weight"].to_numpy()
    _every(np.isfinite(weight) & (weight > 0), "a weight is not positive and finite")
    _every(_within(select["reason"], len(body["reasons"])), "select.reason is not a position in reasons")

    source_rows = np.array([source["rows"] for source in body["dataset"]["sources"]], dtype=np.int64)
    source = select["source"].to_numpy()
    _every(_within(select["source"], len(source_rows)), "select.source is not a position in dataset.sources")
    source_row = select["source_row"].to_numpy()
    _every(
        (source_row >= 0) & (source_row < source_rows[source]),
        "select.source_row is not a row of its source",
    )
    # Exact duplicates go before near ones; so following kept_row ends, and at a kept row or one dropped on its own.
    stayed = audit["stage"].to_numpy().astype(np.int64) * len(DECISIONS) + decision
    stayed[decision == Decision.KEPT] = np.iinfo(np.int64).max
    stands = audit["kept_row"].drop_null().to_numpy()
    stood_for = audit["kept_row"].is_valid().to_numpy()
    _every(stayed[stands] > stayed[stood_for], "audit.kept_row leads to a row that did not stay longer")


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63  # as the row numbers, int64


def _within(column: pa.ChunkedArray, length: int) -> np.ndarray:
    values = column.to_numpy()
    inside: np.ndarray = (values >= 0) & (values < length)
    return inside


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _every(holds: np.ndarray, message: str) -> None:
    if not holds.all():
        raise ValueError(f"{message} (first at position {int(np.argmin(holds))})")

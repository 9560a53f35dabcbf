"""What the columns of a dataset are likely to mean: by name, by type, and by what is in them."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.errors import DataError
from tamis.pipelines.node import Inputs
from tamis.pipelines.sources import SourceFile, is_of_role, read_rows, resolve, scan
from tamis.pipelines.stages import ingest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_SAMPLED_ROWS = 512  # of the largest file: what columns are judged by
_SAMPLES = 8  # places that they are from: data may be sorted
_LOOKED_ROWS, _LOOKED_BYTES = 100_000, 256 << 20  # that are looked at in whole, for bad rows, classes, duplicates
_BLOCK_ROWS = 4096
_ID_ROWS = 65_536
_MAX_TEXT_BYTES = 1_000_000

# Names that say what a column is, the likeliest first; compared in lower case, without what is no letter.
_NAMES = {
    "id": ("id", "sampleid", "uid", "uuid", "guid", "key", "docid", "rowid", "tweetid", "idx", "index"),
    "text": (
        "text", "content", "document", "body", "sentence", "article", "tweet", "review", "comment", "message",
        "instruction", "prompt", "question", "abstract", "passage", "description", "code",
    ),
    "label": ("label", "labels", "class", "classname", "category", "target", "y", "sentiment", "intent", "topic"),
    "source": ("source", "origin", "corpus", "dataset", "datasetname", "subset", "domain"),
    "image": ("image", "img", "picture", "photo", "pixels"),
    "tokens": ("tokens", "inputids", "tokenids", "ids"),
    "vectors": ("vector", "vectors", "embedding", "embeddings", "emb", "features"),
}  # fmt: skip
_MOST_SOURCES = 50
_MOST_UNNAMED_CLASSES = 20
_LOOKS_LIKE_NO_TEXT = re.compile(r"(https?://|/)?[\w\-./\\:%?&=#+]*", re.ASCII)  # a word, a path, an address, a hash


@dataclass(frozen=True, slots=True)
class Guess:
    """What a dataset seems to be.

    Attributes:
        sources: Its files.
        fields: Role -> column.
        why: A line for each role that was found, and for columns that were not taken for what they are called.
        rows: Rows in all.
        looked: Rows, from the first on, that the rest is about.
        bad: Those that a run would quarantine.
        different: Those of different content.
        classes: How many rows each class has, the largest first; empty without a label.
    """

    sources: tuple[SourceFile, ...]
    fields: dict[str, str]
    why: tuple[str, ...]
    rows: int
    looked: int
    bad: int
    different: int
    classes: tuple[int, ...]


def guess(data: str) -> Guess:
    """Look at a dataset and guess which columns mean what.

    Args:
        data: As a recipe's dataset.path.

    Raises:
        DataError: It cannot be read, or no column holds samples.
    """
    sources = tuple(scan(found) for found in resolve(data))
    shared = [name for name in sources[0].columns if all(name in source.columns for source in sources)]
    sample, undecoded = _sample(sources, shared)
    columns = _Columns(sample)
    found = {role: seek(columns) for role, seek in _SEEKERS.items()}
    why: list[str] = []
    fields: dict[str, str] = {}
    for role, item in found.items():
        if item is not None:
            fields[role] = item[0]
            why.append(f"{role}: {item[0]!r}, {item[1]}")
    if not {"text", "image", "tokens", "vectors"} & fields.keys():
        there = ", ".join(f"{name} ({kind})" for name, kind in columns.kinds.items())
        raise DataError(
            f"no column of {data} looks like texts, images, token blocks or vectors; those in all files: "
            f"{there or 'none'}. "
            + (
                f"{undecoded} of {sample.num_rows} rows have text that is not UTF-8: write the data again as UTF-8"
                if undecoded
                else "Write the recipe by hand: tamis recipes --keys"
            )
        )
    _keep_or_drop_id(sources, fields, why)
    looked = _look(sources, fields)
    if looked.bad == looked.rows:
        raise DataError(f"none of the {looked.rows} rows of {data} can be used ({'; '.join(why)}): see what is in them")
    classes = looked.classes
    if "label" in fields and len(classes) < 2:
        why = [line for line in why if not line.startswith("label:")]
        why.append(f"no label: {fields.pop('label')!r} has {len(classes)} value(s)")
        classes = ()
    rows = sum(source.rows for source in sources)
    return Guess(sources, fields, tuple(why), rows, looked.rows, looked.bad, looked.different, classes)


def look_at(data: str, fields: Mapping[str, str]) -> Guess:
    """Look at a dataset of which it is known which columns mean what.

    Args:
        data: As a recipe's dataset.path.
        fields: Role -> column.

    Raises:
        DataError: It cannot be read, or lacks a column.
    """
    sources = tuple(scan(found) for found in resolve(data))
    looked = _look(sources, dict(fields))
    rows = sum(source.rows for source in sources)
    return Guess(sources, dict(fields), (), rows, looked.rows, looked.bad, looked.different, looked.classes)


def _sample(sources: Sequence[SourceFile], shared: list[str]) -> tuple[pa.Table, int]:
    """Some rows of the largest file, from places spread over it; and in how many of them text cannot be decoded."""
    source = max(sources, key=lambda source: source.rows)
    count = min(source.rows, _SAMPLED_ROWS)
    edges = [part * count // _SAMPLES for part in range(_SAMPLES + 1)]
    apart = (source.rows - count) // max(1, _SAMPLES - 1)  # rows between two places that are left out
    parts = [
        read_rows(source, shared, start + number * apart, stop + number * apart)
        for number, (start, stop) in enumerate(itertools.pairwise(edges))
        if start < stop
    ]
    undecoded = sum(int(np.count_nonzero(problem)) for _, problem in parts)
    return pa.concat_tables([table for table, _ in parts], promote_options="permissive"), undecoded


class _Columns:
    """A sample's columns, and which of them have a role already."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.kinds = {field.name: field.type for field in table.schema}
        self.taken: set[str] = set()

    def named(self, role: str, suits: Callable[[str], str | None]) -> tuple[str, str] | None:
        """The free column of the likeliest name that suits, and why."""
        order = {name: place for place, name in enumerate(_NAMES[role])}
        called = [(order[plain(name)], name) for name in self.free(role) if plain(name) in order]
        for _, name in sorted(called, key=lambda item: item[0]):
            reason = suits(name)
            if reason is not None:
                self.taken.add(name)
                return name, f"by its name; {reason}"
        return None

    def best(self, role: str, suits: Callable[[str], tuple[float, str] | None]) -> tuple[str, str] | None:
        """The free column of the highest worth, and why; the first of equal ones."""
        worth = [(suits(name), name) for name in self.free(role)]
        suiting = [(item[0], item[1], name) for item, name in worth if item is not None]
        if not suiting:
            return None
        _, reason, name = max(suiting, key=lambda item: item[0])
        self.taken.add(name)
        return name, reason

    def free(self, role: str) -> list[str]:
        """The columns of a type that the role takes, and that have no role."""
        return [name for name, kind in self.kinds.items() if name not in self.taken and is_of_role(kind, role)]

    def values(self, name: str) -> list[Any]:
        """The sampled values that are there."""
        values: list[Any] = self.table[name].drop_null().to_pylist()
        return values


def plain(name: str) -> str:
    """A column's name as names are compared."""
    return re.sub(r"[^a-z]", "", name.lower())


def _image(columns: _Columns) -> tuple[str, str] | None:
    from tamis.embeddings.images import problems

    def suits(name: str) -> tuple[float, str] | None:
        found = columns.values(name)[:16]
        images = [item["bytes"] if isinstance(item, dict) else item for item in found]
        if not images or not all(isinstance(item, bytes) for item in images) or any(problems(images)):
            return None
        return float(plain(name) in _NAMES["image"]), "bytes of image files"

    return columns.best("image", suits)


def _vectors(columns: _Columns) -> tuple[str, str] | None:
    def suits(name: str) -> tuple[float, str] | None:
        rows = columns.values(name)
        lengths = {len(row) for row in rows}
        called = plain(name) in _NAMES["vectors"]
        whole = pa.types.is_integer(columns.kinds[name].value_type)
        if len(lengths) != 1 or lengths == {0} or (whole and not called):
            return None
        if any(item is None for row in rows for item in row):
            return None
        matrix = np.array(rows, np.float64)
        if not (np.isfinite(matrix).all() and matrix.any(axis=1).all()):
            return None
        return float(called), f"lists of {lengths.pop()} numbers"

    return columns.best("vectors", suits)


def _tokens(columns: _Columns) -> tuple[str, str] | None:
    def suits(name: str) -> tuple[float, str] | None:
        rows = columns.values(name)
        values = [item for row in rows for item in row]
        if not values or any(item is None or item < 0 for item in values):
            return None
        return float(plain(name) in _NAMES["tokens"]), f"lists of whole numbers from {min(values)} to {max(values)}"

    return columns.best("tokens", suits)


def _label(columns: _Columns) -> tuple[str, str] | None:
    def counted(name: str) -> tuple[int, int]:
        values = columns.values(name)
        return len(set(values)), len(values)

    def by_name(name: str) -> str | None:
        different, there = counted(name)
        if there and (different <= max(2, there / 2)):
            return f"{different} values in {there} rows"
        return None

    def by_content(name: str) -> tuple[float, str] | None:
        different, there = counted(name)
        known = {item for role, names in _NAMES.items() if role != "label" for item in names}
        few = 2 <= different <= min(_MOST_UNNAMED_CLASSES, there / 5)
        if not few or plain(name) in known or any(len(str(value)) > 60 for value in columns.values(name)):
            return None
        return -float(different), f"the column of the fewest values, {different} in {there} rows"

    return columns.named("label", by_name) or columns.best("label", by_content)


def _source(columns: _Columns) -> tuple[str, str] | None:
    def suits(name: str) -> str | None:
        values = columns.values(name)
        different = len(set(values))
        whole = len(values) == columns.table.num_rows
        return f"{different} values" if whole and 2 <= different <= min(_MOST_SOURCES, len(values) / 2) else None

    return columns.named("source", suits)


def _text(columns: _Columns) -> tuple[str, str] | None:
    def length(name: str) -> float:
        values = columns.values(name)
        return float(np.mean([len(value) for value in values])) if values else 0.0

    def by_name(name: str) -> str | None:
        return f"{length(name):.0f} characters on average" if length(name) >= 1 else None

    def by_content(name: str) -> tuple[float, str] | None:
        values = columns.values(name)
        worded = [value for value in values if not _LOOKS_LIKE_NO_TEXT.fullmatch(value)]
        if len(worded) < len(values) / 2 or not values:
            return None
        return length(name), f"the longest strings, {length(name):.0f} characters on average"

    return columns.named("text", by_name) or columns.best("text", by_content)


def _id(columns: _Columns) -> tuple[str, str] | None:
    def unique(name: str) -> bool:
        values = columns.values(name)
        return bool(len(values) == columns.table.num_rows == len(set(values)))

    def ending(name: str) -> tuple[float, str] | None:
        called = re.search(r"(^|[_\W])(id|uuid|key|path)$", name.lower()) or name.endswith("Id")
        return (1.0, "unique, and called like one") if called and unique(name) else None

    return columns.named("id", lambda name: "unique" if unique(name) else None) or columns.best("id", ending)


# In this order: what a column surely is comes before what it may be.
_SEEKERS: dict[str, Callable[[_Columns], tuple[str, str] | None]] = {
    "image": _image,
    "vectors": _vectors,
    "tokens": _tokens,
    "id": _id,
    "source": _source,
    "label": _label,
    "text": _text,
}


def _keep_or_drop_id(sources: Sequence[SourceFile], fields: dict[str, str], why: list[str]) -> None:
    """Ids that look unique must be it in all rows."""
    name = fields.get("id")
    if name is None:
        why.append("no id: no column is unique and called like one; the hash of a row's content is its id")
        return
    parts = (
        read_rows(source, [name], start, min(start + _ID_ROWS, source.rows))[0][name].cast(pa.large_string())
        for source in sources
        for start in range(0, source.rows, _ID_ROWS)
    )
    ids = pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.large_string())
    if ids.null_count or pc.count_distinct(ids).as_py() < len(ids):
        del fields["id"]
        why[:] = [line for line in why if not line.startswith("id:")]
        why.append(f"no id: {name!r} is empty or the same in several rows; the hash of a row's content is its id")


@dataclass(frozen=True, slots=True)
class _Looked:
    rows: int
    bad: int
    different: int
    classes: tuple[int, ...]


def _look(sources: Sequence[SourceFile], fields: dict[str, str]) -> _Looked:
    """Read the first rows as a run would."""
    rows = bad = size = 0
    hashes: set[bytes] = set()
    classes: dict[str, int] = {}
    for source in sources:
        for start in range(0, source.rows, _BLOCK_ROWS):
            if rows >= _LOOKED_ROWS or size >= _LOOKED_BYTES:
                break
            params = {
                "start": start,
                "stop": min(start + _BLOCK_ROWS, source.rows),
                "fields": fields,
                "max_text_bytes": _MAX_TEXT_BYTES,
            }
            output = ingest.block(params, Inputs("", {}, {"source": source}))
            assert output.table is not None
            rows, bad, size = rows + output.table.num_rows, bad + output.facts["bad"], size + output.table.nbytes
            good = output.table.filter(output.table["problem"].is_null())
            hashes.update(good["payload_hash"].to_pylist())
            if "label" in fields:
                for item in pc.value_counts(good["label"].combine_chunks()).to_pylist():
                    classes[item["values"]] = classes.get(item["values"], 0) + item["counts"]
    return _Looked(rows, bad, len(hashes), tuple(sorted(classes.values(), reverse=True)))

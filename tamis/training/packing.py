"""Packing texts into blocks of tokens: the samples of a language model, each of which can be selected by itself."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.embeddings.kmeans import evenly_spaced
from tamis.errors import DataError, OutputError, RecipeError
from tamis.manifests.atomic import remove, sweep, sync_folder, write_once

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tamis.pipelines.sources import SourceFile

BLOCKS = "blocks.parquet"
TOKENIZER = "tokenizer.json"
END = "<|endoftext|>"

_SCHEMA = pa.schema(
    [
        pa.field("tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("document", pa.int64(), nullable=False),
    ]
)
_FIT_ROWS = 100_000
_DOCUMENTS = 4096
_GROUP_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class Packed:
    """What `pack` wrote.

    Attributes:
        path: The Parquet file: `tokens` (int32 lists of `block` numbers, the last one's shorter), `text` (what they
            say, for an encoder), `document` (the row of the dataset where the block starts).
        tokenizer: Its tokenizer, as the `tokenizers` library reads it.
        blocks: How many.
        tokens: How many tokens in all.
        documents: How many texts they are of; rows without one, or with one that is not UTF-8, are left out.
    """

    path: Path
    tokenizer: Path
    blocks: int
    tokens: int
    documents: int


def pack(
    data: str | Path,
    out: Path,
    *,
    text: str = "text",
    block: int = 256,
    vocabulary: int = 4096,
    tokenizer: Path | None = None,
) -> Packed:
    """Joins the texts of a dataset, with an end mark after each, and cuts them into blocks of equal length.

    Args:
        data: A file, glob or folder.
        out: A folder, made if missing; nothing in it is overwritten.
        text: The column of the texts.
        block: Tokens in a block, at least 2.
        vocabulary: Size of the byte-level BPE that is fitted on the texts (on 100,000 evenly spaced ones if there are
            more), at least 257.
        tokenizer: A tokenizer file to use instead, so that a test set gets the tokens of its training set.

    Returns:
        What was written.

    Raises:
        RecipeError: An option is out of its range, or the `tokenizers` library is not installed.
        DataError: The column is missing or holds no text.
        OutputError: `out` cannot be written, or has such files already.
    """
    from tamis.pipelines.dataset import scan_all

    if block < 2 or vocabulary < 257:
        raise RecipeError(f"block is {block} and vocabulary {vocabulary}; at least 2 and at least 257 are needed")
    sources = scan_all(str(data))
    path, saved = out / BLOCKS, out / TOKENIZER
    if path.exists():
        raise OutputError(f"{path} is there already; choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {out}: {error.strerror}; choose another") from error
    rows = sum(source.rows for source in sources)
    if tokenizer is None:
        fit_on = evenly_spaced(rows, _FIT_ROWS)
        tokens = _fitted((texts for _, texts in _documents(sources, text, fit_on)), vocabulary)
    else:
        tokens = _read(tokenizer)
    sweep(out)
    temporary = out / f".{BLOCKS}.{secrets.token_hex(8)}.tmp"
    count = total = 0
    end = tokens.token_to_id(END)
    documents = 0
    try:
        with pq.ParquetWriter(temporary, _SCHEMA, compression="zstd") as writer:
            for table in _tables(tokens, _documents(sources, text, np.arange(rows)), block):
                writer.write_table(table)
                flat = table["tokens"].combine_chunks().flatten()
                count += table.num_rows
                total += len(flat)
                documents += int(np.count_nonzero(flat.to_numpy() == end))
        if not count:
            raise DataError(f"column {text!r} of {data} holds no text")
        write_once(saved, tokens.to_str().encode())
        path.hardlink_to(temporary)  # fails where somebody else has written it meanwhile
        sync_folder(out)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        remove(temporary)
    return Packed(path, saved, count, total, documents)


def _documents(sources: Sequence[SourceFile], column: str, rows: np.ndarray) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Rows with their texts, some thousand at a time; nulls are left out."""
    from tamis.pipelines.sources import check_types, take_rows

    for start in range(0, len(rows), _DOCUMENTS):
        part = rows[start : start + _DOCUMENTS]
        table = take_rows(sources, part, [column])
        check_types(sources[0], table, {"text": column})
        texts = table[column].to_pylist()
        there = np.array([text is not None for text in texts], bool)
        yield part[there], [text for text in texts if text is not None]


def _tables(tokenizer: Any, documents: Iterator[tuple[np.ndarray, list[str]]], block: int) -> Iterator[pa.Table]:
    """The blocks, a row group at a time."""
    end = tokenizer.token_to_id(END)
    tokenizer.encode_special_tokens = True  # a text that holds an end mark does not end there
    left, owners = np.zeros(0, np.int32), np.zeros(0, np.int64)
    for rows, texts in documents:
        encoded = [[*item.ids, end] for item in tokenizer.encode_batch(texts, add_special_tokens=False)]
        left = np.concatenate([left, *(np.array(ids, np.int32) for ids in encoded)])
        owners = np.concatenate([owners, np.repeat(rows, [len(ids) for ids in encoded])])
        whole = len(left) // block * block
        if whole >= block * _GROUP_ROWS:
            yield _table(tokenizer, left[:whole], owners[:whole], block)
            left, owners = left[whole:], owners[whole:]
    if len(left):
        yield _table(tokenizer, left, owners, block)


def _table(tokenizer: Any, tokens: np.ndarray, owners: np.ndarray, block: int) -> pa.Table:
    offsets = np.append(np.arange(0, len(tokens), block), len(tokens)).astype(np.int32)
    lists = pa.ListArray.from_arrays(offsets, pa.array(tokens, pa.int32()))
    # A block of nothing but white space and end marks still says something to an encoder.
    texts = [text if text.strip() else END for text in tokenizer.decode_batch(lists.to_pylist())]
    return pa.table([lists, pa.array(texts, pa.string()), pa.array(owners[offsets[:-1]], pa.int64())], schema=_SCHEMA)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise RecipeError("packing needs the tokenizers library: pip install 'tamis[text]'") from error
    return tokenizers


def _fitted(texts: Iterator[list[str]], vocabulary: int) -> Any:
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _read(path: Path) -> Any:
    library = _library()
    try:
        tokenizer = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise DataError(f"{path} is not a tokenizer file: {error}") from error
    if tokenizer.token_to_id(END) is None:
        raise DataError(
            f"the tokenizer {path} has no token {END}, which ends a text; give one that `tamis pack` wrote, or add it"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer

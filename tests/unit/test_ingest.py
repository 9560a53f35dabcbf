"""What a sample is: its roles, their types, their hash."""

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tamis.pipelines.stages.ingest import CONTENT_ROLES, _mark_images, _mark_tokens, content_hashes, sample_table

TEXTS = pa.array(["a text", "", None], pa.large_string())
VECTORS = pa.array([[1.0, 2.5], [0.0], None])
LABELS = pa.array(["x", None, "y"], pa.large_string())
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def hexes(table, *roles):
    return [value.hex() for value in content_hashes(table, roles).to_pylist()]


def test_the_hashes_of_manifests_that_were_published():
    table = pa.table({"text": TEXTS, "vectors": VECTORS, "label": LABELS})
    assert hexes(table, "text") == [
        "5c74c3b7e91487d2f8980492770efa7c", "af5570f5a1810b7af78caf4bc70a660f", "3973e022e93220f9212c18d0d0c543ae",
    ]  # fmt: skip
    assert hexes(table, "text", "label") == [
        "7ea1a4c1965ae7aa100f540abd9cb3fd", "cf999616a875a14fc3dde9f002c08b44", "09fa44ee646ba127ec0e53d5504dafc5",
    ]  # fmt: skip
    assert hexes(table, "text", "vectors", "label") == [
        "0d8eae7c80d93c4af603c5f4cca132f4", "0da2ef8922308487ce8ed40ba1bbd86a", "51f4709552c67722fd9c916c0e5a04aa",
    ]  # fmt: skip


def test_the_hashes_of_the_newer_roles():
    table = pa.table({"image": pa.array([b"x", b"", None], pa.large_binary()), "tokens": [[1, 2], [], None]})
    assert hexes(table, "image") == [
        "f91b14e7bbea4c5bfa0e1a7040177166", "af5570f5a1810b7af78caf4bc70a660f", "3973e022e93220f9212c18d0d0c543ae",
    ]  # fmt: skip
    assert hexes(table, "tokens") == [
        "ffe0a08126df2b698691f818ac129f77", "af5570f5a1810b7af78caf4bc70a660f", "3973e022e93220f9212c18d0d0c543ae",
    ]  # fmt: skip


def test_old_roles_keep_their_order():
    assert [role for role in CONTENT_ROLES if role in ("text", "vectors", "label")] == ["text", "vectors", "label"]


def test_every_role_is_hashed():
    columns = {"text": ["t"], "image": [b"i"], "tokens": [[1]], "vectors": [[1.0]], "label": ["l"]}
    other = {"text": ["T"], "image": [b"I"], "tokens": [[2]], "vectors": [[2.0]], "label": ["L"]}
    assert set(columns) == set(CONTENT_ROLES)
    fields = {role: role for role in CONTENT_ROLES}
    hashes = {
        hexes(sample_table(pa.table(columns | changed), fields), *CONTENT_ROLES)[0]
        for changed in ({}, *({role: other[role]} for role in other))
    }
    assert len(hashes) == 1 + len(CONTENT_ROLES)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"x", None, b""], pa.binary()),
        pa.array([b"x", None, b""], pa.large_binary()),
        pa.array([{"bytes": b"x", "path": "p"}, {"bytes": None, "path": "p"}, {"bytes": b"", "path": None}], STRUCT),
        pa.array([{"bytes": b"x", "path": None}, None, {"bytes": b"", "path": "q"}], STRUCT),
    ],
)
def test_images_are_bytes_however_they_are_stored(column):
    """So the same image has the same hash in any file."""
    for table in (pa.table({"c": column}), pa.table({"c": pa.chunked_array([column[:1], column[1:]])})):
        (found,) = sample_table(table, {"image": "c"}).columns
        assert found.type == pa.large_binary()
        assert found.to_pylist() == [b"x", None, b""]


LISTS = [[1, 2], [], None, [3]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(LISTS, pa.list_(pa.int32())),
        pa.array(LISTS, pa.large_list(pa.uint16())),
        pa.array([[9], *LISTS], pa.list_(pa.int64()))[1:],
        pa.chunked_array([pa.array(LISTS[:2]), pa.array(LISTS[2:])]),
    ],
)
def test_tokens_are_numbers_however_they_are_stored(column):
    (found,) = sample_table(pa.table({"c": column}), {"tokens": "c"}).columns
    assert found.type == pa.large_list(pa.int64())
    assert found.to_pylist() == LISTS
    expected = sample_table(pa.table({"c": pa.array(LISTS, pa.large_list(pa.int64()))}), {"tokens": "c"})
    assert hexes(pa.table({"tokens": found}), "tokens") == hexes(expected, "tokens")


def test_lists_of_a_fixed_size_and_of_nothing_are_lists():
    for column, expected in (
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int16(), 2)), [[1, 2], [3, 4]]),
        (pa.array([[], None], pa.list_(pa.null())), [[], None]),
        (pa.nulls(2), [None, None]),
    ):
        assert sample_table(pa.table({"c": column}), {"tokens": "c"})["tokens"].to_pylist() == expected


@given(st.lists(st.none() | st.lists(st.integers(-2, 3) | st.none(), max_size=3), max_size=8))
def test_bad_tokens_are_marked(blocks):
    problem = np.full(len(blocks), "", dtype=object)
    _mark_tokens(problem, pa.array([[], *blocks], pa.large_list(pa.int64()))[1:])
    for block, found in zip(blocks, problem, strict=True):
        if block is None:
            assert found == "tokens are null"
        elif not block:
            assert found == "tokens are empty"
        elif None in block:
            assert found == "a token is null"
        elif min(block) < 0:
            assert found == "a token is below 0"
        else:
            assert found == ""


def test_numbers_that_no_token_can_be():
    column = pa.array([[1], [2**63], [2**64 - 1, 0]], pa.list_(pa.uint64()))
    problem = np.full(3, "", dtype=object)
    _mark_tokens(problem, sample_table(pa.table({"c": column}), {"tokens": "c"})["tokens"].combine_chunks())
    assert problem.tolist() == ["", "a token is below 0", "a token is below 0"]


@given(st.lists(st.none() | st.lists(st.integers(0, 2), max_size=2), min_size=2, max_size=6))
def test_equal_hashes_are_equal_tokens(blocks):
    hashes = hexes(pa.table({"tokens": pa.array(blocks, pa.large_list(pa.int64()))}), "tokens")
    for i, one in enumerate(blocks):
        for j, other in enumerate(blocks):
            assert (hashes[i] == hashes[j]) == (one == other)


def test_bad_images_are_marked():
    stream = io.BytesIO()
    Image.new("L", (3, 3)).save(stream, "PNG")
    good = stream.getvalue()
    rows = [
        {"bytes": good, "path": None}, {"bytes": None, "path": "a.png"}, {"bytes": None, "path": None}, None,
        {"bytes": b"", "path": "a.png"}, {"bytes": b"x", "path": None}, {"bytes": good[:-24], "path": None},
    ]  # fmt: skip
    table = pa.table({"c": pa.array(rows, STRUCT)})
    problem = np.full(len(rows), "", dtype=object)
    _mark_images(problem, sample_table(table, {"image": "c"})["image"].combine_chunks(), table["c"])
    assert problem.tolist() == [
        "",
        "image is a path without bytes: store the files' bytes in the column",
        "image is null",
        "image is null",
        "image is empty",
        "image is in none of the formats JPEG, PNG, PPM, BMP, GIF, WEBP, TIFF, or its header is damaged",
        "image is damaged or truncated",
    ]


def test_vectors_of_a_fixed_size_have_the_hashes_of_lists():
    rows = [[0.5, -1.25], [3.0, float("nan")], [-0.0, 1e30]]
    for kind in (pa.float16(), pa.float32(), pa.float64(), pa.int32()):
        given = [[1, 2], [3, 4], [5, 6]] if kind == pa.int32() else rows[:1] if kind == pa.float16() else rows
        lists = pa.table({"vectors": pa.array(given, pa.list_(kind))})
        fixed = pa.table({"vectors": pa.array(given, pa.list_(kind, 2))})
        assert hexes(fixed, "vectors") == hexes(lists, "vectors")
        assert hexes(fixed.slice(1), "vectors") == hexes(lists, "vectors")[1:]
    some = pa.table({"vectors": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))})
    assert hexes(some, "vectors")[0] == hexes(some.slice(0, 1), "vectors")[0]

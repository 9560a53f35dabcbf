import enum
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tamis.errors import TamisError
from tamis.manifests.canonical import (
    canonical_json,
    canonical_table,
    digest,
    ipc_bytes,
    sealed,
    sha256_file,
    unsealed,
)


def test_json_is_sorted_tight_utf8_and_without_negative_zero():
    value = {"é": [1, 2.5, -0.0, 1e300, True, None], "a": {"z": "\n", "b": ()}}
    assert canonical_json(value) == '{"a":{"b":[],"z":"\\n"},"é":[1,2.5,0.0,1e+300,true,null]}'.encode()


def test_int_float_and_bool_stay_apart():
    assert len({canonical_json(value) for value in (1, 1.0, True, "1")}) == 4


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "odd",
    [
        float("nan"),
        float("inf"),
        np.float64(1.0),
        np.int64(1),
        np.bool_(True),
        {1, 2},
        Path("x"),
        b"x",
        Colour.RED,
        {1: 2},
        "\ud800",
        {"\udcff": 1},
        object(),
    ],
)
def test_json_refuses_and_names_the_place(odd):
    with pytest.raises(TypeError, match=r"\$\.a\[1\]\.b"):
        canonical_json({"a": [0, {"b": odd}]})


def test_digest_is_sha256_of_the_json():
    assert digest({"b": 1, "a": 2}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()


def test_sha256_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_ipc_bytes_are_a_readable_uncompressed_file(tmp_path):
    table = pa.table({"a": [1, None, 3], "s": ["x", "", None]})
    (tmp_path / "t.arrow").write_bytes(ipc_bytes(table))
    assert pa.ipc.open_file(str(tmp_path / "t.arrow")).read_all().equals(table)


def test_batches_are_fixed():
    table = canonical_table(pa.table({"a": range(10)}), pa.schema([("a", pa.int64())]), batch_rows=4)
    assert [batch.num_rows for batch in table.to_batches()] == [4, 4, 2]


def test_dictionaries_metadata_and_order_of_columns_do_not_matter():
    schema = pa.schema([("s", pa.string()), ("x", pa.int32())])
    plain = pa.table({"s": ["a", "b", "a", None], "x": [1, 2, 3, 4]}, schema=schema)
    other = pa.table(
        {"x": pa.array([1, 2, 3, 4], pa.int64()), "s": pa.array(["a", "b", "a", None]).dictionary_encode()}
    ).replace_schema_metadata({"zone": "far", "about": "x"})
    assert ipc_bytes(canonical_table(other, schema)) == ipc_bytes(plain)
    in_order = other.select(["s", "x"]).cast(
        pa.schema([("s", pa.dictionary(pa.int32(), pa.string())), ("x", pa.int32())])
    )
    assert ipc_bytes(in_order) == ipc_bytes(plain)


def test_vectors_of_fixed_length_are_canonical_too():
    kind = pa.list_(pa.float32(), 2)
    plain = pa.array([[1.0, 2.0], None, [0.0, 3.0]], kind)
    garbage = pa.FixedSizeListArray.from_arrays(
        pa.array([9.0, 9.0, 1.0, 2.0, 7.0, 7.0, -0.0, 3.0], pa.float32()), 2, mask=pa.array([False, False, True, False])
    ).slice(1)
    assert ipc_bytes(pa.table({"v": garbage})) == ipc_bytes(pa.table({"v": plain}))
    assert canonical_table(pa.table({"v": garbage}), pa.schema([("v", kind)]))["v"].to_pylist() == plain.to_pylist()


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"17", b'{"body":1}', b"[" * 100_000, b'{"body":{},"sha256":1}'])
def test_what_is_no_sealed_record_is_refused(raw):
    with pytest.raises(ValueError, match=r"no sealed record|sha256 does not match|Expecting value"):
        unsealed(raw)


def test_a_sealed_record_is_opened_and_nothing_may_be_added():
    assert unsealed(sealed({"a": 1})) == {"a": 1}
    for other in (sealed({"a": 1}) + b" ", sealed({"a": 1}).replace(b"1", b"2"), b'{"b":0,' + sealed({"a": 1})[1:]):
        with pytest.raises(ValueError, match="sha256 does not match"):
            unsealed(other)


@pytest.mark.parametrize(
    ("column", "field", "message"),
    [
        (pa.array([1.0, float("nan")]), pa.field("x", pa.float64()), "NaN"),
        (pa.array([1, None]), pa.field("x", pa.int64(), nullable=False), "nulls"),
        (pa.array([1, 2**40]), pa.field("x", pa.int32()), "int32"),
        (pa.array(["a"]), pa.field("x", pa.int32()), "int32"),
        (pa.array([[1]]), pa.field("x", pa.list_(pa.int64())), "canonical"),
        (pa.array([[1, None]], pa.list_(pa.int64(), 2)), pa.field("x", pa.list_(pa.int64(), 2)), "canonical"),
    ],
)
def test_table_refuses(column, field, message):
    with pytest.raises(TamisError, match=message):
        canonical_table(pa.table({"x": column}), pa.schema([field]))


def test_table_refuses_other_columns():
    schema = pa.schema([("x", pa.int64())])
    for table in (pa.table({"y": [1]}), pa.table({"x": [1], "y": [1]}), pa.table([[1], [2]], ["x", "x"])):
        with pytest.raises(TamisError, match="exactly"):
            canonical_table(table, schema)


def test_json_round_trips_through_the_standard_reader():
    value = {"a": [0.1, 1e-7, 2**60, "\u2028\x00"], "b": None}
    assert json.loads(canonical_json(value)) == value

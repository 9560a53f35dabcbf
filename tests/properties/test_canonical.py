"""Equal tables have equal bytes, whatever their memory looks like; different tables do not."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.manifests.canonical import canonical_json, canonical_table, ipc_bytes

SCHEMA = pa.schema(
    [
        ("flag", pa.bool_()),
        ("small", pa.int8()),
        ("wide", pa.int64()),
        ("code", pa.uint16()),
        ("weight", pa.float32()),
        ("score", pa.float64()),
        ("name", pa.string()),
        ("blob", pa.large_binary()),
        ("hash", pa.binary(3)),
    ]
)
finite = {"allow_nan": False, "allow_infinity": False}
ROW = st.tuples(
    st.none() | st.booleans(),
    st.none() | st.integers(-128, 127),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.integers(0, 65535),
    st.none() | st.floats(width=32, **finite),
    st.none() | st.floats(**finite),
    st.none() | st.text(max_size=5),
    st.none() | st.binary(max_size=5),
    st.none() | st.binary(min_size=3, max_size=3),
)
ROWS = st.lists(ROW, max_size=20)


def table_of(rows):
    columns = zip(*rows, strict=True) if rows else [[] for _ in SCHEMA]
    return pa.table([pa.array(list(c), f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def dirty(array, draw):
    """The same values at an offset, with random bytes under the nulls and beside the values."""
    padded = pa.concat_arrays([array.slice(0, min(1, len(array))), array])
    if pa.types.is_boolean(array.type) or pa.types.is_large_binary(array.type) or len(array) == 0:
        return padded.slice(min(1, len(array)))
    if pa.types.is_string(array.type):
        # Non-empty text under the nulls: only the validity bitmap says that it does not count.
        filled = [value if value is not None else "garbage" for value in padded.to_pylist()]
        buffers = pa.array(filled, pa.string()).buffers()
        valid = np.packbits([v is not None for v in padded.to_pylist()], bitorder="little")
        full = pa.Array.from_buffers(pa.string(), len(padded), [pa.py_buffer(valid), *buffers[1:]])
        return full.slice(1)
    buffers = padded.buffers()
    width = array.type.bit_width // 8
    data = np.frombuffer(buffers[1], np.uint8)[: len(padded) * width].reshape(-1, width).copy()
    missing = ~padded.is_valid().to_numpy(zero_copy_only=False)
    data[missing] = draw(st.integers(1, 255))
    return pa.Array.from_buffers(array.type, len(padded), [buffers[0], pa.py_buffer(data.tobytes())]).slice(1)


@settings(deadline=None, max_examples=60)
@given(ROWS, st.data())
def test_equal_tables_have_equal_bytes(rows, data):
    table = table_of(rows)
    expected = ipc_bytes(table)
    columns = []
    for column in table.columns:
        array = dirty(column.combine_chunks(), data.draw)
        assert array.equals(column.combine_chunks())
        cut = data.draw(st.integers(0, len(rows)))
        columns.append(pa.chunked_array([array.slice(0, cut), array.slice(cut)], array.type))
    assert ipc_bytes(pa.table(columns, schema=SCHEMA.with_metadata({"b": "1", "a": "2"}))) == expected


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_canonical_keeps_every_value_and_is_idempotent(rows):
    table = table_of(rows)
    canonical = canonical_table(table, SCHEMA, batch_rows=3)
    assert canonical.equals(table)
    assert ipc_bytes(canonical) == ipc_bytes(table)
    canonical.validate(full=True)


@settings(deadline=None, max_examples=60)
@given(ROWS, ROWS)
def test_different_tables_have_different_bytes(one, other):
    assert (ipc_bytes(table_of(one)) == ipc_bytes(table_of(other))) == table_of(one).equals(table_of(other))


def test_negative_zero_is_zero():
    assert ipc_bytes(pa.table({"x": [0.0, -0.0]})) == ipc_bytes(pa.table({"x": [0.0, 0.0]}))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(**finite) | st.text()
VALUES = st.recursive(SCALARS, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=10)


@settings(max_examples=100)
@given(VALUES, st.randoms(use_true_random=False))
def test_json_does_not_depend_on_the_order_of_keys(value, random):
    def shuffled(item):
        if isinstance(item, dict):
            keys = list(item)
            random.shuffle(keys)
            return {key: shuffled(item[key]) for key in keys}
        return [shuffled(x) for x in item] if isinstance(item, list) else item

    assert canonical_json(shuffled(value)) == canonical_json(value)

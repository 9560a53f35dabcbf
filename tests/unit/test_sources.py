import csv
import errno
import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import DataError, DatasetMismatchError, OutputError
from tamis.pipelines import formats, sources
from tamis.pipelines.sources import (
    SourceFile,
    check_types,
    check_unchanged,
    read_rows,
    require_columns,
    resolve,
    scan,
    stacked,
    stream_rows,
    take_rows,
)

TEXTS = [
    "plain",
    'quotes " and ""',
    "two\nlines",
    "carriage\r\nreturn",
    "commas, many,,",
    "élan „日本“ 🧀",
    "  spaces ",
    "2020-01-01 00:00:00",
    None,
    "NA",
]
ROWS = [{"id": f"{i:03d}", "text": text, "n": i} for i, text in enumerate(TEXTS)]
TABLE = pa.Table.from_pylist(ROWS)


def write_csv(path, rows=ROWS):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_stream(path, table=TABLE):
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        for batch in table.to_batches(max_chunksize=4):
            writer.write_batch(batch)


def write_file(path, table=TABLE):
    with pa.ipc.new_file(str(path), table.schema) as writer:
        for batch in table.to_batches(max_chunksize=4):
            writer.write_batch(batch)


WRITERS = {
    "x.parquet": lambda path: pq.write_table(TABLE, path, row_group_size=3),
    "x.pq": lambda path: pq.write_table(TABLE, path, row_group_size=100),
    "x.jsonl": write_jsonl,
    "x.ndjson": write_jsonl,
    "x.json": write_jsonl,
    "x.csv": write_csv,
    "X.CSV": write_csv,
    "x.arrow": write_file,
    "y.arrow": write_stream,
    "x.ipc": write_file,
    "x.feather": lambda path: pyarrow.feather.write_feather(TABLE, str(path), compression="lz4"),
}


def one(path):
    (found,) = resolve(str(path))
    return scan(found)


@pytest.mark.parametrize("name", WRITERS)
def test_round_trip(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    source = one(path)
    assert (source.path, source.location, source.rows) == (name, str(path), len(ROWS))
    assert source.columns == ("id", "text", "n")
    assert (source.bytes, source.sha256) == (
        path.stat().st_size,
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    for start in range(len(ROWS) + 1):
        for stop in range(start, len(ROWS) + 1):
            table, problem = read_rows(source, ["text", "id"], start, stop)
            assert table.column_names == ["text", "id"]
            assert table["text"].to_pylist() == TEXTS[start:stop]
            assert table["id"].to_pylist() == [row["id"] for row in ROWS[start:stop]]
            assert problem.dtype == np.uint8
            assert problem.tolist() == [0] * (stop - start)


@pytest.mark.parametrize("name", WRITERS)
def test_take_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    source = one(tmp_path / name)
    rows = np.array([7, 2, 2, 9, 0, 8])
    table = take_rows([source], rows)
    assert table["text"].to_pylist() == [TEXTS[row] for row in rows]
    assert take_rows([source], np.array([], np.int64), ["id"]).num_rows == 0
    with pytest.raises(DataError, match="rows 0 to 9"):
        take_rows([source], np.array([10]))
    with pytest.raises(DataError, match="rows 0 to 9"):
        take_rows([source], np.array([-1]))


@pytest.mark.parametrize("window", [2, 5, 100])
@pytest.mark.parametrize("name", WRITERS)
def test_stream_rows(tmp_path, monkeypatch, name, window):
    monkeypatch.setattr(formats, "_STREAMED", window)
    monkeypatch.setattr(formats, "WINDOW", 2 * window)
    WRITERS[name](tmp_path / name)
    source = one(tmp_path / name)
    for rows in ([], [0], [9], [1, 2, 4, 8], range(10)):
        rows = np.array(rows, np.int64)
        pieces = list(stream_rows([source], rows))
        assert pieces[0].num_rows == 0
        assert max(len(piece) for piece in pieces) <= window
        assert stacked(pieces).equals(take_rows([source], rows))


def test_stream_rows_of_several_files_and_of_a_changed_one(tmp_path):
    for name in ("x.parquet", "y.arrow", "x.csv", "x.jsonl"):
        WRITERS[name](tmp_path / name)
    found = [scan(file) for file in resolve(tmp_path)]
    rows = np.array([0, 3, 14, 35, 39])  # none of the Parquet file
    assert stacked(list(stream_rows(found, rows))).equals(take_rows(found, rows))
    write_jsonl(tmp_path / "x.jsonl", ROWS[:3])
    with pytest.raises(DatasetMismatchError, match=r"x\.jsonl has changed"):
        list(stream_rows(found, rows))


def test_take_rows_over_mixed_formats(tmp_path):
    for name in ("x.parquet", "y.arrow", "x.csv", "x.jsonl"):
        WRITERS[name](tmp_path / name)
    found = [scan(file) for file in resolve(tmp_path)]
    assert [source.path for source in found] == ["x.csv", "x.jsonl", "x.parquet", "y.arrow"]
    rows = np.array([35, 3, 14, 21, 0, 39])
    table = take_rows(found, rows)
    assert table["text"].to_pylist() == [TEXTS[row % 10] for row in rows]
    assert table["n"].to_pylist() == [str(row % 10) for row in rows]  # CSV has it as text
    assert take_rows(found[1:], np.array([5, 25]), ["n"])["n"].to_pylist() == [5, 5]


def test_take_rows_fills_columns_that_a_file_lacks(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [3], "c": [0.5]}), tmp_path / "2.parquet")
    found = [scan(file) for file in resolve(tmp_path)]
    both = take_rows(found, np.array([1, 0])).to_pylist()
    assert both == [{"a": 3, "b": None, "c": 0.5}, {"a": 1, "b": 2, "c": None}]
    assert take_rows(found, np.array([0])).schema == take_rows(found, np.array([1])).schema
    with pytest.raises(DataError, match=r"2\.parquet: no column 'b'"):
        take_rows(found, np.array([1]), ["b"])


def test_take_rows_widens_large_strings(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "x.jsonl")
    monkeypatch.setattr(sources, "_LARGE_BYTES", 10)
    table = take_rows([one(tmp_path / "x.jsonl")], np.array([3, 1]), ["text"])
    assert table.schema.field("text").type == pa.large_string()
    assert table["text"].to_pylist() == [TEXTS[3], TEXTS[1]]


def test_columns_without_a_common_type_are_refused(tmp_path):
    pq.write_table(pa.table({"a": [[1]]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "2.parquet")
    with pytest.raises(DataError, match="'a' has types"):
        take_rows([scan(file) for file in resolve(tmp_path)], np.array([0, 1]))


# --- types

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FLOATS, INTS = pa.list_(pa.float32()), pa.list_(pa.int32())


@pytest.mark.parametrize(
    ("role", "kinds"),
    [
        ("image", [pa.binary(), pa.large_binary(), STRUCT, pa.struct([("bytes", pa.large_binary())]), pa.null()]),
        ("tokens", [INTS, pa.large_list(pa.uint16()), pa.list_(pa.int64(), 3), pa.list_(pa.null()), pa.null()]),
        ("vectors", [FLOATS, INTS, pa.list_(pa.null()), pa.list_(pa.float64(), 2), pa.null()]),
        ("text", [pa.string(), pa.large_string(), pa.string_view(), pa.null()]),
    ],
)
def test_types_that_a_role_takes(tmp_path, role, kinds):
    source = SourceFile("x", "/x", "parquet", 1, "a", 1, ("c",))
    for kind in kinds:
        check_types(source, pa.schema([("c", kind)]).empty_table(), {role: "c"})


@pytest.mark.parametrize(
    ("role", "kind", "allowed"),
    [
        ("image", pa.string(), "the bytes of image files"),
        ("image", pa.struct([("path", pa.string())]), "struct of bytes and path"),
        ("image", pa.struct([("bytes", pa.string())]), "struct of bytes and path"),
        ("image", pa.list_(pa.uint8()), "the bytes of image files"),
        ("tokens", pa.string(), "lists of whole numbers"),
        ("tokens", FLOATS, "lists of whole numbers"),
        ("tokens", pa.int64(), "lists of whole numbers"),
        ("tokens", pa.list_(INTS), "lists of whole numbers"),
        ("vectors", pa.list_(pa.string()), "lists of numbers"),
        ("text", pa.binary(), "strings"),
    ],
)
def test_types_that_a_role_does_not_take(role, kind, allowed):
    source = SourceFile("x", "/data/x", "parquet", 1, "a", 1, ("c",))
    with pytest.raises(DataError, match=rf"/data/x: column 'c' is the {role} and holds .*; allowed are .*{allowed}"):
        check_types(source, pa.schema([("c", kind)]).empty_table(), {role: "c"})


def test_take_rows_widens_images(tmp_path, monkeypatch):
    images = [{"bytes": bytes([i]) * i, "path": None} for i in range(5)]
    rows = pa.table({"image": pa.array(images, STRUCT), "raw": [b"a", b"b", None, b"", b"c"]})
    pq.write_table(rows, tmp_path / "x.pq")
    monkeypatch.setattr(sources, "_LARGE_BYTES", 10)
    table = take_rows([one(tmp_path / "x.pq")], np.array([3, 1]))
    assert table.schema.field("image").type.field("bytes").type == pa.large_binary()
    assert table.to_pylist() == [{"image": images[3], "raw": b""}, {"image": images[1], "raw": b"b"}]


# --- finding


def test_a_folder_is_walked_in_sorted_order(tmp_path):
    for name in ("b/2.csv", "a.csv", "b/10.csv", "B.csv", ".hidden/x.csv", "b/.x.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_csv(tmp_path / name)
    (tmp_path / "README.md").write_text("x")
    assert [file.path for file in resolve(tmp_path)] == ["B.csv", "a.csv", "b/10.csv", "b/2.csv"]


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("*.csv", ["a.csv"]),
        ("**/*.csv", ["a.csv", "b/c.csv"]),
        ("b/[c].csv", ["c.csv"]),
        ("b/?.csv", ["c.csv"]),
    ],
)
def test_globs(tmp_path, monkeypatch, pattern, paths):
    (tmp_path / "b").mkdir()
    write_csv(tmp_path / "a.csv")
    write_csv(tmp_path / "b" / "c.csv")
    assert [file.path for file in resolve(str(tmp_path / pattern))] == paths
    monkeypatch.chdir(tmp_path)
    assert [file.path for file in resolve(pattern)] == paths


def test_a_name_with_wildcards_that_exists_is_that_file(tmp_path):
    write_csv(tmp_path / "x[1].csv")
    assert one(tmp_path / "x[1].csv").path == "x[1].csv"


def test_nothing_found(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        resolve(str(tmp_path / "no.csv"))
    with pytest.raises(DataError, match="matches no file"):
        resolve(str(tmp_path / "*.csv"))
    with pytest.raises(DataError, match=r"no data files.*\.parquet"):
        resolve(str(tmp_path))
    with pytest.raises(DataError, match="remote"):
        resolve("s3://bucket/x.parquet")
    (tmp_path / "x.pkl").write_text("x")
    with pytest.raises(DataError, match=r"'\.pkl'.*\.parquet"):
        resolve(tmp_path / "x.pkl")
    with pytest.raises(DataError, match="int"):
        resolve(17)


# --- Hugging Face datasets


def hf(rows=ROWS):
    import datasets

    return datasets.Dataset.from_list(rows)


def test_a_saved_dataset(tmp_path):
    shuffled = hf().select([3, 1, 2, 8, 0])
    shuffled.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    source = one(tmp_path / "saved")
    assert (source.path, source.format, source.rows, source.columns) == (
        "saved",
        "hf",
        5,
        ("id", "text", "n"),
    )
    table, _ = read_rows(source, ["n"], 1, 5)
    assert table["n"].to_pylist() == [1, 2, 8, 0]
    assert take_rows([source], np.array([4, 0]))["text"].to_pylist() == [TEXTS[0], TEXTS[3]]
    assert resolve(tmp_path)[0].path == "saved"


def test_a_saved_dataset_with_an_indices_mapping(tmp_path):
    """As older versions of datasets saved a shuffled dataset."""
    hf().save_to_disk(str(tmp_path / "saved"))
    plain = one(tmp_path / "saved")
    write_stream(tmp_path / "saved" / "indices.arrow", pa.table({"indices": pa.array([5, 0, 0], pa.uint64())}))
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    mapped = one(tmp_path / "saved")
    assert (mapped.rows, mapped.sha256 == plain.sha256) == (3, False)
    assert read_rows(mapped, ["n"], 0, 3)[0]["n"].to_pylist() == [5, 0, 0]


def test_a_truncated_saved_dataset_is_refused(tmp_path):
    hf().save_to_disk(str(tmp_path / "saved"))
    part = next((tmp_path / "saved").glob("*.arrow"))
    part.write_bytes(part.read_bytes()[:-8])
    with pytest.raises(DataError, match="truncated"):
        one(tmp_path / "saved")
    part.unlink()
    with pytest.raises(DataError, match="saved"):
        one(tmp_path / "saved")


def test_a_saved_dataset_that_points_outside_is_refused(tmp_path):
    hf().save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    with pytest.raises(DataError, match="outside"):
        one(tmp_path / "saved")


def test_a_saved_dataset_dict_names_its_splits(tmp_path):
    import datasets

    splits = datasets.DatasetDict({"train": hf(), "test": hf()})
    splits.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"'test', 'train'.*saved/test"):
        resolve(tmp_path / "saved")
    with pytest.raises(DataError, match="'test', 'train'"):
        resolve(splits, tmp_path)
    assert one(tmp_path / "saved" / "train").rows == len(ROWS)


def test_a_dataset_in_memory_is_spooled_under_its_content(tmp_path):
    data = hf().select([2, 0, 5])
    (found,) = resolve(data, tmp_path / "spool")
    source = scan(found)
    assert found.path == f"dataset-{source.sha256[:16]}.arrow"
    assert read_rows(source, ["n", "text"], 0, 3)[0].to_pylist() == [
        {"n": row, "text": TEXTS[row]} for row in (2, 0, 5)
    ]
    assert resolve(hf([ROWS[2], ROWS[0], ROWS[5]]), tmp_path / "spool") == [found]
    assert [path.name for path in (tmp_path / "spool").iterdir()] == [found.path]


def test_datasets_in_memory_that_cannot_be_spooled(tmp_path):
    with pytest.raises(DataError, match="folder"):
        resolve(hf())
    with pytest.raises(DataError, match="no rows"):
        resolve(hf().select([]), tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot make the folder"):
        resolve(hf(), tmp_path / "file")


# --- scanning


def test_known_content_is_not_counted_again(tmp_path, monkeypatch):
    write_csv(tmp_path / "x.csv")
    (found,) = resolve(tmp_path / "x.csv")
    source = scan(found)
    known = {source.sha256: (source.rows, source.columns)}

    def fail(*args):
        raise AssertionError("counted")

    monkeypatch.setattr(formats, "count", fail)
    assert scan(found, known) == source
    (tmp_path / "x.csv").write_bytes((tmp_path / "x.csv").read_bytes() + b"x,y,1\n")
    with pytest.raises(AssertionError, match="counted"):
        scan(found, known)


@pytest.mark.parametrize("name", WRITERS)
def test_empty_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"{name}: is empty"):
        one(tmp_path / name)


def test_files_without_rows_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("id,text\n")
    (tmp_path / "x.jsonl").write_text("\n \n")
    pq.write_table(TABLE.slice(0, 0), tmp_path / "x.parquet")
    write_file(tmp_path / "x.arrow", TABLE.slice(0, 0))
    for name in ("x.csv", "x.jsonl", "x.parquet", "x.arrow"):
        with pytest.raises(DataError, match=f"{name}: has no rows"):
            one(tmp_path / name)


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "y.arrow", "x.ipc", "x.feather"])
def test_truncated_and_corrupt_files_are_refused(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    whole = path.read_bytes()
    for length in [1, 7, 8, len(whole) // 2, len(whole) - 8, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=name):
            one(path)
    path.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(DataError, match=name):
        one(path)


def test_a_stream_that_is_cut_between_batches_is_refused(tmp_path):
    """Arrow reads it without an error, and half of the rows are gone."""
    sink = io.BytesIO()
    writer = pa.ipc.new_stream(sink, TABLE.schema)
    writer.write_table(TABLE.slice(0, 5))
    half = sink.getvalue()
    assert pa.ipc.open_stream(half).read_all().num_rows == 5
    (tmp_path / "x.arrow").write_bytes(half)
    with pytest.raises(DataError, match="truncated"):
        one(tmp_path / "x.arrow")


def test_a_corrupt_parquet_page_is_a_data_error(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(TABLE, path, write_page_checksum=True, compression="none")
    damaged = path.read_bytes().replace(b"plain", b"pLain")
    path.write_bytes(damaged)
    source = one(path)
    with pytest.raises(DataError, match=r"x\.parquet"):
        read_rows(source, ["text"], 0, 10)


def test_wild_offsets_are_refused(tmp_path):
    _, offsets, data = pa.array(["a", "b"]).buffers()
    wild = bytearray(offsets.to_pybytes())
    wild[4:8] = (2**30).to_bytes(4, "little")
    array = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(bytes(wild)), data])
    write_file(tmp_path / "x.arrow", pa.table({"text": array}))
    with pytest.raises(DataError, match=r"x\.arrow"):
        one(tmp_path / "x.arrow")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,text\n1,a\n2,b,c\n", "row 1 has 3 fields, the header names 2"),
        ("id,text\n1,a\n2\n", "row 1 has 1 fields"),
        ('id,text\n1,"a\n', "row 0 is not CSV"),
        ('id,text\n1,"a"b\n', "row 0 is not CSV"),
        ("id,text\r1,a\r", "not"),
        ("\nid,text\n1,a\n", "first line is blank"),
        ("id,text,id\n1,a,2\n", "'id'.*twice"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    (tmp_path / "x.csv").write_bytes(text.encode())
    with pytest.raises(DataError, match=message):
        one(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": \n', "jsonl:2: not a JSON object"),
        ('{"a": 1}\n\n[1]\n', "jsonl:3: a JSON list; one object a line"),
        ("[\n", "array"),
        ('{"a": 1, "a": 2}\n', "key is there twice"),
        ('{"a": NaN}\n', "NaN"),
        (
            '{"a": null}\n{"a": 1}\n{"a": "x"}\n',
            "jsonl:3: column 'a' is a string here and a number on line 2",
        ),
        ('{"a": 1}\n{"a": true}\n', "boolean here and a number"),
        ("{" * 100_000, "jsonl:1"),
        ('{"a":' + "[" * 100_000, "jsonl:1"),
    ],
)
def test_bad_jsonl(tmp_path, text, message):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        one(tmp_path / "x.jsonl")


def test_columns_of_jsonl_are_the_union(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"b": 1}\n\n{"a": 2.5, "b": null}\n{"b": 2.5}\n')
    source = one(tmp_path / "x.jsonl")
    assert (source.columns, source.rows) == (("b", "a"), 3)
    table, _ = read_rows(source, ["a", "b"], 0, 3)
    assert table.to_pylist() == [{"a": None, "b": 1.0}, {"a": 2.5, "b": None}, {"a": None, "b": 2.5}]


def test_numbers_that_do_not_fit_are_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": ' + "9" * 30 + "}\n")
    with pytest.raises(DataError, match="column 'a' has no one type in rows 0 to 1"):
        read_rows(one(tmp_path / "x.jsonl"), ["a"], 0, 2)


def test_twice_named_columns_are_refused(tmp_path):
    write_file(tmp_path / "x.arrow", pa.table([[1], [2]], ["a", "a"]))
    with pytest.raises(DataError, match="twice"):
        one(tmp_path / "x.arrow")


def test_missing_columns_name_the_nearest(tmp_path):
    write_csv(tmp_path / "x.csv")
    source = one(tmp_path / "x.csv")
    require_columns(source, ["id", "n"])
    with pytest.raises(
        DataError, match=r"x\.csv: no column 'texts'; did you mean 'text'\? its columns are id, text, n"
    ):
        read_rows(source, ["id", "texts"], 0, 1)
    with pytest.raises(DataError, match="no column 'zzz'; its columns"):
        read_rows(source, ["zzz"], 0, 1)


def test_ranges_outside_are_refused(tmp_path):
    write_csv(tmp_path / "x.csv")
    for start, stop in [(-1, 2), (3, 2), (0, 11)]:
        with pytest.raises(ValueError, match="which has 10"):
            read_rows(one(tmp_path / "x.csv"), ["id"], start, stop)


# --- text that cannot be decoded


def test_csv_that_is_not_utf8(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfid,text\n1,caf\xe9\n2,caf\xc3\xa9\n\xff3,fine\n")
    source = one(tmp_path / "x.csv")
    table, problem = read_rows(source, ["id", "text"], 0, 3)
    assert table.to_pylist() == [
        {"id": "1", "text": None},
        {"id": "2", "text": "café"},
        {"id": None, "text": "fine"},
    ]
    assert problem.tolist() == [1, 0, 1]
    assert read_rows(source, ["id"], 0, 2)[1].tolist() == [0, 0]


def test_jsonl_that_is_not_utf8_or_has_lone_surrogates(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(
        b'{"id": 1, "text": "caf\xe9"}\n'
        b'{"id": 2, "text": "\\ud800"}\n'
        b'{"id": 3, "text": "\\ud83e\\uddc0"}\n'
        b'{"id": 4, "text": "x", "more": ["\xff"]}\n'
    )
    source = one(tmp_path / "x.jsonl")
    table, problem = read_rows(source, ["id", "text"], 0, 4)
    assert table["text"].to_pylist() == [None, None, "🧀", "x"]
    assert table["id"].to_pylist() == [1, 2, 3, 4]
    assert problem.tolist() == [formats.NOT_UTF8, formats.LONE_SURROGATE, 0, 0]
    assert read_rows(source, ["more"], 3, 4)[1].tolist() == [formats.NOT_UTF8]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_columnar_text_that_is_not_utf8(tmp_path, kind, name):
    raw = pa.array([b"ok", b"caf\xe9", None, b"\xc3\xa9"], pa.binary() if kind == pa.string() else pa.large_binary())
    table = pa.table({"id": [1, 2, 3, 4], "text": raw.view(kind)})
    if name == "x.parquet":
        pq.write_table(table, tmp_path / name, row_group_size=2)
    else:
        write_file(tmp_path / name, table)
    source = one(tmp_path / name)
    table, problem = read_rows(source, ["id", "text"], 0, 4)
    assert table["text"].to_pylist() == ["ok", None, None, "é"]
    assert problem.tolist() == [1 * (row == 1) for row in range(4)]
    assert take_rows([source], np.array([3, 1]))["text"].to_pylist() == ["é", None]


def test_dictionaries_and_views_are_read_as_plain_text(tmp_path):
    table = pa.table(
        {
            "d": pa.array(["x", "y", "x"]).dictionary_encode(),
            "v": pa.array(["a", None, "long enough not to be inlined"], pa.string_view()),
        }
    )
    write_file(tmp_path / "x.arrow", table)
    found, _ = read_rows(one(tmp_path / "x.arrow"), ["v", "d"], 1, 3)
    assert found.schema.types == [pa.string(), pa.string()]
    assert found["d"].to_pylist() == ["y", "x"]


# --- changed files


def test_changed_files_are_noticed(tmp_path):
    write_csv(tmp_path / "x.csv")
    source = one(tmp_path / "x.csv")
    check_unchanged([source])
    whole = (tmp_path / "x.csv").read_bytes()
    (tmp_path / "x.csv").write_bytes(whole.replace(b"plain", b"pLain"))
    with pytest.raises(DatasetMismatchError, match=r"x\.csv has changed"):
        check_unchanged([source])
    (tmp_path / "x.csv").write_bytes(whole[:40])
    with pytest.raises(DatasetMismatchError, match=r"x\.csv has changed"):
        read_rows(source, ["id"], 0, 10)
    (tmp_path / "x.csv").unlink()
    with pytest.raises(DatasetMismatchError):
        check_unchanged([source])


# --- text files over many index entries

CELL = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_any_range_of_any_text(tmp_path_factory, rows, one_end, other_end):
    folder = tmp_path_factory.mktemp("text")
    records = [{"a": a, "b": b} for a, b in rows]
    write_csv(folder / "x.csv", records)
    write_jsonl(folder / "x.jsonl", records)
    start, stop = sorted((min(one_end, len(rows)), min(other_end, len(rows))))
    stride = formats._STRIDE
    formats._STRIDE = 3
    try:
        for source in [scan(file) for file in resolve(folder)]:
            table, problem = read_rows(source, ["b", "a"], start, stop)
            assert table.select(["a", "b"]).to_pylist() == records[start:stop]
            assert not problem.any()
    finally:
        formats._STRIDE = stride


def test_long_fields_are_read(tmp_path):
    write_csv(tmp_path / "x.csv", [{"id": "1", "text": "x" * 300_000}])
    assert len(read_rows(one(tmp_path / "x.csv"), ["text"], 0, 1)[0]["text"][0].as_py()) == 300_000


def test_unreadable_files_are_named(tmp_path, monkeypatch):
    write_csv(tmp_path / "x.csv")

    def fail(path):
        raise OSError(errno.EIO, "bad disk")

    monkeypatch.setattr(formats, "sha256_file", fail)
    with pytest.raises(DataError, match=r"x\.csv.*bad disk"):
        one(tmp_path / "x.csv")

"""Every export, read back by the library that it is for: content, order and weights."""

import base64
import hashlib
import io
import json
import sys
import tarfile
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tamis.errors import DataError, OutputError, RecipeError
from tamis.exports import rows as exported_rows
from tamis.exports.export import export
from tamis.pipelines.sources import resolve, scan, stream_rows

# What the libraries themselves do: one leaves its index open, the other uses what a third has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file .*(index.json|shard-[0-9]*.tar):ResourceWarning"),
    pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.reset_index:DeprecationWarning"),
]

FIELDS = {"id": "id", "text": "text", "label": "y", "image": "picture", "tokens": "t", "vectors": "v"}
N = 50


def picture(number, kind):
    buffer = io.BytesIO()
    Image.new("L", (3, 2), number).save(buffer, kind)
    return buffer.getvalue()


def make_table(n=N):
    """Ids with line breaks, nulls, bytes, images in two formats, empty lists."""
    rng = np.random.default_rng(0)
    raw = [None if i % 7 == 0 else bytes([i, 255]) for i in range(n)]
    return pa.table(
        {
            "id": [f"row\n{i}\r é" for i in range(n)],
            "text": [f"text {i} „é“\n" * (i % 5) for i in range(n)],
            "y": pa.array([i % 3 for i in range(n)], pa.int16()),
            "picture": [picture(i, "PNG" if i % 2 else "JPEG") for i in range(n)],
            "t": pa.array([list(range(i % 4 * 100)) for i in range(n)], pa.list_(pa.int32())),
            "v": pa.array(list(rng.standard_normal((n, 4), np.float32)), pa.list_(pa.float32(), 4)),
            "raw": raw,
            "key": [bytes([i]) for i in range(n)],
            "some": [None if i % 3 else i / 7 for i in range(n)],
            "flag": [i % 2 == 0 for i in range(n)],
            "born": pa.array(list(range(n)), pa.date32()),
            "day": pa.array([i * 86_400_000_000 for i in range(n)], pa.timestamp("us")),
        }
    )


def manifest_of(table, rows, fields=FIELDS):
    k = len(rows)
    select = pa.table(
        {
            "sample_id": table["id"].take(pa.array(rows)),
            "row": pa.array(rows, pa.int64()),
            "content_hash": pa.array([hashlib.md5(str(row).encode()).digest() for row in rows], pa.binary(16)),
            "rank": pa.array(range(k), pa.int32()),
            "weight": pa.array(np.linspace(0.5, 1.5, k), pa.float32()),
        }
    )
    record = {
        "dataset": {"fields": fields, "rows": len(table)},
        "recipe": {"name": "test"},
        "weight_semantics": "relative importance",
    }
    return SimpleNamespace(select=select, subset_id="ab" * 32, fingerprint="cd" * 32, record=record)


@pytest.fixture
def small_parts(monkeypatch):
    """So that a few rows are several parts, on disk, and several batches."""
    monkeypatch.setattr(exported_rows, "_PART_BYTES", 2000)
    monkeypatch.setattr(exported_rows, "_BATCH_BYTES", 3000)
    monkeypatch.setattr("tamis.pipelines.formats._STREAMED", 8)


@pytest.fixture
def case(tmp_path, small_parts):
    """The table, a manifest that keeps some of it, and a function that exports it."""
    table = make_table()
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=20)
    sources = [scan(found) for found in resolve(tmp_path / "rows.parquet")]
    rows = np.random.default_rng(1).permutation(N)[:37].tolist()
    manifest = manifest_of(table, rows)

    def write(to, name="x", **options):
        assert export(manifest, lambda rows: stream_rows(sources, rows), to, tmp_path / name, **options) is None
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
        return tmp_path / name

    kept = table.take(pa.array(rows))
    for name, column in (("tamis_id", "sample_id"), ("tamis_weight", "weight"), ("tamis_rank", "rank")):
        kept = kept.append_column(name, manifest.select[column])
    return SimpleNamespace(write=write, kept=kept, manifest=manifest)


def test_parquet(case):
    path = case.write("parquet")
    assert pq.read_table(path).equals(case.kept)
    assert pq.ParquetFile(path).num_row_groups > 1


def test_hugging_face(case):
    import datasets

    path = case.write("hf")
    loaded = datasets.load_from_disk(path)
    assert loaded.with_format("arrow")[:].equals(case.kept.cast(loaded.features.arrow_schema))
    assert [file.name for file in sorted(path.iterdir())] == [
        "data-00000-of-00001.arrow", "dataset_info.json", "state.json",
    ]  # fmt: skip


def test_the_same_subset_has_the_same_bytes(case, tmp_path):
    for to in ("parquet", "jsonl", "hf", "mds", "webdataset"):
        one, two = ([file.read_bytes() for file in files(case.write(to, f"{to}{i}"))] for i in range(2))
        assert one == two, to


def files(path):
    return sorted(path.iterdir()) if path.is_dir() else [path]


def test_one_part_and_many_parts_give_the_same_rows(case, tmp_path, monkeypatch):
    many = case.write("jsonl", "many").read_bytes()
    monkeypatch.setattr(exported_rows, "_PART_BYTES", 1 << 30)
    assert case.write("jsonl", "one").read_bytes() == many


def test_types_that_differ_from_part_to_part(tmp_path, small_parts):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"id": "{i}", "x": {i}, "only_a": null}}\n' for i in range(100)))
    (tmp_path / "b.jsonl").write_text("".join(f'{{"id": "{i}", "x": {i}.5, "n": [{i}]}}\n' for i in range(100, 300)))
    sources = [scan(found) for found in resolve(tmp_path)]
    rows = list(range(299, -1, -7))
    manifest = manifest_of(pa.table({"id": [str(i) for i in range(300)]}), rows, {"id": "id"})
    export(manifest, lambda rows: stream_rows(sources, rows), "parquet", tmp_path / "x")
    table = pq.read_table(tmp_path / "x")
    assert table["id"].to_pylist() == [str(row) for row in rows]
    assert table["x"].to_pylist() == [row + 0.5 * (row > 99) for row in rows]
    assert table["n"].to_pylist() == [[row] if row > 99 else None for row in rows]
    assert table["only_a"].null_count == len(rows)


# --- MDS ---


@pytest.fixture(scope="module")
def streaming():
    """The part of the library that reads and writes MDS, from where `make env` puts it.

    Its top package wants torchvision for its datasets of images, which is not there: an empty one takes its place, so
    that the modules below it are imported as they are.
    """
    place = Path(sys.prefix) / "mds" / "streaming"
    assert place.is_dir(), f"{place} is not there: make env"
    top = types.ModuleType("streaming")
    top.__path__ = [str(place)]
    sys.modules["streaming"] = top
    import streaming.base

    yield streaming.base
    for name in [name for name in sys.modules if name.partition(".")[0] == "streaming"]:
        del sys.modules[name]


def mds_values(table):
    """What MDS has of the table: JSON where there are nulls, and of types that it lacks."""
    rows = table.to_pylist()
    for row in rows:
        row["day"], row["born"] = row["day"].isoformat(), row["born"].isoformat()
        row["raw"] = None if row["raw"] is None else base64.b64encode(row["raw"]).decode()
    return rows


@pytest.mark.parametrize("shard_bytes", [1 << 20, 20_000, 1])
def test_mds(case, streaming, shard_bytes):
    path = case.write("mds", shard_bytes=shard_bytes)
    shards = json.loads((path / "index.json").read_text())["shards"]
    assert len(shards) == {1 << 20: 1, 1: 37}.get(shard_bytes, len(shards)) >= 1
    for shard in shards:
        file = path / shard["raw_data"]["basename"]
        assert shard["raw_data"]["hashes"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert file.stat().st_size <= max(shard_bytes, 20_000)
    loaded = streaming.LocalDataset(str(path))
    assert len(loaded) == 37
    for got, wanted in zip((loaded[i] for i in range(37)), mds_values(case.kept), strict=True):
        assert isinstance(got["t"], np.ndarray)
        assert isinstance(got["picture"], bytes)
        got["t"], got["v"] = got["t"].tolist(), got["v"].tolist()
        assert got == wanted


def test_mds_is_what_the_librarys_own_writer_writes(streaming, tmp_path, small_parts):
    table = make_table().filter(pa.array([i % 4 > 0 for i in range(N)]))  # it refuses empty arrays, which it can read
    manifest = manifest_of(table, list(range(len(table))))
    path = tmp_path / "x"
    export(manifest, lambda _: [table], "mds", path, shard_bytes=20_000)
    index = json.loads((path / "index.json").read_text())
    shard = index["shards"][0]
    columns = dict(zip(shard["column_names"], shard["column_encodings"], strict=True))
    assert columns == {
        "born": "json", "day": "json", "flag": "json", "id": "str", "key": "bytes", "picture": "bytes", "raw": "json",
        "some": "json", "t": "ndarray:int32", "tamis_id": "str", "tamis_rank": "int32", "tamis_weight": "float32",
        "text": "str", "v": "ndarray:float32", "y": "int16",
    }  # fmt: skip
    for name, column in (("tamis_id", "sample_id"), ("tamis_weight", "weight"), ("tamis_rank", "rank")):
        table = table.append_column(name, manifest.select[column])
    options = {"columns": columns, "hashes": ["sha256"], "size_limit": 20_000}
    with streaming.MDSWriter(out=str(tmp_path / "own"), **options) as writer:
        for row in mds_values(table):
            writer.write({**row, "t": np.array(row["t"], np.int32), "v": np.array(row["v"], np.float32)})
    assert len(index["shards"]) > 1
    assert [file.name for file in files(path)] == [file.name for file in files(tmp_path / "own")]
    for ours, own in zip(files(path), files(tmp_path / "own"), strict=True):
        assert ours.read_bytes() == own.read_bytes(), ours.name


def test_a_sample_that_mds_cannot_hold_is_refused(case, tmp_path, monkeypatch):
    monkeypatch.setattr("tamis.exports.mds._LARGEST", 1000)
    with pytest.raises(DataError, match=r"a sample has [0-9]{3,4} bytes; a shard of MDS holds 4 GiB"):
        case.write("mds", shard_bytes=1)
    assert not (tmp_path / "x").exists()


def test_a_streaming_dataset_reads_mds(case, streaming):
    path = case.write("mds", shard_bytes=20_000)
    try:
        loaded = streaming.StreamingDataset(local=str(path), shuffle=False, batch_size=1, validate_hash="sha256")
        assert [sample["tamis_rank"] for sample in loaded] == list(range(37))
        assert [sample["tamis_id"] for sample in loaded] == case.kept["tamis_id"].to_pylist()
    finally:
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()


# --- WebDataset ---


def webdataset_of(path):
    import webdataset

    return webdataset.WebDataset([str(shard) for shard in sorted(path.glob("*.tar"))], shardshuffle=False)


@pytest.mark.parametrize("shard_bytes", [1 << 20, 30_000])
def test_webdataset(case, shard_bytes):
    path = case.write("webdataset", shard_bytes=shard_bytes)
    shards = sorted(path.glob("*.tar"))
    assert [shard.name for shard in shards] == [f"shard-{i:06d}.tar" for i in range(len(shards))]
    assert (len(shards) > 1) == (shard_bytes == 30_000)
    samples = list(webdataset_of(path).decode())
    assert [sample["__key__"] for sample in samples] == [f"{rank:09d}" for rank in range(37)]
    for sample, wanted in zip(samples, case.kept.to_pylist(), strict=True):
        assert sample["txt"] == wanted["text"]
        assert sample["cls"] == wanted["y"]
        assert sample["tokens.npy"].tolist() == wanted["t"]
        assert sample["tokens.npy"].dtype == np.int32
        assert sample["vectors.npy"].tolist() == wanted["v"]
        about = sample["json"]
        assert about.keys() == {
            "id",
            "raw",
            "key",
            "some",
            "flag",
            "born",
            "day",
            "tamis_id",
            "tamis_weight",
            "tamis_rank",
        }
        assert (about["id"], about["tamis_weight"]) == (wanted["tamis_id"], wanted["tamis_weight"])
        assert (about["some"], about["flag"]) == (wanted["some"], wanted["flag"])
    raw = list(webdataset_of(path))
    for sample, wanted in zip(raw, case.kept["picture"].to_pylist(), strict=True):
        assert sample["png" if wanted.startswith(b"\x89PNG") else "jpg"] == wanted


def test_tars_say_nothing_of_when_and_by_whom_they_were_written(case):
    with tarfile.open(files(case.write("webdataset"))[0]) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.isfile()


def test_images_as_hugging_face_stores_them(tmp_path, streaming):
    images = [picture(i, "PNG") for i in range(5)]
    table = pa.table({"id": list("abcde"), "picture": [{"bytes": image, "path": "p"} for image in images]})
    manifest = manifest_of(table, [3, 1], {"id": "id", "image": "picture"})
    for to in ("mds", "webdataset"):
        export(manifest, lambda rows: [table.take(pa.array(rows))], to, tmp_path / to)
    assert [s["png"] for s in webdataset_of(tmp_path / "webdataset")] == [images[3], images[1]]
    loaded = streaming.LocalDataset(str(tmp_path / "mds"))
    assert [loaded[i]["picture"] for i in range(2)] == [images[3], images[1]]


@pytest.mark.parametrize(
    ("data", "extension"),
    [
        (b"RIFF\0\0\0\0WEBP", "webp"),
        (b"GIF89a", "gif"),
        (b"BM\0", "bmp"),
        (b"II*\0", "tif"),
        (b"MM\0*", "tif"),
        (b"P5\n", "pgm"),
        (b"P6\n", "ppm"),
        (b"?", "img"),
    ],
)
def test_the_first_bytes_of_an_image_name_it(data, extension):
    from tamis.exports.tar_shards import _image_extension

    assert _image_extension(data) == extension


# --- DataComp's npy ---


def npy(tmp_path, ids, hashes=None):
    select = pa.table({"sample_id": ids, "content_hash": pa.array(hashes or [b"0" * 16] * len(ids), pa.binary(16))})
    note = export(SimpleNamespace(select=select), lambda _: 1 / 0, "npy", tmp_path / "x.npy")
    return np.load(tmp_path / "x.npy", allow_pickle=False), note


def test_npy_is_datacomps_subset_format(tmp_path):
    ids = [hashlib.md5(bytes([i])).hexdigest() for i in range(100)]
    got, note = npy(tmp_path, ids)
    # As DataComp's own tools make it of uids.
    wanted = np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in ids], np.dtype("u8,u8"))
    wanted.sort()
    assert got.dtype == np.dtype("u8,u8")
    assert np.array_equal(got, wanted)
    assert note == "the uids are the sample ids"


def test_npy_of_other_ids_has_content_hashes(tmp_path):
    hashes = [bytes(range(i, i + 16)) for i in (7, 3)]
    for other in ("a\n", "A" * 32, "é" * 32, "0" * 31, "0" * 32 + "\n"):
        got, note = npy(tmp_path, ["0" * 32, other], hashes)
        assert [f"{a:016x}{b:016x}" for a, b in got.tolist()] == [data.hex() for data in reversed(hashes)]
        assert "content hashes" in note
        (tmp_path / "x.npy").unlink()


def test_npy_of_rows_that_it_cannot_tell_apart_is_refused(tmp_path):
    with pytest.raises(DataError, match="1 of the 2 kept rows have the content of another"):
        npy(tmp_path, ["a", "b"])
    assert list(tmp_path.iterdir()) == []


# --- Croissant ---


@pytest.mark.parametrize("to", ["parquet", "jsonl", "hf"])
def test_croissant(case, to, tmp_path):
    import mlcroissant

    path = case.write(to, "x.out", describe=True)
    described = path / "croissant.json" if to == "hf" else tmp_path / "x.out.croissant.json"
    dataset = mlcroissant.Dataset(jsonld=str(described))
    assert not dataset.metadata.ctx.issues.errors
    assert not dataset.metadata.license
    for file in dataset.metadata.distribution:
        assert file.sha256 == hashlib.sha256((described.parent / file.content_url).read_bytes()).hexdigest()
    (rows,) = dataset.metadata.record_sets
    assert [field.name for field in rows.fields] == [
        name for name in case.kept.column_names if name not in ("raw", "key")
    ]
    assert "37 of the 50 rows" in json.dumps(dataset.metadata.to_json())


def test_croissant_tells_how_to_read_parquet(case, tmp_path):
    import mlcroissant

    case.write("parquet", "x y#.parquet", describe=True)
    dataset = mlcroissant.Dataset(jsonld=str(tmp_path / "x y#.parquet.croissant.json"))
    (rows,) = dataset.metadata.record_sets
    names = {field.id: field.name for field in rows.fields}
    records = [{names[key]: value for key, value in record.items()} for record in dataset.records(rows.id)]
    assert [record["tamis_rank"] for record in records] == list(range(37))
    assert [record["text"].decode() for record in records] == case.kept["text"].to_pylist()
    assert [record["tamis_weight"] for record in records] == case.kept["tamis_weight"].to_pylist()
    assert [record["y"] for record in records] == case.kept["y"].to_pylist()
    assert [record["picture"].size for record in records] == [(3, 2)] * 37


def test_no_description_without_data(case, tmp_path, monkeypatch):
    real = Path.rename

    def rename(self, target):
        if self.name == "made":
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OutputError, match="No space left"):
        case.write("parquet", describe=True)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_what_croissant_cannot_describe_is_refused(case, tmp_path):
    for to in ("mds", "webdataset", "ids", "npy"):
        with pytest.raises(RecipeError, match="describe parquet, jsonl, hf"):
            case.write(to, describe=True)
    (tmp_path / "x.croissant.json").write_text("mine")
    with pytest.raises(OutputError, match="not overwritten"):
        case.write("parquet", describe=True)
    assert not (tmp_path / "x").exists()

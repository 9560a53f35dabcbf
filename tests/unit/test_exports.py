import datetime
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.errors import DataError, OutputError, RecipeError
from tamis.exports.export import export

SOURCE = pa.table(
    {
        "id": ["a", "b", "c", "d"],
        "text": ["zero", "one\ntwo", "drei „é“", None],
        "x": [0.5, float("nan"), 2.0, 3.0],
        "raw": [b"\xff", b"", None, b"d"],
        "day": [datetime.date(2020, 1, day) for day in (1, 2, 3, 4)],
        "list": [[1, 2], [], None, [3]],
    }
)


def manifest(ids=("c", "b"), rows=(2, 1)):
    select = pa.table(
        {
            "sample_id": list(ids),
            "row": pa.array(rows, pa.int64()),
            "rank": pa.array(range(len(rows)), pa.int32()),
            "weight": pa.array([1.5, 0.5][: len(rows)], pa.float32()),
        }
    )
    record = {"dataset": {"fields": {"id": "id", "text": "text"}, "rows": 4}}
    return SimpleNamespace(select=select, subset_id="0123456789abcdef" * 4, record=record)


def read(rows):
    assert rows.tolist() == sorted(rows)
    yield SOURCE.slice(0, 0)
    yield SOURCE.take(pa.array(rows))


def never(rows):
    raise AssertionError("a list needs no rows")


def test_parquet(tmp_path):
    assert export(manifest(), read, "parquet", tmp_path / "x.parquet") is None
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == [*SOURCE.column_names, "tamis_id", "tamis_weight", "tamis_rank"]
    assert table["id"].to_pylist() == ["c", "b"]
    assert table["tamis_weight"].to_pylist() == [1.5, 0.5]
    assert table["tamis_rank"].to_pylist() == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def test_jsonl(tmp_path):
    export(manifest(), read, "jsonl", tmp_path / "x.jsonl")
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_bytes().splitlines()]
    day = {"c": "2020-01-03", "b": "2020-01-02"}
    assert records == [
        {
            "id": "c",
            "text": "drei „é“",
            "x": 2.0,
            "raw": None,
            "day": day["c"],
            "list": None,
            "tamis_id": "c",
            "tamis_weight": 1.5,
            "tamis_rank": 0,
        },
        {
            "id": "b",
            "text": "one\ntwo",
            "x": None,
            "raw": "",
            "day": day["b"],
            "list": [],
            "tamis_id": "b",
            "tamis_weight": 0.5,
            "tamis_rank": 1,
        },
    ]


def test_ids(tmp_path):
    export(manifest(["é", "b"]), never, "ids", tmp_path / "x.txt")
    assert (tmp_path / "x.txt").read_bytes() == "é\nb\n".encode()


def test_ids_with_line_breaks_are_refused(tmp_path):
    with pytest.raises(DataError, match="line break"):
        export(manifest(["a\nb", "c"]), never, "ids", tmp_path / "x.txt")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_hugging_face(tmp_path):
    import datasets

    export(manifest(), read, "hf", tmp_path / "x")
    loaded = datasets.load_from_disk(str(tmp_path / "x"))
    assert loaded["id"][:] == ["c", "b"]
    assert loaded["tamis_weight"][:] == [1.5, 0.5]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OutputError, match="not overwritten"):
        export(manifest(), never, "ids", tmp_path / "x")
    assert (tmp_path / "x").read_text() == "mine"


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="parquet, jsonl, ids, hf, npy, mds, webdataset"):
        export(manifest(), read, "pickle", tmp_path / "x")


def test_columns_of_an_earlier_export_are_refused(tmp_path):
    with pytest.raises(DataError, match="tamis_rank"):
        export(
            manifest(),
            lambda _: [SOURCE.slice(0, 2).append_column("tamis_rank", pa.array([1, 2]))],
            "parquet",
            tmp_path / "x",
        )


def test_too_few_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match="2 rows were asked of the source, 1 came"):
        export(manifest(), lambda rows: read(rows[:1]), "jsonl", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        export(manifest(), never, "ids", tmp_path / "no" / "x")


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def fail(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(manifest(), fail, "parquet", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == []


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
import test_exports as t
from tamis.exports import tar_shards
from tamis.exports.export import export

real = tar_shards._tar_bytes
def killed(files, seen=[]):
    if seen:
        os.kill(os.getpid(), signal.SIGKILL)
    seen.append(files)
    return real(files)

tar_shards._tar_bytes = killed
export(t.manifest(), t.read, "webdataset", Path(sys.argv[2]) / "x", shard_bytes=1)
"""


def test_a_killed_export_is_not_there(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, __file__, tmp_path], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "x").exists()
    assert all(path.name.startswith(".x.") for path in tmp_path.iterdir())  # no reader of datasets looks at it
    assert list(tmp_path.rglob("shard-000000.tar"))
    export(manifest(), read, "webdataset", tmp_path / "x")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["shard-000000.tar"]


def test_half_a_folder_is_removed(tmp_path, monkeypatch):
    import datasets

    def fail(self, path):
        (tmp_path / path).mkdir()
        (tmp_path / path / "data.arrow").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.Dataset, "save_to_disk", fail)
    with pytest.raises(OutputError, match="No space left"):
        export(manifest(), read, "hf", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("disabled", [True, False])
def test_progress_bars_are_left_as_they_were(tmp_path, disabled):
    import datasets

    before = datasets.are_progress_bars_disabled()
    try:
        (datasets.disable_progress_bars if disabled else datasets.enable_progress_bars)()
        export(manifest(), read, "hf", tmp_path / "x")
        assert datasets.are_progress_bars_disabled() is disabled
    finally:
        (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()

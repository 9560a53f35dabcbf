"""Subsets that other tools have chosen, and ours by way of them: a list in, a manifest out."""

import hashlib
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.errors import DataError, RecipeError
from tamis.manifests.schema import DECISIONS
from tamis.pipelines.id_lists import read_ids

N = 120


@pytest.fixture
def table():
    """Ids of every kind, one null text."""
    texts = [f"text number {i}" for i in range(N)]
    texts[5] = None
    return pa.table(
        {"id": [f"id {i} é" for i in range(N)], "uid": uids(N), "text": texts, "label": ["a", "b"] * (N // 2)}
    )


def uids(n):
    return [hashlib.md5(str(i).encode()).hexdigest() for i in range(n)]


@pytest.fixture
def bring(write, tmp_path, cli, table):
    """Import a list through the command line; gives its facts, or its error."""

    def go(listed, *options, out="out", code=0, id_column="id", given=None):
        data = write(table if given is None else given)
        columns = ("--set", "max_bad_fraction=0.01", *(("--id", id_column) if id_column else ()))
        result = cli(
            "import", listed, "--data", data, *columns, "--text", "text", "--out", tmp_path / out, *options, "--json"
        )
        assert result.exit_code == code, result.stderr
        return json.loads(result.stdout) if code == 0 else result.stderr

    return go


def text_list(path, ids):
    path.write_text("".join(f"{name}\n" for name in ids))
    return path


def picked(out):
    manifest = tamis.open_manifest(out)
    names = list(DECISIONS)
    for row in manifest.audit.to_pylist():
        if names[row["decision"]] == "not_in_budget":
            assert manifest.reasons[row["reason"]] == "not in the list"
            assert manifest.stages[row["stage"]]["name"] == "01-pick"
    assert sum(manifest.record["counts"][name] for name in names) == manifest.audit.num_rows == N
    return manifest.select["sample_id"].to_pylist()


def test_a_list_in_its_order(bring, table, tmp_path):
    ids = [table["id"][i].as_py() for i in (70, 3, 119, 4)]
    facts = bring(text_list(tmp_path / "my list!.txt", ids), "--missing", "ignore")
    assert picked(tmp_path / "out") == ids
    (stage,) = [stage["facts"] for stage in facts["stages"] if stage["stage"] == "01-pick"]
    assert stage == {"listed": 4, "picked": 4, "missing": 0, "dropped_before": 0, "matched_by": "id"}
    assert facts["counts"]["not_in_budget"] == N - 4 - 1
    record = tamis.open_manifest(tmp_path / "out").record
    assert record["recipe"]["name"] == "my-list-"
    assert record["recipe"]["stages"][0]["ids"] == "file"


@pytest.mark.parametrize("to", ["npy", "ids", "parquet", "jsonl"])
@pytest.mark.parametrize("id_column", ["id", "uid", None])
def test_what_is_exported_and_imported_is_the_same_subset(bring, recipe, write, table, tmp_path, cli, to, id_column):
    stages = [{"kind": "select", "method": "random", "budget": 40}]
    path = recipe(write(table), stages, dataset={"id": id_column}, max_bad_fraction=0.01)
    tamis.run(path, tmp_path / "first", executor="sync")
    first = tamis.open_manifest(tmp_path / "first")
    listed = tmp_path / f"subset.{to.replace('ids', 'txt')}"
    exported = cli("export", tmp_path / "first", "--to", to, "--out", listed)
    assert exported.exit_code == 0, exported.stderr
    said = exported.stderr
    assert said.startswith("the uids are the ") == (to == "npy")
    options = ("--label", "label")
    if to == "parquet":
        options += ("--column", "tamis_id")
    facts = bring(listed, *options, id_column=id_column)
    second = tamis.open_manifest(tmp_path / "out")
    ours, theirs = (manifest.select["sample_id"].to_pylist() for manifest in (first, second))
    if to == "npy":  # sorted by uid
        assert sorted(ours) == sorted(theirs)
        by_content = id_column == "id"
        assert ("content hashes" in said) == by_content
        assert facts["stages"][1]["facts"]["matched_by"] == ("content hash" if by_content else "id")
        again = cli("export", tmp_path / "out", "--to", "npy", "--out", tmp_path / "again.npy")
        assert again.exit_code == 0
        assert (tmp_path / "again.npy").read_bytes() == listed.read_bytes()
    else:
        assert ours == theirs


def test_ids_that_the_dataset_lacks(bring, table, tmp_path):
    ids = [f"no {i}" for i in range(12)] + table["id"].to_pylist()[:4]
    listed = text_list(tmp_path / "l.txt", ids)
    message = bring(listed, code=3)
    assert "12 of its 16 ids are not in the dataset: 'no 0', 'no 1'" in message
    assert "'no 9' and 2 more; " in message
    assert "missing: ignore" in message
    facts = bring(listed, "--missing", "ignore")
    assert facts["kept"] == 4
    assert facts["stages"][1]["facts"] | {"missing": 12, "picked": 4} == facts["stages"][1]["facts"]
    none = text_list(tmp_path / "none.txt", ids[:3])
    assert "3 of its 3 ids are not in the dataset" in bring(none, "--missing", "ignore", out="none", code=3)


def test_content_hashes_of_other_columns(bring, recipe, write, table, tmp_path, cli):
    path = recipe(write(table), [{"kind": "select", "method": "random", "budget": 40}], max_bad_fraction=0.01)
    tamis.run(path, tmp_path / "first", executor="sync")
    listed = tmp_path / "l.npy"
    assert cli("export", tmp_path / "first", "--to", "npy", "--out", listed).exit_code == 0
    said = bring(listed, code=3)  # without the label, which is of the content
    assert "40 of its 40 ids are not in the dataset" in said
    assert "content hashes, of the sample and its label: name the columns that its run named" in said


def test_rows_that_are_set_aside_before_are_told(recipe, write, table, tmp_path):
    ids = table["id"].to_pylist()[3:8]  # one of them has no text
    text_list(tmp_path / "l.txt", ids)
    path = recipe(write(table), [{"kind": "pick", "ids": "l.txt"}], max_bad_fraction=0.01)
    result = tamis.run(path, tmp_path / "out", executor="sync")
    assert result.stages[1]["facts"] | {"picked": 4, "dropped_before": 1} == result.stages[1]["facts"]
    assert picked(tmp_path / "out") == [name for name in ids if name != "id 5 é"]


def test_a_content_hash_of_several_rows_is_refused(recipe, write, tmp_path, cli):
    table = pa.table({"id": ["a", "b", "c"], "text": ["x", "y", "x"]})
    data = write(table)
    one = recipe(data, [{"kind": "dedup", "eps": 0.0}], dataset={"label": None})
    tamis.run(one, tmp_path / "one", executor="sync")
    assert cli("export", tmp_path / "one", "--to", "npy", "--out", tmp_path / "l.npy").exit_code == 0
    pick = {"kind": "pick", "ids": "l.npy"}
    with pytest.raises(DataError, match="1 of its content hashes are those of several rows"):
        tamis.run(recipe(data, [pick], dataset={"label": None}), tmp_path / "two", executor="sync")
    stages = [{"kind": "dedup", "eps": 0.0}, pick]
    tamis.run(recipe(data, stages, dataset={"label": None}), tmp_path / "three", executor="sync")
    three = tamis.open_manifest(tmp_path / "three")
    assert sorted(three.select["sample_id"].to_pylist()) == ["a", "b"]


def test_pick_goes_before_other_stages_and_keeps_what_a_manifest_kept(recipe, write, table, tmp_path):
    ids = table["id"].to_pylist()
    text_list(tmp_path / "one.txt", ids[10:20])
    text_list(tmp_path / "two.txt", ids[15:60])
    path = write(table)
    pick = {"kind": "pick", "ids": "one.txt"}
    tamis.run(recipe(path, [pick], max_bad_fraction=0.01), tmp_path / "one", executor="sync")
    stages = [
        {"kind": "pick", "ids": "two.txt"},
        {"kind": "select", "method": "random", "budget": 30, "continue_from": "one"},
    ]
    tamis.run(recipe(path, stages, max_bad_fraction=0.01), tmp_path / "two", executor="sync")
    got = tamis.open_manifest(tmp_path / "two").select["sample_id"].to_pylist()
    assert got[:10] == ids[10:20]
    assert set(got) <= set(ids[10:60])
    assert len(got) == 30


def test_a_changed_list_is_another_run(recipe, write, table, tmp_path):
    ids = table["id"].to_pylist()
    path = recipe(write(table), [{"kind": "pick", "ids": "l.txt"}], max_bad_fraction=0.01)
    found = []
    for some in (ids[10:20], ids[10:20], ids[20:10:-1]):
        text_list(tmp_path / "l.txt", some)
        found.append(tamis.run(path, tmp_path / "out", executor="sync"))
        assert picked(tmp_path / "out") == some
    assert [bool(result.ran) for result in found] == [True, False, True]


# --- lists that are refused, and how they are read ---


def save(path, array):
    np.save(path, array)
    return path


BAD = {
    "twice": (lambda f: text_list(f / "l.txt", ["a", "b", "a"]), "1 ids are there more than once: 'a'"),
    "empty": (lambda f: text_list(f / "l.txt", []), "the list is empty"),
    "not UTF-8": (lambda f: (f / "l.txt").write_bytes(b"\xff") and f / "l.txt", "one a line in UTF-8"),
    "numbers": (lambda f: save(f / "l.npy", np.arange(3)), "uids are one row of pairs of uint64"),
    "pairs of others": (lambda f: save(f / "l.npy", np.zeros(3, "i8,u8")), "uids are one row of pairs of uint64"),
    "objects": (lambda f: save(f / "l.npy", np.array([{}], object)), "not a whole, valid npy file"),
    "half": (lambda f: (f / "l.npy").write_bytes(b"\x93NUMPY") and f / "l.npy", "not a whole, valid npy file"),
    "nothing": (lambda f: (f / "l.npy").write_bytes(b"") or f / "l.npy", "not a whole, valid npy file"),
    "uids twice": (lambda f: save(f / "l.npy", np.zeros(3, "u8,u8")), "1 ids are there more than once"),
    "nulls": (lambda f: parquet(f, {"id": ["a", None]}), "1 ids in column 'id' are null"),
    "several columns": (lambda f: parquet(f, {"x": ["a"], "y": ["b"]}), "Name one of x, y"),
    "lists": (lambda f: parquet(f, {"x": [["a"]]}), "which are no ids"),
}


def parquet(folder, columns, name="l.parquet"):
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


@pytest.mark.parametrize("name", BAD)
def test_bad_lists_are_refused(name, tmp_path):
    make, message = BAD[name]
    with pytest.raises(DataError, match=message):
        read_ids(make(tmp_path))


def test_how_lists_are_read(tmp_path):
    def ids(path, column="auto"):
        return read_ids(path, column).ids.to_pylist()

    (tmp_path / "l").write_bytes("\ufeffa b\r\n\r\n é ".encode())
    assert ids(tmp_path / "l") == ["a b", "", " é "]
    assert ids(parquet(tmp_path, {"x": [7, 1]})) == ["7", "1"]
    assert ids(parquet(tmp_path, {"sample_id": ["s"], "tamis_id": ["t"], "z": [1]})) == ["t"]
    assert ids(parquet(tmp_path, {"sample_id": ["s"], "tamis_id": ["t"], "z": [1]}), "z") == ["1"]
    big = np.array([(2**64 - 1, 0), (0, 10)], "u8,u8")
    assert ids(save(tmp_path / "l.npy", big)) == ["f" * 16 + "0" * 16, "0" * 31 + "a"]
    assert ids(save(tmp_path / "l.npy", big.astype(">u8,>u8"))) == ["f" * 16 + "0" * 16, "0" * 31 + "a"]


def test_a_list_that_is_not_there(bring, tmp_path):
    assert "no file of ids at" in bring(tmp_path / "none.txt", code=2)
    os.mkfifo(tmp_path / "pipe")
    assert "no file of ids at" in bring(tmp_path / "pipe", code=2)
    with pytest.raises(RecipeError, match="remote address"):
        tamis.run(
            {"name": "x", "dataset": {"path": "d", "text": "t"}, "stages": [{"kind": "pick", "ids": "s3://b/l"}]},
            tmp_path,
        )


def test_a_dataset_without_content_is_refused(tmp_path, cli, write, table):
    listed = text_list(tmp_path / "l.txt", ["a"])
    result = cli("import", listed, "--data", write(table), "--id", "id", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "name the column that holds the samples" in result.stderr

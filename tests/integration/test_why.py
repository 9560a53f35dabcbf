"""`tamis why`: who stands for a row, which kept row is nearest to it, and their texts."""

import itertools
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.manifests.schema import DECISIONS
from tamis.pipelines.run import read_run, recorded

N = 150
HOSTILE_ID = "r\x1b[2J\n9"
HOSTILE_TEXT = "topic0word1 \x1b]0;title\x07\u202e topic0word2\r" + " topic0word3" * 100
STAGES = [
    {"kind": "embed", "encoder": "lsa", "dim": 12},
    {"kind": "dedup", "eps": 0.05},
    {"kind": "score", "method": "proxy", "folds": 2},
    {"kind": "prune", "method": "loss", "drop_highest": 0.1},
    {"kind": "embed", "encoder": "lsa", "dim": 6},
    {"kind": "select", "method": "facility_location", "budget": 0.2},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_columns):
    """A folder with rows.parquet and the run `out`; rows 20 and 21 are alike, 5 is the same as 4, 30 is bad."""
    folder = tmp_path_factory.mktemp("why")
    columns = make_columns(N)
    columns["id"][9], columns["text"][9] = HOSTILE_ID, HOSTILE_TEXT
    columns["text"][5] = columns["text"][4]
    columns["text"][20] = columns["text"][21] + " " + columns["text"][21].split()[0]
    columns["text"][30] = None
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    recipe = {
        "name": "why",
        "seed": 3,
        "block_rows": 40,
        "max_bad_fraction": 0.01,
        "dataset": {"path": str(folder / "rows.parquet"), "id": "id", "text": "text", "label": "label"},
        "stages": STAGES,
    }
    tamis.run(recipe, folder / "out", executor="sync")
    return folder


@pytest.fixture
def why(place, cli):
    def ask(*arguments, run=None):
        run = place / "out" if run is None else run
        result = cli("why", *arguments, "--run", run, "--json")
        assert result.exit_code == 0, result.stderr
        text = cli("why", *arguments, "--run", run)
        assert all(character.isprintable() or character == "\n" for character in text.stdout)
        return json.loads(result.stdout), text.stdout

    return ask


def rows_by_decision(place):
    rows = {}
    for row in tamis.open_manifest(place / "out").audit.to_pylist():
        rows.setdefault(list(DECISIONS)[row["decision"]], []).append(row["row"])
    return rows


def vectors(place, stage):
    """float64[n, d] of one embed stage, read from its files; NaN where there is none."""
    out, start = None, 0
    _, artifacts = recorded(place / "out", read_run(place / "out"))
    for artifact in artifacts.values():
        if artifact.name.startswith(f"{stage}/block/"):
            table = pa.ipc.open_file(place / "out" / "work" / artifact.file).read_all()
            matrix = np.array(table["vector"].to_pylist(), np.float64)
            out = np.full((N, matrix.shape[1]), np.nan) if out is None else out
            out[table["row"].to_numpy() + start] = matrix
            start += artifact.facts["block_rows"]
    return out


def test_the_nearest_kept_row(place, why):
    rows = rows_by_decision(place)
    late, early = vectors(place, "05-embed"), vectors(place, "01-embed")
    kept = np.array(rows["kept"])
    asked = [(row, late, "05-embed") for row in rows["not_in_budget"][:12]]
    # What had left before the second embed stage has a vector of the first one only.
    asked += [(row, early, "01-embed") for row in rows["pruned"][:4]]
    for row, X, stage in asked:
        facts, text = why("--row", row)
        near = facts["nearest_kept"]
        cosines = X[kept] @ X[row]
        assert near["row"] == kept[np.argmax(cosines)]
        assert near["cosine"] == pytest.approx(cosines.max(), abs=1e-12)
        assert (near["embeddings"], near["decision"], facts["stands_for_it"]) == (stage, "kept", [])
        assert f"nearest kept row, cosine {near['cosine']:.4f} in {stage}:\n  {near['sample_id']} (row " in text


def test_equally_near_rows_give_the_lowest(place):
    from tamis.pipelines.finished import finished_of
    from tamis.reports.nearest import nearest_kept

    manifest = tamis.open_manifest(place / "out")
    # Rows 4 and 5 are the same, so that only the first stage has both.
    gone = next(row for row in (4, 5) if manifest.explain_row(row)["decision"] == "exact_dup")
    found = nearest_kept(finished_of(manifest), gone, np.array([130, 5, 4]))
    assert found == {"row": 4, "cosine": pytest.approx(1, abs=1e-6), "embeddings": "01-embed"}
    assert nearest_kept(finished_of(manifest), 30, np.array([1])) is None


def test_a_chain_that_ends_at_a_kept_row_needs_no_nearest(place, why):
    rows = rows_by_decision(place)
    for row in rows["exact_dup"] + rows["near_dup"] + rows["kept"][:2]:
        facts, text = why("--row", row)
        chain = [facts["sample"], *facts["stands_for_it"]]
        for one, other in itertools.pairwise(chain):
            assert one["kept_row"] == other["row"]
        assert (facts["nearest_kept"] is None) == (chain[-1]["decision"] == "kept")
        assert ("nearest kept row" in text) == (chain[-1]["decision"] != "kept")


def test_without_a_vector_it_says_so(place, why, tmp_path):
    facts, text = why("r0030")
    assert facts["nearest_kept"] is None
    assert "no vector of this row" in facts["note"]
    assert facts["note"] in text
    shutil.copytree(place / "out" / "manifest", tmp_path / "copied")
    row = rows_by_decision(place)["not_in_budget"][0]
    facts, _ = why("--row", row, run=tmp_path / "copied")
    assert "holds no run" in facts["note"]
    shutil.copytree(place / "out", tmp_path / "emptied")
    shutil.rmtree(tmp_path / "emptied" / "work")
    facts, _ = why("--row", row, run=tmp_path / "emptied")
    assert "no vector of this row" in facts["note"]
    assert facts["sample"]["decision"] == "not_in_budget"


def test_another_run_in_the_folder_lends_no_vectors(place, why, tmp_path):
    shutil.copytree(place / "out", tmp_path / "out")
    described = read_run(place / "out")
    tamis.run(described["recipe"], tmp_path / "out", executor="sync", overrides=("embed[1].dim=5", "select.budget=9"))
    row = rows_by_decision(place)["not_in_budget"][0]
    facts, _ = why("--row", row, run=tmp_path / "out" / "manifest" / "v000001.json")
    assert facts["nearest_kept"]["embeddings"] == "01-embed"  # the second is not what this version was made with
    facts, _ = why("--row", row, run=tmp_path / "out")
    assert facts["nearest_kept"]["embeddings"] == "05-embed"


def test_texts(place, why):
    texts = pq.read_table(place / "rows.parquet")["text"].to_pylist()
    rows = rows_by_decision(place)
    for row in (rows["not_in_budget"][0], rows["exact_dup"][0], 30, 9):
        facts, text = why("--row", row, "--text")
        for item in (facts["sample"], *facts["stands_for_it"], facts["nearest_kept"]):
            if item is not None:
                assert item["text"] == texts[item["row"]]
        if row == 30:
            assert "  (no text)\n" in text
    facts, text = why(HOSTILE_ID, "--text")
    assert facts["sample"]["text"] == HOSTILE_TEXT
    assert text.startswith(r"r\x1b[2J\n9 (row 9): ")
    assert r"topic0word1 \x1b]0;title\x07\u202e topic0word2\r topic0word3" in text
    assert f"... ({len(HOSTILE_TEXT):,} characters)" in text
    assert max(map(len, text.splitlines())) < 500
    facts, _ = why("r0001")
    assert "text" not in facts["sample"]


def test_texts_of_a_dataset_that_moved(place, why, cli, tmp_path):
    shutil.copytree(place / "out" / "manifest", tmp_path / "m")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(place / "rows.parquet", tmp_path / "elsewhere" / "rows.parquet")
    result = cli("why", "r0001", "--run", tmp_path / "m", "--text")
    assert result.exit_code == 6
    assert "give it with --data" in result.stderr
    facts, _ = why("r0001", "--text", "--data", tmp_path / "elsewhere" / "rows.parquet", run=tmp_path / "m")
    assert facts["sample"]["text"] == pq.read_table(place / "rows.parquet")["text"][1].as_py()


def test_data_without_texts(tmp_path, cli, make_columns):
    rng = np.random.default_rng(0)
    columns = make_columns(30) | {"v": list(rng.standard_normal((30, 4)))}
    pq.write_table(pa.table({name: columns[name] for name in ("id", "v", "label")}), tmp_path / "v.parquet")
    recipe = {
        "name": "v",
        "dataset": {"path": str(tmp_path / "v.parquet"), "id": "id", "vectors": "v", "label": "label"},
        "stages": [{"kind": "select", "method": "random", "budget": 9}],
    }
    tamis.run(recipe, tmp_path / "out", executor="sync")
    result = cli("why", "r0001", "--run", tmp_path / "out", "--text")
    assert result.exit_code == 2
    assert "no column of texts to show; its columns are id: id, " in result.stderr


def test_similar_ids_are_suggested(place, cli):
    for wanted, near in (("r102", "'r0102'"), ("0042", "'r0042'"), ("R0042", "'r0042'"), ("r00422", "'r0042'")):
        result = cli("why", wanted, "--run", place / "out")
        assert result.exit_code == 3
        assert near in result.stderr.partition("the nearest ids are ")[2]
    result = cli("why", "r\x1b[2J9", "--run", place / "out")
    assert r"'r\x1b[2J9'" in result.stderr
    assert "\x1b" not in result.stderr

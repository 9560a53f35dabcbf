"""`tamis dedup-threshold` decides as the stage would, row by row, from the pairs that are stored."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.errors import OutputError, RecipeError
from tamis.manifests.schema import DECISIONS
from tamis.pipelines.run import read_run, recorded
from tamis.pipelines.stages import dedup
from tamis.pipelines.state import KEPT
from tamis.pipelines.threshold import stored_pairs

N = 240
EMBED = {"kind": "embed", "encoder": "lsa", "dim": 10}
DEDUP = {"kind": "dedup", "eps": 0.05, "floor": 0.8, "n_clusters": 3}
SELECT = {"kind": "select", "method": "random", "budget": 20}


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_columns):
    columns = make_columns(N)
    rng = np.random.default_rng(2)
    for row in range(40, 120, 2):  # each with a neighbour at some distance
        words = columns["text"][row - 1].split()
        columns["text"][row] = " ".join([*words, *rng.choice(words, int(rng.integers(0, 5)))])
    columns["id"][40], columns["id"][41] = "r\x1b[31m40", "r\n41"
    columns["text"][41] = columns["text"][40] + " \x1b[5m"
    path = tmp_path_factory.mktemp("data") / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def recipe_of(data, *stages):
    return {
        "name": "threshold",
        "seed": 3,
        "block_rows": 50,
        "dataset": {"path": str(data), "id": "id", "text": "text", "label": "label"},
        "stages": list(stages),
    }


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    tamis.run(recipe_of(data, EMBED, DEDUP, SELECT), out, executor="sync")
    return out


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def by_row(decided):
    rows = decided.filter(pa.compute.not_equal(decided["decision"], KEPT)).to_pylist()
    return {row["row"]: (row["kept_row"], row["score"], row["reason"]) for row in rows}


def in_the_ledger(out, stage="02-dedup"):
    manifest = tamis.open_manifest(out)
    return {
        row["row"]: (row["kept_row"], row["score"], manifest.reasons[row["reason"]])
        for row in manifest.audit.to_pylist()
        if row["decision"] == DECISIONS["near_dup"] and manifest.stages[row["stage"]]["name"] == stage
    }


@pytest.mark.parametrize("which_to_keep", ["hard", "easy", "random"])
@pytest.mark.parametrize("pairs_per_row", [32, 1])
def test_it_decides_as_the_stage_would(data, tmp_path, monkeypatch, which_to_keep, pairs_per_row):
    monkeypatch.setattr(dedup, "PAIRS_PER_ROW", pairs_per_row)
    recipe = recipe_of(data, EMBED, {**DEDUP, "which_to_keep": which_to_keep}, SELECT)
    tamis.run(recipe, tmp_path / "out", executor="sync")
    pairs = stored_pairs(tmp_path / "out")
    assert (pairs.counts()["rows_without_stored_pairs"] > 0) == (pairs_per_row == 1)
    decided = {eps: by_row(pairs.decide(eps)) for eps in (0.004, 0.05, 0.1234567, 0.2)}
    assert decided[0.05] == in_the_ledger(tmp_path / "out")
    assert len(set(map(len, decided.values()))) == 4
    for eps, rows in decided.items():
        again = tamis.run(recipe, tmp_path / "out", executor="sync", overrides=(f"dedup.eps={eps!r}",))
        # The command that it names computes no pairs.
        assert all(name.split("/")[0] > "02-dedup" or name == "02-dedup/near" for name in again.ran)
        assert rows == in_the_ledger(tmp_path / "out")


def test_rows_that_were_kept_before_stay(data, finished, tmp_path):
    select = {"kind": "select", "method": "facility_location", "budget": 40}
    tamis.run(recipe_of(data, EMBED, {**DEDUP, "eps": 0.01}, select), tmp_path / "one", executor="sync")
    going_on = {**select, "budget": 41, "continue_from": str(tmp_path / "one")}
    recipe = recipe_of(data, EMBED, DEDUP, going_on)
    tamis.run(recipe, tmp_path / "two", executor="sync")
    decided = by_row(stored_pairs(tmp_path / "two").decide(0.15))
    kept = set(tamis.open_manifest(tmp_path / "one").select["row"].to_pylist())
    assert decided.keys().isdisjoint(kept)
    assert not by_row(stored_pairs(finished).decide(0.15)).keys().isdisjoint(kept)
    tamis.run(recipe, tmp_path / "two", executor="sync", overrides=("dedup.eps=0.15",))
    assert decided == in_the_ledger(tmp_path / "two")


def test_the_table(finished, cli):
    result = cli("dedup-threshold", finished, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    values = [choice["eps"] for choice in facts["choices"]]
    assert values == sorted({*(round(0.02 * step, 12) for step in range(1, 11)), 0.05})
    assert (facts["eps"], facts["floor"], facts["largest_eps"]) == (0.05, 0.8, 0.2)
    manifest = tamis.open_manifest(finished)
    assert facts["rows"] + facts["exact_duplicates"] == N
    for choice in facts["choices"]:
        assert choice["removed"] + choice["left"] == facts["rows"]
        assert choice["borderline"] == []
    (own,) = [choice for choice in facts["choices"] if choice["eps"] == 0.05]
    assert own["removed"] == manifest.record["counts"]["near_dup"] > 0
    text = cli("dedup-threshold", finished).stdout
    assert text.count("the recipe's") == 1
    assert f"to apply: tamis run RECIPE --out {finished} --set dedup.eps=E" in text
    assert "computes no pairs again" in text


def test_the_pairs_about_the_cut(finished, data, cli):
    """Against all cosines in float64; with three clusters and four probes every pair is looked at."""
    result = cli("dedup-threshold", finished, "--eps", 0.1, "--eps", 0.03, "--pairs", 12, "--text", "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert [choice["eps"] for choice in facts["choices"]] == [0.1, 0.03]
    _, artifacts = recorded(finished, read_run(finished))
    blocks = [one for one in artifacts.values() if one.task == "embed.block"]
    tables = [pa.ipc.open_file(finished / "work" / one.file).read_all() for one in blocks]
    X = np.concatenate([np.array(table["vector"].to_pylist(), np.float64) for table in tables])
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    audit = tamis.open_manifest(finished).audit.to_pylist()
    there = [row["row"] for row in audit if row["decision"] != DECISIONS["exact_dup"]]
    assert len(X) == N
    cosines = [float(X[i] @ X[j]) for place, i in enumerate(there) for j in there[place + 1 :]]
    source = pq.read_table(data).to_pylist()
    for choice in facts["choices"]:
        cut = 1 - choice["eps"]
        assert len(choice["borderline"]) == 12
        found = [pair["cosine"] for pair in choice["borderline"]]
        assert found == sorted(found, reverse=True)
        nearest = sorted((one for one in cosines if one >= 0.8), key=lambda one: abs(one - cut))[:12]
        assert found == pytest.approx(sorted(nearest, reverse=True), abs=1e-6)
        decided = by_row(stored_pairs(finished).decide(choice["eps"]))
        for pair in choice["borderline"]:
            i, j = (side["row"] for side in pair["rows"])
            assert pair["cosine"] == pytest.approx(X[i] @ X[j], abs=1e-6)
            for side in pair["rows"]:
                assert (side["sample_id"], side["text"]) == (source[side["row"]]["id"], source[side["row"]]["text"])
                assert side["kept_row"] == decided.get(side["row"], (side["row"],))[0]
                assert side["kept_sample_id"] == source[side["kept_row"]]["id"]
            # Of two near duplicates at least one goes.
            assert pair["cosine"] < cut or any(side["kept_row"] != side["row"] for side in pair["rows"])


def test_ids_and_texts_are_inert(finished, cli):
    result = cli("dedup-threshold", finished, "--eps", 0.001, "--pairs", 200, "--text")
    assert result.exit_code == 0, result.stderr
    assert all(character.isprintable() or character == "\n" for character in result.stdout)
    assert r"r\x1b[31m40 (row 40)" in result.stdout
    assert r"r\n41 (row 41)" in result.stdout
    assert r"\x1b[5m" in result.stdout
    plain = cli("dedup-threshold", finished, "--eps", 0.001, "--pairs", 200).stdout
    assert "topic0word" not in plain
    assert "not near enough" in plain


@pytest.mark.parametrize("eps", [0.3, 0.2001, 0, -0.1, 1, "nan", "inf"])
def test_an_eps_that_the_pairs_are_not_enough_for(finished, cli, eps):
    result = cli("dedup-threshold", finished, "--eps", eps)
    assert result.exit_code == 2
    assert (
        "02-dedup stored pairs from its floor on, cosine 0.8, so that eps may be above 0 and up to 0.2" in result.stderr
    )
    assert ("--set dedup.floor=" in result.stderr) == (eps in (0.3, 0.2001))
    assert result.stdout == ""


def test_runs_without_pairs(data, tmp_path, cli):
    tamis.run(recipe_of(data, {"kind": "dedup", "eps": 0.0}), tmp_path / "exact", executor="sync")
    with pytest.raises(RecipeError, match=r"01-dedup of .* has eps 0, exact duplicates only"):
        stored_pairs(tmp_path / "exact")
    tamis.run(recipe_of(data, SELECT), tmp_path / "none", executor="sync")
    with pytest.raises(RecipeError, match="has no dedup stage"):
        stored_pairs(tmp_path / "none")


def test_several_stages(data, tmp_path, cli):
    stages = [{"kind": "dedup", "eps": 0.0}, EMBED, DEDUP, {**EMBED, "dim": 6}, {**DEDUP, "eps": 0.1}, SELECT]
    out = tmp_path / "out"
    tamis.run(recipe_of(data, *stages), out, executor="sync", limit=200)
    for label in (None, "01-dedup", "09-dedup"):
        with pytest.raises(RecipeError, match="with pairs are 03-dedup, 05-dedup"):
            stored_pairs(out, label)
    facts = json.loads(cli("dedup-threshold", out, "--stage", "05-dedup", "--eps", 0.15, "--json").stdout)
    assert facts["apply"] == f"tamis run RECIPE --out {out} --limit 200 --set 'dedup[2].eps=0.15'"
    rows = by_row(stored_pairs(out, "05-dedup").decide(0.15))
    assert by_row(stored_pairs(out, "03-dedup").decide(0.05)) == in_the_ledger(out, "03-dedup")
    tamis.run(recipe_of(data, *stages), out, executor="sync", limit=200, overrides=("dedup[2].eps=0.15",))
    assert rows == in_the_ledger(out, "05-dedup")
    assert facts["choices"][0]["removed"] == len(rows)


def test_a_run_that_works_elsewhere(data, tmp_path, cli):
    work = tmp_path / "elsewhere"
    tamis.run(recipe_of(data, EMBED, DEDUP, SELECT), tmp_path / "out", executor="sync", work=work)
    result = cli("dedup-threshold", tmp_path / "out", "--eps", 0.1)
    assert f"to apply: tamis run RECIPE --out {tmp_path / 'out'} --work {work} --set dedup.eps=0.1" in result.stdout
    shutil.rmtree(work)
    result = cli("dedup-threshold", tmp_path / "out")
    assert result.exit_code == 5
    assert f"files of 00-ingest, 01-embed, 02-dedup are gone from {work}" in result.stderr


@pytest.mark.parametrize("task", ["dedup.pairs", "embed.block", "ingest.index"])
def test_files_that_are_gone_or_damaged(copied, cli, task):
    path = next((copied / "work" / task).glob("*.arrow"))
    data = bytearray(path.read_bytes())
    if task == "dedup.pairs":
        data[-40] ^= 1
        path.write_bytes(data)
        with pytest.raises(OutputError, match=r"02-dedup/pairs/00000 is damaged.*makes again what it needs"):
            stored_pairs(copied).decide(0.1)
    path.unlink()
    with pytest.raises(OutputError, match=r"files of .* are gone from .*makes again what it needs"):
        stored_pairs(copied)
    assert cli("dedup-threshold", copied).exit_code == 5

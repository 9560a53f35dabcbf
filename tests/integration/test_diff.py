"""`tamis diff` on runs, against counting and brute force over what lies in their folders."""

import collections
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.manifests.schema import DECISIONS
from tamis.pipelines.finished import finished_of
from tamis.pipelines.run import read_run, recorded
from tamis.reports import diff as reports_diff
from tamis.reports import nearest
from tamis.reports.nearest import coverage

N = 180
HOSTILE = "r\x1b[31m\x9b1m\r\n\u202e7"
EMBED = {"kind": "embed", "encoder": "lsa", "dim": 12}
CLUSTER = {"kind": "cluster", "n_clusters": 5}
SELECT = {"kind": "select", "method": "facility_location", "budget": 0.3, "per": "label"}
STAGES = [EMBED, {"kind": "dedup", "eps": 0.05}, CLUSTER, {"kind": "score", "method": "proxy", "folds": 2}, SELECT]
STAGES += [{"kind": "reweight"}]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_columns):
    """`first`, of two versions; `grown`, on another version of the data, embedded and clustered otherwise."""
    folder = tmp_path_factory.mktemp("runs")
    columns = make_columns(N)
    columns["id"][7] = HOSTILE
    columns["text"][9] = columns["text"][8]
    columns["text"][20] = columns["text"][21] + " " + columns["text"][21].split()[0]
    old = pa.table(columns)
    pq.write_table(old, folder / "old.parquet")
    others = make_columns(40, seed=1)
    others["id"] = [f"n{row}" for row in range(40)]
    kept = old.take([row for row in range(N - 1, -1, -1) if row % 9])  # a ninth is gone, the order is another
    texts = kept["text"].to_pylist()
    texts[3] += " more"
    grown = pa.concat_tables([kept.set_column(1, "text", pa.array(texts)), pa.table(others)])
    pq.write_table(grown, folder / "new.parquet")

    def run(name, data, stages, seed=3):
        recipe = {
            "name": name,
            "seed": seed,
            "block_rows": 50,
            "dataset": {"path": str(folder / data), "id": "id", "text": "text", "label": "label"},
            "stages": stages,
        }
        tamis.run(recipe, folder / name, executor="sync")

    run("first", "old.parquet", STAGES)
    run("first", "old.parquet", [*STAGES[:-2], {**SELECT, "budget": 0.1}, STAGES[-1]])
    run("grown", "new.parquet", [{**EMBED, "dim": 8}, {**CLUSTER, "n_clusters": 3}, SELECT])
    for seed in range(3):
        run(f"seed{seed}", "old.parquet", [{"kind": "select", "method": "random", "budget": 0.4 + seed / 10}], seed)
    run("all", "old.parquet", [{"kind": "select", "method": "random", "budget": 1.0}])
    return folder


@pytest.fixture
def diff(runs, cli):
    def compare(*names, options=()):
        result = cli("diff", *(runs / name for name in names), *options, "--json")
        assert result.exit_code == 0, result.stderr
        text = cli("diff", *(runs / name for name in names), *options)
        assert text.exit_code == 0, text.stderr
        assert all(character.isprintable() or character == "\n" for character in text.stdout)
        return json.loads(result.stdout), text.stdout

    return compare


def kept_ids(path):
    return set(tamis.open_manifest(path).select["sample_id"].to_pylist())


def node_tables(folder, task):
    """What the nodes of a task made, read without the code under test."""
    _, artifacts = recorded(folder, read_run(folder))
    mine = [artifact for artifact in artifacts.values() if artifact.task == task]
    return [(artifact, pa.ipc.open_file(folder / "work" / artifact.file).read_all()) for artifact in mine]


def vectors(folder):
    """float64[n, d] of all rows; NaN where there is none."""
    blocks, start = node_tables(folder, "embed.block"), 0
    n = sum(artifact.facts["block_rows"] for artifact, _ in blocks)
    out = np.full((n, blocks[0][0].facts["dim"]), np.nan)
    for artifact, table in blocks:
        out[table["row"].to_numpy() + start] = np.array(table["vector"].to_pylist(), np.float64)
        start += artifact.facts["block_rows"]
    return out


def check_coverage(found, X, kept):
    distance = 1 - (X @ X[sorted(kept)].T).max(axis=1)
    assert found["kept"] == len(kept)
    assert found["mean"] == pytest.approx(distance.mean(), abs=2e-6)
    assert found["p95"] == pytest.approx(np.percentile(distance, 95), abs=2e-6)


def check_shift(found, a, b):
    counts = [collections.Counter(side) for side in (a, b)]
    assert {group["name"]: (group["a"], group["b"]) for group in found["groups"]} == {
        name: (counts[0][name], counts[1][name]) for name in set(a) | set(b)
    }
    distance = sum(abs(counts[0][name] / len(a) - counts[1][name] / len(b)) for name in set(a) | set(b)) / 2
    assert found["distance"] == pytest.approx(distance)


def test_two_versions_of_one_run(runs, diff):
    facts, text = diff("first/manifest/v000001.json", "first")
    one, two = (tamis.open_manifest(runs / "first", version).select for version in (1, 2))
    assert [subset["version"] for subset in facts["subsets"]] == [1, 2]
    a, b = (set(select["row"].to_pylist()) for select in (one, two))
    assert (len(a), len(b)) == (54, 18)
    assert facts["rows"] == {"both": N, "only_a": 0, "only_b": 0, "changed": 0}
    assert (facts["kept"]["both"], facts["kept"]["only_a"]) == (len(a & b), len(a - b))
    assert facts["kept"]["jaccard"] == len(a & b) / len(a | b)
    (went,) = facts["went"]
    assert went["rows"] == len(a - b)
    assert (went["stage"], went["decision"], went["reason"]) == (
        "05-select", "not_in_budget", "not in the budget of 18 (facility_location)",
    )  # fmt: skip
    labels = pq.read_table(runs / "old.parquet")["label"].to_pylist()
    check_shift(facts["shares"]["class"], [labels[row] for row in a], [labels[row] for row in b])
    check_shift(facts["shares"]["cluster"], one["cluster"].to_pylist(), two["cluster"].to_pylist())
    check_shift(facts["shares"]["source"], ["old.parquet"] * len(a), ["old.parquet"] * len(b))
    coverage = facts["coverage"]
    assert (coverage["of"], coverage["embeddings"], coverage["rows"], coverage["measured"]) == ("A", "01-embed", N, N)
    X = vectors(runs / "first")
    check_coverage(coverage["a"], X, a)
    check_coverage(coverage["b"], X, b)
    weights = [dict(zip(t["row"].to_pylist(), t["weight"].to_pylist(), strict=True)) for t in (one, two)]
    changes = [abs(weights[0][row] - weights[1][row]) for row in a & b]
    assert facts["weights"]["max_change"] == max(changes) > 0
    assert facts["notes"] == []
    assert "kept by A, not by B" in text
    assert f"{len(a - b):>11,}  05-select: not in budget: not in the budget of 18" in text


def test_another_version_of_the_data(runs, diff):
    facts, text = diff("first", "grown", options=("--rows", 2))
    old, new = (pq.read_table(runs / name).to_pylist() for name in ("old.parquet", "new.parquet"))
    contents = [{(row["id"], row["text"], row["label"]) for row in rows} for rows in (old, new)]
    both = contents[0] & contents[1]
    assert facts["rows"] == {"both": len(both), "only_a": N - len(both), "only_b": len(new) - len(both), "changed": 1}
    a, b = tamis.open_manifest(runs / "first"), tamis.open_manifest(runs / "grown")
    known = {row[0] for row in both}
    ids = [set(manifest.select["sample_id"].to_pylist()) for manifest in (a, b)]
    assert facts["kept"]["both"] == len(ids[0] & ids[1] & known)
    # What A says of those that B has: by its own ledger, row by row.
    ledger = {row["sample_id"]: row for row in a.audit.to_pylist()}
    wanted = collections.Counter(
        (a.stages[ledger[name]["stage"]]["name"], list(DECISIONS)[ledger[name]["decision"]])
        if name in known
        else (None, "absent")
        for name in ids[1] - (ids[0] & known)
    )
    said = collections.Counter()
    for group in facts["came"]:
        said[group["stage"], group["decision"]] += group["rows"]
        assert len(group["examples"]) == min(2, group["rows"])
        for row in group["examples"]:
            assert row["sample_id"] in ids[1]
            assert new[row["row"]]["id"] == row["sample_id"]
    assert said == wanted
    assert wanted[None, "absent"] > 0
    # Other clusters: each of A's rows counts where B's clustering puts it, if B has it.
    (_, clusters) = node_tables(runs / "grown", "cluster.gather")[0]
    of_row = dict(zip(clusters["row"].to_pylist(), clusters["cluster"].to_pylist(), strict=True))
    place = {row["id"]: number for number, row in enumerate(new) if row["id"] in known}
    of_a = [of_row[place[name]] for name in ids[0] if name in place]
    check_shift(facts["shares"]["cluster"], of_a, b.select["cluster"].to_pylist())
    assert facts["shares"]["cluster"]["unknown_a"] == len(ids[0]) - len(of_a) > 0
    assert facts["notes"] == ["A and B were clustered apart: both are compared by B's clusters"]
    # A's vectors: what of B is not in A's data cannot count.
    assert facts["coverage"]["of"] == "A"
    row_of = {row["id"]: number for number, row in enumerate(old)}
    check_coverage(facts["coverage"]["a"], vectors(runs / "first"), a.select["row"].to_pylist())
    check_coverage(facts["coverage"]["b"], vectors(runs / "first"), [row_of[name] for name in ids[1] & known])
    assert f"other rows to choose from: {len(both)} are in both datasets, " in text
    assert "absent: not in the dataset" in text
    # The other way round, A is what has been B.
    turned, _ = diff("grown", "first")
    assert turned["kept"]["jaccard"] == facts["kept"]["jaccard"]
    assert [group["rows"] for group in turned["went"]] == [group["rows"] for group in facts["came"]]
    assert turned["coverage"]["embeddings"] == "01-embed"
    assert turned["shares"]["class"]["distance"] == pytest.approx(facts["shares"]["class"]["distance"])


def test_a_hostile_id_is_shown_inertly(runs, diff):
    facts, text = diff("first", "all", options=("--rows", N))
    came = {row["sample_id"] for group in facts["came"] for row in group["examples"]}
    assert came == kept_ids(runs / "all") - kept_ids(runs / "first")
    assert HOSTILE in came
    assert r"r\x1b[31m\x9b1m\r\n\u202e7 (row 7)" in text


def test_copied_manifests_without_their_runs(runs, tmp_path, cli):
    for name in ("first", "grown"):
        shutil.copytree(runs / name / "manifest", tmp_path / name)
    result = cli("diff", tmp_path / "first", tmp_path / "grown", "--json")
    facts = json.loads(result.stdout)
    assert facts["coverage"] is None
    assert facts["shares"]["class"] is None
    assert facts["kept"]["both"] > 0
    b = tamis.open_manifest(runs / "grown").select
    cluster = dict(zip(b["sample_id"].to_pylist(), b["cluster"].to_pylist(), strict=True))
    assert facts["shares"]["cluster"]["unknown_a"] == 18 - facts["kept"]["both"]
    assert sum(group["b"] for group in facts["shares"]["cluster"]["groups"]) == len(cluster)
    assert sum("working folder" in note for note in facts["notes"]) == 2
    text = cli("diff", tmp_path / "first", tmp_path / "grown").stdout
    assert "coverage: no vectors at hand" in text
    assert "note: the working folder of A is not at hand" in text
    # One of the two runs is enough for the classes of both.
    facts = json.loads(cli("diff", tmp_path / "first", runs / "first", "--json").stdout)
    assert facts["shares"]["class"]["distance"] == 0
    assert facts["coverage"]["of"] == "B"


def test_a_damaged_working_file_is_noted(runs, tmp_path, cli):
    shutil.copytree(runs / "first", tmp_path / "first")
    damaged = next((tmp_path / "first" / "work" / "embed.block").glob("*.arrow"))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 4
    damaged.write_bytes(data)
    result = cli("diff", tmp_path / "first", tmp_path / "first" / "manifest" / "v000001.json", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["coverage"] is None
    assert facts["shares"]["class"]["distance"] is not None
    assert len(facts["notes"]) == 2
    assert all("is damaged: its sha256" in note and "makes again what it needs" in note for note in facts["notes"])


@pytest.mark.parametrize("most", [{"_MOST_PAIRS": 18 * 61}, {"_MOST_MEASURED": 61}])
def test_only_a_sample_is_measured_of_very_many_pairs(runs, diff, monkeypatch, most):
    for name, value in most.items():
        monkeypatch.setattr(reports_diff, name, value)
    facts, text = diff("first", "first")
    assert (facts["coverage"]["rows"], facts["coverage"]["measured"]) == (N, 61)
    assert f"({N} rows, 61 of them measured" in text
    kept = tamis.open_manifest(runs / "first").select["row"].to_numpy()
    X = vectors(runs / "first")
    distance = 1 - (X[np.arange(61) * N // 61] @ X[kept].T).max(axis=1)
    assert facts["coverage"]["a"] == facts["coverage"]["b"]
    assert facts["coverage"]["a"]["mean"] == pytest.approx(distance.mean(), abs=2e-6)


def test_coverage_of_nothing_and_of_many_sets(runs, monkeypatch):
    run = finished_of(tamis.open_manifest(runs / "first"))
    rng = np.random.default_rng(0)
    subsets = [rng.choice(N, size, replace=False) for size in (1, 30, 30, 90)]
    monkeypatch.setattr(nearest, "_TILE", (3, 7))
    found = coverage(run, run.last("embed"), np.arange(N), [np.empty(0, np.int64), *subsets])
    assert found[0] == {"kept": 0, "mean": None, "p95": None}
    for one, subset in zip(found[1:], subsets, strict=True):
        check_coverage(one, vectors(runs / "first"), subset)


def test_stability_over_seeds(runs, diff):
    names = ["seed0", "seed1", "seed2"]
    facts, text = diff(*names)
    sets = [kept_ids(runs / name) for name in names]
    for i, j in itertools.product(range(3), repeat=2):
        assert facts["jaccard"][i][j] == len(sets[i] & sets[j]) / len(sets[i] | sets[j])
    a, b = len(sets[0]), len(sets[1])
    assert facts["expected_jaccard"][0][1] == pytest.approx((a * b / N) / (a + b - a * b / N))
    assert (facts["kept_by_all"], facts["kept_by_any"]) == (len(set.intersection(*sets)), len(set.union(*sets)))
    assert f"kept by all {facts['kept_by_all']}, by any {facts['kept_by_any']}" in text
    assert facts["mean_jaccard"] == pytest.approx(facts["mean_expected_jaccard"], abs=0.1)


def test_the_same_subset(diff):
    facts, text = diff("first", "first")
    assert facts["kept"]["jaccard"] == 1
    assert facts["went"] == facts["came"] == []
    assert facts["weights"]["max_change"] == 0
    assert "kept by A, not" not in text
    assert Path(facts["subsets"][0]["manifest"]).name == "manifest"

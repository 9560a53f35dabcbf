"""Labels that are likely wrong are dropped, and a large budget is partly drawn at random."""

import numpy as np
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.manifests.schema import Decision

CHAIN = [{"kind": "embed", "dim": 12}, {"kind": "dedup", "eps": 0.0}, {"kind": "score", "method": "proxy"}]
COVER = {"kind": "select", "method": "facility_location", "per": "label"}


@pytest.fixture
def noisy(make_columns, write):
    """240 rows, of which 24 have another label than their text says; which ones."""
    columns = make_columns()
    wrong = np.random.default_rng(1).permutation(240)[:24]
    for row in wrong.tolist():
        columns["label"][row] = f"c{(int(columns['label'][row][1]) + 1) % 3}"
    return write(columns), {columns["id"][row] for row in wrong.tolist()}


def test_the_wrong_labels_go_and_the_others_stay(noisy, recipe, tmp_path):
    path, wrong = noisy
    made = recipe(path, [*CHAIN, {"kind": "prune", "method": "label_noise"}])
    run = tamis.run(made, tmp_path / "run", executor="sync")
    manifest = run.open_manifest()
    gone = {row["sample_id"] for row in manifest.audit.to_pylist() if row["decision"] == Decision.PRUNED}
    assert len(gone & wrong) >= 16
    assert len(gone - wrong) <= 4
    facts = {item["kind"]: item["facts"] for item in run.stages}
    assert facts["score"]["suspects"] == facts["prune"]["pruned"] == len(gone)
    assert "label likely wrong" in manifest.explain(min(gone))["reason"]


def test_losses_of_a_file_say_nothing_of_labels(noisy, recipe, tmp_path, cli):
    (tmp_path / "losses.csv").write_text("sample_id,loss\n" + "".join(f"r{i:04d},1\n" for i in range(240)))
    stages = [CHAIN[0], {"kind": "score", "from": "losses.csv"}, {"kind": "prune", "method": "label_noise"}]
    result = cli("plan", recipe(noisy[0], stages), "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "score stage with method proxy" in result.stderr


def test_suspects_come_last_and_classes_keep_their_shares(noisy, recipe, tmp_path):
    path, wrong = noisy
    stage = {"budget": 120, "suspects": "last"}
    for number, other in enumerate(({}, {"engine": "sparse"}, {"random_beyond": 0.2}, {"method": "stratified"})):
        select = {**COVER, **stage, **other}
        if "method" in other:
            del select["per"]
        made = recipe(path, [*CHAIN, select], name=f"{number}.yaml")
        manifest = tamis.run(made, tmp_path / f"run{number}", executor="sync").open_manifest()
        ids = manifest.select["sample_id"].to_pylist()
        assert len(set(ids)) == 120
        assert len(set(ids) & wrong) <= 24 - 16  # 16 and more of them are suspects, see above
        said = [manifest.explain(one)["reason"].endswith("the label is likely wrong") for one in wrong - set(ids)]
        assert sum(said) >= 16
        label = labels_of(path)
        sizes = np.unique(list(label.values()), return_counts=True)[1]
        counts = np.unique([label[one] for one in ids], return_counts=True)[1]
        assert np.abs(counts - 120 * sizes / 240).max() < 1


def test_suspects_fill_what_the_others_cannot(noisy, recipe, tmp_path):
    path, wrong = noisy
    made = recipe(path, [*CHAIN, {**COVER, "budget": 236, "suspects": "last"}])
    ids = tamis.run(made, tmp_path / "run", executor="sync").open_manifest().select["sample_id"].to_pylist()
    assert len(set(ids)) == 236
    assert len(set(ids) & wrong) >= 16


def labels_of(path):
    table = pq.read_table(path)
    return dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))


def kept(stage, path, recipe, tmp_path, name):
    made = recipe(path, [CHAIN[0], {**COVER, **stage}], name=f"{name}.yaml")
    return tamis.run(made, tmp_path / name, executor="sync").open_manifest().select["sample_id"].to_pylist()


def test_beyond_a_fraction_the_budget_is_drawn_at_random_in_the_classes_proportions(
    noisy, recipe, tmp_path, make_columns
):
    path = noisy[0]
    some = kept({"budget": 48}, path, recipe, tmp_path, "some")
    mixed = kept({"budget": 120, "random_beyond": 0.2}, path, recipe, tmp_path, "mixed")
    greedy = kept({"budget": 120}, path, recipe, tmp_path, "greedy")
    assert mixed[:48] == some
    assert len(set(mixed)) == 120
    assert set(mixed) != set(greedy)
    # What is drawn is in no order of gains: as many are also in what greedy takes as chance puts there.
    others = set(greedy) - set(some)
    assert 15 < len(set(mixed[48:]) & others) < 45
    again = kept({"budget": 120, "random_beyond": 0.2}, path, recipe, tmp_path, "again")
    assert mixed == again
    label = labels_of(path)
    sizes = np.unique(list(label.values()), return_counts=True)[1]
    counts = np.unique([label[one] for one in mixed], return_counts=True)[1]
    assert np.abs(counts - 120 * sizes / 240).max() < 1


def test_within_the_fraction_nothing_is_random(noisy, recipe, tmp_path):
    plain = kept({"budget": 40}, noisy[0], recipe, tmp_path, "plain")
    asked = kept({"budget": 40, "random_beyond": 0.5}, noisy[0], recipe, tmp_path, "asked")
    assert plain == asked


@pytest.mark.parametrize(
    "stage",
    [
        {"budget": {"bytes": 900}, "random_beyond": 0.1},
        {"budget": 90, "random_beyond": 0.1, "stop_gain": 0.1},
        {"budget": 90, "random_beyond": 0.1, "shares": {"c0": 0.5}},
        {"budget": 90, "random_beyond": 1.0},
    ],
)
def test_what_does_not_go_together_is_refused(stage, noisy, recipe, tmp_path, cli):
    result = cli("validate", recipe(noisy[0], [CHAIN[0], {**COVER, **stage}]))
    assert result.exit_code == 2
    assert "random_beyond" in result.stderr

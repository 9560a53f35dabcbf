"""Budgets in tokens and bytes, shared over sources, classes and clusters: sums and shares beside plain arithmetic."""

import json
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.selectors import facility_location, k_center

EMBED = {"kind": "embed", "dim": 12}
SIZES = {"a.parquet": 130, "b.parquet": 70, "c.jsonl": 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_columns):
    """Three files of texts of very different lengths, with tokens, and vectors of 8 numbers."""
    folder = tmp_path_factory.mktemp("budgets")
    (folder / "data").mkdir()
    n = sum(SIZES.values())
    columns = make_columns(n)
    rng = np.random.default_rng(2)
    columns["text"] = [f"{text} {'é' * int(rng.integers(1, 200))}" for text in columns["text"]]
    columns["tokens"] = [list(range(int(rng.integers(1, 50)))) for _ in range(n)]
    columns["v"] = (rng.standard_normal((n, 8)) + 2 * np.eye(8)[rng.integers(0, 8, n)]).tolist()
    columns["lang"] = [str(name) for name in rng.choice(["de", "en", "fr"], n, p=[0.2, 0.7, 0.1])]
    start = 0
    for name, size in SIZES.items():
        part = {key: values[start : start + size] for key, values in columns.items()}
        start += size
        if name.endswith(".jsonl"):
            lines = [dict(zip(part, row, strict=True)) for row in zip(*part.values(), strict=True)]
            (folder / "data" / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            pq.write_table(pa.table(part), folder / "data" / name)
    return folder, columns


@pytest.fixture
def select(folder, tmp_path):
    """Run one select stage on the three files and give the manifest, with the stage's facts."""

    def select(stage, *before, dataset=None, name="run"):
        recipe = {
            "name": "x",
            "seed": 3,
            "block_rows": 64,
            "dataset": {
                "path": str(folder[0] / "data"),
                "id": "id",
                "text": "text",
                "label": "label",
                **(dataset or {}),
            },
            "stages": [*before, {"kind": "select", **stage}],
        }
        result = tamis.run(recipe, tmp_path / name, executor="sync")
        (facts,) = (item["facts"] for item in result.stages if item["kind"] == "select")
        return result.open_manifest(), facts

    return select


def byte_costs(columns):
    return np.array([len(text.encode()) for text in columns["text"]])


def token_costs(columns):
    return np.array([len(tokens) for tokens in columns["tokens"]])


UNITS = {"bytes": (byte_costs, 20_000), "tokens": (token_costs, 1500)}
FACILITY = {"method": "facility_location"}


@pytest.mark.parametrize(
    ("unit", "stage"),
    [
        ("bytes", {"method": "random"}),
        ("tokens", {"method": "stratified"}),
        ("bytes", {"method": "random", "per": "source"}),
        ("bytes", FACILITY),
        ("tokens", FACILITY),
        ("bytes", FACILITY | {"engine": "sparse"}),
        ("tokens", FACILITY | {"per": "label"}),
        ("tokens", {"method": "ingenious"}),
        ("bytes", {"method": "ingenious", "partition_rows": 50, "per": "source"}),
        ("bytes", {"method": "graph_cut"}),
        ("tokens", {"method": "k_center", "per": "label"}),
    ],
    ids=lambda part: "-".join(map(str, part.values())) if isinstance(part, dict) else part,
)
def test_the_chosen_rows_cost_no_more(folder, select, unit, stage):
    cost_of, budget = UNITS[unit]
    cost = cost_of(folder[1])
    manifest, facts = select(stage | {"budget": {unit: budget}}, EMBED, dataset={"tokens": "tokens"})
    spent = int(cost[manifest.select["row"].to_numpy()].sum())
    assert (facts["budget"], facts["spent"], facts["unit"]) == (budget, spent, unit)
    groups = max(1, len(facts.get("shares", [])), 3 * ("per" in stage), facts.get("partitions", 1))
    assert budget - groups * cost.max() < spent <= budget
    counts = dict(manifest.record["counts"])
    assert counts.pop("rows") == sum(counts.values()) == len(cost)
    assert f"not in the budget of {budget} {unit} ({stage['method']})" in manifest.reasons
    if "certificate" in facts:
        assert 0 < facts["certificate"]["ratio"] <= 1


def walked(order, cost, budget):
    """Rows in order while they fit, those that do not passed over."""
    taken = []
    for row in order:
        if cost[row] <= budget:
            taken.append(row)
            budget -= cost[row]
    return taken


def test_facility_location_takes_the_largest_gain_per_byte(folder, select):
    _, columns = folder
    cost, X = byte_costs(columns), np.array(columns["v"], np.float32)
    manifest, _ = select(
        FACILITY | {"budget": {"bytes": 12_345}}, {"kind": "embed", "encoder": "vectors"}, dataset={"vectors": "v"}
    )
    ranked = facility_location(X, budget=len(X), costs=cost, max_cost=float(cost.sum()), engine="exact")
    expected = walked(ranked.indices.tolist(), cost, 12_345)
    assert sorted(manifest.select["row"].to_pylist()) == sorted(expected)
    objective = np.clip(unit(X) @ unit(X[expected]).T, 0, 1).max(axis=1).sum()
    certificate = manifest.record["certificate"]
    assert certificate["objective"] <= objective + 1e-2  # gains count from what was passed over too
    assert certificate["objective"] == pytest.approx(objective, rel=1e-3)
    assert certificate["upper_bound"] >= objective - 1e-2
    # Cheap rows go further: more of them than by gain alone.
    plain, _ = select(
        FACILITY | {"budget": len(expected)},
        {"kind": "embed", "encoder": "vectors"},
        dataset={"vectors": "v"},
        name="2",
    )
    assert cost[plain.select["row"].to_numpy()].sum() > 12_345


def unit(X):
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def test_other_selectors_take_the_first_of_their_order(folder, select):
    _, columns = folder
    cost, X = token_costs(columns), np.array(columns["v"], np.float32)
    manifest, facts = select(
        {"method": "k_center", "budget": {"tokens": 700}},
        {"kind": "embed", "encoder": "vectors"},
        dataset={"vectors": "v", "tokens": "tokens"},
    )
    rows = manifest.select["row"].to_numpy()
    assert manifest.record["certificate"] is None
    assert facts["figures"]["radius"] > 0
    # The selector sees the rows in the order of their hashes; its own order of choice is what counts.
    order = np.argsort([bytes(value) for value in manifest.audit["content_hash"].to_pylist()])
    expected = order[k_center(X[order], budget=len(X)).indices]
    first = int(np.searchsorted(np.cumsum(cost[expected]), 700, side="right"))
    assert rows.tolist() == expected[:first].tolist()


def test_random_takes_what_fits_in_the_order_drawn(folder, select):
    cost = byte_costs(folder[1])
    everything, _ = select({"method": "random", "budget": 1.0}, name="all")
    some, _ = select({"method": "random", "budget": {"bytes": 9_000}})
    assert some.select["row"].to_pylist() == walked(everything.select["row"].to_pylist(), cost, 9_000)


def test_more_than_there_is_takes_all(folder, select):
    manifest, facts = select({"method": "random", "budget": {"bytes": 10**12}})
    assert manifest.select.num_rows == sum(SIZES.values())
    assert facts["budget"] == facts["spent"] == byte_costs(folder[1]).sum()


# --- sources ---


def hamilton(weights, total):
    """Largest remainder in exact fractions."""
    quotas = [Fraction(total) * Fraction(w) / sum(map(Fraction, weights)) for w in weights]
    shares = [int(q) for q in quotas]
    order = sorted(range(len(quotas)), key=lambda i: (shares[i] - quotas[i], i))
    for i in order[: total - sum(shares)]:
        shares[i] += 1
    return shares


def of_sources(manifest):
    return np.bincount(manifest.select["source"].to_numpy(), minlength=len(SIZES)).tolist()


@pytest.mark.parametrize("method", ["random", "facility_location", "ingenious", "graph_cut"])
@pytest.mark.parametrize("budget", [0.25, 101])
def test_files_share_the_budget_in_proportion(folder, select, method, budget):
    manifest, _ = select({"method": method, "budget": budget, "per": "source"}, EMBED)
    total = budget if isinstance(budget, int) else sum(SIZES.values()) // 4
    assert of_sources(manifest) == hamilton(SIZES.values(), total)


@pytest.mark.parametrize("method", ["random", "facility_location", "ingenious", "k_center"])
@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"c.jsonl": 0.4}, [39, 21, 40]),
        ({"c.jsonl": 10, "b.parquet": 0.5}, [40, 50, 10]),
        ({"a.parquet": 0.5, "b.parquet": 0.3, "c.jsonl": 0.2}, [50, 30, 20]),
        ({"a.parquet": 20, "b.parquet": 70}, [20, 70, 10]),
    ],
    ids=str,
)
def test_files_get_the_shares_that_they_are_given(select, method, shares, expected):
    manifest, _ = select({"method": method, "budget": 100, "per": "source", "shares": shares}, EMBED)
    assert of_sources(manifest) == expected


def test_a_column_names_the_sources(folder, select):
    _, columns = folder
    lang = np.array(columns["lang"])
    dataset = {"source": "lang"}
    manifest, _ = select({"method": "random", "budget": 60, "per": "source"}, dataset=dataset)
    names, sizes = np.unique(lang, return_counts=True)
    chosen = lang[manifest.select["row"].to_numpy()]
    assert [int((chosen == name).sum()) for name in names] == hamilton(sizes.tolist(), 60)
    stage = {"method": "random", "budget": 60, "per": "source", "shares": {"fr": 0.25, "de": 5}}
    manifest, _ = select(stage, dataset=dataset, name="second")
    chosen = lang[manifest.select["row"].to_numpy()]
    assert [int((chosen == name).sum()) for name in ("de", "en", "fr")] == [5, 40, 15]


def test_classes_and_clusters_have_shares_too(select):
    stage = {"method": "random", "budget": 50, "per": "label", "shares": {"c1": 7}}
    manifest, _ = select(stage)
    labels = [int(manifest.audit["sample_id"][row].as_py()[1:]) for row in manifest.select["row"].to_pylist()]
    assert len(labels) == 50
    clusters = {"kind": "cluster", "n_clusters": 4}
    stage = {"method": "facility_location", "engine": "partitioned", "budget": 50, "per": "cluster"}
    manifest, _ = select(stage | {"shares": {"2": 3}}, EMBED, clusters, name="clusters")
    assert manifest.select["cluster"].to_pylist().count(2) == 3
    assert manifest.select.num_rows == 50


def test_bytes_are_shared_as_well(folder, select):
    cost = byte_costs(folder[1])
    source = np.repeat(np.arange(3), list(SIZES.values()))
    stage = {"method": "facility_location", "budget": {"bytes": 20_000}, "per": "source", "shares": {"c.jsonl": 0.3}}
    manifest, facts = select(stage, EMBED)
    rows = manifest.select["row"].to_numpy()
    spent = np.bincount(source[rows], weights=cost[rows], minlength=3)
    a, b = hamilton([int(cost[source == s].sum()) for s in (0, 1)], 14_000)
    assert facts["shares"] == [a, b, 6_000]
    assert all(share - cost.max() < own <= share for own, share in zip(spent, facts["shares"], strict=True))


def test_what_was_kept_before_counts_in_bytes(folder, tmp_path, select):
    cost = byte_costs(folder[1])
    for method in ("random", "facility_location"):
        first, _ = select({"method": method, "budget": {"bytes": 5_000}}, EMBED, name=f"first-{method}")
        stage = {"method": method, "budget": {"bytes": 8_000}, "continue_from": str(tmp_path / f"first-{method}")}
        second, facts = select(stage, EMBED, name=f"second-{method}")
        rows = second.select["row"].to_pylist()
        assert set(first.select["row"].to_pylist()) < set(rows)
        assert 8_000 - cost.max() < cost[rows].sum() == facts["spent"] <= 8_000


def test_images_cost_the_bytes_of_their_files(tmp_path):
    from PIL import Image

    for row in range(12):
        path = tmp_path / "images" / f"c{row % 2}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4 + row, 4), 9 * row, np.uint8)).save(path)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "images").rglob("*.png"))]
    recipe = {
        "name": "x",
        "dataset": {"path": str(tmp_path / "images"), "image": "image", "id": "path"},
        "stages": [{"kind": "select", "method": "random", "budget": {"bytes": sum(sizes) // 2}}],
    }
    result = tamis.run(recipe, tmp_path / "run", executor="sync")
    rows = result.open_manifest().select["row"].to_pylist()
    assert result.stages[1]["facts"]["spent"] == sum(sizes[row] for row in rows) <= sum(sizes) // 2


# --- what is refused ---


@pytest.mark.parametrize(
    ("stage", "dataset", "parts"),
    [
        ({"budget": {"tokens": 5}}, {}, ["needs the dataset's tokens column", "dataset: {tokens: COLUMN}"]),
        ({"budget": {"bytes": 5}}, {"text": None, "tokens": "tokens"}, ["needs the dataset's text or image column"]),
        ({"budget": {"bytes": 5}}, {}, ["select.budget of 5 bytes pays for no row: the cheapest has", "give more"]),
        ({"budget": {"bytes": 5}, "method": "k_center", "per": "label"}, {}, ["shared per label pays for no row"]),
        ({"budget": {"bytes": 5}, "method": "duqgen"}, {}, ["method duqgen counts rows"]),
        (FACILITY | {"budget": {"bytes": 5}, "engine": "partitioned"}, {}, ["engine partitioned counts rows"]),
        ({"budget": {"bytes": 0}}, {}, ["{'bytes': 0} is not an amount", "{tokens: 1000000}"]),
        ({"budget": {"bytes": 0.5}}, {}, ["{'bytes': 0.5} is not an amount"]),
        ({"budget": {"bytes": True}}, {}, ["{'bytes': True} is not an amount"]),
        ({"budget": {}}, {}, ["{} is not an amount"]),
        ({"budget": {"bytes": 5, "tokens": 5}}, {}, ["is not an amount"]),
        ({"budget": {"rows": 5}}, {}, ["{'rows': 5} is not an amount"]),
        ({"budget": 50, "shares": {"a.parquet": 0.5}}, {}, ["name them: per: label, cluster or source"]),
        ({"budget": 50, "per": "source", "shares": {}}, {}, ["is no mapping from names to amounts"]),
        ({"budget": 50, "per": "source", "shares": {"a.parquet": 0}}, {}, ["a.parquet: 0 is not a count"]),
        ({"budget": 50, "per": "source", "shares": {"x": 0.5}}, {}, ["shares name 'x'", "there are 'a.parquet'"]),
        ({"budget": 60, "per": "source", "shares": {"c.jsonl": 50}}, {}, ["give 'c.jsonl' 50 of", "and it has 40"]),
        (
            {"budget": 50, "per": "source", "shares": {"a.parquet": 0.8, "b.parquet": 0.4}},
            {},
            ["shares sum to 1.2 of the budget"],
        ),
        (
            {"budget": 50, "per": "source", "shares": {"a.parquet": 40, "b.parquet": 20}},
            {},
            ["give out 60 of the budget of 50", "give out less"],
        ),
        (
            {"budget": 50, "per": "source", "shares": {"a.parquet": 0.5, "b.parquet": 5, "c.jsonl": 0.1}},
            {},
            ["give out 35 of the budget of 50, and the other 0 groups have 0: give out more"],
        ),
    ],
    ids=str,
)
def test_what_is_refused(folder, tmp_path, recipe, cli, stage, dataset, parts):
    path = recipe(folder[0] / "data", [EMBED, {"kind": "select", "method": "random", **stage}], dataset=dataset)
    if dataset.get("tokens"):
        path = recipe(folder[0] / "data", [{"kind": "select", "method": "random", **stage}], dataset=dataset)
    result = cli("run", path, "--out", tmp_path / "out", "--executor", "sync")
    assert result.exit_code == 2, result.stderr
    for part in parts:
        assert part in result.stderr

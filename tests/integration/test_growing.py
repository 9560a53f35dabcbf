"""A dataset grows: what was embedded stays embedded, what was kept stays kept, and the manifest names its parent."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.errors import DatasetMismatchError, RecipeError
from tamis.manifests.schema import DECISIONS

OLD, NEW = 240, 120
EMBED = {"kind": "embed", "encoder": "lsa", "dim": 16}
DEDUP = {"kind": "dedup", "eps": 0.05}
SELECT = {"kind": "select", "method": "facility_location", "budget": 0.2}
PRUNE = [{"kind": "cluster", "n_clusters": 5}, {"kind": "prune", "method": "density", "keep": 0.5}]
ENGINES = {
    "exact": {},
    "per label": {"per": "label"},
    "sparse": {"engine": "sparse"},
    "sparse per label": {"engine": "sparse", "per": "label"},
    "partitioned": {"engine": "partitioned", "partition_rows": 60},
    "random": {"method": "random"},
}


@pytest.fixture
def folder(tmp_path, make_columns):
    """A folder with one file of 240 rows; `grow` adds another of 120, sorted before it, some of them copies."""
    path = tmp_path / "data"
    path.mkdir()
    pq.write_table(pa.table(make_columns(OLD, seed=0)), path / "b.parquet")
    return path


@pytest.fixture
def grow(folder, make_columns):
    def grow(copied=()):
        columns = make_columns(NEW, seed=1)
        columns["id"] = [f"new{i}" for i in range(NEW)]
        old = pq.read_table(folder / "b.parquet").to_pydict()
        for place, row in enumerate(copied):
            columns["text"][place], columns["label"][place] = old["text"][row], old["label"][row]
        pq.write_table(pa.table(columns), folder / "a.parquet")

    return grow


def run(recipe, folder, out, stages, **options):
    return tamis.run(recipe(folder, stages), out, executor="sync", **options)


def kept(run):
    return run.open_manifest().select["sample_id"].to_pylist()


def tasks(run):
    return [name.split("-", 1)[1].rsplit("/", 1)[0] for name in run.ran]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_kept_stays(tmp_path, recipe, folder, grow, engine):
    options = ENGINES[engine]
    before = [EMBED, *PRUNE, DEDUP] if engine in ("exact", "partitioned") else [EMBED, DEDUP]
    out = tmp_path / "out"
    first = run(recipe, folder, out, [*before, {**SELECT, **options}])
    grow()
    stages = [*before, {**SELECT, **options, "continue_from": str(first.record)}]
    second = run(recipe, folder, out, stages)
    assert second.record.name == "v000002.json"
    assert len(kept(first)) == 48
    assert kept(second)[:48] == kept(first)
    assert len(kept(second)) == 72
    manifest = second.open_manifest()
    assert manifest.record["parent"] == {"subset_id": first.subset_id, "rows": OLD}
    assert manifest.record["recipe"]["stages"][-1]["continue_from"] == "manifest"
    gains = manifest.select["gain"].to_pylist()
    if options.get("method") != "random":
        assert gains[:48] == [None] * 48
        assert all(gain > 0 for gain in gains[48:])
        assert gains[48:] == sorted(gains[48:], reverse=True)
    assert run(recipe, folder, out, stages).ran == ()
    executor = "local" if options == ENGINES["partitioned"] else "sync"
    elsewhere = tamis.run(recipe(folder, stages), tmp_path / "elsewhere", executor=executor, workers=2)
    assert elsewhere.subset_id == second.subset_id


def test_only_new_rows_are_embedded(tmp_path, recipe, folder, grow):
    first = run(recipe, folder, tmp_path / "out", [EMBED, DEDUP, SELECT])
    assert tasks(first).count("ingest/block") == tasks(first).count("embed/block") == 4
    grow()
    stages = [EMBED, DEDUP, {**SELECT, "continue_from": str(first.record)}]
    second = run(recipe, folder, tmp_path / "out", stages)
    assert tasks(second).count("ingest/block") == tasks(second).count("embed/block") == 2
    assert "embed/fit" not in tasks(second)


def test_without_it_an_encoder_that_is_fitted_is_fitted_again(tmp_path, recipe, folder, grow):
    run(recipe, folder, tmp_path / "out", [EMBED, DEDUP, SELECT])
    grow()
    assert tasks(run(recipe, folder, tmp_path / "out", [EMBED, DEDUP, SELECT])).count("embed/block") == 6


@pytest.mark.parametrize("eps", [0.05, 0.0])
def test_copies_of_what_was_kept_are_dropped_for_it(tmp_path, recipe, folder, grow, eps):
    stages = [EMBED, {**DEDUP, "eps": eps}, SELECT]
    first = run(recipe, folder, tmp_path / "first", stages)
    rows = first.open_manifest().select["row"].to_pylist()[:20]
    grow(copied=rows)
    second = run(
        recipe, folder, tmp_path / "second", [*stages[:2], {**SELECT, "continue_from": str(tmp_path / "first")}]
    )
    manifest = second.open_manifest()
    audit = manifest.audit.to_pylist()
    ids = {row["row"]: row["sample_id"] for row in audit}
    for place in range(20):
        (copy,) = [row for row in audit if row["sample_id"] == f"new{place}"]
        assert copy["decision"] == DECISIONS["exact_dup"]
        assert ids[copy["kept_row"]] == f"r{rows[place]:04d}"
    # Without it a copy may come first, by its content hash and id.
    anew = run(recipe, folder, tmp_path / "anew", stages).open_manifest().audit.to_pylist()
    assert any(row["decision"] == DECISIONS["exact_dup"] and row["sample_id"].startswith("r") for row in anew)


def test_two_that_were_kept_both_stay_though_they_are_alike(tmp_path, recipe, folder, grow):
    everything = {"kind": "select", "method": "random", "budget": 1.0}
    columns = pq.read_table(folder / "b.parquet").to_pydict()
    columns["text"][7] = columns["text"][3]
    columns["text"][9] = columns["text"][4] + " common1"
    pq.write_table(pa.table(columns), folder / "b.parquet")
    first = run(recipe, folder, tmp_path / "first", [EMBED, everything])
    grow()
    stages = [
        EMBED,
        {**DEDUP, "eps": 0.3, "floor": 0.6},
        {**everything, "budget": OLD, "continue_from": str(first.record)},
    ]
    second = run(recipe, folder, tmp_path / "second", stages)
    assert kept(second) == kept(first)


def test_the_new_ones_are_those_that_greedy_adds_to_the_old(tmp_path, recipe, folder, grow):
    run(recipe, folder, tmp_path / "first", [EMBED, SELECT])
    grow()
    second = run(recipe, folder, tmp_path / "second", [EMBED, {**SELECT, "continue_from": str(tmp_path / "first")}])
    manifest = second.open_manifest()
    by_hash = np.argsort([row.as_py() for row in manifest.audit["content_hash"]])
    vectors = embeddings(tmp_path / "second", manifest)[by_hash]
    place = np.empty(OLD + NEW, np.int64)
    place[by_hash] = np.arange(OLD + NEW)
    old = place[manifest.select["row"].to_numpy()[:48]]
    expected = tamis.selectors.facility_location(vectors, budget=24, preselected=old)
    assert place[manifest.select["row"].to_numpy()[48:]].tolist() == expected.indices.tolist()
    np.testing.assert_allclose(manifest.select["gain"].to_numpy()[48:], expected.gains)


def embeddings(out, manifest):
    """The vectors of all rows, in the dataset's order, read from the run's own description of its blocks."""
    from tamis.pipelines.run import read_run, recorded

    _, records = recorded(out, read_run(out))
    parts = []
    for name in sorted(name for name in records if name.startswith("01-embed/block/")):
        table = pa.ipc.open_file(out / "work" / records[name].file).read_all()
        parts.append(table["vector"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1))
    found = np.concatenate(parts)
    assert len(found) == manifest.audit.num_rows
    return found


def test_it_is_refused_where_it_cannot_hold(tmp_path, recipe, folder, grow):
    out = tmp_path / "out"
    first = run(recipe, folder, out, [EMBED, SELECT])
    grow()
    with pytest.raises(RecipeError, match=r"name the version to go on from, such as .*v000001\.json"):
        run(recipe, folder, out, [EMBED, {**SELECT, "continue_from": str(out)}])
    with pytest.raises(RecipeError, match=r"budget 30 is 30 rows, fewer than the 48 .* give at least 48"):
        run(recipe, folder, out, [EMBED, {**SELECT, "budget": 30, "continue_from": str(first.record)}])
    with pytest.raises(RecipeError, match="budget 30 is 30 rows, fewer than the 48"):
        run(
            recipe, folder, out,
            [EMBED, {"kind": "select", "method": "random", "budget": 30, "continue_from": str(first.record)}],
        )  # fmt: skip
    with pytest.raises(RecipeError, match="continue_from does not belong to method k_center"):
        run(recipe, folder, out, [EMBED, {**SELECT, "method": "k_center", "continue_from": str(first.record)}])
    with pytest.raises(RecipeError, match="2 select stages have continue_from"):
        run(recipe, folder, out, [EMBED, *[{**SELECT, "continue_from": str(first.record)}] * 2])
    with pytest.raises(RecipeError, match=r"was made with the columns .* the two must be equal"):
        tamis.run(
            recipe(folder, [EMBED, {**SELECT, "continue_from": str(first.record)}], dataset={"label": None}),
            tmp_path / "other", executor="sync",
        )  # fmt: skip
    (folder / "b.parquet").unlink()
    with pytest.raises(DatasetMismatchError, match=r"lacks, or has changed, 1 of the files .*b\.parquet"):
        run(recipe, folder, out, [EMBED, {**SELECT, "continue_from": str(first.record)}])
    assert tamis.open_manifest(out).subset_id == first.subset_id


def test_the_whole_budget_may_be_there_already(tmp_path, recipe, folder, grow):
    first = run(recipe, folder, tmp_path / "first", [EMBED, SELECT])
    grow()
    second = run(
        recipe, folder, tmp_path / "second", [EMBED, {**SELECT, "budget": 48, "continue_from": str(tmp_path / "first")}]
    )
    assert kept(second) == kept(first)

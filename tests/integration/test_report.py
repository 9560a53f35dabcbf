"""Each number of a report against another way to it, on one run with every kind of stage; then what runs may lack."""

import io
import itertools
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tamis
from tamis.errors import OutputError
from tamis.reports.page import render
from tamis.reports.report import build_report, write_report
from tamis.reports.sections.work import last_ran

N, EPS, FLOOR = 360, 0.1, 0.75


@pytest.fixture(scope="module")
def made(make_columns, tmp_path_factory):
    """A run of two files, its table of rows, and its report."""
    folder = tmp_path_factory.mktemp("report")
    columns = make_columns(N)
    for row in range(0, 40, 4):
        columns["text"][row + 1] = columns["text"][row]
        columns["text"][row + 3] = columns["text"][row + 2] + " common1"
    table = pa.table(columns)
    (folder / "data").mkdir()
    pq.write_table(table.slice(0, 100), folder / "data" / "a.parquet")
    pq.write_table(table.slice(100), folder / "data" / "b.parquet")
    recipe = {
        "name": "report",
        "seed": 5,
        "block_rows": 100,
        "dataset": {"path": str(folder / "data"), "id": "id", "text": "text", "label": "label"},
        "stages": [
            {"kind": "embed", "encoder": "lsa", "dim": 12},
            {"kind": "dedup", "eps": EPS, "floor": FLOOR},
            {"kind": "cluster", "n_clusters": 6},
            {"kind": "score", "method": "proxy", "folds": 3},
            {"kind": "prune", "method": "loss", "drop_highest": 0.1},
            {"kind": "prune", "method": "density", "keep": 0.8, "neighbours": 3},
            {"kind": "select", "method": "facility_location", "budget": 0.25, "per": "label"},
            {"kind": "schedule", "epochs": 4, "num_group": 4},
            {"kind": "reweight"},
        ],
    }
    out = folder / "run"
    tamis.run(recipe, out, executor="sync")
    return out, table, recipe, build_report(out)


def stored(out, task):
    """The tables that a task left, in plan order."""
    nodes = [node for stage in json.loads((out / "run.json").read_text())["stages"] for node in stage["nodes"]]
    keys = [key for _, kind, key in nodes if kind == task]
    return [pa.ipc.open_file(next((out / "work" / task).glob(f"{key[:32]}.*.arrow"))).read_all() for key in keys]


def embeddings(out):
    return np.concatenate([np.array(table["vector"].to_pylist(), np.float32) for table in stored(out, "embed.block")])


def kept_rows(out):
    return np.sort(tamis.open_manifest(out).select["row"].to_numpy())


def test_the_map_is_of_the_principal_components(made):
    out, _, _, report = made
    X, kept = embeddings(out).astype(np.float64), kept_rows(out)
    dropped = np.setdiff1d(np.arange(N), kept)
    centred = X - X.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    expected = centred @ axes[:, [-1, -2]]
    for name, rows in (("kept", kept), ("dropped", dropped)):
        found = np.column_stack([report["map"][name]["x"], report["map"][name]["y"]])
        assert np.abs(found) == pytest.approx(np.abs(expected[rows]), abs=2e-4)
    assert report["map"]["explained"] == pytest.approx((values[[-1, -2]] / values.sum()).tolist(), abs=1e-3)
    assert report["map"]["rows"] == {"kept": len(kept), "dropped": len(dropped)}


def test_coverage_is_the_distance_to_the_nearest(made):
    out, _, _, report = made
    X, kept = embeddings(out), kept_rows(out)

    def covered(rows):
        distance = 1 - (X @ X[rows].T).max(axis=1)
        return distance.mean(), np.percentile(distance, 95)

    found = report["coverage"]
    assert (found["rows"], found["sampled"], len(found["random"])) == (N, N, 5)
    assert (found["kept"]["mean"], found["kept"]["p95"]) == pytest.approx(covered(kept), abs=1e-4)
    rng = np.random.default_rng(0)
    draws = np.array([covered(rng.choice(N, len(kept), replace=False)) for _ in range(60)])
    own = np.array([[draw["mean"], draw["p95"]] for draw in found["random"]])
    assert np.all(np.abs(own - draws.mean(axis=0)) < 4 * draws.std(axis=0))
    assert len(np.unique(own)) > 5


def test_rankme_is_of_the_rows_named(made):
    out, _, _, report = made
    X = embeddings(out).astype(np.float64)
    for name, rows in (("all", np.arange(N)), ("kept", kept_rows(out))):
        sigma = np.linalg.svd(X[rows], compute_uv=False)
        p = sigma / sigma.sum()
        assert report["rankme"][name] == pytest.approx(np.exp(-(p * np.log(p)).sum()), abs=1e-3)
        assert report["rankme"]["rows"][name] == len(rows)
    assert report["rankme"]["rows"]["random"] == len(kept_rows(out))


def test_the_curve_is_that_of_greedy_on_all_cosines(made):
    """One cluster holds all rows here, so that every pair is stored from the floor on."""
    out, _, _, report = made
    (near,), (index,) = stored(out, "dedup.gather"), stored(out, "ingest.index")
    rows, distance = near["row"].to_numpy(), near["cluster_dist"].to_numpy()
    cosine = (embeddings(out) @ embeddings(out).T)[np.ix_(rows, rows)]
    visits = np.lexsort((index["order"].to_numpy()[rows], -distance))

    def removed(eps):
        kept = []
        for place in visits:
            if not kept or cosine[place, kept].max() < 1 - eps:
                kept.append(place)
        return len(rows) - len(kept)

    found = report["near_duplicates"]
    assert EPS in found["curve"]["eps"]
    assert found["curve"]["eps"][0] == 0
    assert found["curve"]["eps"][-1] == pytest.approx(1 - FLOOR)
    for eps, count in zip(found["curve"]["eps"][1:], found["curve"]["removed"][1:], strict=True):
        assert count == removed(eps), eps
    assert found["removed"] == removed(EPS) == found["curve"]["removed"][found["curve"]["eps"].index(EPS)]
    above = np.triu(cosine, 1)[np.triu_indices(len(rows), 1)]
    assert found["pairs"] == np.count_nonzero(above >= FLOOR)
    seen = set()
    for close in (True, False):  # no row is shown twice
        side = [pair for pair in found["borderline"] if pair["close"] is close]
        free = [place for place, row in enumerate(rows.tolist()) if row not in seen]
        open_pairs = np.triu(cosine[np.ix_(free, free)], 1)[np.triu_indices(len(free), 1)]
        open_pairs = open_pairs[(open_pairs >= 1 - EPS) == close]
        assert len(side) == 4
        nearest = min(side, key=lambda pair: abs(pair["cosine"] - 1 + EPS))["cosine"]
        assert nearest == pytest.approx(open_pairs[np.abs(open_pairs - 1 + EPS).argmin()], abs=1e-5)
        seen |= {row for pair in side for row in pair["rows"]}
    for pair in found["borderline"]:
        i, j = np.searchsorted(rows, pair["rows"])
        assert pair["cosine"] == pytest.approx(cosine[i, j], abs=1e-5)


def test_clusters_and_their_complexity(made):
    out, _, _, report = made
    found = report["clusters"]
    (gathered,), centroids = stored(out, "cluster.gather"), stored(out, "cluster.fit")[-1]
    cluster = dict(zip(gathered["row"].to_pylist(), gathered["cluster"].to_pylist(), strict=True))
    assert found["before"] == [list(cluster.values()).count(c) for c in range(6)]
    assert found["after"] == [[cluster[row] for row in kept_rows(out).tolist()].count(c) for c in range(6)]
    assert [found["before"][c] for c in found["largest"]] == sorted(found["before"], reverse=True)
    C = np.array(centroids["vector"].to_pylist())
    (effect,) = stored(out, "prune.density")
    alive = effect["row"].to_pylist()
    for c in range(6):
        mine = [row for row in alive if cluster[row] == c]
        d_intra = np.mean([1 - embeddings(out)[row] @ C[c] for row in mine])
        d_inter = np.mean(sorted(1 - C[c] @ C[m] for m in range(6) if m != c)[:3])
        told = {name: found["complexity"][name][c] for name in ("d_intra", "d_inter", "complexity", "rows", "left")}
        assert told["d_intra"] == pytest.approx(d_intra, abs=1e-4)
        assert told["d_inter"] == pytest.approx(d_inter, abs=1e-4)
        assert told["complexity"] == pytest.approx(d_intra * d_inter, abs=1e-4)
        assert told["rows"] == len(mine)
    assert sum(found["complexity"]["left"]) == effect["decision"].to_pylist().count(0)


def test_classes_and_sources(made):
    out, table, _, report = made
    kept, labels = kept_rows(out), np.array(table["label"].to_pylist())
    expected = [(c, np.sum(labels == c), np.sum(labels[kept] == c)) for c in np.unique(labels)]
    assert [(item["class"], item["before"], item["after"]) for item in report["classes"]] == expected
    files = [(item["source"], item["before"], item["after"]) for item in report["sources"]]
    assert files == [("a.parquet", 100, np.sum(kept < 100)), ("b.parquet", N - 100, np.sum(kept >= 100))]


def test_losses_difficulty_weights_and_gains(made):
    out, _, _, report = made
    select = tamis.open_manifest(out).select
    (joined,) = stored(out, "score.join")
    every, kept = joined["loss"].to_numpy(), select["score"].to_numpy()
    found = report["losses"]
    edges = found["edges"]
    for name, losses in (("all", every), ("kept", kept)):
        inside = [np.sum((losses >= a) & (losses < b)) for a, b in itertools.pairwise(edges)]
        assert np.abs(np.array(found[name]) - inside).max() <= 1  # at an edge rounding decides
        assert sum(found[name]) + found["beyond"][name] == len(losses)
        assert found["mean"][name] == pytest.approx(losses.mean(), rel=1e-4)
    groups = select["difficulty"].to_numpy()
    assert report["difficulty"]["rows"] == report["schedule"]["group_sizes"] == np.bincount(groups).tolist()
    for group in range(4):
        mine = kept[groups == group]
        assert report["difficulty"]["least_loss"][group] == pytest.approx(mine.min(), rel=1e-4)
        assert report["difficulty"]["largest_loss"][group] == pytest.approx(mine.max(), rel=1e-4)
    weight = select["weight"].to_numpy()
    assert (report["weights"]["min"], report["weights"]["max"]) == (weight.min(), weight.max())
    assert sum(report["weights"]["histogram"]["rows"]) == len(weight)
    total = np.cumsum(select["gain"].to_numpy())
    assert report["gains"]["objective"] == pytest.approx([total[k - 1] for k in report["gains"]["rows"]], rel=1e-4)
    assert report["gains"]["rows"][-1] == len(total)
    assert report["gains"]["objective"][-1] == pytest.approx(report["certificate"]["objective"], rel=1e-4)
    assert report["gains"]["upper_bound"] == report["certificate"]["upper_bound"]
    assert total[report["gains"]["half"] - 1] >= total[-1] / 2 > total[: report["gains"]["half"] - 1].max(initial=0)


def test_every_fate_has_examples_that_met_it(made):
    out, table, _, report = made
    manifest = tamis.open_manifest(out)
    assert report["examples"][0]["decision"] == "kept"
    counts = {(fate["stage"], fate["decision"], fate["reason"]): fate["rows"] for fate in report["examples"]}
    assert sum(counts.values()) == N
    dropped = {key: rows for key, rows in counts.items() if key[1] != "kept"}
    assert dropped == {(item["stage"], item["decision"], item["reason"]): item["rows"] for item in report["funnel"]}
    for fate in report["examples"]:
        assert len(fate["examples"]) == min(3, fate["rows"])
        for item in fate["examples"]:
            content = report["samples"][str(item["row"])]
            told = manifest.explain(content["sample_id"])
            assert (told["decision"], told["reason"]) == (fate["decision"], fate["reason"])
            assert (told["row"], told["kept_row"]) == (item["row"], item["stands_for_it"])
            if told["decision"] == "kept":
                names = ("rank", "gain", "weight", "difficulty")
                assert [item[name] for name in names] == [told[name] for name in names]
            else:
                assert item["score"] == told["score"]
            assert content["text"] == table["text"][item["row"]].as_py()
            assert content["label"] == table["label"][item["row"]].as_py()


def test_budget_and_what_was_cached(made):
    out, _, recipe, report = made
    (spent,) = report["budgets"]
    assert (spent["rows"], spent["selected"], spent["budget"]) == (90, 90, 0.25)
    assert spent["candidates"] == report["funnel"][-1]["left"] + report["funnel"][-1]["rows"]
    assert all(stage["ran"] == stage["tasks"] for stage in report["stages"])
    copy = out.parent / "again"
    shutil.copytree(out, copy)
    stages = [*recipe["stages"][:-1], {"kind": "reweight", "r": 0.9}]
    tamis.run({**recipe, "stages": stages}, copy, executor="sync")
    assert {stage["kind"]: stage["ran"] for stage in build_report(copy)["stages"] if stage["ran"]} == {
        "reweight": 1,
        "commit": 1,
    }


def test_the_page_is_made_of_the_json_alone_and_again_the_same(made):
    out, _, _, report = made
    page = write_report(out)
    data, html = (out / "report.json").read_bytes(), page.read_bytes()
    assert json.loads(data) == json.loads(json.dumps(report))
    assert render(json.loads(data)).encode() == html
    write_report(out)
    assert ((out / "report.json").read_bytes(), page.read_bytes()) == (data, html)
    text = html.decode()
    assert text.count("<svg ") == 10
    assert "img-src" not in text
    assert not re.search(r"url\(|<script|<link|@import|https?://", text)
    for heading in ("Funnel", "The subset among all rows", "Clusters", "Near duplicates", "Selection", "Classes"):
        assert f"<h2>{heading}</h2>" in text


def test_what_a_run_has_no_stage_for_is_absent(make_columns, write, recipe, tmp_path):
    data = write(make_columns(30))
    stages = [{"kind": "select", "method": "random", "budget": 0.5}]
    tamis.run(recipe(data, stages, dataset={"label": None}), tmp_path / "run", executor="sync")
    report = build_report(tmp_path / "run")
    absent = (
        "map",
        "coverage",
        "rankme",
        "clusters",
        "near_duplicates",
        "gains",
        "certificate",
        "losses",
        "difficulty",
    )
    assert [report[name] for name in absent] == [None] * len(absent)
    assert (report["classes"], report["leakage"], report["comparison"]) == ([], [], None)
    assert report["weights"]["histogram"] is None
    page = render(report)
    assert re.findall("<h2>(.*)</h2>", page) == ["Funnel", "Examples", "Time and memory", "Recipe", "Origin"]
    assert "<svg" not in page


@pytest.mark.parametrize("rows", [1, 30])
def test_one_row_and_nothing_dropped(rows, make_columns, write, recipe, tmp_path):
    columns = {name: values[:rows] for name, values in make_columns(30).items()}
    vectors = np.random.default_rng(0).standard_normal((rows, 5)).tolist()
    stages = [
        {"kind": "embed", "encoder": "vectors"},
        {"kind": "dedup", "eps": 0.01},
        {"kind": "cluster"},
        {"kind": "prune", "method": "density", "keep": 1.0},
        {"kind": "select", "method": "facility_location", "budget": 1.0},
    ]
    roles = {"text": None, "vectors": "vectors"}
    data = write({"id": columns["id"], "label": columns["label"], "vectors": vectors})
    tamis.run(recipe(data, stages, dataset=roles), tmp_path / "run", executor="sync")
    report = build_report(tmp_path / "run")
    assert (report["kept"], report["funnel"], report["coverage"]) == (rows, [], None)
    assert len(report["map"]["kept"]["x"]) == rows
    assert report["near_duplicates"]["curve"]["removed"][:2] == [0, 0]
    page = render(report)
    assert page.count("<svg ") == 5
    assert "nan" not in re.sub("<style>.*?</style>", "", page, flags=re.DOTALL).lower().replace("finance", "")


def test_images_are_shown_as_thumbnails_of_their_own(tmp_path, recipe, write):
    rng = np.random.default_rng(0)
    pictures = []
    for size in [(90, 40)] * 12:
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(out, "JPEG", icc_profile=b"secret")
        pictures.append(out.getvalue())
    data = write({"id": [f"i{row}" for row in range(13)], "image": [*pictures, pictures[0]]})
    stages = [{"kind": "embed", "encoder": "pixels", "dim": 4}, {"kind": "dedup", "eps": 0.05}]
    tamis.run(recipe(data, stages, dataset={"text": None, "label": None, "image": "image"}), tmp_path / "run",
              executor="sync")  # fmt: skip
    report = build_report(tmp_path / "run")
    page = render(report)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    import base64

    shown = [base64.b64decode(item["image"].partition(",")[2]) for item in report["samples"].values()]
    assert {Image.open(io.BytesIO(image)).size for image in shown} == {(64, 28)}
    assert not any(b"secret" in image for image in shown)
    assert page.count("<img ") >= 5


def test_without_the_ingested_blocks_it_says_so_and_the_rest_stands(made, tmp_path):
    out, _, _, report = made
    shutil.copytree(out, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "work" / "ingest.block")
    found = build_report(tmp_path / "run")
    assert not found["contents_are_there"]
    assert {item["text"] for item in found["samples"].values()} == {None}
    other = {name for name in report if name not in ("contents_are_there", "samples", "manifest", "stages", "seconds")}
    assert {name for name in other if found[name] != report[name]} <= {"share_outside_embedding"}
    assert "no longer in the run&#39;s store" in render(found) or "no longer in the run's store" in render(found)
    shutil.rmtree(tmp_path / "run" / "work")
    bare = build_report(tmp_path / "run")
    assert (bare["kept"], bare["funnel"]) == (report["kept"], report["funnel"])
    assert (bare["map"], bare["clusters"], bare["near_duplicates"], bare["losses"]) == (None,) * 4
    assert "<h2>Examples</h2>" in render(bare)


def test_from_an_object_store(made, tmp_path):
    _, _, recipe, report = made
    tamis.run(recipe, tmp_path / "run", work="memory://report", executor="sync")
    found = build_report(tmp_path / "run")
    timed = ("manifest", "stages", "seconds", "share_outside_embedding")
    assert {name: found[name] for name in found if name not in timed} == {
        name: report[name] for name in report if name not in timed
    }


def test_of_a_dataset_that_grew(made, tmp_path):
    """Rows kept before stay, whatever they are near to: the curve knows it."""
    _, table, recipe, _ = made
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(table.slice(100, 150), folder / "b.parquet")
    stages = [recipe["stages"][0], {"kind": "dedup", "eps": 0.15, "floor": FLOOR}]
    grown = {**recipe, "dataset": {**recipe["dataset"], "path": str(folder)}}
    first = [*stages, {"kind": "select", "method": "facility_location", "budget": 40}]
    tamis.run({**grown, "stages": first}, tmp_path / "first", executor="sync")
    pq.write_table(table.slice(0, 100), folder / "a.parquet")
    more = {"kind": "select", "method": "facility_location", "budget": 50, "continue_from": str(tmp_path / "first")}
    tamis.run({**grown, "stages": [*stages, more]}, tmp_path / "second", executor="sync")
    report = build_report(tmp_path / "second")
    near = report["near_duplicates"]
    assert near["removed"] == near["curve"]["removed"][near["curve"]["eps"].index(0.15)] > 0
    assert near["removed"] == sum(item["rows"] for item in report["funnel"] if item["decision"] == "near_dup")
    assert [item["before"] for item in report["sources"]] == [100, 150]
    assert sum(item["before"] for item in report["classes"]) == 250
    assert "It goes on from subset" in render(report)


def test_text_that_is_none_and_long_text(tmp_path, recipe):
    rows = [{"id": f"r{i}", "text": "word " * 400 + str(i), "label": "a"} for i in range(20)]
    lines = [json.dumps(row) for row in rows] + ['{"id": "bad", "text": "x \\ud800 y", "label": "a"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    stages = [{"kind": "select", "method": "random", "budget": 5}]
    path = recipe(tmp_path / "rows.jsonl", stages, max_bad_fraction=0.1)
    tamis.run(path, tmp_path / "run", executor="sync")
    page = write_report(tmp_path / "run").read_text()
    assert "lone surrogate in a JSON string" in page
    report = json.loads((tmp_path / "run" / "report.json").read_bytes())
    assert not report["samples"]["20"]["text"]
    assert all(len(item["text"] or "") <= 240 for item in report["samples"].values())


@pytest.mark.parametrize(
    "spoil",
    [
        {"results": [{"name": "x"}]},
        {"results": 3},
        {"results": [{"name": "x", "size": 1, "samples_seen": 1, "mean": float("nan"), "ci95": None}]},
        {"results": [{"name": "x", "size": 1, "samples_seen": 1, "mean": "x", "ci95": None}]},
        {"verdict": 3},
        {"note": None},
        {"measure": "beauty"},
        {"break_even": [3]},
    ],
)
def test_a_comparison_of_another_shape_is_refused(made, tmp_path, spoil):
    out, *_ = made
    shutil.copytree(out, tmp_path / "run")
    good = {"note": "n \ud800", "results": [], "verdict": ["v \udfff"]}
    good["results"] = [{"name": "a \udc80", "size": 9, "samples_seen": 9, "mean": 0.5, "ci95": None}]
    path = tmp_path / "run" / "compare.json"
    path.write_text(json.dumps(good))
    assert "n ?" in write_report(tmp_path / "run").read_text()
    rows = [{**good["results"][0], "mean": 1.25, "losses": [1.0, 1.5], "ci95": 0.25, "subset_id": None}]
    path.write_text(json.dumps({**good, "measure": "loss", "results": rows, "break_even": [{"line": "It pays."}]}))
    page = write_report(tmp_path / "run").read_text()
    assert '<td class="n">1.2500</td><td class="n">&plusmn; 0.2500</td>' in page
    assert "<p>It pays.</p>" in page
    path.write_text(json.dumps({**good, **spoil}))
    with pytest.raises(OutputError, match="holds no comparison of trainings"):
        build_report(tmp_path / "run")


def test_a_damaged_file_of_the_store_is_named(made, tmp_path):
    out, *_ = made
    shutil.copytree(out, tmp_path / "run")
    (path,) = (tmp_path / "run" / "work" / "cluster.gather").glob("*.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(OutputError, match=r"03-cluster/gather is damaged.*makes again what it needs"):
        build_report(tmp_path / "run")


def test_a_manifest_of_another_run_is_refused(made, tmp_path):
    """As where a run was killed right after its commit, and run.json is still of the one before."""
    out, _, recipe, _ = made
    shutil.copytree(out, tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    tamis.run({**recipe, "stages": recipe["stages"][:-1]}, tmp_path / "run", executor="sync")
    build_report(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_bytes(before)
    with pytest.raises(OutputError, match="manifest of another run"):
        build_report(tmp_path / "run")


def test_the_log_tells_what_the_last_finished_run_did(tmp_path):
    log = tmp_path / "events.jsonl"
    assert last_ran(log) is None
    events = [
        {"event": "run"}, {"event": "node", "node": "a"}, {"event": "done"},
        {"event": "run"}, {"event": "node", "node": "b"}, {"event": "repair"}, {"event": "run"},
        {"event": "node", "node": "c"}, {"event": "done"},
        {"event": "run"}, {"event": "node", "node": "d"},
    ]  # fmt: skip
    log.write_text("\n".join(map(json.dumps, events)) + '\n{"event": "no\n[1]\n')
    assert last_ran(log) == {"b", "c"}

"""The benchmarks' scripts run, and what they measure with measures."""

import gzip
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fetch
import numpy as np
import pyarrow.parquet as pq
import pytest
from threadpoolctl import threadpool_info

ROOT = Path(__file__).resolve().parent.parent.parent
BENCHMARKS = ROOT / "benchmarks"
MIB = 1 << 20


@pytest.fixture
def module(monkeypatch):
    """Import a module of the benchmarks by name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def measure(module):
    return module("_measure")


def quick(name, *options, timeout=120):
    before = sorted((BENCHMARKS / "results").iterdir())
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", *(options or ("--repeat", "1"))],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    assert sorted((BENCHMARKS / "results").iterdir()) == before
    results = json.loads(done.stdout)
    assert {"cores", "cpu", "python"} == results["machine"].keys()
    assert {"tamis", "numpy", "submodlib-py"} <= results["libraries"].keys()
    for row in results.get("aims", []):
        assert row["measured"]["low"] <= row["measured"]["median"] <= row["measured"]["high"]
    return results


def test_kernel():
    results = quick("facility_location_kernel")
    (run,) = results["runs"]
    assert run["same_list"]
    assert run["largest_gain_difference"] == 0.0
    assert run["f_over_theirs"] == pytest.approx(1.0, abs=1e-3)
    assert run["seconds"].keys() == {"ours", "theirs"}
    assert [row["same_list"] for row in results["aims"]] == [True]


def test_embeddings():
    (run,) = quick("facility_location_embeddings")["runs"]
    assert run["same_on_2_threads"]
    assert run["f_over_submodlib"] == pytest.approx(1.0, abs=1e-3)
    assert run["seconds"].keys() == {"ours", "ours_2_threads", "ours_certified", "submodlib"}
    assert run["extra_bytes"].keys() == {"ours", "submodlib"}
    assert run["extra_bytes"]["submodlib"] >= 4 * run["rows"] ** 2  # its float32 kernel


def test_scale():
    results = quick("facility_location_scale")
    (run,) = results["runs"]
    assert run["engines"].keys() == {"exact", "sparse", "partitioned"}
    for engine in run["engines"].values():
        assert run["f_random"] < engine["f"]
        assert 0.0 < engine["extra_bytes"] < engine["peak_bytes"]
    assert run["engines"]["exact"]["f_over_exact"] == 1.0
    assert len(results["growth"]["runs"]) == 2
    assert np.isfinite(results["growth"]["exponent"])


def test_sparse():
    (run,) = quick("facility_location_sparse")["runs"]
    assert run["same_list"]
    assert run["largest_gain_difference"] < 1e-4
    assert len(run["seconds"]["ours"]) == run["repeat"]["ours"]
    assert len(run["seconds"]["theirs"]) == run["repeat"]["theirs"] == 1


def test_ranking():
    (run,) = quick("ingenious_ranking")["runs"]
    ours, theirs = run["first_partition"]["ours"], run["first_partition"]["theirs"]
    assert ours["ranked"] == ours["distinct"] == run["partition_rows"]
    assert theirs["ranked"] == run["partition_rows"] - 1
    assert ours["gains_that_rise"] == 0 < theirs["gains_that_rise"]
    assert ours["largest_gain_error"] < run["partition_rows"] * 2.0**-15
    assert ours["f_of_first_quarter"] > theirs["f_of_first_quarter"]


def test_certificate():
    (run,) = quick("certificate")["runs"]
    assert [row["budget"] for row in run["budgets"]] == [0.01, 0.05, 0.1, 0.25]
    for row in run["budgets"]:
        assert 0.6 < row["f_over_bound"] <= 1.0
        assert row["f"] == pytest.approx(row["certificate"]["objective"], rel=1e-3)
        assert row["coverage_mean"] == pytest.approx(row["certificate"]["coverage_mean"], abs=1e-3)
        assert row["coverage_mean"] < row["coverage_mean_of_random"]["low"]
        assert row["same_list_without"]


def test_dynamic_plans():
    results = quick("dynamic_plans")
    (plan,) = results["plans"]
    assert plan["in_common"] > 0.8 * max(plan["planned"].values())
    assert 0 < results["steps"]["share"] < 1
    small, large = results["steps"]["state_bytes"].values()
    assert large - small == len("10000000") - len("1000")  # n itself, and nothing that grows with it


def test_vectors_scale():
    (run,) = quick("vectors_scale")["runs"]
    assert (run["rows"], run["kept"]) == (4000, 400)
    assert run["peak_bytes"] > 100 << 20
    assert 0 < run["cached_seconds"] < run["wall_seconds"]


def test_cluster_faiss():
    (run,) = quick("cluster_faiss")["runs"]
    cosine = {name: side["cosine"] for name, (side,) in run["sides"].items()}
    assert cosine.keys() == run["seconds"].keys() == {"native", "portable", "theirs"}
    assert cosine["native"] > 0.98 * cosine["theirs"]
    assert cosine["portable"] == pytest.approx(cosine["native"], abs=1e-3)


def test_startup():
    results = quick("startup")
    assert results["imported"] == {"help": [], "cached_run": []}
    assert results["seconds"]["help"] < results["seconds"]["cached_run"]


@pytest.mark.real_data
def test_embed_texts():
    results = quick("embed_texts", timeout=400)  # three processes load torch and the model
    assert results["rows"] == 128


@pytest.mark.real_data
def test_outside_encoder():
    run = quick("outside_encoder", "--quick", timeout=400)["run"]
    assert 0 < run["forward_seconds"] < run["seconds"]
    assert run["share_outside"] == pytest.approx(1 - run["forward_seconds"] / run["seconds"])


def test_alternate_turns_the_order_round_and_takes_what_a_function_has_timed_itself(measure):
    calls = []

    def theirs():
        calls.append("theirs")
        return measure.Seconds(7.0)

    times = measure.alternate({"ours": lambda: calls.append("ours"), "theirs": theirs}, repeat=3)
    assert calls == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert times["theirs"] == [7.0, 7.0, 7.0]
    assert all(0.0 <= seconds < 1.0 for seconds in times["ours"])


def test_ratio_is_theirs_over_ours_round_by_round(measure):
    times = {"ours": [1.0, 2.0, 4.0], "theirs": [10.0, 10.0, 10.0]}
    assert measure.ratio(times) == {"median": 5.0, "low": 2.5, "high": 10.0}
    with pytest.raises(ValueError, match="shorter"):
        measure.ratio({"ours": [1.0, 1.0], "theirs": [1.0]})


def test_an_aim_is_met_from_its_own_side(measure):
    assert measure.aim("w", "p", {"median": 3.0, "low": 1.0, "high": 4.0}, at_least=3)["met"]
    assert not measure.aim("w", "p", 2.9, at_least=3)["met"]
    assert measure.aim("w", "p", 2.9, at_most=3, unit="s")["met"]
    assert not measure.aim("w", "p", 3.1, at_most=3, unit="s")["met"]
    for both in ({}, {"at_least": 1, "at_most": 2}):
        with pytest.raises(ValueError, match="either"):
            measure.aim("w", "p", 1.0, **both)


def test_nearest_similarity_against_float64(measure):
    X = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    chosen = np.array([3, 77, 201])
    expected = [max(0.0, *(float(X[i].astype(float) @ X[j].astype(float)) for j in chosen)) for i in range(300)]
    np.testing.assert_allclose(measure.nearest_similarity(X, chosen), expected, atol=1e-6)
    assert min(expected) == 0.0  # some row is clamped


@pytest.fixture
def child_functions(tmp_path, monkeypatch):
    """Functions that another process can import."""
    (tmp_path / "child_functions.py").write_text(
        "import os\n"
        "import numpy as np\n\n"
        "def load(mib):\n"
        "    np.ones(2 * mib << 17)  # a higher peak before the work starts\n"
        "    return (np.ones(mib << 17),)\n\n"
        "def work(data):\n"
        "    return float(np.add(data, data).sum()), os.getpid()\n\n"
        "def take():\n"
        "    return len(np.ones(96 << 17))\n\n"
        "def die(data):\n"
        "    os._exit(3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("child_functions")
    del sys.modules["child_functions"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")
def test_a_child_counts_what_its_work_takes_and_not_what_was_loaded(measure, child_functions):
    child = measure.in_child(child_functions.work, child_functions.load, 64)
    assert child.result[0] == 2.0 * (64 << 17)
    assert child.result[1] != os.getpid()
    assert 60 * MIB < child.extra_bytes < 80 * MIB
    assert child.resident_bytes > 64 * MIB
    assert child.peak_bytes == child.resident_bytes + child.extra_bytes
    assert child.seconds > 0
    assert 92 * MIB < measure.peak_memory(child_functions.take) < 112 * MIB


def test_a_child_that_dies_is_an_error(measure, child_functions):
    with pytest.raises(RuntimeError, match="die in a process of its own ended with code 3"):
        measure.in_child(child_functions.die, child_functions.load, 1)


def test_one_thread_and_back(measure):
    import faiss
    import numba

    def threads():
        own = [faiss.omp_get_max_threads(), numba.get_num_threads()]  # which may load a library that has a pool
        return [*own, *(pool["num_threads"] for pool in threadpool_info())]

    usual = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        before = threads()
        with measure.one_thread():
            assert set(threads()) == {1}
        assert threads() == before
        assert before[0] == 2
    finally:
        faiss.omp_set_num_threads(usual)


def test_write_adds_machine_and_versions_and_sorts_keys(measure, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    path = measure.write("name", {"zebra": 1, "ant": 2})
    assert path == tmp_path / "results" / "name.json"
    stored = json.loads(path.read_text())
    assert list(stored) == ["ant", "libraries", "machine", "zebra"]
    assert stored["libraries"]["numpy"] == np.__version__
    assert stored["machine"]["cores"] == len(os.sched_getaffinity(0))


def test_gaussian_embeddings(module):
    gaussian = module("_data").gaussian_embeddings
    X = gaussian(3000, 64)
    assert X.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(X.astype(float), axis=1), 1.0, atol=1e-7)
    np.testing.assert_array_equal(gaussian(200, 64), X[:200])
    assert (gaussian(200, 64, seed=1) != X[:200]).any()
    one = gaussian(3000, 384, centres=1)
    centre = one.mean(axis=0) / np.linalg.norm(one.mean(axis=0))
    assert (one @ centre).mean() == pytest.approx(0.55, abs=0.01)
    np.testing.assert_array_equal(gaussian(65_600, 4)[:65_536], gaussian(65_536, 4))


def test_a_peer_runs_on_one_thread_and_says_its_memory(module):
    peers = module("_peers")
    script = (
        "import json, os, sys\nprint('chatter')\nx = b'1' * (200 << 20)\n"
        "print(json.dumps({'threads': os.environ['OMP_NUM_THREADS'], 'arguments': sys.argv[1:]}))"
    )
    found = peers.run(Path(sys.executable), script, 5, "a")
    assert found["threads"] == "1"
    assert found["arguments"] == ["5", "a"]
    assert 200 * MIB < found["peak_bytes"] < 300 * MIB
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        peers.run(Path(sys.executable), "1 / 0")


def test_an_environment_is_made_once_and_anew_when_its_requirements_change(module, tmp_path, monkeypatch):
    peers = module("_peers")
    monkeypatch.setattr(peers, "CACHE", tmp_path)
    python = peers.environment("empty")
    (tmp_path / "empty" / "mark").touch()
    assert peers.run(python, "import sys, json; print(json.dumps({'prefix': sys.prefix}))")["prefix"] == str(
        tmp_path / "empty"
    )
    assert peers.environment("empty") == python
    assert (tmp_path / "empty" / "mark").exists()
    stamp = tmp_path / "empty" / "requirements.json"
    stamp.write_text(stamp.read_text().replace("[]", '["other"]'))
    peers.environment("empty")
    assert not (tmp_path / "empty" / "mark").exists()


def test_the_readme_gets_a_row_an_aim_and_only_between_its_marks(module, measure):
    readme = module("readme")
    results = {
        "machine": {"cores": 2, "cpu": "c"},
        "aims": [
            measure.aim("kernel", "peer", {"median": 85.4, "low": 80.0, "high": 123.4}, at_least=80, same_list=True),
            measure.aim("sparse", "f of exact", 0.99931, at_least=0.9995, unit=""),
            measure.aim("exact", "the clock", 150.4, at_most=200, unit="s"),
        ],
    }
    table = readme.engine_table({"ingenious_ranking": results, "stages": {}})
    assert table.splitlines()[-3:] == [
        "| kernel | peer | ≥ 80x | 85.4x (80x to 123x) | yes | yes |",
        "| sparse | f of exact | ≥ 0.9995 | 0.99931 | no |  |",
        "| exact | the clock | ≤ 200 s | 150 s | yes |  |",
    ]
    marked = f"a\n{readme.begin('engine')}\nold\n{readme.end('engine')}\nb\n"
    expected = f"a\n{readme.begin('engine')}\n{table}\n{readme.end('engine')}\nb\n"
    stages = readme.stored()["stages"]
    assert readme.written(marked, stages, {"ingenious_ranking": results}) == expected
    assert readme.written("no marks\n", stages, {"ingenious_ranking": results}) == "no marks\n"


def test_the_readme_says_what_the_certificates_say(module):
    budgets = [
        {"budget": 0.1, "f_over_bound": 0.98, "coverage_mean": 0.4, "coverage_mean_of_random": {"median": 0.5}},
        {"budget": 0.25, "f_over_bound": 0.99, "coverage_mean": 0.3, "coverage_mean_of_random": {"median": 0.4}},
    ]
    results = {"median_share_of_the_certificate": 0.031, "runs": [{"data": "gmm", "rows": 20000, "budgets": budgets}]}
    lines = module("readme").engine_table({"certificate": results}).splitlines()
    assert lines[-3:] == [
        "| data | rows | 10 % | 25 % |",
        "|---|---:|---:|---:|",
        "| gmm | 20,000 | 0.980 (0.400, 0.500) | 0.990 (0.300, 0.400) |",
    ]
    assert any("3 % of the time" in line for line in lines)


@pytest.fixture
def pruning(module, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS / "evidence")
    return module("pruning")


def test_the_quicker_network_is_the_same_function(pruning):
    import torch

    from tamis.training import Images, TrainConfig
    from tamis.training.ranks import resolve

    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (300, 1, 28, 28), dtype=np.uint8), np.arange(300) % 10
    device, ranks = torch.device("cpu"), resolve(None, None)
    for seed in range(3):  # not step after step: AdamW makes much of gradients that are next to nothing
        config = TrainConfig(epochs=1, seed=seed)
        models = [kind(pixels, labels).learner(None, config, device, ranks) for kind in (Images, pruning.Pictures)]
        plain, quick = (learner.outcome(Images(pixels, labels), np.arange(64)) for learner in models)
        torch.testing.assert_close(quick.logits, plain.logits, rtol=1e-4, atol=1e-4)
        for outcome in (plain, quick):
            outcome.losses.mean().backward()
        for ours, theirs in zip(models[1].model.parameters(), models[0].model.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_wrong_labels_are_as_many_as_asked_and_not_where_an_epoch_begins(pruning):
    labels = np.arange(60_000) % 10
    for seed in range(3):
        wrong = np.flatnonzero(pruning.flipped(labels, 0.2, seed) != labels)
        assert len(wrong) == 12_000
        for epoch in range(8):  # as a sampler shuffles it
            order = np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(60_000)
            assert 0.18 < np.isin(order[:12_000], wrong).mean() < 0.22
    np.testing.assert_array_equal(pruning.flipped(labels, 0.0, 0), labels)


def test_every_arm_of_the_comparisons_is_trained_and_the_tables_have_all_of_them(pruning):
    assert all(name in pruning.ARMS for pair in pruning.COMPARISONS for name in pair)
    order = list(pruning.ARMS)
    assert all(order.index(name.split(", as ")[1]) < order.index(name) for name in order if ", as " in name)
    rng = np.random.default_rng(0)

    def runs(samples):
        return [{"seed": s, "accuracy": a, "samples": samples, "seconds": 1.0} for s, a in enumerate(rng.random(3))]

    full = runs(100)
    arms = {name: pruning.summary(full if name == "full" else runs(50), full) for name in order}
    assert (arms["SeTa"]["saved"], arms["full"]["saved"]) == (0.5, 0.0)
    both = {"clean": arms, "20 % wrong": arms}
    results = {"labels": both, "comparisons": pruning.compared(both), "seeds": 3, "epochs": 8, "ceiling": 0.1}
    assert len(results["comparisons"]) == 2 * len(pruning.COMPARISONS)
    first = results["comparisons"][0]
    assert (first["name"], first["against"], first["labels"], first["together"]) == (
        "SeTa", "full", "clean", 2 * len(pruning.COMPARISONS),
    )  # fmt: skip
    assert first["mean"] == pytest.approx(arms["SeTa"]["accuracy"] - arms["full"]["accuracy"])
    times = {"SeTa": {"median": 1.02, "low": 1.0, "high": 1.1}, "InfoBatch": {"median": 1.0, "low": 1.0, "high": 1.0}}
    text = pruning.tables(results | {"precision": "float32", "sample_times": times})
    assert "For a sample SeTa 102 % and InfoBatch 100 %" in text
    lines = text.splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 2 * (2 + len(arms)) + 2 + 2 * len(
        pruning.COMPARISONS
    )


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="the texts ship inside Debian packages")
def test_texts_of_a_debian_package(tmp_path, monkeypatch):
    """The archive is made here instead of being downloaded; everything after that is as it is for the real one."""
    dictionary = (
        b'Acajou \\Ac"a*jou\\, n.\n   The cashew tree; also, its fruit,\n   and its timber.\n   [1913 Webster]\n'
        b"Short\n   Too short.\n"
        b'Acajou \\Ac"a*jou\\, n.\n   The cashew tree; also, its fruit,\n   and its timber.\n   [PJC]\n'
        b"Zebra\n   An African animal, striped \x92black and white\x92, of the horses.\n"
    )
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: dict-gcide\nVersion: 1.2\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: test\n"
    )
    target = tree / "usr/share/dictd/gcide.dict.dz"
    target.parent.mkdir(parents=True)
    target.write_bytes(gzip.compress(dictionary))
    command = fetch._command

    def offline(line, folder):
        if line[0] == "apt-get":
            assert line[1] == "download"
            return command(["dpkg-deb", "--build", str(tree), "dict-gcide_1.2_all.deb"], folder)
        return command(line, folder)

    monkeypatch.setattr(fetch, "CACHE", tmp_path / "data")
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(fetch, "_command", offline)
    table = pq.read_table(fetch.gcide())
    assert table.to_pydict() == {
        "id": ["dict-gcide-000000", "dict-gcide-000001"],
        "text": [
            'Acajou \\Ac"a*jou\\, n. The cashew tree; also, its fruit, and its timber.',
            "Zebra An African animal, striped �black and white�, of the horses.",
        ],
    }
    assert table.schema.metadata[b"version"] == b"1.2"
    assert len(table.schema.metadata[b"sha256"]) == 64
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["dict-gcide"]


def test_a_command_that_fails_says_so(tmp_path):
    with pytest.raises(SystemExit, match="Debian and its relatives"):
        fetch._command(["no-such-command"], tmp_path)
    with pytest.raises(SystemExit, match="failed"):
        fetch._command(["ls", "no-such-file"], tmp_path)

"""What all tests share: options, and the small synthetic dataset of the fault and integration tests."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "data_manifests"))


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="Every fault and combination of settings, not a few of each.")


def pytest_terminal_summary(terminalreporter):
    """A table of the faults that were injected, from all processes that ran tests: see `tally` of the fault tests."""
    columns = ("injected", "hangs", "torn", "detected", "recomputed", "identical")
    faults: dict[str, Counter] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "fault" and report.when == "call":
                    assert set(value[1]) <= set(columns), value
                    faults.setdefault(value[0], Counter()).update(value[1])
    if not faults:
        return
    width = max(len(fault) for fault in faults)
    terminalreporter.section("faults")
    terminalreporter.line(f"{'fault':<{width}}" + "".join(f"{name:>12}" for name in columns))
    for fault, counts in faults.items():
        cells = (f"{counts[name]:,}" if name in counts else "" for name in columns)
        terminalreporter.line(f"{fault:<{width}}" + "".join(f"{cell:>12}" for cell in cells))


def small_texts(rows, seed=0):
    """Texts of three classes with words of their own, near and exact duplicates, some wrong labels."""
    rng = np.random.default_rng(seed)
    common = [f"word{i}" for i in range(60)]
    texts, labels = [], []
    for row in range(rows):
        label = int(rng.integers(3))
        own = [f"class{label}term{i}" for i in range(25)]
        words = [*rng.choice(own, 4), *rng.choice(common, 6)]
        texts.append(" ".join(words))
        labels.append("abc"[label if rng.random() > 0.05 else int(rng.integers(3))])
        if row % 10 == 3:
            texts[row] = texts[row - 1]
        if row % 10 == 7:
            texts[row] = texts[row - 1] + " " + str(rng.choice(common))
    return texts, labels


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory):
    """A parquet file of 700 rows: columns id, text, label."""
    path = tmp_path_factory.mktemp("data") / "small.parquet"
    texts, labels = small_texts(700)
    pq.write_table(pa.table({"id": [f"s{i}" for i in range(700)], "text": texts, "label": labels}), path)
    return path


@pytest.fixture(scope="session")
def small_recipe(small_dataset):
    """Every kind of stage, on the small dataset."""
    return {
        "name": "small",
        "seed": 5,
        "block_rows": 100,
        "dataset": {"path": str(small_dataset), "id": "id", "text": "text", "label": "label"},
        "stages": [
            {"kind": "embed", "encoder": "lsa", "dim": 16},
            {"kind": "dedup", "eps": 0.1},
            {"kind": "cluster", "n_clusters": 8},
            {"kind": "score", "method": "proxy", "folds": 3},
            {"kind": "prune", "method": "loss", "drop_highest": 0.1},
            {"kind": "prune", "method": "density", "keep": 0.8},
            {"kind": "select", "method": "ingenious", "budget": 0.25, "per": "label", "partition_rows": 64},
            {"kind": "schedule", "epochs": 4, "num_group": 4},
            {"kind": "reweight"},
        ],
    }


def manifest_bytes(folder):
    """Every file of a run's manifest, by name."""
    manifest = Path(folder) / "manifest"
    files = (path for path in sorted(manifest.rglob("*")) if path.is_file())
    return {str(path.relative_to(manifest)): path.read_bytes() for path in files}


@pytest.fixture(name="manifest_bytes", scope="session")
def manifest_bytes_fixture():
    return manifest_bytes

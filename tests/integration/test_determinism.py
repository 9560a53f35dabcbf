"""One digest, whatever the workers, threads, executor, hash seed, zone, language, order of listings and clock.

`--soak` takes every combination; else each value occurs, and each pair of some.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.pipelines import numeric

# Python imports it at the start of every process, the workers included.
SITE = """
import os, random, time

def shuffled(function):
    def listing(*given):
        found = list(function(*given))
        random.Random(int(os.environ["TEST_LISTING"])).shuffle(found)
        return found
    return listing

class Entries:
    def __init__(self, found):
        self.found = iter(found)
    def __iter__(self):
        return self
    def __next__(self):
        return next(self.found)
    def __enter__(self):
        return self
    def __exit__(self, *error):
        pass
    def close(self):
        pass

if os.environ.get("TEST_LISTING"):
    os.listdir = shuffled(os.listdir)
    entries = shuffled(os.scandir)
    os.scandir = lambda *given: Entries(entries(*given))
if os.environ.get("TEST_CLOCK"):
    clock, jumps = time.time, random.Random(0)
    time.time = lambda: clock() + float(os.environ["TEST_CLOCK"]) + jumps.uniform(-1e5, 1e5)
"""

PLACES = {"C": "UTC", "de_DE.UTF-8": "Asia/Kathmandu", "tr_TR.UTF-8": "America/St_Johns"}


@dataclass(frozen=True)
class Setting:
    """What must change no byte; no workers is the executor `sync`, whose clock can be changed."""

    workers: int | None = None
    threads: int = 1
    hashes: str = "0"
    language: str = "C"
    listing: str = ""
    clock: str = ""

    @property
    def environment(self):
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        return threads | {
            "PYTHONHASHSEED": self.hashes, "LANG": self.language, "LC_ALL": self.language, "TZ": PLACES[self.language],
            "TEST_LISTING": self.listing, "TEST_CLOCK": self.clock,
        }  # fmt: skip


SOME = [
    Setting(None, 2, "random", "tr_TR.UTF-8", "1", "-9e8"),
    Setting(None, 1, "1", "de_DE.UTF-8", "", "2e9"),
    Setting(1, 2, "0", "de_DE.UTF-8", "2"),
    Setting(2, 2, "1", "C", "1"),
    Setting(3, 1, "0", "tr_TR.UTF-8", "3"),
    Setting(4, 2, "random", "de_DE.UTF-8"),
]
ALL = [
    Setting(workers, *others, "" if workers else "-9e8")
    for workers, *others in product((None, 1, 2, 3, 4), (1, 2), ("0", "1", "random"), PLACES, ("", "1"))
]


def pytest_generate_tests(metafunc):
    if "setting" in metafunc.fixturenames:
        chosen = ALL if metafunc.config.getoption("--soak") else SOME
        metafunc.parametrize("setting", chosen, ids=lambda setting: "-".join(map(str, asdict(setting).values())))


@pytest.fixture(scope="module")
def recipe(small_recipe, tmp_path_factory):
    """Every kind of stage, on a folder of several files, their texts in other blocks than their files."""
    folder = tmp_path_factory.mktemp("several")
    rows = pq.read_table(small_recipe["dataset"]["path"])
    more = rows.set_column(0, "id", pa.array([f"again{i}" for i in range(len(rows))]))
    texts = pa.array([f"{text} more" for text in more["text"].to_pylist()])
    table = pa.concat_tables([rows, more.set_column(1, "text", texts)])
    for name, start, stop in (("b", 0, 500), ("a", 500, 900), ("d", 900, 910), ("c", 910, 1400)):
        pq.write_table(table.slice(start, stop - start), folder / f"{name}.parquet")
    return {**small_recipe, "block_rows": 200, "dataset": {**small_recipe["dataset"], "path": str(folder)}}


def made(out):
    """The names of all files that the stages made, each of which has the digest of its content in it."""
    return sorted(path.name for path in (out / "work").glob("*/*.arrow"))


@pytest.fixture(scope="module")
def expected(recipe, tmp_path_factory, manifest_bytes):
    out = tmp_path_factory.mktemp("expected") / "run"
    tamis.run(recipe, out, executor="sync", workers=1)
    return manifest_bytes(out), made(out)


def test_every_value_is_tried():
    names = [name for name in Setting.__dataclass_fields__ if name not in ("listing", "clock")]
    for name in names:
        assert {getattr(setting, name) for setting in SOME} == {getattr(setting, name) for setting in ALL}, name
    assert len(set(ALL)) == 180


def test_one_digest(setting, recipe, expected, tmp_path, manifest_bytes):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "tamis", "run", "recipe.yaml", "--out", "run"]
    command += ["--executor", "sync"] if setting.workers is None else ["--workers", str(setting.workers)]
    path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
    garbage = {"MALLOC_PERTURB_": "85"}  # what memory holds before it is written
    environment = os.environ | setting.environment | garbage | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (manifest_bytes(tmp_path / "run"), made(tmp_path / "run")) == expected
    times = [json.loads(line)["time"] for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert (times == sorted(times)) == (not setting.clock)  # the clock was what the setting says


# --- kernels ---

PORTABLE = pytest.mark.skipif(not numeric._has_kernels(), reason="this processor has no AVX2")


def data_of(files):
    """A manifest's data without its record, which names kernels."""
    return {name: data for name, data in files.items() if name.startswith("data")}


@PORTABLE
def test_portable_is_one_digest_whatever_kernels_the_environment_asks_for(
    recipe, tmp_path, monkeypatch, manifest_bytes
):
    found = []
    for outer in (
        {},
        {
            "OPENBLAS_CORETYPE": "Sandybridge",
            "FAISS_SIMD_LEVEL": "NONE",
            "NUMBA_CPU_NAME": "generic",
            "ATEN_CPU_CAPABILITY": "default",
            "NPY_DISABLE_CPU_FEATURES": "X86_V3",
        },
    ):
        with monkeypatch.context() as patch:
            for name, value in outer.items():
                patch.setenv(name, value)
            out = tmp_path / str(len(found))
            run = tamis.run({**recipe, "numeric": "portable"}, out, workers=2)
            assert {name: os.environ.get(name) for name in outer} == outer
        assert run.open_manifest().record["numeric"] == {"policy": "portable", "kernels": "x86-64-v3"}
        found.append(manifest_bytes(out))
    assert found[0] == found[1]


@PORTABLE
def test_native_takes_the_kernels_that_are_asked_for_and_they_give_other_bytes(
    recipe, tmp_path, monkeypatch, manifest_bytes
):
    """The control: with these data and stages kernels do matter."""
    found = []
    for core in ("Haswell", "Sandybridge"):
        monkeypatch.setenv("OPENBLAS_CORETYPE", core)
        run = tamis.run(recipe, tmp_path / core, workers=2)
        assert run.open_manifest().record["numeric"]["blas"] == core
        found.append(data_of(manifest_bytes(tmp_path / core)))
    assert found[0] != found[1]

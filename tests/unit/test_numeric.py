"""`numeric: portable`: each library is held to the kernels of AVX2, and where that cannot be, it is refused."""

import json
import os
import platform
import subprocess
import sys

import pytest

import tamis
from tamis.errors import RecipeError, WorkerError
from tamis.pipelines import execute, numeric
from tamis.pipelines.node import make_node, run_node
from tamis.pipelines.run import read_run

portable_here = pytest.mark.skipif(not numeric._has_kernels(), reason="this processor has no AVX2")

LIBRARIES = """
import json, os, sys
import numpy as np, scipy.linalg, faiss, pyarrow, torch
from numba.core.registry import cpu_target
from numpy._core._multiarray_umath import __cpu_dispatch__ as dispatched, __cpu_features__ as features
from threadpoolctl import threadpool_info
from tamis.pipelines import numeric
torch.nn.functional.conv2d(torch.ones(8, 16, 32, 32), torch.ones(16, 16, 3, 3))  # by oneDNN, which says how
with torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON):
    torch.ones(70, 70) @ torch.ones(70, 70)
blas = [item for item in threadpool_info() if item["internal_api"] == "openblas"]
facts = {
    "blas": sorted({item["architecture"] for item in blas}),
    "blas_of": sum(any(name in item["filepath"] for item in blas) for name in ("numpy", "scipy.libs", "faiss")),
    "numpy": [name for name in dispatched if features[name]],
    "faiss": faiss.SIMDConfig.get_level_name(),
    "arrow": pyarrow.runtime_info().simd_level,
    "torch": torch.backends.cpu.get_cpu_capability(),
    "numba": cpu_target.target_context.codegen().magic_tuple()[1:],
    "held": numeric._not_held(),
}
sys.stdout.flush()
print("\\n" + json.dumps(facts))
"""


def started(code, variables, **others):
    """What a process prints that was started with some variables and none of the others of `portable`."""
    names = numeric.environment()
    kept = {name: value for name, value in os.environ.items() if name not in names}
    environment = {**kept, "PYTHONPATH": os.pathsep.join(sys.path), **variables, **others}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def fresh():
    """What a process is like is looked at once."""
    numeric._not_held.cache_clear()
    yield
    numeric._not_held.cache_clear()


@portable_here
def test_every_library_takes_the_portable_kernels():
    said = started(LIBRARIES, numeric.environment(), ONEDNN_VERBOSE="1")
    facts = json.loads(said.splitlines()[-1])
    assert facts["blas"] == ["Haswell"]
    assert facts["blas_of"] == 3
    assert not any(name.startswith(("AVX512", "X86_V4")) for name in facts["numpy"])
    assert facts["faiss"] == "AVX2"
    assert facts["arrow"] == "avx2"
    assert facts["torch"] == "AVX2"
    assert facts["numba"] == ["haswell", ""]
    assert facts["held"] == ""
    assert "isa:Intel AVX2\n" in said
    assert "CNR:COMPATIBLE" in said


@portable_here
@pytest.mark.skipif(not numeric._numpy.__cpu_features__.get("AVX512F"), reason="this processor has nothing above AVX2")
def test_without_the_variables_libraries_take_what_the_processor_has():
    said = started(LIBRARIES, {}, ONEDNN_VERBOSE="1")
    facts = json.loads(said.splitlines()[-1])
    assert "Haswell" not in facts["blas"]
    assert any(name.startswith(("AVX512", "X86_V4")) for name in facts["numpy"])
    assert "AVX512" in facts["faiss"]
    assert facts["arrow"] == "avx512"
    assert facts["torch"] == "AVX512"
    assert facts["numba"][0] != "haswell"
    assert "+avx512f" in facts["numba"][1]
    assert "isa:Intel AVX-512" in said or "isa:Intel AVX10" in said
    assert "CNR:COMPATIBLE" not in said
    assert facts["held"].startswith("numeric: portable, and this process was not started with ")


COMPILED = """
import numpy as np
from tamis.embeddings import _neighbours
_neighbours.add_rows(np.ones((1, 1), np.float32), np.zeros(1, np.int32), 0, np.zeros((1, 1)))
stats = _neighbours.add_rows.stats
print(*(sum(found.values()) for found in (stats.cache_hits, stats.cache_misses)))
"""


@portable_here
def test_compiled_loops_of_one_policy_are_not_taken_for_those_of_the_other(tmp_path):
    for variables, hits_and_misses in (({}, "0 1"), (numeric.environment(), "0 1"), ({}, "1 0")):
        assert started(COMPILED, variables, NUMBA_CACHE_DIR=str(tmp_path)).strip() == hits_and_misses


@portable_here
@pytest.mark.parametrize("name", sorted(numeric.environment()))
def test_a_process_that_lacks_a_variable_is_refused_and_told_all(name, monkeypatch, fresh):
    for key, value in numeric.environment().items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(numeric, "_loaded_before", list)
    numeric.check_started()
    numeric.check_worker()
    numeric._not_held.cache_clear()
    monkeypatch.setenv(name, "other")
    with pytest.raises(RecipeError, match=f"not started with {name};") as refused:
        numeric.check_started()
    assert "NUMBA_CPU_FEATURES='' NUMBA_CPU_NAME=haswell" in str(refused.value)
    assert all(f" {key}=" in str(refused.value) for key in numeric.environment())
    with pytest.raises(WorkerError, match=f"{platform.node()} cannot take this task: .*{name}"):
        numeric.check_worker()


@portable_here
def test_variables_that_come_too_late_do_not_count():
    late = "import os, numpy, json; from tamis.pipelines import numeric; os.environ.update(numeric.environment())"
    said = started(f"{late}; print(numeric._not_held())", {}, OPENBLAS_CORETYPE="Sandybridge")
    assert "was loaded before the variables were set" in said
    assert "OpenBLAS (Sandybridge)" in said


@pytest.mark.parametrize("lacking", ["AVX2", "FMA3", "x86-64"])
def test_a_processor_without_the_kernels_is_refused(lacking, monkeypatch, fresh):
    if lacking == "x86-64":
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    else:
        monkeypatch.setitem(numeric._numpy.__cpu_features__, lacking, False)
    for check, error in (
        (numeric.check_processor, RecipeError),
        (numeric.check_started, RecipeError),
        (numeric.check_worker, WorkerError),
    ):
        with pytest.raises(error, match=r"needs the kernels of x86-64-v3.* use numeric: native, or another machine"):
            check()


@pytest.mark.parametrize("executor", ["sync", "local"])
def test_a_run_that_cannot_be_portable_is_refused_before_anything_runs(
    executor, small_recipe, tmp_path, monkeypatch, fresh
):
    if executor == "local":
        monkeypatch.setitem(numeric._numpy.__cpu_features__, "AVX2", False)
    else:
        monkeypatch.setenv("OPENBLAS_CORETYPE", "other")
    with pytest.raises(RecipeError, match="numeric: portable"):
        tamis.run({**small_recipe, "numeric": "portable"}, tmp_path / "run", executor=executor)
    assert not list((tmp_path / "run" / "work").glob("*/*.json"))
    assert read_run(tmp_path / "run", "attempt.json")["settings"]["numeric"] == "portable"


def test_a_worker_that_was_started_otherwise_is_refused(tmp_path, monkeypatch, fresh):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "other")
    node = make_node("00-x/exact", 0, "dedup.exact", {}, {}, numeric="portable")
    with pytest.raises(WorkerError):
        run_node(node, str(tmp_path))


def test_the_policy_is_in_the_key_and_native_is_as_if_there_were_none():
    node, native, portable = (
        make_node("00-x/exact", 0, "dedup.exact", {}, {}, **more)
        for more in ({}, {"numeric": "native"}, {"numeric": "portable"})
    )
    assert node == native
    assert portable.key != native.key


def test_the_variables_are_there_for_a_while_only(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    monkeypatch.delenv("MKL_CBWR", raising=False)
    before = dict(os.environ)
    with execute._variables(numeric.environment()):
        assert {**before, **numeric.environment()} == dict(os.environ)
    assert dict(os.environ) == before
    with pytest.raises(ZeroDivisionError), execute._variables(numeric.environment()):
        _ = 1 // 0
    assert dict(os.environ) == before

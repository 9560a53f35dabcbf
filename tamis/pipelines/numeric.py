"""The numeric policy `portable`: libraries are held to the kernels of AVX2, for which each has a variable of its own.

A library reads its variable once, when it is loaded. So a process must be started with them.
"""

from __future__ import annotations

import functools
import os
import platform
import shlex
import sys

from numpy._core import _multiarray_umath as _numpy  # type: ignore[attr-defined]

from tamis.errors import RecipeError, WorkerError
from tamis.threads import thread_pools

NATIVE, PORTABLE = "native", "portable"
KERNELS = "x86-64-v3"
_NEEDED = ("AVX2", "FMA3")
_BEYOND = ("AVX512", "X86_V4")  # how numpy's names for what is above AVX2 begin


def environment() -> dict[str, str]:
    """The variables that a process must be started with, to compute with the portable kernels."""
    beyond = (name for name in _numpy.__cpu_dispatch__ if name.startswith(_BEYOND))
    return {
        "ARROW_USER_SIMD_LEVEL": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "FAISS_OPT_LEVEL": "AVX2",  # of faiss where it has a library for each level
        "FAISS_SIMD_LEVEL": "AVX2",  # of faiss where one library has all levels
        "MKL_CBWR": "COMPATIBLE",  # on processors that are not Intel's, MKL takes this way whichever it is told
        "NPY_DISABLE_CPU_FEATURES": " ".join(beyond),
        "NUMBA_CPU_FEATURES": "",  # those of the processor that is named, and not of this one
        "NUMBA_CPU_NAME": "haswell",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    }


def check_processor() -> None:
    """Refuse a processor that lacks the portable kernels.

    Raises:
        RecipeError: It is not x86-64, or has no AVX2.
    """
    if not _has_kernels():
        raise RecipeError(_lacking())


def check_started() -> None:
    """Refuse where this process, which is to compute itself, does not hold its libraries to the portable kernels.

    Raises:
        RecipeError: It lacks the kernels, or was not started with the variables.
    """
    if reason := _not_held():
        raise RecipeError(reason)


def check_worker() -> None:
    """Refuse a worker process as `check_started` does; looks once.

    Raises:
        WorkerError: It lacks the kernels, or was not started with the variables.
    """
    if reason := _not_held():
        raise WorkerError(f"a worker on {platform.node()} cannot take this task: {reason}")


def _has_kernels() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64") and all(_numpy.__cpu_features__[name] for name in _NEEDED)


def _lacking() -> str:
    return (
        f"numeric: portable needs the kernels of {KERNELS} (AVX2 and FMA), and this processor "
        f"({platform.machine() or 'unknown'}) has not got them; use numeric: native, or another machine"
    )


@functools.cache
def _not_held() -> str:
    """Why this process does not compute with the portable kernels; nothing where it does."""
    if not _has_kernels():
        return _lacking()
    wanted = environment()
    line = " ".join(f"{name}={shlex.quote(value)}" for name, value in wanted.items())
    unset = [name for name, value in wanted.items() if os.environ.get(name) != value]
    if unset:
        return (
            f"numeric: portable, and this process was not started with {', '.join(unset)}; --executor local starts its "
            f"own workers with what they need, others must be started with: {line}"
        )
    late = _loaded_before()
    if late:
        return (
            f"numeric: portable, and {', '.join(late)} was loaded before the variables were set; start the process "
            f"with: {line}"
        )
    return ""


def _loaded_before() -> list[str]:
    """The loaded libraries that compute with other kernels."""
    late = [
        f"OpenBLAS ({item['architecture']})"
        for item in thread_pools().info()
        if item["internal_api"] == "openblas" and item["architecture"] != "Haswell"
    ]
    if any(_numpy.__cpu_features__[name] for name in environment()["NPY_DISABLE_CPU_FEATURES"].split()):
        late.append("numpy")
    torch = sys.modules.get("torch")
    if torch and torch.backends.cpu.get_cpu_capability() != "AVX2":
        late.append("torch")
    return late

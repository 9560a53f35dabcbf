"""Peers in virtual environments of their own, under .cache/bench: none of them is a dependency of Tamis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache" / "bench"
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS"), "1"
)
APRICOT = ("apricot", "apricot-select==0.6.1", "scikit-learn")  # it imports scikit-learn and does not say so

# Runs a script as the main program, and then says how much memory the process took at most.
_DRIVER = """
import json, runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
import _measure
print(json.dumps({"peak_bytes": _measure.peak()}))
"""


def environment(name: str, *requirements: str) -> Path:
    """A virtual environment with some packages, made once.

    Args:
        name: Of its folder under .cache/bench.
        *requirements: What pip installs. With others than last time it is made anew.

    Returns:
        The path of its interpreter.
    """
    folder = CACHE / name
    stamp, python = folder / "requirements.json", folder / "bin" / "python"
    wanted = json.dumps({"python": sys.version, "requirements": requirements})
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"installing {' '.join(requirements)} in {folder}", file=sys.stderr, flush=True)
        venv.create(folder, clear=True, with_pip=bool(requirements))
        if requirements:
            install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
            subprocess.run(install, check=True)
        stamp.write_text(wanted)  # last: an interrupted installation is made again
    return python


def run(python: Path, script: str | Path, *arguments: object) -> dict[str, Any]:
    """Run a script in an environment, on one thread.

    Args:
        python: See `environment`.
        script: A path, or the text of the script. `import _measure` works in it.
        *arguments: Its `sys.argv[1:]`.

    Returns:
        The JSON object that it prints last, and `peak_bytes`, the most memory that its process took.

    Raises:
        RuntimeError: It failed; the message has the end of what it wrote to stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = script
        if isinstance(script, str):
            path = Path(folder) / "script.py"
            path.write_text(script)
        done = subprocess.run(
            [str(python), "-c", _DRIVER, str(path), *map(str, arguments)],
            env=os.environ | ONE_THREAD | {"PYTHONPATH": str(HERE)},
            capture_output=True,
            text=True,
        )
    if done.returncode != 0:
        raise RuntimeError(
            f"a script of {python.parent.parent.name} ended with {done.returncode}: {done.stderr[-2000:]}"
        )
    *_, result, peak = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(result) | json.loads(peak)
    return found


def submodlib(kernel: Any, budget: int, optimizer: str = "LazyGreedy") -> tuple[list[int], list[float]]:
    """Facility location by submodlib, from a kernel to the list: building its object, and maximising.

    Args:
        kernel: float32[n, n] C-contiguous (others are misread without a word), or a scipy CSR matrix.
        budget: Rows, below n.
        optimizer: Of submodlib.

    Returns:
        The rows chosen, in order, and their gains.
    """
    from scipy.sparse import issparse
    from submodlib import FacilityLocationFunction

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please import", DeprecationWarning)
        if issparse(kernel):
            largest = int(kernel.getnnz(axis=1).max())  # it asks for the number, and makes no use of it
            function = FacilityLocationFunction(kernel.shape[0], "sparse", sijs=kernel, num_neighbors=largest)
        else:
            function = FacilityLocationFunction(len(kernel), "dense", separate_rep=False, sijs=kernel)
    # stopIfZeroGain would stop at a gain below 1.
    chosen = function.maximize(
        budget, optimizer, stopIfZeroGain=False, stopIfNegativeGain=False, verbose=False, show_progress=False
    )
    return [row for row, _ in chosen], [gain for _, gain in chosen]


def agreement(ours: Any, compatible: Any, theirs: tuple[list[int], list[float]]) -> dict[str, Any]:
    """How far two greedy runs on one kernel agree.

    Args:
        ours: Our `Selection`.
        compatible: Our `Selection` with submodlib's rule for ties.
        theirs: Rows and gains, as from `submodlib`.
    """
    import numpy as np

    rows, gains = theirs
    return {
        "same_list": compatible.indices.tolist() == rows,
        "largest_gain_difference": float(np.abs(compatible.gains - np.asarray(gains)).max()),
        "same_list_own_ties": ours.indices.tolist() == rows,
        "f_over_theirs": float(np.sum(ours.gains) / np.sum(gains)),
    }


def dense_kernel(X: Any) -> Any:
    """The kernel that submodlib is given, float32[n, n]: cosines clamped at 0, by the fastest way that numpy has."""
    import numpy as np

    kernel = X @ X.T
    return np.maximum(kernel, 0, out=kernel)


def versions(python: Path, *packages: str) -> dict[str, str]:
    """The versions of packages that an environment has."""
    script = (
        "import json, sys\nfrom importlib import metadata\n"
        "print(json.dumps({name: metadata.version(name) for name in sys.argv[1:]}))"
    )
    found = run(python, script, *packages)
    return {name: found[name] for name in packages}

"""What lies beside this folder and the evidence needs: `from _beside import measure, fetch`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "data_manifests")]

import _measure as measure  # noqa: E402
import fetch  # noqa: E402

__all__ = ["ROOT", "fetch", "measure"]

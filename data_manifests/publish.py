"""Write what is published of a recipe's manifest: its identity, its counts, and the environment that made it.

python data_manifests/publish.py RUN_FOLDER data_manifests/tweets.json
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import tamis


def describe(folder: Path) -> dict[str, Any]:
    """A manifest's identity, and that of the environment: with an equal one the bytes are the same."""
    manifest = tamis.open_manifest(folder)
    record = manifest.record
    return {
        "name": record["recipe"]["name"],
        "subset_id": manifest.subset_id,
        "fingerprint": manifest.fingerprint,
        "counts": record["counts"],
        "files": record["files"],
        "environment": {"cpu": cpu(), "numeric": record["numeric"], "libraries": record["libraries"]},
    }


def cpu() -> str:
    """A digest of the processor's vector instructions: they decide which kernels the libraries take."""
    names = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").is_file() else set()
    vector = sorted(name for name in names if name.startswith(("avx", "amx", "sse", "fma")))
    vendor = next((name for name in ("GenuineIntel", "AuthenticAMD") if name in names), "other")
    return f"{vendor}-{hashlib.sha256(' '.join(vector).encode()).hexdigest()[:12]}"


if __name__ == "__main__":
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.write_text(json.dumps(describe(folder), indent=1, sort_keys=True) + "\n")
    print(target)

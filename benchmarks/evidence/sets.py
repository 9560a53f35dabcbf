"""The real data sets of the evidence, each with labels and a test part that no choice is made on.

DEVELOPMENT sets were looked at while the recipes were chosen; FRESH ones were run once these were fixed. Where a
package brings a test part it is taken, elsewhere 30 % of the rows are set aside once. Rows of the test part whose
content is in the other part are left out of it. Where a name says so, a fifth of the labels to train on are replaced by
another class; the test's are not.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from _beside import fetch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Int64 = npt.NDArray[np.int64]
    Float32 = npt.NDArray[np.float32]

NOISE = 0.2
_TEST_ROWS = 5000
_HELD_OUT = 0.3
_FEWEST = 80  # rows of a class
_SPEAKERS = ("Chandler", "Joey", "Monica", "Phoebe", "Rachel", "Ross")


@dataclass(frozen=True)
class Part:
    """Labelled samples: texts, or float32 [n, d] of which nothing is scaled yet.

    Attributes:
        labels: int64 [n], classes from 0.
        texts: n texts, or None.
        vectors: float32 [n, d], or None.
    """

    labels: Int64
    texts: tuple[str, ...] | None = None
    vectors: Float32 | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Int64) -> Part:
        """Some of them, in the order given."""
        return Part(
            self.labels[rows],
            None if self.texts is None else tuple(self.texts[row] for row in rows),
            None if self.vectors is None else self.vectors[rows],
        )

    def contents(self) -> list[object]:
        """What each of them is, to compare by."""
        if self.texts is not None:
            return list(self.texts)
        assert self.vectors is not None
        return [row.tobytes() for row in self.vectors]


def newsgroups() -> tuple[Part, Part]:
    """20 Newsgroups, long and short posts, split by date, in lower case."""
    return _orange("20newsgroups")


def reuters() -> tuple[Part, Part]:
    """Reuters-52: news of 52 classes, the largest of them 44 % of the rows, the smallest a single one."""
    return _orange("reuters-r52")


def glosses() -> tuple[Part, Part]:
    """WordNet's glosses, short texts; 45 classes of very different sizes."""
    table = pq.read_table(fetch.wordnet_glosses())
    return _held_out(_texts(table["text"].to_pylist(), table["label"].to_pylist()))


def tweets() -> tuple[Part, Part]:
    """Tweets with a crowd's labels, many of them wrong; 3 classes."""
    parts = [pq.read_table(path) for path in fetch.tweets()]
    names = sorted(set(parts[0]["label"].to_pylist()))
    train, test = (
        _texts(part["text"].to_pylist(), [names.index(label) for label in part["label"].to_pylist()]) for part in parts
    )
    return train, test


def friends() -> tuple[Part, Part]:
    """Lines of a television series: which of 6 persons says it. Short, and hardly decidable."""
    rows = [row for row in _tab("friends-transcripts") if row["Author"] in _SPEAKERS and len(row["Quote"]) >= 40]
    return _held_out(_texts([row["Quote"].strip() for row in rows], [_SPEAKERS.index(row["Author"]) for row in rows]))


def election() -> tuple[Part, Part]:
    """Tweets of two candidates: whose?"""
    rows = [row for row in _tab("election-tweets-2016") if row["Author"] in ("HillaryClinton", "realDonaldTrump")]
    return _held_out(_texts([row["Content"] for row in rows], [int(row["Author"][0] == "r") for row in rows]))


def bbc() -> tuple[Part, Part]:
    """BBC News: 5 classes, few and long texts."""
    folder = fetch.fetch(fetch.BBC)
    paths = sorted(folder.rglob("*.txt"))
    names = sorted({path.parent.name for path in paths})
    texts = [path.read_bytes().decode("latin-1") for path in paths]
    return _held_out(_texts(texts, [names.index(path.parent.name) for path in paths]))


def fashion() -> tuple[Part, Part]:
    """Fashion-MNIST: images of 28 x 28 in 10 classes, as vectors of their pixels."""
    found = {name: fetch.read_idx(path) for name, path in fetch.fashion_mnist().items()}
    train, test = (
        Part(
            found[f"{part}-labels"].astype(np.int64),
            vectors=found[f"{part}-images"].reshape(-1, 784).astype(np.float32) / np.float32(255),
        )
        for part in ("train", "t10k")
    )
    return train, test


def letters() -> tuple[Part, Part]:
    """Letter recognition: 16 measures of a printed letter, 26 classes."""
    return _keel("letter")


def strokes() -> tuple[Part, Part]:
    """Digits written with a pen: 8 points of each, 10 classes."""
    return _keel("penbased")


def satellite() -> tuple[Part, Part]:
    """Satellite images: 3 x 3 pixels in 4 bands, 6 kinds of ground of different sizes."""
    return _keel("satimage")


def mails() -> tuple[Part, Part]:
    """Mails as 57 frequencies: spam or not."""
    return _keel("spambase")


def fortunes() -> tuple[Part, Part]:
    """Sayings and jokes, short texts in 30 files of very different sizes; hardly decidable."""
    table = pq.read_table(fetch.fortunes())
    names, counts = np.unique(table["label"].to_pylist(), return_counts=True)
    kept = names[counts >= _FEWEST].tolist()
    rows = [row for row in table.to_pylist() if row["label"] in kept]
    return _held_out(_texts([row["text"] for row in rows], [kept.index(row["label"]) for row in rows]))


SETS: dict[str, Callable[[], tuple[Part, Part]]] = {
    "newsgroups": newsgroups,
    "glosses": glosses,
    "tweets": tweets,
    "fashion": fashion,
    "reuters": reuters,
    "friends": friends,
    "letters": letters,
    "election": election,
    "bbc": bbc,
    "fortunes": fortunes,
    "satellite": satellite,
    "strokes": strokes,
    "mails": mails,
}
_WRONG = ", 20 % wrong"
DEVELOPMENT = (
    "newsgroups", f"newsgroups{_WRONG}", "glosses", "tweets", "fashion",
    "reuters", "letters", "friends", "election", "bbc",
)  # fmt: skip
FRESH = ("fortunes", "satellite", "strokes", f"strokes{_WRONG}", "mails")


def load(name: str) -> tuple[Part, Part]:
    """The rows to select from, and those to measure on, by a name of DEVELOPMENT or FRESH.

    The test part has at most 5,000 rows, drawn once.
    """
    train, test = SETS[name.removesuffix(_WRONG)]()
    known = set(train.contents())
    new = np.array([row for row, content in enumerate(test.contents()) if content not in known])
    test = test.take(new[np.random.default_rng(20261122).permutation(len(new))[:_TEST_ROWS]])
    if name.endswith(_WRONG):
        train = replace(train, labels=flipped(train.labels, NOISE, np.random.default_rng([20261122, 1])))
    return train, test


def flipped(labels: Int64, share: float, rng: np.random.Generator) -> Int64:
    """The labels with a share of them replaced by one of the other classes, each as likely."""
    classes = int(labels.max()) + 1
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    wrong = labels.copy()
    wrong[chosen] = (wrong[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return wrong


def _orange(name: str) -> tuple[Part, Part]:
    parts = [_tab(f"{name}-{part}") for part in ("train", "test")]
    names = sorted({row["Category"] for row in parts[0]})
    train, test = (
        _texts([row["Text"] for row in part], [names.index(row["Category"]) for row in part]) for part in parts
    )
    return train, test


def _tab(name: str) -> list[dict[str, str]]:
    """The rows of one of Orange's tables, whose second and third line are no rows."""
    csv.field_size_limit(1 << 24)
    with (fetch.fetch(fetch.ORANGE_TEXT) / f"{name}.tab").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))[2:]
    return [row for row in rows if None not in row.values() and any(value.strip() for value in row.values())]


def _keel(name: str) -> tuple[Part, Part]:
    """Rows of numbers, the last of them the class."""
    lines = (fetch.fetch(fetch.KEEL) / f"{name}.dat").read_text().splitlines()
    rows = [[field.strip() for field in line.split(",")] for line in lines if line.strip() and line[0] != "@"]
    names = sorted({row[-1] for row in rows})
    vectors = np.array([[float(value) for value in row[:-1]] for row in rows], np.float32)
    return _held_out(Part(np.array([names.index(row[-1]) for row in rows], np.int64), vectors=vectors))


def _texts(texts: list[str], labels: list[int]) -> Part:
    """What has words, each with its label."""
    there = [row for row, text in enumerate(texts) if text and text.strip()]
    return Part(np.array([labels[row] for row in there], np.int64), tuple(texts[row] for row in there))


def _held_out(part: Part) -> tuple[Part, Part]:
    order = np.random.default_rng(20261122).permutation(len(part))
    held = round(_HELD_OUT * len(part))
    return part.take(order[held:]), part.take(order[:held])

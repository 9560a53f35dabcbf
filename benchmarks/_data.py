"""The data of the benchmarks: made-up clusters, real texts, real tweets; rows of length 1.

Texts are fetched by `data_manifests/fetch.py`; their embeddings are kept under .cache/bench.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    Float32 = npt.NDArray[np.float32]

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
DIM = 384
# Length of a row's noise, that of its centre being 1: their cosine is then 1 / sqrt(1 + 1.5^2) = .55 on average.
_NOISE = 1.5
_BLOCK = 65_536
_LSA_TERMS, _LSA_FIT_ROWS = 50_000, 100_000  # what the `embed` stage takes by default


def gaussian_embeddings(n: int, d: int = DIM, centres: int = 100, seed: int = 0) -> Float32:
    """Clustered Gaussians on the sphere.

    Centres are uniform on the sphere, and every row is one of them, drawn uniformly, plus isotropic Gaussian
    noise of length about 1.5, scaled to length 1. A row's cosine to its own centre is .55 on average, to
    another row of its cluster .31, to rows of other clusters 0.

    Args:
        n: Rows. The first rows are the same for every n.
        d: Dimensions.
        centres: Clusters.
        seed: Of the generator.

    Returns:
        float32[n, d], rows of length 1. It is made in blocks: next to no memory beside the result is needed.
    """
    middle = _unit(np.random.default_rng([seed, 0]).standard_normal((centres, d)))
    rows = np.empty((n, d), np.float32)
    for block, start in enumerate(range(0, n, _BLOCK)):
        rng = np.random.default_rng([seed, 1 + block])
        labels = rng.integers(centres, size=_BLOCK)
        part = rows[start : start + _BLOCK]
        for row in range(0, len(part), 4096):
            few = part[row : row + 4096]
            noise = rng.standard_normal(few.shape, np.float32).astype(np.float64) * (_NOISE / np.sqrt(d))
            few[:] = _unit(noise + middle[labels[row : row + len(few)]])
    return rows


def text_embeddings(n: int, d: int = DIM) -> Float32:
    """Real text: entries of a dictionary and paragraphs of the Linux kernel's documentation, shuffled once.

    TF-IDF and a truncated SVD (`tamis.embeddings.encoders.Lsa`) fitted on the first 100,000 of the shuffled
    texts. Made once for all texts (minutes), then read from the cache.

    Args:
        n: Rows, at most the 200,000 or so that there are. The first rows are the same for every n.
        d: Dimensions.

    Returns:
        float32[n, d], rows of length 1.
    """
    path = _cached(f"text-{d}", sources("text"), lambda: _embed_texts(d))
    return _first(np.load(path, mmap_mode="r"), n)


def _first(stored: Float32, n: int) -> Float32:
    if n > len(stored):
        raise SystemExit(f"{n} rows were asked for and there are {len(stored)}; ask for fewer")
    return np.array(stored[:n])


def minilm_embeddings() -> Float32:
    """The training tweets of `data_manifests`, encoded by MiniLM: float32[28k, 384], rows of length 1.

    Made once (three minutes or so), then read from the cache.
    """
    vectors: Float32 = np.load(_cached("tweets-minilm", sources("minilm"), _embed_tweets))
    return vectors


DATA: dict[str, Callable[[int], Float32]] = {
    "gmm": gaussian_embeddings,
    "text": text_embeddings,
    "minilm": lambda n: _first(minilm_embeddings(), n),
}


def saved(name: str, n: int, folder: Path) -> Path:
    """One of DATA as a .npy file in a folder, for processes of their own to load."""
    path = folder / f"{name}-{n}.npy"
    if not path.exists():
        np.save(path, DATA[name](n))
    return path


def sources(name: str) -> list[dict[str, str]]:
    """Where one of DATA comes from: packages, their versions, digests of what was read. Empty for made-up data."""
    if name == "gmm":
        return []
    fetch = _fetch()
    if name == "minilm":
        return [{"package": package.requirement} for package in (fetch.TWEETS, fetch.MINILM)]  # with its digests there
    import pyarrow.parquet as pq

    metadata = [pq.read_schema(path).metadata for path in (fetch.gcide(), fetch.kernel_docs())]
    names = ("package", "version", "sha256", "rows")
    return [{key: found[key.encode()].decode() for key in names} for found in metadata]


def _embed_texts(d: int) -> Float32:
    import pyarrow.parquet as pq

    from tamis.embeddings.encoders import Lsa

    fetch = _fetch()
    texts = [text for path in (fetch.gcide(), fetch.kernel_docs()) for text in pq.read_table(path)["text"].to_pylist()]
    order = np.random.default_rng(0).permutation(len(texts))
    texts = [texts[row] for row in order]
    lsa = Lsa.fit(texts[:_LSA_FIT_ROWS], d, _LSA_TERMS)
    vectors = lsa.encode(texts)
    return _unit(vectors[np.linalg.norm(vectors, axis=1) > 0])


def _embed_tweets() -> Float32:
    import pyarrow.parquet as pq

    from tamis.embeddings.encoders import model_revision, sentence_encoder

    fetch = _fetch()
    train, _ = fetch.tweets()
    folder = str(fetch.minilm())
    encode = sentence_encoder(folder, model_revision(folder), 128, 16, True)
    return _unit(encode(pq.read_table(train)["text"].to_pylist()))


def _cached(name: str, made_of: list[dict[str, str]], make: Callable[[], Float32]) -> Path:
    """The path of an array in the cache; what it is made of is part of its name."""
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
    path = CACHE / f"{name}-{digest}.npy"
    if not path.is_file():
        print(f"making {path.relative_to(ROOT)}", file=sys.stderr, flush=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, make())
        partial.rename(path)
    return path


def _unit(rows: npt.NDArray[Any]) -> Float32:
    """Rows of length 1 in float32 (divided in float64, so that Tamis finds nothing to rescale and copies nothing)."""
    wide: npt.NDArray[np.float64] = rows.astype(np.float64)
    unit: Float32 = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _fetch() -> ModuleType:
    sys.path.insert(0, str(ROOT / "data_manifests"))
    return importlib.import_module("fetch")

"""Encoders: texts or pixels in, float32 vectors out. LSA and PCA are embedded; neural ones are read from a folder.

Every encoder is deterministic for a given block of texts: one numeric thread, batches formed by token
length within the block, and nothing that depends on what another process does.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tamis.errors import DataError, RecipeError
from tamis.manifests.canonical import digest, sha256_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Matrix = npt.NDArray[np.float32]
MAX_VALUES = 4096  # of an image: the time of its analysis grows with the cube
_PIECE = 1024

# Words, and every other visible character by itself, so that a text of emoji or punctuation is not empty.
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
TOKEN = r"(?u)\w+|[^\w\s]"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Lsa:
    """Latent semantic analysis: TF-IDF, then the leading right singular vectors (Deerwester et al., 1990).

    Attributes:
        terms: The vocabulary, sorted.
        idf: float64[v], inverse document frequency of each term.
        components: float32[v, d], the projection.
    """

    terms: tuple[str, ...]
    idf: npt.NDArray[np.float64]
    components: Matrix

    @classmethod
    def fit(cls, texts: Sequence[str], dim: int, max_features: int) -> Lsa:
        """Fit on texts; fewer dimensions where the texts do not span `dim`.

        Args:
            texts: The sample to fit on.
            dim: Wanted dimensions.
            max_features: Size of the vocabulary, the most frequent terms.

        Raises:
            DataError: If the texts have no term at all.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(sublinear_tf=True, max_features=max_features, token_pattern=TOKEN)
        try:
            weighted = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise DataError(f"the lsa encoder found no term in {len(texts)} texts: {error}") from error
        dim = min(dim, *weighted.shape)
        if dim == min(weighted.shape):
            _, _, rows = np.linalg.svd(weighted.toarray(), full_matrices=False)
            components = _fixed_signs(rows[:dim])
        else:
            svd = TruncatedSVD(dim, algorithm="randomized", n_iter=4, random_state=0)
            components = _fixed_signs(svd.fit(weighted).components_)
        terms = tuple(vectorizer.get_feature_names_out().tolist())
        return cls(terms, np.asarray(vectorizer.idf_, np.float64), components.T.astype(np.float32))

    def encode(self, texts: Sequence[str]) -> Matrix:
        """Return float32[n, d]; a text without a known term gives zeros."""
        weighted = self._vectorizer().transform(texts)
        return np.asarray(weighted @ self.components, np.float32)

    def _vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(
            sublinear_tf=True, token_pattern=TOKEN, vocabulary={term: i for i, term in enumerate(self.terms)}
        )
        vectorizer.idf_ = self.idf
        return vectorizer


@dataclass(frozen=True, slots=True)
class Pixels:
    """Principal components of small images: what of their pixels varies most (Turk and Pentland, 1991).

    Attributes:
        shape: Channels, height and width of the images.
        mean: float64[p], the mean image; p is their product.
        components: float32[p, d], the projection of an image less the mean.
    """

    shape: tuple[int, int, int]
    mean: npt.NDArray[np.float64]
    components: Matrix

    @classmethod
    def fit(cls, pixels: Iterable[npt.NDArray[np.uint8]], dim: int) -> Pixels:
        """Fit on images, given in pieces; fewer dimensions where the images do not span `dim`.

        The sums over pixels are whole numbers and exact up to some 370,000 images, in any pieces and order and on
        any machine. Only the eigenvectors are rounded.

        Args:
            pixels: uint8[m, channels, height, width] each, at least one image in all.
            dim: Wanted dimensions.

        Raises:
            DataError: If the images have more than `MAX_VALUES` values, or there are none.
        """
        from scipy.linalg import eigh

        count, shape, total, products = 0, (0, 0, 0), np.zeros(0), np.zeros((0, 0))
        for piece in pixels:
            if not count:
                shape = piece.shape[1:]
                width = _checked_width(shape)
                total, products = np.zeros(width), np.zeros((width, width))
            for flat in _in_rows(piece):
                total += flat.sum(axis=0)
                products += flat.T @ flat
                count += len(flat)
        if not count:
            raise DataError("no row is left to fit the pixels encoder on")
        covariance = (count * products - np.outer(total, total)) / count**2
        width = len(total)
        dim = min(dim, width)
        variances, vectors = eigh(covariance, subset_by_index=[width - dim, width - 1])
        spanned = variances > width * np.finfo(np.float64).eps * max(variances[-1], 1.0)
        # Where all images are one, nothing is spanned.
        components = _fixed_signs(vectors[:, spanned].T[::-1]).T if spanned.any() else np.zeros((width, dim))
        return cls(shape, total / count, components.astype(np.float32))

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Matrix:
        """Return float32[n, d] of uint8[n, channels, height, width]; an image that no component sees gives zeros."""
        out = np.zeros((len(pixels), self.components.shape[1]), np.float32)
        start = 0
        for flat in _in_rows(pixels):
            centred = flat - self.mean
            projected = centred @ self.components
            # What is left of an image outside of all components is rounding, and no direction.
            seen = np.linalg.norm(projected, axis=1) > 1e-9 * np.linalg.norm(centred, axis=1)
            out[start : start + len(flat)][seen] = projected[seen]
            start += len(flat)
        return out


def _checked_width(shape: tuple[int, int, int]) -> int:
    width = math.prod(shape)
    if width > MAX_VALUES:
        largest = math.isqrt(MAX_VALUES // shape[0])
        raise DataError(
            f"pixels: images of {shape[2]} x {shape[1]} pixels with {shape[0]} channels have {width} values, at most "
            f"{MAX_VALUES} can be analysed: give an image_size of {largest} or less"
        )
    return width


def _in_rows(pixels: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.float64]]:
    """One row an image, some at a time: float64 takes eight times the memory."""
    for start in range(0, len(pixels), _PIECE):
        piece = pixels[start : start + _PIECE]
        yield piece.reshape(len(piece), -1).astype(np.float64)


def _fixed_signs(rows: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Singular vectors are defined up to their sign: make the largest entry of each positive."""
    largest = np.abs(rows).argmax(axis=1)
    return rows * np.where(rows[np.arange(len(rows)), largest] < 0, -1.0, 1.0)[:, None]


def model_folder(name: str) -> Path:
    """Find a model: a local folder, or a hub name that is already in the local cache.

    Raises:
        RecipeError: If it is neither. Nothing is downloaded here.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, local_files_only=True))
    except Exception as error:
        raise RecipeError(
            f"no model at {name!r}: it is neither a folder nor a model in the local Hugging Face cache. "
            "Give a folder with config.json and safetensors weights, or fetch the model first"
        ) from error


def model_revision(name: str) -> str:
    """Return a model's identity: a digest over the content of its files, wherever they lie.

    Raises:
        RecipeError: If there is no such model, or its weights are pickled.
    """
    folder = model_folder(name)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    safe = {path.parent for path in files if path.suffix == ".safetensors"}
    pickled = [path for path in files if path.suffix in _PICKLED]
    unsafe = [path for path in pickled if path.parent not in safe]
    if unsafe or not safe:
        what = f"{unsafe[0]} has no .safetensors beside it" if unsafe else f"{folder} holds no .safetensors weights"
        raise RecipeError(f"{what}; other formats of weights can run code when loaded and are refused")
    # Pickled weights beside safe ones are never loaded, and no documentation decides a result.
    used = [path for path in files if path not in pickled and path.suffix != ".md"]
    return digest([[path.relative_to(folder).as_posix(), sha256_file(path)] for path in used])


@functools.lru_cache(maxsize=1)
def sentence_encoder(
    folder: str,
    revision: str,  # noqa: ARG001, other weights in the same folder are another model
    max_tokens: int,
    batch_size: int,
    pooled: bool,
) -> Callable[[Sequence[str]], Matrix]:
    """Return an encoder of a transformer; the last one is kept.

    Args:
        folder: The model's folder.
        revision: Its `model_revision`.
        max_tokens: Where a text is cut.
        batch_size: Texts per forward pass.
        pooled: True for a sentence-transformers model, whose own modules pool and normalise; False for the
            mean of the last hidden states over the tokens.

    Raises:
        RecipeError: The folder's files are no model.
    """
    load = _load_sentence if pooled else _load_transformer
    try:
        return load(folder, max_tokens, batch_size)
    except Exception as error:  # what the libraries raise for files that are no model is not told
        said = str(error).strip().partition("\n")[0]
        raise RecipeError(
            f"the model in {folder} cannot be loaded: {said}; give a folder that the library saved"
        ) from error


def _load_sentence(folder: str, max_tokens: int, batch_size: int) -> Callable[[Sequence[str]], Matrix]:
    torch = _offline_torch()
    from sentence_transformers import SentenceTransformer

    safe = {"use_safetensors": True}
    model = SentenceTransformer(folder, device="cpu", local_files_only=True, model_kwargs=safe).eval()
    limit = min(max_tokens, model.max_seq_length or max_tokens)
    # The model's own modules pool; only the batching is ours, which pads far less than `encode` does.
    return _by_length(torch, model.tokenizer, lambda batch: model(batch)["sentence_embedding"], limit, batch_size)


def _load_transformer(folder: str, max_tokens: int, batch_size: int) -> Callable[[Sequence[str]], Matrix]:
    torch = _offline_torch()
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def mean_pooled(batch: dict[str, Any]) -> Any:
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    return _by_length(torch, tokenizer, mean_pooled, max_tokens, batch_size)


def _by_length(
    torch: Any, tokenizer: Any, forward: Callable[[dict[str, Any]], Any], max_tokens: int, batch_size: int
) -> Callable[[Sequence[str]], Matrix]:
    """Encode in batches of texts of about the same number of tokens: next to no padding."""

    def encode(texts: Sequence[str]) -> Matrix:
        torch.set_num_threads(1)
        tokens = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        encoded = []
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                batch = tokenizer.pad(
                    {"input_ids": [tokens[row] for row in order[start : start + batch_size]]},
                    return_tensors="pt",
                )
                encoded.append(forward(dict(batch)).float().numpy())
        out = np.empty((len(texts), encoded[0].shape[1]), np.float32)
        out[order] = np.concatenate(encoded)
        return out

    return encode


def _offline_torch() -> Any:
    """Import torch with one thread, and keep the model libraries from calling anywhere."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    return torch


def read_vectors(path: Path, start: int, stop: int) -> Matrix:
    """Read rows [start, stop) of a file of precomputed vectors, memory-mapped where the format allows.

    Args:
        path: `.npy` (never pickled), `.safetensors` (one tensor), or `.arrow` / `.parquet` (one list column).
        start: First row.
        stop: One past the last row.

    Raises:
        DataError: If the format is another, or the content is no matrix of numbers.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is set aside as that
        return np.asarray(_open(path)[start:stop], np.float32)


def count_vectors(path: Path) -> int:
    """Return how many vectors a file holds."""
    return len(_open(path))


def _open(path: Path) -> npt.NDArray[Any]:
    return _open_vectors(str(path), path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _open_vectors(name: str, changed: int) -> npt.NDArray[Any]:  # noqa: ARG001, a changed file is another one
    path = Path(name)
    matrix: npt.NDArray[Any]
    from safetensors import SafetensorError

    try:
        if path.suffix == ".npy":
            matrix = np.lib.format.open_memmap(path, mode="r")
        elif path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            tensors = load_file(path)
            if len(tensors) != 1:
                raise DataError(
                    f"{path} holds {len(tensors)} tensors ({', '.join(sorted(tensors))}); give a file with one"
                )
            (matrix,) = tensors.values()
        elif path.suffix in (".parquet", ".arrow", ".feather"):
            matrix = _list_column(path)
        else:
            raise DataError(
                f"{path}: vectors are read from .npy, .arrow, .parquet or .safetensors; pickled formats can run "
                "code and are refused"
            )
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        NotImplementedError,
        SyntaxError,
        TokenError,
        SafetensorError,
    ) as error:
        raise DataError(f"{path}: cannot read vectors: {error}") from error
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or matrix.shape[1] == 0:
        raise DataError(
            f"{path} holds {matrix.dtype} of shape {matrix.shape}; vectors are a matrix of floats, one row a sample"
        )
    return matrix


def _list_column(path: Path) -> npt.NDArray[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    lists = [
        name
        for name in table.column_names
        if pa.types.is_list(table.schema.field(name).type)
        or pa.types.is_fixed_size_list(table.schema.field(name).type)
        or pa.types.is_large_list(table.schema.field(name).type)
    ]
    if len(lists) != 1:
        raise DataError(f"{path} has {len(lists)} list columns ({', '.join(lists) or 'none'}); give a file with one")
    table[lists[0]].validate(full=True)  # before offsets are followed
    return stack_lists(table[lists[0]].combine_chunks(), str(path))


def stack_lists(column: Any, origin: str) -> npt.NDArray[Any]:
    """Turn a column of equally long lists into a matrix.

    Raises:
        DataError: If the lists differ in length (the first such row and both lengths are named) or are empty.
    """
    import pyarrow.compute as pc

    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    if len(lengths) and (lengths != lengths[0]).any():
        row = int(np.flatnonzero(lengths != lengths[0])[0])
        raise DataError(f"{origin}: vectors differ in length: row 0 has {lengths[0]}, row {row} has {lengths[row]}")
    if len(lengths) and not lengths[0]:
        raise DataError(f"{origin}: vectors are empty lists; each needs at least one number")
    flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False))
    floats: npt.NDArray[Any] = flat if flat.dtype.kind == "f" else flat.astype(np.float64)
    stacked: npt.NDArray[Any] = floats.reshape(len(column), -1)
    return stacked


def as_unit(matrix: npt.NDArray[Any]) -> tuple[Matrix, dict[int, str]]:
    """Scale rows to unit length, and say which rows cannot be.

    Args:
        matrix: float[n, d].

    Returns:
        float32[n, d] with zeros in the bad rows, and {row: what is wrong with it}.
    """
    given = np.asarray(matrix, np.float64)
    finite = np.asarray(np.isfinite(given).all(axis=1))
    wide = np.where(finite[:, None], given, 0.0)
    # faiss aborts the process near 1e19; nothing sensible is that far out.
    huge = np.asarray((np.abs(wide) > 1e6).any(axis=1))
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    bad: dict[int, str] = {}
    for mask, reason in (
        (~finite, "vector has NaN or infinity"),
        (huge, "vector has a value above 1e6"),
        (finite & ~huge & (norms == 0), "vector is all zeros"),
    ):
        bad.update(dict.fromkeys(np.flatnonzero(mask).tolist(), reason))
    good = finite & ~huge & (norms > 0)
    unit = np.zeros(wide.shape, np.float32)
    unit[good] = (wide[good] / norms[good, None]).astype(np.float32)
    return unit, dict(sorted(bad.items()))


def lonely_vector(content: str | bytes, dim: int) -> Matrix:
    """A unit vector for what the encoder knows nothing of: fixed by its content, far from all others."""
    raw = content.encode() if isinstance(content, str) else content
    seed = int.from_bytes(hashlib.sha256(raw).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(dim)
    return (vector / np.linalg.norm(vector)).astype(np.float32)

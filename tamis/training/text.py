"""The reference trainer's text classifier: hashed n-grams, a mean-pooled embedding, a linear layer.

Texts become features once, before training, in compressed sparse rows. The features are hashed words, pairs
of neighbouring words and character triples, as in fastText (arXiv 1607.01759). The hash is arithmetic on
Unicode code points, so it is the same in every process and on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BUCKET_BITS = 18
BUCKETS = 1 << BUCKET_BITS
DIM = 16

# Texts are turned into features so many at a time, to bound the temporary arrays.
_CHUNK = 4096

# Odd 64-bit multipliers (SplitMix64's), and salts that keep the three kinds of feature apart.
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_WORD = np.uint64(0x9E3779B97F4A7C15)
_PAIR = np.uint64(0x3C6EF372FE94F82A)
_TRIPLE = np.uint64(0xDAA66D2C7DDF743F)


@dataclass(frozen=True, slots=True)
class Features:
    """Feature buckets of n texts, in compressed sparse rows.

    Attributes:
        buckets: int32 [m], each in 0 .. BUCKETS - 1; a feature that occurs twice in a text is listed twice.
        offsets: int64 [n + 1]; text i has ``buckets[offsets[i]:offsets[i + 1]]``, possibly none.
    """

    buckets: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """The number of texts."""
        return self.offsets.size - 1

    def take(self, rows: NDArray[np.int64]) -> Features:
        """The features of some texts, in the order given."""
        lengths = (self.offsets[1:] - self.offsets[:-1])[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        where = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Features(self.buckets[where], offsets)


def featurise(texts: Sequence[str]) -> Features:
    """Hashes each text's words, pairs of neighbouring words, and character triples.

    Texts are lowercased and their white space collapsed. A word is a run of letters and digits. Character
    triples run over the whole text, with a space at either end, so that punctuation and emoticons count too.

    Args:
        texts: n texts; an empty one has no features.

    Returns:
        The features of the n texts.
    """
    parts = [_featurise_chunk(texts[i : i + _CHUNK]) for i in range(0, len(texts), _CHUNK)]
    counts = np.concatenate([np.zeros(1, dtype=np.int64), *(counts for _, counts in parts)])
    buckets = [np.zeros(0, dtype=np.int32), *(buckets for buckets, _ in parts)]
    return Features(np.concatenate(buckets), np.cumsum(counts))


def _featurise_chunk(texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Buckets of the texts one after the other, and how many each text has."""
    padded = [f" {' '.join(text.lower().split())} " for text in texts]
    # Lone surrogates are code points like any other here.
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    text_of = np.repeat(np.arange(len(padded)), [len(text) for text in padded])

    triple = _mix((codes[:-2] * _BASE + codes[1:-1]) * _BASE + codes[2:], _TRIPLE)
    inside = text_of[:-2] == text_of[2:]

    alphabet, letter = np.unique(codes, return_inverse=True)
    in_word = np.array([chr(int(code)).isalnum() for code in alphabet])[letter]
    # Each text starts with a space, so a word's first letter always has a neighbour on its left.
    starts = np.flatnonzero(in_word[1:] & ~in_word[:-1]) + 1
    word = _mix(_polynomials(np.where(in_word, codes, np.uint64(0)), starts), _WORD)
    word_text = text_of[starts]
    pair = _mix(word[:-1] * _BASE + word[1:], _PAIR)
    same_text = word_text[:-1] == word_text[1:]

    owner = np.concatenate([word_text, word_text[:-1][same_text], text_of[:-2][inside]])
    hashes = np.concatenate([word, pair[same_text], triple[inside]])
    order = np.argsort(owner, kind="stable")
    return (hashes[order] >> np.uint64(64 - BUCKET_BITS)).astype(np.int32), np.bincount(owner, minlength=len(texts))


def _polynomials(codes: NDArray[np.uint64], starts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """sum_i codes[start + i] * BASE^(i + 1) modulo 2^64, over the codes from each start to the next."""
    if starts.size == 0:
        return np.zeros(0, dtype=np.uint64)
    lengths = np.diff(np.append(starts, codes.size))
    powers = np.cumprod(np.full(int(lengths.max()), _BASE, dtype=np.uint64))
    position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.add.reduceat(codes[starts[0] :] * powers[position], starts - starts[0])


def _mix(values: NDArray[np.uint64], salt: np.uint64) -> NDArray[np.uint64]:
    """Spreads every input bit over all 64 (the finaliser of SplitMix64)."""
    values = values + salt
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


class TextClassifier(torch.nn.Module):
    """The mean of a text's feature vectors, and a linear layer on it.

    The table starts at zero, so that a feature that training never saw adds nothing. `gather` takes only the
    vectors that a batch needs, and `LazyAdamW` writes them back, so that a step costs what its batch holds,
    not the size of the table.

    Attributes:
        table: float32 [BUCKETS, dim], one vector a feature bucket.
        head: float32 [classes, dim].
        bias: float32 [classes].

    Args:
        classes: Number of classes, at least 1.
        generator: Draws the linear layer's start.
        dim: Length of the vectors.
    """

    def __init__(self, classes: int, generator: torch.Generator, dim: int = DIM) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(BUCKETS, dim))
        self.head = torch.nn.Parameter(torch.randn(classes, dim, generator=generator) / dim**0.5)
        self.bias = torch.nn.Parameter(torch.zeros(classes))

    def forward(self, features: Features) -> torch.Tensor:
        """Logits [n, classes] of n texts."""
        return self._logits(torch.from_numpy(features.buckets.astype(np.int64)), self.table, features.offsets)

    def gather(self, features: Features) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of a batch with the part of the table that it needs as a leaf of their graph.

        Returns:
            (rows int64 [u], which vectors of the table; block float32 [u, dim], a leaf; logits [n, classes]).
        """
        rows, local = np.unique(features.buckets, return_inverse=True)
        where = torch.from_numpy(rows.astype(np.int64))
        block = self.table.detach()[where].requires_grad_()
        return where, block, self._logits(torch.from_numpy(local), block, features.offsets)

    def _logits(self, buckets: torch.Tensor, table: torch.Tensor, offsets: NDArray[np.int64]) -> torch.Tensor:
        # A table without rows (a batch of empty texts) still needs one vector to take the mean of none from.
        table = table if len(table) else table.new_zeros(1, self.table.shape[1])
        pooled = torch.nn.functional.embedding_bag(buckets, table, torch.from_numpy(offsets[:-1]), mode="mean")
        return pooled @ self.head.T + self.bias


class LazyAdamW:
    """AdamW (arXiv 1711.05101) for a `TextClassifier`, on the rows of the table that a batch touches.

    A row without a gradient gets no step and no weight decay, and its moments stand still, as in PyTorch's
    SparseAdam.

    Attributes:
        moments: For each parameter by name, the running means of gradient and squared gradient, of its shape.
        steps: How many updates were made.

    Args:
        model: What to train.
        weight_decay: Decoupled, times the learning rate.
    """

    def __init__(self, model: TextClassifier, weight_decay: float) -> None:
        self._model = model
        self._weight_decay = weight_decay
        self.moments = {
            name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in model.named_parameters()
        }
        self.steps = 0

    @torch.no_grad()
    def step(self, rows: torch.Tensor, block: torch.Tensor, lr: float) -> None:
        """Updates the model from the gradients of `gather`'s block, the head and the bias.

        Args:
            rows: int64 [u], which vectors of the table `block` holds.
            block: float32 [u, dim], with its gradient.
            lr: Learning rate.
        """
        self.steps += 1
        if len(rows):
            first, second = self.moments["table"]
            part = (first[rows], second[rows])
            self._model.table[rows] = self._update(block.detach(), block.grad, part, lr)
            first[rows], second[rows] = part
        for name in ("head", "bias"):
            parameter = self._model.get_parameter(name)
            parameter.copy_(self._update(parameter, parameter.grad, self.moments[name], lr))
            parameter.grad = None

    def _update(
        self,
        value: torch.Tensor,
        gradient: torch.Tensor | None,
        moments: tuple[torch.Tensor, torch.Tensor],
        lr: float,
    ) -> torch.Tensor:
        """The updated value; updates the moments in place. Decay rates 0.9 and 0.999."""
        assert gradient is not None
        first = moments[0].lerp_(gradient, 0.1) / (1 - 0.9**self.steps)
        second = moments[1].lerp_(gradient * gradient, 0.001) / (1 - 0.999**self.steps)
        return value * (1 - lr * self._weight_decay) - lr * first / (second.sqrt() + 1e-8)

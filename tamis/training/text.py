"""Text classification: hashed n-grams, a mean-pooled embedding, a linear layer.

Texts become features once, before training, in compressed sparse rows. The features are hashed words, pairs
of neighbouring words and character triples, as in fastText (arXiv 1607.01759). The hash is arithmetic on
Unicode code points, so it is the same in every process and on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from tamis.training.learner import Outcome, Ragged, check_labels, count_classes, digest_of
from tamis.training.ranks import Ranks, average

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tamis.training.trainer import TrainConfig

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


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Labelled texts, as features.

    Attributes:
        features: The feature buckets of n texts, each in 0 .. BUCKETS - 1; one that occurs twice is listed twice.
        labels: int64 [n], classes from 0.
        classes: Their names, or empty.

    Raises:
        DataError: There are none, or the labels do not fit.
    """

    LR: ClassVar[float] = 1e-2
    ROLES: ClassVar[tuple[str, ...]] = ("text", "label")

    features: Ragged
    labels: NDArray[np.int64]
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_labels(len(self.features), self.labels, "texts")

    @classmethod
    def of(cls, texts: Sequence[str], labels: NDArray[np.int64], classes: tuple[str, ...] = ()) -> Texts:
        """The features of n texts, with their labels."""
        return cls(featurise(texts), labels, classes)

    @property
    def evaluated_at_once(self) -> int:
        """See `tamis.training.learner.Samples`."""
        return 4096

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.features)

    def take(self, rows: NDArray[np.int64]) -> Texts:
        """Some of the texts, in the order given."""
        return Texts(self.features.take(rows), self.labels[rows], self.classes)

    def digest(self) -> str:
        """See `tamis.training.learner.Samples`."""
        return digest_of(self.features.values, self.features.offsets, self.labels)

    def learner(self, test: Texts | None, config: TrainConfig, device: torch.device, ranks: Ranks) -> TextLearner:
        """See `tamis.training.learner.Samples`."""
        classes = count_classes(self, test)
        model = TextClassifier(classes, torch.Generator().manual_seed(config.seed))
        return TextLearner(model, np.unique(self.features.values), config.weight_decay, device, ranks)


def featurise(texts: Sequence[str]) -> Ragged:
    """Hashes each text's words, pairs of neighbouring words, and character triples.

    Texts are lowercased and their white space collapsed. A word is a run of letters and digits. Character
    triples run over the whole text, with a space at either end, so that punctuation and emoticons count too.

    Args:
        texts: n texts; an empty one has no features.

    Returns:
        The feature buckets of the n texts.
    """
    parts = [_featurise_chunk(texts[i : i + _CHUNK]) for i in range(0, len(texts), _CHUNK)]
    counts = np.concatenate([np.zeros(1, dtype=np.int64), *(counts for _, counts in parts)])
    buckets = [np.zeros(0, dtype=np.int32), *(buckets for buckets, _ in parts)]
    return Ragged(np.concatenate(buckets), np.cumsum(counts))


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

    def forward(self, features: Ragged) -> torch.Tensor:
        """Logits [n, classes] of n texts."""
        return self._logits(features.values.astype(np.int64), self.table, features.offsets)

    def gather(self, features: Ragged, buckets: NDArray[np.int32]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of a batch with the part of the table that it needs as a leaf of their graph.

        Args:
            features: Of the batch.
            buckets: int32 [u], all that occur in it, and others at will; ascending.

        Returns:
            (rows int64 [u], which vectors of the table; block float32 [u, dim], a leaf; logits [n, classes]).
        """
        where = torch.from_numpy(buckets.astype(np.int64)).to(self.table.device)
        block = self.table.detach()[where].requires_grad_()
        return where, block, self._logits(np.searchsorted(buckets, features.values), block, features.offsets)

    def _logits(self, buckets: NDArray[np.int64], table: torch.Tensor, offsets: NDArray[np.int64]) -> torch.Tensor:
        # A table without rows (a batch of empty texts) still needs one vector to take the mean of none from.
        table = table if len(table) else table.new_zeros(1, self.table.shape[1])
        where, starts = (torch.from_numpy(part).to(table.device) for part in (buckets, offsets[:-1]))
        return torch.nn.functional.embedding_bag(where, table, starts, mode="mean") @ self.head.T + self.bias


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
    def step(self, rows: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        """Updates the model from the gradients of the table, the head and the bias.

        Args:
            rows: int64 [u], which vectors of the table the batch touches.
            gradient: float32 [u, dim], of these.
            lr: Learning rate.
        """
        self.steps += 1
        if len(rows):
            first, second = self.moments["table"]
            part = (first[rows], second[rows])
            self._model.table[rows] = self._update(self._model.table[rows], gradient, part, lr)
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


class TextLearner:
    """A `TextClassifier` with its optimiser; see `tamis.training.learner.Learner`.

    Args:
        model: What to train.
        used: int32 [u], the rows of its table that training can touch, ascending. All others stay zero, and out
            of the checkpoint.
        weight_decay: Of the optimiser.
        device: Where to train.
        ranks: Who this process is.
    """

    def __init__(
        self, model: TextClassifier, used: NDArray[np.int32], weight_decay: float, device: torch.device, ranks: Ranks
    ) -> None:
        self.model = model.to(device)
        self._optimiser = LazyAdamW(self.model, weight_decay)
        self._used = torch.from_numpy(used.astype(np.int64))
        self._device = device
        self._ranks = ranks
        self._where = self._block = torch.empty(0)
        self._touched: slice | torch.Tensor = slice(None)

    def outcome(
        self, samples: Texts, rows: NDArray[np.int64], joined: NDArray[np.int64] | None = None, real: int = 0
    ) -> Outcome:
        """See `tamis.training.learner.Learner`."""
        features = samples.features.take(rows)
        if joined is None:
            logits = self.model(features)
        else:
            # The same block in every process, so that the gradients can be averaged.
            together = features if self._ranks.size == 1 else samples.features.take(joined)
            buckets = np.unique(together.values)
            self._where, self._block, logits = self.model.gather(features, buckets)
            self._touched = slice(None)
            if real < len(joined):
                touched = np.unique(samples.features.take(joined[:real]).values)
                self._touched = torch.from_numpy(np.searchsorted(buckets, touched)).to(self._device)
        labels = torch.from_numpy(samples.labels[rows]).to(self._device)
        return Outcome(torch.nn.functional.cross_entropy(logits, labels, reduction="none"), logits)

    def update(self, lr: float) -> None:
        """See `tamis.training.learner.Learner`."""
        leaves = (self._block, self.model.head, self.model.bias)
        average([leaf.grad for leaf in leaves if leaf.grad is not None], self._ranks)
        gradient = self._block if self._block.grad is None else self._block.grad  # none, if all texts are empty
        self._optimiser.step(self._where[self._touched], gradient[self._touched], lr)

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `tamis.training.learner.Learner`."""
        found = {"used": self._used, "steps": torch.tensor(self._optimiser.steps)}
        for name, parts in self._parts().items():
            found[name] = parts.detach()[self._used] if name.startswith("table") else parts.detach()
        return found

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """See `tamis.training.learner.Learner`."""
        self._optimiser.steps = int(tensors["steps"])
        for name, part in self._parts().items():
            where = self._used if name.startswith("table") else slice(None)
            part[where] = tensors[name].to(self._device)

    def _parts(self) -> dict[str, torch.Tensor]:
        """The model's parameters and their moments."""
        return {
            f"{name}{kind}": tensor
            for name, value in self.model.named_parameters()
            for kind, tensor in zip(("", ".mean", ".square"), (value, *self._optimiser.moments[name]), strict=True)
        }

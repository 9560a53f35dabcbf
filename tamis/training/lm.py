"""Causal language modelling: a small GPT on blocks of tokens, each block a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from tamis.errors import DataError
from tamis.training.learner import DenseLearner, Outcome, Ragged, digest_of, seeded, unrounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tamis.training.ranks import Ranks
    from tamis.training.trainer import TrainConfig

_HEAD = 32
_MAX_VOCABULARY, _MAX_CONTEXT = 1 << 20, 8192


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Blocks of tokens, as `tamis.training.pack` makes them.

    Attributes:
        tokens: Of n blocks, each at least one token, at least 0.
        vocabulary: How many tokens the model tells apart; 0 for those up to the largest. Some of the blocks have the
            vocabulary of all (`take`), so that what was selected does not decide how large the model is.
        context: Length of the longest block that the model takes; likewise.

    Raises:
        DataError: There are none, or one is empty, or a token is negative.
    """

    LR: ClassVar[float] = 1e-3
    ROLES: ClassVar[tuple[str, ...]] = ("tokens",)

    tokens: Ragged
    vocabulary: int = 0
    context: int = 0

    def __post_init__(self) -> None:
        if not len(self.tokens) or self.tokens.lengths.min() < 1 or self.tokens.values.min() < 0:
            raise DataError(
                f"{len(self.tokens)} blocks of tokens, the shortest of {self.tokens.lengths.min(initial=0)}, the "
                f"least token {self.tokens.values.min(initial=0)}; at least one block is needed, each with at least "
                "one token, from 0"
            )
        if self.tokens.values.max() >= _MAX_VOCABULARY or self.tokens.lengths.max() > _MAX_CONTEXT:
            raise DataError(
                f"the largest token is {self.tokens.values.max()} and the longest block has "
                f"{self.tokens.lengths.max()}; tokens below {_MAX_VOCABULARY} in blocks of up to {_MAX_CONTEXT} are "
                "allowed: `tamis pack` makes such"
            )
        for name, least in (("vocabulary", 1 + self.tokens.values.max()), ("context", self.tokens.lengths.max())):
            object.__setattr__(self, name, max(getattr(self, name), int(least)))

    @property
    def evaluated_at_once(self) -> int:
        """See `tamis.training.learner.Samples`."""
        return 16

    @property
    def labels(self) -> None:
        """Blocks have none."""
        return

    @property
    def classes(self) -> tuple[str, ...]:
        """Blocks have none."""
        return ()

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.tokens)

    def take(self, rows: NDArray[np.int64]) -> Blocks:
        """Some of the blocks, in the order given."""
        return Blocks(self.tokens.take(rows), self.vocabulary, self.context)

    def digest(self) -> str:
        """See `tamis.training.learner.Samples`."""
        own = Blocks(self.tokens)
        size = (self.vocabulary, self.context)
        beyond = () if size == (own.vocabulary, own.context) else (np.array(size),)
        return digest_of(self.tokens.values, self.tokens.offsets, *beyond)

    def learner(self, test: Blocks | None, config: TrainConfig, device: torch.device, ranks: Ranks) -> DenseLearner:
        """See `tamis.training.learner.Samples`."""
        parts = [part for part in (self, test) if part is not None]
        vocabulary = max(part.vocabulary for part in parts)
        context = max(part.context for part in parts)
        with seeded(config.seed):
            model = Gpt(vocabulary, context, config.width, config.layers)
        return DenseLearner(model, config.weight_decay, device, ranks)

    def outcome(self, model: nn.Module, rows: NDArray[np.int64], device: torch.device) -> Outcome:
        """See `tamis.training.learner.DenseLearner`. A block's loss is the mean over its tokens."""
        part = self.tokens.take(rows)
        lengths = part.lengths
        inside = np.arange(lengths.max()) < lengths[:, None]
        padded = np.zeros(inside.shape, np.int64)
        padded[inside] = part.values
        tokens, mask = torch.from_numpy(padded).to(device), torch.from_numpy(inside).to(device)
        counts = torch.from_numpy(lengths.astype(np.float32)).to(device)
        logits = unrounded(model(tokens))
        each = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        return Outcome((each.view_as(mask) * mask).sum(1) / counts, token_counts=counts)


class Gpt(nn.Module):
    """A decoder-only transformer with learned positions, norms before the layers, and one matrix for both ends.

    Args:
        vocabulary: Number of tokens.
        context: Longest block.
        width: Of the embeddings, a multiple of 32, the width of a head.
        layers: How many.
    """

    def __init__(self, vocabulary: int, context: int, width: int, layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.start = nn.Parameter(torch.zeros(width))
        layer = nn.TransformerEncoderLayer(
            width, width // _HEAD, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        for parameter in (self.tokens.weight, self.positions.weight, self.start):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [m, length, vocabulary] of int64 [m, length]; each token's is made of those before it alone."""
        m, length = tokens.shape
        before = torch.cat([self.start.expand(m, 1, -1), self.tokens(tokens[:, :-1])], dim=1)
        hidden = before + self.positions.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        logits: torch.Tensor = self.layers(hidden, mask=mask, is_causal=True) @ self.tokens.weight.T
        return logits

"""Samples, shard by shard."""

from __future__ import annotations

import itertools
from operator import itemgetter
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")


def in_shards(samples: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[Iterator[T]]:
    """Divide samples, in their order, into shards of at most so many bytes; a larger sample is alone in its shard.

    >>> [list(shard) for shard in in_shards(["aa", "b", "cccc", "d"], len, 3)]
    [['aa', 'b'], ['cccc'], ['d']]
    """
    for _, shard in itertools.groupby(_numbered(samples, size, limit), itemgetter(0)):
        yield (sample for _, sample in shard)


def _numbered(samples: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[tuple[int, T]]:
    shard = held = 0
    for sample in samples:
        own = size(sample)
        if held and held + own > limit:
            shard, held = shard + 1, 0
        held += own
        yield shard, sample

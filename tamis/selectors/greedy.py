"""Greedy maximisation of facility location on exact whole numbers, whatever the kernel is kept in.

The objective, for limits low_i <= high_i of each row (0 and 1 in plain facility location), is
f(S) = sum_i clip(max_{j in S} k_ij, low_i, high_i) - low_i. A floor makes it the gain over a set that is there
already, or over one to avoid; a ceiling makes it the mutual information with a query set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tamis.embeddings.grid import UNIT

if TYPE_CHECKING:
    from tamis.selectors.kernels import Kernel, Lists

UInt16 = npt.NDArray[np.uint16]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

# _greedy is imported where it is used: loading numba takes half a second that a recipe check should not.

_FIRST_CHECK = 8  # steps before the pairs that still matter are counted for the first time
_SAMPLED_ROWS = 256
_PAIRS_DIVISOR = 32  # listed once fewer than n^2 / 32 pairs still matter
_BOUNDS = 12  # prefixes at which the upper bound is taken


@dataclass(frozen=True, slots=True)
class Terms:
    """What is maximised, and when to stop. Similarities are in units of 2^-15.

    Attributes:
        budget: Most rows to choose, at least 1.
        low: uint16[n], what each row has before anything is chosen; None for 0.
        high: uint16[n], the most that a row can have, nowhere below `low`; None for 1.
        candidates: int64, ascending, what may be chosen; None for all.
        cost: float64[m] > 0 of each candidate; None for 1.
        money: What the costs may sum to.
        least_gain: Stop before a gain below this.
        enough: Stop once f has reached this.
        last_of_ties: Ties as in submodlib's LazyGreedy, not to the lowest index.
    """

    budget: int
    low: UInt16 | None = None
    high: UInt16 | None = None
    candidates: Int64 | None = None
    cost: Float64 | None = None
    money: float = math.inf
    least_gain: int = 0
    enough: int = 1 << 62
    last_of_ties: bool = False


@dataclass(frozen=True, slots=True)
class Trace:
    """What greedy did.

    Attributes:
        chosen: int64[k], in order.
        gains: int64[k], exact.
        best: uint16[n], each row's similarity to the chosen set, within its limits.
        owner: int32[n], the rank of the chosen row that gave it (the first of several), -1 for none.
        remaining: int64[m], what each candidate would still add.
        bound: No set of this many rows (or of these costs) has a larger f.
        bare: Whether nothing was there before, so that a row without an owner is nobody's.
    """

    chosen: Int64
    gains: Int64
    best: UInt16
    owner: Int32
    remaining: Int64
    bound: int
    bare: bool


def maximise(kernel: Kernel, terms: Terms, most_pairs: int | None = None) -> Trace:
    """Greedy on a kernel of all pairs.

    All gains are exact at all times. First a choice is taken from every gain, through the rows whose best
    similarity it raises. Pairs with k_ij <= best_i never matter again, so once few are left they are listed, and
    the lists shrink from then on (`maximise_lists`).

    Args:
        kernel: The kernel, n rows, which are also the candidates.
        terms: What to maximise.
        most_pairs: List the pairs once there are at most this many; they take 12 bytes each. None: n^2 / 32.

    Returns:
        The trace.
    """
    from tamis.selectors import _greedy

    n = kernel.n
    state = _State(n, n, terms)
    state.start(kernel.gains(state.best, state.high))
    most = n * n // _PAIRS_DIVISOR if most_pairs is None else most_pairs
    sample = np.arange(min(n, _SAMPLED_ROWS)) * n // min(n, _SAMPLED_ROWS)
    changed, old, new = np.empty(n, np.int64), np.empty(n, np.uint16), np.empty(n, np.uint16)
    while (s := state.next()) is not None:
        count = _greedy.raise_best(
            kernel.row(s), state.high, state.step - 1, state.best, state.owner, changed, old, new
        )
        kernel.take(changed[:count], old[:count], new[:count], state.gain)
        if state.step >= _FIRST_CHECK and kernel.count(sample, state.best[sample]) * n <= most * len(sample):
            break
    if state.over:
        return state.trace()
    lists = kernel.lists(state.best, state.high)
    if len(kernel.matrix):
        by_column = (np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.uint16))
    else:
        by_column = _greedy.transpose_lists(*lists, n)
    state.finish(kernel.matrix, lists, by_column)
    return state.trace()


def maximise_lists(rows: Lists, columns: Lists, terms: Terms) -> Trace:
    """Greedy on a sparse kernel: pairs that are not listed have a similarity of at most the row's `low`.

    Args:
        rows: Each row's candidates and similarities: starts int64[n + 1], candidates int32, uint16. Not changed.
        columns: The same pairs by candidate: starts int64[m + 1], rows int32, uint16; of a symmetric kernel the
            same arrays. Not changed.
        terms: What to maximise.

    Returns:
        The trace.
    """
    from tamis.selectors import _greedy

    n, m = len(rows[0]) - 1, len(columns[0]) - 1
    state = _State(n, m, terms)
    state.start(_greedy.sum_lists(*columns, state.best, state.high))
    state.finish(np.empty((0, 0), np.uint16), _greedy.lists_above(*rows, state.best, state.high), columns)
    return state.trace()


class _State:
    """Where greedy stands between two compiled calls."""

    def __init__(self, n: int, candidates: int, terms: Terms) -> None:
        self.terms = terms
        self.best = np.zeros(n, np.uint16) if terms.low is None else terms.low.astype(np.uint16)
        self.high = np.full(n, UNIT, np.uint16) if terms.high is None else terms.high
        self.owner = np.full(n, -1, np.int32)
        self.cost = np.ones(candidates) if terms.cost is None else terms.cost
        self.chosen = np.empty(terms.budget, np.int64)
        self.gains = np.empty(terms.budget, np.int64)
        self.items = np.arange(candidates) if terms.candidates is None else terms.candidates.copy()
        self.step, self.size, self.reached, self.money = 0, len(self.items), 0, terms.money
        self.bound, self.over = 1 << 62, False
        self.checks = sorted({round(terms.budget * part / _BOUNDS) for part in range(1, _BOUNDS)} - {0})

    def start(self, gain: Int64) -> None:
        from tamis.selectors import _greedy

        self.gain = gain
        self.keys = gain[self.items] / self.cost[self.items]
        _greedy.make_heap(self.keys, self.items, self.terms.last_of_ties)
        self._tighten()

    def next(self) -> int | None:
        """Choose one more, or None where a limit is met. What it takes from the gains is the caller's to do."""
        from tamis.selectors import _greedy

        terms = self.terms
        if self.step in self.checks:
            self._tighten()
        while self.step < terms.budget and self.size and self.reached < terms.enough:
            s = int(_greedy.pop_best(self.keys, self.items, self.size, self.gain, self.cost, terms.last_of_ties))
            self.size -= 1
            if self.cost[s] > self.money:
                continue
            if self.gain[s] < terms.least_gain:
                break
            self.chosen[self.step], self.gains[self.step] = s, self.gain[s]
            self.money -= self.cost[s]
            self.reached += int(self.gain[s])
            self.step += 1
            return s
        self.over = True
        return None

    def finish(self, matrix: UInt16, rows: Lists, columns: Lists) -> None:
        from tamis.selectors import _greedy

        terms = self.terms
        start, column, value = rows
        length = np.diff(start)
        for until in [*(check for check in self.checks if check >= self.step), terms.budget]:
            self.step, self.size, self.money, self.reached = _greedy.continue_greedy(
                matrix, *columns, start, length, column, value, self.gain, self.best, self.owner, self.high,
                self.keys, self.items, self.size, self.cost, self.money, terms.least_gain, terms.enough, self.reached,
                self.chosen, self.gains, self.step, until, terms.last_of_ties,
            )  # fmt: skip
            self._tighten()
            if self.step < until:
                break
        self.over = True

    def _tighten(self) -> None:
        """OPT <= f(S) + what the largest gains given S sum to, for any S: f is monotone and submodular."""
        allowed = slice(None) if self.terms.candidates is None else self.terms.candidates
        gain = self.gain[allowed]
        if self.terms.cost is None:
            first = max(0, len(gain) - self.terms.budget)
            most = int(np.partition(gain, first)[first:].sum()) if first < len(gain) else 0
        else:
            cost = self.cost[allowed]
            by_ratio = np.argsort(-gain / cost, kind="stable")
            fitting = int(np.searchsorted(np.cumsum(cost[by_ratio]), self.terms.money, side="right"))
            most = int(gain[by_ratio[: fitting + 1]].sum())  # the next one fits in part at most
        self.bound = min(self.bound, self.reached + most)

    def trace(self) -> Trace:
        if self.step < self.terms.budget and self.terms.cost is None:
            self.terms = replace(self.terms, budget=self.step)  # stopped early: bound as many as there are
        self._tighten()
        # Copies, so that a short selection does not hold the room of a long one.
        chosen, gains = self.chosen[: self.step].copy(), self.gains[: self.step].copy()
        return Trace(chosen, gains, self.best, self.owner, self.gain, self.bound, self.terms.low is None)

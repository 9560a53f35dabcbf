"""INGENIOUS (arXiv 2305.06677): rank every row by its submodular gain, then draw by a soft weight.

The ranking is computed once per partition; a draw is cheap and may be repeated during training with the same
probabilities (the paper's figure 2). Different from the authors' release: the last element of a partition has
its gain too, so every row can be drawn; shares of partitions sum to the budget exactly; the greedy ranking is
exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from tamis.errors import DataError, RecipeError
from tamis.selectors.facility_location import DEFAULT_MEMORY_BYTES, rank_partition, split_into_cells
from tamis.selectors.selection import Selection, as_unit_rows, resolve_budget
from tamis.selectors.shares import largest_remainder

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Int64 = npt.NDArray[np.int64]
    Float64 = npt.NDArray[np.float64]
    Ranking = tuple[Int64, Float64]


def taylor_softmax(gains: Float64, temperature: float, scale_free: bool = False) -> Float64:
    """Second-order Taylor softmax: p_i = phi(g_i / T) / sum_l phi(g_l / T), phi(x) = 1 + x + x^2 / 2.

    phi(x) = (1 + (1 + x)^2) / 2 is positive everywhere, so every row has a chance. Source: INGENIOUS
    (T = 1 in the authors' code).

    Args:
        gains: float64[n], finite, n >= 1.
        temperature: T > 0; smaller prefers large gains more.
        scale_free: Divide the gains by their median first, so that T means the same for every partition and
            scale (ours, not the paper's). Where the median is not positive the mean is used, and where that
            is not positive either the gains are left as they are.

    Returns:
        float64[n] > 0, summing to 1.

    Raises:
        RecipeError: The temperature is not finite and positive, or so small that the squares overflow.
        DataError: No gains, or gains that are not finite.

    >>> taylor_softmax(np.array([2.0, 0.0]), temperature=1.0).round(4).tolist()
    [0.8333, 0.1667]
    """
    g = np.asarray(gains, np.float64)
    if not (np.isfinite(temperature) and temperature > 0):
        raise RecipeError(f"temperature {temperature!r}: give a finite number above 0")
    if g.ndim != 1 or len(g) == 0 or not np.isfinite(g).all():
        raise DataError(f"gains of shape {g.shape} must be a 1-D array of finite numbers, at least one")
    if scale_free:
        centre = max(float(np.median(g)), 0.0) or max(float(g.mean()), 0.0)
        g = g / (centre or 1.0)
    with np.errstate(over="ignore"):
        x = g / temperature
        phi = 0.5 * (1.0 + (1.0 + x) ** 2)
        total = phi.sum()
    if not np.isfinite(total):
        raise RecipeError(f"temperature {temperature!r} is too small for gains up to {g.max():g}; give a larger one")
    return np.asarray(phi / total, np.float64)


def draw(p: Float64, k: int, rng: np.random.Generator) -> Int64:
    """Draw k positions without replacement, one after another in proportion to the p of those left.

    By Gumbel keys log p_i + G_i, largest first (the exponential keys of Efraimidis and Spirakis, 2006, in the
    log domain), which gives exactly the order of successive draws.

    Args:
        p: float64[n], finite and positive; need not sum to 1.
        k: How many, in [0, n].
        rng: The only source of randomness; n variates are taken from it.

    Returns:
        int64[k] positions in the order of inclusion.

    Raises:
        RecipeError: k is not in [0, n].
        DataError: A probability is not finite and positive (a row could never be drawn).
    """
    p = np.asarray(p, np.float64)
    if not 0 <= k <= len(p):
        raise RecipeError(f"cannot draw {k} of {len(p)} rows without replacement")
    if not (np.isfinite(p).all() and (p > 0).all()):
        raise DataError("every probability of a draw must be finite and above 0")
    keys = np.log(p) + rng.gumbel(size=len(p))
    return np.argsort(-keys, kind="stable")[:k].astype(np.int64)


def draw_shares(
    rankings: Sequence[Ranking],
    budget: int | float,
    rng: np.random.Generator,
    temperature: float = 1.0,
    scale_free: bool = False,
) -> Ranking:
    """Draw from every partition its exact share of the budget by the Taylor softmax of its gains.

    Args:
        rankings: Of each partition the indices, int64 (global ones, no row twice), and gains, float64; full
            ones, so that every row can be drawn. Their order matters for the random stream.
        budget: A fraction of all ranked rows or a count. Shares are in proportion to the partitions' sizes,
            by largest remainder.
        rng: The only source of randomness.
        temperature: See `taylor_softmax`.
        scale_free: See `taylor_softmax`.

    Returns:
        The drawn indices, int64[k], and their gains, float64[k], by descending gain, ties to the lowest
        index.

    Raises:
        RecipeError: An unusable budget or temperature.
        DataError: Gains that are not finite.
    """
    sizes = np.array([len(indices) for indices, _ in rankings], np.int64)
    count = resolve_budget(budget, int(sizes.sum()))
    shares = largest_remainder(sizes.astype(np.float64), count, sizes)
    drawn = [
        (indices[chosen], gains[chosen])
        for (indices, gains), share in zip(rankings, shares.tolist(), strict=True)
        if len(indices)
        for chosen in [draw(taylor_softmax(gains, temperature, scale_free), share, rng)]
    ]
    indices = np.concatenate([i for i, _ in drawn]).astype(np.int64)
    gains = np.concatenate([g for _, g in drawn]).astype(np.float64)
    order = np.lexsort((indices, -gains))
    return indices[order], gains[order]


def draw_orders(
    rankings: Sequence[Ranking], rng: np.random.Generator, temperature: float = 1.0, scale_free: bool = False
) -> list[Ranking]:
    """Draw every row of every partition, one after another: a budget then pays for the first rows of each.

    Args:
        rankings: As in `draw_shares`.
        rng: The only source of randomness.
        temperature: See `taylor_softmax`.
        scale_free: See `taylor_softmax`.

    Returns:
        The partitions' indices and gains, in the order of the draw.

    Raises:
        RecipeError: An unusable temperature.
        DataError: Gains that are not finite.
    """
    orders = [
        draw(taylor_softmax(gains, temperature, scale_free), len(gains), rng) if len(gains) else np.empty(0, np.int64)
        for _, gains in rankings
    ]
    return [(indices[order], gains[order]) for (indices, gains), order in zip(rankings, orders, strict=True)]


def overlap_diagnostics(
    rankings: Sequence[Ranking],
    budget: int | float,
    rng: np.random.Generator,
    temperature: float = 1.0,
    scale_free: bool = False,
) -> dict[str, int]:
    """How much two draws have in common, beside two uniform draws with the same shares.

    Nearly equal numbers say that the gains hardly steer the draw (at T = 1 about 90 % of a 25 % draw is
    nearly uniform on the authors' own recorded gains): lower the temperature.

    Args:
        rankings: As in `draw_shares`.
        budget: As in `draw_shares`.
        rng: The only source of randomness; pass one that the selection's own draw does not use.
        temperature: As in `draw_shares`.
        scale_free: As in `draw_shares`.

    Returns:
        `overlap_of_two_draws` and `overlap_of_two_uniform_draws`, in rows.

    Raises:
        RecipeError: An unusable budget or temperature.
        DataError: Gains that are not finite.
    """
    flat = [(indices, np.zeros(len(gains))) for indices, gains in rankings]

    def overlap(of: Sequence[Ranking]) -> int:
        first, _ = draw_shares(of, budget, rng, temperature, scale_free)
        second, _ = draw_shares(of, budget, rng, temperature, scale_free)
        return len(np.intersect1d(first, second))

    return {"overlap_of_two_draws": overlap(rankings), "overlap_of_two_uniform_draws": overlap(flat)}


def ingenious(
    X: npt.ArrayLike,
    *,
    budget: int | float,
    rng: np.random.Generator,
    objective: Literal["facility_location"] = "facility_location",
    temperature: float = 1.0,
    scale_free: bool = False,
    partitions: Int64 | None = None,
) -> Selection:
    """Rank all rows of every partition by exact greedy gain, then draw each partition's share.

    Args:
        X: Embeddings, float16, float32 or float64 [n, d]; need not be normalised.
        budget: A fraction of n as a float in (0, 1], or a count as an integer in [1, n].
        rng: The only source of randomness, for the draw alone: the ranking is deterministic.
        objective: The function whose gains rank the rows.
        temperature: T of the Taylor softmax; 1 in the paper.
        scale_free: Divide gains by their partition's median first (see `taylor_softmax`).
        partitions: int64[n], the partition of each row; any integers. None takes all rows as one partition
            where its kernel fits 2 GiB, and otherwise k-means cells of about 1,000 rows. (The paper's random
            blocks recover little of what greedy gains over random; pass them here to have them.)

    Returns:
        A Selection by descending gain, ties to the lowest index, with the gain of each row in its partition's
        greedy ranking; no weights and no certificate, since the draw is random.

    Raises:
        RecipeError: An unusable budget, objective, temperature or partition.
        DataError: Unusable embeddings (see `as_unit_rows`).
    """
    if objective != "facility_location":
        raise RecipeError(f"objective {objective!r} is not one of 'facility_location'")
    unit = as_unit_rows(X)
    n = len(unit)
    count = resolve_budget(budget, n)
    rankings = []
    for rows in _partition_rows(unit, partitions):
        local, gains = rank_partition(np.ascontiguousarray(unit[rows]), len(rows))
        rankings.append((rows[local], gains))
    indices, gains = draw_shares(rankings, count, rng, temperature, scale_free)
    return Selection(indices, gains, None, None)


def _partition_rows(unit: npt.NDArray[np.float32], partitions: Int64 | None) -> list[Int64]:
    n = len(unit)
    if partitions is None:
        return [np.arange(n)] if 2 * n * n <= DEFAULT_MEMORY_BYTES else split_into_cells(unit)
    labels = np.asarray(partitions)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise RecipeError(f"partitions: {labels.dtype} of shape {labels.shape}; give one integer for each of {n} rows")
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)

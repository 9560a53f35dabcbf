"""Whole shares of a total that sum to it exactly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tamis.errors import DataError, RecipeError, first_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ROUNDING = 1e-9  # of fractions that sum to 1


def largest_remainder(
    weights: npt.NDArray[np.float64], total: int, caps: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """Split a total in proportion to weights, in whole numbers (the method of Hamilton).

    Shares are min(caps, theta * weights), with the theta that makes them sum to the total, rounded down; the
    units left over go to the largest remainders. Remainders that float64 cannot tell apart are compared in exact
    integer arithmetic, so ties are true ties and go to the lowest index. Members of weight 0 get only what the
    others cannot hold, in equal parts.

    Args:
        weights: float64[k], finite and >= 0; all zero means equal weights.
        total: What to split, >= 0.
        caps: int64[k] >= 0, the most that each share may be; None for no limit.

    Returns:
        int64[k] with sum exactly `total` and never above `caps`.

    Raises:
        RecipeError: A negative or non-finite weight or cap, or caps that sum to less than the total.

    >>> largest_remainder(np.array([1.0, 1.0, 1.0]), 5).tolist()
    [2, 2, 1]
    >>> largest_remainder(np.array([9.0, 1.0, 1.0]), 6, np.array([3, 5, 5])).tolist()
    [3, 2, 1]
    """
    w = np.asarray(weights, np.float64)
    limits = np.full(w.shape, total, np.int64) if caps is None else np.asarray(caps, np.int64)
    if w.ndim != 1 or limits.shape != w.shape:
        raise RecipeError(f"weights of shape {w.shape} with caps of shape {limits.shape}; give two 1-D arrays alike")
    if not (np.isfinite(w).all() and (w >= 0).all() and (limits >= 0).all() and total >= 0):
        raise RecipeError(f"weights, caps and the total ({total}) of shares must be finite and not negative")
    room = int(limits.sum())
    if room < total:
        raise RecipeError(f"cannot give out {total}: the caps of {len(w)} shares sum to {room}, {total - room} too few")

    shares = np.zeros(len(w), np.int64)
    weighted = (w > 0) & (limits > 0)
    held = int(limits[weighted].sum())
    if held <= total:
        shares[weighted] = limits[weighted]
        others = np.flatnonzero(~weighted & (limits > 0))
        if held < total:
            shares[others] = largest_remainder(np.ones(len(others)), total - held, limits[others])
        return shares

    members = np.flatnonzero(weighted)
    capped = _capped(w[members], limits[members], total)
    shares[members[capped]] = limits[members[capped]]
    free = members[~capped]
    shares[free] = _rounded(w[free], limits[free], total - int(shares.sum()))
    return shares


def lasso_shares(predictors: npt.ArrayLike, target: npt.ArrayLike, penalty: float) -> npt.NDArray[np.float64]:
    """Shares of a budget for sources, by how much each helps to explain a target (A-MTRL, arXiv 2306.02556).

    v = argmin 1/2 ||W v - w||^2 + penalty ||v||_1, where the columns of W are the weights of one trained predictor a
    source, on one representation, and w those of a predictor trained on the target; the share of source m is in
    proportion to |v_m|. A recipe takes the result as `shares: {SOURCE: share}`.

    Args:
        predictors: W, float [d, m]: of m sources.
        target: w, float [d].
        penalty: Above 0; the larger, the fewer sources have a share.

    Returns:
        float64[m], not negative, summing to 1; 0 for sources that are left out.

    Raises:
        RecipeError: The penalty is not above 0, or so large that no source is left.
        DataError: The shapes do not fit together, or a number is not finite.

    >>> lasso_shares(np.eye(3), [3.0, 1.0, 0.2], penalty=0.5).round(3).tolist()
    [0.833, 0.167, 0.0]
    """
    from sklearn.linear_model import Lasso

    W, w = np.asarray(predictors, np.float64), np.asarray(target, np.float64)
    if W.ndim != 2 or w.shape != W.shape[:1] or not (np.isfinite(W).all() and np.isfinite(w).all()):
        raise DataError(f"predictors {W.shape} and target {w.shape} must be finite, [d, m] and [d]")
    if not (math.isfinite(penalty) and penalty > 0):
        raise RecipeError(f"penalty {penalty!r}: give a finite number above 0")
    # scikit-learn's objective is ours divided by d.
    model = Lasso(alpha=penalty / len(w), fit_intercept=False, max_iter=100_000, tol=1e-8)
    size = np.abs(model.fit(W, w).coef_)
    if not size.any():
        most = float(np.abs(W.T @ w).max())
        raise RecipeError(f"penalty {penalty:g} leaves no source a share; it must be below {most:g}")
    shares: npt.NDArray[np.float64] = size / size.sum()
    return shares


def named_shares(
    sizes: npt.NDArray[np.int64],
    total: int,
    fixed: Mapping[str, int | float],
    names: Sequence[str],
    weights: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.int64]:
    """Split a total over groups of which some have a share of their own; the others get the rest in proportion.

    Args:
        sizes: int64[k], the most that each group can take.
        total: What to split, >= 0.
        fixed: By name, a fraction of the total as a float in (0, 1], or so much of it as an integer. Fractions are
            rounded together, by largest remainder, with what they leave.
        names: What each group is called, [k]; not needed where nothing is fixed.
        weights: float64[k], in proportion to what the others get it; their sizes by default.

    Returns:
        int64[k] with sum exactly `total`.

    Raises:
        RecipeError: A name that no group has, or shares that the groups or the total are too small for, or that give
            out less than the total and leave no other group.

    >>> named_shares(np.array([50, 30, 20]), 10, {"b": 0.5, "c": 2}, "abc").tolist()
    [3, 5, 2]
    """
    proportion = sizes.astype(np.float64) if weights is None else weights
    if not fixed:
        return largest_remainder(proportion, total, sizes)
    place = {name: number for number, name in enumerate(names)}
    unknown = [name for name in fixed if name not in place]
    if unknown:
        raise RecipeError(f"shares name {unknown[0]!r}, of which there is no row here; there are {first_of(names)}")
    parts = {name: share for name, share in fixed.items() if isinstance(share, float)}
    rest = 1.0 - math.fsum(parts.values())
    if rest < -_ROUNDING:
        raise RecipeError(f"shares sum to {1.0 - rest:.6g} of the budget: give fractions that sum to at most 1")
    split = largest_remainder(np.array([*parts.values(), rest if rest > _ROUNDING else 0.0]), total)
    given = dict(fixed) | dict(zip(parts, split.tolist(), strict=False))
    shares = np.zeros(len(sizes), np.int64)
    for name, share in given.items():
        if share > sizes[place[name]]:
            raise RecipeError(
                f"shares give {name!r} {share} of the budget of {total}, and it has {sizes[place[name]]}: give it "
                "less, or drop less before"
            )
        shares[place[name]] = share
    left = total - int(shares.sum())
    others = np.array([place[name] for name in names if name not in fixed], np.int64)
    room = int(sizes[others].sum())
    if not 0 <= left <= room:
        raise RecipeError(
            f"shares give out {total - left} of the budget of {total}, and the other {len(others)} groups have {room}: "
            + ("give out less" if left < 0 else "give out more, or a smaller budget")
        )
    shares[others] = largest_remainder(proportion[others], left, sizes[others])
    return shares


def _rounded(w: npt.NDArray[np.float64], limits: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """The quotas total * w / sum(w) > 0 in whole numbers of this sum, none above its limit.

    Decided in float64 wherever its error cannot matter, and exactly elsewhere.
    """
    scaled = w / w.max()
    quotas = total * (scaled / scaled.sum())
    error = quotas * 2.0**-46 + 2.0**-46  # more than the errors of division and pairwise sum together
    whole = np.floor(quotas)
    remainders = quotas - whole
    doubtful = np.flatnonzero((1.0 - remainders <= error) | ((remainders <= error) & (whole > 0)))
    shares = whole.astype(np.int64)
    integers = _Integers(w)
    shares[doubtful], remainders[doubtful] = integers.divide(doubtful, total)
    shares = np.asarray(np.minimum(shares, limits), np.int64)
    left = total - int(shares.sum())
    while left > 0:
        raised = np.flatnonzero(shares < limits)
        if left < len(raised):
            # The last remainder that gets a unit: what is above or below it by more than both errors is clear.
            rest = remainders[raised]
            last = -np.partition(-rest, left - 1)[left - 1]
            slack = 2.0 * error[raised].max()
            clear = raised[rest > last + slack]
            close = raised[(rest <= last + slack) & (rest >= last - slack)]
            raised = np.concatenate((clear, integers.largest(close, total, left - len(clear))))
        shares[raised] += 1
        left -= len(raised)
    return shares


class _Integers:
    """Weights > 0 as integers in the same proportions: float64 values are multiples of a power of two."""

    def __init__(self, w: npt.NDArray[np.float64]) -> None:
        self._weights = w
        fractions, exponents = np.frexp(w)
        self._mantissas = np.ldexp(fractions, 53).astype(np.int64)
        self._shifts = exponents - exponents.min()
        levels, which = np.unique(self._shifts, return_inverse=True)
        self._sum = 0
        for bit in (0, 18, 36):  # sums of 18 bits at a time stay below 2^53, so that bincount is exact
            sums = np.bincount(which, weights=(self._mantissas >> bit) & (2**18 - 1))
            self._sum += sum(int(x) << (bit + level) for x, level in zip(sums, levels.tolist(), strict=True))

    def _divmod(
        self, members: npt.NDArray[np.int64], total: int
    ) -> tuple[list[tuple[int, int]], npt.NDArray[np.int64]]:
        """(quota rounded down, remainder) of each different weight among some members, and which each one has."""
        _, first, which = np.unique(self._weights[members], return_index=True, return_inverse=True)
        distinct = members[first]
        parts = zip(self._mantissas[distinct].tolist(), self._shifts[distinct].tolist(), strict=True)
        return [divmod(total * (mantissa << shift), self._sum) for mantissa, shift in parts], which

    def divide(
        self, members: npt.NDArray[np.int64], total: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The quotas of some members: rounded down, and what is left, in float64."""
        exact, which = self._divmod(members, total)
        whole = np.array([quota for quota, _ in exact], np.int64)
        rest = np.array([remainder / self._sum for _, remainder in exact], np.float64)
        return whole[which], rest[which]

    def largest(self, members: npt.NDArray[np.int64], total: int, count: int) -> npt.NDArray[np.int64]:
        """Those of some members (ascending) that have the largest remainders, ties to the lowest index."""
        exact, which = self._divmod(members, total)
        order = sorted(range(len(exact)), key=lambda p: -exact[p][1])
        rank = np.empty(len(exact), np.int64)
        for place, p in enumerate(order):
            equal = place > 0 and exact[p][1] == exact[order[place - 1]][1]
            rank[p] = rank[order[place - 1]] if equal else place
        return members[np.argsort(rank[which], kind="stable")[:count]]


def _capped(w: npt.NDArray[np.float64], limits: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.bool_]:
    """Which members reach their cap when shares are min(limits, theta * w) and sum to total < sum(limits)."""
    # Scaled and bounded away from 0, so that no quotient or sum overflows.
    scaled = np.maximum(w / w.max(), 1e-200)
    ratio = limits / scaled
    order = np.argsort(ratio, kind="stable")
    before = np.concatenate(([0], np.cumsum(limits[order])[:-1]))
    weight_from = np.cumsum(scaled[order][::-1])[::-1]
    # The first p members (by cap per weight) are capped: p is the first at which theta fits the next.
    fits = total - before <= ratio[order] * weight_from
    capped = np.zeros(len(w), np.bool_)
    capped[order[: int(np.argmax(fits))]] = True
    return capped

"""Whole shares of a total that sum to it exactly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tamis.errors import RecipeError


def largest_remainder(
    weights: npt.NDArray[np.float64], total: int, caps: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """Split a total in proportion to weights, in whole numbers (the method of Hamilton).

    Shares are min(caps, theta * weights), with the theta that makes them sum to the total, rounded down; the
    units left over go to the largest remainders. Remainders are compared in exact integer arithmetic, so ties
    are true ties and go to the lowest index. Members of weight 0 get only what the others cannot hold, in
    equal parts.

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
    left = total - int(shares.sum())
    numerators = _as_integers(w[free])
    whole = sum(numerators)
    quotas = [divmod(left * x, whole) for x in numerators]
    shares[free] = np.minimum([q for q, _ in quotas], limits[free])
    by_remainder = sorted(range(len(free)), key=lambda p: (-quotas[p][1], p))
    left = total - int(shares.sum())
    while left > 0:
        for p in by_remainder:
            if left > 0 and shares[free[p]] < limits[free[p]]:
                shares[free[p]] += 1
                left -= 1
    return shares


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


def _as_integers(w: npt.NDArray[np.float64]) -> list[int]:
    """The weights as integers in the same proportions (float64 values are multiples of a power of two)."""
    ratios = [x.as_integer_ratio() for x in w.tolist()]
    common = max(denominator for _, denominator in ratios)
    return [numerator * (common // denominator) for numerator, denominator in ratios]

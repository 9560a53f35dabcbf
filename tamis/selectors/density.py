"""Density-based pruning (arXiv 2401.04578): keep more of the clusters that are wide and far from the others.

Deduplicate before, or duplicates dominate the clusters. The quotas solve the paper's quadratic programme in
closed form and sum to the target exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from tamis.errors import DataError, RecipeError
from tamis.selectors.selection import as_unit_rows
from tamis.threads import one_blas_thread

if TYPE_CHECKING:
    import numpy.typing as npt

    Int64 = npt.NDArray[np.int64]
    Float64 = npt.NDArray[np.float64]

_SIDE = 512  # centroids a side of a tile, which then stays in cache
_SPARE = 8  # neighbours listed beyond those wanted, as float32 may order close ones otherwise


def concept_complexity(d_intra: Float64, d_inter: Float64) -> Float64:
    """Concept complexity of each cluster, C_j = d_intra_j * d_inter_j (arXiv 2401.04578).

    Args:
        d_intra: float64[k], mean over the members of 1 - cos(x, c_j); distances that rounding left just below
            0 count as 0.
        d_inter: float64[k], see `inter_distance`.

    Returns:
        float64[k] >= 0.

    Raises:
        DataError: The two do not have the same shape.
    """
    intra, inter = np.asarray(d_intra, np.float64), np.asarray(d_inter, np.float64)
    if intra.shape != inter.shape:
        raise DataError(f"d_intra of shape {intra.shape} and d_inter of shape {inter.shape} must be alike")
    return np.asarray(np.maximum(intra, 0.0) * np.maximum(inter, 0.0), np.float64)


def inter_distance(centroids: npt.ArrayLike, neighbours: int = 20) -> Float64:
    """Mean cosine distance from each centroid to its nearest others, mean of 1 - cos(c_j, c_m).

    Float32 products, of one half of the matrix and tile by tile, say which are the nearest, with some to spare;
    their distances are then computed in float64 in a fixed order. Memory is 8 bytes a centroid and neighbour, and
    one tile.

    Args:
        centroids: Float [k, d]; need not be normalised.
        neighbours: How many of the nearest other centroids count, at least 1 (20 in the paper); at most k - 1
            do.

    Returns:
        float64[k] in [0, 2]. With a single centroid there is no other, and it is 1.

    Raises:
        RecipeError: `neighbours` is below 1.
        DataError: Unusable centroids (see `as_unit_rows`).
    """
    if isinstance(neighbours, bool) or not isinstance(neighbours, (int, np.integer)) or neighbours < 1:
        raise RecipeError(f"neighbours {neighbours!r}: give an integer of at least 1")
    unit = as_unit_rows(centroids)
    k = len(unit)
    if k == 1:
        return np.ones(1)
    near = min(int(neighbours), k - 1)

    from tamis.selectors import _pairs  # numba takes half a second to load

    listed = min(near + _SPARE, k - 1)
    products, others = np.full((k, listed), -np.inf, np.float32), np.full((k, listed), -1, np.int32)
    least = np.full(k, -np.inf, np.float32)
    space = np.empty(_SIDE * _SIDE, np.float32)
    with one_blas_thread():
        for row in range(0, k, _SIDE):
            for column in range(row, k, _SIDE):
                a, b = unit[row : row + _SIDE], unit[column : column + _SIDE]
                tile = np.matmul(a, b.T, out=space[: len(a) * len(b)].reshape(len(a), len(b)))
                _pairs.note_nearest(tile, row, column, least, products, others)
    nearest = _pairs.listed_cosines(unit, others)[:, :near]
    return np.asarray(np.clip((1.0 - nearest).mean(axis=1), 0.0, 2.0), np.float64)


def density_quotas(
    complexity: Float64, sizes: Int64, keep: int, temperature: float = 0.1, balance: float = 0.0
) -> Int64:
    """How many samples to keep of each cluster (arXiv 2401.04578).

    x = argmin 1/2 ||x - N P||^2 subject to sum x = N and lo_j <= x_j <= M_j, with N = keep, P = softmax(C /
    T) over the clusters that have members, and M_j = size. Its solution is x_j = clip(N P_j + lambda, lo_j,
    M_j), with lambda found exactly on the sorted breakpoints. Then x is rounded down, and the largest
    remainders (ties to the lowest index) get the rest.

    Args:
        complexity: float64[k], C_j; that of an empty cluster is ignored.
        sizes: int64[k] >= 0, M_j.
        keep: N, how many samples to keep in all.
        temperature: T > 0; smaller follows the complexity more closely. (The authors' code has 0.5.)
        balance: In [0, 1]: lo_j = max(1, int(balance * N / clusters)), at most M_j. 0 is the paper's best.

    Returns:
        int64[k], lo_j <= quota <= M_j, summing to `keep` exactly; 0 for empty clusters.

    Raises:
        RecipeError: A parameter is out of range, or `keep` is below the lower bounds or above the sizes.
        DataError: Complexities that are not finite, negative sizes, or shapes that differ.
    """
    C, M = np.asarray(complexity, np.float64), np.asarray(sizes, np.int64)
    if not (np.isfinite(temperature) and temperature > 0):
        raise RecipeError(f"temperature {temperature!r}: give a finite number above 0")
    if not 0.0 <= balance <= 1.0:
        raise RecipeError(f"balance {balance!r}: give a number in [0, 1]")
    if C.ndim != 1 or C.shape != M.shape or (M < 0).any():
        raise DataError(f"complexity {C.shape} and sizes {M.shape} must be 1-D, alike, and sizes not negative")
    used = np.flatnonzero(M)
    if not np.isfinite(C[used]).all():
        raise DataError(f"cluster {used[~np.isfinite(C[used])][0]} has members and a complexity that is not finite")
    if keep > M.sum():
        raise RecipeError(f"cannot keep {keep} of {M.sum()} samples in {len(used)} clusters")
    upper = M[used]
    lower = np.minimum(upper, max(1, int(balance * keep / max(1, len(used)))))
    if keep < lower.sum():
        raise RecipeError(
            f"cannot keep {keep} samples: {len(used)} clusters must keep {lower.min(initial=1)} or more, "
            f"{lower.sum()} in all; keep more, or use fewer clusters or a smaller balance"
        )
    quotas = np.zeros(len(M), np.int64)
    if len(used) == 0:
        return quotas
    scaled = C[used] / temperature
    p = np.exp(scaled - scaled.max())
    quotas[used] = _round_to_sum(_project(keep * p / p.sum(), lower, upper, keep), upper, keep)
    return quotas


def _project(target: Float64, lower: Int64, upper: Int64, total: int) -> Float64:
    """The closest x to the target of this sum and bounds: clip(target + lambda, lower, upper).

    The sum rises with lambda, linearly between breakpoints: a member starts to move at lower - target and
    stops at upper - target.
    """
    breakpoints = np.concatenate((lower - target, upper - target))
    order = np.argsort(breakpoints, kind="stable")
    at = breakpoints[order]
    slope = np.cumsum(np.where(order < len(target), 1, -1))
    sums = lower.sum() + np.concatenate(([0.0], np.cumsum(slope[:-1] * np.diff(at))))
    segment = int(np.clip(np.searchsorted(sums, total, side="right") - 1, 0, len(at) - 2))
    moving = max(1, int(slope[segment]))
    shift = at[segment] + (total - sums[segment]) / moving
    return np.asarray(np.clip(target + shift, lower, upper), np.float64)


def _round_to_sum(x: Float64, upper: Int64, total: int) -> Int64:
    """Round down, then one more to the largest remainders below their bound until the sum is the total."""
    whole = np.floor(x).astype(np.int64)
    by_remainder = np.argsort(whole - x, kind="stable")
    left = total - int(whole.sum())
    assert left >= 0, "x sums to the total, so its floor cannot sum to more"
    while left > 0:
        raised = by_remainder[whole[by_remainder] < upper[by_remainder]][:left]
        whole[raised] += 1
        left -= len(raised)
    return whole


def density_prune(
    labels: Int64,
    centroid_distance: npt.NDArray[np.floating],
    quotas: Int64,
    which_to_keep: Literal["hard", "easy", "random"],
    rng: np.random.Generator,
) -> Int64:
    """Keep each cluster's quota of samples.

    Args:
        labels: int64[n], the cluster of each sample, in [0, k).
        centroid_distance: Float [n], distance of each sample to its centroid, in any increasing scale.
        quotas: int64[k], how many to keep of each cluster, at most its size.
        which_to_keep: `hard` keeps the samples farthest from the centroid (the paper's choice), `easy` the
            nearest (ties to the lowest index in both), `random` uniform ones.
        rng: Source of randomness, used by `random` only.

    Returns:
        int64, the kept positions, ascending.

    Raises:
        RecipeError: `which_to_keep` is unknown, or a quota is negative or above its cluster's size.
        DataError: Labels outside [0, k), NaN distances, or shapes that differ.
    """
    clusters, distances = np.asarray(labels), np.asarray(centroid_distance)
    wanted = np.asarray(quotas, np.int64)
    n, k = len(clusters), len(wanted)
    if which_to_keep not in ("hard", "easy", "random"):
        raise RecipeError(f"which_to_keep {which_to_keep!r} is not one of 'hard', 'easy', 'random'")
    if clusters.ndim != 1 or clusters.dtype.kind not in "iu" or distances.shape != clusters.shape:
        raise DataError(f"labels {clusters.shape} must be 1-D integers, and distances {distances.shape} alike")
    if n and (clusters.min() < 0 or clusters.max() >= k):
        raise DataError(f"labels run from {clusters.min()} to {clusters.max()}, and there are quotas for 0 to {k - 1}")
    if np.isnan(distances).any():
        raise DataError(f"sample {int(np.flatnonzero(np.isnan(distances))[0])} has a NaN distance to its centroid")
    sizes = np.bincount(clusters, minlength=k)
    wrong = np.flatnonzero((wanted < 0) | (wanted > sizes))
    if len(wrong):
        raise RecipeError(f"quota {wanted[wrong[0]]} of cluster {wrong[0]}, which has {sizes[wrong[0]]} samples")
    if which_to_keep == "random":
        key = rng.permutation(n).astype(np.float64)
    else:
        key = distances.astype(np.float64) * (-1.0 if which_to_keep == "hard" else 1.0)
    order = np.lexsort((np.arange(n), key, clusters))
    place = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[place < wanted[clusters[order]]]).astype(np.int64)

"""Dynamic pruning: which samples to train on in the next epoch, given the losses of the epochs before.

A policy is a pure function ``(scores, seen, epoch, rng, *, options) -> EpochPlan``. The same functions serve
the `schedule` stage (which writes difficulty groups into a manifest) and the samplers (which call them anew
each epoch with live losses). Nothing here holds state or touches a global random generator.

Sources: SeTa is arXiv 2503.13385, InfoBatch is arXiv 2303.04947.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tamis.errors import DataError, RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

RULES = ("paper", "code")


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The samples of one epoch.

    Attributes:
        indices: int64 [m], unique: which samples take part. Ascending, because shuffling is the sampler's part,
            except where `ordered`.
        weights: float32 [m], the factor of each one's loss (1 where the policy does not reweigh).
        groups: How many loss groups the policy told apart; 0 where it made none.
        ordered: Whether the samples are to be trained on in this order, and not shuffled.
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float32]
    groups: int = 0
    ordered: bool = False


class Policy(Protocol):
    """What a sampler calls once an epoch: a policy with its options bound, as by `functools.partial`."""

    def __call__(
        self,
        scores: NDArray[np.floating[Any]],
        seen: NDArray[np.integer[Any]],
        epoch: int,
        rng: np.random.Generator,
    ) -> EpochPlan:
        """Returns the plan of epoch `epoch`, from last losses [n] (NaN: never seen) and seen counts [n]."""
        ...


def kmeans_1d(values: NDArray[np.floating[Any]], groups: int) -> NDArray[np.int64]:
    """Splits numbers into groups of least squared distance to their group's mean, exactly (see `group_bounds`).

    Args:
        values: float [n], finite.
        groups: How many groups to make, at least 1; fewer come back where there are fewer distinct values.

    Returns:
        int64 [n], each value's group: 0 holds the lowest values (easy), the highest number the largest
        (hard). Every group from 0 to the highest number has a member.

    Raises:
        RecipeError: `groups` is below 1.
        DataError: A value is NaN or infinite, or the array is not one-dimensional.
    """
    bounds = group_bounds(values, groups)
    return np.searchsorted(bounds, np.asarray(values), side="right") - 1


def group_bounds(values: NDArray[np.floating[Any]], groups: int) -> NDArray[np.floating[Any]]:
    """The least value of each group of exact 1-D k-means.

    In one dimension the best groups are intervals of the sorted values, so dynamic programming over the
    distinct values finds the optimum. Where there are many, branch and bound on a coarse grid first narrows the
    positions at which a group of the optimum can begin; after the sort that takes little more than a few passes over
    the values, and 32 bytes for each. Equal values never part. Sums are float64, of centred values: splits whose
    errors differ by less than their rounding count as equal.

    Args:
        values: float [n], finite.
        groups: How many groups to make, at least 1.

    Returns:
        Ascending, float32 or float64; as many as there are groups, fewer where there are fewer distinct values.
        Among equally good splits, the lower groups are the smaller, as far as rounding lets their errors be equal.

    Raises:
        RecipeError: `groups` is below 1.
        DataError: A value is NaN or infinite, or the array is not one-dimensional.
    """
    if groups < 1:
        raise RecipeError(f"groups is {groups}; it must be at least 1")
    given = np.asarray(values)
    if given.dtype not in (np.float32, np.float64):
        given = given.astype(np.float64)
    if given.ndim != 1:
        raise DataError(f"values have shape {given.shape}; one dimension is needed")
    if not np.isfinite(given).all():
        raise DataError(f"values {np.flatnonzero(~np.isfinite(given))[:10].tolist()} are NaN or infinite")
    ordered = np.sort(given)
    if ordered.size == 0:
        return ordered

    from tamis.selectors import _intervals  # numba takes half a second to load

    bounds: NDArray[np.floating[Any]] = ordered[_intervals.interval_starts(ordered, groups)]
    return bounds


def seta_window(epoch: int, num_group: int, window_scale: float, rule: str = "paper") -> tuple[int, int]:
    """The groups that SeTa trains on in an epoch (arXiv 2503.13385, section 3).

    The window holds w of K groups and slides one group an epoch, from easy to hard, then wraps:
    start = n mod (K - w + 1). The paper has w = ceil(alpha K). The authors' release has w = round(alpha K),
    and takes every group in epoch 0. Here w is at least 1.

    Args:
        epoch: n, from 0.
        num_group: K, at least 1.
        window_scale: alpha in (0, 1].
        rule: "paper" (default) or "code".

    Returns:
        (start, stop): train on groups start .. stop - 1.

    Raises:
        RecipeError: An argument is out of its range.

    >>> [seta_window(n, 10, 0.5) for n in (0, 1, 5, 6)]
    [(0, 5), (1, 6), (5, 10), (0, 5)]
    """
    if epoch < 0:
        raise RecipeError(f"epoch is {epoch}; epochs count from 0")
    if num_group < 1:
        raise RecipeError(f"num_group is {num_group}; it must be at least 1")
    if not 0 < window_scale <= 1:
        raise RecipeError(f"window_scale is {window_scale}; it must be in (0, 1]")
    _check_rule(rule)
    if rule == "code":
        if epoch == 0:
            return 0, num_group
        width = round(window_scale * num_group)
    else:
        # 0.55 * 20 is 11.000000000000002 in floating point, and means 11.
        width = math.ceil(window_scale * num_group - 1e-9)
    width = min(max(width, 1), num_group)
    start = epoch % (num_group - width + 1)
    return start, start + width


def seta(
    scores: NDArray[np.floating[Any]],
    seen: NDArray[np.integer[Any]],
    epoch: int,
    rng: np.random.Generator,
    *,
    epochs: int,
    num_group: int = 10,
    window_scale: float = 0.5,
    prune_ratio: float = 0.0,
    delta: float = 0.875,
    rule: str = "paper",
) -> EpochPlan:
    """SeTa: a window over loss groups that slides from easy to hard (arXiv 2503.13385, section 3).

    A uniform fraction (1 - prune_ratio) of all samples is drawn; of those, the seen ones are grouped by their
    last loss (`kmeans_1d`), and the groups in `seta_window` are kept. Never-seen samples among the drawn are
    a group of their own that is always kept. In the last (1 - delta) of the epochs there is no window: a
    uniform (1 - prune_ratio) of all. Where the losses have fewer distinct values than `num_group`, there are
    fewer groups and the window is taken over those; if all are equal, the plan is the uniform draw.

    Args:
        scores: float [n], each sample's last loss; NaN where never seen.
        seen: int [n], how often each sample was trained on.
        epoch: The epoch to plan, from 0.
        rng: Source of the uniform draw; not used when `prune_ratio` is 0.
        epochs: How many epochs the training has.
        num_group: K. The paper: 10 for classification in general, 5 for CIFAR and ImageNet.
        window_scale: alpha. The paper: 0.5; 0.9 for CIFAR, 0.6 for ImageNet.
        prune_ratio: r in [0, 1). The paper: 0; 0.1 for CIFAR.
        delta: Fraction of the epochs that use the window, in (0, 1].
        rule: "paper" (default) or "code"; see `seta_window`.

    Returns:
        The plan, all weights 1 (SeTa does not reweigh).

    Raises:
        RecipeError: An option is out of its range.
        DataError: The arrays do not fit together, or a score is infinite.
    """
    _check_epochs(epochs, delta)
    _check_rule(rule)
    known = _known(scores, seen)
    drawn = _uniform(known.size, prune_ratio, rng)
    if anneals(epoch, epochs, delta):
        return _unweighted(drawn)
    graded = known[drawn]
    if not graded.any():
        # The window is still computed, so that its options are checked from the first epoch on.
        seta_window(epoch, num_group, window_scale, rule)
        return _unweighted(drawn)
    losses = np.asarray(scores)
    if drawn.size < losses.size:
        losses = losses[drawn]
    bounds = group_bounds(losses if graded.all() else losses[graded], num_group)
    start, stop = seta_window(epoch, min(num_group, bounds.size), window_scale, rule)
    keep = losses >= bounds[start]
    if stop < bounds.size:
        keep &= losses < bounds[stop]
    return _unweighted(drawn[keep | ~graded], bounds.size)


def infobatch(
    scores: NDArray[np.floating[Any]],
    seen: NDArray[np.integer[Any]],
    epoch: int,
    rng: np.random.Generator,
    *,
    epochs: int,
    prune_ratio: float = 0.5,
    delta: float = 0.875,
) -> EpochPlan:
    """InfoBatch: drops samples below the mean loss, and weighs up the others (arXiv 2303.04947, section 3).

    A sample whose last loss is below the mean of all last losses is dropped with probability r, and otherwise
    kept with weight 1/(1 - r); so the expected gradient is that of the full data. All others, never-seen ones
    included, are kept with weight 1. The last (1 - delta) of the epochs have all data with weight 1.

    Args:
        scores: float [n], each sample's last loss; NaN where never seen.
        seen: int [n], how often each sample was trained on.
        epoch: The epoch to plan, from 0.
        rng: Decides which samples are dropped.
        epochs: How many epochs the training has.
        prune_ratio: r in [0, 1).
        delta: Fraction of the epochs that prune, in (0, 1].

    Returns:
        The plan. It holds at least one sample: those at or above the mean are never dropped.

    Raises:
        RecipeError: An option is out of its range.
        DataError: The arrays do not fit together, or a score is infinite.
    """
    _check_epochs(epochs, delta)
    _check_ratio(prune_ratio)
    known = _known(scores, seen)
    everything = np.arange(known.size, dtype=np.int64)
    if anneals(epoch, epochs, delta) or not known.any():
        return _unweighted(everything)
    losses = np.asarray(scores, dtype=np.float64)
    # min() because rounding can lift the mean of equal losses above every one of them.
    easy = np.zeros(known.size, dtype=bool)
    easy[known] = losses[known] < min(losses[known].mean(), losses[known].max())
    dropped = easy & (rng.random(known.size) < prune_ratio)
    weights = np.where(easy, 1.0 / (1.0 - prune_ratio), 1.0).astype(np.float32)
    return EpochPlan(everything[~dropped], weights[~dropped], groups=2)


def random(
    scores: NDArray[np.floating[Any]],
    seen: NDArray[np.integer[Any]],
    epoch: int,  # noqa: ARG001 - one shape for all policies
    rng: np.random.Generator,
    *,
    prune_ratio: float = 0.0,
) -> EpochPlan:
    """The baseline: a fresh uniform (1 - prune_ratio) of all samples each epoch, whatever their losses.

    Args:
        scores: float [n]; only its length counts.
        seen: int [n]; only its length counts.
        epoch: Not used.
        rng: Source of the draw; not used when `prune_ratio` is 0.
        prune_ratio: r in [0, 1); 0 is ordinary training on everything.

    Returns:
        n - floor(r n) samples, all weights 1.

    Raises:
        RecipeError: `prune_ratio` is out of its range.
        DataError: The arrays do not fit together, or a score is infinite.
    """
    return _unweighted(_uniform(_known(scores, seen).size, prune_ratio, rng))


def hard_first(
    scores: NDArray[np.floating[Any]],
    seen: NDArray[np.integer[Any]],
    epoch: int,
    rng: np.random.Generator,  # noqa: ARG001 - one shape for all policies
    *,
    epochs: int,
    prune_ratio: float = 0.5,
    delta: float = 0.875,
) -> EpochPlan:
    """The greedy baseline: the samples of the highest last losses, until the last epochs.

    Never-seen samples come before all others. It favours mislabelled samples, which never get easy; InfoBatch and
    SeTa are judged against it.

    Args:
        scores: float [n], each sample's last loss; NaN where never seen.
        seen: int [n], how often each sample was trained on.
        epoch: The epoch to plan, from 0.
        rng: Not used.
        epochs: How many epochs the training has.
        prune_ratio: r in [0, 1), the fraction left out.
        delta: Fraction of the epochs that prune, in (0, 1]; the others have all data.

    Returns:
        n - floor(r n) samples (ties to the lowest index), all weights 1.

    Raises:
        RecipeError: An option is out of its range.
        DataError: The arrays do not fit together, or a score is infinite.
    """
    _check_epochs(epochs, delta)
    _check_ratio(prune_ratio)
    known = _known(scores, seen)
    if anneals(epoch, epochs, delta):
        return _unweighted(np.arange(known.size))
    hardness = np.where(known, np.asarray(scores, np.float64), np.inf)
    kept = known.size - _left_out(known.size, prune_ratio)
    return _unweighted(np.sort(np.argsort(-hardness, kind="stable")[:kept]))


def hard_batches(
    scores: NDArray[np.floating[Any]],
    seen: NDArray[np.integer[Any]],
    epoch: int,  # noqa: ARG001 - one shape for all policies
    rng: np.random.Generator,
    *,
    batch_size: int,
    keep: float = 0.5,
) -> EpochPlan:
    """Hard mini-batches: all samples are dealt into batches, and those of the highest mean loss are trained on.

    Source: arXiv 2304.03486, with the last losses in place of a forward pass over every batch. A batch with a
    never-seen sample is kept before all others. The order of the batches stays the one in which they were dealt.

    Args:
        scores: float [n], each sample's last loss; NaN where never seen.
        seen: int [n], how often each sample was trained on.
        epoch: Not used.
        rng: Deals the samples into batches.
        batch_size: Samples of a batch (of all processes together), at least 1. The last one may be smaller.
        keep: Fraction of the batches to train on, in (0, 1], rounded to whole ones; at least one is. Ties go to the
            batch dealt first.

    Returns:
        The kept batches' samples, batch by batch (`ordered`), all weights 1.

    Raises:
        RecipeError: An option is out of its range.
        DataError: The arrays do not fit together, or a score is infinite.
    """
    if isinstance(batch_size, bool) or batch_size < 1:
        raise RecipeError(f"batch_size is {batch_size}; it must be at least 1")
    if not 0 < keep <= 1:
        raise RecipeError(f"keep is {keep}; it must be in (0, 1]")
    known = _known(scores, seen)
    order = rng.permutation(known.size)
    hardness = np.where(known, np.asarray(scores, np.float64), np.inf)[order]
    starts = np.arange(0, known.size, batch_size)
    means = np.add.reduceat(hardness, starts) / np.diff(np.append(starts, known.size)) if known.size else starts
    count = max(1, round(keep * len(starts)))
    chosen = np.sort(np.argsort(-means, kind="stable")[:count])
    indices = np.concatenate([order[:0], *(order[starts[b] : starts[b] + batch_size] for b in chosen)])
    return EpochPlan(indices, np.ones(indices.size, dtype=np.float32), ordered=True)


def with_ceiling(policy: Policy, ceiling: float) -> Policy:
    """The same policy, without the samples of the highest losses.

    Where many labels are wrong, the highest losses are mostly theirs. Each epoch is planned as if these samples were
    not there, the last epochs too. A sample that is left out keeps its last loss, and so mostly stays out. From our own
    measurements (benchmarks/evidence/pruning.py), not from a paper: with a fifth of the labels wrong, a ceiling of 0.1
    helps InfoBatch; with right labels it does harm.

    Args:
        policy: One that plans for as many samples as it is given, as all of this module do.
        ceiling: Fraction of the seen samples to leave out, in [0, 1); floor(ceiling * seen) are, and of equal losses
            the lowest indices stay. Never-seen samples are never left out, so that the first epoch is as it was.

    Returns:
        The policy itself where the ceiling is 0.

    Raises:
        RecipeError: `ceiling` is out of its range.

    >>> everything = with_ceiling(partial(random, prune_ratio=0.0), 0.25)
    >>> losses, seen = np.array([0.5, 9.0, 2.0, 1.0, np.nan]), np.array([1, 1, 1, 1, 0])
    >>> everything(losses, seen, 1, np.random.default_rng(0)).indices.tolist()
    [0, 2, 3, 4]
    """
    if not 0 <= ceiling < 1:
        raise RecipeError(f"ceiling is {ceiling}; it must be in [0, 1)")
    return partial(_below, policy=policy, ceiling=ceiling) if ceiling else policy


def _below(
    scores: NDArray[np.floating[Any]],
    seen: NDArray[np.integer[Any]],
    epoch: int,
    rng: np.random.Generator,
    *,
    policy: Policy,
    ceiling: float,
) -> EpochPlan:
    """The plan of a policy for the samples below the ceiling."""
    scores, seen = np.asarray(scores), np.asarray(seen)
    known = np.flatnonzero(_known(scores, seen))
    rising = known[np.argsort(scores[known], kind="stable")]
    rows = np.delete(np.arange(scores.size), rising[rising.size - _left_out(rising.size, ceiling) :])
    plan = policy(scores[rows], seen[rows], epoch, rng)
    return replace(plan, indices=rows[plan.indices])


def _known(scores: NDArray[np.floating[Any]], seen: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Which samples have a loss to go by; checks the arrays that every policy gets."""
    scores, seen = np.asarray(scores), np.asarray(seen)
    if scores.ndim != 1 or scores.shape != seen.shape:
        raise DataError(f"scores have shape {scores.shape} and seen counts {seen.shape}; both must be [n]")
    if np.isinf(scores).any():
        raise DataError(f"the losses of samples {np.flatnonzero(np.isinf(scores))[:10].tolist()} are infinite")
    known: NDArray[np.bool_] = (seen > 0) & ~np.isnan(scores)
    return known


def _uniform(n: int, prune_ratio: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draws n - floor(prune_ratio n) of the numbers 0 .. n - 1, ascending."""
    _check_ratio(prune_ratio)
    keep = n - _left_out(n, prune_ratio)
    if keep == n:
        return np.arange(n, dtype=np.int64)
    return np.sort(rng.choice(n, size=keep, replace=False)).astype(np.int64)


def _left_out(n: int, prune_ratio: float) -> int:
    # 0.3 * 10 may be a rounding error below 3.
    return math.floor(prune_ratio * n + 1e-9)


def _unweighted(indices: NDArray[np.int64], groups: int = 0) -> EpochPlan:
    return EpochPlan(indices, np.ones(indices.size, dtype=np.float32), groups)


def anneals(epoch: int, epochs: int, delta: float) -> bool:
    """Whether the epoch is one of the last (1 - delta): 7 of 0 .. 7, or 11 of 0 .. 11, at delta = 0.875."""
    return epoch >= delta * epochs - 1e-9


def _check_epochs(epochs: int, delta: float) -> None:
    if epochs < 1:
        raise RecipeError(f"epochs is {epochs}; it must be at least 1")
    if not 0 < delta <= 1:
        raise RecipeError(f"delta is {delta}; it must be in (0, 1]")


def _check_ratio(prune_ratio: float) -> None:
    if not 0 <= prune_ratio < 1:
        raise RecipeError(f"prune_ratio is {prune_ratio}; it must be in [0, 1)")


def _check_rule(rule: str) -> None:
    if rule not in RULES:
        raise RecipeError(f"rule is {rule!r}; it must be one of {', '.join(RULES)}")

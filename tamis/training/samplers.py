"""Samplers for a PyTorch DataLoader that follow a dynamic policy or a subset manifest, and weigh the losses.

::

    sampler = SeTaSampler(len(dataset), epochs=12, seed=7)
    loader = DataLoader(WithIndex(dataset), sampler=sampler, batch_size=128)
    for epoch in range(12):
        sampler.set_epoch(epoch)
        for ids, batch in loader:
            loss = sampler.step(ids, per_sample_losses(batch))  # records, weighs, reduces
            loss.backward()

The order of an epoch depends on the seed, the epoch and the losses frozen at the epoch's start, and on
nothing else. Progress counts what `step` was given, not what the loader has fetched ahead, so a state taken
after any step resumes with exactly the samples that have not been trained on, for any number of loader
workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Sampler

from tamis.errors import DataError, RecipeError
from tamis.selectors import dynamic
from tamis.training.scores import ScoreTable
from tamis.training.weights import reweight, with_importance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from tamis.manifests.reader import Manifest

EPOCH_SIZES = ("fixed", "pruned")

_STATE_VERSION = 1


class PlanSampler(Sampler[int]):
    """Yields each epoch's samples in a seeded random order, as a policy plans them from the losses so far.

    Attributes:
        n: Number of samples in the dataset; the sampler yields positions in 0 .. n - 1.
        seed: Seed of all draws; epoch e draws from ``SeedSequence([seed, e])``.
        epoch: The epoch that `__iter__` yields.
        position: How many of its samples `step` (or `record`) has been given.
        steps: How many batches `step` (or `record`) has been given, over all epochs.
        scores: The losses, live and frozen.

    Args:
        n: Number of samples, at least 1.
        policy: Plans an epoch; one of `tamis.selectors.dynamic` with its options bound.
        seed: At least 0.
        epoch_size: "fixed" makes every epoch n samples long: the plan is repeated, in a new random order each
            time, and the last repeat is cut; so learning-rate schedules that count steps stay right, and
            pruning changes what is seen, not how much. "pruned" makes an epoch as long as its plan, which is
            what saves time.
        strategy: How `step` weighs a batch; see `tamis.training.weights.reweight`.
        r: Temperature of the weights.
        clip: Whether to hold every weight of a batch at or below 2/m.
        warmup_steps: Steps at the start of training that weigh uniformly.
        importance: float [n] above 0, a constant factor of each sample's weight (a manifest's weights), or
            None.

    Raises:
        RecipeError: An option is out of its range.
        DataError: `importance` does not fit.
    """

    def __init__(
        self,
        n: int,
        policy: dynamic.Policy,
        *,
        seed: int = 0,
        epoch_size: str = "fixed",
        strategy: str = "uniform",
        r: float = 0.4,
        clip: bool = False,
        warmup_steps: int = 0,
        importance: ArrayLike | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("n", n, 1), ("seed", seed, 0), ("warmup_steps", warmup_steps, 0)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise RecipeError(f"{name} is {value!r}; it must be an integer of at least {least}")
        if epoch_size not in EPOCH_SIZES:
            raise RecipeError(f"epoch_size is {epoch_size!r}; it must be one of {', '.join(EPOCH_SIZES)}")
        reweight(np.zeros(1), strategy, r)  # refuses a wrong strategy or r now, not after the warm-up
        self.n = int(n)
        self.seed = int(seed)
        self.epoch = 0
        self.position = 0
        self.steps = 0
        self.scores = ScoreTable(self.n)
        self._policy = policy
        self._epoch_size = epoch_size
        self._strategy = strategy
        self._r = r
        self._clip = clip
        self._warmup_steps = warmup_steps
        self._importance = None if importance is None else _importance(importance, self.n)
        self._resume_at = 0
        self._cached: _Epoch | None = None

    def set_epoch(self, epoch: int) -> None:
        """Starts an epoch: freezes the losses seen so far, for its plan. Call it before each iteration.

        Naming the current epoch again changes nothing; so after `load_state_dict`, a loop that starts at the
        loaded epoch continues inside it.

        Raises:
            RecipeError: `epoch` is negative.
        """
        if epoch < 0:
            raise RecipeError(f"epoch is {epoch}; epochs count from 0")
        if epoch != self.epoch:
            self.scores.freeze()
            self.epoch = int(epoch)
            self.position = self._resume_at = 0

    @property
    def plan(self) -> dynamic.EpochPlan:
        """The current epoch's plan, before shuffling and repetition."""
        return self._current().plan

    def __len__(self) -> int:
        """The number of samples in the current epoch, from its beginning."""
        return self._current().order.size

    def __iter__(self) -> Iterator[int]:
        """The positions of the current epoch's samples; after `load_state_dict`, those that remain, once."""
        order = self._current().order
        self.position, self._resume_at = self._resume_at, 0
        return map(int, order[self.position :])

    def record(self, ids: ArrayLike | torch.Tensor, losses: torch.Tensor) -> None:
        """Takes a batch's losses into `scores` and counts it as trained; the first part of `step`.

        Args:
            ids: int [m], positions in the dataset.
            losses: float [m], on any device.

        Raises:
            NonFiniteLossError: A loss is NaN or infinite; nothing is recorded or counted.
            DataError: The ids or the shapes do not fit.
        """
        where = _ids(ids)
        self.scores.record(where, losses.detach().float().cpu().numpy())
        self.position += where.size
        self.steps += 1

    def weigh(self, ids: ArrayLike | torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """The weights of the batch last recorded.

        They are the weights by loss, times the importance, scaled to sum 1, times the policy's own factors.
        The policy's factors (InfoBatch's 1/(1 - r)) are not scaled away inside the batch, because they make
        up for the samples that the pruned epoch leaves out. With epoch_size "fixed" no step is left out, so
        they are divided by their mean over the plan. In the first `warmup_steps` recorded batches the weights
        by loss are uniform.

        Args:
            ids: int [m], positions in the dataset.
            losses: float [m], finite.

        Returns:
            [m], without gradient, of the losses' dtype and device.
        """
        where = _ids(ids)
        strategy = "uniform" if self.steps <= self._warmup_steps else self._strategy
        weights = reweight(losses, strategy, self._r, clip=self._clip)
        if self._importance is not None:
            weights = with_importance(weights, torch.from_numpy(self._importance[where]).to(weights))
        factors = self._current().factors
        if factors is not None:
            weights = weights * torch.from_numpy(factors[where]).to(weights)
        return weights

    def step(self, ids: ArrayLike | torch.Tensor, per_sample_losses: torch.Tensor) -> torch.Tensor:
        """Records a batch's losses, weighs them, and reduces them to the scalar to call `backward` on.

        Args:
            ids: int [m], positions in the dataset, as `WithIndex` puts them into the batch.
            per_sample_losses: float [m], unreduced, with their graph.

        Returns:
            sum_i w_i l_i, a scalar tensor; the weights carry no gradient.

        Raises:
            NonFiniteLossError: A loss is NaN or infinite; the message names the ids, and nothing is recorded.
            DataError: The ids or the shapes do not fit.
        """
        where = _ids(ids)
        if per_sample_losses.shape != where.shape:
            raise DataError(
                f"per_sample_losses have shape {tuple(per_sample_losses.shape)} and ids {where.shape}; "
                "both must be [m] (use a loss with reduction='none')"
            )
        self.record(where, per_sample_losses)
        return (self.weigh(where, per_sample_losses) * per_sample_losses).sum()

    def state_dict(self) -> dict[str, int]:
        """Where the training is: a few integers, whatever n is. `scores.state_dict()` holds the losses."""
        return {
            "version": _STATE_VERSION,
            "n": self.n,
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues where `state_dict` was taken; load `scores` too, before iterating, in either order.

        Raises:
            RecipeError: The state is of another version, seed or number of samples.
        """
        for name, ours in (("version", _STATE_VERSION), ("n", self.n), ("seed", self.seed)):
            if state[name] != ours:
                raise RecipeError(f"the state has {name} {state[name]}, this sampler has {ours}")
        self.epoch, self.position, self.steps = state["epoch"], state["position"], state["steps"]
        self._resume_at = self.position

    def _current(self) -> _Epoch:
        """The current epoch, made once; again when the frozen losses are replaced."""
        cached = self._cached
        if cached is None or cached.epoch != self.epoch or cached.frozen is not self.scores.frozen:
            cached = self._cached = self._make_epoch()
        return cached

    def _make_epoch(self) -> _Epoch:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch]))
        plan = self._policy(self.scores.frozen, self.scores.frozen_seen, self.epoch, rng)
        if plan.indices.size == 0:
            raise DataError(f"the plan of epoch {self.epoch} is empty; prune less")
        fixed = self._epoch_size == "fixed"
        repeats = -(-self.n // plan.indices.size) if fixed else 1
        order = np.concatenate([rng.permutation(plan.indices) for _ in range(repeats)])
        factors = None
        if (plan.weights != 1).any():
            factors = np.ones(self.n, dtype=np.float32)
            factors[plan.indices] = plan.weights / (plan.weights.mean() if fixed else 1)
        return _Epoch(self.epoch, self.scores.frozen, plan, order[: self.n] if fixed else order, factors)


class SeTaSampler(PlanSampler):
    """SeTa: a window over loss groups that slides from easy to hard (arXiv 2503.13385).

    Args:
        n: Number of samples in the dataset.
        epochs: How many epochs the training has.
        seed: At least 0.
        num_group: Loss groups, K.
        window_scale: Fraction of the groups in the window, alpha in (0, 1].
        prune_ratio: Fraction of all samples left out at random, r in [0, 1).
        delta: Fraction of the epochs that prune; the rest train on everything.
        rule: "paper" or "code"; see `tamis.selectors.dynamic.seta_window`.
        epoch_size: "fixed" or "pruned"; see `PlanSampler`.
        strategy: How `step` weighs a batch.
        r: Temperature of the weights.
        clip: Whether to hold every weight of a batch at or below 2/m.
        warmup_steps: Steps at the start of training that weigh uniformly.
        importance: float [n] above 0, or None.
    """

    def __init__(
        self,
        n: int,
        *,
        epochs: int,
        seed: int = 0,
        num_group: int = 10,
        window_scale: float = 0.5,
        prune_ratio: float = 0.0,
        delta: float = 0.875,
        rule: str = "paper",
        epoch_size: str = "fixed",
        strategy: str = "uniform",
        r: float = 0.4,
        clip: bool = False,
        warmup_steps: int = 0,
        importance: ArrayLike | None = None,
    ) -> None:
        policy = partial(
            dynamic.seta,
            epochs=epochs,
            num_group=num_group,
            window_scale=window_scale,
            prune_ratio=prune_ratio,
            delta=delta,
            rule=rule,
        )
        super().__init__(
            n,
            policy,
            seed=seed,
            epoch_size=epoch_size,
            strategy=strategy,
            r=r,
            clip=clip,
            warmup_steps=warmup_steps,
            importance=importance,
        )


class InfoBatchSampler(PlanSampler):
    """InfoBatch: drops some of the samples below the mean loss, and weighs up the others (arXiv 2303.04947).

    Args:
        n: Number of samples in the dataset.
        epochs: How many epochs the training has.
        seed: At least 0.
        prune_ratio: Probability that a sample below the mean is dropped, in [0, 1).
        delta: Fraction of the epochs that prune; the rest train on everything.
        epoch_size: "pruned" (as in the paper) or "fixed"; see `PlanSampler`.
        importance: float [n] above 0, or None.
    """

    def __init__(
        self,
        n: int,
        *,
        epochs: int,
        seed: int = 0,
        prune_ratio: float = 0.5,
        delta: float = 0.875,
        epoch_size: str = "pruned",
        importance: ArrayLike | None = None,
    ) -> None:
        policy = partial(dynamic.infobatch, epochs=epochs, prune_ratio=prune_ratio, delta=delta)
        super().__init__(n, policy, seed=seed, epoch_size=epoch_size, importance=importance)


class ManifestSampler(PlanSampler):
    """All rows of a subset manifest in a new random order each epoch, with the manifest's weights.

    It yields row numbers of the whole dataset, so the dataset need not be copied or filtered. An epoch is as
    long as the subset.

    Args:
        manifest: As from `tamis.open_manifest`.
        seed: At least 0.
        strategy: How `step` weighs a batch, before the manifest's weights.
        r: Temperature of the weights.
        clip: Whether to hold every weight of a batch at or below 2/m.
        warmup_steps: Steps at the start of training that weigh uniformly.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        seed: int = 0,
        strategy: str = "uniform",
        r: float = 0.4,
        clip: bool = False,
        warmup_steps: int = 0,
    ) -> None:
        n = int(manifest.record["dataset"]["rows"])
        rows = manifest.select["row"].to_numpy()
        importance = np.ones(n, dtype=np.float32)
        importance[rows] = manifest.select["weight"].to_numpy()
        super().__init__(
            n,
            partial(_given_rows, rows=np.sort(rows)),
            seed=seed,
            epoch_size="pruned",
            strategy=strategy,
            r=r,
            clip=clip,
            warmup_steps=warmup_steps,
            importance=importance,
        )


@dataclass(frozen=True, slots=True)
class _Epoch:
    """An epoch as made from the frozen losses; `factors` [n] are the policy's weights, None if all are 1."""

    epoch: int
    frozen: NDArray[np.float32]
    plan: dynamic.EpochPlan
    order: NDArray[np.int64]
    factors: NDArray[np.float32] | None


def _given_rows(
    scores: NDArray[np.floating[Any]],  # noqa: ARG001 - one shape for all policies
    seen: NDArray[np.integer[Any]],  # noqa: ARG001
    epoch: int,  # noqa: ARG001
    rng: np.random.Generator,  # noqa: ARG001
    *,
    rows: NDArray[np.int64],
) -> dynamic.EpochPlan:
    """The policy of a manifest: always the same rows."""
    return dynamic.EpochPlan(rows, np.ones(rows.size, dtype=np.float32))


def _ids(ids: ArrayLike | torch.Tensor) -> NDArray[np.int64]:
    array = ids.cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
    if array.dtype.kind not in "iu":
        raise DataError(f"ids have dtype {array.dtype}; they must be integers, as WithIndex gives them")
    return array.astype(np.int64)


def _importance(importance: ArrayLike, n: int) -> NDArray[np.float32]:
    array = np.asarray(importance, dtype=np.float32)
    if array.shape != (n,) or not (np.isfinite(array) & (array > 0)).all():
        raise DataError(f"importance must be {n} finite numbers above 0, got shape {array.shape}")
    return array

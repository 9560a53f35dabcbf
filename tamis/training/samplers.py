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

With several processes (torch.distributed), process r of w yields every w-th sample of the epoch's order from the r-th
on. So their t-th batches together are the t-th batch of one process with w times the batch size; `step` gathers the
ids and losses of all of them, and every process records, plans and weighs the same. The order and the state do
not depend on w: a training may be resumed with another number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import torch
from torch.utils.data import Sampler

from tamis.errors import DataError, RecipeError
from tamis.selectors import dynamic
from tamis.training.ranks import Ranks, join, resolve
from tamis.training.redraws import Redraws
from tamis.training.scores import ScoreTable
from tamis.training.weights import reweight, unchecked, with_importance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from tamis.manifests.reader import Manifest
    from tamis.training.weights import Schedule

EPOCH_SIZES = ("fixed", "pruned")

_STATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of all processes together, as it was trained on.

    Attributes:
        ids: int64 [m], positions in the dataset.
        losses: float64 [m].
        weights: float64 [m], what the losses were multiplied by; with sum 1, unless the policy has weights too.
    """

    ids: NDArray[np.int64]
    losses: NDArray[np.float64]
    weights: NDArray[np.float64]


class PlanSampler(Sampler[int]):
    """Yields each epoch's samples in a seeded random order, as a policy plans them from the losses so far.

    Attributes:
        n: Number of samples in the dataset; the sampler yields positions in 0 .. n - 1.
        seed: Seed of all draws; epoch e draws from ``SeedSequence([seed, e])``.
        epoch: The epoch that `__iter__` yields.
        position: How many of its samples `step` has been given, by all processes together.
        steps: How many batches `step` has been given, over all epochs.
        scores: The losses, live and frozen.
        ranks: Who this process is, among how many.
        epoch_size: As given.
        last: What the last `step` was given by all processes, and the weights that it gave; None before the first.

    Args:
        n: Number of samples, at least 1.
        policy: Plans an epoch; one of `tamis.selectors.dynamic` with its options bound.
        seed: At least 0.
        epoch_size: "fixed" makes every epoch n samples long: the plan is repeated, in a new random order each
            time, and the last repeat is cut; so learning-rate schedules that count steps stay right, and
            pruning changes what is seen, not how much. "pruned" makes an epoch as long as its plan, which is
            what saves time. A number makes every epoch that long.
        strategy: How `step` weighs a batch; see `tamis.training.weights.reweight`.
        r: Temperature of the weights; a number, or a function of the step (from 0 after the warm-up), such as
            `tamis.training.weights.LinearSchedule`.
        clip: Whether to hold every weight by loss at or below 2/m; importance and token counts come after.
        warmup_steps: Steps at the start of training that weigh uniformly.
        importance: float [n] above 0, a constant factor of each sample's weight (a manifest's weights), or
            None.
        num_replicas: Number of processes; None asks torch.distributed, and is 1 where that is not initialised.
        rank: Which of them this is; None likewise.

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
        epoch_size: str | int = "fixed",
        strategy: str = "uniform",
        r: float | Schedule = 0.4,
        clip: bool = False,
        warmup_steps: int = 0,
        importance: ArrayLike | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("n", n, 1), ("seed", seed, 0), ("warmup_steps", warmup_steps, 0)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise RecipeError(f"{name} is {value!r}; it must be an integer of at least {least}")
        whole = isinstance(epoch_size, int | np.integer) and not isinstance(epoch_size, bool) and epoch_size >= 1
        if not whole and epoch_size not in EPOCH_SIZES:
            raise RecipeError(
                f"epoch_size is {epoch_size!r}; it must be one of {', '.join(EPOCH_SIZES)}, or an integer of at least 1"
            )
        # Refuses a wrong strategy or r now, not after the warm-up.
        reweight(np.zeros(1), strategy, r(0) if callable(r) else r)
        self.n = int(n)
        self.seed = int(seed)
        self.epoch = 0
        self.position = 0
        self.steps = 0
        self.scores = ScoreTable(self.n)
        self.last: Batch | None = None
        self._policy = policy
        self.epoch_size = epoch_size
        self._strategy = strategy
        self._r = r
        self._clip = clip
        self._warmup_steps = warmup_steps
        self._importance = None if importance is None else _importance(importance, self.n)
        self.ranks = resolve(num_replicas, rank)
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

    @property
    def epoch_samples(self) -> int:
        """The number of samples that the current epoch has, for all processes together."""
        return self._current().order.size

    def __len__(self) -> int:
        """The number of samples that this process has of the current epoch, from its beginning."""
        return -(-self.epoch_samples // self.ranks.size)

    def __iter__(self) -> Iterator[int]:
        """The positions of the current epoch's samples; after `load_state_dict`, those that remain, once.

        Of several processes each yields as many: where they do not divide, the first samples that remain are
        yielded once more, and `step` leaves them out.
        """
        order = self._current().order
        self.position, self._resume_at = self._resume_at, 0
        rest = order[self.position :]
        padding = -rest.size % self.ranks.size
        return map(int, np.resize(rest, rest.size + padding)[self.ranks.rank :: self.ranks.size])

    def observe(
        self,
        ids: ArrayLike | torch.Tensor,
        losses: torch.Tensor,
        token_counts: ArrayLike | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Records a batch's losses, counts it as trained, and gives its weights; `step` without the reduction.

        The weights are those by loss, times the importance and the token counts, scaled to sum 1 over the
        batch of all processes, times the policy's own factors. The policy's factors (InfoBatch's 1/(1 - r))
        are not scaled away inside the batch, because they make up for the samples that the pruned epoch leaves
        out. With an epoch_size that leaves no step out they are divided by their mean over the plan. In the
        first `warmup_steps` batches the weights by loss are uniform.

        Under gradient accumulation each micro-batch is weighed on its own, and `step(...) / accumulation` is
        what to call `backward` on. To weigh all of them together, compute their losses first (without graph),
        give them to one `observe`, and use each micro-batch's part of the weights.

        Args:
            ids: int [m], positions in the dataset, as `WithIndex` puts them into the batch; as many in every
                process.
            losses: float [m], finite, on any device.
            token_counts: [m] above 0, of how many tokens each loss is the mean, to weigh by tokens; None to
                weigh every sample alike.

        Returns:
            [m], without gradient, of the losses' dtype and device; times the number of processes, because
            DistributedDataParallel averages the gradients.

        Raises:
            NonFiniteLossError: A loss is NaN or infinite, in any process; nothing is recorded or counted.
            DataError: The ids or the shapes do not fit.
        """
        own = _ids(ids)
        if losses.shape != own.shape:
            raise DataError(
                f"losses have shape {tuple(losses.shape)} and ids {own.shape}; "
                "both must be [m] (use a loss with reduction='none')"
            )
        # A batch is small, and each call costs: numpy takes a fraction of what torch takes for the same few operations.
        exact = losses.detach() if losses.dtype == torch.float64 else losses.detach().float()
        where, joined = own, exact
        if self.ranks.size > 1:
            where, joined = join(torch.from_numpy(own), self.ranks).numpy(), join(exact, self.ranks)
        counts = None
        if token_counts is not None:
            counts = _tokens(token_counts, exact, self.ranks)
        # What is beyond the end of the epoch is there to give every process as much.
        real = where.size
        if self.ranks.size > 1:
            real = min(real, self.epoch_samples - self.position)
            where, joined, counts = where[:real], joined[:real], None if counts is None else counts[:real]
        self.scores.record(where, joined.float().cpu().numpy())
        self.position += real
        self.steps += 1
        values = joined.cpu().numpy().astype(np.float64)
        weights = self._weigh(where, values, counts) if real else np.zeros(0)
        self.last = Batch(where, values, weights)
        if self.ranks.size > 1:
            padded = np.concatenate([weights, np.zeros(own.size * self.ranks.size - real)])
            weights = padded[self.ranks.rank :: self.ranks.size] * self.ranks.size
        return torch.from_numpy(weights).to(losses)

    def _weigh(
        self, where: NDArray[np.int64], losses: NDArray[np.float64], token_counts: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        warm = self.steps - 1 - self._warmup_steps
        r = self._r(max(0, warm)) if callable(self._r) else self._r
        if not r > 0:
            raise RecipeError(f"r is {r} at step {self.steps - 1}; the schedule must give numbers above 0")
        weights: NDArray[np.float64] = unchecked(losses, "uniform" if warm < 0 else self._strategy, r, clip=self._clip)
        if self._importance is not None:
            weights = with_importance(weights, self._importance[where])
        if token_counts is not None:
            weights = with_importance(weights, token_counts)
        factors = self._current().factors
        return weights if factors is None else weights * factors[where]

    def step(
        self,
        ids: ArrayLike | torch.Tensor,
        per_sample_losses: torch.Tensor,
        token_counts: ArrayLike | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Records a batch's losses, weighs them, and reduces them to the scalar to call `backward` on.

        Args:
            ids: As for `observe`.
            per_sample_losses: float [m], unreduced, with their graph.
            token_counts: As for `observe`.

        Returns:
            sum_i w_i l_i, a scalar tensor; the weights carry no gradient.

        Raises:
            NonFiniteLossError: A loss is NaN or infinite; the message names the ids, and nothing is recorded.
            DataError: The ids or the shapes do not fit.
        """
        return (self.observe(ids, per_sample_losses, token_counts) * per_sample_losses).sum()

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
        pruned = self.epoch_size == "pruned"
        size = plan.indices.size if pruned else self.n if self.epoch_size == "fixed" else int(self.epoch_size)
        repeats = -(-size // plan.indices.size)
        order = np.concatenate(
            [plan.indices if plan.ordered else rng.permutation(plan.indices) for _ in range(repeats)]
        )
        factors = None
        if (plan.weights != 1).any():
            factors = np.ones(self.n, dtype=np.float32)
            factors[plan.indices] = plan.weights / (1 if pruned else plan.weights.mean())
        return _Epoch(self.epoch, self.scores.frozen, plan, order[:size], factors)


class SamplerOptions(TypedDict, total=False):
    """What every sampler takes besides its own options; see `PlanSampler`."""

    seed: int
    epoch_size: str | int
    strategy: str
    r: float | Schedule
    clip: bool
    warmup_steps: int
    importance: ArrayLike | None
    num_replicas: int | None
    rank: int | None


class SeTaSampler(PlanSampler):
    """SeTa: a window over loss groups that slides from easy to hard (arXiv 2503.13385).

    Args:
        n: Number of samples in the dataset.
        epochs: How many epochs the training has.
        num_group: Loss groups, K.
        window_scale: Fraction of the groups in the window, alpha in (0, 1].
        prune_ratio: Fraction of all samples left out at random, r in [0, 1).
        delta: Fraction of the epochs that prune; the rest train on everything.
        ceiling: Fraction of the seen samples, those of the highest losses, that is left out of every epoch; see
            `tamis.selectors.dynamic.with_ceiling`.
        rule: "paper" or "code"; see `tamis.selectors.dynamic.seta_window`.
        **options: As for `PlanSampler`.
    """

    def __init__(
        self,
        n: int,
        *,
        epochs: int,
        num_group: int = 10,
        window_scale: float = 0.5,
        prune_ratio: float = 0.0,
        delta: float = 0.875,
        rule: str = "paper",
        ceiling: float = 0.0,
        **options: Unpack[SamplerOptions],
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
        super().__init__(n, dynamic.with_ceiling(policy, ceiling), **options)


class InfoBatchSampler(PlanSampler):
    """InfoBatch: drops some of the samples below the mean loss, and weighs up the others (arXiv 2303.04947).

    Args:
        n: Number of samples in the dataset.
        epochs: How many epochs the training has.
        prune_ratio: Probability that a sample below the mean is dropped, in [0, 1).
        delta: Fraction of the epochs that prune; the rest train on everything.
        ceiling: Fraction of the seen samples, those of the highest losses, that is left out of every epoch; see
            `tamis.selectors.dynamic.with_ceiling`.
        **options: As for `PlanSampler`, but `epoch_size` is "pruned" where it is not given, as in the paper.
    """

    def __init__(
        self,
        n: int,
        *,
        epochs: int,
        prune_ratio: float = 0.5,
        delta: float = 0.875,
        ceiling: float = 0.0,
        **options: Unpack[SamplerOptions],
    ) -> None:
        policy = partial(dynamic.infobatch, epochs=epochs, prune_ratio=prune_ratio, delta=delta)
        options.setdefault("epoch_size", "pruned")
        super().__init__(n, dynamic.with_ceiling(policy, ceiling), **options)


class ManifestSampler(PlanSampler):
    """All rows of a subset manifest in a new random order each epoch, with the manifest's weights.

    It yields row numbers of the whole dataset, so the dataset need not be copied or filtered. An epoch is as
    long as the subset.

    Args:
        manifest: As from `tamis.open_manifest`.
        **options: As for `PlanSampler`, but `epoch_size` is "pruned" and `importance` the manifest's weights where
            they are not given.
    """

    def __init__(self, manifest: Manifest, **options: Unpack[SamplerOptions]) -> None:
        n = int(manifest.record["dataset"]["rows"])
        rows = manifest.select["row"].to_numpy()
        importance = np.ones(n, dtype=np.float32)
        importance[rows] = manifest.select["weight"].to_numpy()
        options.setdefault("epoch_size", "pruned")
        options.setdefault("importance", importance)
        super().__init__(n, partial(_given_rows, rows=np.sort(rows)), **options)


class IngeniousSampler(PlanSampler):
    """INGENIOUS: a new draw of the subset every few epochs, by the gains in a manifest (arXiv 2305.06677, 3.3).

    The first draw is the manifest's own subset; each later one draws as many rows of every partition, without
    replacement, with the same probabilities. It yields row numbers of the whole dataset. With `epoch_size` R * B an
    epoch is R steps of batch size B, the paper's interval between draws.

    Args:
        manifest: As from `tamis.open_manifest`, of a recipe that selects by `ingenious`.
        epochs_per_draw: How many epochs each draw serves, at least 1.
        temperature: T of the Taylor softmax; None for the recipe's.
        **options: As for `PlanSampler`, but `epoch_size` is "pruned" where it is not given.

    Raises:
        RecipeError: An option is out of its range.
        DataError: The manifest's subset was not drawn by INGENIOUS.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        epochs_per_draw: int = 1,
        temperature: float | None = None,
        **options: Unpack[SamplerOptions],
    ) -> None:
        if isinstance(epochs_per_draw, bool) or not isinstance(epochs_per_draw, int) or epochs_per_draw < 1:
            raise RecipeError(f"epochs_per_draw is {epochs_per_draw!r}; it must be an integer of at least 1")
        redraws = Redraws.of(manifest, temperature)
        self.temperature = redraws.temperature
        policy = redraws.policy(int(options.get("seed", 0)), epochs_per_draw)
        options.setdefault("epoch_size", "pruned")
        super().__init__(int(manifest.record["dataset"]["rows"]), policy, **options)


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
    array = ids.numpy(force=True) if isinstance(ids, torch.Tensor) else np.asarray(ids)
    if array.dtype.kind not in "iu":
        raise DataError(f"ids have dtype {array.dtype}; they must be integers, as WithIndex gives them")
    return array.astype(np.int64, copy=False)


def _tokens(token_counts: ArrayLike | torch.Tensor, losses: torch.Tensor, ranks: Ranks) -> NDArray[np.float64]:
    """The counts of all processes; joined before they are checked, so that all processes raise."""
    counts = torch.as_tensor(token_counts).to(losses)
    fits = counts.shape == losses.shape
    joined: NDArray[np.float64] = join(counts if fits else torch.full_like(losses, -1), ranks).double().cpu().numpy()
    if not (np.isfinite(joined) & (joined > 0)).all():
        raise DataError(
            f"token_counts have shape {tuple(counts.shape)} for {losses.numel()} losses; give one number above 0 each, "
            "and leave samples without tokens out"
        )
    return joined


def _importance(importance: ArrayLike, n: int) -> NDArray[np.float32]:
    array = np.asarray(importance, dtype=np.float32)
    if array.shape != (n,) or not (np.isfinite(array) & (array > 0)).all():
        raise DataError(f"importance must be {n} finite numbers above 0, got shape {array.shape}")
    return array

"""What INGENIOUS draws from, again and again: the candidates of a manifest with their gains (arXiv 2305.06677, 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from tamis.errors import DataError
from tamis.manifests.canonical import digest
from tamis.manifests.schema import Decision
from tamis.selectors import dynamic
from tamis.selectors.ingenious import draw, taylor_softmax
from tamis.training.learner import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tamis.manifests.reader import Manifest


@dataclass(frozen=True, slots=True, eq=False)
class Redraws:
    """The candidates of a draw, partition by partition, and ascending within each.

    Attributes:
        rows: int64 [n], where they are: rows of the dataset, or positions in some samples.
        partition: int64 [n], in which of them each was ranked, ascending.
        gains: float64 [n].
        chosen: bool [n], what the first draw took. Each later one takes as many of every partition.
        temperature: T of the Taylor softmax.
        scale_free: Whether gains are divided by their partition's median.
    """

    rows: NDArray[np.int64]
    partition: NDArray[np.int64]
    gains: NDArray[np.float64]
    chosen: NDArray[np.bool_]
    temperature: float
    scale_free: bool

    @staticmethod
    def of(manifest: Manifest, temperature: float | None = None) -> Redraws:
        """The candidates of a manifest, by row of its dataset: the rows chosen, and those that the draw left out.

        Args:
            manifest: As from `tamis.open_manifest`.
            temperature: None for the recipe's.

        Raises:
            DataError: Its subset was not drawn by INGENIOUS.
        """
        stages = [stage for stage in manifest.record["recipe"]["stages"] if stage["kind"] == "select"]
        if not stages or stages[-1]["method"] != "ingenious":
            raise DataError(
                "the manifest's subset was not drawn by INGENIOUS, so that it has nothing to draw from again; "
                "give one whose recipe selects with method: ingenious"
            )
        own = manifest.select["row"].to_numpy()
        partition = pc.fill_null(manifest.audit["partition"], -1).to_numpy()
        decision = manifest.audit["decision"].to_numpy()
        gains = pc.fill_null(manifest.audit["score"], np.nan).to_numpy().copy()
        gains[own] = pc.fill_null(manifest.select["gain"], np.nan).to_numpy()
        stays = np.zeros(len(decision), np.bool_)
        stays[own] = True
        # A row that was drawn, and dropped by a later stage, has neither decision.
        candidate = np.flatnonzero((partition >= 0) & (stays | (decision == Decision.NOT_IN_BUDGET)) & ~np.isnan(gains))
        rows = candidate[np.argsort(partition[candidate], kind="stable")]
        return Redraws(
            rows,
            partition[rows].astype(np.int64),
            gains[rows],
            stays[rows],
            stages[-1]["temperature"] if temperature is None else temperature,
            stages[-1]["scale_free"],
        )

    @staticmethod
    def unweighted(manifest: Manifest) -> Redraws:
        """The candidates of a manifest for the trainer, which weighs all of them alike.

        Raises:
            DataError: Its subset was not drawn by INGENIOUS, or its rows have weights: those drawn later have none.
        """
        if np.ptp(manifest.select["weight"].to_numpy()) > 0:
            raise DataError(
                "the manifest weighs its rows, and those that the sampler ingenious draws later have no weight in it; "
                "train with another sampler, or run again without what weighs them (a reweight stage)"
            )
        return Redraws.of(manifest)

    def only(self, where: NDArray[np.bool_]) -> Redraws:
        """Some of the candidates; a partition's later draws take as many as the first took of those that are left."""
        return replace(
            self,
            rows=self.rows[where],
            partition=self.partition[where],
            gains=self.gains[where],
            chosen=self.chosen[where],
        )

    def at(self, rows: NDArray[np.int64]) -> Redraws:
        """The same candidates in other places."""
        return replace(self, rows=rows)

    def digest(self) -> str:
        """The identity of all draws, wherever the candidates are."""
        arrays = digest_of(self.partition, self.gains, self.chosen)
        return digest({"arrays": arrays, "temperature": self.temperature, "scale_free": self.scale_free})

    def policy(self, seed: int, epochs_per_draw: int = 1) -> dynamic.Policy:
        """Plans the first draw, and every so many epochs another one with the same probabilities."""
        return partial(_plan, redraws=self, seed=seed, epochs_per_draw=epochs_per_draw)

    def partitions(self) -> Iterator[NDArray[np.int64]]:
        """The positions of each partition's candidates."""
        starts = np.flatnonzero(np.diff(self.partition, prepend=-1))
        return iter(np.split(np.arange(len(self.rows)), starts[1:]))


def _plan(
    scores: NDArray[np.floating[Any]],  # noqa: ARG001 - one shape for all policies
    seen: NDArray[np.integer[Any]],  # noqa: ARG001
    epoch: int,
    rng: np.random.Generator,
    *,
    redraws: Redraws,
    seed: int,
    epochs_per_draw: int,
) -> dynamic.EpochPlan:
    number = epoch // epochs_per_draw
    taken = redraws.chosen
    if number:
        rng = np.random.default_rng(np.random.SeedSequence([seed, number, 1]))
        taken = np.zeros(len(redraws.rows), np.bool_)
        for own in redraws.partitions():
            p = taylor_softmax(redraws.gains[own], redraws.temperature, redraws.scale_free)
            taken[own[draw(p, int(redraws.chosen[own].sum()), rng)]] = True
    rows = np.sort(redraws.rows[taken])
    return dynamic.EpochPlan(rows, np.ones(rows.size, dtype=np.float32))

"""Which arms a comparison has: full data, random rows, the subsets, and the subsets as their recipes train them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tamis.selectors import uniform
from tamis.training.arms import Arm
from tamis.training.trainer import TrainConfig, planned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tamis.training.setting import Setting, Subset

FULL, RANDOM, STRATIFIED = "full", "random", "stratified random"
_SEEDS = {RANDOM: 20260101, STRATIFIED: 20260102}  # of the draws, each with the training's seed
_TITLES = {
    "seta": "SeTa",
    "infobatch": "InfoBatch",
    "random": "random pruning",
    "hard": "hard first",
    "ingenious": "drawn again",
    "linupper": "LinUpper",
    "upper": "Upper",
    "quadratic": "Quadratic",
    "extremes": "Extremes",
}


def plain(config: TrainConfig, epochs: int | None = None) -> TrainConfig:
    """The same training with all rows in every epoch, weighted alike; `epochs` of them, or as many as there were."""
    return TrainConfig(
        epochs=epochs or config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        token_weights=config.token_weights,
        weight_decay=config.weight_decay,
        precision=config.precision,
        width=config.width,
        layers=config.layers,
    )


def line_up(setting: Setting, config: TrainConfig, *, stratified: bool, as_recipe: bool) -> list[Arm]:
    """The arms, in the order of the table.

    Args:
        setting: What there is to train on.
        config: A plain training.
        stratified: Whether random rows in the classes' proportions are among them, where there are classes.
        as_recipe: Whether each subset is also trained on with its recipe's sampler and loss weights, and with the
            manifest's weights besides.

    Returns:
        Full data first; each size of subset has random rows of its own. The subsets are tested against those of their
        size, full data against the largest ones.
    """
    draws = (RANDOM, STRATIFIED) if stratified and setting.samples.labels is not None else (RANDOM,)
    sizes = sorted({len(subset.rows) for subset in setting.subsets})

    def names(size: int) -> tuple[str, ...]:
        return draws if len(sizes) == 1 else tuple(f"{draw}, {size:,} rows" for draw in draws)

    random = [
        Arm(name, partial(_drawn, setting, draw, size), config)
        for size in sizes
        for draw, name in zip(draws, names(size), strict=True)
    ]
    arms = [Arm(FULL, setting.pool, config, against=names(sizes[-1])), *random]
    for subset in setting.subsets:
        own = Arm(subset.name, subset.rows, config, None, names(len(subset.rows)), subset.manifest.subset_id)
        arms.append(own)
        if as_recipe:
            arms += _as_recipe(own, subset, alone=len(setting.subsets) == 1)
    return arms


def _as_recipe(own: Arm, subset: Subset, *, alone: bool) -> list[Arm]:
    """A subset with its recipe's sampler and loss weights, and with the manifest's weights, where there are such."""
    given = planned(subset.manifest)
    config = replace(given, epochs=own.config.epochs, batch_size=own.config.batch_size, lr=own.config.lr)
    titles = [_TITLES[name] for name in (given.sampler, given.weights) if name in _TITLES]
    name = ", ".join([own.name, *titles])
    arms = [replace(own, name=name, config=config, redraws=subset.redraws)] if titles else []
    if np.ptp(subset.weights) > 0:
        weighted = f"{'the same' if alone else name}, manifest's weights"
        arms.append(replace(own, name=weighted, config=config, weights=subset.weights))
    return arms


def _drawn(setting: Setting, draw: str, size: int, seed: int) -> NDArray[np.int64]:
    """Rows drawn at random, or at random within each class in the classes' proportions."""
    rng = np.random.default_rng([_SEEDS[draw], seed])
    if draw == RANDOM:
        return setting.pool[uniform.random(len(setting.pool), budget=size, rng=rng).indices]
    assert setting.samples.labels is not None
    return setting.pool[uniform.stratified(setting.samples.labels[setting.pool], budget=size, rng=rng).indices]

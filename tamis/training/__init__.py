"""Training on a subset: samplers, weights by loss, the reference trainer, and the comparison of subsets.

The names below load PyTorch only when they are first used. The comparison is in `tamis.training.compare`, and begins
with the trainings of `tamis.training.arms`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tamis.training.data import WithIndex
    from tamis.training.image import Images
    from tamis.training.lm import Blocks
    from tamis.training.packing import pack
    from tamis.training.samplers import (
        InfoBatchSampler,
        IngeniousSampler,
        ManifestSampler,
        PlanSampler,
        SeTaSampler,
    )
    from tamis.training.scores import ScoreTable
    from tamis.training.text import Texts
    from tamis.training.trainer import TrainConfig, TrainResult, fit, planned, train
    from tamis.training.weights import LinearSchedule, focal, reweight, with_importance

_HOME = {
    "Blocks": "lm",
    "Images": "image",
    "InfoBatchSampler": "samplers",
    "IngeniousSampler": "samplers",
    "LinearSchedule": "weights",
    "ManifestSampler": "samplers",
    "PlanSampler": "samplers",
    "ScoreTable": "scores",
    "SeTaSampler": "samplers",
    "Texts": "text",
    "TrainConfig": "trainer",
    "TrainResult": "trainer",
    "WithIndex": "data",
    "fit": "trainer",
    "focal": "weights",
    "pack": "packing",
    "planned": "trainer",
    "reweight": "weights",
    "train": "trainer",
    "with_importance": "weights",
}

__all__ = [
    "Blocks",
    "Images",
    "InfoBatchSampler",
    "IngeniousSampler",
    "LinearSchedule",
    "ManifestSampler",
    "PlanSampler",
    "ScoreTable",
    "SeTaSampler",
    "Texts",
    "TrainConfig",
    "TrainResult",
    "WithIndex",
    "fit",
    "focal",
    "pack",
    "planned",
    "reweight",
    "train",
    "with_importance",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

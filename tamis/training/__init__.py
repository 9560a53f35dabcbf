"""Training on a subset: samplers, weights by loss, the reference trainer, and the comparison of subsets.

The names below load PyTorch only when they are first used. The comparison is in `tamis.training.compare`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tamis.training.data import WithIndex
    from tamis.training.samplers import (
        InfoBatchSampler,
        IngeniousSampler,
        ManifestSampler,
        PlanSampler,
        SeTaSampler,
    )
    from tamis.training.scores import ScoreTable
    from tamis.training.trainer import TrainConfig, TrainResult, fit, train
    from tamis.training.weights import LinearSchedule, focal, reweight, with_importance

_HOME = {
    "InfoBatchSampler": "samplers",
    "IngeniousSampler": "samplers",
    "LinearSchedule": "weights",
    "ManifestSampler": "samplers",
    "PlanSampler": "samplers",
    "ScoreTable": "scores",
    "SeTaSampler": "samplers",
    "TrainConfig": "trainer",
    "TrainResult": "trainer",
    "WithIndex": "data",
    "fit": "trainer",
    "focal": "weights",
    "reweight": "weights",
    "train": "trainer",
    "with_importance": "weights",
}

__all__ = [
    "InfoBatchSampler",
    "IngeniousSampler",
    "LinearSchedule",
    "ManifestSampler",
    "PlanSampler",
    "ScoreTable",
    "SeTaSampler",
    "TrainConfig",
    "TrainResult",
    "WithIndex",
    "fit",
    "focal",
    "reweight",
    "train",
    "with_importance",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

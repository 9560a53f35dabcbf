"""Tamis sifts a training set down to the part worth training on.

The names below load what they need when they are first used: importing the package is cheap.

    run = tamis.run("recipe.yaml", out="runs/first")
    manifest = tamis.open_manifest("runs/first")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tamis.advice.advise import Advice, advise
    from tamis.manifests.reader import Manifest, open_manifest
    from tamis.pipelines.recipe import Recipe, load_recipe
    from tamis.pipelines.run import Run, run
    from tamis.training.compare import compare
    from tamis.training.data import WithIndex
    from tamis.training.samplers import InfoBatchSampler, IngeniousSampler, ManifestSampler, SeTaSampler
    from tamis.training.trainer import train

__version__ = "0.1.0"

_HOMES = {
    "Advice": "tamis.advice.advise",
    "InfoBatchSampler": "tamis.training.samplers",
    "IngeniousSampler": "tamis.training.samplers",
    "Manifest": "tamis.manifests.reader",
    "ManifestSampler": "tamis.training.samplers",
    "Recipe": "tamis.pipelines.recipe",
    "Run": "tamis.pipelines.run",
    "SeTaSampler": "tamis.training.samplers",
    "WithIndex": "tamis.training.data",
    "advise": "tamis.advice.advise",
    "compare": "tamis.training.compare",
    "load_recipe": "tamis.pipelines.recipe",
    "open_manifest": "tamis.manifests.reader",
    "run": "tamis.pipelines.run",
    "train": "tamis.training.trainer",
}

__all__ = [
    "Advice",
    "InfoBatchSampler",
    "IngeniousSampler",
    "Manifest",
    "ManifestSampler",
    "Recipe",
    "Run",
    "SeTaSampler",
    "WithIndex",
    "advise",
    "compare",
    "load_recipe",
    "open_manifest",
    "run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tamis' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

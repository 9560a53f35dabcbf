"""What is known of the dataset before anything is tried."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamis.errors import DataError
from tamis.pipelines.guess import Guess, guess, look_at
from tamis.pipelines.recipe import Recipe, load_recipe
from tamis.pipelines.starter import encoder_for


@dataclass(frozen=True, slots=True)
class Given:
    """A dataset, and what a recipe for it says beside the stages that are tried.

    Attributes:
        data: Its path, from the current folder on.
        found: What it is.
        embed: The embed stage; its paths hold from any folder.
        others: The recipe's keys beside dataset and stages; None where there is no recipe.
    """

    data: str
    found: Guess
    embed: dict[str, Any]
    others: dict[str, Any] | None


def read_given(data: str) -> Given:
    """Read a recipe, or guess what one would say of a dataset.

    Args:
        data: A file, glob or folder; or a recipe, whose name ends in .yaml or .yml.

    Raises:
        RecipeError: The recipe is wrong.
        DataError: The data cannot be read, or the recipe's label has a single class.
    """
    if not data.endswith((".yaml", ".yml")):
        found = guess(data)
        return Given(data, found, {"kind": "embed", "encoder": encoder_for(found.fields)[0]}, None)
    recipe, base = load_recipe(data)
    path = recipe.dataset.path
    location = path if "://" in path or Path(path).is_absolute() else os.path.relpath(base / path)
    found = look_at(location, recipe.dataset.fields)
    if "label" in found.fields and len(found.classes) < 2:
        raise DataError(
            f"the label {found.fields['label']!r} has {len(found.classes)} value(s); two classes are needed"
        )
    return Given(location, found, _embed_of(recipe, base, found), _others_of(recipe))


def _embed_of(recipe: Recipe, base: Path, found: Guess) -> dict[str, Any]:
    """The recipe's first embed stage, with a path that holds from any folder."""
    stages = [stage for stage in recipe.stages if stage.kind == "embed"]
    if not stages:
        return {"kind": "embed", "encoder": encoder_for(found.fields)[0]}
    embed: dict[str, Any] = {"kind": "embed", **stages[0].model_dump(exclude_unset=True)}
    name, _, argument = (part.strip() for part in embed.setdefault("encoder", "lsa").partition(":"))
    if argument and (base / argument).exists():
        embed["encoder"] = f"{name}: {base / argument}"
    return embed


def _others_of(recipe: Recipe) -> dict[str, Any]:
    dumped = recipe.model_dump(by_alias=True, exclude_unset=True, mode="json")
    return {key: value for key, value in dumped.items() if key not in ("dataset", "stages")}

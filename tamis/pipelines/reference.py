"""The reference recipe: a valid recipe with every key there is, each with its default and what it means."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import yaml

from tamis.pipelines.recipe import STAGE_MODELS, DatasetConfig, Recipe, TrainSection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

_WIDTH = 100
# What stands where a key has no default, or where the default alone is not valid.
_EXAMPLES: dict[tuple[type[BaseModel], str], Any] = {
    (Recipe, "name"): "example",
    (DatasetConfig, "path"): "train.parquet",
    (DatasetConfig, "text"): "text",
    (DatasetConfig, "label"): "label",
    (STAGE_MODELS["score"], "method"): "proxy",
    (STAGE_MODELS["prune"], "method"): "density",
    (STAGE_MODELS["select"], "method"): "facility_location",
    (STAGE_MODELS["select"], "budget"): 0.25,
    (STAGE_MODELS["pick"], "ids"): "ids.txt",
}


def reference_recipe() -> str:
    """Every key of a recipe as YAML, each below a comment of what it means; a key that is required says so."""
    lines = [*_comment(_first_line(Recipe), 0), *_keys(Recipe, 0)]
    lines += ["", *_comment(_first_line(DatasetConfig), 0), "dataset:", *_keys(DatasetConfig, 2)]
    lines += [
        "",
        "# The stages, in any order that their inputs allow; each may be left out, and may come again.",
        "stages:",
    ]
    for kind, model in STAGE_MODELS.items():
        lines += ["", *_comment(_first_line(model), 2), f"  - kind: {kind}", *_keys(model, 4)]
    lines += ["", *_comment(_first_line(TrainSection), 0), "train:", *_keys(TrainSection, 2)]
    return "\n".join(lines)


def _keys(model: type[BaseModel], indent: int) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if not field.description or name == "stages":
            continue
        required = field.is_required()
        yield from _comment(field.description + _choices(field) + (" Required." if required else ""), indent)
        value = _EXAMPLES.get((model, name), None if required else field.default)
        yield f"{' ' * indent}{field.alias or name}: {_yaml(value)}"


def _choices(field: FieldInfo) -> str:
    """The words that a key may have, where it has a choice of them and its description does not name them."""
    words = list(_words(field.annotation))
    told = all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", field.description or "") for word in words)
    return "" if len(words) < 2 or told else f" One of {', '.join(words)}."


def _words(kind: Any) -> Iterator[str]:
    for item in get_args(kind):
        if get_origin(kind) is not Literal:
            yield from _words(item)
        elif isinstance(item, str):
            yield item


def _comment(text: str, indent: int) -> list[str]:
    before = " " * indent + "# "
    return textwrap.wrap(text, _WIDTH, initial_indent=before, subsequent_indent=before, break_on_hyphens=False)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").splitlines()[0]

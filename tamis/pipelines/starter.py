"""A first recipe for a dataset, with a comment on every line that one may want to change."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tamis.errors import OutputError
from tamis.manifests.atomic import write_once
from tamis.pipelines.guess import Guess, guess

if TYPE_CHECKING:
    from collections.abc import Sequence

    Step = tuple[Sequence[str], Mapping[str, object]]

_BUDGET = 0.25
_COVERED = 0.1  # see docs/evidence.md
_PROXY_ROWS, _ROWS_PER_CLASS, _PROXY_CLASSES = 50, 10, 200
_MIN_SHARE = 4.0  # rows that the smallest class gets of the budget, on average, where it is shared per label
_WIDTH = 78
_PLAIN = {"epochs": 12, "sampler": "full", "weights": "uniform"}


def write_starter(data: str, out: Path) -> Guess:
    """Guess what a dataset's columns mean, and write a recipe that runs on it.

    Args:
        data: A file, glob or folder.
        out: The recipe; there must be nothing of that name.

    Returns:
        What was guessed.

    Raises:
        DataError: The dataset cannot be read, or no column holds samples.
        OutputError: There is something at `out`, or it cannot be written.
    """
    check_free(out)
    found = guess(data)
    path = from_folder(data, out.parent)
    about = [f"A first recipe for {_printable(Path(path).name or path)}, by tamis init."]
    write_recipe(out, recipe_text(found, path, about, _stages(found)), data)
    return found


def check_free(out: Path) -> None:
    """Refuse, before anything is computed, a recipe that cannot be written.

    Raises:
        OutputError: There is something at `out`, or its folder is not there or cannot be written.
    """
    if os.path.lexists(out):
        raise OutputError(f"{out} exists and is not overwritten: choose another --out, or remove it first")
    if not os.access(out.parent, os.W_OK) or not out.parent.is_dir():
        raise OutputError(f"cannot write {out}: give a file in a folder that is there and can be written")


def from_folder(path: str, folder: Path) -> str:
    """A path as a recipe in a folder has it: a relative one from there on."""
    return path if Path(path).is_absolute() else os.path.relpath(path, folder)


def write_recipe(out: Path, text: str, data: str) -> None:
    """Write a recipe that was planned: what is written must be valid.

    Args:
        out: Where to; there must be nothing of that name.
        text: The recipe.
        data: Its dataset, from the current folder on.

    Raises:
        RecipeError: It is not valid.
        DataError: Not for this dataset.
        OutputError: There is something at `out`, or it cannot be written.
    """
    from tamis.pipelines.run import plan_run
    from tamis.pipelines.strict_yaml import load_recipe_text

    raw, _ = load_recipe_text(text, "the new recipe")
    plan_run({**raw, "dataset": {**raw["dataset"], "path": data}}, Path(".tamis").resolve())
    if not write_once(out, text.encode()):
        check_free(out)


def recipe_text(
    found: Guess, path: str, about: Sequence[str], stages: Sequence[Step], others: Mapping[str, object] | None = None
) -> str:
    """A recipe's text.

    Args:
        found: What the dataset is.
        path: Where it lies, from the recipe's folder on.
        about: What the recipe is, in lines.
        stages: Each with lines on what it is for.
        others: The recipe's keys beside dataset and stages; by default those that suit the dataset.
    """
    own = dict(_others(found, path) if others is None else others)
    train = own.pop("train", None)
    lines = [
        *(f"# {line}" for line in about),
        f"# {found.rows:,} rows in {len(found.sources):,} file(s). See what it would do, and what that takes:",
        "#   tamis plan RECIPE --out runs/first",
        "# `tamis recipes --keys` explains every key, `tamis recipes` lists other recipes.",
        *(f"{key}: {_value(value)}" for key, value in own.items()),
        "dataset:",
        *_commented(
            {role: _word(column) for role, column in ({"path": path} | found.fields).items()},
            {
                "path": "a file, a glob or a folder; from this file's folder on",
                "id": "kept verbatim in the manifest",
                "text": "what is embedded and compared",
                "label": f"{len(found.classes):,} classes",
                "source": "where a row is from",
                "image": "what is embedded and compared",
                "tokens": "blocks of tokens",
                "vectors": "precomputed; compared as they are",
            },
        ),
    ]
    if "id" not in found.fields:
        lines.append("  # id: COLUMN       # without one the hash of a row's content is its id")
    if found.bad and "max_bad_fraction" not in own:
        share = math.ceil(2000 * found.bad / found.looked) / 1000
        lines += [
            f"# {found.bad:,} of the first {found.looked:,} rows are empty or broken: a run sets such rows aside.",
            f"max_bad_fraction: {min(1.0, share)}",
        ]
    lines.append("stages:")
    for comment, stage in stages:
        lines += [f"  # {line}" for line in comment] + [f"  - {_value(stage)}"]
    if train:
        lines.append("# For `tamis train runs/first`, after the run.")
        if train == _train(found) and train["sampler"] == "full":
            lines += [
                "# sampler: seta sees fewer samples, by their difficulty, and wants more epochs on few rows;",
                "# `tamis compare --as-recipe --budget epochs` tells what that is worth.",
            ]
        lines.append(f"train: {_value(train)}")
    return "\n".join(lines) + "\n"


def _others(found: Guess, path: str) -> dict[str, object]:
    return {"name": _name(path), "seed": 17, "train": _train(found)}


def _stages(found: Guess) -> list[Step]:
    fields, classes = found.fields, found.classes
    encoder, about = encoder_for(fields)
    good = max(1, found.looked - found.bad)
    # Of the dataset, and copies are dropped before.
    budget = min(_BUDGET, max(0.001, math.floor(500 * found.different / good) / 1000))
    stages: list[Step] = [
        (about, {"kind": "embed", "encoder": encoder}),
        (
            [
                "Drop copies, and rows from cosine 1 - eps on. To see what leaks from a test set, add",
                "against: [test.parquet]; `tamis leaks` lists it.",
            ],
            {"kind": "dedup", "eps": 0.05},
        ),
    ]
    if _has_proxy(found):
        stages += [
            (
                [
                    "A loss for every row, by a classifier that has not seen it, and where the label is likely wrong.",
                    "With min_accuracy: majority a run stops where the classifier has learned nothing.",
                ],
                {"kind": "score", "method": "proxy", "min_accuracy": 0.0},
            ),
        ]
    select: dict[str, object] = {"kind": "select", "method": "facility_location", "budget": budget}
    why = [
        "The rows that represent all others best; budget is a fraction of the dataset, a count of rows,",
        "{tokens: N} or {bytes: N}.",
    ]
    if budget > _COVERED:
        select["random_beyond"] = _COVERED
        why.append(f"Beyond {_COVERED:.0%} of the dataset more coverage is no better than chance.")
    if classes and classes[-1] * budget >= _MIN_SHARE:
        select["per"] = "label"
        why.append("Every class keeps its share.")
        if _has_proxy(found):
            select["suspects"] = "last"
            why.append("Rows whose label is likely wrong are taken where it has no others left.")
    elif "source" in fields or (not classes and len(found.sources) > 1):
        select["per"] = "source"
        why.append("Every source keeps its share; shares: {NAME: 0.5} gives one another.")
    stages.append((why, select))
    return stages


def encoder_for(fields: Mapping[str, str]) -> tuple[str, list[str]]:
    """The encoder of a first recipe, by what the dataset has, with lines on it."""
    if "vectors" in fields:
        return "vectors", ["The vectors that the dataset has."]
    if "text" in fields:
        return "lsa", [
            "TF-IDF and SVD, fitted here: nothing to download. Better, with a model on this machine:",
            "encoder: 'sentence: FOLDER'.",
        ]
    if "image" in fields:
        return "pixels", [
            "PCA of small versions of the images: nothing to download. Vectors of a better encoder can be",
            "given: encoder: 'vectors: FILE'.",
        ]
    return "lsa", ["The tokens' numbers are embedded as words."]


def _has_proxy(found: Guess) -> bool:
    """Whether the classes are large enough, and few enough, to learn something from."""
    classes = found.classes
    return (
        len(classes) >= 2
        and len(classes) <= _PROXY_CLASSES
        and found.different >= max(_PROXY_ROWS, _ROWS_PER_CLASS * len(classes))
        and classes[1] >= _ROWS_PER_CLASS
    )


def _train(found: Guess) -> dict[str, object]:
    if found.classes and "text" in found.fields:
        return {"model": "text", **_PLAIN}
    if found.classes and "image" in found.fields:
        return {"model": "image", "image_size": 28, **_PLAIN}
    if "tokens" in found.fields and "text" not in found.fields:
        return {"model": "lm", "epochs": 12, "sampler": "random"}
    return {}


def _commented(values: Mapping[str, str], comments: Mapping[str, str]) -> list[str]:
    width = max((len(f"{key}: {value}") for key, value in values.items()), default=0)
    return [f"  {f'{key}: {value}':<{min(width, 40)}}  # {comments[key]}" for key, value in values.items()]


def _value(value: object) -> str:
    """A value as YAML has it, in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, float):
        return np.format_float_positional(value, trim="0")  # never as 1e-05, which YAML takes for a word
    return _word(value) if isinstance(value, str) else json.dumps(value)


def _word(text: str) -> str:
    """A string as YAML has it: bare where it cannot be anything else."""
    bare = re.fullmatch(r"((\.\.)?/)*[A-Za-z_][A-Za-z0-9_./-]*", text) and text.lower() not in _RESERVED
    return text if bare else json.dumps(text, ensure_ascii=False)


_RESERVED = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")


def _name(path: str) -> str:
    """A name for the run, of what a name may have."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).name.partition(".")[0]).strip("-._")
    return stem[:60] if re.match(r"[A-Za-z]", stem) else f"first-{stem[:60]}".rstrip("-")


def _printable(text: str) -> str:
    """A file's name within a comment, which ends with its line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:_WIDTH]

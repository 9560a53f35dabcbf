"""What `tamis compare` found, as the report and its picture show it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from tamis.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COMPARISON = "compare.json"


def read_comparison(path: Path) -> dict[str, Any] | None:
    """Read the result of a comparison; None where nothing was compared.

    Returns:
        `note`, `measure`, `results` (as `results_of`), `verdict` and `break_even`, lines.

    Raises:
        OutputError: The file holds none.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        return {
            "note": _text(found["note"]),
            **results_of(found),
            "verdict": [_text(line) for line in found["verdict"]],
            "break_even": [_text(item["line"]) for item in found.get("break_even", ())],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"{path} holds no comparison of trainings ({error!r}): remove it, or compare again"
        ) from error


def results_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of a comparison the `measure`, accuracy or loss, and the `results`, checked.

    Returns:
        Of each result `name`, `size`, `samples_seen`, `subset` (or else it is of all rows, or of random ones), `mean`,
        `ci95` (half of the mean's interval) and `values` (each training's, where they are told).
    """
    return {
        "measure": {"accuracy": "accuracy", "loss": "loss"}[found.get("measure", "accuracy")],
        "results": [_result(item) for item in found["results"]],
    }


def _result(item: Mapping[str, Any]) -> dict[str, Any]:
    values = item.get("accuracies") or item.get("losses") or []
    half = item["ci95"]
    numbers = {"mean": item["mean"], "values": values, "ci95": half}
    if not all(math.isfinite(number) for number in (item["mean"], *values, *([] if half is None else [half]))):
        raise ValueError(f"a number is none in {numbers}")
    return {
        "name": _text(item["name"]),
        "size": int(item["size"]),
        "samples_seen": int(item["samples_seen"]),
        "subset": item.get("subset_id", "") is not None,
        **numbers,
    }


def _text(value: Any) -> str:
    """A text that can be written: what is half of a surrogate pair is no character."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value.encode("utf-8", "replace").decode()

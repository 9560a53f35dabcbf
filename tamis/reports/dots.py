"""A comparison as a picture: a dot with its interval for each row of the table."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_INK, _SOFT, _LINE, _PAPER = "#1c1b19", "#6d6a63", "#dedbd2", "#fbfaf7"
_LONGEST = 40  # letters of a name
_SUBSET, _BASELINE = "#2f7d5b", "#8a6d2f"


def draw(comparison: Mapping[str, Any]) -> bytes:
    """The picture as SVG; equal comparisons give equal bytes.

    Args:
        comparison: As from `tamis.training.compare.compare`.

    Returns:
        Subsets are green, full data and random rows brown; a bar is the mean's 95 % interval, small circles are
        the trainings.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    results = comparison["results"]
    accuracy = comparison["measure"] == "accuracy"
    scale, kind, label = (100, "accuracies", "accuracy, %") if accuracy else (1, "losses", "loss")
    with (
        rc_context({"svg.hashsalt": "tamis", "font.size": 10, "font.family": "DejaVu Sans", "text.parse_math": False}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks is shown in boxes
        figure = Figure(figsize=(9, 1.2 + 0.42 * len(results)), facecolor=_PAPER, layout="constrained")
        axes = figure.add_subplot(facecolor=_PAPER)
        for place, result in enumerate(results):
            colour = _BASELINE if result["subset_id"] is None else _SUBSET
            values = [scale * value for value in result[kind]]
            half = None if result["ci95"] is None else scale * result["ci95"]
            axes.plot(values, [place] * len(values), "o", color=colour, markersize=6, alpha=0.5, fillstyle="none")
            axes.errorbar(
                scale * result["mean"], place, xerr=half, fmt="o", color=colour, markersize=7, capsize=4, linewidth=2
            )
        axes.set_yticks(range(len(results)), [_label(result["name"], result["size"]) for result in results], color=_INK)
        axes.set_ylim(len(results) - 0.4, -0.6)
        axes.set_xlabel(f"{label} of {comparison['seeds']} trainings each, with the 95 % interval", color=_SOFT)
        axes.tick_params(axis="x", colors=_SOFT)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=_LINE)
        axes.set_axisbelow(True)
        for side in axes.spines.values():
            side.set_visible(False)
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()


def _label(name: str, size: int) -> str:
    """The name of a row with its size, unless the name has it."""
    rows = f"{size:,} rows"
    short = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
    return short if rows in name else f"{short} ({rows})"

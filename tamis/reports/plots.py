"""The plots of a report: drawn by matplotlib, handed over as small inline SVG that takes its colours from the page.

Each function takes a section's numbers. Plots are 360 units wide, so that a telephone shows their text as large as its
own, and are drawn without grids, frames or legends: what a line is stands beside it.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.reports.brief import clipped
from tamis.reports.comparison import results_of
from tamis.reports.svg import GONE, INK, KEPT, LINE, SOFT, to_svg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = Any  # of a section, as the JSON has them

_WIDTH = 360
_LEFT, _RIGHT, _BOTTOM, _TOP = 42, 14, 36, 28
_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tamis",
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib; the page's own font is what is seen
    "font.size": 12,
    "path.simplify": False,
    "axes.unicode_minus": False,
}
_LONGEST_NAME, _LONGEST_ALONE = 26, 32
_SCALES = {"accuracy": 100, "loss": 1}


def draw(report: Mapping[str, Any]) -> dict[str, str]:
    """Draw each plot that there are numbers for, by name: SVG, its texts escaped."""
    near, clusters, compared = report["near_duplicates"], report["clusters"], report["comparison"]
    wanted: dict[str, tuple[str, Callable[[Any], Figure], Any]] = {
        "map": ("Kept and dropped rows on two principal components", _map, report["map"]),
        "coverage": ("Distance to the nearest kept and random rows", _coverage, report["coverage"]),
        "clusters": ("Rows of each cluster before and after", _clusters, clusters),
        "complexity": ("Share kept of each cluster, by complexity", _complexity, clusters and clusters["complexity"]),
        "duplicates": ("Near duplicates removed at each eps", _duplicates, near),
        "gains": ("Objective by the number of rows", _gains, report["gains"]),
        "losses": ("Histogram of losses", _losses, report["losses"]),
        "difficulty": ("Rows of each difficulty group", _difficulty, report["difficulty"]),
        "windows": ("Difficulty groups that each epoch trains on", _windows, report["schedule"]),
        "weights": ("Histogram of weights", _weights, report["weights"]["histogram"]),
        "comparison": ("Accuracies with intervals", _comparison, compared and compared["results"] and compared),
    }
    with _drawing():
        return {name: to_svg(plot(numbers), label) for name, (label, plot, numbers) in wanted.items() if numbers}


def draw_comparison(comparison: Mapping[str, Any]) -> bytes:
    """Draw what `tamis.compare` found as an SVG file of its own; equal comparisons give equal bytes.

    Returns:
        Subsets are green, full data and random rows sand; a bar is the mean's 95 % interval, small dots are the
        trainings.
    """
    with _drawing():
        figure = _comparison(results_of(comparison), wide=True)
        return to_svg(figure, "Means of trainings with their intervals", alone=True).encode()


@contextmanager
def _drawing() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the page's font has it, or shows a box
        yield


def _figure(
    height: int = 210, left: int = _LEFT, top: int = _TOP, bottom: int = _BOTTOM, width: int = _WIDTH
) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - _RIGHT) / width, (height - bottom - top) / height)
    )
    return figure, _quiet(axes)


def _quiet(axes: Axes) -> Axes:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set(color=LINE, linewidth=1)
    axes.tick_params(length=0, pad=5, labelcolor=SOFT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.margins(x=0.02, y=0.05)
    return axes


def short(value: float) -> str:
    """A number of an axis in at most five characters or so: 950, 12k, 1.5M.

    >>> [short(value) for value in (0, 0.05, 950, 12_000, 1_500_000)]
    ['0', '0.05', '950', '12k', '1.5M']
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _named(axes: Axes, x: str, y: str = "") -> None:
    """Say what the axes are: one below the plot, the other above its left end, where nobody's head need turn."""
    axes.set_xlabel(x, color=SOFT, labelpad=4)
    axes.annotate(
        y, (0, 1), xycoords="axes fraction", xytext=(-_LEFT + 4, 10), textcoords="offset points", color=SOFT
    )  # fmt: skip


def _whole(axes: Axes, *names: str) -> None:
    """Mark whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    for name in names:
        getattr(axes, f"{name}axis").set_major_locator(MaxNLocator(4, integer=True))


def _lines(axes: Axes, names: Sequence[str]) -> None:
    """Name what is at 0, -1, -2, ... On its baseline, so that no letter of a name moves it."""
    axes.set_yticks([])
    for line, name in enumerate(names):
        axes.annotate(
            name, (0, -line), xycoords=("axes fraction", "data"), xytext=(-8, -4), textcoords="offset points",
            color=SOFT, ha="right", va="baseline",
        )  # fmt: skip


def _say(axes: Axes, x: float, y: float, text: str, colour: str, across: str = "left", up: str = "bottom") -> None:
    """Write beside what is meant; the place is a share of the axes."""
    axes.text(x, y, text, color=colour, ha=across, va=up, transform=axes.transAxes)


def _dots(axes: Axes, x: Numbers, y: Numbers, colour: str, size: float, opacity: float = 1.0) -> None:
    """Points as one path of strokes without length and with round ends: a tenth of the bytes of as many markers."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not len(x):
        return
    vertices = np.repeat(np.column_stack([x, y]), 2, axis=0)
    codes = np.tile([Path.MOVETO, Path.LINETO], len(x))
    axes.add_patch(
        PathPatch(
            Path(vertices, codes), facecolor="none", edgecolor=colour, linewidth=size, capstyle="round", alpha=opacity,
            clip_on=False, zorder=3,
        )
    )  # fmt: skip
    axes.update_datalim(vertices)
    axes.autoscale_view()


def _steps(axes: Axes, counts: Numbers, edges: Numbers, colour: str, filled: bool) -> None:
    axes.stairs(
        counts, edges, fill=filled, facecolor=colour if filled else "none", edgecolor="none" if filled else colour,
        linewidth=1.5, clip_on=False,
    )  # fmt: skip
    axes.set_ylim(bottom=0)


def _map(numbers: Numbers) -> Figure:
    figure, axes = _figure(330, left=_RIGHT, bottom=_RIGHT)
    for name, colour, size, opacity in (("dropped", GONE, 2.6, 0.6), ("kept", KEPT, 3.2, 0.9)):
        _dots(axes, numbers[name]["x"], numbers[name]["y"], colour, size, opacity)
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


def _coverage(numbers: Numbers) -> Figure:
    figure, axes = _figure(112, left=100, top=20)
    for line, name in enumerate(("mean", "p95")):
        values = [draw[name] for draw in numbers["random"]]
        axes.plot([0, max([*values, numbers["kept"][name]])], [-line, -line], color=LINE, linewidth=1, clip_on=False)
        _dots(axes, values, [-line] * len(values), GONE, 8)
        _dots(axes, [numbers["kept"][name]], [-line], KEPT, 8)
    axes.set(xlim=(0, None), ylim=(-1.5, 0.5))
    _lines(axes, ("mean", "95th percentile"))
    _say(axes, 0, 1.02, "kept", KEPT)
    _say(axes, 0.16, 1.02, "random subsets", GONE)
    _named(axes, "cosine distance to the nearest")
    return figure


def _clusters(numbers: Numbers) -> Figure:
    figure, axes = _figure()
    order = np.argsort(-np.array(numbers["before"]), kind="stable")
    edges = np.arange(len(order) + 1) + 0.5
    _steps(axes, np.array(numbers["before"])[order], edges, GONE, filled=True)
    _steps(axes, np.array(numbers["after"])[order], edges, KEPT, filled=True)
    _say(axes, 0.98, 0.95, "before", GONE, "right", "top")
    _say(axes, 0.98, 0.84, "after", KEPT, "right", "top")
    _whole(axes, "x", "y")
    _named(axes, "clusters, the largest first", "rows")
    return figure


def _complexity(numbers: Numbers) -> Figure:
    figure, axes = _figure()
    rows, left = np.array(numbers["rows"]), np.array(numbers["left"])
    used = rows > 0
    _dots(axes, np.array(numbers["complexity"])[used], left[used] / rows[used], KEPT, 7, 0.7)
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    _named(axes, "concept complexity of the cluster", "share kept")
    return figure


def _duplicates(numbers: Numbers) -> Figure:
    figure, axes = _figure()
    curve = numbers["curve"]
    axes.plot(curve["eps"], curve["removed"], color=INK, linewidth=1.5, clip_on=False)
    at = numbers["eps"]
    there = curve["removed"][curve["eps"].index(at)]
    _dots(axes, [at], [there], KEPT, 8)
    axes.set_ylim(0, 1.15 * max(*curve["removed"], 1))
    axes.plot([at, at], [0, axes.get_ylim()[1]], color=KEPT, linewidth=0.75, clip_on=False)
    right = at > 0.6 * curve["eps"][-1]
    axes.annotate(
        f"this run: {there:,}", (at, axes.get_ylim()[1]), color=KEPT, xytext=(-6 if right else 6, 0),
        textcoords="offset points", ha="right" if right else "left", va="top",
    )  # fmt: skip
    _whole(axes, "y")
    _named(axes, "eps", "near duplicates removed")
    return figure


def _gains(numbers: Numbers) -> Figure:
    figure, axes = _figure()
    rows, objective, bound = numbers["rows"], numbers["objective"], numbers["upper_bound"]
    axes.plot([0, *rows], [0, *objective], color=KEPT, linewidth=1.5, clip_on=False)
    if bound is not None:
        axes.plot([0, rows[-1]], [bound, bound], color=INK, linewidth=1, linestyle=(0, (2, 3)), clip_on=False)
        axes.annotate(
            "no subset of this size has more", (rows[-1], bound), color=INK, xytext=(0, 4),
            textcoords="offset points", ha="right", va="bottom",
        )  # fmt: skip
    axes.set_ylim(0, 1.12 * max(objective[-1], bound or 0))
    _whole(axes, "x")
    _named(axes, "rows, in rank order", "objective")
    return figure


def _losses(numbers: Numbers) -> Figure:
    figure, axes = _figure()
    _steps(axes, numbers["all"], numbers["edges"], GONE, filled=True)
    _steps(axes, numbers["kept"], numbers["edges"], KEPT, filled=True)
    _say(axes, 0.98, 0.95, "all rows", GONE, "right", "top")
    _say(axes, 0.98, 0.84, "kept", KEPT, "right", "top")
    _whole(axes, "y")
    _named(axes, "loss", "rows")
    return figure


def _difficulty(numbers: Numbers) -> Figure:
    figure, axes = _figure(150)
    _steps(axes, numbers["rows"], np.arange(len(numbers["rows"]) + 1) + 0.5, KEPT, filled=True)
    _whole(axes, "x", "y")
    _named(axes, "difficulty group, easy to hard", "kept rows")
    return figure


def _windows(numbers: Numbers) -> Figure:
    shown = numbers["windows"][:40]
    figure, axes = _figure(60 + 9 * len(shown))
    for epoch, (start, stop) in enumerate(shown):
        axes.plot([start + 0.6, stop + 0.4], [epoch + 1] * 2, color=KEPT, linewidth=4, solid_capstyle="butt")
    axes.set(xlim=(0.5 - 0.02, numbers["groups"] + 0.52), ylim=(len(shown) + 0.7, 0.3))
    for line in axes.lines:
        line.set_clip_on(False)
    _whole(axes, "x", "y")
    _named(axes, "difficulty groups trained on", "epoch")
    return figure


def _weights(numbers: Numbers) -> Figure:
    figure, axes = _figure(150)
    _steps(axes, numbers["rows"], numbers["edges"], KEPT, filled=True)
    _whole(axes, "y")
    _named(axes, "weight", "kept rows")
    return figure


def _comparison(comparison: Numbers, wide: bool = False) -> Figure:
    """Each result's mean with its interval, and its trainings; `wide` where nothing stands beside the plot."""
    results, scale = comparison["results"], _SCALES[comparison["measure"]]
    top = _TOP if wide else 4
    figure, axes = _figure(40 + top + 22 * len(results), *((310, top, _BOTTOM, 640) if wide else (170, top)))
    for line, result in enumerate(results):
        colour = KEPT if result["subset"] else GONE
        mean, half = scale * result["mean"], scale * (result["ci95"] or 0.0)
        axes.plot([mean - half, mean + half], [-line, -line], color=colour, linewidth=2, clip_on=False)
        _dots(axes, [scale * value for value in result["values"]], [-line] * len(result["values"]), colour, 4, 0.5)
        _dots(axes, [mean], [-line], colour, 8)
    axes.set_ylim(0.6 - len(results), 0.6)
    axes.margins(x=0.08)
    _lines(axes, [_sized(result) if wide else _name(result["name"], _LONGEST_NAME) for result in results])
    _named(axes, "test accuracy in %" if comparison["measure"] == "accuracy" else "test loss")
    if wide:
        seeds = max(len(result["values"]) for result in results)
        _say(axes, 0, 1.02, f"means of {seeds} trainings, 95 % intervals", SOFT)
    return figure


def _sized(result: Numbers) -> str:
    """A result's name with its rows, unless it has them."""
    rows = f"{result['size']:,} rows"
    return _name(result["name"], _LONGEST_ALONE) + ("" if rows in result["name"] else f" ({rows})")


def _name(text: str, most: int) -> str:
    """A name beside a plot: clipped, and without characters that are none in XML."""
    return clipped("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text), most)

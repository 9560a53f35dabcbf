"""The page of a report: made of the JSON's numbers and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tamis.reports import plots

if TYPE_CHECKING:
    from collections.abc import Mapping


def render(report: Mapping[str, Any]) -> str:
    """Give the page of what `build_report` collected, as HTML that loads nothing and runs nothing."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from yaml import safe_dump

    environment = Environment(
        loader=PackageLoader("tamis", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": lambda value: f"{value:,}", "size": _size, "percent": _percent, "number": _number}
    recipe = safe_dump(report["recipe"], sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    images = any(item["image"] for item in report["samples"].values())
    return environment.get_template("report.html").render(
        report=report, plots=plots.draw(report), recipe=recipe, images=images
    )


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _number(value: float) -> str:
    """Four significant digits, and no exponent where people need none."""
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _size(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:,.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"

"""From a matplotlib figure to inline SVG: few elements, no addresses, no ids, colours of the page."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

# Stand-ins for the page's colours, which are light or dark when it is looked at.
INK, SOFT, LINE, KEPT, GONE = (f"#0{number}0{number}0{number}" for number in range(1, 6))
_OF_PAGE = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)", KEPT: "var(--kept)", GONE: "var(--gone)"}
_LIGHT = {INK: "#1c1b19", SOFT: "#6d6a63", LINE: "#dedbd2", KEPT: "#1f7550", GONE: "#b99a5b"}  # as report.html has them
_ALONE = {
    "xmlns": "http://www.w3.org/2000/svg",
    "style": "background: #fbfaf7; font-family: system-ui, sans-serif; font-variant-numeric: tabular-nums",
}

_SVG = "{http://www.w3.org/2000/svg}"
_ATTRIBUTES = {"path": ("d",), "text": ("x", "y"), "g": ()}
_STYLES = ("fill", "stroke", "stroke-width", "stroke-linecap", "stroke-dasharray", "opacity", "stroke-opacity",
           "fill-opacity", "text-anchor", "font-size")  # fmt: skip
_NUMBER = re.compile(r"-?\d+\.\d+(e-?\d+)?")


def to_svg(figure: Figure, label: str, *, alone: bool = False) -> str:
    """Draw a figure.

    Only paths, texts and what of their style a plot needs are taken over from what matplotlib writes: no clip paths,
    markers by reference, rotations, style sheets (which would be the page's) or metadata. Numbers have one decimal.

    Args:
        figure: What to draw, in the colours of this module.
        label: What it shows, for those who cannot see it.
        alone: Whether it is a file of its own, with a font and colours that no page gives.

    Raises:
        ValueError: The figure has elements of another kind; draw with `clip_on=False`, and ticks without length.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.StringIO()
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    root = ElementTree.fromstring(out.getvalue())  # noqa: S314 (matplotlib wrote it just now)
    width, height = root.attrib["viewBox"].split()[2:]
    box = f"0 0 {_short(width)} {_short(height)}"
    attributes = {"viewBox": box, "role": "img", "aria-label": label, **(_ALONE if alone else {})}
    target = ElementTree.Element("svg", attributes)
    for element in root:
        _copy(element, target, _LIGHT if alone else _OF_PAGE)
    return ElementTree.tostring(target, encoding="unicode")


def _copy(element: ElementTree.Element, target: ElementTree.Element, colours: Mapping[str, str]) -> None:
    tag = element.tag.removeprefix(_SVG)
    if tag in ("defs", "metadata") or "}" in tag:
        return
    if tag not in _ATTRIBUTES:
        raise ValueError(f"a plot has the element {tag}; only {', '.join(_ATTRIBUTES)} go into a page")
    if tag == "g":  # groups say nothing more
        for child in element:
            _copy(child, target, colours)
        return
    style = _style(element.attrib.get("style", ""), colours)
    attributes = {name: _short(element.attrib[name]) for name in _ATTRIBUTES[tag] if name in element.attrib}
    copied = ElementTree.SubElement(target, tag, {**attributes, "style": style} if style else attributes)
    copied.text = element.text if tag == "text" else None


def _style(text: str, colours: Mapping[str, str]) -> str:
    given = dict(part.strip().split(": ", 1) for part in text.split(";") if ": " in part)
    if "font" in given:
        size = re.search(r"[\d.]+px", given["font"])
        given |= {"font-size": size[0]} if size else {}
    return "; ".join(f"{name}: {_short(colours.get(given[name], given[name]))}" for name in _STYLES if name in given)


def _short(text: str) -> str:
    """The same with its numbers rounded to a tenth: a pixel is larger."""
    return _NUMBER.sub(lambda found: f"{round(float(found[0]), 1) + 0.0:g}", text)  # + 0.0: no -0

"""Plots as inline SVG: few elements, the page's colours, whatever stands in a name."""

import re
import warnings
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from tamis.reports.plots import draw
from tamis.reports.svg import KEPT, to_svg

NOTHING = dict.fromkeys(
    ("map", "coverage", "clusters", "near_duplicates", "gains", "losses", "difficulty", "schedule", "comparison")
) | {"weights": {"histogram": None}}


def elements(svg):
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(svg)
    return found


def compared(*names):
    one = {"size": 3, "ci95": 0.02, "values": [0.4, 0.6], "subset": True}
    results = [{**one, "name": name, "mean": 0.5 + 0.01 * i} for i, name in enumerate(names)]
    return {**NOTHING, "comparison": {"results": results, "measure": "accuracy"}}


def test_nothing_is_drawn_of_nothing():
    assert draw(NOTHING) == {}


def test_points_lie_where_the_numbers_say():
    """Of a map the aspect is equal, so that one scale and two offsets explain all points."""
    x, y = [0.0, 1.0, 0.25, -0.5], [0.0, 0.5, -0.5, 0.25]
    numbers = {"kept": {"x": x, "y": y}, "dropped": {"x": [], "y": []}}
    svg = draw({**NOTHING, "map": numbers})["map"]
    (path,) = [attributes["d"] for tag, attributes in elements(svg) if tag == "path"]
    drawn = [tuple(map(float, point)) for point in re.findall(r"M (\S+) (\S+)", path)]
    assert path.count("L") == len(drawn) == 4
    scale = (drawn[1][0] - drawn[0][0]) / 1.0
    assert scale > 50
    for (across, down), px, py in zip(drawn, x, y, strict=True):
        assert across == pytest.approx(drawn[0][0] + scale * px, abs=0.11)
        assert down == pytest.approx(drawn[0][1] - scale * py, abs=0.11)


@pytest.mark.parametrize(
    "name",
    [
        "</text><script>alert(1)</script>",
        "$x^2$ \\frac{",
        "$",
        "数据选择 \U0001f600",
        "a\x00\x1b\x7f\u2028b",
        "&amp;",
        "\"'<",
        " ",
    ],
)
def test_names_are_text(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = draw(compared(name, "random"))["comparison"]
    assert {tag for tag, _ in elements(svg)} == {"svg", "path", "text"}
    texts = []
    parser = HTMLParser()
    parser.handle_data = texts.append
    parser.feed(svg)
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    assert (shown if len(shown) <= 26 else shown[:25] + "…") in "|".join(texts).replace("||", "|") or shown == " "


def test_a_name_moves_nothing():
    plain, odd = (draw(compared(name, "random"))["comparison"] for name in ("x", "gÄ|Ĝy" * 9))
    without = [re.sub(r">[^<]*<", "><", svg) for svg in (plain, odd)]
    assert without[0] == without[1]


def test_colours_are_the_page_s_and_nothing_is_referred_to():
    svg = "".join(draw(compared("a", "b")).values())
    assert "var(--kept)" in svg
    assert not re.search(r"#[0-9a-f]{3}|url\(|href|xlink|id=|class=|<style", svg)


def test_other_elements_are_refused():
    figure = Figure()
    figure.add_axes((0, 0, 1, 1)).plot([0, 1], [0, 1], color=KEPT, marker="o")
    with pytest.raises(ValueError, match="element use"):
        to_svg(figure, "")

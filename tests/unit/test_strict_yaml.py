import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tamis.errors import RecipeError
from tamis.pipelines.strict_yaml import MAX_BYTES, load_recipe_text

RECIPE = """\
# a comment
name: tweets-quarter
seed: 17
dataset: {path: tweets.parquet, id: tweet_id,
          text: text}
stages:
  - {kind: embed, encoder: lsa}
  - kind: dedup
    eps: 0.05

  - kind: prune
    keep: 0.6
"""


def read(text):
    return load_recipe_text(text, "r.yaml")[0]


def test_a_recipe_reads_as_with_any_yaml_reader():
    assert read(RECIPE) == yaml.safe_load(RECIPE)


def test_lines():
    _, line_of = load_recipe_text(RECIPE, "r.yaml")
    assert line_of(()) == 2
    assert line_of(("seed",)) == 3
    assert line_of(("dataset", "text")) == 5
    assert line_of(("stages",)) == 6
    assert line_of(("stages", 0)) == 7
    assert line_of(("stages", 1, "eps")) == 9
    assert line_of(("stages", 2, "keep")) == 12
    assert line_of(("stages", 3)) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-3", -3),
        ("0", 0),
        ("1e3", 1000.0),
        ("1E-3", 0.001),
        ("2.5", 2.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("007", "007"),
        ("0x1F", "0x1F"),
        ("0o17", "0o17"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("12:30:45", "12:30:45"),
        (".nan", ".nan"),
        (".inf", ".inf"),
        ("1e999", "1e999"),
        ("9" * 30, "9" * 30),
        ("9" * 5000, "9" * 5000),
        ("2020-01-01", "2020-01-01"),
        ("25 %", "25 %"),
        ("=", "="),
        ("'1'", "1"),
        ('"true"', "true"),
        ("''", ""),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_scalars(text, value):
    found = read(f"value: {text}\n")["value"]
    assert (found, type(found)) == (value, type(value))


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**18), 10**18))
def test_numbers_round_trip(number):
    assert read(f"value: {number!r}")["value"] == number


@given(st.text())
def test_any_text_reads_or_is_a_recipe_error(text):
    try:
        value = read(text)
    except RecipeError as error:
        assert str(error).startswith("r.yaml:")  # noqa: PT017 (only if there is one)
    else:
        assert isinstance(value, dict)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' is there twice, first on line 1"),
        ("s:\n - x: 1\n   x: 1\n", 3, "twice"),
        ("a: &here 1\n", 1, "&here"),
        ("a: 1\nb: *here\n", 2, r"\*here"),
        ("a: 1\n<<: {b: 2}\n", 2, "merge key"),
        ("a: !!python/object/apply:os.system [x]\n", 1, "tag"),
        ("a: !!str 1\n", 1, "tag"),
        ("a: ! 1\n", 1, "tag"),
        ("!!str a: 1\n", 1, "tag"),
        ("&k a: 1\n", 1, "anchor"),
        ("a: !!map {}\n", 1, "tag"),
        ("a: &x [1]\n", 1, "&x"),
        ("- 1\n", 1, "not a mapping"),
        ("just text\n", 1, "not a mapping"),
        ("", 1, "empty"),
        ("# only a comment\n", None, "empty"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a: [1\n", None, "not valid YAML"),
        ("a: 1\nb:\n\t- c\n", 3, "not valid YAML"),
        ("a: 'x\n", None, "not valid YAML"),
        ("a: 1\nb: \x01\n", 2, "character"),
        ("a: \x00\n", 1, "character"),
        ("a: \ud800\n", 1, "character"),
        ("? [1]\n: 2\n", 1, "plain word"),
        ("? {a: 1}\n: 2\n", 1, "plain word"),
        ("a: " + "[" * 50 + "]" * 50, 1, "deep"),
        ("a: " + "[" * 50_000, 1, "deep"),
        ("a: " + "{a: " * 50_000, 1, "deep"),
    ],
)
def test_refused_with_the_line(text, line, message):
    with pytest.raises(RecipeError, match=message) as caught:
        read(text)
    assert str(caught.value).startswith("r.yaml:" if line is None else f"r.yaml:{line}: ")


def test_size():
    assert read("a: " + "x" * (MAX_BYTES - 3))
    with pytest.raises(RecipeError, match="262145 bytes"):
        read("a: " + "x" * (MAX_BYTES - 2))
    with pytest.raises(RecipeError, match="bytes"):
        read("a: " + "é" * (MAX_BYTES // 2))


def test_values_are_plain():
    value = read("a: [1, 2.0, true, null, x, {b: c}]")
    assert {type(item) for item in value["a"]} == {int, float, bool, type(None), str, dict}
    assert all(math.isfinite(item) for item in value["a"][:2])


def test_json_is_read_with_its_pairs_of_surrogates():
    value = {"name": "\U0001f9c0", "\U00010000": ["a", "\uffff"]}
    assert load_recipe_text(json.dumps(value), "r.json")[0] == value


def test_half_a_pair_is_refused_with_its_line():
    for text in ('name: x\nseed: "\\ud83e"\n', 'name: x\n"\\uddc0": 1\n', 'name: x\nseed: "\\uddc0\\ud83e"\n'):
        with pytest.raises(RecipeError, match=r"r\.yaml:2: .* has a lone surrogate: write the whole character"):
            load_recipe_text(text, "r.yaml")


def test_an_escape_of_no_character_is_refused():
    with pytest.raises(RecipeError, match=r"r\.yaml:2: not valid YAML after this line"):
        load_recipe_text('name: x\nseed: 1\ntext: "\\UFFFFFFFF"\n', "r.yaml")

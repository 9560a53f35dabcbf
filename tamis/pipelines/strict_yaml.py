"""Recipes as text: a strict subset of YAML in which nothing surprises.

Mappings, sequences and scalars only. No anchors, aliases, merge keys, tags, duplicate keys or second
documents. `true` and `false` are the only booleans (`no` and `on` are strings), `1e3` is a number, and what
only looks like a number (`0x1F`, `1_000`, `12:30`, `.nan`) stays a string, which typed validation refuses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from tamis.errors import RecipeError

Keys = tuple[str | int, ...]
LineOf = Callable[[Keys], int | None]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32

_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(r"(?=.*[.eE])[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def load_recipe_text(text: str, origin: str) -> tuple[dict[str, Any], LineOf]:
    r"""Read a recipe's text into plain values.

    Args:
        text: The YAML text, at most 256 KiB and 32 levels deep.
        origin: What to call it in errors, such as the file's path.

    Returns:
        The mapping (values are dict, list, str, int, float, bool, None; keys are str as written), and a
        function from a path such as ``("stages", 2, "eps")`` to its line, counted from 1, or to None where
        the text has no such path. A key's line is that of the key.

    Raises:
        RecipeError: The text is not of the strict subset; the message starts with ``origin:line``.

    >>> recipe, line_of = load_recipe_text("seed: 17\nstages:\n  - {kind: dedup, eps: 5e-2}\n", "r.yaml")
    >>> recipe["stages"][0]["eps"], line_of(("stages", 0, "eps"))
    (0.05, 3)
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise RecipeError(f"{origin}:1: the recipe has {size} bytes; at most {MAX_BYTES} are allowed")
    reader = _Reader(origin)
    try:
        value = reader.document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(f"{origin}:{line}: not a text character: {error.reason}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"{origin}:{line}: not valid YAML: {error.problem or error.context}") from error
    except (ValueError, OverflowError) as error:  # an escape such as "\UFFFFFFFF", of which PyYAML makes no error
        raise RecipeError(f"{origin}:{reader.line}: not valid YAML after this line: {error}") from error
    return value, reader.lines.get


class _Reader:
    """Builds values from YAML events and notes the line of every path."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.lines: dict[Keys, int] = {}
        self.line = 1

    def document(self, events: Iterator[yaml.Event]) -> dict[str, Any]:
        next(events)  # start of stream
        event = next(events)
        if isinstance(event, yaml.StreamEndEvent):
            raise self.error(event, "the recipe is empty; a mapping with stages is needed")
        event = next(events)
        if not isinstance(event, yaml.MappingStartEvent):
            raise self.error(event, "the recipe is not a mapping; write keys such as 'stages:' at the top")
        value: dict[str, Any] = self.value(event, events, ())
        next(events)  # end of document
        event = next(events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self.error(event, "a second document starts here; a recipe is one document")
        return value

    def value(self, event: yaml.Event, events: Iterator[yaml.Event], path: Keys) -> Any:
        self.line = _line(event)
        self.lines.setdefault(path, self.line)
        if len(path) > MAX_DEPTH:
            raise self.error(event, f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            raise self.error(event, f"the alias *{event.anchor} is not allowed; write the value out")
        assert isinstance(event, yaml.ScalarEvent | yaml.SequenceStartEvent | yaml.MappingStartEvent)
        if event.anchor is not None:
            raise self.error(event, f"the anchor &{event.anchor} is not allowed; write values out where needed")
        if event.tag is not None:
            raise self.error(event, f"the tag {event.tag} is not allowed; write a plain value")
        if isinstance(event, yaml.ScalarEvent):
            text = self.text(event)
            return text if event.style else _plain_scalar(text)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(events, path)
        return self.mapping(events, path)

    def sequence(self, events: Iterator[yaml.Event], path: Keys) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self.value(event, events, (*path, len(items))))
        return items

    def mapping(self, events: Iterator[yaml.Event], path: Keys) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self.error(event, "a key is not a plain word")
            if event.anchor is not None or event.tag is not None:
                raise self.error(event, f"the key {event.value!r} has an anchor or a tag, which are not allowed")
            key = self.text(event)
            if key == "<<":
                raise self.error(event, "the merge key << is not allowed; write the values out")
            where = (*path, key)
            if key in items:
                raise self.error(event, f"the key {key!r} is there twice, first on line {self.lines[where]}")
            self.lines[where] = _line(event)
            items[key] = self.value(next(events), events, where)
        return items

    def text(self, event: yaml.ScalarEvent) -> str:
        r"""The scalar's text; JSON escapes a character beyond 16 bits as a pair, such as "\ud83e\uddc0"."""
        try:
            return str(event.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise self.error(event, f"{event.value!r} has a lone surrogate: write the whole character") from error

    def error(self, event: yaml.Event, message: str) -> RecipeError:
        return RecipeError(f"{self.origin}:{_line(event)}: {message}")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _plain_scalar(text: str) -> str | int | float | bool | None:
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text

"""What the verbs share: options, errors, and how facts are printed."""

from __future__ import annotations

import json
import shlex
import sys
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from tamis.errors import StoppedError, TamisError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

P = ParamSpec("P")
R = TypeVar("R")

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="STAGE.KEY=VALUE",
    help="Override a key of a stage, of dataset, of train, or KEY=VALUE of the recipe; may be repeated.",
)
LIMIT = click.option("--limit", type=click.IntRange(1), help="Use only the first N rows.")
WORKERS = click.option("--workers", type=click.IntRange(1), help="Worker processes; default: the usable cores.")
WORK = click.option(
    "--work",
    help="Where tasks keep what they make: a folder, or a URL such as s3://bucket/prefix with the credentials in the "
    "environment; default: OUT/work. Give it with every run into OUT: what is kept elsewhere is not looked for.",
)
DATA = click.option(
    "--data", type=click.Path(path_type=Path), help="The dataset, if it lies elsewhere than where the run read it."
)
TEST = click.option("--test", type=click.Path(path_type=Path), help="Data with the same columns to measure on.")
DEVICE = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N, or auto.")
THREADS = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads; default: 1 for texts, all usable cores otherwise."
)
FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


def errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print a TamisError as one message and exit with its code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except TamisError as error:
            code, message, resumes = error.exit_code, inert(str(error)), getattr(error, "resumes", False)
        except KeyboardInterrupt:
            code, message, resumes = StoppedError.exit_code, "stopped; the same command goes on from there", True
        click.echo(f"tamis: {message}", err=True)
        if resumes:
            click.echo(f"to go on: {shlex.join(['tamis', *sys.argv[1:]])}", err=True)
        sys.exit(code)

    return wrapped


def print_facts(facts: Mapping[str, Any], as_json: bool, show: Callable[[Any], str]) -> None:
    """Print facts as one JSON object or as text."""
    click.echo(json.dumps(facts, sort_keys=True) if as_json else inert(show(facts)))


def inert(text: str) -> str:
    """Text that a terminal only shows: what is no printable character is written out, but for line breaks."""
    return "\n".join(visible(line) for line in text.split("\n"))


def visible(text: str, width: int | None = None) -> str:
    """One line of text of any origin, such as an id: line breaks, escape sequences and the like are written out.

    Args:
        text: Any.
        width: The most characters to show; None for all. Of longer text the beginning, and how long it is.
    """
    shown = text if width is None else text[:width]
    escaped = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in shown)
    return escaped if len(shown) == len(text) else f"{escaped}... ({len(text):,} characters)"


def shown_text(text: str | None, width: int) -> str:
    """The text of a row, if it has one, as `visible`."""
    return "(no text)" if text is None else visible(text, width)


def check_data(data: Path | None, with_text: bool) -> None:
    """Refuse --data where no texts are read.

    Raises:
        click.UsageError: It was given without --text.
    """
    if data is not None and not with_text:
        raise click.UsageError("--data says where the texts are: give --text")


def short_path(path: Path) -> Path:
    """A path as people read it: from the current folder, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

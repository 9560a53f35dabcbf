"""Write the pages that are made from the program itself: the reference recipe, and the help of every verb.

    python docs/generate.py

They are committed, so that they can be read without building anything; a test fails where they are out of date.
"""

from __future__ import annotations

from pathlib import Path

import click

from tamis.cli import main
from tamis.pipelines.reference import reference_recipe

FOLDER = Path(__file__).resolve().parent / "reference"


RECIPE = """# The recipe

A recipe is one YAML file. This one is valid and has every key, each with its default; `tamis recipes --keys` prints it.
A fraction is written with a point (`0.25`), a count without (`1000`). On the command line a key of a stage is
`--set stage.key=value`.
"""

COMMANDS = """# The command line

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 2 recipe or usage, 3 data,
4 worker, 5 output, 6 other dataset, 7 damaged manifest, 8 non-finite loss, 75 locked, 130 stopped.
"""


def recipe_page() -> str:
    """The reference recipe."""
    return f"{RECIPE}\n```yaml\n{reference_recipe()}\n```\n"


def command_page() -> str:
    """The help of every verb."""
    parts = [COMMANDS]
    for name, verb in main.commands.items():
        context = click.Context(verb, info_name=f"tamis {name}", terminal_width=100, help_option_names=["-h", "--help"])
        parts.append(f"## tamis {name}\n\n```text\n{verb.get_help(context)}\n```\n")
    return "\n".join(parts)


PAGES = {"recipe.md": recipe_page, "cli.md": command_page}

if __name__ == "__main__":
    for file, page in PAGES.items():
        (FOLDER / file).write_text(page(), encoding="utf-8")

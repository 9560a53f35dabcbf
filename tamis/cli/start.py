"""Verbs to begin with: init, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tamis.cli.common import JSON, errors, print_facts

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command()
@click.argument("data")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("recipe.yaml"),
    show_default=True,
    help="The recipe to write; nothing is overwritten.",
)
@JSON
@errors
def init(data: str, out: Path, as_json: bool) -> None:
    """Look at DATA, guess what its columns mean, and write a first recipe that runs on it.

    DATA is a file, a glob in quotes, a folder of files or of images, or a folder of Hugging Face's save_to_disk. What
    was guessed, and why, is said on standard error.

    Example: tamis init train.parquet --out recipe.yaml
    """
    from tamis.pipelines.starter import write_starter

    found = write_starter(data, out)
    for line in found.why:
        click.echo(line, err=True)
    if found.bad:
        click.echo(f"{found.bad:,} of the first {found.looked:,} rows cannot be used: see max_bad_fraction", err=True)
    facts = {
        "recipe": str(out),
        "rows": found.rows,
        "files": len(found.sources),
        "fields": found.fields,
        "why": list(found.why),
        "classes": len(found.classes),
        "bad": found.bad,
    }
    print_facts(facts, as_json, _show_init)


@click.command()
@click.argument("name", required=False)
@click.option("--keys", is_flag=True, help="Print the reference recipe: every key with its default and what it means.")
@JSON
@errors
def recipes(name: str | None, keys: bool, as_json: bool) -> None:
    """List the shipped recipes, print the one called NAME, or explain all keys.

    Example: tamis recipes quickstart > recipe.yaml
    """
    if keys:
        from tamis.pipelines.reference import reference_recipe

        click.echo(reference_recipe())
        return
    from importlib.resources import files

    from tamis.errors import RecipeError

    folder = files("tamis.pipelines") / "recipes"
    shipped = {
        item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8")
        for item in sorted(folder.iterdir(), key=lambda item: item.name)
        if item.name.endswith(".yaml")
    }
    if name is None:
        listed = [{"name": key, "for": text.partition("\n")[0].removeprefix("# ")} for key, text in shipped.items()]
        print_facts({"recipes": listed}, as_json, _show_recipes)
        return
    if name not in shipped:
        raise RecipeError(f"no recipe {name!r}; shipped are {', '.join(shipped)}")
    click.echo(shipped[name], nl=False)


def _show_recipes(facts: Mapping[str, Any]) -> str:
    width = max(len(item["name"]) for item in facts["recipes"])
    return "\n".join(f"{item['name']:<{width}}  {item['for']}" for item in facts["recipes"])


def _show_init(facts: Mapping[str, Any]) -> str:
    recipe = Path(facts["recipe"])
    run = Path("runs", recipe.stem if Path("runs", "first").exists() else "first")  # a folder for each recipe
    return f"{recipe}\nnext: tamis run {recipe} --out {run}"

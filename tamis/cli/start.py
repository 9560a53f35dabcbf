"""Verbs to begin with: recipes."""

from __future__ import annotations

import click

from tamis.cli.common import errors


@click.command()
@click.argument("name", required=False)
@click.option("--keys", is_flag=True, help="Print the reference recipe: every key with its default and what it means.")
@errors
def recipes(name: str | None, keys: bool) -> None:
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
    shipped = {item.name.removesuffix(".yaml"): item for item in folder.iterdir() if item.name.endswith(".yaml")}
    if name is None:
        for key in sorted(shipped):
            first = shipped[key].read_text(encoding="utf-8").splitlines()[0]
            click.echo(f"{key:<14} {first.removeprefix('# ')}")
        return
    if name not in shipped:
        raise RecipeError(f"no recipe {name!r}; shipped are {', '.join(sorted(shipped))}")
    click.echo(shipped[name].read_text(encoding="utf-8"), nl=False)

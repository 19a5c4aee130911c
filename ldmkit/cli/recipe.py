"""`ldmkit recipe`: check, show, new, schema."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldmkit.cli.common import set_option
from ldmkit.report import command, tell

if TYPE_CHECKING:
    from ldmkit.components.registry import Registry
    from ldmkit.recipe import Recipe


def open_recipe(name: str, overrides: tuple[str, ...] = ()) -> "tuple[Recipe, Registry]":
    """The recipe and its plugins, everything about it checked. Raises LdmkitError with all mistakes at once."""
    from ldmkit.components.registry import Registry
    from ldmkit.errors import LdmkitError
    from ldmkit.recipe import RecipeFile, find_recipe

    file = RecipeFile.read(find_recipe(name), overrides)
    tells = os.environ.get("RANK", "0") == "0"  # under a launcher the first process speaks for all
    for plugin in filter(Path.is_file, file.plugin_files() if tells else []):
        tell(f"{file.path}: runs the plugin {plugin}", err=True)  # before it does
    try:
        registry = Registry.load(file.plugin_files())
    except LdmkitError as error:
        raise LdmkitError(f"{file.path}: plugins: {error}") from error
    return file.validate(registry), registry


@click.group()
def recipe() -> None:
    """Check, show and write recipes."""


@recipe.command()
@click.argument("recipe")
@set_option
def check(recipe: str, overrides: tuple[str, ...]) -> None:
    """Check RECIPE and list every mistake."""
    checked, _ = open_recipe(recipe, overrides)
    tell(f"{recipe}: no mistakes ({checked.name})")


@recipe.command()
@click.argument("recipe")
@set_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print RECIPE with every default filled in."""
    from ldmkit.recipe import find_recipe
    from ldmkit.recipe.template import to_toml

    resolved, registry = open_recipe(recipe, overrides)
    if as_json:
        tell(*json.dumps(resolved.model_dump(mode="json"), indent=1).split("\n"))
        return
    folder = find_recipe(recipe).parent.absolute()
    own = [Path(plugin).is_relative_to(folder) for plugin in resolved.plugins]
    if any(own):
        # As a recipe lists them: an absolute path would be refused in any other folder.
        tell(f"# plugins lie beside the recipe, in {folder}: they and this file belong together")
    plugins = [
        f"./{Path(plugin).relative_to(folder).as_posix()}" if inside else plugin
        for plugin, inside in zip(resolved.plugins, own, strict=True)
    ]
    text = to_toml(resolved.model_copy(update={"plugins": tuple(plugins)}), registry)
    tell(*text.rstrip("\n").split("\n"))


@recipe.command()
@click.argument("file", type=click.Path(path_type=Path))
def new(file: Path) -> None:
    """Write a commented recipe to FILE, ready to edit."""
    from ldmkit.errors import LdmkitError
    from ldmkit.recipe.template import template

    if file.exists():
        raise LdmkitError(f"{file}: exists already; choose another name")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(template(), encoding="utf-8")
    tell(f"{file}: set data.path, then run `{command('train', file)}`")


@recipe.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors that complete TOML."""
    from ldmkit.components.registry import Registry
    from ldmkit.recipe.template import json_schema

    tell(*json.dumps(json_schema(Registry.load()), indent=1).split("\n"))

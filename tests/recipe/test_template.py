"""Recipes as text: shown, started anew, explained."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldmkit.components.registry import Registry
from ldmkit.recipe import Recipe, RecipeFile, load_recipe
from ldmkit.recipe.template import template, to_toml
from ldmkit.recipe.training import Section, VaeLoss

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shown_it_loads_as_the_same(path: Path, registry: Registry, validator: Any, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    shown = to_toml(recipe, registry)
    copied = tmp_path / "copy.toml"
    copied.write_text(shown)
    assert load_recipe(copied) == recipe
    validator.validate(tomllib.loads(shown))
    # The comments are the components' own options at their default: written out, they change no option.
    written_out = re.sub(r"^# (\w+ = )", r"\1", shown, flags=re.M)
    assert written_out != shown
    copied.write_text(written_out)
    RecipeFile.read(copied).validate(registry)


def test_hostile_words_survive_being_shown(full_recipe: Path) -> None:
    """tomllib decides: names and options with quotes, line ends, controls, nested tables."""
    recipe = load_recipe(full_recipe).model_dump(mode="json", exclude_none=True)
    word = 'a "quoted" \\ back\nline\ttab \x7f\x01 ünï 猫 # = [x]'
    recipe["data"]["path"] = word
    recipe["plugins"] = [word]
    declared = VaeLoss(use="third").model_dump(mode="json")  # shown with every default, so written out here as well
    recipe["vae"]["losses"] |= {
        "a.b": declared,
        "": {**declared, "use": word, "weight": 0.0, "deep": {word: [1, {"x": [True, 2.5]}]}},
        "empty": {**declared, "options": {}},
    }
    assert tomllib.loads(to_toml(Recipe.model_validate_json(json.dumps(recipe)))) == recipe


def test_an_option_that_is_a_table_is_shown_in_one_line(full_recipe: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from ldmkit import hookimpl\n@hookimpl\ndef register_samplers():\n    return {'mine': Mine}\n"
        "class Mine:\n    def __init__(self, *, steps: int = 2, table: dict[str, int] = {'a b': 1}) -> None: ...\n"
    )
    recipe = load_recipe(full_recipe, ["sampler.use=mine"])
    assert '\n# table = {"a b" = 1}\n' in to_toml(recipe, Registry.load([plugin]))


def test_a_new_recipe_is_a_recipe(registry: Registry, validator: Any, tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    path.write_text(template())
    recipe = RecipeFile.read(path).validate(registry)
    validator.validate(tomllib.loads(template()))
    # What the comments show is what holds: written out, nothing changes.
    shown = re.sub(r"^# (\w+ = .+)", r"\1", template(), flags=re.M)
    assert len(tomllib.loads(shown)["vae"]) > 20
    path.write_text(shown)
    assert RecipeFile.read(path).validate(registry) == recipe


def test_every_key_is_explained() -> None:
    def sections(kind: type[Section]) -> Iterator[type[Section]]:
        for inner in kind.__subclasses__():
            yield inner
            yield from sections(inner)

    assert len(set(sections(Section))) > 10
    for section in sections(Section):
        properties = section.model_json_schema()["properties"]
        for name, part in properties.items():
            assert part.get("description"), f"{section.__name__}.{name}"
            branches = part.get("anyOf", [part])
            numbers = [b for b in branches if b.get("type") in ("integer", "number") and "enum" not in b]
            assert all({"minimum", "exclusiveMinimum"} & set(b) for b in numbers), f"{section.__name__}.{name}: range"


@pytest.mark.parametrize("section", ["vae", "unet", "t2i"])
def test_the_schema_wants_one_length_of_training(section: str, full_recipe: Path, validator: Any) -> None:
    table = tomllib.loads(full_recipe.read_text())
    table[section]["steps"] = 100
    assert not validator.is_valid(table)
    del table[section]["epochs"]
    assert validator.is_valid(table)
    del table[section]["steps"]
    assert not validator.is_valid(table)

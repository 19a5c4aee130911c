"""Recipes as text: a commented template, the resolved recipe, the JSON Schema."""

import json
from functools import reduce
from operator import getitem
from typing import TYPE_CHECKING, Any

import tomlkit
from pydantic import BaseModel

from ldmkit.components.options import Option
from ldmkit.recipe.mistakes import keys_of
from ldmkit.recipe.sections import Recipe, component_tables
from ldmkit.recipe.training import NETWORKS

if TYPE_CHECKING:
    from ldmkit.components.registry import Registry

START: dict[str, Any] = {
    "data": {"path": "data/pictures"},
    "vae": {"steps": 10_000},
    "unet": {"steps": 20_000},
    "t2i": {"steps": 20_000},
}
"""what a new recipe sets; the rest stays at its default, shown in comments"""

_KINDS = {"Caption": "captioner", "Text": "text_encoder", "VaeLoss": "loss", "SamplerChoice": "sampler"}


def to_toml(recipe: Recipe, registry: "Registry | None" = None) -> str:
    """The recipe with every default filled in, as TOML that loads as the same recipe.

    With the plugins, the options of each component that the recipe leaves at their default are shown as comments.
    """
    document: Any = tomlkit.item(recipe.model_dump(mode="json", exclude_none=True))
    for where, kind, table in component_tables(recipe) if registry is not None else []:
        assert registry is not None
        section = reduce(getitem, where.split(".", 2), document)
        for option in registry.get(kind, table["use"]).options.described.values():
            if option.name not in table and option.default is not None:
                section.add(tomlkit.comment(f"{option.name} = {_value(option.default)}"))
    return str(document.as_string()).strip() + "\n"


def template() -> str:
    """A recipe with every key explained; keys at their default are comments."""
    recipe = Recipe.model_validate({"name": "new", **START})
    lines = [
        "# A recipe of ldmkit: what is not set here has the default shown in the comment.",
        "# `ldmkit recipe check FILE` lists the mistakes, `ldmkit plugins` what can be chosen.",
        "",
    ]
    sections = {name: value for name, value in recipe if isinstance(value, BaseModel)}
    for name, key in keys_of(Recipe).items():
        if name not in sections and name != "name":
            lines += _explained(key, None)
    for name, section in sections.items():
        lines += ["", f"# {Recipe.model_fields[name].description}", f"[{name}]"]
        for key in keys_of(type(section)).values():
            if key.name not in ("losses", "guard"):
                lines += _explained(key, START.get(name, {}).get(key.name))
        for use, model in NETWORKS.get(name, {}).items():
            own = [key for key in keys_of(model).values() if key.name not in type(section).model_fields]
            lines += [f'# with use = "{use}", instead of the keys from channels on:'] if own else []
            lines += [f"#   {line.removeprefix('# ')}" for key in own for line in _explained(key, None)]
    lines += ["", f"# {type(recipe.vae).model_fields['losses'].description}"]
    for loss, chosen in recipe.vae.losses.items():
        lines += [f"[vae.losses.{loss}]", f'use = "{chosen.use}"', f"weight = {_value(chosen.weight)}", ""]
    lines += [f"# {type(recipe.vae).model_fields['guard'].description}", "[vae.guard]"]
    for key in keys_of(type(recipe.vae.guard)).values():
        lines += _explained(key, None)
    return "\n".join(lines).strip() + "\n"


def json_schema(registry: "Registry") -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of recipes, with the options of every installed component."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Recipe of ldmkit"
    definitions = schema["$defs"]
    for definition, kind in _KINDS.items():
        table = definitions[definition]
        use = table["properties"]["use"]
        use["enum"] = registry.names(kind)
        table["allOf"] = []
        for name in use["enum"]:
            options = registry.get(kind, name).options.schema
            definitions |= options.get("$defs", {})
            # A table without `use` takes the section's default component.
            named = {} if name == use.get("default") else {"required": ["use"]}
            takes = {**dict.fromkeys(table["properties"], True), **options["properties"]}
            then = {"properties": takes, "required": options.get("required", []), "additionalProperties": False}
            table["allOf"].append({"if": {"properties": {"use": {"const": name}}, **named}, "then": then})
    networks = [(use, model.__name__) for models in NETWORKS.values() for use, model in models.items()]
    for use, definition in networks:
        definitions[definition]["properties"]["use"]["enum"] = [use]
    for definition in ("Vae", *(name for _, name in networks)):
        definitions[definition]["oneOf"] = [{"required": ["steps"]}, {"required": ["epochs"]}]
    pretrained = {"required": ["pretrained"], "properties": {"pretrained": {"minLength": 1}}}
    definitions["Vae"] |= {"if": pretrained, "else": {"oneOf": definitions["Vae"].pop("oneOf")}}
    return schema


def _explained(key: Option, chosen: Any) -> list[str]:
    """`# what it means [what is allowed]`, then the key, commented out unless it is chosen."""
    comment = f"# {key.description} [{key.wanted}]"
    if chosen is not None:
        return [comment, f"{key.name} = {_value(chosen)}"]
    return [comment, f"# {key.name} =" + ("" if key.default is None else f" {_value(key.default)}")]


def _value(value: Any) -> str:
    """One value in TOML's words; taken out of a list of lists, where a table is an inline one."""
    return tomlkit.item([[json.loads(json.dumps(value, default=str))]]).as_string()[2:-2]

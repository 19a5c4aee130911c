"""What is wrong with a recipe, a line for each mistake: table, key, what is allowed, the nearest name."""

import json
from collections.abc import Iterator, Mapping
from datetime import date, time
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from ldmkit.components.options import Option, Options, did_you_mean
from ldmkit.errors import LdmkitError
from ldmkit.recipe.sections import COMPONENTS, Recipe
from ldmkit.recipe.training import NETWORKS, Component, VaeLoss

if TYPE_CHECKING:
    from ldmkit.components.registry import Registry


@cache
def keys_of(model: type[BaseModel]) -> dict[str, Option]:
    """The keys that a table declares, with type, range, default and description in words."""
    return Options(model, {name: name for name in model.model_fields}).described


def used_at(place: tuple[str, ...], use: Any) -> type[BaseModel] | None:
    """The declared keys of the table at this place, where it names a component or the network `use`."""
    if len(place) == 1 and place[0] in NETWORKS:
        return NETWORKS[place[0]].get(use) if isinstance(use, str) else None
    model = _model_at(place)
    return model if model is not None and issubclass(model, Component) else None


def takes_text(place: tuple[str, ...]) -> bool:
    """Whether the key at this place is text of any kind, so that a number is text too."""
    model = _model_at(place[:-1])
    field = model.model_fields.get(place[-1]) if model is not None else None
    return field is not None and field.annotation is str


def schema_mistakes(error: ValidationError) -> Iterator[tuple[tuple[str, ...], str]]:
    """(key's place, line) of each of pydantic's errors about a recipe; one for a key is enough."""
    seen = set()
    for item in error.errors(include_url=False):
        names, network = tuple(str(part) for part in item["loc"] if isinstance(part, str)), "unet"
        if item["type"] == "union_tag_invalid":
            names, item["input"], expected = (*names, "use"), item["input"]["use"], item["ctx"]["expected_tags"]
            item["type"], item["ctx"] = "literal_error", {"expected": expected}
        elif names and names[0] in NETWORKS and len(names) > 1:
            names, network = (names[0], *names[2:]), names[1]  # pydantic puts there which of the tables it was
        elif len(names) > 2 and names[:2] != ("vae", "losses") and _model_at(names[:-1]) is None:
            names = names[:-1]  # which of a key's kinds it was
        if names and names in seen:
            continue
        seen.add(names)
        keys = keys_of(model) if (model := _model_at(names[:-1], network)) is not None else {}
        if item["type"] == "value_error":  # a rule of our own, whose words say which keys
            yield from ((names, f"{_table(names)} {line}".strip()) for line in str(item["ctx"]["error"]).splitlines())
        elif not names:
            yield names, f"not a recipe: {item['msg']}"
        elif item["type"] == "extra_forbidden":
            yield names, unknown_key(names[:-1], names[-1], list(keys))
        elif item["type"] == "missing" and len(item["loc"]) == 1:
            yield names, f"the section [{names[-1]}] is missing: {Recipe.model_fields[names[-1]].description}"
        else:
            key = keys.get(names[-1], Option(names[-1], "a table", None, "", "", True))  # the name of a loss is free
            yield names, key.refusal(item, where=_table(names[:-1]))


def unknown_key(table: tuple[str, ...], key: str, known: list[str]) -> str:
    """The line for a key that its table does not have, with the nearest name or the table where it belongs."""
    where = _table(table) or "the recipe"
    for use, model in NETWORKS.get(table[0], {}).items() if len(table) == 1 else ():
        if key in model.model_fields:
            return f'{where} has the unknown key "{key}" (it belongs to {where} with use = "{use}")'
    near = did_you_mean(key, known)
    if near:
        return f'{where} has the unknown key "{key}"{near}'
    homes = [f"[{'.'.join(place)}]" for place, model in _sections(Recipe) if key in model.model_fields]
    if table and key in Recipe.model_fields:
        homes.insert(0, "the top, before the first [section]")
    rest = f" (it belongs to {', '.join(homes)})" if homes else f"; its keys are {', '.join(known)}"
    return f'{where} has the unknown key "{key}"{rest}'


def component_mistakes(table: Mapping[str, Any], registry: "Registry") -> Iterator[tuple[tuple[str, ...], str]]:
    """(key's place, line) for each component's name and options; `table` is a recipe's TOML, valid or not."""
    for name, kind, model in COMPONENTS:
        if isinstance(section := table.get(name, {}), Mapping):
            yield from _component((name,), kind, section, model, registry)
    vae = table.get("vae")
    losses = vae.get("losses") if isinstance(vae, Mapping) else None
    for name, section in losses.items() if isinstance(losses, Mapping) else ():
        if isinstance(section, Mapping):
            yield from _component(("vae", "losses", name), "loss", section, VaeLoss, registry)


def _component(
    place: tuple[str, ...], kind: str, section: Mapping[str, Any], model: type[Component], registry: "Registry"
) -> Iterator[tuple[tuple[str, ...], str]]:
    use = section.get("use", model.model_fields["use"].default)
    if not isinstance(use, str):  # said already, since it is a declared key; it may be there, misspelt
        for key in section:
            if key not in model.model_fields and did_you_mean(key, model.model_fields):
                yield (*place, key), unknown_key(place, key, list(model.model_fields))
        return
    where = _table(place)
    try:
        options = registry.get(kind, use).options.fields
    except LdmkitError as error:
        yield (*place, "use"), f"{where} {error}"
        return
    given = {key: value for key, value in section.items() if key not in model.model_fields}
    known = list(dict.fromkeys([*model.model_fields, *options]))
    for key in given:
        if key not in options:
            yield (*place, key), unknown_key(place, key, known)
    try:
        registry.check(kind, {"use": use, **{k: v for k, v in given.items() if k in options}}, where=where)
    except LdmkitError as error:
        for line in str(error).splitlines():
            key = line.removeprefix(where).partition("=")[0].partition("[")[0].strip()  # of `widths[1] = 0`: widths
            yield (*place, key), line


def strange_values(table: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(key's place, line) of what TOML has and recipes do not: dates, which JSON would turn into text, and NULs."""
    items = table.items() if isinstance(table, Mapping) else enumerate(table) if isinstance(table, list) else ()
    for key, value in items:
        inner = (*place, key) if isinstance(key, str) else place
        said = ""
        if isinstance(value, date | time):
            said = f"{value} is a date, which no key takes; put text in quotes"
        elif isinstance(value, str) and "\0" in value:
            said = f"{json.dumps(value)} holds a NUL character, which no file name can"
        if said:
            yield inner, f"{_table(inner[:-1])} {inner[-1]} = {said}".strip()
        yield from strange_values(value, inner)


def _table(names: tuple[str, ...]) -> str:
    return f"[{'.'.join(names)}]" if names else ""


def _model_at(names: tuple[str, ...], network: str = "unet") -> type[BaseModel] | None:
    """The model of the table at this place; None for the table of losses, whose keys are free, and where none is.

    `network`: the `use` of a table that names one.
    """
    if len(names) == 1 and names[0] in NETWORKS:
        return NETWORKS[names[0]].get(network)
    if names[:2] == ("vae", "losses"):
        return VaeLoss if len(names) == 3 else None
    model: type[BaseModel] | None = Recipe
    for name in names:
        field = model.model_fields.get(name) if model is not None else None
        annotation = field.annotation if field is not None else None
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return model


def _sections(model: type[BaseModel], place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """(place, model) of each table within a model whose name is fixed, those within others too."""
    for name, field in model.model_fields.items():
        inner = next(iter(NETWORKS[name].values())) if model is Recipe and name in NETWORKS else field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield (*place, name), inner
            yield from _sections(inner, (*place, name))

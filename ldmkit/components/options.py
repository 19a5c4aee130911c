"""A component's options: the keyword parameters of its factory, checked strictly and described in words."""

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ldmkit.errors import LdmkitError

_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Option(NamedTuple):
    """One option of a component, or one key of a recipe, in the words of a recipe's author."""

    name: str
    type: str
    """"integer", "float", "string", "boolean", "list of integer", ..."""
    default: Any
    """None where the option may be left out without a value; `required` tells a missing default apart"""
    constraints: str
    """"> 0", ">= 0, <= 1", 'one of "a", "b"', or empty"""
    description: str
    required: bool

    @property
    def wanted(self) -> str:
        """What a value may be: `integer > 0`."""
        kind = "" if self.constraints.startswith("one of") else self.type.replace("boolean", "true or false")
        return _joined(kind, self.constraints)

    def refusal(self, mistake: Mapping[str, Any], *, where: str, owner: str = "it") -> str:
        """The line for pydantic's `mistake` about a value; `where` names the table, `owner` what takes the option."""
        own_rule = mistake["type"] == "value_error"  # of a plugin's own validator, whose words say more than ours
        allowed = str(mistake["ctx"]["error"]) if own_rule else self.wanted
        takes = f"{owner} takes {allowed}" + (f" ({self.description})" if self.description else "")
        missing, inside = mistake["type"] == "missing", [part for part in mistake["loc"] if isinstance(part, int)]
        if missing and not inside:
            return f'{where} lacks the key "{self.name}": {takes}'
        words = re.findall("'(.*?)'", mistake["ctx"]["expected"]) if mistake["type"] == "literal_error" else []
        near = did_you_mean(str(mistake["input"]), words)
        place = self.name + "".join(f"[{part}]" for part in inside if not missing)
        value = json.dumps(mistake["input"], ensure_ascii=False, default=str)
        return f"{where} {place} = {value} is not allowed{near}: {takes}".strip()


@dataclass(frozen=True)
class Options:
    """The options of one component, read off its factory's signature."""

    model: type[BaseModel]
    fields: Mapping[str, str]
    """option -> field of the model; they differ so that no option can shadow an attribute of BaseModel"""

    @classmethod
    def of(cls, factory: Callable[..., Any]) -> "Options":
        """Read the options of `factory`.

        Raises:
            TypeError: a parameter that no key of a recipe could set, or one without a type.
            NameError: an annotation that cannot be evaluated at run time.
        """
        definitions: dict[str, Any] = {}
        fields: dict[str, str] = {}
        for name, parameter in inspect.signature(factory, eval_str=True).parameters.items():
            if name == "use" or parameter.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                raise TypeError(f"{factory.__name__}: the parameter {parameter} cannot be an option of a recipe")
            if parameter.annotation is parameter.empty:
                raise TypeError(f"{factory.__name__}: the option {name!r} has no type")
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = f"option_{name}"
            definitions[fields[name]] = (parameter.annotation, Field(default, alias=name))
        return cls(create_model(factory.__name__, __config__=_CONFIG, **definitions), fields)

    def check(self, options: Mapping[str, Any], *, where: str, owner: str) -> dict[str, Any]:
        """All options, the given ones checked and the others at their defaults.

        `options` come from TOML, so they are checked as JSON is: strictly, but with an integer for a
        float, a list for a tuple and a string for a path.

        Raises:
            LdmkitError: one line for each mistake, with `where`, the key and what is allowed.
        """
        try:
            checked = self.model.model_validate_json(json.dumps(dict(options), default=str))
        except ValidationError as error:
            lines = []
            for mistake in error.errors():
                key = str(mistake["loc"][0]) if mistake["loc"] else ""
                if key in self.described:
                    lines.append(self.described[key].refusal(mistake, where=where, owner=owner))
                else:
                    takes = f"{owner} takes {', '.join(self.fields) or 'no options'}"
                    lines.append(f'{where} has the unknown option "{key}"{did_you_mean(key, self.fields)}: {takes}')
            raise LdmkitError("\n".join(dict.fromkeys(lines))) from None
        return {name: getattr(checked, field) for name, field in self.fields.items()}

    @cached_property
    def no_result(self) -> frozenset[str]:
        """Those whose field says, as a recipe's key does, that they change how fast and not what comes of it."""
        marks = [(name, self.model.model_fields[field].json_schema_extra) for name, field in self.fields.items()]
        return frozenset(name for name, mark in marks if isinstance(mark, dict) and mark.get("affects_result") is False)

    @cached_property
    def described(self) -> dict[str, Option]:
        """The options by name, in the order of the signature."""
        described = {}
        for name, field in self.fields.items():
            info = self.model.model_fields[field]
            kind, constraints = _words(self.schema["properties"][name], self.schema)
            default = None if info.is_required() else info.default
            described[name] = Option(name, kind, default, constraints, info.description or "", info.is_required())
        return described

    @cached_property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of the options as an object: `properties`, `required`, `additionalProperties: false`."""
        schema = self.model.model_json_schema()
        for name in self.fields:
            schema["properties"][name].pop("title", None)  # pydantic makes it from the field's inner name
        return schema


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """` (did you mean "ddim"?)`, or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f' (did you mean "{near[0]}"?)' if near else ""


_TYPES = {"integer": "integer", "number": "float", "string": "string", "boolean": "boolean", "object": "table"}
_BOUNDS = {
    "exclusiveMinimum": "> {}",
    "minimum": ">= {}",
    "exclusiveMaximum": "< {}",
    "maximum": "<= {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "pattern": "matching {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}


def _resolve(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return schema["$defs"][part["$ref"].rsplit("/", 1)[1]] if "$ref" in part else part


def _joined(kind: str, constraints: str) -> str:
    return (", " if kind.startswith("list") else " ").join(filter(None, [kind, constraints]))


def _words(part: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[str, str]:
    """(type, constraints) of one JSON Schema in words. null is left out: TOML cannot write it."""
    part = _resolve(part, schema)
    if branches := part.get("anyOf", part.get("oneOf")):
        pairs = list(dict.fromkeys(_words(branch, schema) for branch in branches if branch.get("type") != "null"))
        if len(pairs) == 1:
            return pairs[0]
        return " or ".join(_joined(*pair) for pair in pairs), ""
    choices = part.get("enum", [part["const"]] if "const" in part else [])
    bounds = [words.format(part[key]) for key, words in _BOUNDS.items() if key in part]
    bounds = ["not empty" if bound in ("at least 1 items", "at least 1 characters") else bound for bound in bounds]
    if choices:
        bounds.insert(0, "one of " + ", ".join(json.dumps(choice) for choice in choices))
    kind = _TYPES.get(part.get("type", ""), "value")
    if part.get("type") == "array":
        items = [_words(item, schema) for item in part.get("prefixItems", [part.get("items", {})])]
        words = dict.fromkeys(" ".join(filter(None, item)) for item in items)
        kind = f"list of {', '.join(words)}"
        if "prefixItems" in part:
            bounds = [f"{len(items)} items"]
    return kind, ", ".join(bounds)

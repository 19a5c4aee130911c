"""TOML file and `--set` overrides to a `Recipe`; all mistakes become one message."""

import json
import os
import re
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, time
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ldmkit import shipped
from ldmkit.components.options import did_you_mean
from ldmkit.errors import LdmkitError, UsageError
from ldmkit.recipe.mistakes import component_mistakes, schema_mistakes, strange_values, takes_text, used_at
from ldmkit.recipe.sections import Recipe, component_tables

if TYPE_CHECKING:
    from ldmkit.components.registry import Registry

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_MISTAKES = 50
_TOO_DEEP = f"nested more than {MAX_DEPTH} tables deep, the most that a recipe may be"
_ENDLESS_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){64}""")
"""a dotted key of more parts than that, over which tomllib takes minutes; nothing else in a recipe looks like it"""


def find_recipe(name: str) -> Path:
    """The recipe's file: a path, or the name of a recipe that comes with ldmkit.

    Raises LdmkitError where there is none, with the nearest name.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = shipped.recipes_dir()
    come_with = sorted(p.stem for p in folder.glob("*.toml")) if folder else []
    # `recipes/cats.toml` works outside the clone too: README says so.
    if folder and path.stem in come_with and path.suffix in ("", ".toml") and path.parent in (Path(), Path("recipes")):
        return folder / f"{path.stem}.toml"
    if path.is_dir():
        raise LdmkitError(f"{name}: is a folder; a recipe is a TOML file, or one of {', '.join(come_with)}")
    beside = [str(p) for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
    near = did_you_mean(str(path), beside) or did_you_mean(path.stem, come_with)
    raise LdmkitError(f"{name}: no such recipe{near}; the recipes that come with ldmkit are {', '.join(come_with)}")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The validated recipe; `overrides` are `section.key=value`, the value in TOML or a bare word.

    Raises LdmkitError naming the file, each wrong key, what is allowed and the nearest name. Components' options are
    not looked at: `RecipeFile.validate` does that where it is given the plugins.
    """
    return RecipeFile.read(path, overrides).validate()


def check_components(recipe: Recipe, registry: "Registry") -> None:
    """Checks every component's name and options, and builds those that cost nothing: a loss may load its weights.

    Raises LdmkitError naming section and key.
    """
    for where, kind, table in component_tables(recipe):
        (registry.check if kind == "loss" else registry.build)(kind, table, where=f"[{where}]")


@dataclass
class RecipeFile:
    """A recipe as it was read, overrides applied, not yet validated."""

    path: Path
    table: dict[str, Any]
    overridden: dict[tuple[str, ...], str] = field(default_factory=dict)
    """place of a key -> the override that gave its value"""

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> "RecipeFile":
        """Raises LdmkitError where the file is no TOML, or an override is not `section.key=value`."""
        try:
            if path.stat().st_size > MAX_BYTES:
                raise LdmkitError(f"{path}: larger than {MAX_BYTES >> 20} MiB, the most that a recipe may have")
            text = path.read_text(encoding="utf-8-sig")
            if _ENDLESS_KEY.search(text):
                raise LdmkitError(f"{path}: {_TOO_DEEP}")
            table = tomllib.loads(text)
        except UnicodeDecodeError as error:
            raise LdmkitError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
        except (ValueError, RecursionError) as error:  # beside TOML's own errors, a number of 5,000 digits
            raise LdmkitError(f"{path}: not valid TOML: {error}{_hint(text, str(error))}") from None
        except OSError as error:
            raise LdmkitError(f"{path}: cannot be read: {error.strerror or error}") from None
        recipe = cls(path, table)
        # Files that the recipe lists lie beside it; those of an override are the user's, seen from where he stands.
        if isinstance(listed := table.get("plugins"), list):
            table["plugins"] = [recipe._beside(listed_path) for listed_path in listed]
        for override in overrides:
            recipe.apply(override)
        if table.get("name", "") == "":
            table["name"] = path.stem
        return recipe

    def plugin_files(self) -> list[Path]:
        """The single-file plugins that the recipe lists."""
        listed = self.table.get("plugins")
        return [Path(p) for p in listed if isinstance(p, str)] if isinstance(listed, list) else []

    def validate(self, registry: "Registry | None" = None) -> Recipe:
        """The recipe; with the plugins, its components are checked too.

        Raises LdmkitError: one message with a line for each mistake.
        """
        if _is_deep(self.table):
            raise LdmkitError(f"{self.path}: {_TOO_DEEP}")
        found = [strange_values(self.table)]
        recipe = None
        try:
            # Strict JSON rules: a list is a tuple and 1 a float, but "1" is no number.
            recipe = Recipe.model_validate_json(json.dumps(self.table, default=str))
        except ValidationError as error:
            found.append(schema_mistakes(error))
        if registry is not None:
            found.append(component_mistakes(self.table, registry))
        mistakes = list(islice(chain.from_iterable(found), MAX_MISTAKES + 1))
        if recipe is None or mistakes:
            raise LdmkitError(self._message(mistakes))
        if registry is not None:
            try:
                check_components(recipe, registry)
            except LdmkitError as error:
                raise LdmkitError(f"{self.path}: {error}") from error
        return recipe

    def _message(self, mistakes: Sequence[tuple[tuple[str, ...], str]]) -> str:
        lines = []
        for place, text in mistakes:
            by = next((o for key, o in self.overridden.items() if key[: len(place)] == place[: len(key)]), None)
            lines.append(f"{text} (from --set {by})" if by and place else text)
        lines = list(dict.fromkeys(lines))
        if len(lines) == 1:
            return f"{self.path}: {lines[0]}"
        count = f"{len(lines)} mistakes" if len(mistakes) <= MAX_MISTAKES else f"more than {len(lines) - 1} mistakes"
        return "\n  ".join([f"{self.path}: {count}", *lines[:MAX_MISTAKES]])

    def _beside(self, plugin: Any) -> Any:
        """The absolute path of a plugin that the file lists. A stranger's recipe must not have any file run."""
        if not isinstance(plugin, str) or "\0" in plugin:  # said when the recipe is validated
            return plugin
        path = os.path.abspath(self.path.parent / plugin)  # noqa: PTH100 - a message has the path as it was written
        if not Path(path).resolve().is_relative_to(self.path.parent.resolve()):
            raise LdmkitError(
                f"{self.path}: plugins: {plugin} lies outside the recipe's folder; move it there, or name it yourself "
                f"with --set {shlex.quote(f'plugins=[{json.dumps(plugin)}]')}"
            )
        return path

    def apply(self, override: str) -> None:
        """Sets one key. Raises UsageError, or LdmkitError where a section is a key."""
        key, equals, text = override.partition("=")
        parts = tuple(part.strip() for part in key.split("."))
        if not equals or not all(parts):
            raise UsageError(f"--set {override}: write it as section.key=value, for example --set unet.steps=500")
        if any("\ud800" <= letter <= "\udfff" for letter in override):  # how Python shows bytes that are no UTF-8
            raise UsageError(f"--set {override!r}: not UTF-8 text, which is all that a recipe can hold")
        table = self.table
        for part in parts[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise LdmkitError(f"--set {override}: {part} is a key, not a section")
        value = _value(override, text.strip())
        # A folder may be called 2024.
        value = text.strip() if takes_text(parts) and not isinstance(value, str) else value
        self.overridden[parts] = override
        # What an override makes meaningless goes with it, unless an override set that too: of steps and epochs the
        # other one, of a component or network the options of the one before.
        replaced = {"steps": ["epochs"], "epochs": ["steps"]}.get(parts[-1], []) if len(parts) == 2 else []
        model = used_at(parts[:-1], value) if parts[-1] == "use" else None
        if model is not None and value != table.get("use", model.model_fields["use"].default):
            replaced = [key for key in table if key not in model.model_fields]
        for key in replaced:
            if (*parts[:-1], key) not in self.overridden:
                table.pop(key, None)
        table[parts[-1]] = value


def _hint(text: str, said: str) -> str:
    """What a line that is no TOML was probably meant to be."""
    if not (at := re.search(r"line (\d+)", said)) or int(at[1]) > len(lines := text.splitlines()):
        return ""
    line = lines[int(at[1]) - 1]
    for pattern, hint in (
        ("[\u2018\u2019\u201c\u201d]", "quotes are ' or \", and no typographic ones"),
        (r"\\", "in double quotes \\ begins an escape: put a path of Windows in single quotes, or write / in it"),
        (r"=\s*(True|False)\b", "write true or false, in small letters"),
        (r"^[\w\s.-]+:(\s|$)", "TOML has [section] and key = value; this looks like YAML"),
    ):
        if re.search(pattern, line):
            return f"; {hint}"
    return ""


def _is_deep(table: Any) -> bool:
    """Whether it is nested deeper than any key lies; Python could compare or print it by deep recursion only."""
    level = [table]
    for _ in range(MAX_DEPTH):
        inner = [list(part.values()) if isinstance(part, dict) else part for part in level]
        level = [item for part in inner for item in part if isinstance(item, dict | list)]
    return bool(level)


def _value(override: str, text: str) -> Any:
    """The value of an override: TOML, else a bare word."""
    try:
        value = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError) as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise UsageError(f"--set {override}: not valid TOML: {error}") from None
        return text  # a bare word is a string: --set data.path=my/pictures
    return text if len(value) > 1 or isinstance(value["value"], date | time) else value["value"]

"""Recipes by strangers: paths that lead elsewhere, names of code, words that a shell or a template would expand."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ldmkit.components.registry import Registry
from ldmkit.data.pictures import scan
from ldmkit.recipe import RecipeFile, find_recipe
from tests.corpus.artefact import Artefact, canary

CODE = "from pathlib import Path\nPath({!r}).touch()\n"
EXPANSIONS = (
    "$(touch canary)",
    "`touch canary`",
    "${HOME}",
    "$HOME",
    "~",
    "~root/pictures",
    "%(home)s",
    "{{ 7*7 }}",
    "{path}",
    "%USERPROFILE%",
    "; touch canary",
    "| touch canary",
    "file:///etc",
    "\\\\server\\share",
)
NAMES = (
    "os.system",
    "os:system",
    "builtins.exec",
    "__import__('os').system('touch canary')",
    "../plugins/evil",
    "ldmkit_samplers.DDIM",
    "torch.optim.Adam",
    "!!python/object/apply:os.system",
)


def _recipe(text: str | bytes, folder: Path) -> Callable[[], Any]:
    """Reads and checks the recipe with its plugins, as every command does."""
    code = CODE.format(str(canary(folder)))
    (folder / "recipe").mkdir()
    (folder / "outside.py").write_text(code)
    (folder / "recipe" / "link.py").symlink_to(folder / "outside.py")
    (folder / "recipe" / "evil.txt").write_text(code)
    path = folder / "recipe" / "stranger.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.replace("FOLDER", str(folder)).encode())

    def use() -> None:
        file = RecipeFile.read(path)
        file.validate(Registry.load(file.plugin_files()))

    return use


def _expanded(path: str, folder: Path) -> Callable[[], Any]:
    """A folder of pictures by this very name: it is looked for where it says, letter by letter."""

    def use() -> None:
        text = find_recipe("cats").read_text().replace('path = "data/cats"', f"path = {json.dumps(path)}")
        (folder / "cats.toml").write_text(text)
        recipe = RecipeFile.read(folder / "cats.toml").validate(Registry.load())
        assert recipe.data.path == path
        scan(folder / recipe.data.path)

    return use


def recipes() -> Iterator[Artefact]:
    for plugin in ("../outside.py", "FOLDER/outside.py", "link.py", "./../recipe/../outside.py", "x/../../outside.py"):
        yield Artefact(f"plugin {plugin}", partial(_recipe, f"plugins = ['{plugin}']"), "outside the recipe's folder")
    for plugin in (
        "~nosuchuser/x.py",
        "~/x.py",
        "os",
        "$HOME/x.py",
        "evil.txt",
        "http://example.org/x.py",
        ".",
        "x\\u0000.py",
    ):
        yield Artefact(
            f"plugin {plugin}", partial(_recipe, f'plugins = ["{plugin}"]'), "plugin file|end in .py|outside|NUL"
        )
    for name in ("../up", "/etc/cron.d/x", "a/b", ".hidden", "-rf", "a\\u0000b", "CON:", "..", "a\\nb"):
        yield Artefact(f"name {name}", partial(_recipe, f'name = "{name}"'), "name = .* is not allowed|NUL")
    for use in NAMES:
        yield Artefact(f"sampler {use}", partial(_recipe, f'[sampler]\nuse = "{use}"'), "no sampler is called")
    for key in ("_target_", "__class__", "__reduce__", "target", "!include", "model_config"):
        yield Artefact(
            f"key {key}", partial(_recipe, f'[vae]\nsteps = 1\n"{key}" = "os.system"'), "has the unknown key"
        )
    for source in ("file:///etc/passwd.zip", "http://example.org/a/b.zip", "hub:../../x.zip", "ssh://x/y/z.zip"):
        yield Artefact(
            f"source {source}", partial(_recipe, f'[data]\nsource = "{source}"'), "source = .* is not allowed"
        )
    texts: dict[str, tuple[str | bytes, str]] = {
        "deep list": ("seed = " + "[" * 100_000, "not valid TOML"),
        "deep table": ("[" + ".".join(["a"] * 5000) + "]\nx = 1", "not valid TOML|tables deep"),
        "number of 10,000 digits": ("seed = " + "9" * 10_000, "not valid TOML"),
        "2 MiB": ("#" * 2**21, "larger than 1 MiB"),
        "key of 100,000 letters": (f"{'k' * 100_000} = 1", "unknown key"),
        "YAML": ("!!python/object/apply:os.system ['touch canary']", "not valid TOML"),
        "JSON": ('{"name": "x"}', "not valid TOML"),
        "UTF-16": ("seed = 1".encode("utf-16"), "not UTF-8"),
        "NUL bytes": (b"seed\0 = 1", "not valid TOML"),
        "NUL in a path": ('[data]\npath = "a\\u0000b"', "holds a NUL"),
        "turned writing direction": ('[data]\n"\\u202ehtap" = 1', "unknown key"),
        "not a number": ("[data]\nheld_out = nan", "is not allowed"),
    }
    for word, (text, said) in texts.items():
        yield Artefact(f"recipe: {word}", partial(_recipe, text), said)
    for path in EXPANSIONS:
        yield Artefact(f"pictures in {path}", partial(_expanded, path), "does not exist")
    if hasattr(os, "mkfifo"):
        yield Artefact("recipe that is a pipe", _pipe, "no such recipe")


def _pipe(folder: Path) -> Callable[[], Any]:
    os.mkfifo(folder / "pipe.toml")
    return lambda: find_recipe(str(folder / "pipe.toml"))

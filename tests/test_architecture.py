"""Who may import whom, read off the source; and what a fresh process really loads."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import ldmkit

REPOSITORY = Path(__file__).parents[1]

# Each may import its own layer and those above it in this list. A new module must find its place here.
LAYERS = [
    {"errors", "components", "hookspecs", "options", "atomic", "hub", "recipe", "shipped", "randomness", "report"},
    {"models", "data", "diffusion", "weighting", "run", "checkpoint", "plugins", "gate"},
    {"stages", "runtime", "parts", "starting"},
    {"pipeline", "doctor", "verify_resume", "ui"},
    {"cli", "__main__"},
]
STAGES = {"caption", "train_vae", "encode", "train_unet", "train_t2i", "export"}
MAY_IMPORT_TORCH = {"models", "stages", "checkpoint"}
HEAVY = {"torch", "torchvision", "torchmetrics", "transformers", "accelerate", "lpips", "diffusers", "tensorboard"}


class Import(NamedTuple):
    module: str
    """dotted, as written: "ldmkit.errors", "torch.nn", "ldmkit"""
    name: str | None
    """NAME of `from module import NAME`"""
    at_import_time: bool
    """False inside a function"""
    line: int


def imports_of(path: Path) -> list[Import]:
    """Every import that can run; not those under `if TYPE_CHECKING`."""

    def walk(node: ast.AST, at_import_time: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                for statement in child.orelse:
                    yield from walk(ast.Module([statement], []), at_import_time)
            elif isinstance(child, ast.Import):
                yield from (Import(alias.name, None, at_import_time, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: a relative import; this test reads absolute ones"
                for alias in child.names:
                    yield Import(str(child.module), alias.name, at_import_time, child.lineno)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, at_import_time and not inside)

    return list(walk(ast.parse(path.read_text(encoding="utf-8")), True))


@cache
def sources() -> dict[str, Path]:
    """Dotted module -> file, for ldmkit and the plugins that ship."""
    found = {}
    for path in sorted((REPOSITORY / "ldmkit").rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found | {path.stem: path for path in sorted((REPOSITORY / "plugins").glob("*.py"))}


def core() -> dict[str, Path]:
    return {module: path for module, path in sources().items() if module.split(".")[0] == "ldmkit"}


def plugin_modules() -> list[str]:
    return [module for module in sources() if module.split(".")[0] != "ldmkit"]


def layer(module: str) -> int:
    part = module.split(".")[1]
    (found,) = [index for index, names in enumerate(LAYERS) if part in names] or [None]
    assert found is not None, f"{module} has no layer: give it one in tests/test_architecture.py and in the design"
    return found


def target(found: Import) -> str:
    """The module of ours that an import runs, or the top name of a stranger's."""
    for module in (f"{found.module}.{found.name}", found.module):
        if module in sources() and module != "ldmkit":
            return module
    if found.module == "ldmkit" and found.name in ldmkit._HOMES:  # looked up on first use
        return str(ldmkit._HOMES[found.name])
    return found.module


def reaches_heavy(module: str, *, at_import_time: bool, past: frozenset[str] = frozenset()) -> list[str]:
    """The chain of imports by which `module` loads torch or the like, not through `past`; empty where it does not."""
    queue, seen = [[module]], {module, *past}
    while queue:
        chain = queue.pop(0)
        for found in imports_of(sources()[chain[-1]]):
            if at_import_time and not found.at_import_time:
                continue
            following = target(found)
            if following.split(".")[0] in HEAVY or following == "safetensors.torch":
                return [*chain, following]
            parents = [following.rsplit(".", depth)[0] for depth in range(following.count("."))]
            for each in parents:  # importing a.b.c runs a.b as well
                if each in sources() and each not in seen:
                    seen.add(each)
                    queue.append([*chain, each])
    return []


@pytest.mark.parametrize("module", [module for module in core() if module != "ldmkit"])
def test_layers(module: str) -> None:
    for found in imports_of(core()[module]):
        imported = target(found)
        if imported.split(".")[0] != "ldmkit" or imported == "ldmkit":
            continue
        where = f"{core()[module]}:{found.line}: {module} imports {imported}"
        assert layer(imported) <= layer(module), where
        assert not (module.startswith("ldmkit.runtime") and imported.startswith("ldmkit.stages")), where
        stage, other = module.split(".")[-1], imported.split(".")[-1]
        if module.startswith("ldmkit.stages.") and imported.startswith("ldmkit.stages."):
            assert not ({stage, other} <= STAGES), f"{where}: stages meet in files"


@pytest.mark.parametrize("module", list(core()))
def test_core_never_imports_a_plugin(module: str) -> None:
    for found in imports_of(core()[module]):
        top = found.module.split(".")[0]
        assert top not in plugin_modules(), f"{core()[module]}:{found.line}"
        assert not top.startswith("ldmkit_"), f"{core()[module]}:{found.line}"


@pytest.mark.parametrize("module", plugin_modules())
def test_plugins_import_only_the_public_api(module: str) -> None:
    for found in imports_of(sources()[module]):
        where = f"{sources()[module]}:{found.line}: {found.module}"
        assert not found.module.startswith("ldmkit_"), where
        if found.module.split(".")[0] == "ldmkit":
            assert found.module == "ldmkit", where
            assert found.name in ldmkit.__all__, where


def test_plugins_that_ship_are_declared_as_a_third_partys_would_be() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    entry_points = sorted(project["project"]["entry-points"]["ldmkit"].values())
    assert entry_points == sorted(project["tool"]["setuptools"]["py-modules"]) == plugin_modules()


@pytest.mark.parametrize("module", [*core(), *plugin_modules()])
def test_torch_is_not_loaded_where_it_is_barred(module: str) -> None:
    part = module.split(".")[1] if "." in module else module
    if part in MAY_IMPORT_TORCH:
        return
    chain = reaches_heavy(module, at_import_time=True)
    assert not chain, " -> ".join(chain)


@pytest.mark.parametrize(
    "module",
    [module for module in sources() if module.startswith(("ldmkit.runtime.", "ldmkit.ui."))]
    + ["ldmkit.cli.generate", "ldmkit.cli.ui", "ldmkit_samplers"],
)
def test_generation_knows_no_torch_even_inside_functions(module: str) -> None:
    # `--backend torch` alone leads there; tests/runtime/test_generate_command.py sees a process draw without it.
    chain = reaches_heavy(module, at_import_time=False, past=frozenset({"ldmkit.cli.torch_run"}))
    assert not chain, " -> ".join(chain)


@pytest.mark.parametrize("module", [module for module in core() if module != "ldmkit"])
def test_torch_is_imported_only_by_its_users(module: str) -> None:
    if module.split(".")[1] in MAY_IMPORT_TORCH | {"pipeline"}:  # the pipeline starts the engine, inside a function
        return
    for found in imports_of(core()[module]):
        assert found.module.split(".")[0] not in HEAVY, f"{core()[module]}:{found.line} imports {found.module}"


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Top names of sys.modules after running `code` in a new process."""
    report = "import sys\nprint('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    path = os.pathsep.join(
        [str(REPOSITORY), str(REPOSITORY / "plugins"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}", *arguments],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_help_loads_nothing_heavy() -> None:
    code = "import runpy\ntry: runpy.run_module('ldmkit', run_name='__main__', alter_sys=True)\nexcept SystemExit: pass"
    loaded = loaded_by(code, "--help")
    assert "click" in loaded
    assert not loaded & (HEAVY | {"pydantic", "numpy", "pluggy", "onnxruntime", "PIL"} | set(plugin_modules()))


def test_modules_barred_from_torch_do_not_load_it() -> None:
    """The same rule as the one read off the source, in a real process, plugins and all."""
    barred = [module for module in core() if "." in module and module.split(".")[1] not in MAY_IMPORT_TORCH]
    barred = [module for module in barred if not module.endswith("__main__")] + plugin_modules()
    code = f"from importlib import import_module\nfor module in {barred}: import_module(module)"
    assert not loaded_by(code) & HEAVY

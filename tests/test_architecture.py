"""Who may import whom, read off the source; and what a fresh process really loads."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import ldmkit

REPOSITORY = Path(__file__).parents[1]

# The rooms of ldmkit, from the ground up: each may import those before it and its own files, and no other. The top
# level's single files are rooms too. A new room must find its place here and in docs/architecture.md.
ORDER = [
    *("errors", "report", "signals", "atomic", "shipped"),
    *("components", "recipe", "data", "diffusion", "models", "run", "training", "vae", "caches", "denoising"),
    *("runtime", "export", "evaluation", "plan", "ui", "web", "pipeline", "verify_resume", "doctor", "cli", "__main__"),
]
MAY_IMPORT_TORCH = {"models", "training", "vae", "caches", "denoising", "export", "evaluation", "plan"}
TORCH_FILES = {"ldmkit.run.checkpoint", "ldmkit.run.networks", "ldmkit.diffusion.torch_sampling"}
TORCH_FILES |= {"ldmkit.data.batches", "ldmkit.data.prepared"}
HEAVY = {"torch", "torchvision", "torchmetrics", "transformers", "accelerate", "lpips", "diffusers", "tensorboard"}


class Import(NamedTuple):
    module: str
    """dotted, as written: "ldmkit.errors", "torch.nn", "ldmkit"""
    name: str | None
    """NAME of `from module import NAME`"""
    at_import_time: bool
    """False inside a function"""
    line: int


@cache
def imports_of(path: Path, *, for_types: bool = False) -> list[Import]:
    """Every import that can run; with `for_types` those under `if TYPE_CHECKING` as well."""

    def walk(node: ast.AST, at_import_time: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                for statement in [*child.body, *child.orelse] if for_types else child.orelse:
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


def room(module: str) -> str:
    return module.split(".")[1]


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


def ours(module: str, *, for_types: bool = False) -> Iterator[tuple[Import, str]]:
    """What `module` imports of ldmkit, from where in its file."""
    for found in imports_of(sources()[module], for_types=for_types):
        imported = target(found)
        if imported.startswith("ldmkit."):
            yield found, imported


def rooms() -> list[str]:
    return [module for module in core() if module != "ldmkit"]


def test_every_room_has_its_place() -> None:
    assert {room(module) for module in rooms()} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


def test_no_import_runs_upward() -> None:
    upward = [
        f"{sources()[module]}:{found.line}: {module} imports {imported}"
        for module in rooms()
        for found, imported in ours(module, for_types=True)
        if ORDER.index(room(imported)) > ORDER.index(room(module))
    ]
    assert not upward, "\n".join(upward)


def test_no_import_goes_in_a_circle() -> None:
    """Inside a room, by way of functions and for types alone as well."""
    imported = {module: {other for _, other in ours(module, for_types=True)} for module in rooms()}
    sorter = TopologicalSorter(imported)
    sorter.prepare()  # raises CycleError, which names the circle


def test_core_never_imports_a_plugin() -> None:
    found = [
        f"{sources()[module]}:{found.line}"
        for module in core()
        for found in imports_of(sources()[module])
        if found.module.startswith("ldmkit_")
    ]
    assert not found


def test_plugins_import_only_the_public_api() -> None:
    for module in plugin_modules():
        for found in imports_of(sources()[module]):
            where = f"{sources()[module]}:{found.line}: {found.module}"
            assert not found.module.startswith("ldmkit_") or found.module.startswith(f"{module}_"), where
            if found.module.split(".")[0] == "ldmkit":
                assert found.module == "ldmkit", where
                assert found.name in ldmkit.__all__, where


def test_plugins_that_ship_are_declared_as_a_third_partys_would_be() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    entry_points = set(project["project"]["entry-points"]["ldmkit"].values())
    assert sorted(project["tool"]["setuptools"]["py-modules"]) == plugin_modules()
    parts = set(plugin_modules()) - entry_points
    assert entry_points < set(plugin_modules())
    assert all(any(part.startswith(f"{plugin}_") for plugin in entry_points) for part in parts)


def may_import_torch(module: str) -> bool:
    return module in TORCH_FILES or (module.startswith("ldmkit.") and room(module) in MAY_IMPORT_TORCH)


def test_torch_is_not_loaded_where_it_is_barred() -> None:
    for module in [*core(), *plugin_modules()]:
        if not may_import_torch(module):
            chain = reaches_heavy(module, at_import_time=True)
            assert not chain, " -> ".join(chain)


def test_generation_knows_no_torch_even_inside_functions() -> None:
    # `--backend torch` alone leads there; tests/runtime/test_generate_command.py sees a process draw without it.
    past = frozenset({"ldmkit.cli.export"})
    drawing = [module for module in sources() if module.startswith(("ldmkit.runtime.", "ldmkit.ui.", "ldmkit.web."))]
    for module in [*drawing, "ldmkit.cli.generate", "ldmkit.cli.ui", "ldmkit_samplers"]:
        chain = reaches_heavy(module, at_import_time=False, past=past)
        assert not chain, " -> ".join(chain)


def test_torch_is_imported_only_by_its_users() -> None:
    for module in rooms():
        if may_import_torch(module) or module == "ldmkit.pipeline":  # which starts the engine, inside a function
            continue
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
    barred = [module for module in rooms() if not may_import_torch(module) and not module.endswith("__main__")]
    barred += plugin_modules()
    code = f"from importlib import import_module\nfor module in {barred}: import_module(module)"
    assert not loaded_by(code) & HEAVY

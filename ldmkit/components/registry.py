"""The registry: finds plugins, looks components up by name, checks their options, builds them."""

import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from ldmkit.components import hookspecs
from ldmkit.components.options import Options, did_you_mean
from ldmkit.errors import LdmkitError, UsageError

GROUP = "ldmkit"
"""entry-point group of the plugins; each entry point names a module"""

KINDS = {
    "captioner": "register_captioners",
    "text_encoder": "register_text_encoders",
    "loss": "register_losses",
    "sampler": "register_samplers",
}
"""kind of component -> the hook that offers it"""


@dataclass(frozen=True)
class Plugin:
    """Where components come from."""

    name: str
    """the entry point's name, or the file's"""
    distribution: str
    """the package that declares it, or the path of the file"""
    version: str
    """of the package; empty for a file"""

    def __str__(self) -> str:
        if not self.version:
            return f"the file {self.distribution}"
        return f'the plugin "{self.name}" of {self.distribution} {self.version}'


@dataclass(frozen=True)
class Component:
    """One thing that a recipe can name with `use`."""

    kind: str
    name: str
    factory: Callable[..., Any]
    plugin: Plugin
    options: Options

    @property
    def summary(self) -> str:
        """First line of the factory's docstring; empty where it has none."""
        text = inspect.getdoc(self.factory) or ""
        if text.startswith(f"{self.factory.__name__}("):  # what @dataclass writes for want of a docstring
            return ""
        return text.partition("\n")[0]


@dataclass(frozen=True)
class Failure:
    """A plugin that could not be loaded; none of its components is registered."""

    plugin: Plugin
    reason: str

    def __str__(self) -> str:
        return f"{self.plugin} failed to load: {self.reason}"


@dataclass
class Registry:
    """All components of all plugins. Build one with `Registry.load()`."""

    components: dict[tuple[str, str], Component] = field(default_factory=dict)
    """(kind, name) -> component"""
    failures: list[Failure] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=lambda: _manager())

    @classmethod
    def load(cls, extra_files: Sequence[Path] = (), *, kinds: Collection[str] = tuple(KINDS)) -> "Registry":
        """Load every installed plugin, then the single-file plugins `extra_files`; only components of `kinds`.

        An installed plugin that fails is recorded in `failures` and stops nobody else; a file that
        fails is an error, since the user asked for it by name.

        Raises:
            LdmkitError: a file that cannot be loaded, or two plugins that offer one name.
        """
        registry = cls()
        packages: dict[importlib.metadata.Distribution, tuple[str, str]] = {}
        for entry_point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda found: found.name):
            distribution = entry_point.dist
            assert distribution is not None  # entry_points() always fills it in
            if distribution not in packages:  # each look at it parses all of its metadata again
                metadata = distribution.metadata
                packages[distribution] = metadata["Name"], metadata["Version"]
            plugin = Plugin(entry_point.name, *packages[distribution])
            try:
                module = entry_point.load()
                components = _collect(module, plugin, kinds)
            except (Exception, SystemExit) as error:  # whatever a stranger's module raises must not stop the others
                registry.failures.append(Failure(plugin, _reason(error)))
            else:
                registry._add(module, plugin, components)
        for path in dict.fromkeys(_resolved(path) for path in extra_files):
            plugin = Plugin(path.stem, str(path), "")
            module = _load_file(path)
            try:
                components = _collect(module, plugin, kinds)
            except Exception as error:
                raise LdmkitError(f"{path}: not a plugin: {_reason(error)}") from error
            registry._add(module, plugin, components)
        return registry

    def _add(self, module: Any, plugin: Plugin, components: Sequence[Component]) -> None:
        for component in components:
            other = self.components.get((component.kind, component.name))
            if other is not None:
                raise LdmkitError(
                    f'two plugins offer the {_spoken(component.kind)} "{component.name}": '
                    f"{other.plugin} and {plugin}; uninstall one or leave it out of the recipe's plugins"
                )
        self.components |= {(component.kind, component.name): component for component in components}
        self.manager.register(module, name=f"{plugin.distribution}:{plugin.name}")

    @property
    def hook(self) -> Any:
        """pluggy's relay: `registry.hook.log_metrics(run_dir=..., stage=..., step=..., metrics=...)` calls them all."""
        return self.manager.hook

    def names(self, kind: str) -> list[str]:
        """Names of the components of `kind`, sorted.

        Raises:
            LdmkitError: no such kind.
        """
        if kind not in KINDS:
            raise UsageError(f'no kind of component is called "{kind}"{did_you_mean(kind, KINDS)}: {", ".join(KINDS)}')
        return sorted(name for of_kind, name in self.components if of_kind == kind)

    def get(self, kind: str, name: str, *, where: str = "") -> Component:
        """The component called `name`.

        Raises:
            LdmkitError: no such component; the message has the nearest name, all names, and the
                plugins that failed to load, since the name may be theirs.
        """
        names = self.names(kind)
        if name not in names:
            place = f'{where} use = "{name}": ' if where else ""
            message = f'{place}no {_spoken(kind)} is called "{name}"{did_you_mean(name, names)}'
            message += f"; there are {', '.join(names)}" if names else f"; no plugin offers a {_spoken(kind)}"
            raise LdmkitError("\n".join([message, *map(str, self.failures)]))
        return self.components[kind, name]

    def check(self, kind: str, table: Mapping[str, Any], *, where: str) -> dict[str, Any]:
        """The options that `table` gives to the component it names with `use`, defaults filled in.

        Raises:
            LdmkitError: `use` is missing or unknown, or an option is; `where` ("[sampler]") opens each line.
        """
        return self._checked(kind, table, where)[1]

    def no_result(self, kind: str, table: Mapping[str, Any], *, where: str) -> frozenset[str]:
        """The options that do not affect the result, of the component that `table` names; raises as `check` does."""
        return self._checked(kind, table, where)[0].options.no_result

    def build(self, kind: str, table: Mapping[str, Any], *, where: str) -> Any:
        """The component that `table` describes.

        Raises:
            LdmkitError: as for `check`, and for what the component itself finds wrong.
        """
        component, options = self._checked(kind, table, where)
        try:
            return component.factory(**options)
        except LdmkitError as error:
            raise LdmkitError(f'{where} use = "{component.name}": {error}') from error

    def _checked(self, kind: str, table: Mapping[str, Any], where: str) -> tuple[Component, dict[str, Any]]:
        options = dict(table)
        name = options.pop("use", None)
        if not isinstance(name, str):
            raise LdmkitError(
                f'{where} lacks use = "NAME": the {_spoken(kind)}, one of {", ".join(self.names(kind)) or "none"}'
            )
        component = self.get(kind, name, where=where)
        return component, component.options.check(options, where=where, owner=f'the {_spoken(kind)} "{name}"')


def _spoken(kind: str) -> str:
    return kind.replace("_", " ")


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


def _collect(module: Any, plugin: Plugin, kinds: Collection[str]) -> list[Component]:
    """The components of one plugin, read through a manager of its own so that a failure leaves nothing behind."""
    trial = _manager()
    trial.register(module)
    trial.check_pending()  # a hook that is spelt wrong would otherwise be silently ignored
    components = []
    for kind in filter(kinds.__contains__, KINDS):
        for factories in getattr(trial.hook, KINDS[kind])():
            if not isinstance(factories, Mapping) or not all(
                isinstance(name, str) and name and callable(factory) for name, factory in factories.items()
            ):
                raise TypeError(
                    f"{KINDS[kind]}() must return a mapping of name to class or function, not {factories!r}"
                )
            for name, factory in factories.items():
                components.append(Component(kind, name, factory, plugin, Options.of(factory)))
    return components


def _resolved(path: Path) -> Path:
    try:
        return path.expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:  # ~nobody, a NUL, a link to itself
        raise LdmkitError(f"{path}: no such plugin file: {error}") from error


def _load_file(path: Path) -> ModuleType:
    """Run one file as a module. Its folder is not put on sys.path: a single-file plugin is a single file."""
    if not path.is_file():
        raise LdmkitError(f"{path}: no such plugin file")
    if path.suffix != ".py":
        raise LdmkitError(f"{path}: a plugin file must end in .py")
    # Two files of one stem must not meet in sys.modules, where dataclasses look up their own module.
    name = f"ldmkit_file_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # true of every path that ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise LdmkitError(f"{path}: the plugin failed to load: {_reason(error)}") from error
    return module


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())

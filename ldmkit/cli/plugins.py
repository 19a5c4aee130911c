"""ldmkit plugins: what recipes can name with `use`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ldmkit.components.registry import Component, Registry


@click.command("plugins")
@click.argument("kind", required=False)
@click.argument("name", required=False)
@click.option(
    "--plugin",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also load this single-file plugin (repeatable). Its code is run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
def plugins(kind: str | None, name: str | None, files: tuple[Path, ...], as_json: bool) -> None:
    """List the components that plugins offer.

    KIND (captioner, text_encoder, loss, sampler) lists one kind; KIND and NAME show one component's
    options, which are the keys of its table in a recipe.
    """
    from rich.console import Console

    from ldmkit.components.registry import KINDS, Registry

    # Piped, each component is one line that grep can find.
    console = Console(width=None if sys.stdout.isatty() else 1000)
    registry = Registry.load(files)
    if kind is not None and name is not None:
        component = registry.get(kind, name)
        if as_json:
            _print_json(_row(component) | {"options": [_option(option) for option in component.options.describe()]})
        else:
            _print_options(console, component)
        return
    kinds = KINDS if kind is None else [kind]
    components = [registry.get(each, found) for each in kinds for found in registry.names(each)]
    if as_json:
        failures = [
            {"plugin": failure.plugin.name, "package": failure.plugin.distribution}
            | {"version": failure.plugin.version, "reason": failure.reason}
            for failure in registry.failures
        ]
        _print_json({"components": [_row(component) for component in components], "failures": failures})
    else:
        _print_components(console, components, registry)


def _row(component: "Component") -> dict[str, str]:
    return {
        "kind": component.kind,
        "name": component.name,
        "package": component.distribution,
        "version": component.version,
        "summary": component.summary,
    }


def _option(option: Any) -> dict[str, Any]:
    return dict(option._asdict())


def _print_json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=2, default=str))


def _print_components(console: Any, components: "list[Component]", registry: "Registry") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("kind", "name", "package", "version", "what it is"):
        table.add_column(heading, no_wrap=heading in ("kind", "name"), overflow="fold")
    for component in components:
        table.add_row(*map(escape, _row(component).values()))
    console.print(table)
    for failure in registry.failures:
        console.print(f"[red]{escape(str(failure))}[/red]", soft_wrap=True, highlight=False)


def _print_options(console: Any, component: "Component") -> None:
    from json import dumps

    from rich.markup import escape
    from rich.table import Table

    console.print(
        f"[bold]{escape(component.name)}[/bold]  {escape(component.summary)}", soft_wrap=True, highlight=False
    )
    console.print(f"{component.kind} of {escape(str(component.plugin))}", soft_wrap=True, highlight=False)
    options = component.options.describe()
    if not options:
        console.print("no options")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("option", "type", "default", "allowed", "what it is"):
        table.add_column(heading, no_wrap=heading == "option", overflow="fold")
    for option in options:
        default = (
            "required" if option.required else "" if option.default is None else dumps(option.default, default=str)
        )
        table.add_row(*map(escape, (option.name, option.type, default, option.constraints, option.description)))
    console.print(table)

"""ldmkit plugins: what recipes can name with `use`."""

import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmkit.report import tell

if TYPE_CHECKING:
    from ldmkit.components.registry import Component


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
    from rich.markup import escape

    from ldmkit.components.registry import KINDS, Registry

    registry = Registry.load(files)
    # Piped, each component is one line that grep can find.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    if kind is not None and name is not None:
        component = registry.get(kind, name)
        options = component.options.described.values()
        if as_json:
            _print_json(_row(component) | {"options": [option._asdict() for option in options]})
            return
        console.print(f"[bold]{escape(name)}[/bold]  {escape(component.summary)}", soft_wrap=True)
        console.print(f"{kind} of {escape(str(component.plugin))}", soft_wrap=True)
        rows = []
        for option in options:
            default = "" if option.default is None else dumps(option.default, default=str)
            default = "required" if option.required else default
            rows.append([option.name, option.type, default, option.constraints, option.description])
        if rows:
            _print_table(console, ("option", "type", "default", "allowed", "what it is"), rows, whole=("option",))
        else:
            console.print("no options")
        return
    found = [registry.get(each, one) for each in ([kind] if kind else KINDS) for one in registry.names(each)]
    if as_json:
        failures = [
            {"plugin": failure.plugin.name, "package": failure.plugin.distribution}
            | {"version": failure.plugin.version, "reason": failure.reason}
            for failure in registry.failures
        ]
        _print_json({"components": [_row(component) for component in found], "failures": failures})
        return
    headings = ("kind", "name", "package", "version", "what it is")
    _print_table(console, headings, [list(_row(component).values()) for component in found], whole=("kind", "name"))
    for failure in registry.failures:
        console.print(f"[red]{escape(str(failure))}[/red]", soft_wrap=True)


def _row(component: "Component") -> dict[str, str]:
    return {
        "kind": component.kind,
        "name": component.name,
        "package": component.plugin.distribution,
        "version": component.plugin.version,
        "summary": component.summary,
    }


def _print_json(value: Any) -> None:
    tell(*dumps(value, indent=2, default=str).split("\n"))


def _print_table(console: Any, headings: tuple[str, ...], rows: list[list[str]], *, whole: tuple[str, ...]) -> None:
    """`whole` columns are never broken into lines."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=heading in whole, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)

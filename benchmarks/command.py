"""The command line of a benchmark follows from the parameters of its `main`; tables of what it found."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ldmkit.errors import LdmkitError

Folder = Annotated[Path | None, typer.Argument(show_default=False)]
"""an argument that may be left out"""


def run(main: Callable[..., None]) -> None:
    """Calls `main` as the command line says; a user's mistake is one line on stderr and its exit code, as in `ldmkit`.

    A parameter without a default is an argument, any other an option; one that is a list may be given several times.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    doc = sys.modules[main.__module__].__doc__ or ""
    app.command(help="\n\n".join(f"\b\n{paragraph}" for paragraph in doc.split("\n\n")))(main)  # \b: keeps the lines
    try:
        app()
    except LdmkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def print_table(*rows: Sequence[object]) -> None:
    """Columns as wide as they need to be, the first one to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *padded]))


def markdown(*rows: Sequence[object]) -> str:
    """The same as a table of markdown, the first row its headings."""
    heads, *others = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([heads, "|---" * len(rows[0]) + "|", *others])

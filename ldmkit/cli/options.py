"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, get_args

import click

from ldmkit.runtime.providers import Provider

set_option = click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the recipe.")


def provider_option(help_text: str) -> Callable[[Any], Any]:
    """`--provider`, what onnxruntime computes on."""
    return click.option(
        "--provider", type=click.Choice(get_args(Provider)), default="auto", show_default=True, help=help_text
    )

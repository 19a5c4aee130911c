"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, get_args

import click

from ldmkit.runtime.providers import Provider


def _well_formed(_context: click.Context, _option: click.Parameter, overrides: tuple[str, ...]) -> tuple[str, ...]:
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise click.BadParameter(f"{override}: write it as section.key=value, for example unet.steps=500")
    return overrides


set_option = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", callback=_well_formed, help="Override a key of the recipe."
)


def provider_option(help_text: str) -> Callable[[Any], Any]:
    """`--provider`, what onnxruntime computes on."""
    return click.option(
        "--provider", type=click.Choice(get_args(Provider)), default="auto", show_default=True, help=help_text
    )

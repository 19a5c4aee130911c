"""`ldmkit convert`."""

from pathlib import Path

import click


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("converted"), show_default=True)
def convert(checkpoint: Path, out: Path) -> None:
    """Convert a published .pth CHECKPOINT of the original system to safetensors."""
    from ldmkit.cli.missing import require

    require("torch")
    from ldmkit.models.convert import convert_checkpoint

    for path in convert_checkpoint(checkpoint, out):
        click.echo(str(path))

"""`ldmkit generate` in this process."""

from click.testing import CliRunner

from ldmkit.cli import cli


def invoke(*arguments: str) -> str:
    """What it prints; it ends with the exception that it ends with."""
    result = CliRunner().invoke(cli, ["generate", *arguments], catch_exceptions=False, standalone_mode=False)
    return result.output

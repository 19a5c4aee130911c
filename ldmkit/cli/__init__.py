"""The command line: one short command a verb. Importing it loads click alone."""

import atexit
import errno
import gc
import os
import sys
import threading
import warnings
from importlib import import_module
from io import StringIO, TextIOWrapper
from typing import Any, NoReturn

import click

from ldmkit.run.parts import PARTS

# The stages whose command is made of the table of parts; others have a module of their own.
STAGES = [spec.stage for spec in PARTS.values() if spec.help]
# verb -> module; a module is imported when its verb is called or its help line is asked for.
COMMANDS = {
    "train": "ldmkit.cli.train",
    **dict.fromkeys(STAGES, "ldmkit.cli.train"),
    "status": "ldmkit.cli.train",
    "plan": "ldmkit.cli.plan",
    "verify-resume": "ldmkit.cli.verify_resume",
    "eval": "ldmkit.cli.eval",
    "compare": "ldmkit.cli.eval",
    "export": "ldmkit.cli.export",
    "generate": "ldmkit.cli.generate",
    "ui": "ldmkit.cli.ui",
    "plugins": "ldmkit.cli.plugins",
    "recipe": "ldmkit.cli.recipe",
    "data": "ldmkit.cli.data",
    "convert": "ldmkit.cli.export",
    "doctor": "ldmkit.cli.doctor",
}


MAX_LINES, MAX_LENGTH = 52, 2000
"""of a message, and characters of each line: what it names may be a stranger's"""
_FORMATWARNING = warnings.formatwarning


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(COMMANDS[cmd_name])
        made = module.stage_command(cmd_name) if cmd_name in STAGES else getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(made, click.Command)
        return made

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            if near:
                raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None
            raise


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ldmkit")
def cli() -> None:
    """Train a latent diffusion model from your own pictures, and draw with it anywhere."""


def main() -> None:
    """Runs the command line; a user's mistake is one message on stderr and exit code 1, or 2 for wrong usage."""
    from ldmkit.errors import LdmkitError
    from ldmkit.signals import Stopped, raising_at_stops

    atexit.register(_skip_last_collection)
    # Before its first model pydantic would read what every installed package says of itself, for plugins of its own.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # A thread of GNU's OpenMP that waits for the others keeps its core busy for milliseconds. Where another program has
    # that core, a second training most of all, both crawl: docs/results.md has what it costs.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Names of files may hold what the terminal cannot show, or bytes that are no text: neither ends a command.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning, threading.excepthook = _formatted, _thread_ended
    try:
        with raising_at_stops():
            code = cli(prog_name="ldmkit", standalone_mode=False)
    except LdmkitError as error:
        _leave(f"error: {error}", error.exit_code)
    except click.ClickException as error:
        said = StringIO()
        error.show(said)
        _leave(said.getvalue().rstrip("\n"), error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        asked = error.__cause__ or error  # click makes an Abort of any KeyboardInterrupt
        _leave("interrupted", 128 + asked.number if isinstance(asked, Stopped) else 130)
    except ModuleNotFoundError as error:
        from ldmkit.cli.common import explain

        message = explain(error)
        if message is None:
            raise
        _leave(f"error: {message}", 1)
    except OSError as error:  # a folder without permission, a full disk
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        _leave(f"error: {where}{error.strerror}", 1)
    # Without standalone mode click returns the code of --help and --version, and whatever a command returns.
    sys.exit(code if isinstance(code, int) else 0)


def _formatted(message: Any, category: Any, *place: Any, **more: Any) -> str:
    """A warning for the user in a line, without the place in the source."""
    if not issubclass(category, UserWarning):
        return _FORMATWARNING(message, category, *place, **more)
    from ldmkit.report import printable

    return f"warning: {printable(str(message))}\n"


def _thread_ended(ended: Any) -> None:
    """A thread that cannot write is told of in a line: TensorBoard's, whose error the main thread then gets."""
    if not isinstance(ended.exc_value, OSError):
        threading.__excepthook__(ended)
        return
    from ldmkit.report import tell

    tell(f"warning: {ended.exc_value}", err=True)


def _skip_last_collection() -> None:
    """Python would look for garbage in all that was imported on its way out: a tenth of a short command's time."""
    if "torch" not in sys.modules:  # whose loaders end in finalizers
        gc.freeze()


def _leave(message: str, code: int) -> NoReturn:
    from ldmkit.report import tell

    lines = message.split("\n")
    more = [f"  and {len(lines) - MAX_LINES} more lines"] if len(lines) > MAX_LINES else []
    lines = [line if len(line) <= MAX_LENGTH else f"{line[:MAX_LENGTH]} ..." for line in lines[:MAX_LINES]]
    tell(*lines, *more, err=True)
    sys.exit(code)

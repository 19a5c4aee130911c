"""What every hostile artefact is: files put somewhere, something done with them, and how that must end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Artefact:
    """One hostile thing."""

    name: str
    make: Callable[[Path], Callable[[], Any]]
    """puts it into an empty folder and returns what ldmkit is then asked to do with it"""
    refused: str | None = None
    """words of the LdmkitError; None: it is taken, and the function that `make` returned has checked how"""


class Payload:
    """Unpickled without care, it writes the file it was given."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.canary)!r}, 'w').close()",))


def canary(folder: Path) -> Path:
    """The file that appears if an artefact in `folder` ever runs: outside of that folder."""
    return folder.parent / "canary"

"""The one exception that a user's mistake raises."""

from collections.abc import Sequence
from pathlib import Path


class LdmkitError(Exception):
    """A mistake that the user can fix: one message naming the file, the key and what is allowed.

    The command line prints the message without a traceback and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: object = "", *, files: Sequence[Path] = ()) -> None:
        """`files`: all that the one message is about, where it is about several."""
        super().__init__(message)
        self.files = files


class UsageError(LdmkitError):
    """A mistake that the command line alone shows: options that do not go together, or a malformed value."""

    exit_code = 2


class Interrupted(LdmkitError):
    """Training stopped by a signal after saving; the same command goes on from there."""

    exit_code = 130


class LostWorker(LdmkitError):
    """A process that decodes pictures has ended, before the batch that was asked for came."""


class NotCompiled(LdmkitError):
    """torch.compile failed, before any weight changed."""


def lost_process(error: RuntimeError) -> LdmkitError | None:
    """What to tell where torch says that a process this one trains with was killed; None for any other error."""
    told = str(error)
    network = type(error).__name__ in ("DistNetworkError", "DistBackendError", "DistStoreError")
    if network or "gloo/transport" in told or "closed by peer" in told or "reset by peer" in told:
        return LdmkitError(
            "another process of this run has ended. The last checkpoint is whole: start all of them again, and they "
            "go on from there"
        )
    return None

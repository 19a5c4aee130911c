"""The one exception that a user's mistake raises."""


class LdmkitError(Exception):
    """A mistake that the user can fix: one message naming the file, the key and what is allowed.

    The command line prints the message without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class Interrupted(LdmkitError):
    """Training stopped by a signal after saving; the same command goes on from there."""

    exit_code = 130

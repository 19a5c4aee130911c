"""How a benchmark ends over a user's mistake: one line on stderr and its exit code, as `ldmkit` does."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

from ldmkit.errors import LdmkitError

P = ParamSpec("P")


def told(main: Callable[P, int]) -> Callable[P, int]:
    """For a `main` that returns its exit code."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except LdmkitError as error:
            print(error, file=sys.stderr)
            return error.exit_code

    return wrapped

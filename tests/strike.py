"""A process that hits itself with a signal at an exact touch of a file, where a timer would only be about right."""

import os
import sys
from collections.abc import Callable
from typing import Any

TOUCHES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


def strike_at(touch: int, at: str, signal: int) -> Callable[[], int]:
    """Sends this process `signal` at its `touch`-th touch of a path that has `at` in it; -1: never.

    Returns what tells the number of touches so far. What is added to the interpreter stays: call it in a child.
    """
    touched = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal touched
        if event in TOUCHES and isinstance(arguments[0], str | bytes | os.PathLike) and at in os.fsdecode(arguments[0]):
            touched += 1
            if touched == touch:
                os.kill(os.getpid(), signal)

    sys.addaudithook(watch)
    return lambda: touched

"""What libtiff says on stderr, in a process where others decode, and start programs, at the same time."""

import os
import subprocess
import sys
from collections.abc import Callable
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest

from ldmkit.data import tiff


def decode(during: Callable[[], object]) -> set[str]:
    """The notes of a picture by libtiff whose decoding is `during`."""
    notes: set[str] = set()
    picture: Any = SimpleNamespace(tile=[SimpleNamespace(codec_name="libtiff")], load=during)
    tiff.load(picture, notes)
    return notes


def test_two_at_once_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one begins while the first has stderr: what it keeps of it must not be the first one's pipe."""
    begun, waits = Event(), Event()

    class Lock:
        def __init__(self) -> None:
            self.lock = tiff._redirecting

        def __enter__(self) -> None:
            if begun.is_set():
                waits.set()
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()

    def first() -> None:
        begun.set()
        assert waits.wait(20)

    monkeypatch.setattr(tiff, "_redirecting", Lock())
    before = os.fstat(2)
    one = Thread(target=decode, args=(first,), daemon=True)
    two = Thread(target=decode, args=(lambda: os.write(2, b"TIFFRead: odd.\n"),), daemon=True)
    one.start()
    assert begun.wait(20)
    two.start()
    for thread in (one, two):
        thread.join(20)
        assert not thread.is_alive()
    assert os.fstat(2).st_ino == before.st_ino


def test_a_program_that_is_started_meanwhile_is_not_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    started = []

    def load() -> None:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        os.write(2, b"TIFFRead: odd.\nsomeone else's\n")

    try:
        assert decode(load) == {"libtiff: TIFFRead: odd"}
        assert started[0].poll() is None
    finally:
        started[0].kill()
        started[0].wait()
    assert capfd.readouterr().err == "someone else's\n"

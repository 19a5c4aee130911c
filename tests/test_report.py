"""What a long command shows: on a terminal, in a file, in a second process."""

import os
import re
import sys
import time
from contextlib import suppress
from typing import Any

import pytest

from ldmkit.report import Reporter, duration


def test_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line every ten seconds and at the end; the rate counts what this session did."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Reporter().bar("vae", 40, 10) as bar:
        for _ in range(30):
            clock[0] += 1
            bar.advance(1, {"loss": 0.123456, "kl": 12345.6})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "vae  20/40  1.0/s  20 s left  loss 0.1235  kl 1.235e+04",
        "vae  30/40  1.0/s  10 s left  loss 0.1235  kl 1.235e+04",
        "vae  40/40  1.0/s  loss 0.1235  kl 1.235e+04",
    ]


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True)
    reporter.line("hello")
    with reporter.bar("vae", 2) as bar:
        bar.advance(2)
        assert bar.done == 2
    assert capsys.readouterr().out == ""
    Reporter().line("hello")
    assert capsys.readouterr().out == "hello\n"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    keyboard, screen = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with os.fdopen(screen, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with Reporter().bar("vae", 40, 10) as bar:
            bar.advance(5, {"loss": 0.123456})
            bar.advance(25)
        monkeypatch.undo()
        # A read gives what has arrived by then, which may be less than all: on to the end, which is an EIO on Linux.
        written = b""
        terminal.close()
        with suppress(OSError):
            while piece := os.read(keyboard, 1 << 16):
                written += piece
    os.close(keyboard)
    shown = written.decode()
    last: Any = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).split("vae")[-1]
    assert "40/40" in last
    assert "/s" in last
    assert "loss 0.1235" in last


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        (0.01, "1/1000  100.0/s  10 s left"),
        (25.0, "1/1000  2.4/min  6 h 56 min left"),
        (3600.0, "1/1000  1.0/h  41 d 15 h left"),
    ],
)
def test_slow_steps_have_a_rate_and_a_readable_estimate(
    each: float, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Reporter().bar("t2i", 1000) as bar:
        bar._last = 0.0  # type: ignore[attr-defined] # a line at once
        clock[0] += each
        bar.advance(1)
    assert capsys.readouterr().out == f"t2i  {expected}\n"


def test_no_estimate_before_there_is_a_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Reporter().bar("encode", 40, 10) as bar:
        clock[0] += 60
        bar.advance(0)
    assert capsys.readouterr().out == "encode  10/40\n"


def test_duration() -> None:
    expected = {
        0.0: "0 ms",
        0.0123: "12.3 ms",
        0.9996: "1.0 s",
        1.23: "1.2 s",
        9.96: "10 s",
        59.4: "59 s",
        59.6: "1 min 0 s",
        125: "2 min 5 s",
        3599.6: "1 h 0 min",
        28920: "8 h 2 min",
        86399: "1 d 0 h",
        183600: "2 d 3 h",
        3960000: "45 d 20 h",
    }
    assert {seconds: duration(seconds) for seconds in expected} == expected


def test_a_counter_shows_only_what_takes_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def count(seconds: float, **options: Any) -> tuple[str, str]:
        with Reporter(**options).counter("pictures") as progress:
            for done in range(1, 31):
                clock[0] += seconds
                progress(done, 30)
        return tuple(capsys.readouterr())

    assert count(0.05) == ("", "")
    lines = [
        "pictures  12/30  1.0/s  18.0 s left",
        "pictures  22/30  1.0/s  8.0 s left",
        "pictures  30/30  1.0/s",
    ]
    assert count(1.0) == ("\n".join([*lines, ""]), "")
    assert count(1.0, err=True) == ("", "\n".join([*lines, ""]))
    assert count(1.0, quiet=True) == ("", "")

"""The benchmarks of drawing, small, and their arithmetic."""

import sys
from pathlib import Path
from subprocess import run

import pytest

from benchmarks import command
from benchmarks.drawing import cold
from benchmarks.turns import Timing, in_turns, print_ratio, print_timings, spread

REPOSITORY = Path(__file__).parents[2]


def test_sides_take_turns_after_warming_up():
    calls = []
    sides = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    assert in_turns(sides, 2) == {"a": [4, 5], "b": [3, 6]}
    assert "".join(calls) == "abbaab"


def test_ratios_are_taken_within_rounds(capsys):
    ours, theirs = Timing([(1.0, 0.1), (4.0, 0.2), (2.0, 0.1)]), Timing([(2.0, 0.0), (6.0, 0.0), (6.0, 0.0)])
    assert ours.ratios(theirs) == [2, 1.5, 3]
    assert spread([2.0, 1.5, 3.0]) == "2.00 (1.50 to 3.00)"
    print_timings({"ours": ours}, batch=8)
    print_ratio({"ours": ours, "theirs": theirs}, "ours", "theirs")
    table, ratio = capsys.readouterr().out.splitlines()[1:]
    assert table.split() == ["ours", "2.000", "4.00", "5.0%"]
    assert ratio == "ratio ours to theirs: 2.00 (1.50 to 3.00)"


def test_cold_commands_are_measured_each_by_itself():
    code = "import time; x = b'x' * {}; time.sleep(0.2)"
    small, large = ([sys.executable, "-S", "-c", code.format(size)] for size in (0, 200 << 20))
    found = cold.measure({"large": large, "small": small}, 1)
    ((slow, most), (seconds, least)) = (results[0] for results in found.values())
    assert 190 < most - least < 230  # MiB
    assert 0.2 < seconds < slow + 1
    with pytest.raises(RuntimeError, match=r"bad failed:\n(.*\n)*.*no luck"):
        cold.once("bad", [sys.executable, "-S", "-c", "raise SystemExit('no luck')"])


def test_a_bare_script_draws_the_same_picture(monkeypatch, capsys):
    """Written without ldmkit: an oracle for the whole way from a prompt to a PNG of the bundle that ships."""

    def once(commands, runs):
        """Neither the time nor the warm disk matters here."""
        for name in ("a bare script", "ldmkit generate"):
            run(commands[name], check=True)
        return {name: [(1.0, 1.0)] for name in commands}

    monkeypatch.setattr(cold, "measure", once)
    monkeypatch.setattr(sys, "argv", ["cold", str(REPOSITORY / "exports" / "toy-cats"), "--runs", "1"])
    with pytest.raises(SystemExit, match="0"):  # another code where they differ by more than a level
        command.run(cold.main)
    assert "ratio ldmkit generate / a bare script: 1.00 of the time" in capsys.readouterr().out

"""The runtime's benchmarks, small, and their arithmetic."""

import json
import sys
from pathlib import Path
from subprocess import run
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import cold
    import cold_generate
    import samplers
    import torch_agreement

    return SimpleNamespace(cold=cold, cold_generate=cold_generate, samplers=samplers, agreement=torch_agreement)


def test_cold_commands_are_measured_each_by_itself(bench):
    code = "import time; x = b'x' * {}; time.sleep(0.2)"
    small, large = ([sys.executable, "-S", "-c", code.format(size)] for size in (0, 200 << 20))
    results = bench.cold.in_turns({"large": large, "small": small}, runs=2)
    assert [len(each.seconds) for each in results.values()] == [2, 2]
    assert 190 < results["large"].peak - results["small"].peak < 230  # MiB
    by_hand = bench.cold.Cold([3.0, 8.0, 1.0], [5, 7, 6]), bench.cold.Cold([2.0, 2.0, 2.0], [1, 1, 1])
    assert (by_hand[0].median, by_hand[0].peak, by_hand[0].ratio(by_hand[1])) == (3.0, 7, 1.5)
    with pytest.raises(RuntimeError, match=r"bad failed:\n(.*\n)*.*no luck"):
        bench.cold.in_turns({"bad": [sys.executable, "-S", "-c", "raise SystemExit('no luck')"]}, runs=1)


def test_a_bare_script_draws_the_same_picture(bench, monkeypatch, capsys):
    """Written without ldmkit: an oracle for the whole way from a prompt to a PNG of the bundle that ships."""
    bundle = str(REPOSITORY / "exports" / "toy-cats")
    monkeypatch.setattr(sys, "argv", ["cold_generate.py", bundle])

    def once(commands, runs):
        """Neither the time nor the warm disk matters here."""
        return {name: bench.cold.Cold([1.0], [1.0]) for name, command in commands.items() if run(command, check=True)}

    monkeypatch.setattr(bench.cold_generate, "in_turns", once)
    bench.cold_generate.main()  # exits where they differ by more than a level
    assert "ratio ldmkit generate / bare script:" in capsys.readouterr().out


def test_samplers_are_scored_and_the_same_command_goes_on(bench, tmp_path, capsys):
    arguments = [str(REPOSITORY / "exports" / "toy-cats"), "--num", "4", "--calls", "3", "--out", str(tmp_path)]
    assert bench.samplers.main([*arguments, "--only", "ddim"]) == 0
    first = (tmp_path / "samplers.jsonl").read_text()
    assert bench.samplers.main([*arguments, "--only", "ddim", "heun", "--plot", str(tmp_path / "plot.png")]) == 0
    lines = (tmp_path / "samplers.jsonl").read_text()
    assert lines.startswith(first)
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [(row["sampler"], row["steps"], row["calls"]) for row in rows] == [("ddim", 3, 3), ("heun", 2, 3)]
    assert all(0 <= row["right"] <= 1 for row in rows)
    assert "recommended: " in capsys.readouterr().out
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width > 600


def test_the_fewest_calls_within_the_error_of_the_best_are_recommended(bench):
    def row(calls, right, **more):
        return {"calls": calls, "right": right, "error": 0.02, **more}

    rows = [row(4, 0.80), row(8, 0.935), row(12, 0.945), row(20, 0.95)]
    assert bench.samplers.recommended(rows) is rows[1]
    rows = [
        row(4, 0, kid_x1000=9.0, kid_std=1),
        row(8, 0, kid_x1000=5.2, kid_std=0.1),
        row(20, 1, kid_x1000=5, kid_std=0.5),
    ]
    assert bench.samplers.recommended(rows) is rows[1]


def test_psnr_is_torchmetrics(bench):
    levels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    a, b = (Image.fromarray(each) for each in levels)
    tensors = [torch.from_numpy(each.astype(np.float64)) for each in levels]
    expected = float(peak_signal_noise_ratio(*tensors, data_range=255.0))
    assert bench.agreement.psnr(a, b) == pytest.approx(expected)
    assert bench.agreement.psnr(a, a) == float("inf")

"""The benchmarks of what may go wrong, at sizes that tests can pay for."""

import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.flips import bundle_flips, checkpoint_flips
from benchmarks.faults.hostile import held
from benchmarks.faults.run_damages import strike
from benchmarks.faults.stop import growth
from benchmarks.runs import TINY, watched
from ldmkit.cli.train import open_pipeline
from ldmkit.models.build import build_unet
from ldmkit.recipe import find_recipe, load_recipe
from ldmkit.run.networks import fresh_autoencoder

REPOSITORY = Path(__file__).parents[2]


def test_races_for_a_run() -> None:
    """In a process without torch, which forks 200 times in no time."""
    command = [sys.executable, "-m", "benchmarks.faults.lock_races", "--races", "100"]
    assert subprocess.check_output(command, text=True, cwd=REPOSITORY) == "100 of 100 races had exactly one winner\n"


def test_every_damage_is_noticed(tmp_path: Path) -> None:
    assert checkpoint_flips(tmp_path / "checkpoints", 150, random.Random(1)) == 150
    shutil.copytree(REPOSITORY / "exports" / "toy-cats", tmp_path / "bundle")
    assert bundle_flips(tmp_path / "bundle", 30, random.Random(1)) == 30


def test_damages_to_a_run(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noticed by `status --deep`, and by whoever reads the file."""
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    counts, wrong = strike(tmp_path, partial(open_pipeline, "tiny.toml", looks=True), 12, random.Random(3))
    assert wrong == []
    assert counts["deep"] == 12
    assert counts["refused"] == counts["used"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="proportional set sizes are Linux's")
def test_memory_of_a_process_and_of_what_it_started(tmp_path: Path) -> None:
    child = "data = bytearray(30_000_000); import time; time.sleep(0.3)"
    parent = f"import subprocess, sys; data = bytearray(20_000_000); subprocess.run([sys.executable, '-c', {child!r}])"
    command = [sys.executable, "-S", "-c", parent + "; print('said'); sys.exit(3)"]
    code, seconds, peak, said = watched(command, tmp_path, held=held)
    assert (code, said) == (3, "said\n")
    assert 50e6 < peak < 120e6
    assert seconds > 0.3
    _, _, own, _ = watched(command, tmp_path)
    assert 20e6 < own < peak - 20e6, "without what it started"


def test_tiny_recipe_is_tiny() -> None:
    recipe = load_recipe(find_recipe("toy-cats"), TINY)
    for network in (fresh_autoencoder(recipe), build_unet(recipe, recipe.vae.latent_channels)):
        assert sum(p.numel() for p in network.parameters()) < 100_000
    assert recipe.data.size == 16


def test_growth_is_a_slope() -> None:
    """Half a MiB a second from here to there, and a process too short to tell."""
    rising = [(20 + i / 2, 2**20 * i // 4, 40) for i in range(60)]
    assert growth([rising, rising[:5]], 1) == [pytest.approx(30 * 2**20, rel=0.02)]
    assert growth([rising], 2) == [pytest.approx(0, abs=1e-6)]

"""The benchmarks of what may go wrong, at sizes that tests can pay for."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _benchmarks_import_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")


def test_races_for_a_run() -> None:
    """In a process without torch, which forks 200 times in no time."""
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "lock_races.py"), "--races", "100"]
    assert subprocess.check_output(command, text=True) == "100 of 100 races had exactly one winner\n"


def test_every_damage_is_noticed(tmp_path: Path) -> None:
    from flips import bundle_flips, checkpoint_flips

    assert checkpoint_flips(tmp_path / "checkpoints", 150, random.Random(1)) == 150
    shutil.copytree(REPOSITORY / "exports" / "toy-cats", tmp_path / "bundle")
    assert bundle_flips(tmp_path / "bundle", 30, random.Random(1)) == 30


@pytest.mark.skipif(sys.platform != "linux", reason="proportional set sizes are Linux's")
def test_memory_of_a_process_and_of_what_it_started(tmp_path: Path) -> None:
    from hostile_stages import watched

    child = "data = bytearray(30_000_000); import time; time.sleep(0.3)"
    parent = f"import subprocess, sys; data = bytearray(20_000_000); subprocess.run([sys.executable, '-c', {child!r}])"
    code, peak, said = watched([sys.executable, "-c", parent + "; print('said'); sys.exit(3)"], tmp_path)
    assert (code, said) == (3, "said\n")
    assert 50e6 < peak < 120e6


def test_tiny_recipe_is_tiny() -> None:
    from tiny_recipe import tiny_recipe

    from ldmkit.models.build import build_autoencoder, build_unet

    recipe = tiny_recipe()
    for network in (build_autoencoder(recipe), build_unet(recipe)):
        assert sum(p.numel() for p in network.parameters()) < 100_000
    assert recipe.data.size == 16


def test_growth_is_a_slope() -> None:
    """Half a MiB a second from here to there, and a process too short to tell."""
    from soak import growth

    rising = [(20 + i / 2, 2**20 * i // 4, 40) for i in range(60)]
    assert growth([rising, rising[:5]], 1) == [pytest.approx(30 * 2**20, rel=0.02)]
    assert growth([rising], 2) == [0]

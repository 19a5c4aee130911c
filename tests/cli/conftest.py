"""The command line in this process: what it prints, and the code it leaves with."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from ldmkit.cli import main


class Left(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Left]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `ldmkit ARGUMENTS...` in `tmp_path`, as the console script would."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Left:
        monkeypatch.setattr(sys, "argv", ["ldmkit", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert isinstance(end.value.code, int)
        return Left(end.value.code, out, err)

    return call


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 12 tiny pictures, `pictures`, whose names are captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"red cat {number}.png")
    return folder

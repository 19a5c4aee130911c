"""docs/examples/draw.py, written from docs/bundle.md, draws what the runtime draws."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmkit.runtime.bundle import Bundle

REPOSITORY = Path(__file__).parents[2]
SHIPPED = REPOSITORY / "exports" / "toy-cats"


@pytest.mark.parametrize(
    ("schedule", "zero", "prediction"),
    [
        ("flow", False, "flow"),
        ("flow", False, "x0"),
        ("linear", False, "eps"),
        ("scaled_linear", True, "v"),
        ("cosine", False, "v"),
        ("cosine", True, "flow"),
    ],
)
def test_it_draws_as_the_runtime(tmp_path: Path, schedule: str, zero: bool, prediction: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(SHIPPED, folder)
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    manifest["schedule"] |= {"name": schedule, "zero_terminal_snr": zero}
    manifest["prediction"] = prediction
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    script = REPOSITORY / "docs" / "examples" / "draw.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder), "a cute orange cat", "3", "4", "cat.png"], cwd=tmp_path, check=False
    )
    assert done.returncode == 0
    (expected,) = Bundle.load(folder, provider="cpu").generate("a cute orange cat", seed=3, steps=4, sampler="ddim")
    with Image.open(tmp_path / "cat.png") as drawn:
        assert np.abs(np.asarray(drawn).astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_it_is_short_and_needs_no_ldmkit() -> None:
    text = (REPOSITORY / "docs" / "examples" / "draw.py").read_text()
    assert "ldmkit" not in text
    assert len(text.splitlines()) < 70

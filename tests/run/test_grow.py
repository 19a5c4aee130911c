"""Pictures that are added, changed and taken away, by real stages: what is computed, and what is taken over."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmkit.errors import LdmkitError
from ldmkit.run.files import read_record
from tests.caches.test_encode import encoded

STAGES = ("caption", "train-vae", "encode")
CAPTIONER = """
from ldmkit import hookimpl

class Counting:
    def caption(self, pictures):
        with open("asked.txt", "a") as file:
            file.writelines(picture.key + "\\n" for picture in pictures)
        return [f"cat {picture.key}" for picture in pictures]

@hookimpl
def register_captioners():
    return {"counting": Counting}
"""


@pytest.fixture
def grown(trained: Any, processes: Any, tmp_path: Path) -> Any:
    """A finished autoencoder with its latents, then one picture fewer, one painted over, one renamed, two more."""
    folder = tmp_path / "w"
    shutil.copytree(trained.folder, folder)
    workshop = type(trained)(folder)
    pictures = folder / "pictures"
    (pictures / "05.png").unlink()
    (pictures / "06.png").rename(pictures / "6.png")
    (pictures / "06.txt").rename(pictures / "6.txt")
    rng = np.random.default_rng(1)
    for name in ("03", "31", "32"):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text("a cat")
    return workshop


def arrays(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    names = json.loads((folder / "pictures.json").read_text())
    return names, np.load(folder / "mean.npy"), np.load(folder / "std.npy")


def test_what_is_new_alone_is_encoded(grown: Any, processes: Any) -> None:
    old = dict(zip(*arrays(grown.run / "latents")[:2], strict=True))
    weights = (grown.run / "vae" / "ema.safetensors").read_bytes()
    code, output = processes.run(grown.folder, ("train", "tiny.toml", "--dry-run"))
    assert code == 0, output
    assert re.search(
        r"train-vae +vae +done +\(kept: trained before the pictures changed, 3 of 21 are new to it", output
    )
    assert re.search(r"encode +latents +stale +\(pictures.*; what is unchanged is taken over\)", output)
    code, output = processes.run(grown.folder, *((stage, "tiny.toml") for stage in STAGES))
    assert code == 0, output
    assert "encode latents: 18 taken over, 3 to encode" in output
    assert (grown.run / "vae" / "ema.safetensors").read_bytes() == weights
    names, mean, std = arrays(grown.run / "latents")
    assert len(names) == 21
    for name, row in zip(names, mean, strict=True):
        if name not in ("03.png", "31.png", "32.png"):
            assert (row == old["06.png" if name == "6.png" else name]).all()
    expected = encoded(grown, mirrored=True)
    np.testing.assert_allclose(mean[:, 1], expected[0], atol=1e-5)
    np.testing.assert_allclose(std[:, 1], expected[1], rtol=1e-4)
    statistics = json.loads((grown.run / "latents" / "statistics.json").read_text())
    np.testing.assert_allclose(statistics["mean"], mean.mean((0, 1, 3, 4)), atol=1e-6)
    # Asked for by name, everything is computed again.
    code, output = processes.run(grown.folder, ("encode", "tiny.toml", "--again"))
    assert code == 0, output
    assert "taken over" not in output
    code, output = processes.run(grown.folder, ("train-vae", "tiny.toml", "--again"))
    assert code == 0, output
    state = grown.pipeline().states()
    assert (state["vae"].state, state["vae"].reason) == ("done", "")
    assert state["latents"].state == "stale"


def test_killed_while_it_takes_over(grown: Any, processes: Any) -> None:
    """The next one still knows what it takes over; a damaged cache is told of, and computed again."""
    code, output = processes.run(
        grown.folder, ("caption", "tiny.toml"), ("encode", "tiny.toml"), strike=24, at="latents"
    )
    assert code == -signal.SIGKILL, output
    assert (read_record(grown.run / "latents") or {})["state"] == "running"
    code, output = processes.run(grown.folder, ("encode", "tiny.toml"))
    assert code == 0, output
    assert "encode latents: 18 taken over, 3 to encode" in output
    assert "earlier" not in (read_record(grown.run / "latents") or {})


def test_a_damaged_cache_is_not_taken_over(grown: Any, processes: Any) -> None:
    file = grown.run / "latents" / "mean.npy"
    found, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    code, output = processes.run(grown.folder, ("caption", "tiny.toml"), ("encode", "tiny.toml"))
    assert code == 0, output
    assert re.search(r"encode latents: not taken over: .*stale/latents-1/mean\.npy is not what was written", output)
    np.testing.assert_allclose(np.load(file)[:, 0], encoded(grown, mirrored=False)[0], atol=1e-5)


def test_captions_of_pictures_that_are_the_same(
    workshop: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The captioner is asked for what is new; a correction by hand stays, a caption beside a picture comes first."""
    monkeypatch.chdir(workshop.folder)
    for text in (workshop.folder / "pictures").glob("*.txt"):
        text.unlink()
    (workshop.folder / "counting.py").write_text(CAPTIONER)
    recipe = workshop.folder / "tiny.toml"
    recipe.write_text('plugins = ["./counting.py"]\n[caption]\nuse = "counting"\n' + recipe.read_text())
    workshop.pipeline().run(("caption",))
    asked = workshop.folder / "asked.txt"
    assert len(asked.read_text().split()) == 20
    asked.unlink()
    captions = workshop.run / "captions" / "captions.jsonl"
    captions.write_text(captions.read_text().replace("cat 04.png", "a dog, not a cat"))
    pictures = workshop.folder / "pictures"
    Image.new("RGB", (16, 16), "red").save(pictures / "03.png")
    (pictures / "05.png").rename(pictures / "50.png")
    (pictures / "07.txt").write_text("by hand")
    pipeline = workshop.pipeline()
    pipeline.reporter.quiet = False
    pipeline.run(("caption",))
    assert "18 of 20 captions taken over" in capsys.readouterr().out
    assert asked.read_text().split() == ["03.png", "50.png"]
    found = {row["file"]: row["caption"] for row in map(json.loads, captions.read_text().splitlines())}
    assert len(found) == 20
    assert found["04.png"] == "a dog, not a cat"
    assert found["07.png"] == "by hand"
    workshop.pipeline().run(("caption",), forced="caption")
    assert len(asked.read_text().split()) == 2 + 19
    with pytest.raises(LdmkitError, match="grow"):
        workshop.pipeline("data.grow=2.0")

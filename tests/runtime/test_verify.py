"""The check of a bundle: pictures worked out on paper, and damage of each kind."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

from ldmkit import shipped
from ldmkit.cli import cli
from ldmkit.errors import LdmkitError
from ldmkit.runtime import verify
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.manifest import file_entry

MakeBundle = Callable[..., Path]
# The graphs of conftest.py: with "red cat" 0.1 + 0.02 + 0.03, without 0, as levels of 0 to 255.
WITH, WITHOUT = 147, 128


def with_golden(folder: Path, levels: tuple[int, int] = (WITH, WITHOUT), **changes: Any) -> Path:
    """Adds golden pictures of these flat colours, and makes the manifest agree."""
    pixels = np.repeat(np.repeat(np.array([levels], dtype=np.uint8), 2, axis=1), 2, axis=0)  # (2, 4)
    Image.fromarray(np.stack([pixels] * 3, axis=-1)).save(folder / "golden.png")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["golden.png"] = file_entry(folder / "golden.png").model_dump()
    manifest["golden"] = {
        "prompts": ["red cat", ""],
        "seed": 0,
        "steps": 2,
        "guidance_scale": 1.0,
        "sampler": "euler",
        "min_psnr": 40,
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def replace_graph(folder: Path, name: str, model: Any) -> None:
    """Swaps a graph and makes the manifest agree."""
    onnx.save(model, folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = file_entry(folder / name).model_dump()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def states(folder: Path) -> dict[str, str]:
    return {check.name: check.state for check in verify.verify(folder, provider="cpu")}


def failure(folder: Path) -> tuple[str, str]:
    """Name and words of the only check that fails."""
    ((name, words),) = [(c.name, c.words) for c in verify.verify(folder, provider="cpu") if c.state == "failed"]
    return name, words


def test_a_whole_bundle(make_bundle: MakeBundle) -> None:
    checks = list(verify.verify(with_golden(make_bundle()), provider="cpu"))
    assert {check.state for check in checks} == {"ok"}
    names = [check.name for check in checks]
    assert names[0] == "files"
    assert names[-1] == "golden pictures"
    assert len(names) == 2 + 2 * 4
    assert checks[-1].words == "100.0, 100.0 dB of at least 40, on cpu"
    shapes = {check.name: check.words for check in checks}
    assert shapes["vae_decoder.onnx: shapes"] == "1x3x2x2, 3x3x2x2"
    assert shapes["text_encoder.onnx: shapes"] == "1x4x1, 3x4x1"


def test_sizes_are_tried_where_there_are_more_than_one(make_bundle: MakeBundle) -> None:
    latent = {"channels": 2, "height": 2, "width": 2, "mean": [0, 0], "std": [1, 1], "multiple": 2}
    folder = with_golden(make_bundle(latent=latent))
    failed = {name for name, state in states(folder).items() if state == "failed"}
    # The hand-written graphs take 2x2 alone.
    assert failed == {f"{name}.onnx: shapes" for name in ("unet", "unet_t2i", "vae_decoder")}


def test_pictures_that_come_out_otherwise(make_bundle: MakeBundle) -> None:
    folder = with_golden(make_bundle(), (WITH, WITHOUT - 2))
    # 2 levels of 255 off everywhere: 20 log10(255 / 2) = 42.11 dB; 3 levels: 38.59.
    assert states(folder)["golden pictures"] == "ok"
    with_golden(folder, (WITH, WITHOUT + 3))
    name, words = failure(folder)
    assert name == "golden pictures"
    assert "100.0, 38.6 dB of at least 40, on cpu" in words
    with_golden(folder, prompts=["red cat"])
    assert "is 4x2: not the pictures it should be" in failure(folder)[1]


def test_damage_is_named(make_bundle: MakeBundle) -> None:
    folder = with_golden(make_bundle())
    data = bytearray((folder / "golden.png").read_bytes())
    data[-1] ^= 1
    (folder / "golden.png").write_bytes(data)
    assert failure(folder)[0] == "files"

    with_golden(folder)
    model = onnx.load(folder / "vae_decoder.onnx")
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    replace_graph(folder, "vae_decoder.onnx", model)
    assert states(folder)["vae_decoder.onnx: ONNX"] == "failed"

    folder = with_golden(make_bundle("other", text={"max_tokens": 4, "context_dim": 2}))
    found = states(folder)
    assert found["text_encoder.onnx: shapes"] == "failed"
    assert found["vae_decoder.onnx: shapes"] == "ok"


def test_values_that_are_not_finite(make_bundle: MakeBundle, unet_text: Callable[[str], str]) -> None:
    folder = with_golden(make_bundle(unet=unet_text("output = Div(nothing, zero)")))
    found = states(folder)
    assert found["unet.onnx: shapes"] == "failed"
    assert found["golden pictures"] == "failed"


def test_what_is_no_part_of_it_is_said(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    (folder / "vae_encoder.onnx").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    (files,) = [check for check in verify.verify(folder, provider="cpu") if check.name == "files"]
    assert (
        files.words
        == "5 files match their SHA-256; manifest.json has none of its own; not part of it: vae_encoder.onnx, notes.txt"
    )


def test_without_onnx_and_without_golden_pictures(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "find_spec", lambda name: None if name == "onnx" else util.find_spec(name))
    found = states(make_bundle())
    assert {name: state for name, state in found.items() if state != "ok"} == {
        **{f"{name}.onnx: ONNX": "skipped" for name in ("unet", "unet_t2i", "vae_decoder", "text_encoder")},
        "golden pictures": "skipped",
    }


def test_command(make_bundle: MakeBundle) -> None:
    folder = with_golden(make_bundle())
    done = CliRunner().invoke(cli, ["export", "verify", str(folder), "--provider", "cpu"], catch_exceptions=False)
    assert done.exit_code == 0
    assert (
        done.output.splitlines()[0] == "ok       files: 6 files match their SHA-256; manifest.json has none of its own"
    )
    with_golden(folder, (0, 0))
    with pytest.raises(LdmkitError, match="1 of 10 checks failed: golden pictures"):
        CliRunner().invoke(cli, ["export", "verify", str(folder), "--json"], catch_exceptions=False)
    with pytest.raises(LdmkitError, match="is not a bundle"):
        CliRunner().invoke(cli, ["export", "verify", str(folder.parent)], catch_exceptions=False)


def test_psnr() -> None:
    """10 log10(255^2 / mean squared error), of one channel of three 10 levels off in half of the pixels."""
    picture, other = np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 4, 3), dtype=np.uint8)
    other[:2, :, 1] = 10
    assert verify.psnr(*map(Image.fromarray, (picture, other))) == pytest.approx(10 * np.log10(255**2 / (100 / 6)))
    assert verify.psnr(*map(Image.fromarray, (other, picture))) == pytest.approx(10 * np.log10(255**2 / (100 / 6)))
    assert verify.psnr(*map(Image.fromarray, (other, other))) == 100


def test_the_shipped_bundle_without_torch() -> None:
    folder = shipped.exports_dir()
    assert folder is not None
    code = (
        "import sys\nfrom ldmkit.cli import main\n"
        f"sys.argv = ['ldmkit', 'export', 'verify', {str(folder / 'toy-cats')!r}, '--provider', 'cpu']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    manifest = Bundle.load(folder / "toy-cats").manifest
    assert ("ok       golden pictures" in done.stdout) == (manifest.golden is not None)

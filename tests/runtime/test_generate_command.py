"""`ldmkit generate`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from ldmkit.cli.generate import generate
from ldmkit.errors import LdmkitError

MakeBundle = Callable[..., Path]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(generate, arguments, catch_exceptions=False, standalone_mode=False)
    return result.output


def test_draws_from_the_newest_bundle_and_says_which(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle("older", created="2020-01-01T00:00:00Z")
    folder = make_bundle("newer")
    output = invoke("red cat", "--seed", "7", "--provider", "cpu")
    assert output.splitlines() == ["bundle newer (exports/newer), provider cpu", "outputs/red-cat-7.png"]
    with Image.open(work / "outputs" / "red-cat-7.png") as image:
        text = image.text  # type: ignore[attr-defined]
    digest = subprocess.run(["sha256sum", folder / "manifest.json"], capture_output=True, text=True, check=True)
    assert text == {
        "prompt": "red cat",
        "seed": "7",
        "sampler": "euler",
        "steps": "4",
        "guidance": "1.0",
        "bundle": "newer",
        "bundle_sha256": digest.stdout.split()[0],
        "provider": "cpu",
    }
    assert "outputs/red-cat-7-2.png" in invoke("red cat", "--seed", "7")


def test_several_pictures_come_with_a_grid(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle(prediction="flow")
    drawn = json.loads(invoke("-n", "3", "--seed", "2", "--sampler", "ddim", "--steps", "2", "--out", "new", "--json"))
    assert [entry["seed"] for entry in drawn["pictures"]] == [2, 3, 4]
    assert drawn["sampler"] == "ddim"
    assert drawn["steps"] == 2
    with Image.open(drawn["grid"]) as sheet:
        sheet.load()
        for k, entry in enumerate(drawn["pictures"]):
            with Image.open(entry["path"]) as picture:
                x, y = k * 4, 0  # one full row; 2 pixels wide, 2 apart
                assert sheet.crop((x, y, x + 2, y + 2)).tobytes() == picture.tobytes()
    assert sorted(path.name for path in (work / "new").iterdir()) == [
        "unconditional-2-to-4-grid.png",
        *[f"unconditional-{k}.png" for k in (2, 3, 4)],
    ]


def test_one_file(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle()
    assert invoke("cat", "--out", "a.png").splitlines()[-1] == "a.png"
    for arguments, message in (
        (["--out", "a.png"], "exists and is not overwritten"),
        (["--out", "b.png", "-n", "2"], "is one file"),
        (["--out", "exports/hand-made/manifest.json"], "is a file"),
    ):
        with pytest.raises(LdmkitError, match=message):
            invoke("cat", *arguments)


def test_words_cut_are_named_on_stderr(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle()
    result = CliRunner().invoke(generate, ["red cat on mat red cat"], catch_exceptions=False)
    assert result.stderr == "warning: the prompt is too long for the text encoder; cut off: 'red cat'\n"


def test_a_folder_that_is_no_bundle(work: Path) -> None:
    with pytest.raises(LdmkitError, match="is not a bundle"):
        invoke("cat", "--bundle", str(work))


def test_a_cold_process_leaves_torch_alone(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle()
    code = """
import sys
from ldmkit.cli.generate import generate
generate.main(["red cat", "--provider", "cpu"], standalone_mode=False)
barred = ("torch", "transformers", "accelerate", "onnx", "diffusers")
print([name for name in barred if name in sys.modules], "onnxruntime" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=work, check=False)
    assert result.stdout.splitlines()[-1] == "[] True", result.stderr
    assert result.stderr == ""

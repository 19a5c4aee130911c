"""`ldmkit generate`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ldmkit.cli import cli
from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle
from tests.runtime.command import invoke

MakeBundle = Callable[..., Path]


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


def test_a_grid_of_several_prompts_names_them_all(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle()
    (work / "list.txt").write_text("red cat\nmat\n\nred mat\n")
    drawn = json.loads(invoke("--prompts", "list.txt", "-n", "2", "--json"))
    assert Path(drawn["grid"]).name == "3-prompts-0-to-5-grid.png"
    with Image.open(drawn["grid"]) as sheet:
        assert sheet.text["prompt"] == "red cat\nmat\nred mat"  # type: ignore[attr-defined]
    assert drawn["prompt"] == "red cat\nmat\nred mat"


def test_one_file(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle()
    assert invoke("cat", "--out", "a.png").splitlines()[-1] == "a.png"
    for arguments, message in (
        (["--out", "a.png"], "exists and is not overwritten"),
        (["--out", "exports/hand-made/manifest.json"], "is a file"),
    ):
        with pytest.raises(LdmkitError, match=message):
            invoke("cat", *arguments)


@pytest.mark.parametrize(("ending", "kind"), [(".jpg", "JPEG"), (".jpeg", "JPEG"), (".webp", "WEBP")])
def test_one_file_of_another_format(make_bundle: MakeBundle, work: Path, ending: str, kind: str) -> None:
    make_bundle(prediction="flow")
    assert invoke("κατ", "--seed", "3", "--out", f"a{ending}").splitlines()[-1] == f"a{ending}"
    expected = Bundle.load("exports/hand-made").generate("κατ", seed=3)[0]
    with Image.open(f"a{ending}") as written:
        assert written.format == kind
        told = json.loads(written.getexif()[0x010E])  # ImageDescription, Exif 2.3
        assert (told["prompt"], told["seed"], told["sampler"]) == ("κατ", "3", "euler")
        if kind == "WEBP":
            assert written.convert("RGB").tobytes() == expected.tobytes()
        else:
            far = np.abs(np.asarray(written, dtype=int) - np.asarray(expected, dtype=int)).mean()
            assert far < 12


@pytest.mark.parametrize("name", ["a.bmp", "a.tif", "a.gif", "A.HEIC"])
def test_a_format_that_is_not_written_is_no_folder(make_bundle: MakeBundle, work: Path, name: str) -> None:
    make_bundle()
    with pytest.raises(LdmkitError, match=r"pictures are not written as .*; choose \.png, \.jpg"):
        invoke("cat", "--out", name)
    assert not (work / name).exists()
    (work / name).mkdir()
    assert invoke("cat", "--out", name).splitlines()[-1] == f"{name}/cat-0.png"  # a folder that is there is one


def test_the_same_seed_for_each_prompt(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle()
    given = CliRunner().invoke(
        cli, ["generate", "--prompts", "-", "--same-seed", "-n", "2", "--seed", "5", "--json"], input="red cat\n\nmat\n"
    )
    drawn = json.loads(given.stdout)
    seeds = [(each["prompt"], each["seed"]) for each in drawn["pictures"]]
    assert seeds == [("red cat", 5), ("red cat", 6), ("mat", 5), ("mat", 6)]
    assert Path(drawn["grid"]).name == "2-prompts-5-to-6-grid.png"


def test_words_cut_of_many_prompts_are_one_line(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle()
    lines = "".join(f"red cat on mat {word}\n" for word in ("a", "b", "c", "d", "e"))
    result = CliRunner().invoke(cli, ["generate", "--prompts", "-"], input=lines, catch_exceptions=False)
    told = "warning: 5 prompts are too long for the text encoder; cut off: 'a', 'b', 'c' and 2 more\n"
    assert result.stderr == told


def test_prompts_from_a_file(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle()
    (work / "list.txt").write_bytes("\ufeffred cat\r\n\r\n  mat  \n".encode())
    drawn = json.loads(invoke("--prompts", "list.txt", "-n", "2", "--seed", "5", "--json"))
    assert [(each["prompt"], each["seed"]) for each in drawn["pictures"]] == [
        ("red cat", 5),
        ("red cat", 6),
        ("mat", 7),
        ("mat", 8),
    ]
    assert Path(drawn["pictures"][3]["path"]).name == "mat-8.png"
    assert Path(drawn["grid"]).is_file()
    (work / "empty.txt").write_text("\n \n")
    (work / "latin.txt").write_bytes(b"chat \xe9")
    for arguments, message in (
        (["--prompts", "empty.txt"], "empty.txt: holds no prompt"),
        (["--prompts", "latin.txt"], "latin.txt: is not text in UTF-8"),
        (["--prompts", "none.txt"], "none.txt: cannot be read"),
        (["--prompts", "list.txt", "--out", "one.png"], "is one file"),
    ):
        with pytest.raises(LdmkitError, match=message):
            invoke(*arguments)


def test_a_way_between_seeds_is_a_strip_and_an_animation(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle(prediction="flow")
    drawn = json.loads(invoke("--seed", "2", "--to-seed", "4", "--interpolate", "5", "--json"))
    frames = Bundle.load("exports/hand-made").interpolate(seeds=(2, 4), frames=5)
    with Image.open(drawn["strip"]) as strip:
        assert strip.size == (5 * 2 + 4 * 2, 2)  # 2 pixels each, 2 apart
        for k, frame in enumerate(frames):
            assert strip.crop((4 * k, 0, 4 * k + 2, 2)).tobytes() == frame.tobytes()
        assert strip.text["to_seed"] == "4"  # type: ignore[attr-defined]
    with Image.open(drawn["gif"]) as gif:
        assert gif.n_frames == 5  # type: ignore[attr-defined]
        assert gif.info["loop"] == 0
        assert json.loads(gif.info["comment"])["frames"] == "5"
        for k, frame in enumerate(frames):
            gif.seek(k)
            assert gif.convert("RGB").tobytes() == frame.tobytes()  # four colours need no palette of their own
    assert invoke("--to-seed", "4", "--interpolate", "2", "--out", "way.gif").splitlines()[1:] == ["way.gif"]
    assert "cat-0-to-mat-strip.png" in invoke("cat", "--to-prompt", "mat", "--interpolate", "3")


def test_options_of_the_sampler(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle(prediction="flow")
    drawn = json.loads(invoke("--sampler", "ddim", "--sampler-option", "eta=0.5", "--json"))
    expected = Bundle.load("exports/hand-made").generate(sampler={"use": "ddim", "eta": 0.5})[0]
    with Image.open(drawn["pictures"][0]["path"]) as written:
        assert written.tobytes() == expected.tobytes()
        assert json.loads(written.text["sampler"]) == {  # type: ignore[attr-defined]
            "use": "ddim",
            "eta": 0.5,
            "steps": 4,
        }
    invoke("--sampler", "unipc", "--sampler-option", "spacing=karras")


def test_variations(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle(prediction="flow")
    drawn = json.loads(invoke("--seed", "3", "--variations", "2", "--amount", "0.5", "--json"))
    names = [Path(each["path"]).name for each in drawn["pictures"]]
    assert names == ["unconditional-3.png", "unconditional-3-to-4.png", "unconditional-3-to-5.png"]
    expected = Bundle.load("exports/hand-made").vary(seed=3, n=2, amount=0.5)
    for each, picture in zip(drawn["pictures"], expected, strict=True):
        with Image.open(each["path"]) as written:
            assert written.tobytes() == picture.tobytes()


def test_a_picture_to_start_from(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle(encoder=True, prediction="flow")
    original = Image.new("RGB", (6, 4), (10, 200, 30))
    original.save("start.bmp")
    drawn = json.loads(invoke("--img2img", "start.bmp", "--strength", "0.5", "--json"))
    expected = Bundle.load("exports/hand-made").generate(init_image=original, strength=0.5)[0]
    with Image.open(drawn["pictures"][0]["path"]) as written:
        assert written.tobytes() == expected.tobytes()
        assert (written.text["img2img"], written.text["strength"]) == ("start.bmp", "0.5")  # type: ignore[attr-defined]
    (work / "no.png").write_bytes(b"no picture")
    for arguments, message in (
        (["--img2img", "no.png"], "no.png: not a JPEG"),
        (["--img2img", "missing.png"], "missing.png: cannot be read"),
    ):
        with pytest.raises(LdmkitError, match=message):
            invoke(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strength", "0.5"], "--strength requires --img2img"),
        (["--to-seed", "5"], "--to-seed requires --interpolate"),
        (["--to-prompt", "mat"], "--to-prompt requires --interpolate"),
        (["--amount", "0.5"], "--amount requires --variations"),
        (["--interpolate", "4", "--variations", "2"], "--variations and --interpolate do not go together"),
        (["--interpolate", "4", "-n", "2"], "--interpolate and -n do not go together"),
        (["--prompts", "list.txt"], "PROMPT and --prompts do not go together"),
        (["--out", "b.png", "-n", "2"], "--out b.png is one file"),
        (["--backend", "torch"], "--backend torch and --run RUN go together"),
        (["--run", "runs/x"], "--backend torch and --run RUN go together"),
        (["--backend", "torch", "--run", "runs/x", "--provider", "cpu"], "--backend torch draws without it"),
        (["--backend", "torch", "--run", "runs/x", "--bundle", "b"], "--run and --bundle do not go together"),
        (["--interpolate", "4"], "nothing between one prompt and itself"),
        (["--img2img", "start.png", "--strength", "0"], "strength is 0"),
        (["--variations", "2", "--amount", "1.5"], "amount is 1.5"),
        (["--steps", "0"], "steps is 0"),
        (["-n", "0"], "n is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--guidance", "nan"], "guidance_scale is nan"),
        (["--sampler-option", "eta"], "eta: it takes KEY=VALUE"),
        (["--sampler-option", "steps=3"], "it takes KEY=VALUE"),
        (["--provider", "gpu"], "'gpu' is not one of 'auto', 'cpu', 'cuda'"),
        *((["--size", size], "is not a width and a height") for size in ("4", "4x", "x4", "-4x4", "4x4x4", "³x4")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_code_2(make_bundle: MakeBundle, work: Path, arguments: list[str], message: str) -> None:
    make_bundle()
    Image.new("RGB", (2, 2)).save("start.png")
    result = CliRunner().invoke(cli, ["generate", "cat", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (work / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "torch", "--run", "runs/x"], "runs/x: no such folder"),
        (["--sampler", "ddim", "--sampler-option", "eta=2"], "eta = 2 is not allowed"),
        (["--sampler", "dpmpp_2m", "--sampler-option", "spacing=karas"], "spacing"),
        (["--size", "4x4"], "size is 4x4; bundle .* draws 2x2 only"),
        (["--negative", "mat"], "no effect at guidance_scale 1"),
    ],
)
def test_what_does_not_fit_the_bundle(make_bundle: MakeBundle, work: Path, arguments: list[str], message: str) -> None:
    make_bundle()
    with pytest.raises(LdmkitError, match=message):
        invoke("cat", *arguments)
    assert not (work / "outputs").exists()


def test_words_cut_are_named_on_stderr(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle()
    result = CliRunner().invoke(cli, ["generate", "red cat on mat red cat"], catch_exceptions=False)
    assert result.stderr == "warning: the prompt is too long for the text encoder; cut off: 'red cat'\n"


def test_a_folder_that_is_no_bundle(work: Path) -> None:
    with pytest.raises(LdmkitError, match="is not a bundle"):
        invoke("cat", "--bundle", str(work))


def test_a_cold_process_leaves_torch_alone(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle()
    code = """
import sys
from ldmkit.cli import cli
cli.main(["generate", "red cat", "--provider", "cpu"], standalone_mode=False)
barred = ("torch", "transformers", "accelerate", "onnx", "diffusers")
print([name for name in barred if name in sys.modules], "onnxruntime" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=work, check=False)
    assert result.stdout.splitlines()[-1] == "[] True", result.stderr
    assert result.stderr == ""

"""`ldmkit eval` and `ldmkit compare`, on a trained run and on the bundle that ships."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import efficientnet_b0

from ldmkit.cli import main
from ldmkit.components.registry import Registry
from ldmkit.data.toy_cats import make_toy_cats
from ldmkit.errors import LdmkitError
from ldmkit.evaluation.features import load_features
from ldmkit.evaluation.subject import Subject
from ldmkit.run.folder import recipe_of_run
from ldmkit.run.networks import load_autoencoder
from ldmkit.runtime.generate import to_pictures

SHIPPED = Path(__file__).parents[2] / "exports" / "toy-cats"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["ldmkit", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return run


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "cats"
    make_toy_cats(folder, num_pictures=48, size=64, seed=7)
    return folder


def test_the_shipped_bundle(real: Path, command: Any, tmp_path: Path) -> None:
    options = ("--reference", real, "--num", 20, "--out", tmp_path, "--json")
    code, out, _ = command("eval", SHIPPED, *options)
    assert code == 0
    found = json.loads(out)
    assert set(found["rows"]) == {"half of the real ones", "unet", "t2i"}
    floor, drawn = found["rows"]["half of the real ones"], found["rows"]["t2i"]
    # Real pictures against real ones are within their own error of 0; what is drawn, 64 pixels of soft cat, is not.
    assert abs(floor["kid"]) < 3 * floor["kid_standard_error"]
    assert drawn["kid"] > 3 * drawn["kid_standard_error"]
    assert floor["coverage"] > drawn["coverage"]
    # The bundle draws its own examples right nearly always; four of the eight name a fur, five a background.
    shares = found["prompts_right"]
    assert {thing: share["num"] for thing, share in shares.items()} == {"subject": 11, "background": 13}
    assert min(share["right"] for share in shares.values()) >= 0.8
    with Image.open(found["sheets"]["t2i"]) as sheet:
        assert sheet.size == (8 * 66 - 2, 2 * 66 - 2)


def test_drawn_otherwise_than_the_model_says(real: Path, command: Any, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a black cat\n")
    options = ("--reference", real, "--num", 20, "--out", tmp_path, "--prompts", prompts)
    code, _, err = command("eval", SHIPPED, *options, "--steps", 1, "--guidance", 1, "--sampler", "euler", "--seed", 5)
    assert code == 0, err
    code, _, err = command(
        "generate",
        "a black cat",
        "--bundle",
        SHIPPED,
        "--steps",
        1,
        "--guidance",
        1,
        "--seed",
        5,
        "--sampler",
        "euler",
        "-n",
        20,
        "--out",
        tmp_path / "drawn",
    )
    assert code == 0, err
    drawn = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "drawn").glob("*.png"))]
    best = np.asarray(Image.open(tmp_path / "eval-toy-cats-t2i.png"))[:64, :64]
    assert any(np.array_equal(best, picture) for picture in drawn)
    code, _, err = command("eval", SHIPPED, *options, "--sampler", "ddpmm")
    assert code == 1
    assert "ddpmm" in err
    assert "there are ddim" in err


def test_a_run_is_judged_by_its_held_out_pictures(trained: Any, command: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(trained.folder)
    code, _, err = command("eval", trained.run, "--num", 20, "--out", tmp_path)
    assert code == 1
    assert "at least 20 are needed; give --reference DIR" in err
    code, out, _ = command("eval", trained.run, "--num", 20, "--out", tmp_path, "--reference", "pictures", "--json")
    assert code == 0
    found = json.loads(out)
    assert set(found["rows"]) == {"training pictures", "reconstructed training pictures", "unet", "t2i"}
    assert set(found["copies"]) == {"unet", "t2i"}
    with Image.open(found["sheets"]["unet"]) as sheet:
        assert sheet.size == (8 * 18 - 2, 4 * 18 - 2)


def test_reconstructions_are_those_of_the_autoencoder(trained: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(trained.folder)
    recipe, registry = recipe_of_run(trained.run), Registry.load(kinds=("captioner", "text_encoder", "sampler"))
    subject = Subject.of_run(trained.run, recipe, registry, "efficientnet-lite0")
    seen: list[Image.Image] = []
    monkeypatch.setattr(subject, "_features", lambda pictures: seen.extend(pictures))
    made = subject.reconstructions(4, held_out=True)  # too few are held out
    assert made is not None
    assert made[0] == "reconstructed training pictures"
    real: list[Image.Image] = seen[:]
    seen.clear()
    subject.floor(np.zeros((1, 1)), 4)
    autoencoder = load_autoencoder(recipe, trained.run / "vae")
    for picture, original in zip(real, seen, strict=True):
        x = torch.from_numpy(np.asarray(original).transpose(2, 0, 1)[None] / np.float32(127.5) - 1)
        with torch.inference_mode():
            expected = to_pictures(autoencoder.decode(autoencoder.encode(x).mean).numpy())[0]
        difference = np.asarray(picture).astype(int) - np.asarray(expected)
        assert np.abs(difference).max() <= 2  # latents are stored in half precision


def test_a_model_compared_with_itself(real: Path, command: Any) -> None:
    code, out, _ = command("compare", SHIPPED, SHIPPED, "--reference", real, "--num", 20, "--json")
    assert code == 0
    for row in json.loads(out).values():
        assert row["difference"] == 0
        assert row["standard_error"] == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--num", 20), 1, "pictures held out: 0 pictures to judge by"),
        (("--num", 5), 2, "5 is not in the range x>=20"),
        (("--features", "vgg"), 1, "choose one of efficientnet-lite0, inception, dinov2"),
    ],
)
def test_mistakes(words: tuple[Any, ...], code: int, message: str, command: Any, tmp_path: Path) -> None:
    found, _, err = command("eval", SHIPPED, "--out", tmp_path, *words)
    assert (found, message in err) == (code, True), err


def test_features_tell_kinds_of_pictures_apart() -> None:
    """EfficientNet-Lite0 with its published weights: 1280 features, two blurs of a picture nearer than two pictures."""
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)) for _ in range(2)]
    x = load_features("efficientnet-lite0", torch.device("cpu"))([*noise, noise[0].resize((32, 32))])
    assert x.shape == (3, efficientnet_b0().classifier[1].in_features)
    assert np.linalg.norm(x[0] - x[2]) < np.linalg.norm(x[0] - x[1])


def test_features_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(LdmkitError, match=r"pip install 'ldmkit\[eval\]'"):
        load_features("efficientnet-lite0", torch.device("cpu"))

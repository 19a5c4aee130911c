"""What a change makes stale, what a second run does, and what happens to the old parts."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from ldmkit.cli.export import onnx
from ldmkit.errors import LdmkitError
from ldmkit.run.folder import Part, newest_finished_run, recipe_of_run
from ldmkit.run.parts import PARTS, PartSpec, stage_names
from tests.conftest import new_workshop

ALL = {"captions", "vae", "latents", "text", "unet", "t2i", "bundle"}
FROM_VAE = ALL - {"captions", "text"}
FROM_LATENTS = FROM_VAE - {"vae"}
FROM_DIFFUSION = {"unet", "t2i", "bundle"}
PART_OF = {"train-vae": "vae", "train-unet": "unet", "train-t2i": "t2i"}
FROM_TEXT = {"text", "t2i", "bundle"}
QUALITY = {
    "held_out": {"num_pictures": 4, "psnr": 20.0, "ssim": 0.75},
    "channels": [
        {"mean": 0.5, "std": 2.0, "kurtosis": 1.5, "signal": 0.9},
        {"mean": 0.0, "std": 1.0, "kurtosis": -0.5, "signal": 0.01},
    ],
}


def fake(spec: PartSpec) -> Callable[[Any], dict[str, Any]]:
    """Makes a part at no cost: only the files that the pipeline itself looks at."""

    def make(workspace: Any) -> dict[str, Any]:
        part = workspace.parts[spec.name]
        if spec.name == "bundle":
            part.bundle.mkdir(parents=True, exist_ok=True)
            (part.bundle / "manifest.json").write_text(json.dumps({"files": {}, "fingerprint": part.fingerprint}))
            return {}
        (part.folder / "made").write_text(spec.name)
        if spec.name == "captions":
            caption = workspace.recipe.caption.use
            rows = [json.dumps({"file": entry.key, "caption": caption}) for entry in workspace.index.entries]
            (part.folder / "captions.jsonl").write_text("\n".join(rows))
        if spec.name == "latents":
            (part.folder / "quality.json").write_text(json.dumps(QUALITY))
        return {}

    return make


@pytest.fixture
def made(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The workshop with every part made, by fakes."""
    monkeypatch.setattr(PartSpec, "load", fake)
    workshop.pipeline().run()
    return workshop


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As `made`, once for all. Read only."""
    workshop = new_workshop(tmp_path_factory.mktemp("looked-at"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartSpec, "load", fake)
        workshop.pipeline().run()
    return workshop


def not_done(workshop: Any, *overrides: str) -> set[str]:
    return {name for name, status in workshop.pipeline(*overrides).states().items() if status.state != "done"}


@pytest.mark.parametrize(
    ("override", "stale"),
    [
        ("seed=1", FROM_VAE),
        ("data.size=24", FROM_VAE),
        ("data.crop='squash'", FROM_VAE),
        ("data.flip=false", FROM_VAE),
        ("data.held_out=0.5", FROM_VAE),
        ("data.num_pictures=15", ALL),
        ("data.num_workers=1", set()),
        ("data.max_bad=0.5", set()),
        # Its captions come first; whether anything behind them changes is seen when they are there.
        ("caption.use='filename'", {"captions"} | FROM_TEXT),
        ("caption.keep_existing=false", {"captions"} | FROM_TEXT),
        ("caption.column='title'", {"captions"} | FROM_TEXT),
        ("caption.missing='skip'", FROM_TEXT),
        ("text.layers=2", FROM_TEXT),
        ("vae.learning_rate=0.5", FROM_VAE),
        ("vae.channels=[8,8]", FROM_VAE),
        ("vae.precision='bf16'", FROM_VAE),
        ("vae.losses.kl.weight=0.5", FROM_VAE),
        ("vae.losses.kl.reduction='mean'", FROM_VAE),
        ("vae.losses.mse.use='mse'", FROM_VAE),
        ("vae.losses.gan.start_epoch=1", FROM_VAE),
        ("latents.dtype='float16'", FROM_LATENTS),
        ("latents.draw='mean'", FROM_DIFFUSION),
        ("latents.normalize=false", FROM_DIFFUSION),
        ("diffusion.schedule='cosine'", FROM_DIFFUSION),
        ("diffusion.timesteps='uniform'", FROM_DIFFUSION),
        ("unet.steps=9", {"unet", "bundle"}),
        ("unet.epochs=1", {"unet", "bundle"}),
        ("t2i.caption_dropout=0.3", {"t2i", "bundle"}),
        ("t2i.mask_padding=false", {"t2i", "bundle"}),  # the text as well where the encoder is frozen
        ("gate.min_psnr=30", set()),
        ("gate.max_latent_kurtosis=30", set()),
        ("export.opset=19", {"bundle"}),
        ("export.tolerance=1e-3", {"bundle"}),
        ("export.precision='fp16'", {"bundle"}),
        ("export.encoder=true", {"bundle"}),
        ("export.precision='fp32'", set()),  # as before the key was known
        ("export.encoder=false", set()),
        ("sampler.use='ddpm'", set()),
        ("sampler.steps=7", set()),
        ("sampler.eta=0.5", set()),
        ("sampler.guidance_scale=7.0", set()),
        *((f"{s}.{key}=7", set()) for s in ("vae", "unet", "t2i") for key in ("log_every", "checkpoint_every")),
        *((f"vae.{key}=7", set()) for key in ("eval_every", "sample_every", "keep_checkpoints")),
    ],
)
def test_what_a_change_makes_stale(looked_at: Any, override: str, stale: set[str]) -> None:
    assert not_done(looked_at) == set()
    assert not_done(looked_at, override) == stale


def test_reasons(looked_at: Any) -> None:
    states = looked_at.pipeline("vae.learning_rate=0.5", "t2i.steps=9").states()
    assert states["vae"].reason == "vae.learning_rate: 0.01 -> 0.5"
    assert states["latents"].reason == "vae changed"
    assert "t2i.steps: 8 -> 9" in states["t2i"].reason
    assert states["captions"].reason == ""


def test_edited_picture(made: Any) -> None:
    path = made.folder / "pictures" / "03.png"
    picture = Image.open(path).convert("RGB")
    picture.putpixel((2, 2), (1, 2, 3))
    picture.save(path)
    assert not_done(made) == ALL
    assert made.pipeline().states()["vae"].reason == "pictures changed"


def test_touched_picture_is_the_same_picture(made: Any) -> None:
    os.utime(made.folder / "pictures" / "03.png", ns=(0, 0))
    assert not_done(made) == set()


def test_removed_and_added_picture(made: Any) -> None:
    path = made.folder / "pictures" / "03.png"
    path.rename(path.with_name("99.png"))  # a name is a picture's identity: captions go by it
    assert not_done(made) == ALL
    path.with_name("99.png").rename(path)
    assert not_done(made) == set()


def test_edited_caption(made: Any) -> None:
    (made.folder / "pictures" / "03.txt").write_text("a cat in a hat")
    assert not_done(made) == {"captions"} | FROM_TEXT


def test_new_captions_that_say_the_same_change_nothing_behind_them(made: Any) -> None:
    """A fake writes the captioner's name as each caption, so other options give the same captions."""
    made.pipeline("caption.keep_existing=false").run(("caption",))
    assert not_done(made, "caption.keep_existing=false") == set()
    made.pipeline("caption.use='filename'").run(("caption",))
    assert not_done(made, "caption.use='filename'") == FROM_TEXT


def test_stale_parts_are_set_aside(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (made.run / "vae" / "made").write_text("by hand")
    pipeline = made.pipeline("vae.steps=9")
    pipeline.reporter.quiet = False
    pipeline.run()
    lines = capsys.readouterr().out.splitlines()
    assert not_done(made, "vae.steps=9") == set()
    assert (made.run / "stale" / "vae-1" / "made").read_text() == "by hand"
    assert sorted(p.name for p in (made.run / "stale").iterdir() if p.name != "bundle-1") == [
        "latents-1",
        "t2i-1",
        "unet-1",
        "vae-1",
    ]
    begun = [line.split(": out of date (")[0] for line in lines if "out of date" in line]
    assert begun == ["train-vae", "encode latents", "train-unet", "train-t2i", "export"]
    assert "train-vae: out of date (vae.steps: 8 -> 9); the old one is kept in" in "\n".join(lines)


def test_only_what_is_missing_is_made(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(made.run / "unet")
    pipeline = made.pipeline()
    pipeline.reporter.quiet = False
    pipeline.run()
    told = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "not made yet" in line]
    assert told == ["train-unet"]


def test_again(made: Any) -> None:
    made.pipeline().run(("train-unet",), forced="train-unet")
    assert (made.run / "stale" / "unet-1" / "made").read_text() == "unet"
    assert not_done(made) == set()


@pytest.mark.parametrize(
    ("stage", "behind"), [("train-vae", FROM_LATENTS), ("train-unet", {"bundle"}), ("train-t2i", {"bundle"})]
)
def test_autoencoder_trained_again(
    stage: str, behind: set[str], workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same inputs, but to other bits, as on another machine: what was made of the old one is stale."""
    weights = b"1"

    def trained(spec: PartSpec) -> Callable[[Any], dict[str, Any]]:
        def with_weights(workspace: Any) -> dict[str, Any]:
            if spec.trained:
                (workspace.folder(spec.name) / "model.safetensors").write_bytes(weights)
            return fake(spec)(workspace)

        return with_weights

    monkeypatch.setattr(PartSpec, "load", trained)
    workshop.pipeline().run()
    assert not_done(workshop) == set()
    workshop.pipeline().run((stage,), forced=stage)
    assert not_done(workshop) == set()  # the very same weights
    weights = b"2"
    workshop.pipeline().run((stage,), forced=stage)
    assert not_done(workshop) == behind
    reasons = {status.reason for status in workshop.pipeline().states().values() if status.state == "stale"}
    assert reasons == {f"{PART_OF[stage]} trained again"}
    workshop.pipeline().run()
    assert not_done(workshop) == set()
    record = workshop.run / "latents" / "record.json"
    old = json.loads(record.read_text())
    for key in ("made_of", "files", "seal"):  # of a version that did not know of them
        del old[key]
    record.write_text(json.dumps(old))
    assert not_done(workshop) == set()


def test_bundle_elsewhere_and_bundle_removed(made: Any) -> None:
    made.pipeline().run(("export",), forced="export", bundle_dir=made.folder / "elsewhere")
    assert (made.folder / "elsewhere" / "manifest.json").is_file()
    assert not_done(made) == set()
    shutil.rmtree(made.folder / "exports")
    assert not_done(made) == {"bundle"}


def test_precision_asked_for_once_is_not_the_runs(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.folder)
    recipe = (made.run / "recipe.json").read_bytes()
    left = CliRunner().invoke(onnx, ["tiny", "--precision", "fp16", "--with-encoder"], catch_exceptions=False)
    assert left.exit_code == 0
    record = json.loads((made.run / "bundle" / "record.json").read_text())
    assert record["inputs"]["export"]["precision"] == "fp16"
    assert (made.run / "recipe.json").read_bytes() == recipe
    made.pipeline("export.precision='fp16'").run(("export",))
    assert recipe_of_run(made.run).export.precision == "fp16"


def told(workshop: Any, capsys: pytest.CaptureFixture[str], stages: Any, *overrides: str, **options: Any) -> list[str]:
    """Lines of a run of these stages."""
    capsys.readouterr()
    pipeline = workshop.pipeline(*overrides)
    pipeline.reporter.quiet = False
    pipeline.run(stages, **options)
    return capsys.readouterr().out.splitlines()


def test_near_copies_across_the_split_are_named_before_anything_is_made(
    made: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (made.folder / "pictures").glob("*.png"):
        Image.open(file).convert("RGB").resize((90, 90)).save(file.with_suffix(".bmp"))
    lines = told(made, capsys, ("caption", "train-vae"))
    assert [line.split()[0] for line in lines if "look like one that trains" in line] == ["data:"]
    assert not any("look like" in line for line in told(made, capsys, ("caption", "train-vae")))  # nothing is made


def test_gate_is_shown_once_before_the_first_unet(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(made.run / "t2i")
    lines = told(made, capsys, stage_names(), "unet.steps=9", "gate.min_psnr=19")
    shown = [line.split()[0] for line in lines]
    assert shown.count("gate:") == 1
    assert shown.index("gate:") < shown.index("train-unet:") < shown.index("train-t2i:")
    assert "psnr 20 at least 19 pass" in [" ".join(line.split()) for line in lines]
    assert not any("gate" in line for line in told(made, capsys, ("train-unet",), "unet.steps=9"))  # nothing to train
    assert any("gate" in line for line in told(made, capsys, ("train-t2i",), "unet.steps=9", "t2i.steps=9"))


@pytest.mark.parametrize("stage", ["train-unet", "train-t2i"])
def test_gate_stops_what_is_behind_it(stage: str, made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    override = f"{PART_OF[stage]}.steps=9"
    with pytest.raises(LdmkitError, match=r"psnr is 20, \[gate\] min_psnr = 21\. .*--force"):
        told(made, capsys, (stage,), override, "gate.min_psnr=21")
    assert "psnr 20 at least 21 fail" in [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert (made.run / PART_OF[stage] / "made").exists()  # not set aside for one that may not begin
    with pytest.raises(LdmkitError, match=r"signal of channel 1 is 0\.01, \[gate\] min_latent_signal = 0\.05"):
        told(made, capsys, (stage,), override, "gate.min_latent_signal=0.05")
    lines = told(made, capsys, (stage,), override, "gate.min_psnr=21", ignore_gate=True)
    assert "psnr 20 at least 21 warn" in [" ".join(line.split()) for line in lines]
    assert not any("fail" in line for line in lines)
    assert not_done(made, override) == {PART_OF[stage], "bundle"} - {PART_OF[stage]}
    made.pipeline("gate.min_psnr=21", "vae.steps=9").run(("train-vae", "encode"))  # before it nobody is stopped


@pytest.mark.parametrize(
    ("stage", "needed"),
    [("encode", "train-vae"), ("train-unet", "train-vae"), ("train-t2i", "train-vae"), ("export", "train-vae")],
)
def test_stage_whose_inputs_are_not_there(workshop: Any, stage: str, needed: str) -> None:
    with pytest.raises(LdmkitError, match=rf"runs/tiny/vae: missing.* run `ldmkit {needed} RECIPE`"):
        workshop.pipeline().run((stage,))


def test_stage_whose_input_is_stale(made: Any) -> None:
    with pytest.raises(LdmkitError, match=r"vae: stale \(vae\.steps: 8 -> 9\), and latents is made from it"):
        made.pipeline("vae.steps=9").run(("encode",))


def test_second_train_does_nothing_without_torch(made: Any) -> None:
    code = (
        "import sys\nfrom ldmkit.cli import main\ntry:\n    main()\nexcept SystemExit as e:\n    assert not e.code\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'onnxruntime', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    repository = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(repository), str(repository / "plugins")])}
    overrides = [f"export.path='{made.folder / 'exports'}'", f"data.path='{made.folder / 'pictures'}'"]
    arguments = ["train", "tiny.toml", *(x for o in overrides for x in ("--set", o))]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=made.folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tiny: everything is up to date; nothing to do\n"


def test_plan_without_pictures_touches_nothing(workshop: Any) -> None:
    shutil.rmtree(workshop.folder / "pictures")
    states = workshop.pipeline().states()
    assert list(states) == list(PARTS)
    assert {status.state for status in states.values()} == {"missing"}
    assert not (workshop.folder / "runs").exists()
    with pytest.raises(LdmkitError, match=r"data\.path"):
        workshop.pipeline().run()


def test_recipe_of_run(made: Any) -> None:
    assert recipe_of_run(made.run) == made.pipeline().recipe
    with pytest.raises(LdmkitError, match="not a run"):
        recipe_of_run(made.folder)
    (made.run / "recipe.json").write_text("{}")
    with pytest.raises(LdmkitError, match="damaged"):
        recipe_of_run(made.run)


def test_newest_finished_run(tmp_path: Path) -> None:
    with pytest.raises(LdmkitError, match="no finished run"):
        newest_finished_run(tmp_path)
    for i, name in enumerate("abcd"):
        part = Part(tmp_path / name / "t2i", "t2i", {})
        part.begin()
        if name in "abd":
            part.finish(1)
        if name == "d":
            (part.folder / "record.json").write_text("{")
        os.utime(part.folder / "record.json", (i, i))
    assert newest_finished_run(tmp_path) == tmp_path / "b"

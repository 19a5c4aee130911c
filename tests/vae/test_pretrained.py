"""A run whose autoencoder exists already, and that uses no text: from pictures to a bundle, and what goes stale."""

import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomlkit
from safetensors.torch import load_file

from ldmkit.errors import LdmkitError
from ldmkit.run.pretrained import find_source
from ldmkit.runtime.bundle import Bundle


@pytest.fixture(scope="module")
def shared(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A workshop of the same pictures, unconditional, on the autoencoder of the run `trained`; run to its end."""
    workshop = type(trained)(tmp_path_factory.mktemp("shared"))
    shutil.copytree(trained.folder / "pictures", workshop.folder / "pictures", copy_function=shutil.copy2)
    recipe = tomllib.loads((trained.folder / "tiny.toml").read_text())
    losses = {name: loss for name, loss in recipe["vae"]["losses"].items() if name != "kl"}
    recipe["vae"] = {"pretrained": str(trained.run), "batch_size": 6, "precision": "fp32", "losses": losses}
    del recipe["t2i"]
    (workshop.folder / "tiny.toml").write_text(tomlkit.dumps(recipe))
    workshop.pipeline().run()
    return workshop


def latents(run: Path) -> np.ndarray:
    return np.load(run / "latents" / "mean.npy", allow_pickle=False)


def test_its_latents_are_those_of_the_run_that_it_names(shared: Any, trained: Any) -> None:
    np.testing.assert_array_equal(latents(shared.run), latents(trained.run))
    assert {path.name for path in shared.run.iterdir() if path.is_dir()} == {"vae", "latents", "unet", "bundle"}
    assert {status.state for status in shared.pipeline().states().values()} == {"done"}


def test_weights_that_only_its_quality_needs_are_missed_before_anything_is_encoded(shared: Any, tmp_path: Path) -> None:
    workshop = type(shared)(tmp_path / "copy")
    shutil.copytree(shared.folder, workshop.folder, ignore=shutil.ignore_patterns("latents", "unet", "bundle"))
    overrides = ("vae.losses.seen.use='lpips'", f"vae.losses.seen.backbone_weights='{tmp_path / 'gone.pth'}'")
    with pytest.raises(LdmkitError, match=r"backbone_weights: no such file: .*gone\.pth"):
        workshop.pipeline(*overrides).run(("encode",))
    assert not list(workshop.run.glob("latents/*.npy"))


def test_it_draws_without_a_prompt_alone(shared: Any) -> None:
    bundle = Bundle.load(shared.folder / "exports" / "tiny", provider="cpu")
    assert bundle.generate(seed=1)[0].size == (16, 16)
    with pytest.raises(LdmkitError, match="draws without a prompt only"):
        bundle.generate("a red cat")
    with pytest.raises(LdmkitError, match=r"recipe tiny has no \[t2i\]"):
        shared.pipeline().run(("train-t2i",))


def test_tuning_trains_the_decoder_alone_and_leaves_the_networks_up_to_date(
    shared: Any, tmp_path: Path, trained: Any
) -> None:
    workshop = type(shared)(tmp_path / "copy")
    shutil.copytree(shared.folder, workshop.folder, copy_function=shutil.copy2)
    tuning = ("vae.tune_decoder_steps=6", "vae.learning_rate=1e-2", "vae.losses.gan.start_step=3")
    states = workshop.pipeline(*tuning).states()
    assert {name: status.state for name, status in states.items()} == {
        "vae": "stale",
        "latents": "done",
        "unet": "done",
        "bundle": "stale",
    }
    workshop.pipeline(*tuning).run(("train-vae",))
    before = load_file(trained.run / "vae" / "ema.safetensors")
    for name in ("model", "ema"):
        after = load_file(workshop.run / "vae" / f"{name}.safetensors")
        same = {key for key, value in before.items() if (value == after[key]).all()}
        assert {key for key in before if key.startswith("encoder.")} <= same
        assert "decoder.conv_out.weight" not in same
    states = workshop.pipeline(*tuning).states()
    assert {name for name, status in states.items() if status.state == "done"} == {"vae", "latents", "unet"}


def test_the_copy_serves_where_the_original_is_gone(shared: Any, tmp_path: Path) -> None:
    workshop = type(shared)(tmp_path / "copy")
    shutil.copytree(shared.folder, workshop.folder, copy_function=shutil.copy2)
    recipe = workshop.folder / "tiny.toml"
    gone = str(tmp_path / "gone")
    shutil.copytree(tomllib.loads(recipe.read_text())["vae"]["pretrained"], gone)
    named = f"vae.pretrained='{gone}'"
    workshop.pipeline(named, "gate.min_psnr=0").run(("train-vae",), forced="train-vae")
    shutil.rmtree(gone)
    assert workshop.pipeline(named).states()["vae"].state == "done"
    with pytest.raises(LdmkitError, match="no such folder"):
        workshop.pipeline(f"vae.pretrained='{tmp_path / 'never'}'").states()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("vae.steps=5", "steps must be left out where the autoencoder is pretrained"),
        ("vae.latent_channels=8", "latent_channels must be left out"),
        ("vae.pretrained='hub:owner'", "must be hub:OWNER/NAME"),
        ("vae.pretrained=''", "exactly one of the keys steps and epochs"),
    ],
)
def test_keys_that_do_not_fit(shared: Any, override: str, said: str) -> None:
    with pytest.raises(LdmkitError, match=said):
        shared.pipeline(override)


def test_sizes_are_checked_against_the_autoencoder(shared: Any, tmp_path: Path) -> None:
    workshop = type(shared)(tmp_path / "copy")
    shutil.copytree(shared.folder, workshop.folder, copy_function=shutil.copy2)
    with pytest.raises(LdmkitError, match="size = 15 must be a multiple of 2, by which the pretrained autoencoder"):
        workshop.pipeline("data.size=15").run(("train-vae",), forced="train-vae")


def test_the_hubs_commit_is_known_although_the_recipe_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the hub's cache as its client lays it out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--owner--tiny", "0123456789abcdef0123456789abcdef01234567"
    (snapshot := repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    (snapshot / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    assert find_source("hub:owner/tiny").commit == commit
    assert find_source(str(snapshot)).commit is None

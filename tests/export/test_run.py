"""A run's bundle holds that run's networks: each graph against the weights on disk."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer

from ldmkit.cli.export import torch_backend
from ldmkit.components.registry import Registry
from ldmkit.data.pictures import scan
from ldmkit.errors import LdmkitError
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.unet import UNet
from ldmkit.run.folder import recipe_of_run
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.generate import draw
from ldmkit.runtime.request import DrawRequest, each_prompt
from ldmkit.runtime.settings import resolve

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exported(trained: Any, processes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a copy of the trained workshop where `train` made what was missing: the bundle."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(trained.folder, folder, dirs_exist_ok=True)
    code, output = processes.run(folder, ("train", "tiny.toml"), ("train", "tiny.toml"))
    assert code == 0, output
    begun = [line for line in output.splitlines() if "not made yet" in line]
    assert begun == ["export: not made yet"]
    assert output.endswith("tiny: everything is up to date; nothing to do\n")
    return folder


def session(exported: Path, name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        exported / "exports" / "tiny" / f"{name}.onnx", providers=["CPUExecutionProvider"]
    )


def same(found: np.ndarray, expected: torch.Tensor) -> None:
    assert float(expected.std()) > 1e-3
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


@torch.no_grad()
def test_graphs(exported: Path) -> None:
    run = exported / "runs" / "tiny"
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((3, 2, 8, 8), dtype=np.float32)

    autoencoder = AutoencoderKL((4, 8), latent_channels=2, num_res_blocks=1, norm_groups=4).eval()
    autoencoder.load_state_dict(load_file(run / "vae" / "ema.safetensors"))
    statistics = json.loads((run / "latents" / "statistics.json").read_text())
    mean, std = (torch.tensor(statistics[key]).reshape(1, 2, 1, 1) for key in ("mean", "std"))
    same(
        session(exported, "vae_decoder").run(None, {"latents": latents})[0],
        autoencoder.decode(torch.from_numpy(latents) * std + mean),
    )

    options: dict[str, Any] = {"in_channels": 2, "channels": (8, 8), "num_res_blocks": 1, "attention_levels": (1,)}
    options |= {"time_dim": 8, "norm_groups": 4}
    unet = UNet(**options).eval()
    unet.load_state_dict(load_file(run / "unet" / "ema.safetensors"))
    t = np.array([0.0, 300.5, 999.0], np.float32)
    inputs = {"x_t": latents, "t": t}
    same(session(exported, "unet").run(None, inputs)[0], unet(torch.from_numpy(latents), torch.from_numpy(t)))

    tokenizer = Tokenizer.from_file(str(exported / "exports" / "tiny" / "tokenizer.json"))
    encodings = tokenizer.encode_batch(["a red cat", "", "two cats on a mat"])
    ids, mask = np.array([e.ids for e in encodings]), np.array([e.attention_mask for e in encodings])
    context = session(exported, "text_encoder").run(None, {"ids": ids, "mask": mask})[0]
    unet_t2i = UNet(**options, context_dim=8, num_heads=2).eval()
    weights = load_file(run / "t2i" / "ema.safetensors")
    unet_t2i.load_state_dict({k.removeprefix("unet."): v for k, v in weights.items() if k.startswith("unet.")})
    encoder = Registry.load().build(
        "text_encoder", {"use": "transformer", "width": 8, "layers": 1, "heads": 2, "max_tokens": 16}, where="[text]"
    )
    module = encoder.load_module(tokenizer).eval()
    prefix = "text_encoder."
    module.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    shown = mask.astype(bool)  # at padding the states mean nothing
    same(context[shown], module(torch.from_numpy(ids), torch.from_numpy(mask))[torch.from_numpy(shown)])
    inputs |= {"context": context, "context_mask": mask}
    same(
        session(exported, "unet_t2i").run(None, inputs)[0],
        unet_t2i(*(torch.from_numpy(inputs[key]) for key in ("x_t", "t", "context", "context_mask"))),
    )


def test_manifest_tells_how_it_was_made(exported: Path) -> None:
    manifest = json.loads((exported / "exports" / "tiny" / "manifest.json").read_text())
    stages = manifest["notes"]["stages"]
    for part in ("vae", "unet", "t2i"):
        rows = [json.loads(x) for x in (exported / "runs" / "tiny" / part / "metrics.jsonl").read_text().splitlines()]
        assert stages[part]["seconds"] == rows[-1]["seconds"]
        evaluated = {key: value for key, value in rows[-1].items() if key.startswith(("held_out", "neighbour"))}
        assert stages[part]["held_out"] == evaluated
    assert manifest["notes"]["num_pictures"] == 20
    record = json.loads((exported / "runs" / "tiny" / "bundle" / "record.json").read_text())
    assert manifest["fingerprint"] == record["fingerprint"]


def test_previews_map_is_least_squares_over_held_out_pictures(exported: Path) -> None:
    """numpy's least squares; each 2x2 block of these patchworks is of one colour, so every second pixel is the mean."""
    rgb = json.loads((exported / "exports" / "tiny" / "manifest.json").read_text())["latent"]["rgb"]
    run = exported / "runs" / "tiny"
    recipe = recipe_of_run(run)
    index = scan(exported / "pictures", max_pictures=None, max_bad=0.0)
    held_out = sorted(index.split(recipe.data.held_out, recipe.seed)[1])
    assert len(held_out) == 2
    statistics = json.loads((run / "latents" / "statistics.json").read_text())
    mean, std = (np.array(statistics[key])[:, None, None] for key in ("mean", "std"))
    latents = (np.load(run / "latents" / "mean.npy")[held_out, 0] - mean) / std  # (2, 2, 8, 8)
    keys = json.loads((run / "latents" / "pictures.json").read_text())
    pictures = [np.asarray(Image.open(exported / "pictures" / keys[i]))[::2, ::2] / 127.5 - 1 for i in held_out]
    design = np.concatenate([latents, np.ones_like(latents[:, :1])], axis=1).transpose(0, 2, 3, 1)
    even, odd = design[::2].reshape(-1, 3), design[1::2].reshape(-1, 3)
    wanted_even, wanted_odd = (np.stack(pictures[k::2]).reshape(-1, 3) for k in (0, 1))
    solution = np.linalg.lstsq(even, wanted_even, rcond=None)[0]
    np.testing.assert_allclose(rgb["weights"], solution[:2].T, atol=1e-5)
    np.testing.assert_allclose(rgb["bias"], solution[2], atol=1e-5)
    left = ((wanted_odd - odd @ solution) ** 2).sum() / ((wanted_odd - wanted_odd.mean(0)) ** 2).sum()
    assert rgb["r2"] == pytest.approx(1 - left, abs=1e-5)


@torch.no_grad()
def test_weights_for_pytorch_are_rebuilt_as_the_documentation_says(
    exported: Path, processes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output = processes.run(exported, ("export", "safetensors", "tiny", "--out", "weights"))
    assert code == 0, output
    folder = exported / "weights"
    names = {f"{name}.safetensors" for name in ("vae", "unet", "unet_t2i", "text_encoder")}
    assert {path.name for path in folder.iterdir()} == names | {"config.json", "tokenizer.json"}
    config = json.loads((folder / "config.json").read_text())
    for name, entry in config["files"].items():
        assert entry["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert (exported / "pictures").as_posix() not in json.dumps(config)

    monkeypatch.chdir(exported)
    space: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "bundle.md").read_text(), re.DOTALL):
        exec(block, space)  # noqa: S102 - the documentation's own example
    rng = np.random.default_rng(0)
    x_t, t = rng.standard_normal((2, 2, 8, 8), dtype=np.float32), np.array([3.5, 900], dtype=np.float32)
    same(session(exported, "unet").run(None, {"x_t": x_t, "t": t})[0], space["unet"](*map(torch.from_numpy, (x_t, t))))
    latents = space["x"].numpy()
    same(session(exported, "vae_decoder").run(None, {"latents": latents})[0], space["pixels"])
    assert space["output"].shape == (1, 2, 8, 8)
    ids, mask = space["ids"], space["mask"]
    context = session(exported, "text_encoder").run(None, {"ids": ids.numpy(), "mask": mask.numpy()})[0]
    shown = mask.bool()
    same(context[shown.numpy()], space["text_encoder"](ids, mask)[shown])
    text = {"context": context, "context_mask": mask.numpy()}
    wanted = space["unet_t2i"](torch.from_numpy(x_t[:1]), torch.tensor([900.0]), torch.from_numpy(context), mask)
    same(session(exported, "unet_t2i").run(None, {"x_t": x_t[:1], "t": t[1:], **text})[0], wanted)

    code, output = processes.run(exported, ("export", "safetensors", "tiny", "--out", "weights"))
    assert code == 1
    assert output.startswith("error: weights already exists and is not an empty folder")


def test_again_with_another_sampler_makes_nothing(exported: Path, processes: Any) -> None:
    code, output = processes.run(exported, ("train", "tiny.toml", "--set", "sampler.steps=9"))
    assert (code, output) == (0, "tiny: everything is up to date; nothing to do\n")


def test_torch_draws_the_run_as_onnxruntime_draws_its_bundle(exported: Path) -> None:
    """Same noise, same sampler: what is left is rounding."""
    run = torch_backend(exported / "runs" / "tiny")
    bundle = Bundle.load(exported / "exports" / "tiny", provider="cpu")
    settings: dict[str, Any] = {"steps": 20, "sampler": "dpmpp_2m", "guidance_scale": 3.0, "negative_prompt": "two"}
    for prompt in ("a red cat on a mat", ""):
        drawn = []
        for backend in (run, bundle):
            plan = resolve(backend, DrawRequest(each_prompt(prompt, n=4, seed=7), **settings))
            drawn.append(np.stack([np.asarray(picture, dtype=np.float64) for picture in draw(backend, plan)]))
        assert np.ptp(drawn[0]) > 50
        assert np.abs(drawn[0] - drawn[1]).max() <= 1  # a level
    # From a picture: its encoder is the run's autoencoder, normalised.
    vae = AutoencoderKL((4, 8), latent_channels=2, num_res_blocks=1, norm_groups=4).eval()
    vae.load_state_dict(load_file(exported / "runs" / "tiny" / "vae" / "ema.safetensors"))
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)
    statistics = json.loads((exported / "runs" / "tiny" / "latents" / "statistics.json").read_text())
    mean, std = (torch.tensor(statistics[key]).reshape(1, 2, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        same(run.run("vae_encoder.onnx", pixels=pixels), (vae.encode(torch.from_numpy(pixels)).mean - mean) / std)


def test_an_unfinished_run_is_not_drawn_from(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "runs" / "tiny", tmp_path / "runs" / "tiny")
    record = tmp_path / "runs" / "tiny" / "t2i" / "record.json"
    record.write_text(record.read_text().replace('"done"', '"running"'))
    with pytest.raises(LdmkitError, match="t2i: not finished"):
        torch_backend(tmp_path / "runs" / "tiny")

"""Export: tiny networks as a bundle, against torch and against a sampling loop written here."""

import copy
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from ldmkit.atomic import no_room
from ldmkit.components.registry import Registry
from ldmkit.errors import Interrupted, LdmkitError
from ldmkit.export import bundle as export
from ldmkit.export import networks as export_networks
from ldmkit.export.bundle import export_bundle
from ldmkit.export.certify import certify, rounded_bundle
from ldmkit.export.half import to_half, weights_to_half
from ldmkit.export.model import Model, latent_of
from ldmkit.export.networks import Network, on_cpu
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.unet import UNet
from ldmkit.recipe.sections import Export
from ldmkit.run.networks import RunNetworks, TextNetworks
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.manifest import Defaults, Latent, Schedule, file_entry
from ldmkit.runtime.verify import verify

MEAN, STD = (0.3, -0.2), (1.5, 0.5)
PROMPTS = ["a red cat", "a blue cat on a mat"]
STEPS, SCALE = 3, 2.5


def randomised(module: nn.Module) -> nn.Module:
    """Small random weights everywhere: a fresh U-Net is all zero at its end, and so would prove nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@dataclass
class Toy:
    """What was exported, and where."""

    folder: Path
    model: Model
    lines: list[str]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model.networks, name)

    def export(self, folder: Path, *, progress: Callable[[str], None] | None = None, **changes: Any) -> None:
        """Once more, with these keys of [export] changed."""
        export_toy(folder, self.model, progress, **changes)

    def session(self, name: str) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(self.folder / name, providers=["CPUExecutionProvider"])


def export_toy(folder: Path, model: Model, progress: Callable[[str], None] | None, **changes: Any) -> None:
    export_bundle(
        folder,
        model,
        Export(encoder=True).model_copy(update=changes),
        recipe={"vae": {"channels": [8, 16]}},
        fingerprint="f" * 8,
        notes={"steps": 0, "command": "pytest"},
        preview_prompts=PROMPTS,
        progress=progress,
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    torch.manual_seed(0)
    encoder = Registry.load().build(
        "text_encoder", {"use": "transformer", "width": 8, "heads": 2, "layers": 1, "max_tokens": 10}, where="[text]"
    )
    tokenizer = encoder.build_tokenizer(PROMPTS * 3)
    unet: dict[str, Any] = {"in_channels": 2, "channels": (8, 16), "num_res_blocks": 1, "attention_levels": (1,)}
    unet |= {"norm_groups": 4, "time_dim": 16, "num_heads": 2}
    autoencoder = AutoencoderKL((8, 16), latent_channels=2, num_res_blocks=1, norm_groups=4)
    networks = RunNetworks(
        autoencoder=randomised(autoencoder),
        latent_mean=torch.tensor(MEAN),
        latent_std=torch.tensor(STD),
        unet=randomised(UNet(**unet)),
        text=TextNetworks(
            unet=randomised(UNet(**unet, context_dim=8)),
            encoder=randomised(encoder.load_module(tokenizer)),
            tokenizer=tokenizer,
        ),
        steps={},
    )
    model = Model(
        networks=networks,
        name="tiny",
        schedule=Schedule(name="flow", num_timesteps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=False),
        prediction="flow",
        latent=latent_of(networks, (8, 8)),
        picture_size=8,
        defaults=Defaults(sampler="euler", steps=STEPS, guidance_scale=SCALE),
    )
    folder = tmp_path_factory.mktemp("exports") / "tiny"
    lines: list[str] = []
    export_toy(folder, model, lines.append)
    return Toy(folder, model, lines)


def test_the_bundle_is_whole(toy: Toy) -> None:
    graphs = {"vae_decoder.onnx", "vae_encoder.onnx", "unet.onnx", "unet_t2i.onnx", "text_encoder.onnx"}
    names = {path.name for path in toy.folder.iterdir()}
    assert names == graphs | {"manifest.json", "tokenizer.json", "preview.png", "golden.png", "README.md"}
    assert [path.name for path in toy.folder.parent.iterdir()] == ["tiny"]  # nothing temporary is left
    bundle = Bundle.load(toy.folder)
    bundle.verify()
    assert set(bundle.manifest.graphs) == graphs
    for graph in bundle.manifest.graphs.values():
        # Exactly 0 would mean that nothing was compared: the two libraries sum in different orders.
        assert 0 < graph.max_abs_difference < 1e-4
        assert graph.batch_sizes == (1, 2, 5)
    # Higher and wider than trained, and lower; both ends of the schedule.
    assert bundle.manifest.graphs["unet.onnx"].sizes == ((4, 4), (6, 4), (2, 8))
    assert bundle.manifest.graphs["vae_decoder.onnx"].sizes == ((4, 4), (5, 4), (3, 6))
    assert bundle.manifest.graphs["vae_encoder.onnx"].sizes == ((8, 8), (10, 8), (6, 12))
    timesteps = bundle.manifest.graphs["unet_t2i.onnx"].timesteps
    assert (timesteps[0], timesteps[-1]) == (0, 1000)
    assert len(timesteps) == 5
    assert bundle.manifest.latent.multiple == 2
    assert (bundle.manifest.precision, bundle.manifest.needs) == ("fp32", "0.1.0")
    assert bundle.manifest.text is not None
    assert (bundle.manifest.text.max_tokens, bundle.manifest.text.context_dim) == (10, 8)
    assert {"unet_t2i.onnx: exporting", "pictures: comparing with torch"} <= set(toy.lines)


def test_preview_is_what_the_bundle_draws(toy: Toy) -> None:
    pictures = Bundle.load(toy.folder).generate(PROMPTS * 4)
    with Image.open(toy.folder / "preview.png") as preview:
        for k, picture in enumerate(pictures):
            x, y = k % 4 * 10, k // 4 * 10  # 8 pixels wide, 2 apart
            assert preview.crop((x, y, x + 8, y + 8)).tobytes() == picture.tobytes()


def test_card_says_what_it_is(toy: Toy) -> None:
    card = (toy.folder / "README.md").read_text()
    for words in ("8x8 pixels", "from a prompt and without one", PROMPTS[1], "channels: [8, 16]", "command: pytest"):
        assert words in card


@torch.inference_mode()
def test_a_picture_is_that_of_euler_in_torch(toy: Toy) -> None:
    """Rectified flow, Liu et al. 2022, with guidance: x += dt * velocity from t = 1 to 0, torch throughout."""

    def context(prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        encoding = toy.text.tokenizer.encode(prompt)
        mask = torch.tensor([encoding.attention_mask])
        return toy.text.encoder(torch.tensor([encoding.ids]), mask), mask

    noise = np.random.Generator(np.random.PCG64(11)).standard_normal((2, 4, 4))
    x = torch.from_numpy(noise).float()[None]
    for k in range(STEPS):
        t = torch.tensor([1000.0 * (1 - k / STEPS)])
        with_prompt, without = (toy.text.unet(x, t, *context(prompt)) for prompt in (PROMPTS[1], ""))
        x = x - (without + SCALE * (with_prompt - without)) / STEPS
    z = x * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    pixels = toy.autoencoder.decode(z)[0].clamp(-1, 1)
    wanted = ((pixels + 1) * 127.5).permute(1, 2, 0).numpy()
    got = np.asarray(Bundle.load(toy.folder).generate(PROMPTS[1], seed=11)[0]).astype(float)
    assert np.abs(got - wanted).max() < 0.51  # half a level is the rounding to 8 bits
    assert got.std() > 5  # not one flat colour


@torch.inference_mode()
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 4, 4), (4, 2, 8), (7, 6, 4)])
def test_batch_and_size_are_dynamic(toy: Toy, batch: int, height: int, width: int) -> None:
    """Each graph against its module in torch, at batches and sizes that the export did not compare."""
    rng = torch.Generator().manual_seed(0)
    x_t, t = torch.randn(batch, 2, height, width, generator=rng), torch.rand(batch, generator=rng) * 1000
    ids = torch.randint(0, 200, (batch, 10), generator=rng)
    mask = (torch.arange(10) < torch.randint(1, 11, (batch, 1), generator=rng)).long()
    context = torch.randn(batch, 10, 8, generator=rng)
    pixels = torch.rand(batch, 3, 2 * height, 2 * width, generator=rng) * 2 - 1
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    expected = {
        "unet.onnx": ({"x_t": x_t, "t": t}, toy.unet(x_t, t)),
        "unet_t2i.onnx": (
            {"x_t": x_t, "t": t, "context": context, "context_mask": mask},
            toy.text.unet(x_t, t, context, mask),
        ),
        "text_encoder.onnx": ({"ids": ids, "mask": mask}, toy.text.encoder(ids, mask)),
        "vae_decoder.onnx": ({"latents": x_t}, toy.autoencoder.decode(x_t * std + mean)),
        "vae_encoder.onnx": ({"pixels": pixels}, (toy.autoencoder.encode(pixels).mean - mean) / std),
    }
    for name, (inputs, wanted) in expected.items():
        session = toy.session(name)
        got = session.run(None, {key: value.numpy() for key, value in inputs.items()})[0]
        np.testing.assert_allclose(got, wanted.numpy(), atol=2e-5, err_msg=name)
        assert all(given.shape[0] == "batch" for given in (*session.get_inputs(), *session.get_outputs()))


def test_padding_is_masked_in_the_graphs(toy: Toy) -> None:
    """Without the mask a text encoder mixes padding into its states, and the U-Net attends to it."""
    rng = np.random.default_rng(0)
    mask = np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0, 0]])
    text = toy.session("text_encoder.onnx")
    ids = rng.integers(0, 200, (1, 10))
    states = text.run(None, {"ids": ids, "mask": mask})[0]
    other = text.run(None, {"ids": np.where(mask, ids, 5), "mask": mask})[0]
    np.testing.assert_allclose(states[:, :3], other[:, :3], atol=1e-6)
    unmasked = text.run(None, {"ids": ids, "mask": np.ones_like(mask)})[0]
    assert np.abs(states - unmasked)[:, :3].max() > 1e-3

    unet = toy.session("unet_t2i.onnx")
    fixed = {"x_t": rng.standard_normal((1, 2, 4, 4)).astype(np.float32), "t": np.full(1, 500, np.float32)}
    drawn = unet.run(None, {**fixed, "context": states, "context_mask": mask})[0]
    noisy = np.where(mask[..., None], states, 100).astype(np.float32)
    np.testing.assert_allclose(unet.run(None, {**fixed, "context": noisy, "context_mask": mask})[0], drawn, atol=1e-6)
    assert np.abs(unet.run(None, {**fixed, "context": noisy, "context_mask": mask * 0 + 1})[0] - drawn).max() > 1e-3


def test_graphs_hold_their_weights_and_nothing_of_this_machine(toy: Toy) -> None:
    for path in toy.folder.glob("*.onnx"):
        data = path.read_bytes()
        for words in (b"location", b"/torch/", b"site-packages", str(Path(export.__file__).parent).encode(), b".py"):
            assert words not in data, f"{path.name} holds {words!r}"
        model = onnx.load(path, load_external_data=False)
        assert [opset.version for opset in model.opset_import if opset.domain == ""] == [18]
        # Each lacks a CPU kernel or comes only with later opsets.
        assert not {"GroupNormalization", "Attention"} & {node.op_type for node in model.graph.node}
    assert b"vae_decoder.onnx" in (toy.folder / "manifest.json").read_bytes()
    assert json.loads((toy.folder / "manifest.json").read_text())["created"].endswith("Z")


def networks_of(toy: Toy) -> dict[str, Network]:
    """The modules in torch, as an export takes them."""
    manifest = Bundle.load(toy.folder).manifest
    latent, schedule = manifest.latent, manifest.schedule
    return {
        "vae_decoder.onnx": export_networks.decoder(toy.autoencoder, latent),
        "unet.onnx": export_networks.unet(toy.unet, latent, schedule, None, multiple=2),
        "unet_t2i.onnx": export_networks.unet(toy.text.unet, latent, schedule, manifest.text, multiple=2),
        "text_encoder.onnx": export_networks.text_encoder(toy.text.encoder, toy.text.tokenizer),
    }


def test_whole_pictures_are_certified(toy: Toy) -> None:
    bundle = Bundle.load(toy.folder, provider="cpu")
    found = bundle.manifest.trajectories
    assert set(found) == {"unet.onnx", "unet_t2i.onnx"}
    for name, scale in (("unet.onnx", 1), ("unet_t2i.onnx", SCALE)):
        told = found[name]
        assert (told.sampler, told.steps, told.guidance_scale, told.seeds) == ("euler", 20, scale, (0, 1, 2, 3))
        assert told.min_psnr == 45 <= told.psnr
        assert told.max_difference <= 1
    card = (toy.folder / "README.md").read_text()
    assert f"| `unet.onnx` | 20 of `euler` | 1 | {found['unet.onnx'].psnr:.1f} dB, the least of 4 |" in card
    assert "multiples of 2" in card
    networks = networks_of(toy)
    assert certify(bundle, networks, PROMPTS) == found

    # A change of the text encoder shows in the pictures with a prompt alone, one of the decoder in all.
    for file, failing in (("text_encoder.onnx", "unet_t2i.onnx"), ("vae_decoder.onnx", "unet.onnx")):
        changed = {**networks, file: replace(networks[file], module=copy.deepcopy(networks[file].module))}
        with torch.no_grad():
            for parameter in changed[file].module.parameters():
                parameter.mul_(1.1)
        with pytest.raises(
            LdmkitError, match=rf"{failing}: after 20 steps .* PSNR \d+\.\d dB where fp32 must reach 45"
        ):
            certify(bundle, changed, PROMPTS)


def test_golden_pictures_are_what_the_bundle_draws(toy: Toy) -> None:
    bundle = Bundle.load(toy.folder, provider="cpu")
    golden = bundle.manifest.golden
    assert golden is not None
    assert (golden.prompts, golden.steps, golden.min_psnr) == ((PROMPTS[0], ""), 20, 40)
    with Image.open(toy.folder / "golden.png") as sheet:
        for x, picture in enumerate(bundle.generate(list(golden.prompts), seed=golden.seed, steps=20)):
            assert sheet.crop((8 * x, 0, 8 * x + 8, 8)).tobytes() == picture.tobytes()
    assert [check.name for check in verify(toy.folder, provider="cpu") if check.state != "ok"] == []


@pytest.mark.parametrize(("precision", "convert"), [("fp16", to_half), ("fp16-weights", weights_to_half)])
def test_pictures_in_half_precision(
    toy: Toy, tmp_path: Path, precision: str, convert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldmkit.export.certify.STEPS", 4)
    folder = tmp_path / "half"
    shutil.copytree(toy.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"precision": precision}
    del manifest["sha256"]
    for path in folder.glob("*.onnx"):
        model = onnx.load(path)
        convert(model)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        manifest["files"][path.name] = file_entry(path).model_dump()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    bundle = Bundle.load(folder, provider="cpu")
    networks = networks_of(toy)
    found = certify(bundle, networks, PROMPTS)
    assert {told.min_psnr for told in found.values()} == {40}
    if precision == "fp16":
        before = set(tmp_path.iterdir())
        with rounded_bundle(bundle) as rounded:
            by_gpu = certify(rounded, networks, PROMPTS)
        assert set(tmp_path.iterdir()) == before
        # A CPU rounds less than a GPU does.
        assert all(by_gpu[name].psnr < found[name].psnr for name in found)
        found = by_gpu
    assert all(told.min_psnr <= told.psnr < 100 for told in found.values())
    with torch.no_grad():
        for parameter in networks["unet.onnx"].module.parameters():
            parameter.mul_(1.1)
    with pytest.raises(
        LdmkitError,
        match=rf"unet\.onnx: .* dB where {precision} must reach 40. Try `ldmkit export onnx --precision fp32",
    ):
        certify(bundle, networks, PROMPTS)


def rectified(autoencoder: nn.Module, latent: Latent) -> Network:
    """The smallest network, in place of the decoder."""
    return Network(on_cpu(nn.ReLU()), lambda batch, size, generator: {"input": torch.ones(batch, 2)})


def test_the_old_bundle_stays_until_the_new_is_whole(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "manifest.json").write_text("old")
    # One graph only, and that one fails its comparison.
    monkeypatch.setattr(export_networks, "decoder", rectified)
    with pytest.raises(LdmkitError, match=r"vae_decoder\.onnx: .* differs"):
        toy.export(folder, tolerance=-1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert (folder / "manifest.json").read_text() == "old"


@pytest.mark.parametrize("first", ["tokenizer.json", "vae_decoder.onnx"])
def test_disk_full(toy: Toy, tmp_path: Path, first: str) -> None:
    """At the first file, a graph or not: one line, the earlier bundle intact, nothing left."""
    folder = tmp_path / "tiny"
    shutil.copytree(toy.folder, folder)
    lines: list[str] = []
    tokenizer = len(toy.text.tokenizer.to_str(pretty=True).encode())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (tokenizer - (first == "tokenizer.json"), limits[1]))
    try:
        with (
            pytest.raises(LdmkitError, match=r"/tiny: cannot be written: File too large\. What was saved"),
            no_room(folder),
        ):
            toy.export(folder, progress=lines.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert lines == ([f"{first}: exporting"] if first.endswith(".onnx") else [])
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    Bundle.load(folder).verify()


def test_asked_to_stop(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_networks, "decoder", rectified)

    def tell(line: str) -> None:
        if line.startswith("vae_decoder"):
            os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / "tiny").mkdir()
    with pytest.raises(Interrupted, match="export: nothing was written to") as stopped:
        toy.export(tmp_path / "tiny", encoder=False, progress=tell)
    assert stopped.value.exit_code == 143
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert not any((tmp_path / "tiny").iterdir())


def test_what_is_no_part_of_a_bundle_is_not_overwritten(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(LdmkitError, match=r"holds thesis\.tex, which is no part of a bundle"):
        toy.export(tmp_path)
    with pytest.raises(LdmkitError, match="is not a folder"):
        toy.export(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "mine"

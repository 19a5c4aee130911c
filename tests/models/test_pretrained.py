"""Autoencoders that others made, against the code that they were made with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from safetensors.torch import save_file
from torch import nn

from ldmkit.errors import LdmkitError
from ldmkit.models import taesd
from ldmkit.models.pretrained import build, read
from ldmkit.run.pretrained import find_source, identity

TAEF2 = Path(__file__).parents[2].parent / "shared" / "weights" / "taef2"
TINY: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 2),
    "num_decoder_blocks": (2, 1),
    "latent_channels": 3,
}
KL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 3,
}
DC: dict[str, Any] = {
    "latent_channels": 4,
    "attention_head_dim": 8,
    "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "encoder_block_out_channels": (8, 16),
    "decoder_block_out_channels": (8, 16),
    "encoder_layers_per_block": (1, 1),
    "decoder_layers_per_block": (1, 1),
    "encoder_qkv_multiscales": ((), (5,)),
    "decoder_qkv_multiscales": ((), (5,)),
}
PIXELS = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("kind", "options"), [(AutoencoderKL, KL), (AutoencoderTiny, TINY), (AutoencoderDC, DC)])
@torch.no_grad()
def test_diffusers_folder(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    """Moments and pictures are diffusers' own, and a network built from the description takes the weights."""
    torch.manual_seed(1)
    theirs = kind(**options).eval()
    theirs.save_pretrained(tmp_path / "vae")  # as in the repository of a whole pipeline
    source = find_source(str(tmp_path))
    config, ours = read(source.form, source.files, key="vae.pretrained")
    posterior = ours.eval().encode(PIXELS)
    encoded = theirs.encode(PIXELS)
    if kind is AutoencoderKL:
        torch.testing.assert_close(posterior.mean, encoded.latent_dist.mean)
        torch.testing.assert_close(posterior.logvar, encoded.latent_dist.logvar)
        z = encoded.latent_dist.mean
    else:
        z = encoded.latents if kind is AutoencoderTiny else encoded.latent
        torch.testing.assert_close(posterior.mean, z)
        assert posterior.std.max() < 1e-6
    torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample)
    assert (ours.latent_channels, 16 // ours.downsample) == tuple(z.shape[1:3])
    again = build(json.loads(json.dumps(config)))
    again.load_state_dict(ours.state_dict())
    torch.testing.assert_close(again.eval().decode(z), ours.decode(z))


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@torch.no_grad()
def test_taesd_files(ending: str, tmp_path: Path) -> None:
    """Against diffusers' port, whose layers have the files' names, the decoder's less one for the clamp."""
    torch.manual_seed(2)
    theirs = AutoencoderTiny(**TINY).eval()
    save_file(theirs.state_dict(), tmp_path / "both.safetensors")  # as taef2 is published
    numbered = {
        f"{int(k.split('.')[0]) + 1}.{k.split('.', 1)[1]}": v for k, v in theirs.decoder.layers.state_dict().items()
    }
    for part, state in (("encoder", theirs.encoder.layers.state_dict()), ("decoder", numbered)):
        path = tmp_path / f"tae_{part}{ending}"
        if ending == ".pth":
            torch.save({key: value.half() for key, value in state.items()}, path)
        else:
            save_file(state, path)
    source = find_source(str(tmp_path / "tae"))
    assert source.sha256() == find_source(str(tmp_path)).sha256() == identity(str(tmp_path), tmp_path / "run")
    _, ours = read(source.form, source.files, key="vae.pretrained")
    both = find_source(str(tmp_path / "both.safetensors"))
    whole = read(both.form, both.files, key="vae.pretrained")[1].eval()
    z = theirs.encode(PIXELS).latents
    torch.testing.assert_close(whole.encode(PIXELS).mean, z)
    torch.testing.assert_close(whole.decode(z), theirs.decode(z).sample)
    tolerance = {"atol": 1e-2, "rtol": 1e-2} if ending == ".pth" else {}
    torch.testing.assert_close(ours.eval().encode(PIXELS).mean, z, **tolerance)
    torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample, **tolerance)


@torch.no_grad()
def test_taesd_with_pooled_blocks() -> None:
    """A block that adds global statistics, written out from the published description."""
    torch.manual_seed(3)
    block = taesd.Block(4, 4, 8).eval()
    x = torch.randn(2, 4, 6, 6)
    a, norm, _, b = block.pool  # type: ignore[misc]
    widened = nn.functional.conv2d(x, a.weight).reshape(2, 4, -1)
    centred = (widened - widened.mean(2, keepdim=True)) / (
        widened.var(2, unbiased=False, keepdim=True) + norm.eps
    ).sqrt()
    inner = x + nn.functional.conv2d(centred.reshape(2, 8, 6, 6).relu(), b.weight)
    torch.testing.assert_close(block(x), (block.conv(inner) + inner).relu())


def test_published_weights() -> None:
    """taef2 gives cats back as its makers' code did."""
    if not TAEF2.is_dir():
        pytest.skip("the weights are not here")
    source = find_source(str(TAEF2))
    _, network = read(source.form, source.files, key="vae.pretrained")
    assert (network.latent_channels, network.downsample) == (32, 8)
    assert 2.6e6 < sum(p.numel() for p in network.parameters()) < 2.8e6


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no such folder"),
        ({"notes.txt": b"x"}, "holds none that is known"),
        ({"config.json": b'{"_class_name": "AutoencoderKL"}'}, "pickled weights are not read"),
        ({"config.json": b'{"_class_name": "UNet2DModel"}'}, "AutoencoderTiny"),
        ({f"{n}_{p}.pth": b"" for n in "ab" for p in ("encoder", "decoder")}, "2 autoencoders in one folder"),
        ({"a_encoder.pth": b"junk", "a_decoder.pth": b"junk"}, "no state dict of plain tensors"),
        ({"a_encoder.safetensors": b"junk", "a_decoder.safetensors": b"junk"}, "no readable weights"),
    ],
)
def test_what_is_none_is_named(files: dict[str, bytes], said: str, tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    if files:
        folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)

    def look() -> None:
        source = find_source(str(folder))
        read(source.form, source.files, key="vae.pretrained")

    with pytest.raises(LdmkitError) as raised:
        look()
    assert said in str(raised.value)
    assert str(folder) in str(raised.value)


def test_weights_of_another_kind(tmp_path: Path) -> None:
    for part in ("encoder", "decoder"):
        save_file({"layers.0.weight": torch.zeros(1)}, tmp_path / f"x_{part}.safetensors")
    with pytest.raises(LdmkitError, match="not the weights of an autoencoder of TAESD's form"):
        read("taesd", find_source(str(tmp_path)).files, key="vae.pretrained")

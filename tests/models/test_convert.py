"""Converted checkpoints compute the seed's function.

The oracle is the seed's description, written with torch.nn.functional on the seed's own keys: none of our modules.
"""

import hashlib
import json
import math
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.seed_networks import VAE, PatchGAN, TextUNet
from ldmkit.errors import LdmkitError
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.convert import convert_checkpoint
from ldmkit.models.discriminator import PatchDiscriminator
from ldmkit.models.unet import UNet

State = dict[str, Tensor]

# SHA-256 of the published files' keys and shapes, `key<TAB>64x4x3x3` a line, sorted.
PUBLISHED = {
    "vae": "c98351c48790c5f7fb12a2d1f09961efcd112ac5650bd85235318dc5c8e2e83d",
    "patchgan": "99e02c3fabd6acf76ddb4d602097e08bca0923f56a0f974a1b5ca46804478926",
    "unet": "a1cbea7f032478f0d7c462217ba140caca7cb5fb63eaef4a5db8134a7916ac6d",
    "unet_t2i": "5501be6685e83c1ecc83058245c23f9be68b042981d1b85bdb4906f13dd4b963",
}


@cache
def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a published network, in the order of the networks as a notebook writes them."""
    networks: dict[str, Callable[[], torch.nn.Module]] = {"vae": VAE, "patchgan": PatchGAN}
    with torch.device("meta"):
        found = {key: tuple(tensor.shape) for key, tensor in networks.get(name, TextUNet)().state_dict().items()}
    if name == "unet":  # single-head attention in place of the transformer blocks
        widths = {key.split(".norm1")[0]: size for key, (size, *_) in found.items() if ".attn.norm1.weight" in key}
        found = {key: shape for key, shape in found.items() if ".attn." not in key}
        for key, width in widths.items():
            for part in ("norm", "to_q", "to_k", "to_v", "to_out"):
                weight = (width,) if part == "norm" else (width, width)
                found |= {f"{key}.{part}.weight": weight, f"{key}.{part}.bias": (width,)}
    lines = sorted(f"{key}\t{'x'.join(map(str, shape))}" for key, shape in found.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == PUBLISHED[name]
    return found


def seed_state(name: str, seed: int = 0) -> State:
    """Random weights under the seed's keys: matrices keep the scale of what passes through, norms are near 1."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, sizes in shapes(name).items():
        values = torch.randn(sizes, generator=generator)
        is_norm = len(sizes) == 1 and key.endswith("weight")
        state[key] = 1 + 0.2 * values if is_norm else values / math.sqrt(math.prod(sizes[1:]) if sizes[1:] else 25)
    return state


# ------------------------------------------------------------------------------------------------ the oracle


def norm(s: State, key: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, s[f"{key}.weight"], s[f"{key}.bias"], eps=1e-5)


def conv(s: State, key: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = s[f"{key}.weight"]
    return F.conv2d(x, weight, s[f"{key}.bias"], stride=stride, padding=weight.shape[-1] // 2)


def linear(s: State, key: str, x: Tensor) -> Tensor:
    return F.linear(x, s[f"{key}.weight"], s.get(f"{key}.bias"))


def residual(s: State, key: str, x: Tensor, emb: Tensor | None = None) -> Tensor:
    h = conv(s, f"{key}.conv1", F.silu(norm(s, f"{key}.norm1", x)))
    if emb is not None:
        h = h + linear(s, f"{key}.time_proj", F.silu(emb))[:, :, None, None]
    h = conv(s, f"{key}.conv2", F.silu(norm(s, f"{key}.norm2", h)))
    return h + (conv(s, f"{key}.shortcut", x) if f"{key}.shortcut.weight" in s else x)


def attend(s: State, key: str, x: Tensor, context: Tensor, heads: int) -> Tensor:
    """x (B, N, C): softmax(q k^T * d^-0.5) v, one head after another."""
    q, k, v = linear(s, f"{key}.to_q", x), linear(s, f"{key}.to_k", context), linear(s, f"{key}.to_v", context)
    d = q.shape[-1] // heads
    parts = []
    for i in range(heads):
        part = slice(i * d, (i + 1) * d)
        weights = torch.softmax(q[..., part] @ k[..., part].mT * d**-0.5, dim=-1)
        parts.append(weights @ v[..., part])
    return linear(s, f"{key}.to_out", torch.cat(parts, dim=-1))


def tokens(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:2], -1).mT


def attention(s: State, key: str, x: Tensor, context: Tensor | None = None) -> Tensor:
    if f"{key}.cross_attn.to_q.weight" not in s:
        h = tokens(norm(s, f"{key}.norm", x))
        return x + attend(s, key, h, h, heads=1).mT.reshape(x.shape)
    assert context is not None
    h = tokens(norm(s, f"{key}.norm1", x))
    x = x + attend(s, f"{key}.self_attn", h, h, heads=8).mT.reshape(x.shape)
    h = tokens(norm(s, f"{key}.norm2", x))
    x = x + attend(s, f"{key}.cross_attn", h, context, heads=8).mT.reshape(x.shape)
    h = conv(s, f"{key}.ff.net.0", norm(s, f"{key}.norm3", x))
    return x + conv(s, f"{key}.ff.net.2", F.silu(h))


def double_size(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


def vae_encode(s: State, pixels: Tensor) -> tuple[Tensor, Tensor]:
    h = conv(s, "encoder.inp", pixels)
    for i in range(3):
        block = f"encoder.down_block.{i}"
        h = residual(s, f"{block}.res2", residual(s, f"{block}.res1", h))
        if i == 2:
            h = attention(s, f"{block}.attn", h)
        h = conv(s, f"{block}.down", h, stride=2)
    h = residual(s, "encoder.bottle.res1", h)
    h = residual(s, "encoder.bottle.res2", attention(s, "encoder.bottle.attn1", h))
    moments = conv(s, "encoder.out.2", F.silu(norm(s, "encoder.out.0", h)))
    return moments[:, :4], torch.clamp(moments[:, 4:], -30, 20)


def vae_decode(s: State, z: Tensor) -> Tensor:
    h = residual(s, "decoder.bottle.res1", conv(s, "decoder.inp", z))
    h = residual(s, "decoder.bottle.res2", attention(s, "decoder.bottle.attn1", h))
    for i in range(3):
        block = f"decoder.up_block.{i}"
        h = residual(s, f"{block}.res2", residual(s, f"{block}.res1", h))
        if i == 0:
            h = attention(s, f"{block}.attn", h)
        h = conv(s, f"{block}.up.1", double_size(h))
    return conv(s, "decoder.out.2", F.silu(norm(s, "decoder.out.0", h)))


def patchgan(s: State, pixels: Tensor) -> Tensor:
    h = F.silu(conv(s, "model.0", pixels, stride=2))
    for i in (2, 5, 8):
        h = F.silu(norm(s, f"model.{i + 1}", conv(s, f"model.{i}", h, stride=2)))
    return conv(s, "model.11", h)


def unet(s: State, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
    angles = t[:, None] / 10000 ** (2 * torch.arange(128, dtype=t.dtype) / 256)
    emb = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    emb = linear(s, "time_embedding.net.2", F.silu(linear(s, "time_embedding.net.0", emb)))
    h = conv(s, "init_conv", x)
    skips = []
    for i in (1, 2, 3, 4):
        h = residual(s, f"down{i}.res2", residual(s, f"down{i}.res1", h, emb), emb)
        if i in (3, 4):
            h = attention(s, f"down{i}.attn", h, context)
        skips.append(h)
        h = conv(s, f"down{i}.down", h, stride=2)
    h = attention(s, "mid.attn", residual(s, "mid.res1", h, emb), context)
    h = residual(s, "mid.res2", h, emb)
    for i in (1, 2, 3, 4):
        h = torch.cat([conv(s, f"up{i}.up.1", double_size(h)), skips.pop()], dim=1)
        h = residual(s, f"up{i}.res2", residual(s, f"up{i}.res1", h, emb), emb)
        if i in (1, 2):
            h = attention(s, f"up{i}.attn", h, context)
    return conv(s, "out.2", F.silu(norm(s, "out.0", h)))


# ------------------------------------------------------------------------------------------------ the tests


CLASSES: dict[str, Callable[..., torch.nn.Module]] = {
    "AutoencoderKL": AutoencoderKL,
    "PatchDiscriminator": PatchDiscriminator,
    "UNet": UNet,
}


def rebuilt(path: Path) -> Any:
    """The network in a converted file, from nothing but that file."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    network = CLASSES[metadata["network"]](**json.loads(metadata["options"]))
    network.load_state_dict(load_file(path))
    return network.eval()


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same(ours: Tensor, oracle: Tensor) -> None:
    assert oracle.std() > 0.05, "an output near zero would prove nothing"
    assert (ours - oracle).abs().max() < (1e-10 if oracle.dtype == torch.float64 else 1e-5)


@torch.no_grad()
def test_checkpoint_gives_autoencoder_and_discriminator(tmp_path: Path) -> None:
    vae, gan = seed_state("vae"), seed_state("patchgan")
    checkpoint = {
        "vae_state_dict": vae,
        "gan_state_dict": gan,
        "vae_optimizer": {"state": {}, "param_groups": [{"lr": 2e-4, "params": [0]}]},
        "gan_optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "epoch": 200,
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    written = convert_checkpoint(tmp_path / "checkpoint.pth", tmp_path / "out")
    assert [path.name for path in written] == ["vae.safetensors", "discriminator.safetensors"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in written)

    pixels, noise = draw(1, 3, 64, 64).tanh(), draw(1, 4, 8, 8)
    network = rebuilt(written[0])
    mean, logvar = vae_encode(vae, pixels)
    output, posterior = network(pixels, noise)
    assert_same(posterior.mean, mean)
    assert_same(posterior.logvar, logvar)
    assert_same(output, vae_decode(vae, mean + torch.exp(logvar / 2) * noise))
    assert_same(rebuilt(written[1])(draw(2, 3, 64, 64)), patchgan(gan, draw(2, 3, 64, 64)))


@torch.no_grad()
@pytest.mark.parametrize("text", [False, True], ids=["unconditional", "text"])
def test_unets_compute_the_seeds_function(tmp_path: Path, text: bool) -> None:
    state = seed_state("unet_t2i" if text else "unet")
    torch.save({f"_orig_mod.{key}": value for key, value in state.items()} if text else state, tmp_path / "unet.pth")
    (written,) = convert_checkpoint(tmp_path / "unet.pth", tmp_path)
    assert written.name == ("unet_t2i.safetensors" if text else "unet.safetensors")

    # The seed attends to all 77 states: a mask must change nothing.
    mask = (torch.arange(77) < 9).expand(2, 77) if text else None
    network = rebuilt(written)
    for dtype in (torch.float32, torch.float64):
        x, t = draw(2, 4, 16, 16).to(dtype), torch.tensor([3, 981], dtype=dtype)
        context = draw(2, 77, 768, seed=2).to(dtype) if text else None
        found = network.to(dtype)(x, t, context, mask)
        assert_same(found, unet({key: v.to(dtype) for key, v in state.items()}, x, t, context))


def flat(name: str) -> dict[str, Any]:
    """One value expanded to every shape, which keeps the file tiny."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes(name).items()}


def test_state_dict_that_does_not_fit(tmp_path: Path) -> None:
    lacking = flat("unet")
    del lacking["down1.res1.conv1.weight"]
    for state, said in (
        (lacking, "missing: down1.res1.conv1.weight"),
        (flat("unet") | {"extra.weight": torch.zeros(1)}, "unexpected: extra.weight"),
        (flat("unet") | {"_orig_mod.out.2.bias": torch.zeros(4)}, "with and without _orig_mod"),
        (flat("unet") | {"out.2.bias": torch.zeros(5)}, r"out\.2\.bias is torch.float32 \[5\], expected .* \[4\]"),
        (flat("unet") | {"out.2.bias": torch.zeros(4, dtype=torch.int64)}, "out.2.bias is torch.int64"),
        (flat("unet") | {"out.2.bias": 3}, "out.2.bias is int"),
        (flat("unet") | {"out.2.bias": torch.zeros(4, device="meta")}, "holds no plain values"),
    ):
        torch.save(state, tmp_path / "unet.pth")
        with pytest.raises(LdmkitError, match=said) as caught:
            convert_checkpoint(tmp_path / "unet.pth", tmp_path / "out")
        assert "unet.pth" in str(caught.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "model": {}}, "not a checkpoint of the original system: it holds epoch, model;"),
        ({}, "it holds none"),
        ([1, 2], "holds a list"),
        ({"vae_state_dict": 1, "gan_state_dict": {}}, "vae_state_dict holds a int"),
        ({"vae_state_dict": {}, "gan_state_dict": {}}, "vae_state_dict does not fit .*missing: encoder.inp.weight"),
    ],
)
def test_other_contents(tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(LdmkitError, match=said):
        convert_checkpoint(tmp_path / "model.pth", tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x80\x02}q\x00", b"not a checkpoint\n" * 99])
def test_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(LdmkitError, match=r"model\.pth is no checkpoint"):
        convert_checkpoint(tmp_path / "model.pth", tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LdmkitError, match="no such file"):
        convert_checkpoint(tmp_path / "model.pth", tmp_path)
    with pytest.raises(LdmkitError, match="no such file"):
        convert_checkpoint(tmp_path, tmp_path)


def test_target_that_is_a_file(tmp_path: Path) -> None:
    torch.save(flat("unet"), tmp_path / "unet.pth")
    with pytest.raises(LdmkitError, match=r"unet\.pth: the converted weights can't be written there"):
        convert_checkpoint(tmp_path / "unet.pth", tmp_path / "unet.pth")


class Canary:
    """Unpickled without care, it creates the file it was given."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickle_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    canary, file = tmp_path / "canary", tmp_path / "checkpoint.pth"
    content = {"vae_state_dict": Canary(canary), "gan_state_dict": {}}
    if zipped:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(LdmkitError, match="refused"):
        convert_checkpoint(file, tmp_path / "out")
    assert not canary.exists()
    # The canary is alive: careless loading does create the file.
    torch.load(file, weights_only=False) if zipped else pickle.loads(file.read_bytes())  # noqa: S301 - our own bytes
    assert canary.exists()

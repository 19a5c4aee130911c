"""Autoencoders that exist, of any kind that is known, behind the interface of our own."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ldmkit.components.hub import load_pretrained
from ldmkit.errors import LdmkitError
from ldmkit.models import taesd
from ldmkit.models.autoencoder import Autoencoder, AutoencoderKL

_LOG_VARIANCE = -30.0
"""of an encoder without noise: the least that a posterior has"""


class _Pretrained(Autoencoder):
    """An encoder and a decoder; the latents' channels and the factor f are what the encoder makes of a picture."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        side = 256
        # Without values, so that it costs nothing.
        with torch.no_grad():
            moments = copy.deepcopy(encoder).to("meta").eval()(torch.empty(1, 3, side, side, device="meta"))
        self.latent_channels = moments.shape[1] // 2
        self.downsample = side // moments.shape[-1]


class _WithoutNoise(nn.Module):
    """An encoder that gives z itself: moments of no variance."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        z = self.network(pixels)
        return torch.cat([z, torch.full_like(z, _LOG_VARIANCE)], dim=1)


def build(config: Mapping[str, Any]) -> Autoencoder:
    """The autoencoder that a run's vae/config.json describes, with fresh weights."""
    match config.get("form"):
        case "taesd":
            return _Pretrained(_WithoutNoise(taesd.Encoder(config["encoder"])), taesd.Decoder(config["decoder"]))
        case "diffusers":
            import diffusers

            return _of_diffusers(getattr(diffusers, config["class"]).from_config(config["options"]))
    return AutoencoderKL(**{key: value for key, value in config.items() if key != "pretrained"})


def read(form: str, files: tuple[Path, ...], *, key: str) -> tuple[dict[str, Any], Autoencoder]:
    """The autoencoder in `files` and its description, from which `build` builds another.

    `form` and `files`: see `ldmkit.run.pretrained.Source`; `key` opens errors. Raises LdmkitError where they are
    damaged, or hold something else.
    """
    if form == "diffusers":
        import diffusers

        options = _json(files[0])
        kind = getattr(diffusers, options["_class_name"])
        model = load_pretrained(
            kind.from_pretrained,
            str(files[0].parent),
            revision=None,
            owner="the autoencoder",
            key=key,
            needs="a folder with config.json and diffusion_pytorch_model.safetensors",
            weights=True,
        )
        found = {"form": form, "class": kind.__name__, "options": {k: v for k, v in options.items() if k[0] != "_"}}
        return found, _of_diffusers(model.float())
    if form == "taesd":
        states = dict(zip(("encoder", "decoder"), map(_tensors, files), strict=False))
        if len(files) == 1:
            states = _parted(states["encoder"])
        config = {"form": form, **{p: {k: list(v.shape) for k, v in s.items()} for p, s in states.items()}}
        tensors = {f"encoder.network.{k}": v for k, v in states["encoder"].items()}
        tensors |= {f"decoder.{k}": v for k, v in states["decoder"].items()}
    else:
        config, tensors = _json(files[0]), _tensors(files[1])
    try:
        network = build(config)
        network.load_state_dict(tensors)
    except (RuntimeError, LdmkitError, TypeError, KeyError) as error:
        reason = str(error).split("\n")[-1].strip()
        raise LdmkitError(f"{key}: {files[0]} and {files[1].name}: {reason}") from None
    return config, network


def _parted(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Encoder and decoder of one file, whose layers have the numbers of diffusers: no clamp before the decoder's."""
    states: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for name, tensor in state.items():
        part, _, number, rest = (*name.split(".", 3), "", "", "")[:4]
        if part in states and number.isdecimal():
            states[part][f"{int(number) + (part == 'decoder')}.{rest}"] = tensor
    return states


def _of_diffusers(model: Any) -> Autoencoder:
    if type(model).__name__ == "AutoencoderKL":
        after = model.quant_conv if model.quant_conv is not None else nn.Identity()
        before = model.post_quant_conv if model.post_quant_conv is not None else nn.Identity()
        return _Pretrained(nn.Sequential(model.encoder, after), nn.Sequential(before, model.decoder))
    return _Pretrained(_WithoutNoise(model.encoder), model.decoder)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LdmkitError(f"{path}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise LdmkitError(f"{path}: not the description of an autoencoder")
    return found


def _tensors(path: Path) -> dict[str, Tensor]:
    """A state dict in float32, from safetensors, or from a pickle of which only tensors are accepted."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        return {str(name): tensor.float() for name, tensor in state.items()}
    except (OSError, SafetensorError) as error:
        raise LdmkitError(f"{path}: no readable weights: {error}") from None
    except Exception as error:  # a damaged or hostile pickle fails in more ways than can be listed
        raise LdmkitError(f"{path}: no state dict of plain tensors ({type(error).__name__})") from error

"""The seed's published checkpoints to safetensors of ours."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ldmkit.errors import LdmkitError
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.discriminator import PatchDiscriminator
from ldmkit.models.unet import UNet

# Keyword arguments that rebuild the seed's four networks, parameter for parameter.
SEED_VAE: dict[str, Any] = {
    "channels": (64, 128, 256, 512),
    "latent_channels": 4,
    "num_res_blocks": 2,
    "attention_levels": (3,),
    "norm_groups": 32,
    "dropout": 0.0,
}
"""41,275,339 parameters; 256x256 pixels become 4x32x32 latents."""

SEED_DISCRIMINATOR: dict[str, Any] = {"channels": (64, 128, 256, 512), "norm_groups": 32}
"""1,557,377 parameters."""

SEED_UNET: dict[str, Any] = {
    "in_channels": 4,
    "channels": (64, 64, 128, 128, 256),
    "num_res_blocks": 2,
    "attention_levels": (3, 4),
    "context_dim": None,
    "time_dim": 256,
    "norm_groups": 32,
    "dropout": 0.0,
}
"""11,401,284 parameters; no text."""

SEED_UNET_T2I: dict[str, Any] = {
    **SEED_UNET,
    "context_dim": 768,
    "num_heads": 8,
    # The seed attends to all 77 states, padding included.
    "mask_padding": False,
}
"""14,586,052 parameters; context of 77x768 CLIP states."""

# Our name -> the seed's, applied in order; {} is the index in the group, counted from 1.
_VAE_NAMES = (
    (r"^encoder\.levels\.", "encoder.down_block."),
    (r"^decoder\.levels\.", "decoder.up_block."),
    (r"\.residuals\.(\d+)\.", ".res{}."),
    (r"\.resample\.conv\.", ".up.1."),
    (r"\.resample\.", ".down."),
    (r"\.middle\.residual(?=\d)", ".bottle.res"),
    (r"\.middle\.attention\.(attention\.)?", ".bottle.attn1."),
    (r"\.attention\.(attention\.)?", ".attn."),
    (r"\.stem\.", ".inp."),
    (r"\.norm_out\.", ".out.0."),
    (r"\.conv_out\.", ".out.2."),
)
_UNET_NAMES = (
    (r"^time_embedding\.linear1\.", "time_embedding.net.0."),
    (r"^time_embedding\.linear2\.", "time_embedding.net.2."),
    (r"^stem\.", "init_conv."),
    (r"^down\.(\d+)\.", "down{}."),
    (r"^downsamples\.(\d+)\.", "down{}.down."),
    (r"^up\.(\d+)\.", "up{}."),
    (r"^upsamples\.(\d+)\.conv\.", "up{}.up.1."),
    (r"^middle1\.", "mid."),
    (r"^middle2\.", "mid.res2."),
    (r"\.residuals\.(\d+)\.", ".res{}."),
    (r"\.attention\.conv1\.", ".attn.ff.net.0."),
    (r"\.attention\.conv2\.", ".attn.ff.net.2."),
    (r"\.attention\.(attention\.)?", ".attn."),
    (r"\.self_attention\.", ".self_attn."),
    (r"\.cross_attention\.", ".cross_attn."),
    (r"^norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
)


@dataclass(frozen=True)
class _Network:
    file: str
    build: Callable[..., nn.Module]
    options: Mapping[str, Any]
    names: tuple[tuple[str, str], ...]


_VAE = _Network("vae.safetensors", AutoencoderKL, SEED_VAE, _VAE_NAMES)
_DISCRIMINATOR = _Network(
    "discriminator.safetensors", PatchDiscriminator, SEED_DISCRIMINATOR, ((r"^layers\.", "model."),)
)
_UNET = _Network("unet.safetensors", UNet, SEED_UNET, _UNET_NAMES)
_UNET_T2I = _Network("unet_t2i.safetensors", UNet, SEED_UNET_T2I, _UNET_NAMES)


def convert_checkpoint(path: Path, out_dir: Path) -> list[Path]:
    """Writes the networks of one of the seed's .pth files into `out_dir` and returns the files written.

    checkpoint.pth gives vae.safetensors and discriminator.safetensors, unet_epoch_500.pth unet.safetensors,
    TextConditionUnetEpoch_800.pth unet_t2i.safetensors: float32, under our names, with the class and its options in
    the metadata. Which file it is, its keys tell. Code pickled into the file is never run.
    Raises LdmkitError for a file that can't be read or holds anything but exactly those parameters; nothing is
    written then.
    """
    checkpoint = _load(path)
    if "vae_state_dict" in checkpoint and "gan_state_dict" in checkpoint:
        parts = [("vae_state_dict", _VAE), ("gan_state_dict", _DISCRIMINATOR)]
        converted = [(network, _convert(f"{path}: {part}", checkpoint[part], network)) for part, network in parts]
    elif any(".cross_attn." in str(key) for key in checkpoint):
        converted = [(_UNET_T2I, _convert(str(path), checkpoint, _UNET_T2I))]
    elif any(str(key).removeprefix("_orig_mod.").startswith("time_embedding.") for key in checkpoint):
        converted = [(_UNET, _convert(str(path), checkpoint, _UNET))]
    else:
        raise LdmkitError(
            f"{path} is not a checkpoint of the original system: it holds {_some(checkpoint)}; "
            "expected vae_state_dict with gan_state_dict, or the state dict of one of its U-Nets"
        )
    written = []
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for network, tensors in converted:
            partial = out_dir / f".{network.file}.partial"
            metadata = {
                "network": network.build.__name__,
                "options": json.dumps(network.options),
                "converted_from": path.name,
            }
            save_file(tensors, partial, metadata=metadata)
            written.append(partial.replace(out_dir / network.file))
    except (OSError, SafetensorError) as error:
        raise LdmkitError(f"{out_dir}: the converted weights can't be written there: {error}") from error
    return written


def _load(path: Path) -> Mapping[Any, Any]:
    if not path.is_file():
        raise LdmkitError(f"{path}: no such file; give one of the original system's .pth files")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle fails in more ways than can be listed
        raise LdmkitError(
            f"{path} is no checkpoint of plain tensors ({type(error).__name__}); "
            "a pickle that asks to run code is refused"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise LdmkitError(f"{path} holds a {type(checkpoint).__name__}, not a dict of parameters")
    return checkpoint


def _convert(where: str, state: Any, network: _Network) -> dict[str, Tensor]:
    """The seed's state dict under our names, every key and shape checked; `where` opens the error."""
    if not isinstance(state, Mapping):
        raise LdmkitError(f"{where} holds a {type(state).__name__}, not a dict of parameters")
    # torch.compile puts this prefix before every key.
    found = {str(key).removeprefix("_orig_mod."): tensor for key, tensor in state.items()}
    with torch.device("meta"):
        expected = network.build(**network.options).state_dict()
    seed_names = {name: _seed_name(name, network.names) for name in expected}
    missing = [name for name in seed_names.values() if name not in found]
    unexpected = [name for name in found if name not in set(seed_names.values())]
    if len(found) != len(state):
        unexpected.append("keys both with and without _orig_mod.")
    if missing or unexpected:
        raise LdmkitError(
            f"{where} does not fit {network.file}: {len(missing)} keys missing: {_some(missing)}; "
            f"{len(unexpected)} unexpected: {_some(unexpected)}"
        )
    converted = {}
    for name, like in expected.items():
        tensor = found[seed_names[name]]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.shape != like.shape:
            kind = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise LdmkitError(f"{where}: {seed_names[name]} is {kind}, expected a float tensor {list(like.shape)}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise LdmkitError(f"{where}: {seed_names[name]} holds no plain values ({tensor.layout}, {tensor.device})")
        # A copy of its own: safetensors refuses tensors that share memory.
        converted[name] = tensor.detach().to(torch.float32, copy=True).contiguous()
    return converted


def _seed_name(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for ours, seed in rules:
        match = re.search(ours, name)
        if match is not None:
            indices = [int(group) + 1 for group in match.groups() if group is not None and group.isdecimal()]
            name = name[: match.start()] + seed.format(*indices) + name[match.end() :]
    return name


def _some(keys: Any) -> str:
    names = [str(key) for key in keys]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "none"

"""Writes a bundle: each network as an ONNX graph that was compared with torch, and all that the runtime needs."""

import copy
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import ldmkit
from ldmkit.errors import LdmkitError
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.unet import UNet
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.manifest import (
    CARD,
    FILES,
    FORMAT_VERSION,
    MANIFEST,
    NEEDS,
    PREVIEW,
    TEXT_ENCODER,
    TOKENIZER,
    UNET,
    UNET_T2I,
    VAE_DECODER,
    Defaults,
    Latent,
    Manifest,
    Schedule,
    Text,
    file_entry,
    write_manifest,
)
from ldmkit.runtime.pictures import grid
from ldmkit.stages.export_card import model_card
from ldmkit.stages.export_graph import Inputs, compare, write_graph

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NUM_PREVIEW = 8


def export_bundle(
    out_dir: Path,
    *,
    name: str,
    autoencoder: AutoencoderKL,
    latent_mean: Sequence[float],
    latent_std: Sequence[float],
    unet: UNet | None,
    unet_t2i: UNet | None,
    text_module: nn.Module | None,
    tokenizer: "Tokenizer | None",
    schedule_options: Mapping[str, Any],
    prediction: str,
    latent_size: int,
    picture_size: int,
    defaults: Mapping[str, Any],
    recipe: Mapping[str, Any],
    fingerprint: str,
    notes: Mapping[str, Any],
    preview_prompts: Sequence[str] = (),
    tolerance: float = 1e-4,
    opset: int = 18,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Exports the networks to `out_dir`, the bundle's folder, and returns its manifest.

    `latent_mean`, `latent_std` (C,) turn normalised latents into z. `schedule_options` are the keywords of
    `diffusion.make_schedule`, `name` among them; `defaults` those of `manifest.Defaults`; `notes` say how it was
    trained. The preview draws `preview_prompts` in turn, or unconditionally where there are none. `progress` gets
    a line for each thing begun.

    The modules are copied to the CPU in float32 and left as they are. All is written into a folder beside `out_dir`
    that takes its place when whole: until then an earlier bundle stays.

    Raises LdmkitError where a graph differs from torch by more than `tolerance`, naming it, and where `out_dir`
    holds anything that is no part of a bundle.
    """
    if unet is None and unet_t2i is None:
        raise LdmkitError(f"{name}: there is no trained U-Net to export; train one with `ldmkit train`.")
    if unet_t2i is not None and (text_module is None or tokenizer is None):
        raise ValueError("a text U-Net needs its text encoder and tokenizer")
    check_replaceable(out_dir)
    # Wrong keywords end here, not after minutes of exporting.
    checked_defaults = Defaults.model_validate(defaults)
    tell = progress or (lambda line: None)
    latent = Latent(
        channels=autoencoder.latent_channels,
        height=latent_size,
        width=latent_size,
        mean=tuple(map(float, latent_mean)),
        std=tuple(map(float, latent_std)),
    )
    schedule = Schedule.model_validate(schedule_options)

    out_dir.parent.mkdir(parents=True, exist_ok=True)
    folder = out_dir.parent / f".{out_dir.name}.{os.getpid()}.new"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        text = None
        if unet_t2i is not None and tokenizer is not None:
            tokenizer.save(str(folder / TOKENIZER))
            text = Text(max_tokens=len(tokenizer.encode("").ids), context_dim=int(unet_t2i.context_dim or 0))
        networks = {
            VAE_DECODER: (DecoderGraph(autoencoder, latent), _latent_inputs(latent)),
            UNET: (unet, _unet_inputs(latent, schedule, None)),
            TEXT_ENCODER: (text_module, _token_inputs(tokenizer)) if text and tokenizer else (None, None),
            UNET_T2I: (unet_t2i, _unet_inputs(latent, schedule, text)),
        }
        graphs = {}
        for file, (module, inputs) in networks.items():
            if module is None or inputs is None:
                continue
            tell(f"{file}: exporting")
            network = on_cpu(module)
            write_graph(network, inputs, folder / file, opset=opset)
            tell(f"{file}: comparing with torch")
            graphs[file] = compare(network, inputs, folder / file, tolerance=tolerance)
        manifest = Manifest.model_validate(
            {
                "format_version": FORMAT_VERSION,
                "needs": NEEDS,
                "written_by": ldmkit.__version__,
                "name": name,
                "created": datetime.now(UTC).replace(microsecond=0),
                "schedule": schedule,
                "prediction": prediction,
                "latent": latent,
                "picture_size": picture_size,
                "defaults": checked_defaults,
                "examples": tuple(dict.fromkeys(preview_prompts)),
                "text": text,
                "files": {file.name: file_entry(file) for file in sorted(folder.iterdir())},
                "graphs": graphs,
                "recipe": recipe,
                "fingerprint": fingerprint,
                "notes": notes,
            }
        )
        write_manifest(folder, manifest)
        tell(f"{PREVIEW}: drawing")
        prompts = [preview_prompts[k % len(preview_prompts)] for k in range(NUM_PREVIEW)] if preview_prompts else None
        pictures = Bundle.load(folder, provider="cpu").generate(prompts, n=1 if prompts else NUM_PREVIEW)
        grid(pictures, columns=4).save(folder / PREVIEW)
        (folder / CARD).write_text(model_card(manifest, prompts), encoding="utf-8")
        extra = {file: file_entry(folder / file) for file in (PREVIEW, CARD)}
        manifest = manifest.model_copy(update={"files": {**manifest.files, **extra}})
        write_manifest(folder, manifest)
        replace_folder(folder, out_dir)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return manifest


class DecoderGraph(nn.Module):
    """Normalised latents (B, C, h, w) -> pixels (B, 3, H, W), 1 the brightest and -1 the darkest, not clipped."""

    mean: Tensor
    std: Tensor

    def __init__(self, autoencoder: AutoencoderKL, latent: Latent) -> None:
        super().__init__()
        self.decoder = unwrapped(autoencoder).decoder
        self.register_buffer("mean", torch.tensor(latent.mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(latent.std).reshape(1, -1, 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.decoder(latents * self.std + self.mean)
        return pixels


def unwrapped(module: Any) -> Any:
    """The module that `torch.compile` wrapped, which alone can be exported, or `module` itself."""
    return getattr(module, "_orig_mod", module)


def on_cpu(module: nn.Module) -> nn.Module:
    """A float32 copy for inference."""
    copied: nn.Module = copy.deepcopy(unwrapped(module)).cpu().float().eval()
    return copied.requires_grad_(False)


def _latent_inputs(latent: Latent) -> Inputs:
    def draw(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"latents": torch.randn(batch, latent.channels, latent.height, latent.width, generator=generator)}

    return draw


def _unet_inputs(latent: Latent, schedule: Schedule, text: Text | None) -> Inputs:
    def draw(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        t = torch.rand(batch, generator=generator) * (schedule.num_timesteps - 1)
        inputs = {
            "x_t": torch.randn(batch, latent.channels, latent.height, latent.width, generator=generator),
            "t": t if schedule.name == "flow" else t.round(),  # only flow has timesteps between whole ones
        }
        if text is not None:
            lengths = torch.randint(1, text.max_tokens + 1, (batch, 1), generator=generator)
            inputs["context"] = torch.randn(batch, text.max_tokens, text.context_dim, generator=generator)
            inputs["context_mask"] = (torch.arange(text.max_tokens) < lengths).long()
        return inputs

    return draw


def _token_inputs(tokenizer: "Tokenizer") -> Inputs:
    empty = tokenizer.encode("")

    def draw(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        length = len(empty.ids)
        lengths = torch.randint(sum(empty.attention_mask), length + 1, (batch, 1), generator=generator)
        mask = (torch.arange(length) < lengths).long()
        drawn = torch.randint(0, tokenizer.get_vocab_size(), (batch, length), generator=generator)
        # The tokenizer's own padding behind random tokens, and one real caption: the empty one.
        ids = torch.where(mask.bool(), drawn, torch.tensor(empty.ids[-1]))
        ids[0], mask[0] = torch.tensor(empty.ids), torch.tensor(empty.attention_mask)
        return {"ids": ids, "mask": mask}

    return draw


def check_replaceable(folder: Path) -> None:
    """Raises LdmkitError unless `folder` is new, empty, or holds a bundle's files and nothing else."""
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise LdmkitError(f"{folder} is not a folder: choose another place for the bundle with --out.")
    strange = sorted(entry.name for entry in folder.iterdir() if entry.name not in (*FILES, MANIFEST))
    if strange:
        raise LdmkitError(
            f"{folder} holds {strange[0]}, which is no part of a bundle and would be lost: move it away, or choose "
            "another place for the bundle with --out."
        )


def replace_folder(new: Path, target: Path) -> None:
    """Moves folder `new` to `target`; what was there goes only once the new one stands."""
    old = target.parent / f".{target.name}.{os.getpid()}.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)

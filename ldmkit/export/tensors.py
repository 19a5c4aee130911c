"""A finished run's weights for who goes on in PyTorch: safetensors, and a JSON that rebuilds each network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

import ldmkit
from ldmkit.atomic import new_folder, write_json
from ldmkit.caches.sets import latent_statistics
from ldmkit.components.protocols import TextEncoder
from ldmkit.components.registry import Registry
from ldmkit.errors import LdmkitError
from ldmkit.export.run import published
from ldmkit.models.build import build_autoencoder, build_text_to_image, build_unet
from ldmkit.recipe import Recipe
from ldmkit.run.checkpoint import save_weights
from ldmkit.run.folder import is_finished
from ldmkit.run.networks import trained_weights
from ldmkit.runtime.manifest import TOKENIZER, file_entry

FORMAT_VERSION = 1
CONFIG = "config.json"
PARTS = ("vae", "latents", "text", "unet", "t2i")
"""the parts of a run that are read"""


def export_tensors(recipe: Recipe, registry: Registry, run_dir: Path, out_dir: Path) -> Iterator[str]:
    """Writes the averaged weights, or the plain ones where no average was kept; yields a line for each file.

    `config.json`: `networks` with class, keyword arguments and file of each; schedule, prediction, latents' statistics;
    SHA-256 and size of every file. Raises LdmkitError where a part of the run is not finished.
    """
    for part in PARTS:
        if not is_finished(run_dir / part):
            raise LdmkitError(
                f"{run_dir / part} is not finished: `ldmkit train` with the run's recipe goes on with it."
            )
    encoder: TextEncoder = registry.build("text_encoder", recipe.text.table(), where="[text]")
    tokenizer = Tokenizer.from_file(str(run_dir / "text" / TOKENIZER))
    text_module = encoder.load_module(tokenizer)
    text_to_image = build_text_to_image(recipe, encoder, text_module if encoder.trainable else None)
    modules: dict[str, torch.nn.Module] = {"vae": build_autoencoder(recipe), "unet": build_unet(recipe)}
    for name, module in {**modules, "t2i": text_to_image}.items():
        module.load_state_dict(trained_weights(run_dir / name))
    modules |= {"unet_t2i": text_to_image.unet, "text_encoder": text_module}
    unet = {"in_channels": recipe.vae.latent_channels}
    text_unet = {**unet, "context_dim": encoder.context_dim}
    networks: dict[str, dict[str, Any]] = {
        "vae": {"class": "ldmkit.models.autoencoder.AutoencoderKL", "options": recipe.vae.network()},
        "unet": {"class": "ldmkit.models.unet.UNet", "options": {**unet, **recipe.unet.network()}},
        "unet_t2i": {"class": "ldmkit.models.unet.UNet", "options": {**text_unet, **recipe.t2i.network()}},
        # Built by the plugin that offers it, which may have to fetch it once.
        "text_encoder": {"component": recipe.text.table()},
    }
    mean, std = latent_statistics(run_dir / "latents", recipe.latents)
    with new_folder(out_dir) as folder:
        for name, module in modules.items():
            networks[name]["file"] = f"{name}.safetensors"
            save_weights(folder / f"{name}.safetensors", module.state_dict())
            yield f"{out_dir / name}.safetensors: {sum(p.numel() for p in module.parameters()):,} parameters"
        (folder / TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding="utf-8", newline="\n")
        config = {
            "format_version": FORMAT_VERSION,
            "written_by": ldmkit.__version__,
            "name": recipe.name,
            "networks": networks,
            "schedule": recipe.diffusion.schedule_options(),
            "prediction": recipe.diffusion.prediction,
            "latents": {"mean": mean.tolist(), "std": std.tolist()},
            "picture_size": recipe.data.size,
            "sampler": {**recipe.sampler.table(), "guidance_scale": recipe.sampler.guidance_scale},
            "files": {path.name: file_entry(path).model_dump() for path in sorted(folder.iterdir())},
            "recipe": published(recipe),
        }
        write_json(folder / CONFIG, config)
    yield f"{out_dir / CONFIG}: how to rebuild them; see docs/bundle.md"

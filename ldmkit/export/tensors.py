"""A finished run's weights for further use in PyTorch: safetensors, and a JSON that rebuilds each network."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

import ldmkit
from ldmkit.atomic import new_folder, write_json
from ldmkit.components.registry import Registry
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.pretrained import build
from ldmkit.recipe import Recipe
from ldmkit.run.checkpoint import save_weights
from ldmkit.run.networks import autoencoder_config, load_networks
from ldmkit.runtime.manifest import TOKENIZER, file_entry

FORMAT_VERSION = 1
CONFIG = "config.json"


def export_tensors(
    recipe: Recipe, registry: Registry, run_dir: Path, out_dir: Path, *, checkpoint: str | None = None
) -> Iterator[str]:
    """Writes the averaged weights, or the plain ones where no average was kept; yields a line for each file.

    `config.json`: `networks` with class, keyword arguments and file of each; schedule, prediction, latents' statistics;
    SHA-256 and size of every file. Raises LdmkitError where a part of the run is not finished.
    """
    loaded = load_networks(recipe, registry, run_dir, checkpoint=checkpoint)
    yield from (f"{name} of step {step}" for name, step in loaded.steps.items())
    modules: dict[str, nn.Module] = {"vae": loaded.autoencoder}
    networks: dict[str, dict[str, Any]] = {"vae": _described(AutoencoderKL, recipe.vae.network())}
    if recipe.vae.pretrained:
        networks["vae"] = _described(build, {"config": autoencoder_config(recipe, run_dir / "vae")})
    unet = {"in_channels": loaded.autoencoder.latent_channels}
    if recipe.unet is not None and loaded.unet is not None:
        modules["unet"] = loaded.unet
        networks["unet"] = _described(type(loaded.unet), {**unet, **recipe.unet.network()})
    if recipe.t2i is not None and loaded.text is not None:
        text_unet = {**unet, "context_dim": loaded.text.unet.context_dim}
        modules["unet_t2i"], modules["text_encoder"] = loaded.text.unet, loaded.text.encoder
        networks["unet_t2i"] = _described(type(loaded.text.unet), {**text_unet, **recipe.t2i.network()})
        # Built by the plugin that offers it, which may have to fetch it once.
        networks["text_encoder"] = {"component": recipe.text.table()}
    with new_folder(out_dir) as folder:
        for name, module in modules.items():
            networks[name]["file"] = f"{name}.safetensors"
            save_weights(folder / f"{name}.safetensors", module.state_dict())
            yield f"{out_dir / name}.safetensors: {sum(p.numel() for p in module.parameters()):,} parameters"
        if loaded.text is not None:
            words = loaded.text.tokenizer.to_str(pretty=True)
            (folder / TOKENIZER).write_text(words, encoding="utf-8", newline="\n")
        config = {
            "format_version": FORMAT_VERSION,
            "written_by": ldmkit.__version__,
            "name": recipe.name,
            "networks": networks,
            "schedule": recipe.diffusion.schedule_options(),
            "prediction": recipe.diffusion.prediction,
            "latents": {"mean": loaded.latent_mean.tolist(), "std": loaded.latent_std.tolist()},
            "picture_size": recipe.data.size,
            **({"sizes": loaded.sizes} if loaded.sizes else {}),
            "sampler": {**recipe.sampler.table(), "guidance_scale": recipe.sampler.guidance_scale},
            "files": {path.name: file_entry(path).model_dump() for path in sorted(folder.iterdir())},
            "recipe": recipe.published(),
        }
        write_json(folder / CONFIG, config)
    yield f"{out_dir / CONFIG}: how to rebuild them; see docs/bundle.md"


def _described(made_by: Callable[..., nn.Module], options: dict[str, Any]) -> dict[str, Any]:
    """What is called with these options for the network without its weights."""
    return {"class": f"{made_by.__module__}.{made_by.__qualname__}", "options": options}

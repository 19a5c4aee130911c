"""Stage `export`: a finished run -> the bundle in `exports/<recipe>/`."""

import platform
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

import ldmkit
from ldmkit.caches.sets import TextSet, latent_statistics
from ldmkit.components.protocols import TextEncoder
from ldmkit.export.bundle import NUM_PREVIEW, export_bundle
from ldmkit.export.preview_map import fit_latent_rgb
from ldmkit.models.build import build_text_to_image, build_unet
from ldmkit.recipe import Recipe
from ldmkit.run.first_weights import kept_starts
from ldmkit.run.folder import read_metrics
from ldmkit.run.networks import load_autoencoder, trained_weights
from ldmkit.run.workspace import Workspace


def export_run(workspace: Workspace, out_dir: Path) -> dict[str, Any]:
    """Loads the run's trained weights, averaged where there is an average, and writes the bundle."""
    recipe = workspace.recipe
    autoencoder = load_autoencoder(recipe, workspace.folder("vae"))
    unet = build_unet(recipe)
    unet.load_state_dict(trained_weights(workspace.folder("unet")))
    encoder: TextEncoder = workspace.registry.build("text_encoder", recipe.text.table(), where="[text]")
    tokenizer = Tokenizer.from_file(str(workspace.folder("text") / "tokenizer.json"))
    text_module = encoder.load_module(tokenizer)
    text_to_image = build_text_to_image(recipe, encoder, text_module if encoder.trainable else None)
    text_to_image.load_state_dict(trained_weights(workspace.folder("t2i")))
    latent_mean, latent_std = latent_statistics(workspace.folder("latents"), recipe.latents)
    latent_size = recipe.data.size // autoencoder.downsample
    table = recipe.sampler.table()
    manifest = export_bundle(
        out_dir,
        name=recipe.name,
        autoencoder=autoencoder,
        latent_mean=latent_mean.tolist(),
        latent_std=latent_std.tolist(),
        unet=unet,
        unet_t2i=text_to_image.unet,
        text_module=text_module,
        tokenizer=tokenizer,
        schedule_options=recipe.diffusion.schedule_options(),
        prediction=recipe.diffusion.prediction,
        latent_size=latent_size,
        picture_size=recipe.data.size,
        defaults={
            "sampler": table["use"],
            "sampler_options": {key: value for key, value in table.items() if key not in ("use", "steps")},
            "steps": table["steps"],
            "guidance_scale": recipe.sampler.guidance_scale,
        },
        recipe=published(recipe),
        fingerprint=workspace.parts["bundle"].fingerprint,
        notes=_notes(workspace),
        preview_prompts=_preview_prompts(workspace),
        latent_rgb=fit_latent_rgb(workspace),
        precision=recipe.export.precision,
        with_encoder=recipe.export.encoder,
        tolerance=recipe.export.tolerance,
        opset=recipe.export.opset,
        progress=workspace.reporter.line,
    )
    return {
        "bundle": str(out_dir),
        **{name: graph.max_abs_difference for name, graph in manifest.graphs.items()},
        **{f"{Path(name).stem}_psnr": found.psnr for name, found in manifest.trajectories.items()},
    }


def _preview_prompts(workspace: Workspace) -> list[str]:
    """Captions of held-out pictures, or of any where none is held out; none where no picture has a caption."""
    texts = TextSet(workspace.folder("text"))
    for positions in reversed(workspace.split()):
        numbers = texts.index[positions]
        if (numbers > 0).any():
            return [texts.captions[number] for number in numbers[numbers > 0][:NUM_PREVIEW]]
    return []


def published(recipe: Recipe) -> dict[str, Any]:
    """The recipe as others may read it: pictures and plugins without where they lie on this machine."""
    table = recipe.model_dump(mode="json")
    table["data"]["path"] = Path(recipe.data.path).name
    table["plugins"] = [Path(plugin).name for plugin in recipe.plugins]
    return table


def _notes(workspace: Workspace) -> dict[str, Any]:
    """How the run was made: seconds and last held-out metrics of each stage, versions, the machine's kind."""
    stages: dict[str, dict[str, Any]] = {}
    starts = kept_starts(workspace.run_dir)
    for name in ("vae", "unet", "t2i"):
        record = workspace.parts[name].record()
        # The log's seconds go on from those before an interruption; the record's are of the last session alone.
        seconds = read_metrics(workspace.folder(name) / "metrics.jsonl")[-1]["seconds"]
        stages[name] = {"seconds": seconds, "held_out": record["facts"]}
        if start := starts.get(name):
            stages[name]["started_from"] = {"name": start.name, "sha256": start.sha256}
    return {
        "num_pictures": len(workspace.index.entries),
        "stages": stages,
        "versions": {"ldmkit": ldmkit.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
    }

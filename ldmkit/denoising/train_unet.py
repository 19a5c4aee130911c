"""Stage `train-unet`: `latents/` -> `unet/`, the unconditional U-Net."""

import torch

from ldmkit.atomic import write_json
from ldmkit.caches.sets import LatentSet
from ldmkit.denoising.conditioning import NoText
from ldmkit.denoising.task import DenoisingTask
from ldmkit.diffusion.process import make_schedule
from ldmkit.models.build import build_unet
from ldmkit.run.networks import load_autoencoder
from ldmkit.run.workspace import Workspace
from ldmkit.training.engine import Engine
from ldmkit.training.loop import train
from ldmkit.training.task import Metrics
from ldmkit.training.warm_start import load_start


def train_unet(workspace: Workspace) -> Metrics:
    """Trains the unconditional U-Net; returns its last held-out metrics."""
    recipe, split = workspace.recipe, workspace.split()
    assert recipe.unet is not None
    latents = LatentSet(workspace.folder("latents"), recipe.latents, recipe.seed)
    engine = Engine(
        "unet",
        recipe.unet,
        num_samples=len(split[0]),
        seed=recipe.seed,
        buckets=latents.buckets[split[0]],
        num_tokens=recipe.unet.num_tokens(*latents.shape_of(0)[-2:]),
    )
    autoencoder = load_autoencoder(recipe, workspace.folder("vae"))
    torch.manual_seed(engine.seed)  # the network's first weights
    network = build_unet(recipe, autoencoder.latent_channels)
    schedule = make_schedule(**recipe.diffusion.schedule_options())
    write_json(workspace.folder("unet") / "config.json", recipe.unet.network())
    load_start(workspace, "unet", network)
    task = DenoisingTask(
        workspace, engine, network, NoText(), latents, *split, schedule=schedule, autoencoder=autoencoder
    )
    return train(workspace, engine, task)

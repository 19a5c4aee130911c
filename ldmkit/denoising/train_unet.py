"""Stage `train-unet`: `latents/` -> `unet/`, the unconditional U-Net."""

import torch

from ldmkit.atomic import write_json
from ldmkit.caches.sets import LatentSet
from ldmkit.denoising.conditioning import NoText
from ldmkit.denoising.task import DenoisingTask
from ldmkit.models.build import build_unet
from ldmkit.run.workspace import Workspace
from ldmkit.training.engine import Engine
from ldmkit.training.loop import train
from ldmkit.training.task import Metrics
from ldmkit.training.warm_start import load_start


def train_unet(workspace: Workspace) -> Metrics:
    """Trains the unconditional U-Net; returns its last held-out metrics."""
    recipe, split = workspace.recipe, workspace.split()
    latents = LatentSet(workspace.folder("latents"), recipe.latents, recipe.seed)
    engine = Engine("unet", recipe.unet, num_samples=len(split[0]), seed=recipe.seed)
    torch.manual_seed(engine.seed)  # the network's first weights
    network = build_unet(recipe)
    load_start(workspace, "unet", network)
    task = DenoisingTask(workspace, engine, network, NoText(), latents, *split)
    write_json(workspace.folder("unet") / "config.json", recipe.unet.network())
    return train(workspace, engine, task)

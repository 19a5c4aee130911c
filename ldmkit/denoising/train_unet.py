"""Stage `train-unet`: `latents/` -> `unet/`, the unconditional U-Net."""

import torch

from ldmkit.atomic import write_json
from ldmkit.caches.sets import LatentSet
from ldmkit.denoising.task import DenoisingTask
from ldmkit.models.build import build_unet
from ldmkit.run.workspace import Workspace
from ldmkit.training.loop import Trainer
from ldmkit.training.task import Metrics
from ldmkit.training.warm_start import load_start


def train_unet(workspace: Workspace) -> Metrics:
    """Trains the unconditional U-Net; returns its last held-out metrics."""
    recipe = workspace.recipe
    train, held_out = workspace.split()
    latents = LatentSet(workspace.folder("latents"), recipe.latents, recipe.seed)
    trainer = Trainer(workspace, workspace.parts["unet"], recipe.unet, num_samples=len(train), seed=recipe.seed)
    torch.manual_seed(trainer.seed)  # the network's first weights
    network = build_unet(recipe)
    load_start(workspace, "unet", network)
    task = DenoisingTask(workspace, trainer, recipe.unet, network, latents, train, held_out)
    write_json(workspace.folder("unet") / "config.json", recipe.unet.network())
    return trainer.fit(task)

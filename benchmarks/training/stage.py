"""The stages as the benchmarks of training run them: the only place that reaches into one.

A contender (see `benchmarks.turns`) that runs a stage never comes to its end: its process ends with the benchmark.
"""

from pathlib import Path
from typing import Any

from benchmarks.turns import Turn


def pipeline_of(recipe_file: Path, *overrides: str, runs_dir: Path | None = None) -> Any:
    """The recipe's pipeline, telling nothing; its runs lie beside the recipe, or in `runs_dir`."""
    from ldmkit.components.registry import Registry
    from ldmkit.pipeline import Pipeline
    from ldmkit.recipe import load_recipe
    from ldmkit.report import Reporter

    recipe = load_recipe(recipe_file, overrides)
    registry = Registry.load([Path(plugin) for plugin in recipe.plugins])
    runs = runs_dir or recipe_file.parent / "runs"
    return Pipeline(recipe, registry=registry, reporter=Reporter(quiet=True), runs_dir=runs)


def workspace_of(pipeline: Any, part: str, own: str) -> Any:
    """What the stage that makes `part` is handed; it writes to a folder of its own, `own`."""
    from ldmkit.run.folder import Part
    from ldmkit.run.workspace import Workspace

    parts = dict(pipeline.parts())
    parts[part] = Part(pipeline.run_dir / own, part, parts[part].inputs)
    parts[part].begin()
    return Workspace(pipeline.recipe, pipeline.registry, pipeline.index, pipeline.run_dir, parts, pipeline.reporter)


def text_steps(turn: Turn, recipe: Path, own: str, precision: str) -> None:
    """The stage `train-t2i`; with diffusers' U-Net in place of ours where `own` is "diffusers"."""
    from ldmkit.caches.sets import LatentSet, TextSet
    from ldmkit.denoising import train_t2i

    _call_before_steps(turn)
    for source in (LatentSet, TextSet):
        source.batch = turn.waiting(source.batch)
    if own == "diffusers":
        train_t2i.build_text_to_image = lambda *_: diffusers_unet()
    train_t2i.train_t2i(workspace_of(pipeline_of(recipe, f"t2i.precision='{precision}'"), "t2i", own))


def vae_steps(turn: Turn, recipe: Path, precision: str) -> None:
    """The stage `train-vae`."""
    from ldmkit.vae import train as train_vae

    _call_before_steps(turn)
    batches = train_vae.picture_batches
    train_vae.picture_batches = lambda *args, **kwargs: turn.waiting_for(batches(*args, **kwargs))
    train_vae.train_vae(workspace_of(pipeline_of(recipe, f"vae.precision='{precision}'"), "vae", "vae"))


def _call_before_steps(turn: Turn) -> None:
    from ldmkit.training import loop

    update = loop.update

    def timed(*args: Any) -> Any:
        turn()
        return update(*args)

    loop.update = timed


def device_and_precision() -> tuple[Any, str]:
    """Where ldmkit trains, and the precision that it chooses there."""
    from ldmkit.training.device import processes, resolve_precision

    return processes().device, resolve_precision("auto")


def diffusers_unet() -> Any:
    """diffusers' text U-Net of the seed's widths, levels and attention places, called as ldmkit's is.

    One layer a block, which with diffusers' additions makes 19.9 million parameters.
    """
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    class Called(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = UNet2DConditionModel(
                sample_size=32,
                in_channels=4,
                out_channels=4,
                block_out_channels=(64, 128, 128, 256),
                layers_per_block=1,
                down_block_types=("DownBlock2D",) * 2 + ("CrossAttnDownBlock2D",) * 2,
                up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",) * 2,
                cross_attention_dim=768,
                attention_head_dim=8,
            )

        def forward(self, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
            return self.unet(x_t, t, encoder_hidden_states=text, return_dict=False)[0]

    return Called()

"""One U-Net trained in several ways on one and the same autoencoder, latents and text: train, draw, score.

What `ablation` and `against_seed` share. The stages' own functions do the work; what a variant changes are keys of the
run's recipe.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from benchmarks.quality.results import Row, check_kid, kid, measured
from benchmarks.quality.toy_accuracy import new_prompts, score_folder, write_pictures
from benchmarks.runs import PARTS
from ldmkit.atomic import write_json
from ldmkit.caches.sets import TextSet
from ldmkit.components.registry import Registry
from ldmkit.data.decode import prepare
from ldmkit.denoising.train_t2i import train_t2i
from ldmkit.denoising.train_unet import train_unet
from ldmkit.diffusion.process import make_schedule
from ldmkit.diffusion.torch_sampling import draw_latents
from ldmkit.errors import LdmkitError
from ldmkit.models.build import build_text_to_image, build_unet
from ldmkit.pipeline import Pipeline
from ldmkit.recipe import Recipe
from ldmkit.report import Reporter
from ldmkit.run.folder import Part, fingerprint, recipe_of_run
from ldmkit.run.metrics import read_metrics
from ldmkit.run.networks import latent_statistics, load_autoencoder, trained_weights
from ldmkit.run.randomness import derive
from ldmkit.run.workspace import Workspace
from ldmkit.training.device import processes
from ldmkit.training.plots import to_uint8

UNet = Literal["train-unet", "train-t2i"]
MAKERS = {"train-unet": train_unet, "train-t2i": train_t2i}
BATCH = 50
"""pictures drawn at once"""


@dataclass(frozen=True)
class VariantWorkspace(Workspace):
    """A stage's workspace whose split does not change with the variant's seed."""

    shared: Pipeline

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        train, held_out = split(self.shared)
        return np.array(train, dtype=np.int64), np.array(held_out, dtype=np.int64)


def open_run(run_dir: Path) -> Pipeline:
    """`runs/NAME`, whose shared parts are done. Raises LdmkitError where one of them is missing or out of date."""
    recipe = recipe_of_run(run_dir)
    registry = Registry.load([Path(plugin) for plugin in recipe.plugins])
    pipeline = Pipeline(recipe, registry=registry, reporter=Reporter(quiet=True), runs_dir=run_dir.resolve().parent)
    for name in ("captions", "vae", "latents", "text"):
        status = pipeline.parts()[name].status()
        if status.state != "done":
            raise LdmkitError(
                f"{run_dir / name}: {status.state} {status.reason}; `ldmkit train` with its recipe makes it"
            )
    return pipeline


def split(shared: Pipeline) -> tuple[list[int], list[int]]:
    """Positions of the training pictures and of those held out, the same for every variant's seed."""
    data = shared.recipe.data
    return shared.index.split(data.held_out, shared.recipe.seed, together=data.group_duplicates)


def with_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with keys like `diffusion.schedule` set."""
    table = recipe.model_dump(mode="json")
    for place, value in overrides.items():
        *sections, key = place.split(".")
        target = table
        for section in sections:
            target = target[section]
        target[key] = value
    return Recipe.model_validate_json(json.dumps(table))


def short_run(recipe: Recipe, stage: UNet, *, steps: int, seed: int) -> dict[str, Any]:
    """Overrides for `steps` steps without stops on the way; averages forget the first nine tenths of a short run."""
    section = PARTS[stage]
    decays = getattr(recipe, section).ema_decays
    average = [min(decays[0], max(0.5, round(1 - 10 / steps, 4)))] if decays else []
    never = {f"{key}_every": steps + 1 for key in ("eval", "sample")}
    changed = {"steps": steps, "epochs": None, "ema_decays": average, **never}
    return {"seed": seed, **{f"{section}.{key}": value for key, value in changed.items()}}


def training_key(shared: Pipeline, recipe: Recipe, stage: UNet) -> str:
    """Fingerprint of everything that a variant's weights follow from."""
    made_from = {name: shared.parts()[name].fingerprint for name in ("latents", "text")}
    names = ("data", "latents", "diffusion", PARTS[stage])
    sections = {name: getattr(recipe, name).fingerprint_keys() for name in names}
    return fingerprint({"parts": made_from, **sections, "seed": recipe.seed})


def train(shared: Pipeline, recipe: Recipe, stage: UNet, folder: Path) -> tuple[Workspace, Row]:
    """Trains by `recipe` in a run folder of its own, resuming where it was interrupted.

    The row holds `seconds` (wall, of the steps alone) and the last held-out metrics.
    """
    name, quiet = PARTS[stage], Reporter(quiet=True)
    part = Part(folder / name, name, {"key": training_key(shared, recipe, stage)})
    parts = {**shared.parts(), name: part}
    workspace = VariantWorkspace(recipe, shared.registry, shared.index, folder, parts, quiet, shared=shared)
    if part.status().state != "done":
        part.begin()
        began = time.monotonic()
        metrics = MAKERS[stage](workspace)
        part.finish(time.monotonic() - began, facts=metrics)
    seconds = read_metrics(part.folder / "metrics.jsonl")[-1]["seconds"]
    return workspace, {"seconds": seconds, **part.record()["facts"]}


def draw(workspace: Workspace, stage: UNet, prompts: Sequence[str]) -> Iterator[Image.Image]:
    """A picture of each prompt by the trained network and the recipe's sampler; the noise follows from the seed."""
    recipe, device = workspace.recipe, processes().device
    generator = torch.Generator().manual_seed(derive(recipe.seed, "variant-noise", 0))
    autoencoder = load_autoencoder(recipe, workspace.folder("vae")).to(device)
    channels = autoencoder.latent_channels
    mean, std = (x.to(device)[:, None, None] for x in latent_statistics(workspace.folder("latents"), recipe.latents))
    shape = (channels, *(side // autoencoder.downsample for side in reversed(recipe.data.shapes[0])))
    module = None
    if stage == "train-t2i":
        encoder = workspace.registry.build("text_encoder", recipe.text.table(), where="[text]")
        tokenizer = Tokenizer.from_file(str(workspace.folder("text") / "tokenizer.json"))
        module = encoder.load_module(tokenizer)
        network = build_text_to_image(recipe, channels, encoder, module if encoder.trainable else None)
        module = module.to(device).eval()
    else:
        network = build_unet(recipe, channels)
    network.load_state_dict(trained_weights(workspace.folder(PARTS[stage])))
    network = network.to(device).eval()

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    @torch.no_grad()
    def text_of(batch: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids or states, mask), as the network takes them."""
        encodings = tokenizer.encode_batch(list(batch))
        ids, mask = (torch.tensor([getattr(e, a) for e in encodings], device=device) for a in ("ids", "attention_mask"))
        return (ids if encoder.trainable else module(ids, mask).float()), mask

    for first in range(0, len(prompts), BATCH):
        batch = prompts[first : first + BATCH]
        latents = draw_latents(
            network,
            noise(len(batch), *shape),
            sampler=workspace.registry.build("sampler", recipe.sampler.table(), where="[sampler]"),
            schedule=make_schedule(**recipe.diffusion.schedule_options()),
            prediction=recipe.diffusion.prediction,
            randn_like=lambda x: noise(*x.shape),
            text=(text_of(batch), text_of([""] * len(batch))) if module is not None else None,
            guidance_scale=recipe.sampler.guidance_scale,
        )
        with torch.no_grad():
            pixels = to_uint8(autoencoder.decode(latents * std + mean))
        yield from map(Image.fromarray, pixels.cpu().numpy())  # each (H, W, 3)


def wanted(shared: Pipeline, stage: UNet, num: int) -> list[Row]:
    """`num` rows with what each picture is drawn from, `text` and, of the toy set, the attributes asked for.

    Toy prompts are no training captions; of another set they are the held-out pictures' captions in turn.
    """
    if stage == "train-unet":
        return [{} for _ in range(num)]
    texts = TextSet(shared.parts()["text"].folder)
    if shared.recipe.data.source == "toy-cats":
        return [asdict(prompt) for prompt in new_prompts(num, trained_on=texts.captions)]
    numbers = texts.index[np.array(split(shared)[1], dtype=np.int64)]
    if not (numbers > 0).any():
        raise LdmkitError(f"{shared.recipe.data.path}: no held-out picture has a caption to draw")
    return [{"text": texts.captions[number]} for number in np.resize(numbers[numbers > 0], num)]


def export_held_out(shared: Pipeline, folder: Path) -> int:
    """The run's held-out pictures as PNGs of the run's size; returns how many."""
    data, chosen = shared.recipe.data, [shared.index.pictures()[i] for i in split(shared)[1]]
    prepared = (Image.fromarray(prepare(picture.load(), data.shapes[0], data.crop)) for picture in chosen)
    write_pictures(folder, prepared, [{"source": picture.key} for picture in chosen])
    return len(chosen)


@dataclass(frozen=True)
class Bench:
    """Where variants of one U-Net are measured."""

    shared: Pipeline
    stage: UNet
    out: Path
    """results.jsonl, and the pictures"""
    num: int
    """pictures to draw"""
    reference: Path | None = None
    kid_script: Path | None = None

    def measure(self, name: str, overrides: Mapping[str, Any], *, keep_weights: bool = False) -> Row:
        """The row of the run's recipe with these keys, from the file where it is there; else trains, draws and scores.

        The pictures stay in `OUT/pictures`, so that another reference costs no second training; `keep_weights` leaves
        the weights in `OUT/runs` for another sampler.
        """
        check_kid(self.reference, self.kid_script)
        recipe = with_overrides(self.shared.recipe, overrides)
        weights = training_key(self.shared, recipe, self.stage)
        key = fingerprint({"weights": weights, "sampler": recipe.sampler.model_dump(mode="json"), "num": self.num})
        label = f"{name}-seed{recipe.seed}-{key[:8]}".replace(", ", "-").replace(" ", "-")
        run, pictures = self.out / "runs" / weights[:16], self.out / "pictures" / label

        def made() -> Row:
            if not pictures.exists():
                workspace, trained = train(self.shared, recipe, self.stage, run)
                write_json(pictures.with_suffix(".json"), trained)
                rows = wanted(self.shared, self.stage, self.num)
                write_pictures(pictures, draw(workspace, self.stage, [row.get("text", "") for row in rows]), rows)
            steps = getattr(recipe, PARTS[self.stage]).steps
            row: Row = {"name": name, "seed": recipe.seed, "stage": self.stage, "steps": steps, "num": self.num}
            row |= json.loads(pictures.with_suffix(".json").read_text(encoding="utf-8"))
            if recipe.data.source == "toy-cats" and self.stage == "train-t2i":
                row["right"] = score_folder(pictures).accuracy
            if self.reference and self.kid_script:
                row |= kid(self.kid_script, self.reference, pictures)
            return row

        settings = {"key": key, "reference": str(self.reference) if self.reference else None}
        row = measured(self.out / "results.jsonl", settings, made)
        if not keep_weights:
            shutil.rmtree(run, ignore_errors=True)
        return row

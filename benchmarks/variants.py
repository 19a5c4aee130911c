"""One U-Net trained in several ways on one and the same autoencoder, latents and text: train, draw, score.

What `ablation.py` and `against_seed.py` share. The stages' own `train_unet` and `train_t2i` do the work; what a
variant changes are keys of the run's recipe.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from toy_accuracy import new_prompts, score_folder

from ldmkit.atomic import new_folder, write_json
from ldmkit.caches.sets import TextSet
from ldmkit.components.protocols import TextEncoder
from ldmkit.components.registry import Registry
from ldmkit.data.decode import prepare
from ldmkit.data.pictures import PictureIndex
from ldmkit.denoising.train_t2i import train_t2i
from ldmkit.denoising.train_unet import train_unet
from ldmkit.diffusion.process import make_schedule
from ldmkit.diffusion.torch_sampling import Text, draw_latents
from ldmkit.errors import LdmkitError
from ldmkit.models.build import build_text_to_image, build_unet
from ldmkit.pipeline import Pipeline
from ldmkit.recipe import Recipe
from ldmkit.report import Reporter
from ldmkit.run.folder import Part, fingerprint, read_metrics, recipe_of_run
from ldmkit.run.networks import latent_statistics, load_autoencoder, trained_weights
from ldmkit.run.randomness import derive
from ldmkit.run.workspace import Workspace
from ldmkit.training.device import processes
from ldmkit.training.plots import to_uint8

STAGES: dict[str, tuple[str, Callable[[Workspace], dict[str, float]]]] = {
    "train-unet": ("unet", train_unet),
    "train-t2i": ("t2i", train_t2i),
}
"""stage -> (the part and recipe section that it makes, what makes it)"""
BATCH = 50
"""pictures drawn at once"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Shared:
    """A run whose autoencoder, latents and text are done: what every variant is trained on."""

    recipe: Recipe
    registry: Registry
    index: PictureIndex
    parts: Mapping[str, Part]

    def split(self) -> tuple[list[int], list[int]]:
        """Positions of the training pictures and of those held out, the same for every variant's seed."""
        return self.index.split(self.recipe.data.held_out, self.recipe.seed)


@dataclass(frozen=True)
class VariantWorkspace(Workspace):
    """A stage's workspace whose split does not change with the variant's seed."""

    split_seed: int

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        train, held_out = self.index.split(self.recipe.data.held_out, self.split_seed)
        return np.array(train, dtype=np.int64), np.array(held_out, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to train one of the U-Nets."""

    name: str
    recipe: Recipe
    """with the variant's seed and number of steps"""
    stage: str
    num: int
    """pictures to draw"""

    def training_key(self, shared: Shared) -> str:
        """Fingerprint of everything that the weights follow from."""
        made_from = {name: shared.parts[name].fingerprint for name in ("latents", "text")}
        names = ("data", "latents", "diffusion", STAGES[self.stage][0])
        sections = {name: getattr(self.recipe, name).fingerprint_keys() for name in names}
        return fingerprint({"parts": made_from, **sections, "seed": self.recipe.seed})

    def key(self, shared: Shared) -> str:
        """Fingerprint of everything that the pictures follow from."""
        sampler = self.recipe.sampler.model_dump(mode="json")
        return fingerprint({"weights": self.training_key(shared), "sampler": sampler, "num": self.num})


def open_run(run_dir: Path) -> Shared:
    """The shared parts of `runs/NAME`. Raises LdmkitError where one of them is missing or stale."""
    recipe = recipe_of_run(run_dir)
    registry = Registry.load([Path(plugin) for plugin in recipe.plugins])
    pipeline = Pipeline(recipe, registry=registry, reporter=Reporter(quiet=True), runs_dir=run_dir.resolve().parent)
    unfinished = [p for p in pipeline.plan(("caption", "train-vae", "encode")) if p.status.state != "done"]
    if unfinished:
        first = unfinished[0]
        raise LdmkitError(
            f"{run_dir / first.part}: {first.status.state} {first.status.reason}".rstrip()
            + f"; `ldmkit {first.stage} RECIPE` with this run's recipe makes it"
        )
    return Shared(recipe, registry, pipeline.index, pipeline.parts())


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


def short_run(recipe: Recipe, stage: str, *, steps: int, seed: int) -> dict[str, Any]:
    """Overrides for `steps` steps without stops on the way; averages forget the first nine tenths of a short run."""
    section = STAGES[stage][0]
    decays = getattr(recipe, section).ema_decays
    never = {f"{section}.{key}_every": steps + 1 for key in ("eval", "sample")}
    average = [min(decays[0], max(0.5, round(1 - 10 / steps, 4)))] if decays else []
    return {
        **never,
        "seed": seed,
        f"{section}.steps": steps,
        f"{section}.epochs": None,
        f"{section}.ema_decays": average,
    }


# --- train, draw, score ----------------------------------------------------------------------------------------


def train(shared: Shared, variant: Variant, folder: Path) -> tuple[Workspace, Row]:
    """Trains the variant in a run folder of its own, going on where it was interrupted.

    The row holds `seconds` (wall, of the steps alone), `cpu_seconds` (None where it was interrupted) and the last
    held-out metrics.
    """
    name, make = STAGES[variant.stage]
    part = Part(folder / name, name, {"key": variant.training_key(shared)})
    quiet = Reporter(quiet=True)
    parts = {**shared.parts, name: part}
    workspace = VariantWorkspace(
        variant.recipe, shared.registry, shared.index, folder, parts, quiet, split_seed=shared.recipe.seed
    )
    state = part.status().state
    if state != "done":
        part.begin()
        began, cpu = time.monotonic(), time.process_time()
        metrics = make(workspace)
        cpu_seconds = None if state == "interrupted" else round(time.process_time() - cpu, 1)
        part.finish(time.monotonic() - began, facts={"cpu_seconds": cpu_seconds, **metrics})
    seconds = read_metrics(part.folder / "metrics.jsonl")[-1]["seconds"]
    return workspace, {"seconds": seconds, **part.record()["facts"]}


def draw(workspace: Workspace, stage: str, prompts: Sequence[str], *, num: int) -> Iterator[Image.Image]:
    """`num` pictures of the trained network by the recipe's sampler, from noise that follows from its seed alone."""
    recipe = workspace.recipe
    device = processes().device
    network, texts = _text_network(workspace, device) if stage == "train-t2i" else (_unet(workspace), None)
    network = network.to(device).eval()
    autoencoder = load_autoencoder(recipe, workspace.folder("vae")).to(device)
    mean, std = (x.to(device)[:, None, None] for x in latent_statistics(workspace.folder("latents"), recipe.latents))
    size = recipe.data.size // autoencoder.downsample
    sampler = workspace.registry.build("sampler", recipe.sampler.table(), where="[sampler]")
    generator = torch.Generator().manual_seed(derive(recipe.seed, "variant-noise", 0))

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    for first in range(0, num, BATCH):
        count = min(BATCH, num - first)
        latents = draw_latents(
            network,
            noise(count, autoencoder.latent_channels, size, size),
            sampler=sampler,
            schedule=make_schedule(**recipe.diffusion.schedule_options()),
            prediction=recipe.diffusion.prediction,
            randn_like=lambda x: noise(*x.shape),
            text=(texts(prompts[first : first + count]), texts([""] * count)) if texts else None,
            guidance_scale=recipe.sampler.guidance_scale,
        )
        with torch.no_grad():
            pixels = to_uint8(autoencoder.decode(latents * std + mean))
        for picture in pixels.cpu().numpy():  # (H, W, 3)
            yield Image.fromarray(picture)


def _unet(workspace: Workspace) -> torch.nn.Module:
    unet = build_unet(workspace.recipe)
    unet.load_state_dict(trained_weights(workspace.folder("unet")))
    return unet


def _text_network(
    workspace: Workspace, device: torch.device
) -> tuple[torch.nn.Module, Callable[[Sequence[str]], Text]]:
    """The trained text U-Net, and what turns prompts into its (ids or states, mask)."""
    recipe = workspace.recipe
    encoder: TextEncoder = workspace.registry.build("text_encoder", recipe.text.table(), where="[text]")
    tokenizer = Tokenizer.from_file(str(workspace.folder("text") / "tokenizer.json"))
    module = encoder.load_module(tokenizer)
    network = build_text_to_image(recipe, encoder, module if encoder.trainable else None)
    network.load_state_dict(trained_weights(workspace.folder("t2i")))
    frozen = None if encoder.trainable else module.to(device).eval()

    @torch.no_grad()
    def texts(prompts: Sequence[str]) -> Text:
        encodings = tokenizer.encode_batch(list(prompts))
        ids = torch.tensor([e.ids for e in encodings], device=device)
        mask = torch.tensor([e.attention_mask for e in encodings], device=device)
        return (ids if frozen is None else frozen(ids, mask).float()), mask

    return network, texts


def wanted(shared: Shared, stage: str, num: int) -> list[Row]:
    """`num` rows with what each picture is drawn from, `text` and, of the toy set, the attributes asked for.

    Toy prompts are no training captions; of another set they are the held-out pictures' captions in turn.
    """
    if stage == "train-unet":
        return [{} for _ in range(num)]
    texts = TextSet(shared.parts["text"].folder)
    if is_toy(shared.recipe):
        return [asdict(prompt) for prompt in new_prompts(num, trained_on=texts.captions)]
    numbers = texts.index[np.array(shared.split()[1], dtype=np.int64)]
    if not (numbers > 0).any():
        raise LdmkitError(f"{shared.recipe.data.path}: no held-out picture has a caption to draw")
    return [{"text": texts.captions[number]} for number in np.resize(numbers[numbers > 0], num)]


def is_toy(recipe: Recipe) -> bool:
    """Whether the run's pictures show known attributes."""
    return recipe.data.source == "toy-cats"


def write_pictures(folder: Path, pictures: Iterable[Image.Image], rows: Sequence[Row]) -> None:
    """`NNNNN.png` and a metadata.jsonl, all of them or none."""
    with new_folder(folder) as partial:
        lines = []
        for number, (picture, row) in enumerate(zip(pictures, rows, strict=True)):
            name = f"{number:05d}.png"
            picture.save(partial / name)
            lines.append(json.dumps({"file_name": name, **row}) + "\n")
        (partial / "metadata.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def export_pictures(shared: Shared, folder: Path, *, held_out: bool) -> int:
    """The run's held-out pictures, or all of them, as PNGs of the run's size; returns how many."""
    positions = shared.split()[1] if held_out else range(len(shared.index))
    data, pictures = shared.recipe.data, shared.index.pictures()
    prepared = (Image.fromarray(prepare(pictures[i].load(), data.size, data.crop)) for i in positions)
    write_pictures(folder, prepared, [{"source": pictures[i].key} for i in positions])
    return len(positions)


def kid(script: Path, reference: Path, generated: Path) -> Row:
    """Kernel inception distance by an external program, called as `python SCRIPT REFERENCE GENERATED --json`.

    It prints a JSON object with `kid_x1000` and its `std`. Raises LdmkitError where it fails.
    """
    done = subprocess.run(
        [sys.executable, str(script), str(reference), str(generated), "--json"], capture_output=True, text=True
    )
    if done.returncode:
        raise LdmkitError(f"{script}: failed on {reference} and {generated}: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {"kid_x1000": found["kid_x1000"], "kid_std": found["std"], "kid_floor": found.get("floor_x1000")}


# --- one row of results ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Results:
    """`OUT/results.jsonl`: one line for each variant that was trained, drawn and scored."""

    out: Path
    reference: Path | None = None
    kid_script: Path | None = None

    @property
    def rows(self) -> list[Row]:
        file = self.out / "results.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []

    def find(self, key: str) -> Row | None:
        """The newest row of these very settings, with a KID against the reference where one is given."""
        wanted = str(self.reference) if self.reference else None
        rows = [row for row in self.rows if row["key"] == key and (wanted is None or row["reference"] == wanted)]
        return rows[-1] if rows else None

    def add(self, row: Row) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def measure(self, shared: Shared, variant: Variant, *, keep_weights: bool = False) -> Row:
        """The variant's row, from the file where it is there; else trains, draws and scores, and adds it.

        The pictures stay in `OUT/pictures`, so that another reference costs no second training; `keep_weights` leaves
        the weights in `OUT/runs` for another sampler.
        """
        key, training_key = variant.key(shared), variant.training_key(shared)
        if found := self.find(key):
            return found
        section = getattr(variant.recipe, STAGES[variant.stage][0])
        label = f"{variant.name}-seed{variant.recipe.seed}-{key[:8]}".replace(", ", "-").replace(" ", "-")
        run, pictures = self.out / "runs" / training_key[:16], self.out / "pictures" / label
        if not pictures.exists():
            workspace, trained = train(shared, variant, run)
            write_json(pictures.with_suffix(".json"), trained)
            rows = wanted(shared, variant.stage, variant.num)
            prompts = [row.get("text", "") for row in rows]
            write_pictures(pictures, draw(workspace, variant.stage, prompts, num=variant.num), rows)
        row: Row = {
            "key": key,
            "name": variant.name,
            "seed": variant.recipe.seed,
            "stage": variant.stage,
            "steps": section.steps,
            "num": variant.num,
            **json.loads(pictures.with_suffix(".json").read_text(encoding="utf-8")),
            "reference": str(self.reference) if self.reference else None,
        }
        if is_toy(variant.recipe) and variant.stage == "train-t2i":
            row["right"] = score_folder(pictures).accuracy
        if self.reference and self.kid_script:
            row |= kid(self.kid_script, self.reference, pictures)
        self.add(row)
        if not keep_weights:
            shutil.rmtree(run, ignore_errors=True)
        return row

"""From a recipe to a bundle: which parts of a run are there, which are stale and why, and what makes them. No torch."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ldmkit.atomic import write_json
from ldmkit.data.captions import caption_files_hash, captions_hash
from ldmkit.data.fetch import fetch
from ldmkit.data.pictures import PictureIndex, scan
from ldmkit.errors import Interrupted, LdmkitError
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe, check_components
from ldmkit.report import Reporter, duration
from ldmkit.run import Part, Status, is_finished, locked

STAGES = {
    "caption": ("captions",),
    "train-vae": ("vae",),
    "encode": ("latents", "text"),
    "train-unet": ("unet",),
    "train-t2i": ("t2i",),
    "export": ("bundle",),
}
"""the parts that each stage makes, in order"""
TRAINED = ("vae", "unet", "t2i")
"""the parts that several processes make together"""


@dataclass(frozen=True)
class Planned:
    """One part of a run, and what `train` would do about it."""

    stage: str
    part: str
    status: Status


class Pipeline:
    """A recipe's run: looks at the pictures once, then at each part when its turn comes."""

    def __init__(
        self, recipe: Recipe, *, registry: Registry, reporter: Reporter, runs_dir: Path = Path("runs")
    ) -> None:
        check_components(recipe, registry)
        self.recipe = recipe
        self.registry = registry
        self.reporter = reporter
        self.run_dir = runs_dir / recipe.name
        self.bundle_dir = Path(recipe.export.path) / recipe.name
        self._index: PictureIndex | None = None
        self._main = int(os.environ.get("RANK", "0")) == 0
        self._several = int(os.environ.get("WORLD_SIZE", "1")) > 1

    # --- the pictures --------------------------------------------------------------------------------------

    @property
    def index(self) -> PictureIndex:
        """The pictures, fetched or drawn where the folder is not there, decoded once and remembered."""
        if self._index is None:
            data = self.recipe.data
            folder = Path(data.path)
            if not folder.exists() and data.source != "folder":
                self.reporter.line(f"data: {folder} is not there; getting it from {data.source}")
                fetch(data.source, folder, num_pictures=data.num_pictures, size=data.size)
            self._index = scan(
                folder,
                max_pictures=data.num_pictures,
                max_bad=data.max_bad,
                index_cache=self.run_dir / "pictures.json",
            )
        return self._index

    @cached_property
    def _caption_files(self) -> str:
        return caption_files_hash(Path(self.recipe.data.path))

    def has_pictures(self) -> bool:
        """Whether the pictures are there without fetching or drawing them."""
        return Path(self.recipe.data.path).exists()

    # --- what each part is made from -----------------------------------------------------------------------

    def parts(self) -> dict[str, Part]:
        """Every part with the inputs that it would be made from now."""
        recipe, pictures = self.recipe, self.index.hash
        data = recipe.data.fingerprint_keys()
        split = {"held_out": recipe.data.held_out, "seed": recipe.seed}
        pixels = {key: data[key] for key in ("size", "crop", "flip")}
        parts: dict[str, Part] = {}

        def add(name: str, **inputs: Any) -> None:
            parts[name] = Part(self.run_dir / name, name, inputs)

        add(
            "captions",
            pictures=pictures,
            caption={k: v for k, v in recipe.caption.fingerprint_keys().items() if k != "missing"},
            caption_files=self._caption_files,
        )
        add("vae", pictures=pictures, data={**pixels, **split}, vae=recipe.vae.fingerprint_keys())
        add("latents", vae=parts["vae"].fingerprint, latents={"dtype": recipe.latents.dtype}, data={**pixels, **split})
        captions = self.run_dir / "captions" / "captions.jsonl"
        done = parts["captions"].status().state == "done"
        add(
            "text",
            captions=captions_hash(captions) if done else "not yet written",
            text=recipe.text.fingerprint_keys(),
            missing=recipe.caption.missing,
            pictures=pictures,
        )
        denoising = {
            "latents": parts["latents"].fingerprint,
            "use": {k: v for k, v in recipe.latents.fingerprint_keys().items() if k != "dtype"},
            "diffusion": recipe.diffusion.fingerprint_keys(),
            "data": {**pixels, **split},
        }
        add("unet", **denoising, unet=recipe.unet.fingerprint_keys())
        add("t2i", **denoising, text=parts["text"].fingerprint, t2i=recipe.t2i.fingerprint_keys())
        bundle = {name: parts[name].fingerprint for name in ("vae", "latents", "unet", "t2i", "text")}
        # Its own part, though the files lie in exports/: the sampler is left out, since it makes nothing stale.
        export = {"opset": recipe.export.opset, "tolerance": recipe.export.tolerance}
        add("bundle", **bundle, export=export)
        return parts

    def plan(self, stages: Sequence[str] = tuple(STAGES)) -> list[Planned]:
        """Each part of these stages and its state; a part behind one that will be made is made too."""
        if not self.has_pictures():
            return [
                Planned(s, p, Status("missing", "the pictures are not there yet")) for s in stages for p in STAGES[s]
            ]
        parts = self.parts()
        return [Planned(s, p, self._status(p, parts)) for s in stages for p in STAGES[s]]

    def _status(self, name: str, parts: dict[str, Part]) -> Status:
        status = parts[name].status()
        if name == "bundle" and status.state == "done" and not (self.bundle_dir / "manifest.json").is_file():
            return Status("missing")
        return status

    # --- doing it ------------------------------------------------------------------------------------------

    def run(
        self, stages: Sequence[str] = tuple(STAGES), *, forced: str | None = None, bundle_dir: Path | None = None
    ) -> None:
        """Makes what is missing or stale of these stages, in order; `forced` names one to run again from nothing.

        A bundle goes to `bundle_dir` where one is given.

        Raises LdmkitError where a stage before them is not finished.
        """
        started = time.monotonic()
        if bundle_dir is not None:
            self.bundle_dir = bundle_dir
        with locked(self.run_dir) if self._main else nullcontext(), self._processes():
            if self._main:
                write_json(self.run_dir / "recipe.json", self.recipe.model_dump(mode="json"))
                self.index  # noqa: B018 - fetched, scanned and remembered before the other processes look
            self._barrier()
            made = 0
            for stage in stages:
                for name in STAGES[stage]:
                    made += self._make(stage, name, forced=stage == forced, asked=stages)
            if not made:
                self.reporter.line(f"{self.recipe.name}: everything is up to date; nothing to do")
            else:
                self.reporter.line(f"{self.recipe.name}: done in {duration(time.monotonic() - started)}")

    @contextmanager
    def _processes(self) -> Iterator[None]:
        """Under `accelerate launch`: says goodbye to the others, and lets the first process alone tell of a signal."""
        try:
            yield
        except Interrupted as interrupted:
            self._part_from_others()
            if self._main:
                raise
            sys.exit(interrupted.exit_code)
        self._part_from_others()

    def _part_from_others(self) -> None:
        """Not after an error: the others wait in a barrier that this process will not reach, and the launcher acts."""
        if self._several:
            from ldmkit.stages.engine import processes

            processes().destroy_process_group()

    def _barrier(self) -> None:
        """Under `accelerate launch` every process comes here: they wait for one another."""
        if self._several:
            from ldmkit.stages.engine import processes

            processes().wait_for_everyone()

    def _make(self, stage: str, name: str, *, forced: bool, asked: Sequence[str]) -> bool:
        """Makes one part where needed; True if it did."""
        parts = self.parts()
        part = parts[name]
        status = self._status(name, parts)
        if status.state == "done" and not forced:
            return False
        self._check_inputs(name, parts, asked)
        label = f"{stage} {name}" if len(STAGES[stage]) > 1 else stage
        kept = "a new one takes its place" if name == "bundle" else f"the old one is kept in {self.run_dir / 'stale'}"
        why = {
            "missing": "not made yet",
            "interrupted": "interrupted, going on",
            "stale": f"made from something else ({status.reason}); {kept}",
            "done": "asked for again",
        }[status.state]
        self.reporter.line(f"{label}: {why}")
        began = time.monotonic()
        self._barrier()  # every process has read the record before the first one changes it
        if self._main:
            if forced and status.state == "done" and name != "bundle":
                part.set_aside()
            part.begin()
        self._barrier()
        if self._main or name in TRAINED:
            from ldmkit.stages.context import StageContext

            context = StageContext(self.recipe, self.registry, self.index, self.run_dir, parts, self.reporter)
            facts = _maker(name)(context, self.bundle_dir)
            if self._main:
                part.finish(time.monotonic() - began, facts=facts)
                told = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
                self.reporter.line(f"{label}: done in {duration(time.monotonic() - began)}  {told}".rstrip())
        self._barrier()
        return True

    def _check_inputs(self, name: str, parts: dict[str, Part], asked: Sequence[str]) -> None:
        needs = {"latents": ["vae"], "text": ["captions"], "unet": ["vae", "latents"]}
        needs |= {"t2i": ["vae", "latents", "text"], "bundle": ["vae", "latents", "text", "unet", "t2i"]}
        for needed in needs.get(name, []):
            status = parts[needed].status()
            if status.state != "done":
                stage = next(s for s, made in STAGES.items() if needed in made)
                reason = f" ({status.reason})" if status.reason else ""
                raise LdmkitError(
                    f"{self.run_dir / needed}: {status.state}{reason}, and {name} is made from it; "
                    f"run `ldmkit {stage} RECIPE` with this run's recipe first, or `ldmkit train RECIPE` for all of it"
                )


def _maker(name: str) -> Callable[[Any, Path], dict[str, Any]]:
    """What makes a part; imported here, since it brings torch."""
    if name == "captions":
        from ldmkit.stages.caption import caption

        return lambda context, _: caption(context)
    if name == "vae":
        from ldmkit.stages.train_vae import train_vae

        return lambda context, _: train_vae(context)
    if name == "latents":
        from ldmkit.stages.encode import encode_latents

        return lambda context, _: encode_latents(context)
    if name == "text":
        from ldmkit.stages.encode import encode_text

        return lambda context, _: encode_text(context)
    if name == "unet":
        from ldmkit.stages.train_unet import train_unet

        return lambda context, _: train_unet(context)
    if name == "t2i":
        from ldmkit.stages.train_t2i import train_t2i

        return lambda context, _: train_t2i(context)
    from ldmkit.stages.export_run import export_run

    return export_run


def recipe_of_run(folder: Path) -> Recipe:
    """The recipe that a run folder was made with. Raises LdmkitError where `folder` is no run."""
    try:
        return Recipe.model_validate_json((folder / "recipe.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LdmkitError(f"{folder}: not a run: it has no recipe.json; runs lie in runs/") from None
    except ValueError:
        raise LdmkitError(
            f"{folder / 'recipe.json'}: damaged, or of another version of ldmkit; "
            "`ldmkit train` with the run's recipe writes it anew"
        ) from None


def newest_finished_run(runs_dir: Path) -> Path:
    """The run whose text U-Net was finished last. Raises LdmkitError where there is none."""
    finished = [record.parent.parent for record in runs_dir.glob("*/t2i/record.json") if is_finished(record.parent)]
    if not finished:
        raise LdmkitError(f"{runs_dir}: no finished run here; `ldmkit train RECIPE` makes one")
    return max(finished, key=lambda run: (run / "t2i" / "record.json").stat().st_mtime_ns)

"""From a recipe to a bundle: which parts of a run are there, which are stale and why, and what makes them. No torch."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from ldmkit.atomic import check_writable, no_room, sweep, write_json
from ldmkit.components.protocols import TextEncoder
from ldmkit.components.registry import Registry
from ldmkit.data.captions import caption_files_hash
from ldmkit.data.fetch import fetch
from ldmkit.data.pictures import PictureIndex, scan
from ldmkit.errors import Interrupted, LdmkitError, lost_process
from ldmkit.recipe import Recipe, check_components
from ldmkit.report import Reporter, duration
from ldmkit.run import gate
from ldmkit.run.first_weights import Start, find_starts, keep_start, kept_starts
from ldmkit.run.folder import Part, Status, is_finished, locked
from ldmkit.run.parts import parts_of

STAGES = {
    "caption": ("captions",),
    "train-vae": ("vae",),
    "encode": ("latents", "text"),
    "train-unet": ("unet",),
    "train-t2i": ("t2i",),
    "export": ("bundle",),
}
"""the parts that each stage makes, in order"""
MAKERS = {
    "captions": "ldmkit.caches.caption:caption",
    "vae": "ldmkit.vae.train:train_vae",
    "latents": "ldmkit.caches.encode:encode_latents",
    "text": "ldmkit.caches.encode:encode_text",
    "unet": "ldmkit.denoising.train_unet:train_unet",
    "t2i": "ldmkit.denoising.train_t2i:train_t2i",
    "bundle": "ldmkit.export.run:export_run",
}
"""module:function that makes a part; each is handed a Workspace, that of the bundle its folder as well"""
TRAINED = ("vae", "unet", "t2i")
"""the parts that several processes make together"""
TOLD = 10
"""lines about single pictures that a run prints; `ldmkit data check` has all of them"""
BEHIND_THE_GATE = ("unet", "t2i")
"""the parts that are worth no more than the autoencoder is"""


@dataclass(frozen=True)
class Planned:
    """One part of a run, and what `train` would do about it."""

    stage: str
    part: str
    status: Status


class Pipeline:
    """A recipe's run: looks at the pictures once, then at each part when its turn comes."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        registry: Registry,
        reporter: Reporter,
        runs_dir: Path = Path("runs"),
        keeps_recipe: bool = True,
    ) -> None:
        """`keeps_recipe`: whether the run's folder gets this recipe, and not one that is its own, changed for once."""
        check_components(recipe, registry)
        self.recipe = recipe
        self.registry = registry
        self.reporter = reporter
        self.run_dir = runs_dir / recipe.name
        self.bundle_dir = Path(recipe.export.path) / recipe.name
        self._keeps_recipe = keeps_recipe
        self._index: PictureIndex | None = None
        self._init_from: Path | None = None
        self._given: dict[str, Start] = {}
        self._gate_is_open = self._ignore_gate = self._told = False
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
                # Who only looks, as a dry run does, leaves no folder behind.
                index_cache=self.run_dir / "pictures.json" if self.run_dir.is_dir() else None,
            )
        return self._index

    @cached_property
    def _caption_files(self) -> str:
        return caption_files_hash(Path(self.recipe.data.path))

    @cached_property
    def _frozen(self) -> bool:
        encoder: TextEncoder = self.registry.build("text_encoder", self.recipe.text.table(), where="[text]")
        return not encoder.trainable

    def has_pictures(self) -> bool:
        """Whether the pictures are there without fetching or drawing them."""
        return Path(self.recipe.data.path).exists()

    # --- what each part is made from -----------------------------------------------------------------------

    def start_from(self, source: Path, stages: Sequence[str]) -> None:
        """Has the networks that these stages train start from weights in `source`; see `find_starts`."""
        trained = [part for stage in stages for part in STAGES[stage] if part in TRAINED]
        if not trained:
            raise LdmkitError(f"--init-from {source}: {' and '.join(stages)} trains nothing")
        self._init_from = source
        self._given = find_starts(source, trained, self.run_dir)

    def _starts(self) -> dict[str, Start]:
        return {**kept_starts(self.run_dir), **self._given}

    def parts(self) -> dict[str, Part]:
        """Every part with the inputs that it would be made from now."""
        return parts_of(
            self.recipe,
            self.run_dir,
            pictures=self.index.hash,
            caption_files=self._caption_files,
            frozen=self._frozen,
            starts={part: start.sha256 for part, start in self._starts().items()},
        )

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
        self,
        stages: Sequence[str] = tuple(STAGES),
        *,
        forced: str | None = None,
        bundle_dir: Path | None = None,
        ignore_gate: bool = False,
    ) -> None:
        """Makes what is missing or stale of these stages, in order; `forced` names one to run again from nothing.

        A bundle goes to `bundle_dir` where one is given. `ignore_gate` trains U-Nets whatever the autoencoder is like.

        Raises LdmkitError where a stage before them is not finished, or the autoencoder does not pass the gate.
        """
        self._gate_is_open = False
        self._ignore_gate = ignore_gate
        started = time.monotonic()
        if bundle_dir is not None:
            self.bundle_dir = bundle_dir
        begun = self.run_dir.exists()
        with no_room(self.run_dir), locked(self.run_dir) if self._main else nullcontext(), self._processes():
            if self._main:
                sweep(self.run_dir)
                for folder in (
                    self.bundle_dir if p == "bundle" else self.run_dir / p for s in stages for p in STAGES[s]
                ):
                    check_writable(folder)  # now, and not after hours
                try:
                    self.index  # noqa: B018 - fetched, scanned and remembered before the other processes look
                except LdmkitError:
                    if not begun:
                        self._leave_nothing()
                    raise
                self._keep_starts()
                if self._keeps_recipe:
                    write_json(self.run_dir / "recipe.json", self.recipe.model_dump(mode="json"))
            self._barrier()
            made = 0
            for stage in stages:
                for name in STAGES[stage]:
                    made += self._make(stage, name, forced=stage == forced)
            if not made:
                self.reporter.line(f"{self.recipe.name}: everything is up to date; nothing to do")
            else:
                self.reporter.line(f"{self.recipe.name}: done in {duration(time.monotonic() - started)}")

    def _keep_starts(self) -> None:
        """Before anything is made: hours later would be late to hear that the weights do not fit."""
        kept = kept_starts(self.run_dir)
        new = [
            start for start in self._given.values() if start.part not in kept or kept[start.part].sha256 != start.sha256
        ]
        if new:
            from ldmkit.training.warm_start import check_starts

            check_starts(self.recipe, self.registry, new)
        for start in new:
            keep_start(start, self.run_dir)

    def _tell(self) -> None:
        """Before the first part is made: where this run reads and writes, and what is wrong with the pictures."""
        if not self._told:
            self._told = True
            folder = Path(self.recipe.data.path).absolute()
            self.reporter.line(f"reads {folder}; writes {self.run_dir} and {self.bundle_dir}")
            for line in self.index.told(TOLD):
                self.reporter.line(f"data: {line}")

    def _leave_nothing(self) -> None:
        """After a first command that could not begin: its folder goes again, unless pictures were looked at."""
        if not (self.run_dir / "pictures.json").exists():
            with suppress(OSError):  # Windows keeps the lock's file
                (self.run_dir / ".lock").unlink()
                self.run_dir.rmdir()
                self.run_dir.parent.rmdir()  # only where nothing else lies in it

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
        except RuntimeError as error:
            if (told := lost_process(error)) is None:
                raise
            raise told from None
        self._part_from_others()

    def _part_from_others(self) -> None:
        """Not after an error: the others wait in a barrier that this process will not reach, and the launcher acts."""
        if self._several:
            from ldmkit.training.device import processes

            processes().destroy_process_group()

    def _barrier(self) -> None:
        """Under `accelerate launch` every process comes here: they wait for one another."""
        if self._several:
            from ldmkit.training.device import processes

            processes().wait_for_everyone()

    def _make(self, stage: str, name: str, *, forced: bool) -> bool:
        """Makes one part where needed; True if it did."""
        parts = self.parts()
        part = parts[name]
        status = self._status(name, parts)
        if status.state == "done" and not forced:
            return False
        self._check_inputs(name, parts)
        if name in BEHIND_THE_GATE:
            self._pass_gate(parts["latents"])
        label = f"{stage} {name}" if len(STAGES[stage]) > 1 else stage
        kept = "a new one takes its place" if name == "bundle" else f"the old one is kept in {self.run_dir / 'stale'}"
        why = {
            "missing": "not made yet",
            "interrupted": "interrupted, going on",
            "stale": f"made from something else ({status.reason}); {kept}",
            "done": "asked for again",
        }[status.state]
        self._tell()
        self.reporter.line(f"{label}: {why}")
        if start := self._starts().get(name):
            self.reporter.line(f"{label}: first weights: {start.source} (SHA-256 {start.sha256[:12]}...)")
        elif self._init_from is not None and name in TRAINED:
            self.reporter.line(f"{label}: first weights: random, since {self._init_from} has no finished {name}")
        began = time.monotonic()
        self._barrier()  # every process has read the record before the first one changes it
        if self._main:
            if forced and status.state == "done" and name != "bundle":
                part.set_aside()
            part.begin()
        self._barrier()
        if self._main or name in TRAINED:
            from ldmkit.run.workspace import Workspace

            workspace = Workspace(self.recipe, self.registry, self.index, self.run_dir, parts, self.reporter)
            with no_room(self.bundle_dir if name == "bundle" else part.folder):
                facts = _maker(name)(workspace, *([self.bundle_dir] if name == "bundle" else []))
            if self._main:
                part.finish(time.monotonic() - began, facts=facts)
                told = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
                self.reporter.line(f"{label}: done in {duration(time.monotonic() - began)}  {told}".rstrip())
        self._barrier()
        return True

    def _pass_gate(self, latents: Part) -> None:
        """Shows what the autoencoder is like before the first U-Net trains; every process comes to the same end.

        Raises LdmkitError where it is not good enough.
        """
        if self._gate_is_open:
            return
        quality = gate.read_quality(latents.folder)
        rows = gate.check(quality, self.recipe.gate)
        for line in gate.table(quality, rows):
            self.reporter.line(line)
        if not self._ignore_gate:
            gate.require(rows)
        self._gate_is_open = True

    def _check_inputs(self, name: str, parts: dict[str, Part]) -> None:
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


def _maker(name: str) -> Callable[..., dict[str, Any]]:
    """The function that makes a part; imported here, since it brings torch."""
    module, function = MAKERS[name].split(":")
    found: Callable[..., dict[str, Any]] = getattr(import_module(module), function)
    return found


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

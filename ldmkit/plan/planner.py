"""`ldmkit plan`: the first steps of every stage still to be made, and what they tell of the rest.

The stages themselves run, in a folder of their own, on a sample of the pictures; the U-Nets on latents of an
autoencoder that was never trained, whose steps cost the same.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from tokenizers import Tokenizer

from ldmkit.caches.encode import encode_latents, encode_text
from ldmkit.caches.quality import MAX_HELD_OUT
from ldmkit.caches.sets import TextSet
from ldmkit.caches.shards import PROGRESS
from ldmkit.components.protocols import TextEncoder
from ldmkit.data.captions import captioners, read_captions
from ldmkit.denoising.train_t2i import train_t2i
from ldmkit.denoising.train_unet import train_unet
from ldmkit.errors import Interrupted, LdmkitError
from ldmkit.models.build import build_autoencoder, build_text_to_image, build_unet
from ldmkit.plan.caption_cost import caption_cost
from ldmkit.plan.footprint import folder_bytes, grown_bytes, trained_bytes
from ldmkit.plan.probe import (
    LargestBatch,
    PeakMemory,
    Stage,
    Timed,
    Watch,
    available_memory,
    empty,
    extrapolate_largest,
    memory_at,
    search_largest,
    time_steps,
)
from ldmkit.plan.row import Row, steps_seconds, unit_seconds
from ldmkit.plan.sample import sample_of
from ldmkit.recipe.training import Training, Vae
from ldmkit.run.checkpoint import save_weights
from ldmkit.run.folder import Part
from ldmkit.run.parts import PARTS, behind
from ldmkit.run.workspace import Workspace
from ldmkit.training.device import processes
from ldmkit.vae.train import train_vae


class Planner:
    """Measures stage after stage in the scratch folders of `workspace`, whose index holds all pictures."""

    def __init__(
        self,
        workspace: Workspace,
        real: Mapping[str, Part],
        states: Mapping[str, str],
        *,
        steps: int,
        tell: Callable[[str], None],
    ) -> None:
        self.workspace = workspace
        self.real = real
        self.states = states
        self.steps = steps
        self.tell = tell
        self.recipe = workspace.recipe
        self.sample = sample_of(workspace)
        self.available = available_memory()
        """bytes that the run could have"""
        self.growth = len(workspace.index) / len(self.sample.index)

    def rows(self) -> Iterator[Row]:
        """A row for each part, in order; for the autoencoder one more where losses start later."""
        caches = {"captions": self._captions, "latents": self._latents, "text": self._text}
        measures = {**caches, "unet": self._unet, "t2i": self._t2i, "bundle": self._bundle}
        failed: list[str] = []
        for name, spec in PARTS.items():
            lacking = [f"the {each}" for each in spec.needs if each in failed]
            if lacking or name not in (*measures, "vae"):
                reason = f"it needs {' and '.join(lacking)}" if lacking else ""
                yield Row(stage=spec.label, state="cannot run" if lacking else "to do", reason=reason, seconds=None)
            elif name == "vae":
                yield from self._guarded(spec.label, (name,), self._vae)
                self._untrained_autoencoder()
            else:
                needed = name in caches and self._to_do(*behind(name))
                row = self._one(spec.label, (name,), measures[name], needed=needed)
                yield row
                if row.state == "cannot run" and name in ("latents", "text"):  # captions have a stand-in
                    failed.append(name)

    # --- what each row has in common ------------------------------------------------------------------------

    def _to_do(self, *parts: str) -> bool:
        return any(self.states[part] != "done" for part in parts)

    def _one(self, label: str, parts: tuple[str, ...], measure: Callable[[], Row], *, needed: bool = False) -> Row:
        (row,) = self._guarded(label, parts, lambda: [measure()], needed=needed)
        return row

    def _guarded(
        self, label: str, parts: tuple[str, ...], measure: Callable[[], list[Row]], *, needed: bool = False
    ) -> list[Row]:
        """The rows, or one that says that it is done, or why it cannot run; `needed` measures a done one as well."""
        to_do = self._to_do(*parts)
        try:
            rows = []
            if to_do or needed:
                self.tell(label)
                rows = measure()
        except Interrupted:
            raise
        except LdmkitError as error:
            return [Row(stage=label, state="cannot run", reason=str(error), seconds=None)]
        return rows if to_do else [Row(stage=label, state="done")]

    # --- captions, latents, text ----------------------------------------------------------------------------

    def _captions(self) -> Row:
        path = self.real["captions"].folder / "captions.jsonl"
        if self.states["captions"] == "done":
            empty(self.workspace.folder("captions"))
            shutil.copy(path, self.workspace.folder("captions"))
            return Row(stage="caption", state="done")
        done = list(captioners(path)) if self.states["captions"] == "interrupted" else []
        with PeakMemory() as memory:
            cost = caption_cost(self.workspace, self.sample, done)
        return Row(
            stage="caption",
            state="to do",
            left=cost.left,
            unit="pictures",
            unit_seconds=cost.seconds if cost.left else None,
            pictures_per_second=1 / cost.seconds if cost.left else None,
            memory=memory.peak(),
            disk=round(cost.line_bytes * (len(self.workspace.index) - len(done))),
            seconds=cost.start + cost.left * cost.seconds,
        )

    def _untrained_autoencoder(self) -> None:
        folder = self.workspace.folder("vae")
        empty(folder)
        save_weights(folder / "model.safetensors", build_autoencoder(self.recipe).state_dict())

    def _latents(self) -> Row:
        folder = self.workspace.folder("latents")
        empty(folder)
        # Each held-out picture of the sample once: how good they come out is looked at in the end.
        own = np.unique(self.sample.held_out)
        with PeakMemory() as memory:
            watch = Watch()
            encode_latents(replace(self.sample, held_out=own, reporter=watch))
            after = watch.seconds() - watch.marks[-1][1]
        seconds = unit_seconds(watch)
        after *= min(MAX_HELD_OUT, len(self.sample.held_out)) / max(1, len(own))
        count = len(self.workspace.index) - self._pictures_encoded()
        return Row(
            stage="encode latents",
            state="to do",
            left=count,
            unit="pictures",
            unit_seconds=seconds,
            pictures_per_second=1 / seconds,
            memory=memory.peak(),
            disk=max(0, grown_bytes(folder, self.growth) - self._there("latents")),
            seconds=count * seconds + after,
        )

    def _pictures_encoded(self) -> int:
        """Pictures behind which an interrupted encoding goes on."""
        progress = self.real["latents"].folder / PROGRESS
        if self.states["latents"] != "interrupted" or not progress.is_file():
            return 0
        return int(json.loads(progress.read_text(encoding="utf-8"))["done"])

    def _there(self, name: str) -> int:
        """Bytes of what is left of an interrupted part, which goes on from them."""
        return folder_bytes(self.real[name].folder) if self.states[name] == "interrupted" else 0

    def _text(self) -> Row:
        folder = self.workspace.folder("text")
        empty(folder)
        with PeakMemory() as memory:
            watch = Watch()
            encode_text(replace(self.sample, reporter=watch))
        texts = TextSet(folder)
        sampled = len(texts.captions)
        count = self._distinct_captions(sampled)
        # Without a network to run there are only tokens to be made, which costs nothing to speak of.
        seconds = unit_seconds(watch) if watch.marks else None
        return Row(
            stage="encode text",
            state="to do",
            left=count,
            unit="captions",
            unit_seconds=seconds,
            memory=memory.peak(),
            disk=grown_bytes(folder, count / sampled, per_picture=self.growth),
            seconds=count * (seconds or 0.0),
        )

    def _distinct_captions(self, sampled: int) -> int:
        """Counted where all are written, else as many a picture as in the sample; the empty one is among them."""
        if self.states["captions"] == "done":
            captions = read_captions(self.real["captions"].folder / "captions.jsonl")
            used = {captions.get(entry.key) for entry in self.workspace.index.entries}
            return len(used - {None}) + 1
        return max(1, round((sampled - 1) * self.growth)) + 1

    # --- training -------------------------------------------------------------------------------------------

    def _vae(self) -> list[Row]:
        section: Vae = self.recipe.vae
        num_samples = len(self.workspace.split()[0])
        num_steps = section.num_steps(num_samples)
        done = self._steps_done("vae")
        epoch = num_samples // section.batch_size
        later = {
            name: max(loss.start_step, loss.start_epoch * epoch)
            for name, loss in section.losses.items()
            if loss.start_step or loss.start_epoch or loss.start_on_plateau
        }
        first = min([num_steps, *later.values()])
        rows = []
        if done < first:
            rows.append(self._trained("train-vae", "vae", train_vae, self.workspace, num_samples, done, first))
        if first < num_steps:
            at_once = {"start_step": 0, "start_epoch": 0, "start_on_plateau": False, "ramp_steps": 0}
            losses = {name: loss.model_copy(update=at_once) for name, loss in section.losses.items()}
            vae = section.model_copy(update={"losses": losses})
            workspace = replace(self.workspace, recipe=self.recipe.model_copy(update={"vae": vae}))
            label = f"train-vae with {', '.join(later)}" if rows else "train-vae"
            rows = [replace(row, disk=0, transient_disk=0, largest_batch=None) for row in rows]
            begin = max(done, first)
            rows.append(self._trained(label, "vae", train_vae, workspace, num_samples, begin, num_steps))
        return rows or [Row(stage="train-vae", state="to do", left=0)]

    def _unet(self) -> Row:
        num_samples = len(self.workspace.split()[0])
        num_steps = self.recipe.unet.num_steps(num_samples)
        done = self._steps_done("unet")
        return self._trained("train-unet", "unet", train_unet, self.sample, num_samples, done, num_steps)

    def _t2i(self) -> Row:
        with_caption = TextSet(self.workspace.folder("text")).index[self.sample.train] >= 0
        num_samples = int(with_caption.sum())
        num_steps = self.recipe.t2i.num_steps(max(1, num_samples))
        done = self._steps_done("t2i")
        return self._trained("train-t2i", "t2i", train_t2i, self.sample, num_samples, done, num_steps)

    def _steps_done(self, name: str) -> int:
        """Steps of the run's newest checkpoint."""
        if self.states[name] != "interrupted":
            return 0
        found = (self.real[name].folder / "checkpoints").glob("step_*")
        return max((int(folder.name.removeprefix("step_")) for folder in found), default=0)

    def _trained(
        self, label: str, name: str, stage: Stage, workspace: Workspace, num_samples: int, begin: int, end: int
    ) -> Row:
        section: Training = getattr(self.recipe, name)
        num_steps = section.num_steps(num_samples)
        timed = time_steps(stage, workspace, name, num_steps=num_steps, steps=self.steps)
        disk, checkpoint = trained_bytes(workspace.folder(name), section, num_steps)
        return Row(
            stage=label,
            state="to do",
            left=end - begin,
            unit_seconds=timed.step,
            pictures_per_second=section.batch_size / timed.step,
            memory=timed.memory,
            disk=max(0, disk - self._there(name)),
            transient_disk=checkpoint,
            seconds=steps_seconds(timed, section, begin, end, last=end == num_steps) if begin < end else 0.0,
            largest_batch=self._largest(stage, workspace, name, timed, num_samples),
        )

    def _largest(self, stage: Stage, workspace: Workspace, name: str, timed: Timed, num_samples: int) -> LargestBatch:
        section: Training = getattr(self.recipe, name)
        if processes().device.type == "cuda":
            return search_largest(
                lambda size: memory_at(stage, workspace, name, size) is not None,
                batch_size=section.batch_size,
                unit=section.grad_accumulation,
                limit=max(section.batch_size, num_samples),
            )
        twice = memory_at(stage, workspace, name, 2 * section.batch_size)
        assert twice is not None  # only a GPU says that it has no more
        return extrapolate_largest(
            timed.step_memory,
            twice,
            batch_size=section.batch_size,
            unit=section.grad_accumulation,
            available=self.available,
        )

    # --- the bundle -----------------------------------------------------------------------------------------

    def _bundle(self) -> Row:
        """Its graphs hold the weights in float32; making and checking them was not measured."""
        encoder: TextEncoder = self.workspace.registry.build("text_encoder", self.recipe.text.table(), where="[text]")
        tokenizer = Tokenizer.from_file(str(self.workspace.folder("text") / "tokenizer.json"))
        networks: list[torch.nn.Module] = [
            build_autoencoder(self.recipe).decoder,
            build_unet(self.recipe),
            build_text_to_image(self.recipe, encoder, None),
            encoder.load_module(tokenizer),
        ]
        weights = sum(p.numel() for network in networks for p in network.parameters())
        return Row(stage="export", state="to do", left=1, unit="bundle", disk=4 * weights, seconds=None)

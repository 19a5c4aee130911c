"""`ldmkit plan`: the first steps of every part still to be made, and what they tell of the rest.

The stages themselves run, in a folder of their own, on a sample of the pictures; the U-Nets on latents of an
autoencoder that was never trained, whose steps cost the same.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ldmkit.atomic import write_json
from ldmkit.caches.caption import caption
from ldmkit.caches.encode import encode_latents, encode_text
from ldmkit.caches.quality import MAX_HELD_OUT
from ldmkit.caches.sets import TextSet
from ldmkit.caches.shards import PROGRESS, read_progress
from ldmkit.components.protocols import Captioner, TextEncoder
from ldmkit.data.captions import captioners, captions_of, read_captions
from ldmkit.data.prepared import prepared_pictures
from ldmkit.errors import Interrupted, LdmkitError
from ldmkit.models.autoencoder import Autoencoder
from ldmkit.models.build import build_text_to_image, build_unet
from ldmkit.plan.estimate import Row, folder_bytes, grown_bytes, trained_bytes
from ldmkit.plan.probe import Probe, available_memory, empty, measure_largest_batch, measure_steps
from ldmkit.recipe.training import Training
from ldmkit.run.checkpoint import save_weights
from ldmkit.run.files import CONTENTS
from ldmkit.run.folder import Part
from ldmkit.run.networks import fresh_autoencoder, load_tokenizer, read_pretrained
from ldmkit.run.parts import PartSpec, behind, needed, parts_of
from ldmkit.run.pretrained import CONFIG
from ldmkit.run.progress import newest_state
from ldmkit.run.workspace import Workspace

MAX_SAMPLE = 256
"""pictures that are captioned and encoded, of 64x64 pixels; fewer where they are larger"""
MIN_SAMPLE = 16
CAPTION_SECONDS = 2.0
"""captioning ends once the batches behind the first one took so long"""


@dataclass(frozen=True)
class Sample(Workspace):
    """A few pictures that stand for all: the split has its real length, its positions come again and again."""

    sides: tuple[np.ndarray, np.ndarray]

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        return self.sides


def sample_of(workspace: Workspace) -> Sample:
    """A workspace whose index holds a sample of the pictures, each of them trained on and held out."""
    size = min(MAX_SAMPLE, max(MIN_SAMPLE, 2**20 // math.prod(workspace.recipe.data.shapes[0])))
    entries = workspace.index.entries
    some = np.arange(0, len(entries), max(1, -(-len(entries) // size)))
    index = replace(workspace.index, entries=entries.take(some), rejected=())
    train, held_out = (np.arange(len(side)) % len(index) for side in workspace.split())
    return Sample(**{**vars(workspace), "index": index}, sides=(train, held_out))


class Planner:
    """Measures part after part in the scratch folders of `workspace`, whose index holds all pictures."""

    def __init__(self, workspace: Workspace, run: Mapping[str, Part], *, steps: int) -> None:
        """`run`: the parts of the run itself, which are only looked at; `steps`: how many are measured."""
        self.workspace = workspace
        self.run = run
        self.states = {name: part.status().state for name, part in run.items()}
        self.steps = steps
        self.recipe = workspace.recipe
        self.sample = sample_of(workspace)
        # The first pass over large photos is none of the steps that are measured.
        prepared_pictures(self.sample.index, self.recipe.data, workspace.run_dir, workspace.reporter)
        self.growth = len(workspace.index) / len(self.sample.index)
        self.available = available_memory()
        """bytes that the run could have"""
        self.measures: dict[str, Callable[[PartSpec], Iterator[Row]]] = {
            "captions": self._captions,
            "vae": self._vae,
            "latents": self._latents,
            "text": self._text,
            "bundle": self._bundle,
        }

    def rows(self) -> Iterator[Row]:
        """A row for each part, in order; for the autoencoder one more where losses start later."""
        failed: list[str] = []
        for name, spec in parts_of(self.recipe).items():
            if lacking := [f"the {each}" for each in needed(spec, self.recipe) if each in failed]:
                yield _cannot_run(spec, f"it needs {' and '.join(lacking)}")
                continue
            rows = self._rows(spec)
            yield from rows
            if name == "vae":
                empty(self.workspace.folder(name))
                network = self._autoencoder(self.workspace.folder(name))
                save_weights(self.workspace.folder(name) / "model.safetensors", network.state_dict())
            if rows[0].state == "cannot run" and name in ("latents", "text"):  # the others have a stand-in
                failed.append(name)

    def _autoencoder(self, folder: Path) -> Autoencoder:
        """What stands in for the trained one in `folder`."""
        if not self.recipe.vae.pretrained:
            return fresh_autoencoder(self.recipe)
        config, network = read_pretrained(self.recipe)
        write_json(folder / CONFIG, config)
        return network

    def _rows(self, spec: PartSpec) -> list[Row]:
        """What is left of the part, or that it is done, or why it cannot run."""
        done = self.states[spec.name] == "done"
        # What others are made from is measured all the same: they cannot be without it.
        cache = spec.name in ("captions", "latents", "text")
        used = cache and any(self.states.get(name, "done") != "done" for name in behind(spec.name))
        rows = []
        try:
            if used or not done:
                self.workspace.reporter.line(f"measuring {spec.label}")
                rows = list(self.measures.get(spec.name, self._other)(spec))
        except Interrupted:
            raise
        except LdmkitError as error:
            return [_cannot_run(spec, str(error))]
        return [Row(stage=spec.label, state="done")] if done else rows

    # --- captions, latents, text ----------------------------------------------------------------------------

    def _captions(self, spec: PartSpec) -> Iterator[Row]:
        """Leaves a caption for each picture of the sample, some of them made up where the captioner is slow."""
        path, index = self.run["captions"].folder / "captions.jsonl", self.workspace.index
        empty(self.workspace.folder("captions"))
        if self.states["captions"] == "done":
            shutil.copy(path, self.workspace.folder("captions"))
            return
        done = set(captioners(path)) if self.states["captions"] == "interrupted" else set()
        beside: dict[str, str] = {}
        if self.recipe.caption.keep_existing and self.recipe.caption.use != "sidecar":
            sidecar: Captioner = self.workspace.registry.build("captioner", {"use": "sidecar"}, where="[caption]")
            texts = zip(index.entries, sidecar.caption(index.pictures()), strict=True)
            beside = {entry.key: text for entry, text in texts if text}
        known = done | beside.keys()
        waiting = {entry.key: i for i, entry in enumerate(index.entries) if entry.key not in known}
        sampled = [waiting[entry.key] for entry in self.sample.index.entries if entry.key in waiting]
        some = index.entries.take(np.array(sampled or [*waiting.values()][:MIN_SAMPLE], dtype=np.int64))
        section = self.recipe.caption.model_copy(update={"keep_existing": False})
        recipe = self.recipe.model_copy(update={"caption": section})
        probe = Probe(patience=CAPTION_SECONDS)
        try:
            with probe.measuring():
                chosen = replace(index, entries=some, rejected=())
                caption(replace(self.workspace, recipe=recipe, index=chosen, reporter=probe))
        finally:
            line_bytes = self._caption_sample(beside)
        contents = (self.workspace.folder("captions") / CONTENTS).stat().st_size / len(some) * len(index)
        disk = line_bytes * (len(index) - len(done)) + contents
        yield probe.row(spec.label, left=len(waiting), unit="pictures", disk=disk)

    def _caption_sample(self, beside: Mapping[str, str]) -> float:
        """Adds what is missing of the sample: captions from `beside`, or those found, in turn; bytes of a line."""
        path = self.workspace.folder("captions") / "captions.jsonl"
        found = captioners(path)
        texts = cycle([*beside.values(), *(read_captions(path).values() if found else ())] or ["a picture"])
        missing = [entry.key for entry in self.sample.index.entries if entry.key not in found]
        # Numbered, since a captioner finds other words for other pictures.
        numbered = ("\n".join(f"{text} {number}" for text in captions_of(next(texts))) for number in count())
        rows: list[dict[str, Any]] = [
            {"file": key, "caption": beside.get(key) or next(numbered), "captioner": None, "options": {}}
            for key in missing
        ]
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return path.stat().st_size / (len(found) + len(rows))

    def _latents(self, spec: PartSpec) -> Iterator[Row]:
        folder = self.workspace.folder("latents")
        empty(folder)
        train, held_out = self.sample.split()
        some = held_out[: max(1, len(self.sample.index) // 4)]  # fewer than the stage reconstructs in the end
        probe = Probe()
        with probe.measuring():
            encode_latents(replace(self.sample, sides=(train, some), reporter=probe))
            after = probe.seconds() - probe.notes[-1][1]
        progress = self.run["latents"].folder / PROGRESS
        interrupted = self.states["latents"] == "interrupted" and progress.is_file()
        done, memory = read_progress(progress.parent) if interrupted else (0, {})
        yield probe.row(
            spec.label,
            left=len(self.workspace.index) - memory.get("pictures", done),
            unit="pictures",
            disk=grown_bytes(folder, self.growth) - self._bytes_there("latents"),
            after=after * min(MAX_HELD_OUT, len(held_out)) / max(1, len(some)),
        )

    def _text(self, spec: PartSpec) -> Iterator[Row]:
        folder = self.workspace.folder("text")
        empty(folder)
        probe = Probe()
        with probe.measuring():
            encode_text(replace(self.sample, reporter=probe))
        distinct = len(TextSet(folder).captions) - 1  # without the empty one
        left = round(distinct * self.growth) + 1
        # Of an encoder that is trained there are only tokens to be made: no time to speak of, and none is noted.
        yield probe.row(spec.label, left=left, unit="captions", disk=grown_bytes(folder, self.growth))

    # --- training -------------------------------------------------------------------------------------------

    def _vae(self, spec: PartSpec) -> Iterator[Row]:
        """Two rows where losses start on the way: the second from there on, a plateau's at the earliest."""
        section = self.recipe.vae
        num_samples = len(self.workspace.split()[0])
        if section.pretrained and not section.tune_decoder_steps:
            weights = sum(p.numel() for p in fresh_autoencoder(self.recipe).parameters())
            yield Row(stage=spec.label, state="to do", left=1, unit="copy", disk=4 * weights, seconds=0.0)
            return
        end, done = section.num_steps(num_samples), self._steps_done("vae")
        earliest = section.earliest_steps(num_samples)
        later = [name for name, loss in section.losses.items() if earliest[name] or loss.start_on_plateau]
        start = min([end, *(earliest[name] for name in later)])
        if done < start or start == end:
            row = self._trained(spec, self.sample, num_samples, done, start)
            yield row if start == end else replace(row, disk=0, transient_disk=0, largest_batch=None)
        if start < end:
            at_once = {"start_step": 0, "start_epoch": 0, "start_on_plateau": False, "ramp_steps": 0}
            losses = {name: loss.model_copy(update=at_once) for name, loss in section.losses.items()}
            recipe = self.recipe.model_copy(update={"vae": section.model_copy(update={"losses": losses})})
            row = self._trained(spec, replace(self.sample, recipe=recipe), num_samples, max(done, start), end)
            yield replace(row, stage=f"{spec.label} with {', '.join(later)}") if done < start else row

    def _other(self, spec: PartSpec) -> Iterator[Row]:
        """Of a network that is trained on the latents, and on the captions where it needs the text."""
        section = getattr(self.recipe, spec.name, None)
        if not spec.trained or not isinstance(section, Training):
            yield Row(stage=spec.label, state="to do", seconds=None)
            return
        train, _ = self.sample.split()
        if "text" in spec.needs:
            train = train[TextSet(self.workspace.folder("text")).index[train] >= 0]
        yield self._trained(spec, self.sample, len(train), self._steps_done(spec.name))

    def _trained(
        self, spec: PartSpec, workspace: Workspace, num_samples: int, begin: int, end: int | None = None
    ) -> Row:
        """Of a network from step `begin` to step `end`, or to the last one."""
        name, section, stage = spec.name, getattr(self.recipe, spec.name), spec.load()
        num_steps = section.num_steps(num_samples)
        end = num_steps if end is None else end
        costs = measure_steps(stage, workspace, name, num_steps=num_steps, steps=self.steps)
        disk, checkpoint = trained_bytes(workspace.folder(name), section, num_steps)
        return Row(
            stage=spec.label,
            state="to do",
            left=max(0, end - begin),
            unit_seconds=costs.step,
            pictures_per_second=section.batch_size / costs.step,
            memory=costs.memory,
            disk=max(0, disk - self._bytes_there(name)),
            transient_disk=checkpoint,
            seconds=costs.seconds(section, begin, end, last=end == num_steps),
            largest_batch=measure_largest_batch(stage, workspace, name, num_samples, self.available),
        )

    def _steps_done(self, name: str) -> int:
        """Steps of the newest checkpoint of a part that goes on from it."""
        newest = newest_state(self.run[name].folder) if self._goes_on(name) else None
        return newest["step"] if newest else 0

    def _goes_on(self, name: str) -> bool:
        return self.states[name] in ("interrupted", "changed", "damaged")

    def _bytes_there(self, name: str) -> int:
        """Of what is left of an interrupted part, which goes on from it."""
        return folder_bytes(self.run[name].folder) if self._goes_on(name) else 0

    # --- the bundle -----------------------------------------------------------------------------------------

    def _bundle(self, spec: PartSpec) -> Iterator[Row]:
        """Its graphs hold the weights in float32; making and checking them was not measured."""
        autoencoder = fresh_autoencoder(self.recipe)
        networks: list[nn.Module] = [autoencoder.decoder]
        if self.recipe.unet is not None:
            networks.append(build_unet(self.recipe, autoencoder.latent_channels))
        if self.recipe.t2i is not None:
            table, text = self.recipe.text.table(), self.workspace.folder("text")
            encoder: TextEncoder = self.workspace.registry.build("text_encoder", table, where="[text]")
            networks.append(build_text_to_image(self.recipe, autoencoder.latent_channels, encoder, None))
            networks.append(encoder.load_module(load_tokenizer(text)))
        weights = sum(p.numel() for network in networks for p in network.parameters())
        yield Row(stage=spec.label, state="to do", left=1, unit="bundle", disk=4 * weights, seconds=None)


def _cannot_run(spec: PartSpec, reason: str) -> Row:
    return Row(stage=spec.label, state="cannot run", reason=reason, seconds=None)

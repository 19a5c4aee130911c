"""The parts of a run with what each would be made from now, as the table of parts says. No torch."""

import copy
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ldmkit.data.captions import captions_hash
from ldmkit.errors import LdmkitError
from ldmkit.recipe import Recipe
from ldmkit.run.files import read_record
from ldmkit.run.folder import Part, weights_of
from ldmkit.run.grow import Kept
from ldmkit.run.parts import PARTS, PartSpec, behind, needed, parts_of


class RunParts(dict[str, Part]):
    """Every part of a run by name, with the inputs that it would be made from now."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        bundle_dir: Path,
        *,
        pictures: str,
        caption_files: str,
        frozen: bool,
        starts: Mapping[str, str],
        pretrained: str = "",
        no_result: Mapping[str, Collection[str]] = MappingProxyType({}),
        kept: Callable[[Path, Mapping[str, Any]], Kept | None] = lambda *_: None,
    ) -> None:
        """`pictures`: hash of the data set; `caption_files`: of the captions beside it.

        `frozen`: whether the text encoder is, so that its states are cached. `starts`: SHA-256 of the weights that a
        part's network starts from, where they are not random. `pretrained`: which autoencoder is used in place of one
        that is trained here, where the recipe names one. `no_result`: by section the options of its component that do
        not affect the result. `kept`: whether the one in a folder outlives a change to the
        pictures, see `ldmkit.run.grow`.
        """
        super().__init__()
        self.recipe = recipe
        self.run_dir = run_dir
        self.bundle_dir = bundle_dir
        self.pictures = pictures
        self.caption_files = caption_files
        self.frozen = frozen
        self.starts = starts
        self.pretrained = pretrained
        self._no_result = no_result
        self.grown = False
        """whether the autoencoder was trained before the pictures changed, and is kept"""
        self._kept = kept
        self.weights: dict[str, str] = {}
        """SHA-256 of trained parts' weights as they are going to be, where these are only thought of"""
        self._captions: str | None = None
        for spec in parts_of(recipe).values():
            self[spec.name] = self._part(spec)

    def copy(self) -> "RunParts":
        """To think of what would be if some were made."""
        copied = copy.copy(self)
        copied.weights = {}
        return copied

    def assume_captions(self) -> None:
        """Thinks of captions that are made and say what those before them did, as the text's record has it."""
        with suppress(LdmkitError):
            self._captions = (read_record(self.run_dir / "text") or {"inputs": {}})["inputs"].get("captions")

    def refresh(self, made: str) -> None:
        """After the part `made` was made: looks anew at what those behind it are made from."""
        for name in behind(made):
            if name in self:
                self[name] = self._part(PARTS[name])

    def made_from(self, spec: PartSpec) -> list[str]:
        """The parts that make this one out of date where they come out otherwise."""
        # Tuning a pretrained autoencoder's decoder changes nothing for what is made of its latents.
        free = {"vae"} if self.pretrained and spec.name != "bundle" else set()
        return [name for name in needed(spec, self.recipe) if name not in free]

    def _part(self, spec: PartSpec) -> Part:
        needs = [name for name in self.made_from(spec) if PARTS[name].trained]
        trained = {name: self.weights.get(name) or weights_of(self.run_dir / name) for name in needs}
        inputs = spec.inputs(self)
        if spec.name in self.starts:
            inputs["init_from"] = self.starts[spec.name]
        made_of = {name: weights for name, weights in trained.items() if weights}
        bundle = self.bundle_dir if spec.name == "bundle" else None
        goes_on = getattr(self.recipe, spec.name).goes_on_keys() if spec.trained else ()
        note = ""
        if spec.name == "vae" and (kept := self._kept(self.run_dir / "vae", inputs)):
            self.grown, inputs["pictures"], note = True, kept.pictures, kept.note
            # By epochs its last checkpoint would be trained on with these pictures, and not only taken up.
            goes_on = () if self.recipe.vae.epochs else goes_on
        return Part(self.run_dir / spec.name, spec.name, inputs, made_of, bundle=bundle, goes_on=goes_on, note=note)

    def section(self, name: str, *keys: str) -> dict[str, Any]:
        """The section's keys that affect the result, or `keys` among them."""
        table: dict[str, Any] = getattr(self.recipe, name).fingerprint_keys()
        table = {key: value for key, value in table.items() if key not in self._no_result.get(name, ())}
        return {key: table[key] for key in keys or table if key in table}  # a later key at its default is not

    def data(self) -> dict[str, Any]:
        """How pictures become pixels, and which of them are held out."""
        keys = ("size", "buckets", "crop", "flip", "held_out", "group_duplicates")
        return {**self.section("data", *keys), "seed": self.recipe.seed}

    def captions(self) -> str:
        """Hash of the captions, whatever wrote them."""
        if self._captions is not None:
            return self._captions
        done = self["captions"].status().state == "done"
        try:
            return captions_hash(self.run_dir / "captions" / "captions.jsonl") if done else "not yet written"
        except LdmkitError:  # said where it is used
            return "damaged"

"""The parts of a run with what each would be made from now, as the table of parts says. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldmkit.data.captions import captions_hash
from ldmkit.recipe import Recipe
from ldmkit.run.folder import Part, weights_of
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
    ) -> None:
        """`pictures`: hash of the data set; `caption_files`: of the captions beside it.

        `frozen`: whether the text encoder is, so that its states are cached. `starts`: SHA-256 of the weights that a
        part's network starts from, where they are not random. `pretrained`: which autoencoder is used in place of one
        that is trained here, where the recipe names one.
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
        for spec in parts_of(recipe).values():
            self[spec.name] = self._part(spec)

    def refresh(self, made: str) -> None:
        """After the part `made` was made: looks anew at what those behind it are made from."""
        for name in behind(made):
            if name in self:
                self[name] = self._part(PARTS[name])

    def _part(self, spec: PartSpec) -> Part:
        needs = [name for name in needed(spec, self.recipe) if PARTS[name].trained]
        if self.pretrained and spec.name != "bundle":
            # Tuning its decoder changes nothing for what is made of its latents.
            needs = [name for name in needs if name != "vae"]
        trained = {name: weights_of(self.run_dir / name) for name in needs}
        inputs = spec.inputs(self)
        if spec.name in self.starts:
            inputs["init_from"] = self.starts[spec.name]
        made_of = {name: weights for name, weights in trained.items() if weights}
        bundle = self.bundle_dir if spec.name == "bundle" else None
        return Part(self.run_dir / spec.name, spec.name, inputs, made_of, bundle=bundle)

    def section(self, name: str, *keys: str) -> dict[str, Any]:
        """The section's keys that affect the result, or `keys` among them."""
        table: dict[str, Any] = getattr(self.recipe, name).fingerprint_keys()
        return {key: table[key] for key in keys or table}

    def data(self) -> dict[str, Any]:
        """How pictures become pixels, and which of them are held out."""
        return {**self.section("data", "size", "crop", "flip", "held_out"), "seed": self.recipe.seed}

    def captions(self) -> str:
        """Hash of the captions, whatever wrote them."""
        done = self["captions"].status().state == "done"
        return captions_hash(self.run_dir / "captions" / "captions.jsonl") if done else "not yet written"

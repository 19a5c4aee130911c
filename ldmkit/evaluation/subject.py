"""A run or a bundle as `ldmkit eval` sees it: what draws, and the real pictures that belong to it."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ldmkit.caches.sets import LatentSet, TextSet
from ldmkit.components.protocols import Picture
from ldmkit.components.registry import Registry
from ldmkit.data.decode import prepare
from ldmkit.data.pictures import scan
from ldmkit.data.prepared import prepared_pictures
from ldmkit.denoising.neighbours import Neighbours
from ldmkit.errors import LdmkitError
from ldmkit.evaluation.evaluate import Drawn, draw_set
from ldmkit.evaluation.features import FeatureNetwork, load_features
from ldmkit.evaluation.metrics import Floats
from ldmkit.export.torch_backend import TorchBackend
from ldmkit.recipe import Recipe
from ldmkit.run.randomness import numpy_generator
from ldmkit.runtime.backend import Backend
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.generate import PromptCutWarning, to_pictures
from ldmkit.runtime.manifest import VAE_DECODER

LEAST = 20
"""real pictures, below which no figure means anything"""
MAX_FLOOR = 500
"""training pictures that are compared with the reference"""


@dataclass(frozen=True)
class Nearest:
    """Training pictures nearest to drawn ones, by latents."""

    metrics: dict[str, float]
    """see `Neighbours.compare`"""
    distances: Floats
    """(N,)"""
    pictures: list[Image.Image]


class Subject:
    """What is judged."""

    def __init__(
        self,
        backend: Backend,
        features: str,
        *,
        prompts: Sequence[str],
        crop: Literal["center", "squash"] = "center",
        train: Sequence[Picture] = (),
        held_out: Sequence[Picture] = (),
        neighbours: Neighbours | None = None,
    ) -> None:
        self.backend = backend
        self.name = backend.manifest.name
        self.prompts = list(prompts)
        """of a text-to-image network, drawn in turn"""
        has = (("unet", backend.draws_unconditionally), ("t2i", backend.draws_text))
        self.networks = tuple(name for name, there in has if there)
        self.floor_name = "training pictures" if train else "half of the real ones"
        self._crop = crop
        self._train = train
        self._held_out = held_out
        self._neighbours = neighbours
        self._features: FeatureNetwork = load_features(features, _device())

    @classmethod
    def of_bundle(cls, folder: Path, features: str) -> "Subject":
        """A bundle, drawn by onnxruntime; its examples are the prompts."""
        bundle = Bundle.load(folder)
        return cls(bundle, features, prompts=bundle.manifest.examples)

    @classmethod
    def of_run(cls, run_dir: Path, recipe: Recipe, registry: Registry, features: str) -> "Subject":
        """A finished run, drawn by torch; the captions of its held-out pictures are the prompts."""
        data = recipe.data
        index = scan(
            Path(data.path),
            max_pictures=data.num_pictures,
            max_bad=data.max_bad,
            index_cache=run_dir / "pictures.json",
        )
        pictures = prepared_pictures(index, data, run_dir, None)
        train, held_out = (np.array(part, dtype=np.int64) for part in index.split(data.held_out, recipe.seed))
        texts = TextSet(run_dir / "text")
        numbers = texts.index[held_out if len(held_out) else train]
        latents = LatentSet(run_dir / "latents", recipe.latents, recipe.seed)
        if len(latents.mean) != len(pictures):
            raise LdmkitError(
                f"{run_dir}: its pictures are no longer those it was trained on; run `ldmkit train` first"
            )
        return cls(
            TorchBackend(recipe, registry, run_dir),
            features,
            prompts=[texts.captions[number] for number in numbers[numbers > 0]],
            crop=data.crop,
            train=[pictures[i] for i in train],
            held_out=[pictures[i] for i in held_out],
            neighbours=Neighbours(latents, train, held_out, seed=recipe.seed, device=_device()),
        )

    def reference(self, folder: Path | None) -> Floats:
        """(M, D) features of the real pictures in `folder`, or of those held out. Raises LdmkitError for too few."""
        pictures = self._held_out if folder is None else scan(folder).pictures()
        if len(pictures) < LEAST:
            where = folder or f"{self.name}: pictures held out"
            raise LdmkitError(
                f"{where}: {len(pictures)} pictures to judge by, and at least {LEAST} are needed; give --reference DIR"
            )
        return self._of_files(pictures)

    def floor(self, reference: Floats, num: int) -> tuple[Floats, Floats]:
        """Features of real pictures that a model could at best draw, and those to compare them with."""
        if not self._train:
            return reference[::2], reference[1::2]
        num = min(num, MAX_FLOOR, len(self._train))
        chosen = numpy_generator(0, "eval-floor", 0).choice(len(self._train), num, replace=False)
        return self._of_files([self._train[i] for i in np.sort(chosen)]), reference

    def draw(self, network: str, *, num: int, seed: int, progress: Callable[[int], Any]) -> Drawn:
        """Pictures of one of `networks`."""
        if network == "t2i" and not self.prompts:
            raise LdmkitError(f"{self.backend.folder}: no caption to draw; give --prompts FILE")
        prompts = self.prompts if network == "t2i" else []
        with warnings.catch_warnings():
            # The model was trained on captions cut at the same place.
            warnings.simplefilter("ignore", PromptCutWarning)
            return draw_set(self.backend, prompts, self._features, num=num, seed=seed, progress=progress)

    def nearest(self, drawn: Drawn) -> Nearest | None:
        """The nearest training pictures; None where the model does not know them, or none is held out to compare."""
        if self._neighbours is None:
            return None
        distances, latents = self._neighbours.nearest(torch.from_numpy(drawn.latents))
        metrics = self._neighbours.compare(distances)
        if not metrics:
            return None
        pixels = self.backend.run(VAE_DECODER, latents=latents.numpy())
        return Nearest(metrics, distances, to_pictures(pixels))

    def _of_files(self, pictures: Sequence[Picture]) -> Floats:
        size = self.backend.manifest.picture_size
        return self._features(Image.fromarray(prepare(picture.load(), size, self._crop)) for picture in pictures)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

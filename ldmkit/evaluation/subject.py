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
from ldmkit.components.protocols import Picture, PromptReader
from ldmkit.components.registry import Registry
from ldmkit.data.buckets import of_one_bucket
from ldmkit.data.checked import scan_data
from ldmkit.data.decode import prepare
from ldmkit.data.index_cache import INDEX
from ldmkit.data.pictures import scan
from ldmkit.data.prepared import prepared_pictures
from ldmkit.denoising.neighbours import Neighbours
from ldmkit.errors import LdmkitError
from ldmkit.evaluation.evaluate import BATCH, Drawn, draw_set
from ldmkit.evaluation.features import FeatureNetwork, load_features
from ldmkit.evaluation.metrics import Floats
from ldmkit.evaluation.prompts import ClipScore, Share, load_clip, prompt_reader, prompts_right
from ldmkit.export.torch_backend import TorchBackend
from ldmkit.recipe import Recipe
from ldmkit.run.randomness import numpy_generator
from ldmkit.runtime.backend import Backend
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.generate import PromptCutWarning, to_pictures
from ldmkit.runtime.manifest import VAE_DECODER
from ldmkit.runtime.request import DrawRequest, PictureRequest
from ldmkit.runtime.settings import resolve

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


@dataclass(frozen=True)
class RealPictures:
    """What a run was trained on, and what was held out."""

    pictures: Sequence[Picture]
    train: np.ndarray
    """numbers of the pictures"""
    held_out: np.ndarray
    latents: LatentSet


class Subject:
    """What is judged."""

    def __init__(
        self,
        backend: Backend,
        features: str,
        *,
        prompts: Sequence[str],
        reader: PromptReader,
        crop: Literal["center", "squash"] = "center",
        real: RealPictures | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        self.backend = backend
        self.name = backend.manifest.name
        self.prompts = list(prompts)
        """of a text-to-image network, drawn in turn"""
        has = (("unet", backend.draws_unconditionally), ("t2i", backend.draws_text))
        self.networks = tuple(name for name, there in has if there)
        self.floor_name = "training pictures" if real else "half of the real ones"
        self._reader = reader
        self._crop = crop
        self._real = real
        self._neighbours = neighbours
        self._features: FeatureNetwork = load_features(features, _device())
        self._settings: dict[str, Any] = {}

    @classmethod
    def of_bundle(cls, folder: Path, registry: Registry, features: str) -> "Subject":
        """A bundle, drawn by onnxruntime; its examples are the prompts."""
        bundle = Bundle.load(folder)
        return cls(bundle, features, prompts=bundle.manifest.examples, reader=prompt_reader(registry))

    @classmethod
    def of_run(cls, run_dir: Path, recipe: Recipe, registry: Registry, features: str) -> "Subject":
        """A finished run, drawn by torch; the captions of its held-out pictures are the prompts."""
        data = recipe.data
        index = scan_data(data, index_cache=run_dir / INDEX)
        # Those that were prepared for another bucket lack what a picture of `data.size` shows.
        pictures = index.pictures() if data.buckets else prepared_pictures(index, data, run_dir, None)
        sides = index.split(data.held_out, recipe.seed, together=data.group_duplicates)
        train, held_out = (np.array(side, dtype=np.int64) for side in sides)
        prompts: list[str] = []
        if recipe.t2i is not None:
            texts = TextSet(run_dir / "text")
            numbers = texts.index[held_out if len(held_out) else train]
            prompts = [texts.captions[number] for number in numbers[numbers > 0]]
        latents = LatentSet(run_dir / "latents", recipe.latents, recipe.seed)
        if len(latents) != len(pictures):
            raise LdmkitError(
                f"{run_dir}: its pictures are no longer those it was trained on; run `ldmkit train` first"
            )
        return cls(
            TorchBackend(recipe, registry, run_dir),
            features,
            prompts=prompts,
            reader=prompt_reader(registry, recipe.caption.table()),
            crop=data.crop,
            real=RealPictures(pictures, train, held_out, latents),
            neighbours=Neighbours(latents, train, held_out, seed=recipe.seed, device=_device()),
        )

    def reference(self, folder: Path | None) -> Floats:
        """(M, D) features of the real pictures in `folder`, or of those held out. Raises LdmkitError for too few."""
        pictures = scan(folder).pictures() if folder is not None else self._held_out()
        if len(pictures) < LEAST:
            where = folder or f"{self.name}: pictures held out"
            raise LdmkitError(
                f"{where}: {len(pictures)} pictures to judge by, and at least {LEAST} are needed; give --reference DIR"
            )
        return self._of_files(pictures)

    def floor(self, reference: Floats, num: int) -> tuple[Floats, Floats]:
        """Features of real pictures that a model could at best draw, and those to compare them with."""
        if self._real is None:
            return reference[::2], reference[1::2]
        return self._of_files([self._real.pictures[i] for i in self._some_trained_on(num)]), reference

    def reconstructions(self, num: int, *, held_out: bool) -> tuple[str, Floats] | None:
        """What the autoencoder makes of real pictures: a row's name, and features (N, D); None for a bundle.

        Of those held out, or, where these are the reference or too few, of the training pictures of `floor`.
        """
        if self._real is None:
            return None
        numbers, kind = self._real.held_out[: min(num, MAX_FLOOR)], "held-out"
        if not held_out or len(numbers) < LEAST:
            numbers, kind = self._some_trained_on(num), "training"
        made: list[Image.Image] = []
        for places in of_one_bucket(self._real.latents.buckets[numbers], BATCH):
            part = numbers[places]
            latents = self._real.latents.batch(part, np.zeros(len(part), dtype=bool), None)
            made += to_pictures(self.backend.run(VAE_DECODER, latents=latents.numpy()))
        return f"reconstructed {kind} pictures", self._features(made)

    def _some_trained_on(self, num: int) -> np.ndarray:
        """Sorted numbers of at most `num` training pictures, the same at each call."""
        assert self._real is not None
        train = self._real.train
        chosen = numpy_generator(0, "eval-floor", 0).choice(len(train), min(num, MAX_FLOOR, len(train)), replace=False)
        return train[np.sort(chosen)]

    def draw(self, network: str, *, num: int, seed: int, progress: Callable[[int], Any]) -> Drawn:
        """Pictures of one of `networks`."""
        if network == "t2i" and not self.prompts:
            raise LdmkitError(f"{self.backend.folder}: no caption to draw; give --prompts FILE")
        prompts = self.prompts if network == "t2i" else []
        with warnings.catch_warnings():
            # The model was trained on captions cut at the same place.
            warnings.simplefilter("ignore", PromptCutWarning)
            return draw_set(
                self.backend,
                prompts,
                self._features,
                num=num,
                seed=seed,
                settings=self._settings,
                progress=progress,
            )

    def draw_by(self, **settings: Any) -> None:
        """Steps, guidance_scale and sampler that are not the model's own. Raises LdmkitError where it has none such."""
        resolve(self.backend, DrawRequest([PictureRequest("", 0)], **settings))
        self._settings = settings

    def prompts_right(self, drawn: Drawn) -> dict[str, Share]:
        """What the rule reads in drawn pictures."""
        return prompts_right(self._reader, drawn.pictures, drawn.prompts)

    def load_clip(self) -> ClipScore | None:
        """CLIP's score of pictures and prompts, where there are prompts and CLIP is at hand."""
        return load_clip(_device()) if "t2i" in self.networks else None

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

    def _held_out(self) -> list[Picture]:
        return [] if self._real is None else [self._real.pictures[i] for i in self._real.held_out]

    def _of_files(self, pictures: Sequence[Picture]) -> Floats:
        shape = self.backend.manifest.size
        return self._features(Image.fromarray(prepare(picture.load(), shape, self._crop)) for picture in pictures)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

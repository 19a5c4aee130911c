"""How much of what a prompt says reaches the prediction of a toy-cats run, by timestep: which words a network follows.

python -m benchmarks.quality.text_use runs/NAME [--num 100] [--checkpoint STEP]

Pairs of drawn cats differ in one attribute. `by text`: the prediction's change when the noisy picture stays and the
prompt names the other value, as a share of the difference of the two latents, by projection: 1 is all of it, 0 nothing.
`by picture`: when the prompt stays and the picture changes. Near pure noise the picture tells nothing, and what the
text does not bring there is left to chance. `energy`: the squared difference of the two latents, summed, the mean of
the pairs: where it is small, the loss hardly sees it.
"""

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from benchmarks.command import print_table, run
from benchmarks.quality.toy_accuracy import HELD_OUT_SEED
from ldmkit.cli.export import torch_backend
from ldmkit.data.toy_captions import ATTRIBUTES, articles, pick
from ldmkit.data.toy_cats import draw_attributes
from ldmkit.data.toy_drawing import BACKGROUND, COATS, EYES, FUR, ToyCat, draw_toy_cat
from ldmkit.errors import LdmkitError
from ldmkit.export.torch_backend import TorchBackend
from ldmkit.run.folder import recipe_of_run
from ldmkit.runtime.manifest import TEXT_ENCODER, UNET_T2I, VAE_ENCODER

VALUES = {"fur": tuple(FUR), "coat": tuple(COATS), "eyes": tuple(EYES), "background": tuple(BACKGROUND)}
TIMES = (0.97, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3)
Floats = NDArray[np.float32]


def main(run_dir: Path, *, num: int = 100, checkpoint: str | None = None) -> None:
    recipe = recipe_of_run(run_dir)
    if recipe.diffusion.schedule != "flow" or recipe.diffusion.prediction != "x0":
        raise LdmkitError(f"{run_dir}: it reads networks that predict x0 on the flow schedule alone")
    backend = torch_backend(run_dir, checkpoint)
    rng = Random(f"toy-cats/text use/{HELD_OUT_SEED}")
    cats = [draw_attributes(rng, unseen=False) for _ in range(num)]
    noise = np.random.default_rng(0).standard_normal(_latents(backend, cats).shape).astype(np.float32)
    for name in ATTRIBUTES:
        others = [replace(cat, **{name: _another(name, cat, rng)}) for cat in cats]
        here, there = _latents(backend, cats), _latents(backend, others)
        difference = there - here
        rows = []
        for t in TIMES:

            def x0(latents: Floats, asked: list[ToyCat], t: float = t) -> Floats:
                return _predict(backend, (1 - t) * latents + t * noise, t * recipe.diffusion.num_timesteps, asked)

            plain = x0(here, cats)
            by_text, by_picture = x0(here, others) - plain, x0(there, cats) - plain
            rows.append((t, *(f"{_share(change, difference):.3f}" for change in (by_text, by_picture))))
        print(f"{name}, energy {np.square(difference).sum((1, 2, 3)).mean():.1f}")
        print_table(("t", "by text", "by picture"), *rows)


def _another(name: str, cat: ToyCat, rng: Random) -> str:
    return pick(rng, [value for value in VALUES[name] if value != getattr(cat, name)])


def _latents(backend: TorchBackend, cats: list[ToyCat]) -> Floats:
    """(N, C, h, w): cat k is drawn by the same dice whatever its attributes."""
    pictures = [draw_toy_cat(cat, Random(f"toy-cats/text use/{k}")) for k, cat in enumerate(cats)]
    pixels = np.stack([np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) for picture in pictures]) / 127.5 - 1
    return backend.run(VAE_ENCODER, pixels=pixels)


def _predict(backend: TorchBackend, x_t: Floats, t: float, asked: list[ToyCat]) -> Floats:
    """(N, C, h, w)"""
    texts = [articles(f"a {c.fur} {c.coat} cat with {c.eyes} eyes on a {c.background} background") for c in asked]
    encodings = backend.tokenizer.encode_batch(texts)
    ids, mask = (np.array([getattr(each, key) for each in encodings]) for key in ("ids", "attention_mask"))
    context = backend.run(TEXT_ENCODER, ids=ids, mask=mask)
    times = np.full(len(asked), t, dtype=np.float32)
    return backend.run(UNET_T2I, x_t=x_t.astype(np.float32), t=times, context=context, context_mask=mask)


def _share(change: Floats, difference: Floats) -> float:
    """Of the difference that lies in the change."""
    return float((change * difference).sum() / np.square(difference).sum())


if __name__ == "__main__":
    run(main)

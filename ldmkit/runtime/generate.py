"""From prompts to pictures: noise, sampler, classifier-free guidance, decoder."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmkit.components.protocols import Sampler
from ldmkit.diffusion.process import NoiseSchedule, add_noise, to_x0
from ldmkit.errors import LdmkitError
from ldmkit.runtime.backend import Backend
from ldmkit.runtime.manifest import TEXT_ENCODER, UNET, UNET_T2I, VAE_DECODER, VAE_ENCODER
from ldmkit.runtime.providers import ProviderWarning
from ldmkit.runtime.request import PictureRequest, whole
from ldmkit.runtime.settings import DrawSettings

Floats = NDArray[np.float64]
Network = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""network(x_t (B, C, h, w) float32, t (B,) float32) -> output like x_t, guidance applied"""


class PromptCutWarning(UserWarning):
    """A prompt is longer than the text encoder reads."""


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """The warnings for the user that a block gives, complete once it is left. The filters are the whole process's."""
    kinds = (PromptCutWarning, ProviderWarning)
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        for kind in kinds:
            warnings.simplefilter("always", kind)
        yield messages
    messages += [str(warning.message) for warning in caught if issubclass(warning.category, kinds)]


@dataclass(frozen=True)
class Step:
    """What is known after one call of the network."""

    done: int
    """network calls so far, over all batches"""
    total: int
    pictures: tuple[int, ...]
    """numbers of the pictures in this batch, from 0"""
    x0: np.ndarray
    """(B, C, h, w) float64 normalised latents: what the network takes the pictures for by now"""


def draw(
    backend: Backend,
    settings: DrawSettings,
    *,
    batch_size: int = 8,
    on_step: Callable[[Step], None] | None = None,
) -> list[Image.Image]:
    """One picture for each of `settings.pictures`; `Bundle` describes the rest."""
    drawn = dict(draw_each(backend, settings, batch_size=batch_size, on_step=on_step))
    return [drawn[k] for k in range(len(settings.pictures))]


def draw_each(
    backend: Backend,
    settings: DrawSettings,
    *,
    batch_size: int = 8,
    on_step: Callable[[Step], None] | None = None,
) -> Iterator[tuple[int, Image.Image]]:
    """(its number among `settings.pictures`, picture), a batch at a time: those without a prompt come first."""
    batch_size = whole("batch_size", batch_size)
    prompts = {text for each in settings.pictures for text in (each.prompt, each.to_prompt)}
    texts = sorted(text for text in prompts | {settings.negative_prompt} if text)
    if cut := [repr(words) for text in texts if (words := words_cut(backend, text))]:
        which = "the prompt is" if len(cut) == 1 else f"{len(cut)} prompts are"
        more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
        told = f"{which} too long for the text encoder; cut off: {', '.join(cut[:3])}{more}"
        warnings.warn(told, PromptCutWarning, stacklevel=5)
    batches = list(_batches(settings.pictures, batch_size))
    calls = num_calls(settings.sampler, settings.schedule)
    start = None if settings.pixels is None else backend.run(VAE_ENCODER, pixels=settings.pixels).astype(np.float64)
    for index, batch in enumerate(batches):
        pictures = [settings.pictures[k] for k in batch]

        def report(call: int, x0: np.ndarray, index: int = index, batch: list[int] = batch) -> None:
            if on_step is not None:
                on_step(Step(index * calls + call, len(batches) * calls, tuple(batch), x0))

        network = network_of(backend, pictures, settings)
        latents = draw_latents(backend, settings, network, pictures, start, report)
        pixels = backend.run(VAE_DECODER, latents=latents)
        if not np.isfinite(pixels).all():
            raise LdmkitError(
                f"bundle {backend.folder}: the network's output is not finite (guidance_scale "
                f"{settings.guidance_scale})"
            )
        yield from zip(batch, to_pictures(pixels), strict=True)


def _batches(pictures: Sequence[PictureRequest], batch_size: int) -> Iterator[list[int]]:
    """Numbers of pictures that one call of a network can draw: with and without a prompt, and between two."""
    sorts: dict[tuple[bool, bool], list[int]] = {}
    for k, each in enumerate(pictures):
        sorts.setdefault((bool(each.prompt), each.to_prompt is not None), []).append(k)
    for _, part in sorted(sorts.items()):
        yield from (part[i : i + batch_size] for i in range(0, len(part), batch_size))


def num_calls(sampler: Sampler, schedule: NoiseSchedule) -> int:
    """How often a sampler calls the network, found by walking an empty picture."""
    calls = 0

    def denoise(x_t: np.ndarray, t: float) -> np.ndarray:
        nonlocal calls
        calls += 1
        return x_t

    sampler.sample(denoise, np.empty(0), schedule, np.zeros_like)
    return calls


def draw_latents(
    backend: Backend,
    settings: DrawSettings,
    network: Network,
    pictures: Sequence[PictureRequest],
    start: np.ndarray | None,
    report: Callable[[int, np.ndarray], None],
) -> np.ndarray:
    """Latents (B, C, h, w) float32; `report(number of the call, x0)` is called after each network call.

    `start` (1, C, h, w): latents of the picture that drawing starts from.
    """
    calls = 0
    schedule = settings.schedule
    sources = [Source(each.seed, each.to_seed, each.noise_fraction) for each in pictures]

    def randn_like(x: np.ndarray) -> np.ndarray:
        return np.stack([source.draw(x.shape[1:]) for source in sources])

    def denoise(x_t: np.ndarray, t: float) -> np.ndarray:
        nonlocal calls
        output = network(x_t.astype(np.float32), np.full(len(x_t), t, dtype=np.float32)).astype(np.float64)
        x0: np.ndarray = to_x0(backend.manifest.prediction, output, x_t, schedule.alpha(t), schedule.sigma(t))
        calls += 1
        report(calls, x0)
        return x0

    # float64 between the network's calls: a sampler's step costs nothing beside a call.
    shape = (len(pictures), backend.manifest.latent.channels, *settings.latent_size)
    x_T = randn_like(np.empty(shape))  # noqa: N806 - the field's name
    if start is not None:
        _, alpha, sigma = schedule.grid(settings.sampler.steps)
        x_T = add_noise(start, x_T, alpha[0], sigma[0])  # noqa: N806 - the field's name
    latents: np.ndarray = settings.sampler.sample(denoise, x_T, schedule, randn_like)
    return latents.astype(np.float32)


def words_cut(backend: Backend, prompt: str) -> str:
    """What of the prompt lies beyond the text encoder's last token; "" where all of it is read."""
    encoding = backend.tokenizer.encode(prompt)
    if not encoding.overflowing:
        return ""
    kept = zip(encoding.offsets, encoding.special_tokens_mask, encoding.attention_mask, strict=True)
    return prompt[max((end for (_, end), special, mask in kept if mask and not special), default=0) :].strip()


def to_pictures(pixels: np.ndarray) -> list[Image.Image]:
    """(B, 3, H, W) float in [-1, 1], clipped to that, as RGB pictures."""
    levels = np.rint((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)
    return [Image.fromarray(picture) for picture in levels.transpose(0, 2, 3, 1)]  # (B, H, W, 3)


def network_of(backend: Backend, pictures: Sequence[PictureRequest], settings: DrawSettings) -> Network:
    """The U-Net for a batch that `_batches` made."""
    texts = [[each.prompt for each in pictures]]
    if not texts[0][0] and not settings.negative_prompt and backend.draws_unconditionally:
        unconditional = backend.bind(UNET)
        return lambda x_t, t: unconditional(x_t=x_t, t=t)

    weights: list[Any] = [1.0]
    if pictures[0].to_prompt is not None:
        # Both prompts' outputs, weighted, Liu et al. 2022 (composable diffusion): the ends are the prompts' own
        # pictures, whatever their lengths, which no mixture of two masked contexts grants.
        texts.append([each.to_prompt or "" for each in pictures])
        share = np.array([each.prompt_fraction for each in pictures], dtype=np.float32)[:, None, None, None]
        weights = [1 - share, share]
    # Guidance, Ho and Salimans 2022; at scale 1, and with nothing to move away from, the prompt's part is enough.
    scale = settings.guidance_scale
    if scale != 1 and any(text != settings.negative_prompt for text in texts[0]):
        weights = [scale * weight for weight in weights] + [1 - scale]
        texts.append([settings.negative_prompt] * len(pictures))

    # All parts in one batch, a call a step.
    encodings = backend.tokenizer.encode_batch([text for part in texts for text in part])
    ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)  # (parts * B, L)
    mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
    context = backend.run(TEXT_ENCODER, ids=ids, mask=mask)  # (parts * B, L, D)
    conditional = backend.bind(UNET_T2I, context=context, context_mask=mask)

    def network(x_t: np.ndarray, t: np.ndarray) -> np.ndarray:
        output = conditional(x_t=np.concatenate([x_t] * len(texts)), t=np.concatenate([t] * len(texts)))
        parts = np.split(output, len(texts))
        mixed: np.ndarray = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        return mixed

    return network


class Source:
    """Unit Gaussian noise of a seed, or of a point on the way from one seed to another.

    A source a picture, so that none depends on what it is drawn beside. PCG64 by name: what numpy's default generator
    is may change.
    """

    def __init__(self, seed: int, to_seed: int | None = None, fraction: float = 0.0) -> None:
        self._from = np.random.Generator(np.random.PCG64(seed))
        self._to = None if to_seed is None else np.random.Generator(np.random.PCG64(to_seed))
        self._fraction = fraction

    def draw(self, shape: tuple[int, ...]) -> Floats:
        """The next noise of this shape, float64."""
        noise = self._from.standard_normal(shape)
        return noise if self._to is None else slerp(noise, self._to.standard_normal(shape), self._fraction)


def slerp(a: Floats, b: Floats, fraction: float) -> Floats:
    """Spherical interpolation, Shoemake 1985: `a` at fraction 0, `b` at 1, along the great circle in between.

    A straight line between two noises passes through shorter vectors than a network has ever seen; the circle does
    not. Where one is nearly a multiple of the other the circle is undefined, and the straight line it is.
    """
    cosine = float(np.clip(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))
    angle = np.arccos(cosine)
    if abs(cosine) > 1 - 1e-9:
        return (1 - fraction) * a + fraction * b
    between: Floats = (np.sin((1 - fraction) * angle) * a + np.sin(fraction * angle) * b) / np.sin(angle)
    return between

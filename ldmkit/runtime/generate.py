"""From prompts to pictures: noise, sampler, classifier-free guidance, decoder."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from ldmkit.components.protocols import Sampler
from ldmkit.diffusion.process import NoiseSchedule, Prediction, add_noise, to_x0
from ldmkit.errors import LdmkitError
from ldmkit.runtime.manifest import (
    TEXT_ENCODER,
    UNET,
    UNET_T2I,
    VAE_DECODER,
    VAE_ENCODER,
    Defaults,
    Latent,
    Schedule,
)
from ldmkit.runtime.noise import Source
from ldmkit.runtime.request import Plan, Wanted, check_whole

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Network = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""network(x_t (B, C, h, w) float32, t (B,) float32) -> output like x_t, guidance applied"""


class PromptCutWarning(UserWarning):
    """A prompt is longer than the text encoder reads."""


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


class Facts(Protocol):
    """The part of a bundle's manifest that drawing needs."""

    @property
    def name(self) -> str: ...

    @property
    def schedule(self) -> Schedule: ...

    @property
    def prediction(self) -> Prediction: ...

    @property
    def latent(self) -> Latent: ...

    @property
    def picture_size(self) -> int: ...

    @property
    def defaults(self) -> Defaults: ...


class Backend(Protocol):
    """Networks by the names of a bundle's graphs: all that drawing needs, whatever runs them."""

    @property
    def folder(self) -> Path:
        """Where it was read from."""
        ...

    @property
    def manifest(self) -> Facts: ...

    @property
    def provider(self) -> str:
        """What computes, for people."""
        ...

    @property
    def identity(self) -> Mapping[str, str]:
        """Which networks these are, for the pictures' metadata."""
        ...

    @property
    def draws_text(self) -> bool:
        """Whether it can follow a prompt."""
        ...

    @property
    def draws_unconditionally(self) -> bool:
        """Whether it has a U-Net of its own for no prompt."""
        ...

    @property
    def tokenizer(self) -> "Tokenizer":
        """Pads and cuts to `manifest.text.max_tokens`."""
        ...

    def check_encodes(self) -> None:
        """Raises LdmkitError, saying what to do, where it cannot turn a picture into latents."""
        ...

    def prepare(self, prompts: Sequence[str], negative_prompt: str = "") -> None:
        """Tells what will be drawn soon."""
        ...

    def run(self, name: str, **inputs: np.ndarray) -> np.ndarray:
        """The only output of network `name`."""
        ...

    def bind(self, name: str, **fixed: np.ndarray) -> Callable[..., np.ndarray]:
        """Network `name` with inputs that stay the same from call to call; the result holds until the next call."""
        ...


def draw(
    bundle: Backend,
    plan: Plan,
    *,
    batch_size: int = 8,
    on_step: Callable[[Step], None] | None = None,
) -> list[Image.Image]:
    """One picture for each of `plan.wanted`; `Bundle.generate` describes the rest."""
    check_whole(batch_size=batch_size)
    texts = {text for each in plan.wanted for text in (each.prompt, each.to_prompt)} | {plan.negative_prompt}
    for prompt in sorted(text for text in texts if text):
        if cut := words_cut(bundle, prompt):
            warnings.warn(
                f"the prompt is too long for the text encoder; cut off: {cut!r}", PromptCutWarning, stacklevel=4
            )

    batches = list(_batches(plan.wanted, batch_size))
    calls = num_calls(plan.walk, plan.schedule)
    start = None if plan.pixels is None else bundle.run(VAE_ENCODER, pixels=plan.pixels).astype(np.float64)
    pictures: dict[int, Image.Image] = {}
    for index, batch in enumerate(batches):
        wanted = [plan.wanted[k] for k in batch]

        def report(call: int, x0: np.ndarray, index: int = index, batch: list[int] = batch) -> None:
            if on_step is not None:
                on_step(Step(index * calls + call, len(batches) * calls, tuple(batch), x0))

        network = network_of(bundle, wanted, plan)
        latents = draw_latents(bundle.manifest, plan, network, wanted, start, report)
        pixels = bundle.run(VAE_DECODER, latents=latents)
        if not np.isfinite(pixels).all():
            raise LdmkitError(
                f"bundle {bundle.folder}: the network's output is not finite (guidance_scale {plan.guidance_scale})."
            )
        pictures |= dict(zip(batch, to_pictures(pixels), strict=True))
    return [pictures[k] for k in range(len(plan.wanted))]


def _batches(wanted: Sequence[Wanted], batch_size: int) -> Iterator[list[int]]:
    """Numbers of pictures that one call of a network can draw: with and without a prompt, and between two."""
    sorts: dict[tuple[bool, bool], list[int]] = {}
    for k, each in enumerate(wanted):
        sorts.setdefault((bool(each.prompt), each.to_prompt is not None), []).append(k)
    for _, part in sorted(sorts.items()):
        yield from (part[i : i + batch_size] for i in range(0, len(part), batch_size))


def num_calls(walk: Sampler, schedule: NoiseSchedule) -> int:
    """How often a sampler calls the network, found by walking an empty picture."""
    calls = 0

    def denoise(x_t: np.ndarray, t: float) -> np.ndarray:
        nonlocal calls
        calls += 1
        return x_t

    walk.sample(denoise, np.empty(0), schedule, np.zeros_like)
    return calls


def draw_latents(
    manifest: Facts,
    plan: Plan,
    network: Network,
    wanted: Sequence[Wanted],
    start: np.ndarray | None,
    report: Callable[[int, np.ndarray], None],
) -> np.ndarray:
    """Latents (B, C, h, w) float32; `report(number of the call, x0)` is called after each network call.

    `start` (1, C, h, w): latents of the picture that `plan` starts from.
    """
    calls = 0
    sources = [Source(each.seed, each.to_seed, each.noise_fraction) for each in wanted]

    def randn_like(x: np.ndarray) -> np.ndarray:
        return np.stack([source.draw(x.shape[1:]) for source in sources])

    def denoise(x_t: np.ndarray, t: float) -> np.ndarray:
        nonlocal calls
        output = network(x_t.astype(np.float32), np.full(len(x_t), t, dtype=np.float32)).astype(np.float64)
        x0: np.ndarray = to_x0(manifest.prediction, output, x_t, plan.schedule.alpha(t), plan.schedule.sigma(t))
        calls += 1
        report(calls, x0)
        return x0

    # float64 between the network's calls: a sampler's step costs nothing beside a call.
    x_T = randn_like(np.empty((len(wanted), manifest.latent.channels, *plan.latent_size)))  # noqa: N806 - the field's name
    if start is not None:
        _, alpha, sigma = plan.schedule.grid(plan.walk.steps)
        x_T = add_noise(start, x_T, alpha[0], sigma[0])  # noqa: N806 - the field's name
    latents: np.ndarray = plan.walk.sample(denoise, x_T, plan.schedule, randn_like)
    return latents.astype(np.float32)


def words_cut(bundle: Backend, prompt: str) -> str:
    """What of the prompt lies beyond the text encoder's last token; "" where all of it is read."""
    encoding = bundle.tokenizer.encode(prompt)
    if not encoding.overflowing:
        return ""
    kept = zip(encoding.offsets, encoding.special_tokens_mask, encoding.attention_mask, strict=True)
    return prompt[max((end for (_, end), special, mask in kept if mask and not special), default=0) :].strip()


def to_pictures(pixels: np.ndarray) -> list[Image.Image]:
    """(B, 3, H, W) float in [-1, 1], clipped to that, as RGB pictures."""
    levels = np.rint((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)
    return [Image.fromarray(picture) for picture in levels.transpose(0, 2, 3, 1)]  # (B, H, W, 3)


def network_of(bundle: Backend, wanted: Sequence[Wanted], plan: Plan) -> Network:
    """The U-Net for a batch that `_batches` made."""
    texts = [[each.prompt for each in wanted]]
    if not texts[0][0] and not plan.negative_prompt and bundle.draws_unconditionally:
        unconditional = bundle.bind(UNET)
        return lambda x_t, t: unconditional(x_t=x_t, t=t)

    weights: list[Any] = [1.0]
    if wanted[0].to_prompt is not None:
        # Both prompts' outputs, weighted, Liu et al. 2022 (composable diffusion): the ends are the prompts' own
        # pictures, whatever their lengths, which no mixture of two masked contexts grants.
        texts.append([each.to_prompt or "" for each in wanted])
        share = np.array([each.prompt_fraction for each in wanted], dtype=np.float32)[:, None, None, None]
        weights = [1 - share, share]
    # Guidance, Ho and Salimans 2022; at scale 1, and with nothing to move away from, the prompt's part is enough.
    scale = plan.guidance_scale
    if scale != 1 and any(text != plan.negative_prompt for text in texts[0]):
        weights = [scale * weight for weight in weights] + [1 - scale]
        texts.append([plan.negative_prompt] * len(wanted))

    # All parts in one batch, a call a step.
    encodings = bundle.tokenizer.encode_batch([text for part in texts for text in part])
    ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)  # (parts * B, L)
    mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
    context = bundle.run(TEXT_ENCODER, ids=ids, mask=mask)  # (parts * B, L, D)
    conditional = bundle.bind(UNET_T2I, context=context, context_mask=mask)

    def network(x_t: np.ndarray, t: np.ndarray) -> np.ndarray:
        output = conditional(x_t=np.concatenate([x_t] * len(texts)), t=np.concatenate([t] * len(texts)))
        parts = np.split(output, len(texts))
        mixed: np.ndarray = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        return mixed

    return network

"""From prompts to pictures: noise, sampler, classifier-free guidance, decoder."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ldmkit.components import Sampler
from ldmkit.diffusion import NoiseSchedule, make_schedule, to_x0
from ldmkit.errors import LdmkitError
from ldmkit.plugins import Registry
from ldmkit.runtime.manifest import TEXT_ENCODER, UNET, UNET_T2I, VAE_DECODER, Manifest

if TYPE_CHECKING:
    from ldmkit.runtime.bundle import Bundle

Network = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""network(x_t (B, C, h, w) float32, t (B,) float32) -> output like x_t, guidance applied"""


class PromptCutWarning(UserWarning):
    """A prompt is longer than the text encoder reads."""


@dataclass(frozen=True)
class Plan:
    """What `draw` will do, checked."""

    prompts: list[str]
    """one a picture, without surrounding space; "" for none"""
    seed: int
    steps: int
    guidance_scale: float
    sampler: dict[str, Any]
    """`use` and the sampler's options"""
    walk: Sampler
    schedule: NoiseSchedule


def make_plan(
    bundle: "Bundle",
    prompts: Sequence[str] | str | None,
    *,
    n: int = 1,
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: str | None = None,
) -> Plan:
    """Fills in the bundle's defaults and checks every value; opens no graph. Raises LdmkitError for a wrong one."""
    defaults = bundle.manifest.defaults
    steps = defaults.steps if steps is None else steps
    scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
    _check_whole(n=n, steps=steps)
    _check_whole(0, seed=seed)
    if not (math.isfinite(scale) and scale >= 0):
        raise LdmkitError(f"guidance_scale is {scale}; it must be a finite number of 0 or more (1: no guidance).")
    if prompts is None or isinstance(prompts, str):
        prompts = [prompts or ""]
    if not prompts:
        raise LdmkitError("there are no prompts: pass at least one, or None to draw without.")
    wanted = [check_prompt(bundle, prompt) for prompt in prompts for _ in range(n)]
    schedule = make_schedule(**bundle.manifest.schedule.model_dump())
    schedule.grid(steps)  # raises where it has fewer timesteps
    table: dict[str, Any] = {"use": sampler or defaults.sampler, "steps": steps}
    if table["use"] == defaults.sampler:
        table |= defaults.sampler_options
    walk = Registry.load().build("sampler", table, where="sampler")
    return Plan(wanted, seed, steps, scale, table, walk, schedule)


def draw(
    bundle: "Bundle",
    plan: Plan,
    *,
    batch_size: int = 8,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Image.Image]:
    """One picture for each of `plan.prompts`; `Bundle.generate` describes the rest."""
    _check_whole(batch_size=batch_size)
    wanted = plan.prompts
    for prompt in dict.fromkeys(wanted):
        if prompt and (cut := words_cut(bundle, prompt)):
            warnings.warn(
                f"the prompt is too long for the text encoder; cut off: {cut!r}", PromptCutWarning, stacklevel=3
            )

    # Pictures with and without a prompt may need different networks, so each batch holds one sort.
    order = sorted(range(len(wanted)), key=lambda k: bool(wanted[k]))
    parts = (order[: wanted.count("")], order[wanted.count("") :])
    batches = [part[i : i + batch_size] for part in parts for i in range(0, len(part), batch_size)]
    pictures: dict[int, Image.Image] = {}
    for index, batch in enumerate(batches):
        network = _network(bundle, [wanted[k] for k in batch], plan.guidance_scale)

        def report(step: int, before: int = index * plan.steps) -> None:
            if on_step is not None:
                on_step(before + step, len(batches) * plan.steps)

        latents = _draw_latents(bundle.manifest, plan, network, [plan.seed + k for k in batch], report)
        pixels = bundle.run(VAE_DECODER, latents=latents)
        if not np.isfinite(pixels).all():
            raise LdmkitError(
                f"bundle {bundle.folder}: the network's output is not finite (guidance_scale {plan.guidance_scale})."
            )
        pictures |= dict(zip(batch, to_pictures(pixels), strict=True))
    return [pictures[k] for k in range(len(wanted))]


def _draw_latents(
    manifest: Manifest, plan: Plan, network: Network, seeds: Sequence[int], report: Callable[[int], None]
) -> np.ndarray:
    """Latents (B, C, h, w) float32, one a seed; `report(number of the step)` is called after each network call."""
    times = plan.schedule.grid(plan.steps)[0]
    # A source a picture, so that none depends on what it is drawn beside. PCG64 by name: what numpy's default
    # generator is may change.
    sources = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]

    def randn_like(x: np.ndarray) -> np.ndarray:
        return np.stack([source.standard_normal(x.shape[1:]) for source in sources])

    def denoise(x_t: np.ndarray, t: float) -> np.ndarray:
        output = network(x_t.astype(np.float32), np.full(len(x_t), t, dtype=np.float32)).astype(np.float64)
        report(int(np.searchsorted(-times, -t)) + 1)
        x0: np.ndarray = to_x0(manifest.prediction, output, x_t, plan.schedule.alpha(t), plan.schedule.sigma(t))
        return x0

    latent = manifest.latent
    # float64 between the network's calls: a sampler's step costs nothing beside a call.
    x_T = randn_like(np.empty((len(seeds), latent.channels, latent.height, latent.width)))  # noqa: N806 - the field's name
    latents: np.ndarray = plan.walk.sample(denoise, x_T, plan.schedule, randn_like)
    return latents.astype(np.float32)


def check_prompt(bundle: "Bundle", prompt: str) -> str:
    """The prompt without surrounding space, "" for none. Raises LdmkitError where the bundle cannot draw it."""
    prompt = prompt.strip()
    if prompt and not bundle.draws_text:
        raise LdmkitError(f"bundle {bundle.folder} has no {UNET_T2I}: it draws without a prompt only. Leave it out.")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise LdmkitError(f"the prompt {prompt!r} is not valid Unicode text.") from None
    return prompt


def words_cut(bundle: "Bundle", prompt: str) -> str:
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


def _check_whole(least: int = 1, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise LdmkitError(f"{name} is {value!r}; it must be a whole number of {least} or more.")


def _network(bundle: "Bundle", prompts: list[str], scale: float) -> Network:
    """The U-Net for a batch of prompts, all of them empty or none."""
    if not prompts[0] and bundle.draws_unconditionally:
        return lambda x_t, t: bundle.run(UNET, x_t=x_t, t=t)

    # Guidance, Ho and Salimans 2022, as one doubled batch; at scale 1 and for the empty caption one half is enough.
    guided = bool(prompts[0]) and scale != 1
    encodings = bundle.tokenizer.encode_batch(prompts + [""] * len(prompts) if guided else prompts)
    ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)  # (B, L) or (2 B, L)
    mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
    context = bundle.run(TEXT_ENCODER, ids=ids, mask=mask)  # (B, L, D) or (2 B, L, D)

    def network(x_t: np.ndarray, t: np.ndarray) -> np.ndarray:
        if not guided:
            return bundle.run(UNET_T2I, x_t=x_t, t=t, context=context, context_mask=mask)
        x_t, t = np.concatenate([x_t, x_t]), np.concatenate([t, t])
        output = bundle.run(UNET_T2I, x_t=x_t, t=t, context=context, context_mask=mask)
        with_prompt, without = np.split(output, 2)
        guided_output: np.ndarray = without + scale * (with_prompt - without)
        return guided_output

    return network

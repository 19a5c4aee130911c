"""The recipe: every key with its unit, its range and what it means. Imports neither torch nor any plugin."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ldmkit.recipe.data import MAX_BUCKETS, Data
from ldmkit.recipe.training import (
    T2I,
    AnyT2I,
    AnyUNet,
    Component,
    DiTTraining,
    Section,
    UNetTraining,
    Vae,
    later,
    no_result,
)


class Caption(Component):
    use: str = Field("sidecar", description="captioner; `ldmkit plugins captioner` lists them")
    keep_existing: bool = Field(
        True,
        description="keep captions found beside the pictures (.txt, .caption, metadata.*), write only the others",
    )
    missing: Literal["error", "skip", "empty"] = Field(
        "error", description="a picture left without caption: stop, leave it out of text-to-image, or train it as empty"
    )
    max_missing: float = no_result(
        0.5,
        ge=0,
        le=1,
        description="largest share of pictures left without a caption before a run stops, where `missing` is skip or "
        "empty",
    )


class Text(Component):
    use: str = Field("transformer", description="text encoder; `ldmkit plugins text_encoder` lists them")


class Latents(Section):
    normalize: bool = Field(True, description="subtract each channel's mean over the whole set and divide by its std")
    draw: Literal["each_step", "once", "mean"] = Field(
        "each_step", description="latents redrawn from mean and std at each step, drawn once, or their mean"
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="of the cached mean and std")


class Gate(Section):
    """What the autoencoder must reach before a U-Net trains on its latents."""

    min_psnr: float = Field(18.0, ge=0, description="dB, least held-out PSNR; 0: not checked")
    min_ssim: float = Field(0.4, ge=0, le=1, description="least held-out SSIM; 0: not checked")
    max_lpips: float = Field(
        0.5, ge=0, description="largest held-out LPIPS, where the recipe has that loss; 0: not checked"
    )
    min_latent_signal: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="least share of a latent channel's variance that comes from the pictures and not from the "
        "posterior's noise; below it the channel is dead; 0: not checked",
    )
    max_latent_kurtosis: float = Field(
        20.0, ge=0, description="largest excess kurtosis of a latent channel (0: a Gaussian's); 0: not checked"
    )
    max_high_frequency: float = later(
        0.0,
        ge=0,
        le=1,
        description="largest share of the latents' energy above half of Nyquist, held out; 0: not checked",
    )


class Diffusion(Section):
    schedule: Literal["linear", "scaled_linear", "cosine", "flow"] = Field("flow", description="noise schedule")
    num_timesteps: int = Field(1000, gt=1, le=100_000, description="T, timesteps of the schedule")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="first beta of linear and scaled_linear")
    beta_end: float = Field(0.02, gt=0, lt=1, description="last beta of linear and scaled_linear")
    zero_terminal_snr: bool = Field(False, description="rescale the betas to zero terminal SNR (Lin et al. 2024)")
    prediction: Literal["eps", "x0", "v", "flow"] = Field("flow", description="what the U-Net predicts")
    weighting: Literal["none", "min_snr", "p2", "velocity"] = Field(
        "none", description="weight of the loss by timestep; `velocity`: as if flow were predicted, for x0"
    )
    min_snr_gamma: float = Field(5.0, gt=0, description="gamma of min_snr (Hang et al. 2023)")
    p2_k: float = Field(1.0, gt=0, description="k of p2 (Choi et al. 2022)")
    p2_gamma: float = Field(1.0, ge=0, description="gamma of p2 (Choi et al. 2022); 0: weighting of eps")
    velocity_floor: float = later(
        0.15, gt=0, le=1, description="sigma below which velocity's weight rises no more (Li & He 2025)"
    )
    timesteps: Literal["uniform", "logit_normal"] = Field(
        "logit_normal", description="how training timesteps are drawn"
    )
    logit_mean: float = later(
        0.0, ge=-5, le=5, description="mean of logit_normal (Esser et al. 2024); above 0: more often noisier"
    )

    @model_validator(mode="after")
    def _prediction_fits(self) -> "Diffusion":
        if self.prediction == "eps" and (self.schedule == "flow" or self.zero_terminal_snr):
            raise ValueError('prediction = "eps" is undefined where the signal is zero; use "v", "x0" or "flow"')
        return self

    def schedule_options(self) -> dict[str, Any]:
        """Keyword arguments of `make_schedule`, its name included."""
        names = {"num_timesteps", "beta_start", "beta_end", "zero_terminal_snr"}
        return {"name": self.schedule, **self.model_dump(include=names)}


class SamplerChoice(Component):
    use: str = Field(
        "dpmpp_2m", description="sampler of previews and of the bundle; `ldmkit plugins sampler` lists them"
    )
    steps: int = Field(20, gt=0, le=10_000, description="denoising steps")
    guidance_scale: float = Field(3.0, ge=0, le=100, description="weight of classifier-free guidance; 1: none")

    def table(self) -> dict[str, Any]:
        return {"use": self.use, "steps": self.steps, **(self.model_extra or {})}


class Export(Section):
    path: str = no_result("exports", min_length=1, description="folder that bundles are written to")
    tolerance: float = Field(
        1e-4,
        gt=0,
        description="largest difference between a graph and torch, "
        "as a share of its largest value where that is above 1",
    )
    opset: int = Field(18, ge=18, le=20, description="ONNX operator set")
    precision: Literal["fp32", "fp16-weights", "fp16"] = later(
        "fp32",
        description="of the graphs; `fp16-weights` halves the files at no cost of time, `fp16` computes in half "
        "precision as well, for GPUs",
    )
    encoder: bool = later(False, description="add the encoder's graph, by which a bundle draws from a picture")


class Recipe(Section):
    """All that `ldmkit train` needs to know."""

    name: str = Field(
        "",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$|^$",
        max_length=100,  # as in a bundle's manifest
        description="of the run and the bundle: letters, digits, `.`, `_`, `-`; the file's stem if left out",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="every random number follows from it")
    plugins: tuple[str, ...] = Field((), description="single-file plugins, relative to the recipe")
    data: Data = Field(default_factory=lambda: Data(), description="the pictures")
    caption: Caption = Field(default_factory=lambda: Caption(), description="captions of the pictures")
    text: Text = Field(default_factory=lambda: Text(), description="the text encoder")
    vae: Vae = Field(description="the autoencoder and its training")
    latents: Latents = Field(default_factory=Latents, description="the cached latents")
    gate: Gate = Field(default_factory=lambda: Gate(), description="the gate before the U-Nets")
    diffusion: Diffusion = Field(default_factory=Diffusion, description="the noise process")
    unet: AnyUNet | None = Field(
        None, description="the network that draws without text, and its training; left out: none"
    )
    t2i: AnyT2I | None = Field(
        None, description="the network that draws from text, and its training; left out: no text is used"
    )
    sampler: SamplerChoice = Field(default_factory=lambda: SamplerChoice(), description="how pictures are drawn")
    export: Export = Field(default_factory=Export, description="the ONNX bundle")

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        if found := misfits(self):
            raise ValueError("\n".join(found))
        return self

    def published(self) -> dict[str, Any]:
        """As JSON values that others may read: pictures and plugins without where they lie on this machine."""
        table = self.model_dump(mode="json")
        for key in ("path", "exclude"):
            table["data"][key] = Path(table["data"][key]).name
        table["data"]["follow_links"] = [Path(folder).name for folder in self.data.follow_links]
        table["plugins"] = [Path(plugin).name for plugin in self.plugins]
        if not self.vae.pretrained.startswith("hub:"):
            table["vae"]["pretrained"] = Path(self.vae.pretrained).name
        return table


COMPONENTS: tuple[tuple[str, str, type[Component]], ...] = (
    ("caption", "captioner", Caption),
    ("text", "text_encoder", Text),
    ("sampler", "sampler", SamplerChoice),
)
"""(section, kind, its declared keys) of the sections that name a component; losses are named one by one"""


def component_tables(recipe: Recipe) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(where, kind, table) of each component that the recipe names."""
    return [
        *((name, kind, getattr(recipe, name).table()) for name, kind, _ in COMPONENTS),
        *((f"vae.losses.{name}", "loss", loss.table()) for name, loss in recipe.vae.losses.items()),
    ]


def misfits(recipe: Recipe) -> list[str]:
    """What no key can tell alone: a line for each pair of keys that do not fit, with both and what would."""
    down = None if recipe.vae.pretrained else recipe.vae.patch_size * 2 ** (len(recipe.vae.channels) - 1)
    sizes = () if down is None else size_misfits(recipe, down)
    return [*_networks(recipe), *_buckets(recipe.data), *sizes, *_losses(recipe), *_noise(recipe)]


def _buckets(data: Data) -> Iterator[str]:
    if isinstance(step := data.buckets, int):
        size = list(data.size) if isinstance(data.size, tuple) else data.size
        if any(side % step for side in data.shapes[0]):
            yield f"[data] buckets = {step} must divide size = {size}, which is one of the sizes that it gives"
        elif not 1 < (number := len(data.shapes)) <= MAX_BUCKETS:
            told = "no size but" if number == 1 else f"{number} sizes, more than {MAX_BUCKETS}, for"
            than = "smaller" if number == 1 else "larger"
            yield f"[data] buckets = {step} gives {told} size = {size}; use a {than} step"
        return
    for shape in data.shapes:
        if (other := data.shapes[data.bucket(*shape)]) != shape:
            yield f"[data] buckets: {list(shape)} has the aspect ratio of {list(other)}, so that no picture comes to it"
            return


def _networks(recipe: Recipe) -> Iterator[str]:
    if recipe.unet is None and recipe.t2i is None:
        yield "[unet] or [t2i] is needed, the network that draws"
    for name, section in _sections(recipe, "vae", "unet", "t2i"):
        if section.batch_size % section.grad_accumulation:
            yield (
                f"[{name}] batch_size = {section.batch_size} must be a multiple of "
                f"grad_accumulation = {section.grad_accumulation}"
            )
        if isinstance(section, DiTTraining):
            if section.width % section.num_heads:
                yield f"[{name}] width = {section.width} must be a multiple of num_heads = {section.num_heads}"
            continue
        widths, levels = list(section.channels), list(section.attention_levels)
        if any(width % section.norm_groups for width in widths):
            yield f"[{name}] channels = {widths} must be multiples of norm_groups = {section.norm_groups}"
        if any(level >= len(widths) for level in levels):
            yield (
                f"[{name}] attention_levels = {levels} must lie between 1 and {len(widths) - 1}, "
                "the number of levels that channels gives"
            )
        if isinstance(section, UNetTraining) and section.time_dim % 2:
            yield f"[{name}] time_dim = {section.time_dim} must be even, half for sines and half for cosines"
    if not isinstance(recipe.t2i, T2I):
        return
    widths, heads = list(recipe.t2i.channels), recipe.t2i.num_heads
    # The middle always attends; a level does on its way down and, as wide as the level above it, on its way up.
    levels = [level for level in recipe.t2i.attention_levels if level < len(widths)]
    attending = {widths[-1], *(widths[i] for level in levels for i in (level - 1, level))}
    if wrong := sorted(width for width in attending if width % heads):
        yield f"[t2i] num_heads = {heads} must divide the width of every level with attention, and {wrong[0]} is one"


def _sections(recipe: Recipe, *names: str) -> Iterator[tuple[str, Any]]:
    yield from ((name, found) for name in names if (found := getattr(recipe, name)) is not None)


def size_misfits(recipe: Recipe, down: int) -> Iterator[str]:
    """As `misfits`, of the sizes alone: `down` is the autoencoder's factor."""
    size, shapes, step = recipe.data.size, recipe.data.shapes, recipe.data.buckets
    if wrong := [shape for shape in shapes if any(side % down for side in shape)]:
        by = "the pretrained autoencoder" if recipe.vae.pretrained else "vae.channels and vae.patch_size"
        key = "size =" if wrong[0] == shapes[0] else "buckets:"
        told = f"{size} must be a multiple" if (size,) * 2 == wrong[0] else f"{list(wrong[0])} must be multiples"
        if isinstance(step, int) and wrong[0] != shapes[0]:
            key, told = "buckets =", f"{step} must be a multiple"
        yield f"[data] {key} {told} of {down}, by which {by} shrink{'s' * (by[0] == 't')} it"
        return
    for name, section in _sections(recipe, "unet", "t2i"):
        latents = [[side // down for side in shape] for shape in shapes]
        unfit = next((sides for sides in latents if any(side % section.shrink for side in sides)), None)
        if unfit is None:
            continue
        seen = f"{unfit[0]} wide" + (f" and {unfit[1]} high" if unfit[0] != unfit[1] else "")
        rest = ""
        if isinstance(step, int) and unfit != latents[0]:
            rest = f", or make [data] buckets = {step} a multiple of {down * section.shrink}"
        if isinstance(section, DiTTraining):
            yield f"[{name}] patch_size = {section.patch_size} must divide the latents, {seen}{rest}"
        else:
            yield (
                f"[{name}] channels = {list(section.channels)} shrink by {section.shrink}, but the latents are "
                f"{seen}: use fewer levels{rest}"
            )


def _losses(recipe: Recipe) -> Iterator[str]:
    if recipe.vae.pretrained and not recipe.vae.tune_decoder_steps:
        return  # none is used
    if not any(
        loss.weight > 0 and not (loss.start_step or loss.start_epoch or loss.start_on_plateau or loss.ramp_steps)
        for loss in recipe.vae.losses.values()
    ):
        yield (
            "[vae.losses] needs a loss that counts from the first step: weight above 0, start_step, start_epoch and "
            "ramp_steps 0, start_on_plateau false"
        )
    for name, loss in recipe.vae.losses.items():
        if loss.start_on_plateau and not recipe.data.held_out:
            yield (
                f"[vae.losses.{name}] start_on_plateau = true judges by pictures held out: "
                "[data] held_out = 0.0 must be above 0, or give a start_step"
            )


def _noise(recipe: Recipe) -> Iterator[str]:
    diffusion = recipe.diffusion
    if diffusion.schedule in ("linear", "scaled_linear") and diffusion.beta_start > diffusion.beta_end:
        yield f"[diffusion] beta_start = {diffusion.beta_start} must not be above beta_end = {diffusion.beta_end}"
    # Flow is continuous; the others would repeat timesteps.
    if diffusion.schedule != "flow" and recipe.sampler.steps > diffusion.num_timesteps:
        yield (
            f"[sampler] steps = {recipe.sampler.steps} must not be above "
            f"diffusion.num_timesteps = {diffusion.num_timesteps}"
        )

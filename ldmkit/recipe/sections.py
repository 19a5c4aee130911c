"""The recipe: every key with its unit, its range and what it means. Imports neither torch nor any plugin."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from ldmkit.recipe.fits import misfits

# Marks keys that change what is printed or how fast, never the result: they are left out of fingerprints.
NO_RESULT: JsonDict = {"affects_result": False}

PositiveInt = Annotated[int, Field(gt=0)]
Channels = Annotated[tuple[PositiveInt, ...], Field(min_length=2)]


class Section(BaseModel):
    """A frozen table whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def fingerprint_keys(self) -> dict[str, Any]:
        """The keys that affect the result, as JSON values."""
        dropped = {
            name
            for name, field in type(self).model_fields.items()
            if isinstance(field.json_schema_extra, dict) and not field.json_schema_extra.get("affects_result", True)
        }
        return self.model_dump(mode="json", exclude=dropped)


class Component(Section):
    """A plugin's component by name; every key that is not declared here is one of its options."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    use: str = Field(description="name of the component; `ldmkit plugins` lists them")

    def table(self) -> dict[str, Any]:
        """`use` and the component's own options, as the registry takes them."""
        return {"use": self.use, **(self.model_extra or {})}


class Data(Section):
    path: str = Field(
        "data/pictures",
        min_length=1,
        description="folder of pictures, searched with its subfolders; relative to where ldmkit is started",
    )
    source: str = Field(
        "folder",
        pattern=r"^(folder|toy-cats|hub:[^/]+/[^/]+/.+\.zip)$",
        description="where the pictures come from if the folder is not there: `folder` (nowhere), "
        "`toy-cats` (drawn here) or `hub:OWNER/NAME/FILE.zip` (a data set on the Hugging Face hub)",
    )
    num_pictures: int | None = Field(
        None, gt=0, description="pictures to use (or to draw, for toy-cats); all if left out"
    )
    size: int = Field(64, ge=8, le=2048, description="pixels; pictures are made square, this wide and high")
    crop: Literal["center", "squash"] = Field(
        "center", description="`center` keeps the aspect ratio and cuts the longer side, `squash` distorts"
    )
    flip: bool = Field(True, description="use each picture's mirror image as well")
    held_out: float = Field(0.05, ge=0, lt=1, description="share of the pictures never trained on")
    max_bad: float = Field(0.1, ge=0, le=1, description="largest share of unreadable pictures before a run stops")
    num_workers: int = Field(
        2,
        ge=0,
        le=64,
        description="processes that decode pictures; 0: none beside the main one",
        json_schema_extra=NO_RESULT,
    )


class Caption(Component):
    use: str = Field("sidecar", description="captioner; `ldmkit plugins captioner` lists them")
    keep_existing: bool = Field(
        True,
        description="keep captions found beside the pictures (.txt, .caption, metadata.jsonl), write only the others",
    )
    missing: Literal["error", "skip", "empty"] = Field(
        "error", description="a picture left without caption: stop, leave it out of text-to-image, or train it as empty"
    )


class Text(Component):
    use: str = Field("transformer", description="text encoder; `ldmkit plugins text_encoder` lists them")


class Training(Section):
    """What each trained stage has in common."""

    steps: int | None = Field(None, gt=0, description="optimizer steps; give this or `epochs`")
    epochs: int | None = Field(None, gt=0, description="passes over the training pictures; give this or `steps`")
    batch_size: int = Field(32, gt=0, description="pictures per optimizer step, over all processes")
    grad_accumulation: int = Field(1, gt=0, description="parts into which a process splits its share of a batch")
    optimizer: Literal["adamw", "adam"] = Field("adamw", description="AdamW or Adam")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="peak learning rate")
    lr_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="learning rate after the warm-up: constant, or a cosine down to 0 at the last step"
    )
    warmup_steps: int = Field(0, ge=0, description="optimizer steps over which the learning rate rises from 0")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="Adam's betas"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    grad_clip: float = Field(1.0, ge=0, description="largest global gradient norm; 0: no clipping")
    ema_decays: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.999,),
        max_length=4,
        description="decays of the moving averages of the weights, warmed up, all kept at once; the first one is "
        "what later stages and the bundle use; empty: no average",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="of the networks; `auto` is bf16 on a GPU or CPU that computes in it (CPU: AMX, AVX-512 BF16), "
        "else fp32",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="compile the network with torch.compile; `auto`: on CUDA, where the run is long enough"
    )
    log_every: int = Field(
        20, gt=0, description="optimizer steps between two lines of metrics", json_schema_extra=NO_RESULT
    )
    eval_every: int = Field(
        500, gt=0, description="steps between two held-out evaluations", json_schema_extra=NO_RESULT
    )
    sample_every: int = Field(1000, gt=0, description="steps between two sample grids", json_schema_extra=NO_RESULT)
    checkpoint_every: int = Field(500, gt=0, description="steps between two checkpoints", json_schema_extra=NO_RESULT)
    keep_checkpoints: int = Field(2, gt=0, description="newest checkpoints that are kept", json_schema_extra=NO_RESULT)

    @model_validator(mode="after")
    def _length(self) -> "Training":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("needs exactly one of the keys steps and epochs")
        return self

    def num_steps(self, num_pictures: int) -> int:
        """Optimizer steps for a training set of this many pictures."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return -(-self.epochs * num_pictures // self.batch_size)


class VaeLoss(Component):
    weight: float = Field(1.0, ge=0, description="factor of this term")
    start_step: int = Field(0, ge=0, description="optimizer step from which the term counts")
    start_epoch: int = Field(0, ge=0, description="epoch from which the term counts (the later of the two holds)")
    start_on_plateau: bool = Field(
        False,
        description="start once the held-out reconstruction stops getting better (see vae.guard), and not before "
        "start_step and start_epoch; of an adversarial loss",
    )
    ramp_steps: int = Field(0, ge=0, description="optimizer steps over which the weight rises from 0 after the start")


class GanGuard(Section):
    """Keeps an adversarial loss from ruining the reconstructions."""

    plateau_evaluations: int = Field(
        3, gt=0, description="evaluations (see eval_every) without a better held-out PSNR that make a plateau"
    )
    plateau_psnr: float = Field(0.1, ge=0, description="dB; a gain of less counts as none")
    max_psnr_drop: float = Field(
        1.0, ge=0, description="dB below the best held-out PSNR before the weights go back to it; 0: never"
    )
    max_lpips_rise: float = Field(
        0.03, ge=0, description="above the best held-out LPIPS before the weights go back to it; 0: never"
    )
    weight_factor: float = Field(
        0.5, ge=0, lt=1, description="factor of the adversarial weight each time the weights went back"
    )


class Vae(Training):
    channels: Channels = Field(
        (32, 64, 128, 128), description="channels of the first convolution, then of each level; a level halves the size"
    )
    patch_size: int = Field(
        1, gt=0, le=8, description="pixels, width of the patches folded into channels first; 2 or 4: faster on a CPU"
    )
    latent_channels: int = Field(4, gt=0, le=64, description="channels of the latents")
    num_res_blocks: int = Field(2, gt=0, le=8, description="residual blocks per level")
    attention_levels: tuple[PositiveInt, ...] = Field((), description="levels with attention, 1 is the finest")
    norm_groups: int = Field(32, gt=0, description="groups of the GroupNorms")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the residual blocks")
    losses: dict[str, VaeLoss] = Field(
        default_factory=lambda: {"l1": VaeLoss(use="l1"), "kl": VaeLoss(use="kl", weight=1e-6)},
        description="terms of the loss, each `[vae.losses.NAME]` with `use`, `weight` and the loss's own options",
    )
    discriminator_learning_rate: float = Field(1e-4, gt=0, le=1, description="of an adversarial loss's discriminator")
    max_adaptive_weight: float = Field(
        1.0, gt=0, description="upper bound of the adaptive weight of an adversarial loss (Esser et al. 2021, eq. 7)"
    )
    guard: GanGuard = Field(default_factory=lambda: GanGuard(), description="the guard over adversarial losses")

    def network(self) -> dict[str, Any]:
        """Keyword arguments of `AutoencoderKL`."""
        names = (
            "channels",
            "latent_channels",
            "num_res_blocks",
            "attention_levels",
            "norm_groups",
            "dropout",
            "patch_size",
        )
        return {name: getattr(self, name) for name in names}


class Latents(Section):
    normalize: bool = Field(True, description="subtract each channel's mean over the whole set and divide by its std")
    draw: Literal["each_step", "once", "mean"] = Field(
        "each_step", description="latents drawn from mean and std anew each step, once for all, or their mean"
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="of the cached mean and std")


class Gate(Section):
    """What the autoencoder must reach before a U-Net trains on its latents."""

    min_psnr: float = Field(18.0, ge=0, description="dB, least held-out PSNR; 0: not looked at")
    min_ssim: float = Field(0.4, ge=0, le=1, description="least held-out SSIM; 0: not looked at")
    max_lpips: float = Field(
        0.5, ge=0, description="largest held-out LPIPS, where the recipe has that loss; 0: not looked at"
    )
    min_latent_signal: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="least share of a latent channel's variance that comes from the pictures and not from the "
        "posterior's noise; below it the channel is dead; 0: not looked at",
    )
    max_latent_kurtosis: float = Field(
        20.0, ge=0, description="largest excess kurtosis of a latent channel (0: a Gaussian's); 0: not looked at"
    )


class Diffusion(Section):
    schedule: Literal["linear", "scaled_linear", "cosine", "flow"] = Field("flow", description="noise schedule")
    num_timesteps: int = Field(1000, gt=1, le=100_000, description="T, timesteps of the schedule")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="first beta of linear and scaled_linear")
    beta_end: float = Field(0.02, gt=0, lt=1, description="last beta of linear and scaled_linear")
    zero_terminal_snr: bool = Field(False, description="rescale the betas to zero terminal SNR (Lin et al. 2024)")
    prediction: Literal["eps", "x0", "v", "flow"] = Field("flow", description="what the U-Net predicts")
    weighting: Literal["none", "min_snr", "p2"] = Field("none", description="weight of the loss by timestep")
    min_snr_gamma: float = Field(5.0, gt=0, description="gamma of min_snr (Hang et al. 2023)")
    p2_k: float = Field(1.0, gt=0, description="k of p2 (Choi et al. 2022)")
    p2_gamma: float = Field(1.0, ge=0, description="gamma of p2 (Choi et al. 2022); 0: weighting of eps")
    timesteps: Literal["uniform", "logit_normal"] = Field(
        "logit_normal", description="how training timesteps are drawn"
    )

    @model_validator(mode="after")
    def _prediction_fits(self) -> "Diffusion":
        if self.prediction == "eps" and (self.schedule == "flow" or self.zero_terminal_snr):
            raise ValueError('prediction = "eps" has no answer where the signal is zero; use "v", "x0" or "flow"')
        return self

    def schedule_options(self) -> dict[str, Any]:
        """Keyword arguments of `make_schedule`, its name included."""
        names = ("num_timesteps", "beta_start", "beta_end", "zero_terminal_snr")
        return {"name": self.schedule, **{name: getattr(self, name) for name in names}}


class UNetTraining(Training):
    channels: Channels = Field(
        (64, 128, 192), description="channels of the first convolution, then of each level; a level halves the size"
    )
    num_res_blocks: int = Field(2, gt=0, le=8, description="residual blocks per level")
    attention_levels: tuple[PositiveInt, ...] = Field((1, 2), description="levels with attention, 1 is the finest")
    time_dim: int = Field(256, gt=1, description="width of the timestep embedding")
    norm_groups: int = Field(32, gt=0, description="groups of the GroupNorms")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the residual blocks")

    def network(self) -> dict[str, Any]:
        """Keyword arguments of `UNet`, without those of the text."""
        names = ("channels", "num_res_blocks", "attention_levels", "time_dim", "norm_groups", "dropout")
        return {name: getattr(self, name) for name in names}


class T2I(UNetTraining):
    num_heads: int = Field(8, gt=0, description="attention heads")
    mask_padding: bool = Field(True, description="hide padding tokens from cross-attention")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="share of captions replaced by the empty one")

    def network(self) -> dict[str, Any]:
        return {**super().network(), "num_heads": self.num_heads, "mask_padding": self.mask_padding}


class SamplerChoice(Component):
    use: str = Field(
        "dpmpp_2m", description="sampler of previews and of the bundle; `ldmkit plugins sampler` lists them"
    )
    steps: int = Field(20, gt=0, le=10_000, description="denoising steps")
    guidance_scale: float = Field(3.0, ge=0, le=100, description="weight of classifier-free guidance; 1: none")

    def table(self) -> dict[str, Any]:
        return {"use": self.use, "steps": self.steps, **(self.model_extra or {})}


class Export(Section):
    path: str = Field("exports", min_length=1, description="folder that bundles are written to")
    tolerance: float = Field(1e-4, gt=0, description="largest difference between a graph and torch")
    opset: int = Field(18, ge=18, le=20, description="ONNX operator set")
    precision: Literal["fp32", "fp16-weights", "fp16"] = Field(
        "fp32",
        description="of the graphs; `fp16-weights` halves the files at no cost of time, `fp16` computes in half "
        "precision as well, for GPUs",
    )
    encoder: bool = Field(False, description="add the encoder's graph, by which a bundle draws from a picture")


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
    unet: UNetTraining = Field(description="the unconditional U-Net and its training")
    t2i: T2I = Field(description="the text-to-image U-Net and its training")
    sampler: SamplerChoice = Field(default_factory=lambda: SamplerChoice(), description="how pictures are drawn")
    export: Export = Field(default_factory=Export, description="the ONNX bundle")

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        if found := misfits(self):
            raise ValueError("\n".join(found))
        return self


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

"""What every table of a recipe is, and the tables of the stages that train: each key with its range and words."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.fields import FieldInfo

from ldmkit.errors import LdmkitError


def no_result(default: Any, **rules: Any) -> Any:
    """A key that changes what is printed or how fast, never the result: it is left out of fingerprints."""
    return Field(default, json_schema_extra={"affects_result": False}, **rules)


def later(default: Any, **rules: Any) -> Any:
    """A key that was added when runs existed, its default what they did: at it, the key is left out of fingerprints."""
    return Field(default, json_schema_extra={"later": True}, **rules)


def goes_on(default: Any, **rules: Any) -> Any:
    """A key that does not change what a weight means: a part that was trained by another value is trained on."""
    return Field(default, json_schema_extra={"goes_on": True}, **rules)


PositiveInt = Annotated[int, Field(gt=0)]
Channels = Annotated[tuple[PositiveInt, ...], Field(min_length=2)]

_NETWORK = {"channels", "num_res_blocks", "attention_levels", "norm_groups", "dropout"}
"""the keys that the autoencoder and the U-Nets are built from alike"""


class Section(BaseModel):
    """A frozen table whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def fingerprint_keys(self) -> dict[str, Any]:
        """The keys that affect the result, as JSON values."""
        dropped = set()
        for name, field in type(self).model_fields.items():
            mark = _marks(field)
            if not mark.get("affects_result", True) or (mark.get("later") and getattr(self, name) == field.default):
                dropped.add(name)
        return self.model_dump(mode="json", exclude=dropped)

    @classmethod
    def goes_on_keys(cls) -> frozenset[str]:
        """The keys by whose change training goes on."""
        return frozenset(name for name, field in cls.model_fields.items() if _marks(field).get("goes_on"))


def _marks(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


class Component(Section):
    """A plugin's component by name; every key that is not declared here is one of its options."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    use: str = Field(description="name of the component; `ldmkit plugins` lists them")

    def table(self) -> dict[str, Any]:
        """`use` and the component's own options, as the registry takes them."""
        return {"use": self.use, **(self.model_extra or {})}


class Training(Section):
    """What each trained stage has in common."""

    steps: int | None = goes_on(None, gt=0, description="optimizer steps; give this or `epochs`")
    epochs: int | None = goes_on(None, gt=0, description="passes over the training pictures; give this or `steps`")
    batch_size: int = goes_on(32, gt=0, description="pictures per optimizer step, over all processes")
    grad_accumulation: int = goes_on(1, gt=0, description="parts that each process splits its share of a batch into")
    optimizer: Literal["adamw", "adam"] = Field("adamw", description="AdamW or Adam")
    learning_rate: float = goes_on(1e-4, gt=0, le=1, description="peak learning rate")
    lr_schedule: Literal["constant", "cosine"] = goes_on(
        "constant", description="learning rate after the warm-up: constant, or a cosine down to 0 at the last step"
    )
    warmup_steps: int = goes_on(0, ge=0, description="optimizer steps over which the learning rate rises from 0")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = goes_on(
        (0.9, 0.999), description="Adam's betas"
    )
    weight_decay: float = goes_on(0.0, ge=0, description="AdamW's weight decay")
    grad_clip: float = goes_on(1.0, ge=0, description="largest global gradient norm; 0: no clipping")
    ema_decays: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = goes_on(
        (0.999,),
        max_length=4,
        description="decays of the moving averages of the weights, warmed up, all kept at once; the first one is "
        "what later stages and the bundle use; empty: no average",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = goes_on(
        "auto",
        description="of the networks; `auto` is bf16 on a GPU or CPU that computes in it (CPU: AMX, AVX-512 BF16), "
        "else fp32",
    )
    compile: Literal["auto", "on", "off"] = goes_on(
        "auto",
        description="compile the network with torch.compile; `auto`: on CUDA in a run of 5000 steps, on a CPU with a "
        "C++ compiler a `dit` of three million tokens",
    )
    log_every: int = no_result(20, gt=0, description="optimizer steps between two lines of metrics")
    eval_every: int = no_result(500, gt=0, description="steps between two held-out evaluations")
    sample_every: int = no_result(1000, gt=0, description="steps between two sample grids")
    checkpoint_every: int = no_result(500, gt=0, description="steps between two checkpoints")
    keep_checkpoints: int = no_result(2, gt=0, description="newest checkpoints that are kept")
    keep_every: int = no_result(0, ge=0, description="also keep checkpoints at multiples of this many steps; 0: none")
    keep_best: bool = no_result(
        False,
        description="save at each evaluation whose held-out loss is the lowest so far (of the first average, where "
        "there is one), and keep that checkpoint",
    )
    deterministic: bool = no_result(
        False,
        description="use only GPU kernels that give the same result at each call; slower; on a CPU they always do",
    )

    @model_validator(mode="after")
    def _length(self) -> "Training":
        self._check_length()
        return self

    def _check_length(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("needs exactly one of the keys steps and epochs")

    def num_tokens(self, height: int, width: int) -> int:
        """Tokens of a picture of so many latents in a row of blocks that are alike; 0 for another network."""
        return 0

    def num_steps(self, num_pictures: int) -> int:
        """Optimizer steps for a training set of this many pictures."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return -(-self.epochs * num_pictures // self.batch_size)

    def check_split(self, name: str, num_processes: int) -> None:
        """Raises LdmkitError where a batch cannot be split among processes and then into parts."""
        if self.batch_size % (num_processes * self.grad_accumulation):
            raise LdmkitError(
                f"{name}: batch_size = {self.batch_size} must be a multiple of the number of processes "
                f"({num_processes}) times grad_accumulation ({self.grad_accumulation})"
            )


class VaeLoss(Component):
    weight: float = Field(1.0, ge=0, description="factor of this term")
    start_step: int = Field(0, ge=0, description="optimizer step from which the term counts")
    start_epoch: int = Field(0, ge=0, description="epoch from which the term counts (the later of the two holds)")
    start_on_plateau: bool = Field(
        False,
        description="start once the held-out reconstruction stops improving (see vae.guard), and not before "
        "start_step and start_epoch; of an adversarial loss",
    )
    ramp_steps: int = Field(0, ge=0, description="optimizer steps over which the weight rises from 0 after the start")


class GanGuard(Section):
    """Rolls the weights back where an adversarial loss degrades the reconstructions."""

    plateau_evaluations: int = Field(
        3, gt=0, description="evaluations (see eval_every) without a better held-out PSNR that make a plateau"
    )
    plateau_psnr: float = Field(0.1, ge=0, description="dB; a gain of less counts as none")
    max_psnr_drop: float = Field(
        1.0, ge=0, description="dB below the best held-out PSNR at which the weights are rolled back to it; 0: never"
    )
    max_lpips_rise: float = Field(
        0.03, ge=0, description="above the best held-out LPIPS at which the weights are rolled back to it; 0: never"
    )
    weight_factor: float = Field(
        0.5, ge=0, lt=1, description="factor applied to the adversarial weight at each rollback"
    )


class Vae(Training):
    pretrained: str = no_result(
        "",
        description="an autoencoder that exists, in place of one trained here: `hub:OWNER/NAME` or "
        "`hub:OWNER/NAME@REVISION`, a folder of diffusers' AutoencoderKL, AutoencoderTiny or AutoencoderDC, a pair of "
        "TAESD's files, or another run (`runs/NAME`)",
    )
    tune_decoder_steps: int = later(
        0,
        ge=0,
        description="optimizer steps that train a pretrained autoencoder's decoder alone on these pictures, with the "
        "losses below; its latents stay what they are; 0: none",
    )
    channels: Channels = Field(
        (32, 64, 128, 128), description="channels of the first convolution, then of each level; a level halves the size"
    )
    patch_size: int = Field(
        1, gt=0, le=8, description="pixels, width of the patches folded into channels first; 2 or 4: faster on a CPU"
    )
    latent_channels: int = Field(4, gt=0, le=64, description="channels of the latents")
    linear_shortcut: bool = later(
        False,
        description="the networks add to a learned linear map between patches of pixels and latents: sharp much sooner",
    )
    num_res_blocks: int = Field(2, gt=0, le=8, description="residual blocks per level")
    attention_levels: tuple[PositiveInt, ...] = Field((), description="levels with attention, 1 is the finest")
    norm_groups: int = Field(32, gt=0, description="groups of the GroupNorms")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the residual blocks")
    losses: dict[str, VaeLoss] = Field(
        default_factory=lambda: {"l1": VaeLoss(use="l1"), "kl": VaeLoss(use="kl", weight=1e-6)},
        description="terms of the loss, each `[vae.losses.NAME]` with `use`, `weight` and the loss's own options",
    )
    discriminator_learning_rate: float = goes_on(1e-4, gt=0, le=1, description="of an adversarial loss's discriminator")
    max_adaptive_weight: float = Field(
        1.0, gt=0, description="upper bound of the adaptive weight of an adversarial loss (Esser et al. 2021, eq. 7)"
    )
    guard: GanGuard = Field(default_factory=lambda: GanGuard(), description="the guard over adversarial losses")

    def _check_length(self) -> None:
        if not self.pretrained:
            if self.tune_decoder_steps:
                raise ValueError("tune_decoder_steps is for a pretrained autoencoder; this one is trained whole")
            return super()._check_length()
        if self.pretrained.startswith("hub:") and not re.fullmatch(r"hub:\w[^/@]*/\w[^/@]*(@[^@]+)?", self.pretrained):
            raise ValueError(f'pretrained = "{self.pretrained}" must be hub:OWNER/NAME or hub:OWNER/NAME@REVISION')
        own = {"steps", "epochs", "patch_size", "linear_shortcut", "latent_channels", *_NETWORK}
        fields = type(self).model_fields
        if told := [key for key in fields if key in own and getattr(self, key) != fields[key].default]:
            raise ValueError(
                f"{' and '.join(told)} must be left out where the autoencoder is pretrained; tune_decoder_steps trains "
                "its decoder"
            )
        return None

    def num_steps(self, num_pictures: int) -> int:
        return self.tune_decoder_steps if self.pretrained else super().num_steps(num_pictures)

    def earliest_steps(self, num_pictures: int) -> dict[str, int]:
        """By loss the optimizer step before which it does not count, for a training set of this many pictures."""
        return {
            name: max(loss.start_step, loss.start_epoch * num_pictures // self.batch_size)
            for name, loss in self.losses.items()
        }

    def network(self) -> dict[str, Any]:
        """Keyword arguments of `AutoencoderKL`."""
        return self.model_dump(include=_NETWORK | {"latent_channels", "patch_size", "linear_shortcut"})


class DenoiserTraining(Training):
    """What the training of every network that draws has in common."""

    use: Literal["unet", "dit"] = later(
        "unet",
        description="the network: `unet`, convolutions at several resolutions, or `dit`, a transformer over patches",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the network's blocks")


class UNetTraining(DenoiserTraining):
    channels: Channels = Field(
        (64, 128, 192), description="channels of the first convolution, then of each level; a level halves the size"
    )
    num_res_blocks: int = Field(2, gt=0, le=8, description="residual blocks per level")
    attention_levels: tuple[PositiveInt, ...] = Field((1, 2), description="levels with attention, 1 is the finest")
    time_dim: int = Field(256, gt=1, description="width of the timestep embedding")
    norm_groups: int = Field(32, gt=0, description="groups of the GroupNorms")

    @property
    def shrink(self) -> int:
        """What the latents' width must be a multiple of."""
        return int(2 ** (len(self.channels) - 1))

    def network(self) -> dict[str, Any]:
        """Keyword arguments of `UNet`, without those of the text."""
        return self.model_dump(include=_NETWORK | {"time_dim"})


class DiTTraining(DenoiserTraining):
    use: Literal["unet", "dit"] = Field(description=DenoiserTraining.model_fields["use"].description)
    patch_size: int = Field(2, gt=0, le=16, description="latents, width of the patch that one token stands for")
    width: int = Field(256, gt=0, le=4096, multiple_of=4, description="width of a token; num_heads must divide it")
    depth: int = Field(8, gt=0, le=64, description="transformer blocks")
    num_heads: int = Field(8, gt=0, description="attention heads")

    def num_tokens(self, height: int, width: int) -> int:
        return (height // self.patch_size) * (width // self.patch_size)

    @property
    def shrink(self) -> int:
        """What the latents' width must be a multiple of."""
        return self.patch_size

    def network(self) -> dict[str, Any]:
        """Keyword arguments of `DiT`, without those of the text."""
        return self.model_dump(include={"patch_size", "width", "depth", "num_heads", "dropout"})


class TextTraining(DenoiserTraining):
    """What a network that draws from text has beside."""

    mask_padding: bool = Field(True, description="hide padding tokens from cross-attention")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="share of captions replaced by the empty one")


class T2I(UNetTraining, TextTraining):
    num_heads: int = Field(8, gt=0, description="attention heads")

    def network(self) -> dict[str, Any]:
        return super().network() | self.model_dump(include={"num_heads", "mask_padding"})


class DiTT2I(DiTTraining, TextTraining):
    def network(self) -> dict[str, Any]:
        return super().network() | self.model_dump(include={"mask_padding"})


NETWORKS: dict[str, dict[str, type[DenoiserTraining]]] = {
    "unet": {"unet": UNetTraining, "dit": DiTTraining},
    "t2i": {"unet": T2I, "dit": DiTT2I},
}
"""section -> network -> its table; a section without `use` names the first one"""


def _network(table: Any) -> str:
    """The network that a table names, in which alone its keys are looked up; whether there is one, pydantic says."""
    use = table.get("use", "unet") if isinstance(table, dict) else getattr(table, "use", "unet")
    return use if isinstance(use, str) else ""


AnyUNet = Annotated[Annotated[UNetTraining, Tag("unet")] | Annotated[DiTTraining, Tag("dit")], Discriminator(_network)]
AnyT2I = Annotated[Annotated[T2I, Tag("unet")] | Annotated[DiTT2I, Tag("dit")], Discriminator(_network)]

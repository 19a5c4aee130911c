"""The table of parts: all that a run consists of, and what each part is made from. Neither pydantic nor torch.

A new stage is one row here and the file that it names: commands, `train`, `status`, `plan` and fingerprints follow.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ldmkit.recipe import Recipe

LAYOUT = 2
"""raised whenever `encode` writes other files than it did"""


class Made(Protocol):
    """What a row sees of another part."""

    fingerprint: str


class Inputs(Protocol):
    """What the rows look at to tell what a part is made from; `ldmkit.run.inputs.RunParts` describes each."""

    recipe: "Recipe"
    pictures: str
    caption_files: str
    frozen: bool
    pretrained: str
    grown: bool

    def __getitem__(self, name: str, /) -> Made: ...
    def section(self, name: str, *keys: str) -> dict[str, Any]: ...
    def data(self) -> dict[str, Any]: ...
    def captions(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class PartSpec:
    """One row: a part of a run, the stage that makes it, and what makes it out of date."""

    name: str
    """of the part and of its folder"""
    stage: str
    """several rows one after the other may name the same one"""
    maker: str
    """module:function; see `load`"""
    inputs: Callable[[Inputs], dict[str, Any]]
    """JSON values: whatever changes one of them makes the part stale"""
    needs: tuple[str, ...] = ()
    """parts that must be done before, each in a row above; see `needed`"""
    section: str | None = None
    """of the recipe, without which there is no such part"""
    weights: str | None = None
    """file of its weights where others get them: what `export safetensors` writes and `--init-from` reads"""
    gated: bool = False
    """worth no more than the autoencoder is, so that the gate comes before it"""
    torch: bool = True
    """whether making it always takes the packages of `ldmkit[train]`"""
    shared: bool = False
    """whether several processes make it together though it is no network"""
    edited: bool = False
    """whether people correct its file by hand, and rather keep than lose it"""
    help: str = ""
    """of the stage's command, in the stage's first row; none: the command line has one of its own"""

    @property
    def trained(self) -> bool:
        """Whether it is a network, which several processes make together."""
        return self.weights is not None

    @property
    def label(self) -> str:
        """The stage, and which of its parts where it makes several."""
        return self.stage if len(stage_parts(self.stage)) == 1 else f"{self.stage} {self.name}"

    def load(self) -> Callable[[Any], dict[str, Any]]:
        """What makes the part of a `Workspace`, and returns what its record keeps; imported late: it brings torch."""
        module, function = self.maker.split(":")
        maker: Callable[[Any], dict[str, Any]] = getattr(import_module(module), function)
        return maker


def _without(table: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != key}


def _captions(run: Inputs) -> dict[str, Any]:
    caption = _without(run.section("caption"), "missing")
    return {"pictures": run.pictures, "caption": caption, "caption_files": run.caption_files}


def _vae(run: Inputs) -> dict[str, Any]:
    trained = {"pictures": run.pictures, "data": run.data(), "vae": run.section("vae")}
    if not run.pretrained:
        return trained
    return {"pretrained": run.pretrained, **(trained if run.recipe.vae.tune_decoder_steps else {})}


def _latents(run: Inputs) -> dict[str, Any]:
    cache = {"dtype": run.recipe.latents.dtype, "layout": LAYOUT}
    if run.pretrained:  # whose encoder is never trained; a trained autoencoder stands for its pictures as well
        return {"pretrained": run.pretrained, "pictures": run.pictures, "latents": cache, "data": run.data()}
    # One that outlives a change to the pictures does not stand for these.
    pictures = {"pictures": run.pictures} if run.grown else {}
    return {"vae": run["vae"].fingerprint, **pictures, "latents": cache, "data": run.data()}


def _text(run: Inputs) -> dict[str, Any]:
    inputs = {"captions": run.captions(), "text": run.section("text"), "missing": run.recipe.caption.missing}
    # Whether a U-Net attends to padding decides whether the padding's states are kept.
    assert run.recipe.t2i is not None
    states = {"mask_padding": run.recipe.t2i.mask_padding, "layout": LAYOUT} if run.frozen else {}
    return {**inputs, "pictures": run.pictures, **states}


def _denoiser(run: Inputs) -> dict[str, Any]:
    use, diffusion = _without(run.section("latents"), "dtype"), run.section("diffusion")
    return {"latents": run["latents"].fingerprint, "use": use, "diffusion": diffusion, "data": run.data()}


def _unet(run: Inputs) -> dict[str, Any]:
    return {**_denoiser(run), "unet": run.section("unet")}


def _t2i(run: Inputs) -> dict[str, Any]:
    return {**_denoiser(run), "text": run["text"].fingerprint, "t2i": run.section("t2i")}


def _bundle(run: Inputs) -> dict[str, Any]:
    # The sampler is left out, since it makes nothing stale.
    needs = needed(PARTS["bundle"], run.recipe)
    return {**{name: run[name].fingerprint for name in needs}, "export": run.section("export")}


_ROWS = (
    PartSpec(
        name="captions",
        stage="caption",
        maker="ldmkit.caches.caption:caption",
        inputs=_captions,
        section="t2i",
        edited=True,
        torch=False,  # what a captioner needs is its own affair: captions that exist need nothing
        help="Caption the pictures that have no caption.",
    ),
    PartSpec(
        name="vae",
        stage="train-vae",
        maker="ldmkit.vae.train:train_vae",
        inputs=_vae,
        weights="vae.safetensors",
        help="Train the autoencoder.",
    ),
    PartSpec(
        name="latents",
        stage="encode",
        maker="ldmkit.caches.encode:encode_latents",
        inputs=_latents,
        needs=("vae",),
        shared=True,
        help="Cache the latents and the text.",
    ),
    PartSpec(
        name="text",
        stage="encode",
        maker="ldmkit.caches.encode:encode_text",
        inputs=_text,
        needs=("captions",),
        section="t2i",
    ),
    PartSpec(
        name="unet",
        stage="train-unet",
        maker="ldmkit.denoising.train_unet:train_unet",
        inputs=_unet,
        needs=("vae", "latents"),
        section="unet",
        weights="unet.safetensors",
        gated=True,
        help="Train the unconditional U-Net.",
    ),
    PartSpec(
        name="t2i",
        stage="train-t2i",
        maker="ldmkit.denoising.train_t2i:train_t2i",
        inputs=_t2i,
        needs=("vae", "latents", "text"),
        section="t2i",
        weights="unet_t2i.safetensors",
        gated=True,
        help="Train the text-to-image U-Net.",
    ),
    PartSpec(
        name="bundle",
        stage="export",
        maker="ldmkit.export.run:export_run",
        inputs=_bundle,
        needs=("vae", "latents", "text", "unet", "t2i"),
    ),
)
PARTS = {row.name: row for row in _ROWS}
"""by name, in the order in which they are made"""


def parts_of(recipe: "Recipe") -> dict[str, PartSpec]:
    """The rows that a run of this recipe has."""
    return {name: row for name, row in PARTS.items() if row.section is None or getattr(recipe, row.section) is not None}


def needed(spec: PartSpec, recipe: "Recipe") -> tuple[str, ...]:
    """The parts of a run of this recipe that must be done before one of them."""
    return tuple(name for name in spec.needs if name in parts_of(recipe))


def stage_names() -> tuple[str, ...]:
    """The stages, in order."""
    return tuple(dict.fromkeys(spec.stage for spec in PARTS.values()))


def stage_parts(stage: str) -> tuple[PartSpec, ...]:
    """What a stage makes, in order."""
    return tuple(spec for spec in PARTS.values() if spec.stage == stage)


def behind(name: str) -> tuple[str, ...]:
    """The parts that are made from a part, or from one that is."""
    found: list[str] = []
    for spec in PARTS.values():
        if {name, *found} & set(spec.needs):
            found.append(spec.name)
    return tuple(found)


def trained_parts() -> tuple[str, ...]:
    """The networks, in the order in which they are trained."""
    return tuple(spec.name for spec in PARTS.values() if spec.trained)

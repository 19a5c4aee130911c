"""`manifest.json`: all that the runtime must know about a bundle besides its graphs."""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

import ldmkit
from ldmkit.errors import LdmkitError
from ldmkit.runtime.request import MAX_STEPS

FORMAT_VERSION = 2
NEEDS = "0.1.0"
"""the first ldmkit that reads this format: an older one can name it"""
MANIFEST = "manifest.json"
UNET = "unet.onnx"
UNET_T2I = "unet_t2i.onnx"
VAE_DECODER = "vae_decoder.onnx"
VAE_ENCODER = "vae_encoder.onnx"
TEXT_ENCODER = "text_encoder.onnx"
TOKENIZER = "tokenizer.json"
PREVIEW = "preview.png"
GOLDEN = "golden.png"
CARD = "README.md"
GRAPHS = (UNET, UNET_T2I, VAE_DECODER, VAE_ENCODER, TEXT_ENCODER)
WEIGHTS = {
    UNET: "unet.onnx.data",
    UNET_T2I: "unet_t2i.onnx.data",
    VAE_DECODER: "vae_decoder.onnx.data",
    VAE_ENCODER: "vae_encoder.onnx.data",
    TEXT_ENCODER: "text_encoder.onnx.data",
}
"""where the weights of a large graph lie, as ONNX external data"""
FILES = (*GRAPHS, *WEIGHTS.values(), TOKENIZER, PREVIEW, GOLDEN, CARD)
"""every file that a bundle of this format may hold besides the manifest"""

MAX_MANIFEST_BYTES = 4 << 20

Precision = Literal["fp32", "fp16-weights", "fp16"]
"""fp16-weights: weights kept in float16, arithmetic in float32; fp16: most of the arithmetic in float16 as well"""

_VERSION = r"^[0-9][0-9A-Za-z.+-]{0,40}$"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Pixels = Annotated[int, Field(gt=0, le=65536)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Schedule(_Frozen):
    """The noise schedule that the U-Nets were trained with: the keywords of `diffusion.make_schedule`."""

    name: Literal["linear", "scaled_linear", "cosine", "flow"]
    num_timesteps: Annotated[int, Field(gt=0, le=1_000_000)]
    beta_start: Annotated[Finite, Field(gt=0, lt=1)]
    beta_end: Annotated[Finite, Field(gt=0, lt=1)]
    zero_terminal_snr: bool


class LatentRgb(_Frozen):
    """Cheap map from normalised latents to colours, for previews: pixels = weights @ latents + bias, in [-1, 1].

    One pixel a latent position, least squares over held-out pictures that were averaged down to the latents' size.
    """

    weights: tuple[tuple[Finite, ...], tuple[Finite, ...], tuple[Finite, ...]]
    """(3, C), a row each for red, green and blue"""
    bias: tuple[Finite, Finite, Finite]
    r2: Annotated[Finite, Field(le=1)]
    """share of the colours' variance that it explains, on other pictures than it was fitted to"""


class Latent(_Frozen):
    """Shape and statistics of the latents; the decoder graph undoes the normalisation itself."""

    channels: Annotated[int, Field(gt=0, le=1024)]
    height: Annotated[int, Field(gt=0, le=1024)]
    width: Annotated[int, Field(gt=0, le=1024)]
    mean: tuple[Finite, ...]
    std: tuple[Annotated[Finite, Field(gt=0)], ...]
    multiple: Annotated[int, Field(gt=0, le=1024)] | None = None
    """what any height and any width must be a multiple of; None: only `height` x `width` goes through the graphs"""
    rgb: LatentRgb | None = None

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> "Latent":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need {self.channels} values, one a channel")
        if self.rgb is not None and any(len(row) != self.channels for row in self.rgb.weights):
            raise ValueError(f"rgb.weights needs {self.channels} values a row, one a channel")
        if self.multiple is not None and (self.height % self.multiple or self.width % self.multiple):
            raise ValueError(f"height and width must be multiples of {self.multiple}, as multiple says")
        return self


class PictureSizes:
    """Sizes of the pictures of a model, of which a manifest tells or a description."""

    if TYPE_CHECKING:  # no fields of this class: pydantic would write them before all others
        picture_size: int | tuple[int, int]
        sizes: tuple[tuple[int, int], ...]
        latent: Latent

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its pictures."""
        return (self.picture_size,) * 2 if isinstance(self.picture_size, int) else self.picture_size

    @property
    def trained(self) -> tuple[tuple[int, int], ...]:
        """Width and height of the pictures that it was trained on."""
        return self.sizes or (self.size,)

    @property
    def factor(self) -> int:
        """Pixels a latent position."""
        return self.size[1] // self.latent.height


class Defaults(_Frozen):
    """How to draw where the user says nothing."""

    sampler: str
    sampler_options: dict[str, Any] = {}
    """the sampler's options besides `steps`; left out when the user names another sampler"""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    guidance_scale: Annotated[Finite, Field(ge=0)]


class Text(_Frozen):
    """Length and width of the text encoder's states."""

    max_tokens: Annotated[int, Field(gt=0)]
    context_dim: Annotated[int, Field(gt=0)]


class FileEntry(_Frozen):
    """Content of one file of the bundle."""

    sha256: Sha256
    size: Annotated[int, Field(ge=0)]
    """bytes"""


class GraphEntry(_Frozen):
    """How far a graph's outputs lay from torch's in float32 at export, over several batches of random inputs."""

    max_abs_difference: Annotated[Finite, Field(ge=0)]
    """of the graph in float32, which one in float16 is made from"""
    batch_sizes: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...] = ()
    """height and width of the inputs, one for each batch; none for text"""
    timesteps: tuple[Finite, ...] = ()
    fp16_max_abs_difference: Annotated[Finite, Field(ge=0)] | None = None
    """of the graph that the bundle holds, where that is not the one in float32"""


class Trajectory(_Frozen):
    """Whole pictures drawn by the bundle on a CPU, against torch in float32: same noise, same sampler.

    Of precision fp16 with every value rounded as a GPU rounds it, which a CPU by itself doesn't do.
    """

    sampler: str
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    guidance_scale: Annotated[Finite, Field(ge=0)]
    seeds: tuple[int, ...]
    psnr: Finite
    """dB, of the picture that differs most; 100 where none does"""
    min_psnr: Finite
    """dB, below which the export would have failed"""
    max_difference: Annotated[int, Field(ge=0, le=255)]
    """of any colour of any pixel, in levels of 0 to 255"""


class Golden(_Frozen):
    """How the pictures of `golden.png`, side by side, were drawn at export: another machine must come near them."""

    prompts: tuple[str, ...]
    """of each picture; "" for none"""
    seed: Annotated[int, Field(ge=0)]
    """of the first; each picture has the next"""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    guidance_scale: Annotated[Finite, Field(ge=0)]
    sampler: str
    min_psnr: Finite
    """dB, of each picture"""


def _plain_name(name: str) -> str:
    """The name reaches files and pictures' metadata, so it is no path and holds no control character."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError("letters, digits, '.', '_' and '-' only, 100 at most")
    return name


class Manifest(PictureSizes, _Frozen):
    """The whole of `manifest.json`."""

    format_version: Literal[2]
    needs: Annotated[str, Field(pattern=_VERSION)]
    """the first ldmkit that reads this format"""
    written_by: Annotated[str, Field(pattern=_VERSION)]
    """the ldmkit that exported it"""
    name: Annotated[str, AfterValidator(_plain_name)]
    created: AwareDatetime
    schedule: Schedule
    prediction: Literal["eps", "x0", "v", "flow"]
    latent: Latent
    picture_size: Pixels | tuple[Pixels, Pixels]
    """width and height; one number where they are alike"""
    sizes: tuple[tuple[Pixels, Pixels], ...] = ()
    """width and height of the pictures that it was trained on, where they have several"""
    precision: Precision = "fp32"
    """of its graphs; what goes into them and comes out is float32 or int64 with each"""
    defaults: Defaults
    examples: tuple[Annotated[str, Field(max_length=1000)], ...] = ()
    """prompts like those that it was trained on, for who wants to try it"""
    text: Text | None
    files: dict[Literal[FILES], FileEntry]  # type: ignore[valid-type] # a tuple of literals, which mypy cannot follow
    graphs: dict[Literal[GRAPHS], GraphEntry]  # type: ignore[valid-type]
    trajectories: dict[Literal[UNET, UNET_T2I], Trajectory] = {}  # type: ignore[valid-type]
    golden: Golden | None = None
    recipe: dict[str, Any]
    fingerprint: str
    notes: dict[str, Any]
    """how it was trained: steps, wall seconds, command, versions"""
    sha256: Sha256 | None = None
    """of the file as it is without this key; None: written before there was one"""

    @model_validator(mode="after")
    def _whole(self) -> "Manifest":
        if alone := [data for graph, data in WEIGHTS.items() if data in self.files and graph not in self.files]:
            raise ValueError(f"files lists {alone[0]} without its graph")
        if VAE_DECODER not in self.files:
            raise ValueError(f"files must list {VAE_DECODER}")
        if UNET not in self.files and UNET_T2I not in self.files:
            raise ValueError(f"files must list {UNET} or {UNET_T2I}")
        if UNET_T2I in self.files:
            missing = [name for name in (TEXT_ENCODER, TOKENIZER) if name not in self.files]
            if missing or self.text is None:
                raise ValueError(f"{UNET_T2I} needs {', '.join([*missing, *(['text'] if self.text is None else [])])}")
        if self.size != (self.factor * self.latent.width, self.factor * self.latent.height):
            raise ValueError("picture_size must be a multiple of latent.width and latent.height, the same one")
        if self.golden is not None and GOLDEN not in self.files:
            raise ValueError(f"files must list {GOLDEN}, which golden describes")
        return self


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of the bundle in `folder` and the SHA-256 of its file, which stands for the whole bundle.

    Raises LdmkitError where the folder is no bundle, its format is newer, a key is wrong, or the file is not, byte for
    byte, what was written.
    """
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise LdmkitError(
            f"{folder} is not a bundle: it has no {MANIFEST}. `ldmkit export onnx` writes one into exports/"
        )
    with path.open("rb") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise LdmkitError(f"{path} is not a bundle's manifest: it is larger than {MAX_MANIFEST_BYTES >> 20} MiB")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LdmkitError(f"{folder} is not a bundle: {path} is not JSON ({error})") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise LdmkitError(f"{folder} is not a bundle: {path} has no format_version")
    if version > FORMAT_VERSION:
        needs = content.get("needs")
        named = isinstance(needs, str) and re.match(_VERSION, needs)
        remedy = f"{f'ldmkit {needs} or newer' if named else 'A newer ldmkit'} reads it: update ldmkit"
    else:
        remedy = "Export its run again with `ldmkit export onnx`"
    if version != FORMAT_VERSION:
        raise LdmkitError(
            f"{path}: format_version is {version}, and ldmkit {ldmkit.__version__} reads {FORMAT_VERSION}. {remedy}"
        )
    if "sha256" in content and not _is_as_written(content, data):
        raise LdmkitError(
            f"{path} does not match its own SHA-256: it is damaged or was changed. Export the bundle again, or fetch "
            "it anew"
        )
    try:
        manifest = Manifest.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise LdmkitError(
            f"{folder} is not a bundle: {path}: {key}: {first['msg']}. Export it again with `ldmkit export onnx`"
        ) from None
    return manifest, hashlib.sha256(data).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` into `folder`, with its own SHA-256."""
    left_out = {"sha256"} | ({"sizes"} if not manifest.sizes else set())
    (folder / MANIFEST).write_bytes(_sealed(manifest.model_dump(mode="json", exclude=left_out)))


def _sealed(content: dict[str, Any]) -> bytes:
    """The file of this content and its SHA-256; ValueError for what no manifest holds, such as NaN."""
    return _bytes({**content, "sha256": hashlib.sha256(_bytes(content)).hexdigest()})


def _bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _is_as_written(content: dict[str, Any], data: bytes) -> bool:
    try:
        return _sealed({key: value for key, value in content.items() if key != "sha256"}) == data
    except (ValueError, RecursionError):
        return False


def file_entry(path: Path) -> FileEntry:
    """SHA-256 and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(sha256=digest, size=path.stat().st_size)

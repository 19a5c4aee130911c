"""`ldmkit generate`: draws pictures from a bundle, without torch."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ldmkit.cli.common import checkpoint_option, provider_option
from ldmkit.errors import LdmkitError
from ldmkit.report import tell
from ldmkit.runtime.request import DEFAULT_AMOUNT, DEFAULT_STRENGTH
from ldmkit.signals import ending_soon

if TYPE_CHECKING:
    from ldmkit.runtime.backend import Backend
    from ldmkit.runtime.generate import Step
    from ldmkit.runtime.request import DrawRequest

MAX_PROMPTS_BYTES = 4 << 20
ONE_PICTURE = (".png", ".jpg", ".jpeg", ".webp")
"""endings of --out that name a file"""
OTHER_FORMATS = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl")
"""which nobody means as a folder's name"""


def _size(_command: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not all(side.isascii() and side.isdigit() and len(side) < 9 for side in (width, height)):
        raise click.BadParameter(f"{text!r} is not a width and a height, such as 256x384")
    return int(width), int(height)


def _sampler_options(_command: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE each, the value a TOML one or a bare word. The registry says which there are."""
    import tomllib

    options: dict[str, Any] = {}
    for option in given:
        key, equals, text = option.partition("=")
        if not equals or not key.isidentifier() or key in ("use", "steps"):
            raise click.BadParameter(f"{option}: it takes KEY=VALUE, as spacing=karras")
        try:
            options[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            options[key] = text
    return options


@click.command()
@click.argument("prompt", required=False)
@click.option("--bundle", type=click.Path(path_type=Path), help="Folder of a bundle. Default: the newest in exports/.")
@click.option("-n", "count", type=int, default=1, show_default=True, help="Pictures of each prompt.")
@click.option("--seed", type=int, default=0, show_default=True, help="Picture k is drawn from SEED + k.")
@click.option("--same-seed", is_flag=True, help="With --prompts: each prompt's pictures begin at SEED.")
@click.option("--steps", type=int, help="Denoising steps. Default: the bundle's.")
@click.option("--guidance", type=float, help="How closely to follow the prompt; 1: no guidance. Default: the bundle's.")
@click.option("--negative", default="", metavar="TEXT", help="Text to steer away from. Default: the empty prompt.")
@click.option("--sampler", help="One of `ldmkit plugins sampler`. Default: the bundle's.")
@click.option(
    "--sampler-option",
    "options",
    callback=_sampler_options,
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the sampler, such as spacing=karras; may be repeated.",
)
@click.option("--size", callback=_size, metavar="WxH", help="In pixels, where the bundle allows. Default: its own.")
@click.option(
    "--prompts", type=click.Path(path_type=Path), metavar="FILE", help="Draw each line of a text file; -: of stdin."
)
@click.option("--img2img", type=click.Path(path_type=Path), metavar="FILE", help="Start from a picture.")
@click.option("--strength", type=float, help=f"With --img2img: share redrawn, up to 1. Default: {DEFAULT_STRENGTH}.")
@click.option("--variations", type=int, metavar="N", help="Draw the picture and N variations of it.")
@click.option("--amount", type=float, help=f"With --variations: how different, 0 to 1. Default: {DEFAULT_AMOUNT}.")
@click.option("--interpolate", type=int, metavar="N", help="N pictures on the way to --to-seed, --to-prompt or both.")
@click.option("--to-seed", type=int, help="With --interpolate: the last picture's seed. Default: the first one's.")
@click.option("--to-prompt", help="With --interpolate: the last picture's prompt. Default: the first one's.")
@provider_option("What the bundle's networks run on.")
@click.option(
    "--backend",
    type=click.Choice(["onnx", "torch"]),
    default="onnx",
    show_default=True,
    help="Draw from a bundle, or with PyTorch from a run.",
)
@click.option("--run", type=click.Path(path_type=Path), help="With --backend torch: the run to draw from, runs/NAME.")
@checkpoint_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("outputs"),
    show_default=True,
    help="Folder to write to, or a file: .png, .jpg or .webp for one picture or a strip, .gif with --interpolate.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
@click.pass_context
@ending_soon()
def generate(command: click.Context, /, *, out: Path, as_json: bool, **given: Any) -> None:
    """Draw PROMPT from a bundle; without PROMPT, draw unconditionally."""
    _check_usage(command)
    interpolates = given["interpolate"] is not None
    texts = [given["prompt"] or ""] if given["prompts"] is None else _lines(given["prompts"])
    one_file = _is_file(out, interpolates)
    if one_file and (given["count"] > 1 or given["variations"] is not None):
        raise click.UsageError(f"--out {out} is one file, and several pictures are asked for: give a folder")
    if one_file and len(texts) > 1:
        raise LdmkitError(f"{given['prompts']}: several prompts, and --out {out} is one file: give a folder")
    request = _request(texts, given)
    backend = _open(given["run"], given["checkpoint"], given["bundle"], given["provider"])
    backend.prepare(request.prompts, request.negative_prompt)
    # Behind that: they take as long to import as the graphs to open.
    from ldmkit.runtime.generate import collected_warnings, draw_each
    from ldmkit.runtime.pictures import Output, metadata_of
    from ldmkit.runtime.settings import resolve

    settings = resolve(backend, request)
    say = (lambda *_: None) if as_json else tell
    with collected_warnings() as messages, _progress() as on_step:
        kind = "bundle" if given["run"] is None else "run"
        say(f"{kind} {backend.manifest.name} ({backend.folder}), provider {backend.provider}")
        metadata = metadata_of(backend, settings, given["img2img"])
        output = Output(out=out, one_file=one_file, metadata=metadata, on_file=lambda path: say(str(path)))
        write = output.interpolation if interpolates else output.pictures
        files = write(draw_each(backend, settings, on_step=on_step), settings.pictures)
    if request.size is not None and request.size not in backend.manifest.trained:
        sizes = ", ".join(f"{width}x{height}" for width, height in backend.manifest.trained)
        messages.append(f"--size {request.size[0]}x{request.size[1]} is none that it was trained at: {sizes}")
    tell(*(f"warning: {message}" for message in messages), err=True)  # below the progress bar
    if as_json:
        found = {**metadata, "bundle_path": str(backend.folder), **files}
        found |= {"steps": settings.steps, "guidance": settings.guidance_scale, "sampler": settings.table["use"]}
        tell(json.dumps(found))


def _is_file(out: Path, interpolates: bool) -> bool:
    """Whether --out is a file and no folder. Raises LdmkitError where it is there already, or of no format written."""
    ending = out.suffix.lower()
    if out.is_dir():
        return False
    one_file = ending in ONE_PICTURE or (ending == ".gif" and interpolates)
    if one_file and out.exists():
        raise LdmkitError(f"{out} exists and is not overwritten: choose another name for --out")
    if not one_file and out.exists():
        raise LdmkitError(f"--out {out} is a file: give a folder, or a new file ending in {', '.join(ONE_PICTURE)}")
    if not one_file and ending in OTHER_FORMATS:
        raise LdmkitError(f"--out {out}: pictures are not written as {ending}; choose {', '.join(ONE_PICTURE)}")
    return one_file


def _check_usage(command: click.Context) -> None:
    """Raises click.UsageError for options that mean nothing without another, or do not go together."""
    names = {each.name: "PROMPT" if each.name == "prompt" else each.opts[0] for each in command.command.params}
    given = {name for name in names if command.get_parameter_source(str(name)) is ParameterSource.COMMANDLINE}
    for name, needs in (
        ("same_seed", "prompts"),
        ("strength", "img2img"),
        ("checkpoint", "run"),
        ("amount", "variations"),
        ("to_seed", "interpolate"),
        ("to_prompt", "interpolate"),
    ):
        if name in given and needs not in given:
            raise click.UsageError(f"{names[name]} requires {names[needs]}")
    if (command.params["backend"] == "torch") != ("run" in given):
        raise click.UsageError("--backend torch and --run RUN go together: torch draws from a run, onnx from a bundle")
    if {"run", "provider"} <= given:
        raise click.UsageError("--provider chooses what onnxruntime runs on, and --backend torch draws without it")
    for pair in (
        *(("prompt", "prompts"), ("run", "bundle"), ("prompts", "variations"), ("prompts", "interpolate")),
        *(("variations", "interpolate"), ("variations", "count"), ("interpolate", "count")),
    ):
        if given.issuperset(pair):
            raise click.UsageError(f"{names[pair[0]]} and {names[pair[1]]} do not go together: choose one")


def _request(texts: list[str], given: dict[str, Any]) -> "DrawRequest":
    """What the options ask for. Raises click.UsageError for a value out of range."""
    from ldmkit.runtime.request import DrawRequest, each_prompt, interpolation, variations

    picture = None
    if given["img2img"] is not None:
        from ldmkit.data.decode import load_picture

        picture = load_picture(given["img2img"])
    seed, amount, strength = given["seed"], given["amount"], given["strength"]
    try:
        if given["variations"] is not None:
            amount = DEFAULT_AMOUNT if amount is None else amount
            pictures = variations(texts[0], n=given["variations"], seed=seed, amount=amount)
        elif given["interpolate"] is not None:
            ends = (texts[0], texts[0] if given["to_prompt"] is None else given["to_prompt"])
            seeds = (seed, seed if given["to_seed"] is None else given["to_seed"])
            pictures = interpolation(ends, seeds, frames=given["interpolate"])
        else:
            pictures = each_prompt(texts, n=given["count"], seed=seed, same_seed=given["same_seed"])
        return DrawRequest(
            pictures,
            steps=given["steps"],
            guidance_scale=given["guidance"],
            sampler=({"use": given["sampler"]} if given["sampler"] else {}) | given["options"],
            negative_prompt=given["negative"],
            init_image=picture,
            strength=DEFAULT_STRENGTH if strength is None else strength,
            size=given["size"],
        )
    except LdmkitError as error:
        raise click.UsageError(str(error)) from None


def _lines(path: Path) -> list[str]:
    """The prompts of a text file, or of stdin where it is called -, a line each; empty lines are passed over."""
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as file:
            data = file.read(MAX_PROMPTS_BYTES + 1)
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except OSError as error:
        raise LdmkitError(f"--prompts {path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise LdmkitError(f"--prompts {path}: is not text in UTF-8") from None
    if len(data) > MAX_PROMPTS_BYTES:
        raise LdmkitError(f"--prompts {path}: is larger than {MAX_PROMPTS_BYTES >> 20} MiB")
    if not any(lines):
        raise LdmkitError(f"--prompts {path}: holds no prompt; write one a line")
    return [line for line in lines if line]


def _open(run: Path | None, checkpoint: str | None, bundle: Path | None, provider: str) -> "Backend":
    from ldmkit import shipped
    from ldmkit.runtime.find import default_bundle
    from ldmkit.runtime.onnx_backend import OnnxBackend

    if run is not None:
        from ldmkit.cli.export import torch_backend

        return torch_backend(run, checkpoint)
    return OnnxBackend.load(bundle or default_bundle(Path("exports"), shipped.exports_dir()), provider=provider)


@contextmanager
def _progress() -> "Iterator[Any]":
    """A function for `on_step` that moves a bar on a terminal."""
    if not sys.stderr.isatty():  # rich takes a while to import
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # What is told goes above the bar, but for stdout that leads elsewhere.
    console, on_screen = Console(stderr=True), sys.stdout.isatty()
    with Progress(*columns, console=console, redirect_stdout=on_screen) as progress:
        task = progress.add_task("drawing", total=None)

        def on_step(step: "Step") -> None:
            progress.update(task, completed=step.done, total=step.total)

        yield on_step

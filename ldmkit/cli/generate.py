"""`ldmkit generate`: draws pictures from a bundle, without torch."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ldmkit.runtime.generate import Backend, Step
    from ldmkit.runtime.request import Wanted

_PROVIDERS = ["auto", "cpu", "cuda", "tensorrt", "coreml", "directml"]


class _Size(click.ParamType[tuple[int, int]]):
    """WxH in pixels."""

    name = "WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:  # click's own signature
        width, _, height = str(value).lower().partition("x")
        if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
            self.fail(f"{value!r} is not a width and a height, such as 256x384.", param, ctx)
        return int(width), int(height)


@click.command()
@click.argument("prompt", required=False)
@click.option("--bundle", type=click.Path(path_type=Path), help="Folder of a bundle. Default: the newest in exports/.")
@click.option("-n", "count", type=int, default=1, show_default=True, help="Pictures of each prompt.")
@click.option("--seed", type=int, default=0, show_default=True, help="Picture k is drawn from SEED + k.")
@click.option("--steps", type=int, help="Denoising steps. Default: the bundle's.")
@click.option("--guidance", type=float, help="How closely to follow the prompt; 1: no guidance. Default: the bundle's.")
@click.option(
    "--negative", default="", metavar="TEXT", help="What guidance leads away from. Default: the empty prompt."
)
@click.option("--sampler", help="One of `ldmkit plugins sampler`. Default: the bundle's.")
@click.option(
    "--sampler-option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the sampler, as spacing=karras; may be given more than once.",
)
@click.option("--size", type=_Size(), help="Width and height in pixels, where the bundle allows. Default: its own.")
@click.option("--prompts", type=click.Path(path_type=Path), metavar="FILE", help="Draw each line of a text file.")
@click.option("--img2img", type=click.Path(path_type=Path), metavar="FILE", help="Start from a picture.")
@click.option("--strength", type=float, help="With --img2img: how much is drawn anew, 1: all. Default: 0.6.")
@click.option("--variations", type=int, metavar="N", help="The picture and N that are like it.")
@click.option("--amount", type=float, help="With --variations: how unlike, 0 to 1. Default: 0.3.")
@click.option("--interpolate", type=int, metavar="N", help="N pictures on the way to --to-seed, --to-prompt or both.")
@click.option("--to-seed", type=int, help="With --interpolate: the last picture's seed. Default: the first one's.")
@click.option("--to-prompt", help="With --interpolate: the last picture's prompt. Default: the first one's.")
@click.option("--provider", type=click.Choice(_PROVIDERS), default="auto", show_default=True)
@click.option("--backend", type=click.Choice(["onnx", "torch"]), default="onnx", show_default=True)
@click.option("--run", type=click.Path(path_type=Path), help="With --backend torch: the run to draw from, runs/NAME.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("outputs"),
    show_default=True,
    help="Folder to write to, or a file: .png for one picture or a strip, .gif with --interpolate.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def generate(
    prompt: str | None,
    *,
    bundle: Path | None,
    count: int,
    seed: int,
    steps: int | None,
    guidance: float | None,
    negative: str,
    sampler: str | None,
    options: tuple[str, ...],
    size: tuple[int, int] | None,
    prompts: Path | None,
    img2img: Path | None,
    strength: float | None,
    variations: int | None,
    amount: float | None,
    interpolate: int | None,
    to_seed: int | None,
    to_prompt: str | None,
    provider: str,
    backend: str,
    run: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Draw PROMPT from a bundle; without PROMPT, draw unconditionally."""
    given = click.get_current_context().params
    _check_belongs(given)
    ending = out.suffix.lower()
    one_file = ending == ".png" or (ending == ".gif" and interpolate is not None)
    texts = _lines(prompts) if prompts is not None else [prompt or ""]
    _check_out(out, one_file=one_file, many=count > 1 or len(texts) > 1 or variations is not None)
    picture = None
    if img2img is not None:
        from ldmkit.data.decode import load_picture

        picture = load_picture(img2img)
    opened = _open(backend, bundle, run, provider)
    opened.prepare([*texts, *([to_prompt] if to_prompt else [])], negative)
    # Behind that: they take as long to import as the graphs to open.
    from ldmkit.cli.generate_files import write_pictures, write_way
    from ldmkit.runtime import request
    from ldmkit.runtime.generate import draw
    from ldmkit.runtime.pictures import metadata_of

    wanted: list[Wanted]
    if variations is not None:
        amount = 0.3 if amount is None else amount
        wanted = request.variations(opened, texts[0], n=variations, seed=seed, amount=amount)
    elif interpolate is not None:
        ends = (texts[0], texts[0] if to_prompt is None else to_prompt)
        seeds = (seed, seed if to_seed is None else to_seed)
        wanted = request.between(opened, ends, seeds, frames=interpolate)
    else:
        wanted = request.each_prompt(opened, texts, n=count, seed=seed)
    # What is out of range ends here, before a graph is called.
    plan = request.make_plan(
        opened,
        wanted,
        steps=steps,
        guidance_scale=guidance,
        sampler=({"use": sampler} if sampler else {}) | _options(options),
        negative_prompt=negative,
        init_image=picture,
        strength=request.DEFAULT_STRENGTH if strength is None else strength,
        size=size,
    )
    with _warned(), _progress() as on_step:
        if not as_json:
            kind = "run" if backend == "torch" else "bundle"
            click.echo(f"{kind} {opened.manifest.name} ({opened.folder}), provider {opened.provider}")
        images = draw(opened, plan, on_step=on_step)
    metadata = metadata_of(opened, plan, img2img)
    if interpolate is not None:
        written, sheets = write_way(images, wanted, out, metadata, one_file=one_file)
    else:
        written, sheets = write_pictures(images, wanted, out, metadata, one_file=one_file)
    if not as_json:
        for entry in written:
            click.echo(entry["path"])
        for sheet in sheets.values():
            click.echo(sheet)
        return
    drawn: dict[str, Any] = {**metadata, "bundle_path": str(opened.folder), "pictures": written, "grid": None, **sheets}
    drawn |= {"prompt": plan.prompts[0], "steps": plan.steps, "guidance": plan.guidance_scale}
    click.echo(json.dumps(drawn | {"sampler": plan.sampler["use"]}))


def _check_belongs(given: dict[str, Any]) -> None:
    """Raises LdmkitError for options that mean nothing without another, or not beside one another."""
    from ldmkit.errors import LdmkitError

    def flag(name: str) -> str:
        return {"count": "-n", "prompt": "PROMPT"}.get(name, f"--{name.replace('_', '-')}")

    for name, needs in (
        ("strength", "img2img"),
        ("amount", "variations"),
        ("to_seed", "interpolate"),
        ("to_prompt", "interpolate"),
    ):
        if given[name] is not None and given[needs] is None:
            raise LdmkitError(f"{flag(name)} means something only with {flag(needs)}.")
    if (given["backend"] == "torch") != (given["run"] is not None):
        raise LdmkitError("--backend torch and --run RUN go together: torch draws from a run, onnx from a bundle.")
    several = {name: given[name] is not None for name in ("prompts", "variations", "interpolate")}
    several["count"] = given["count"] > 1
    chosen = [name for name, is_given in several.items() if is_given]
    if len(chosen) > 1 and chosen != ["prompts", "count"]:
        raise LdmkitError(f"{flag(chosen[0])} and {flag(chosen[1])} do not go together: choose one.")
    if given["prompts"] is not None and given["prompt"] is not None:
        raise LdmkitError("PROMPT and --prompts do not go together: write it into the file.")
    if given["run"] is not None and given["bundle"] is not None:
        raise LdmkitError("--run and --bundle do not go together: torch draws from a run, onnx from a bundle.")


def _check_out(out: Path, *, one_file: bool, many: bool) -> None:
    from ldmkit.errors import LdmkitError

    if one_file and many:
        raise LdmkitError(f"--out {out} is one file, and several pictures are asked for: give a folder.")
    if one_file and out.exists():
        raise LdmkitError(f"{out} exists and is not overwritten: choose another name for --out.")
    if not one_file and out.exists() and not out.is_dir():
        raise LdmkitError(f"--out {out} is a file: give a folder, or a new file ending in .png.")


def _options(given: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE each, the value a TOML one or a bare word. The registry says which there are."""
    import tomllib

    from ldmkit.errors import LdmkitError

    options: dict[str, Any] = {}
    for option in given:
        key, equals, value = option.partition("=")
        if not equals or not key.isidentifier() or key in ("use", "steps"):
            raise LdmkitError(f"--sampler-option {option}: it takes KEY=VALUE, as spacing=karras.")
        try:
            options[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[key] = value
    return options


def _lines(path: Path) -> list[str]:
    """The prompts of a text file, a line each; empty lines are passed over."""
    from ldmkit.errors import LdmkitError

    try:
        with path.open("rb") as file:
            data = file.read(_MAX_PROMPTS_BYTES + 1)
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except OSError as error:
        raise LdmkitError(f"--prompts {path}: cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError:
        raise LdmkitError(f"--prompts {path}: is not text in UTF-8.") from None
    if len(data) > _MAX_PROMPTS_BYTES:
        raise LdmkitError(f"--prompts {path}: is larger than {_MAX_PROMPTS_BYTES >> 20} MiB.")
    if not any(lines):
        raise LdmkitError(f"--prompts {path}: holds no prompt; write one a line.")
    return [line for line in lines if line]


_MAX_PROMPTS_BYTES = 4 << 20


def _open(backend: str, bundle: Path | None, run: Path | None, provider: str) -> "Backend":
    from ldmkit import shipped
    from ldmkit.runtime.bundle import Bundle
    from ldmkit.runtime.find import default_bundle

    if backend == "torch":
        assert run is not None
        from ldmkit.cli.export import torch_backend

        return torch_backend(run)
    return Bundle.load(bundle or default_bundle(Path("exports"), shipped.exports_dir()), provider=provider)


@contextmanager
def _warned() -> "Iterator[None]":
    """Warnings meant for the user as lines on stderr, in the end, so that they stand outside the progress bar."""
    from ldmkit.runtime.generate import PromptCutWarning
    from ldmkit.runtime.providers import ProviderWarning

    kinds = (PromptCutWarning, ProviderWarning)
    with warnings.catch_warnings(record=True) as caught:
        for kind in kinds:
            warnings.simplefilter("always", kind)
        yield
    for warning in caught:
        if issubclass(warning.category, kinds):
            click.echo(f"warning: {warning.message}", err=True)


@contextmanager
def _progress() -> "Iterator[Any]":
    """A function for `on_step` that moves a bar on a terminal."""
    import sys

    if not sys.stderr.isatty():  # rich takes a while to import
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("drawing", total=None)

        def on_step(step: "Step") -> None:
            progress.update(task, completed=step.done, total=step.total)

        yield on_step

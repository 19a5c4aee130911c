"""`ldmkit generate`: draws pictures from a bundle, without torch."""

import json
import warnings
from pathlib import Path

import click


@click.command()
@click.argument("prompt", required=False)
@click.option("--bundle", type=click.Path(path_type=Path), help="Folder of a bundle. Default: the newest in exports/.")
@click.option("-n", "count", type=int, default=1, show_default=True, help="Number of pictures; 2 or more: also a grid.")
@click.option("--seed", type=int, default=0, show_default=True, help="Picture k is drawn from SEED + k.")
@click.option("--steps", type=int, help="Denoising steps. Default: the bundle's.")
@click.option("--guidance", type=float, help="How closely to follow the prompt; 1: no guidance. Default: the bundle's.")
@click.option("--sampler", help="One of `ldmkit plugins sampler`. Default: the bundle's.")
@click.option("--provider", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("outputs"),
    show_default=True,
    help="Folder to write to, or a file ending in .png for one picture.",
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
    sampler: str | None,
    provider: str,
    out: Path,
    as_json: bool,
) -> None:
    """Draw PROMPT from a bundle; without PROMPT, draw unconditionally."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ldmkit import shipped
    from ldmkit.errors import LdmkitError
    from ldmkit.runtime.bundle import Bundle
    from ldmkit.runtime.find import default_bundle
    from ldmkit.runtime.generate import PromptCutWarning, draw
    from ldmkit.runtime.pictures import grid, slug, write_png
    from ldmkit.runtime.request import each_prompt, make_plan

    one_file = out.suffix.lower() == ".png"
    if one_file and count > 1:
        raise LdmkitError(f"--out {out} is one file, and -n {count} draws several pictures: give a folder.")
    if one_file and out.exists():
        raise LdmkitError(f"{out} exists and is not overwritten: choose another name for --out.")
    if not one_file and out.exists() and not out.is_dir():
        raise LdmkitError(f"--out {out} is a file: give a folder, or a new file ending in .png.")
    folder = bundle or default_bundle(Path("exports"), shipped.exports_dir())
    opened = Bundle.load(folder, provider=provider)
    # What is out of range ends here, before a graph is opened.
    wanted = each_prompt(opened, prompt, n=count, seed=seed)
    chosen = make_plan(opened, wanted, steps=steps, guidance_scale=guidance, sampler=sampler)
    if not as_json:
        click.echo(f"bundle {opened.manifest.name} ({folder}), provider {opened.provider}")

    console = Console(stderr=True)
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        warnings.catch_warnings(record=True) as caught,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        warnings.simplefilter("always", PromptCutWarning)
        task = progress.add_task("drawing", total=None)
        pictures = draw(
            opened, chosen, on_step=lambda step: progress.update(task, completed=step.done, total=step.total)
        )
    for warning in caught:
        if issubclass(warning.category, PromptCutWarning):
            click.echo(f"warning: {warning.message}", err=True)

    prompt = chosen.prompts[0]
    metadata = {
        "prompt": prompt,
        "sampler": json.dumps(chosen.sampler) if len(chosen.sampler) > 2 else chosen.sampler["use"],
        "steps": str(chosen.steps),
        "guidance": str(chosen.guidance_scale),
        "bundle": opened.manifest.name,
        "bundle_sha256": opened.sha256,
        "provider": opened.provider,
    }
    written = []
    for k, picture in enumerate(pictures):
        target = out if one_file else out / f"{slug(prompt)}-{seed + k}.png"
        path = write_png(picture, target, {**metadata, "seed": str(seed + k)}, exact=one_file)
        written.append({"path": str(path), "seed": seed + k})
        if not as_json:
            click.echo(str(path))
    sheet = None
    if count > 1:
        target = out / f"{slug(prompt)}-{seed}-to-{seed + count - 1}-grid.png"
        sheet = write_png(grid(pictures), target, {**metadata, "seed": f"{seed} to {seed + count - 1}"})
        if not as_json:
            click.echo(str(sheet))
    if as_json:
        drawn = {**metadata, "bundle_path": str(folder), "pictures": written, "grid": str(sheet) if sheet else None}
        drawn |= {"sampler": chosen.sampler["use"], "steps": chosen.steps, "guidance": chosen.guidance_scale}
        click.echo(json.dumps(drawn))

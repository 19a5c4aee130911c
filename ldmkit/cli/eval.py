"""`ldmkit eval` and `ldmkit compare`: drawn pictures judged against real ones."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmkit.report import tell
from ldmkit.signals import ending_soon

if TYPE_CHECKING:
    from ldmkit.evaluation.subject import Subject

_num = click.option(
    "--num", type=click.IntRange(min=20), default=500, show_default=True, help="Pictures to draw of each network."
)
_seed = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Picture k is drawn from SEED + k."
)
_features = click.option(
    "--features",
    default="efficientnet-lite0",
    show_default=True,
    metavar="NAME",
    help="Network whose features are compared: efficientnet-lite0 (offline, from its package), inception, dinov2.",
)
_reference = click.option(
    "--reference", type=click.Path(path_type=Path), metavar="DIR", help="Real pictures. Default: those held out."
)
_prompts = click.option(
    "--prompts",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Prompts, one a line. Default: the captions of held-out pictures, or a bundle's examples.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command("eval")
@click.argument("target", metavar="RUN|BUNDLE", type=click.Path(path_type=Path))
@_reference
@_num
@_seed
@_features
@_prompts
@click.option("--steps", type=int, help="Denoising steps. Default: the model's.")
@click.option("--guidance", type=float, help="How closely to follow the prompts. Default: the model's.")
@click.option("--sampler", help="One of `ldmkit plugins sampler`. Default: the model's.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("outputs"), show_default=True, help="Folder for the sheets."
)
@_json
@ending_soon()
def eval(
    target: Path,
    reference: Path | None,
    num: int,
    seed: int,
    features: str,
    prompts: Path | None,
    steps: int | None,
    guidance: float | None,
    sampler: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Draw pictures from a run or a bundle and judge them against real ones.

    KID (Binkowski et al. 2018) with its standard error is 0 for pictures like the real ones. Precision: whether they
    look real; coverage: whether they are as varied. For a run also near-copies of training pictures, and what its
    autoencoder makes of real ones. The first row, of real pictures, shows what a perfect model would reach. Figures of
    different --features do not compare. The colours that prompts give the subject and the background are read off the
    middle and the border of the pictures.
    """
    from ldmkit.evaluation.evaluate import Scores, sheet, table
    from ldmkit.evaluation.prompts import CLIP
    from ldmkit.report import Reporter

    subject = _open(target, features, prompts)
    subject.draw_by(steps=steps, guidance_scale=guidance, sampler=sampler)
    reporter = Reporter(err=as_json)
    real = subject.reference(reference)
    rows = {subject.floor_name: Scores.of(*subject.floor(real, num))}
    if (made := subject.reconstructions(num, held_out=reference is not None)) is not None:
        rows[made[0]] = Scores.of(made[1], real)
    copies: dict[str, dict[str, float]] = {}
    prompts_right: dict[str, dict[str, float]] = {}
    clip_score = subject.load_clip()
    clip: tuple[float, float] | None = None
    sheets: dict[str, str] = {}
    out.mkdir(parents=True, exist_ok=True)
    for network in subject.networks:
        with reporter.bar(f"eval {network}", num) as bar:
            drawn = subject.draw(network, num=num, seed=seed, progress=bar.advance)
        rows[network] = Scores.of(drawn.features, real)
        if network == "t2i":
            prompts_right = {thing: vars(share) for thing, share in subject.prompts_right(drawn).items()}
            clip = None if clip_score is None else clip_score(drawn.pictures, drawn.prompts)
        nearest = subject.nearest(drawn)
        if nearest is not None:
            copies[network] = nearest.metrics
        file = out / f"eval-{subject.name}-{network}.png"
        sheet(drawn, real, None if nearest is None else (nearest.distances, nearest.pictures)).save(file)
        sheets[network] = str(file)
    if as_json:
        words = {name: vars(row) for name, row in rows.items()}
        found: dict[str, Any] = {"name": subject.name, "features": features, "num": num, "num_reference": len(real)}
        score = None if clip is None else dict(zip(("value", "standard_error"), clip, strict=True))
        found |= {"rows": words, "prompts_right": prompts_right, "clip_score": score, "copies": copies}
        tell(json.dumps({**found, "sheets": sheets}, ensure_ascii=False))
        return
    tell(f"{subject.name}: {num} pictures of each network, {len(real)} real ones, features {features}")
    tell(*table(rows))
    for thing, share in prompts_right.items():
        tell(
            f"  t2i: {thing} as the prompt names it in {share['right']:.1%} ± {share['standard_error']:.1%} "
            f"of {share['num']} pictures"
        )
    if clip is not None:
        tell(f"  t2i: CLIP score {clip[0]:.2f} ± {clip[1]:.2f}")
    elif "t2i" in subject.networks:
        tell(f"  t2i: no CLIP score: {CLIP} is not in the Hugging Face cache")
    for network, near in copies.items():
        tell(
            f"  {network}: near-copies of training pictures {near['neighbour_copies']:.1%} "
            f"(held-out pictures: {near['neighbour_copies_held_out']:.1%}), distance {near['neighbour_ratio']:.2f}"
        )
    tell(*sheets.values())


@click.command()
@click.argument("first", metavar="RUN|BUNDLE", type=click.Path(path_type=Path))
@click.argument("second", metavar="RUN|BUNDLE", type=click.Path(path_type=Path))
@_reference
@_num
@_seed
@_features
@_prompts
@_json
@ending_soon()
def compare(
    first: Path,
    second: Path,
    reference: Path | None,
    num: int,
    seed: int,
    features: str,
    prompts: Path | None,
    as_json: bool,
) -> None:
    """Draw pictures from two runs or bundles with the same seeds and compare their KID, picture by picture.

    The real pictures and, without --prompts, the prompts are those of the first.
    """
    from ldmkit.errors import LdmkitError
    from ldmkit.evaluation.evaluate import Scores, compare, table
    from ldmkit.report import Reporter

    subjects = (_open(first, features, prompts), _open(second, features, prompts))
    reporter = Reporter(err=as_json)
    real = subjects[0].reference(reference)
    networks = [name for name in subjects[0].networks if name in subjects[1].networks]
    if not networks:
        raise LdmkitError(f"{first} and {second} have no network of one kind in common")
    told: dict[str, Any] = {}
    for network in networks:
        pair = []
        for subject in subjects:
            subject.prompts = subjects[0].prompts
            with reporter.bar(f"{subject.name} {network}", num) as bar:
                pair.append(subject.draw(network, num=num, seed=seed, progress=bar.advance))
        difference = compare(real, *pair)
        scores = {str(path): Scores.of(drawn.features, real) for path, drawn in zip((first, second), pair, strict=True)}
        told[network] = {
            "rows": {name: vars(row) for name, row in scores.items()},
            "difference": difference.value,
            "standard_error": difference.standard_error,
        }
        if not as_json:
            tell(f"{network}: {num} pictures each from the same seeds, {len(real)} real ones, features {features}")
            tell(*table(scores))
            apart = abs(difference.value) > 2 * difference.standard_error
            better = second if difference.value < 0 else first
            tell(
                f"  difference {1000 * difference.value:+.1f} ± {1000 * difference.standard_error:.1f}: "
                + (f"{better} is better" if apart else "no difference that these pictures show")
            )
    if as_json:
        tell(json.dumps(told))


def _open(target: Path, features: str, prompts: Path | None) -> "Subject":
    from ldmkit.cli.common import require
    from ldmkit.runtime.manifest import MANIFEST

    require("torch")
    if (target / MANIFEST).is_file():
        from ldmkit.components.registry import Registry
        from ldmkit.evaluation.subject import Subject

        subject = Subject.of_bundle(target, Registry.load(), features)
    else:
        from ldmkit.cli.export import open_run

        folder, recipe, registry = open_run(target, "torch")
        from ldmkit.evaluation.subject import Subject

        subject = Subject.of_run(folder, recipe, registry, features)
    if prompts is not None:
        lines = prompts.read_text(encoding="utf-8").splitlines()
        subject.prompts = [line.strip() for line in lines if line.strip()]
    return subject

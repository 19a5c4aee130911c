"""Damages to a finished run, one bit or one file each: how many are noticed, and whether anything is used all the same.

python -m benchmarks.faults.run_damages [--damages 300] [--folder DIR --recipe FILE]

Trains a tiny run and exports it, or takes the one in DIR. Each damage, to any file of the run or its bundle, is looked
for by `ldmkit status`, by `ldmkit status --deep`, and by whatever reads the run to draw, to export or to train on. Exit
code 1 where `--deep` misses one, a damaged file was used, or there was any other error than a message.
"""

import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.command import print_table, run
from benchmarks.runs import ANY_QUALITY, PARTS, TINY, finish
from ldmkit.caches.sets import LatentSet, TextSet
from ldmkit.cli.damages import other_damages
from ldmkit.cli.train import open_pipeline
from ldmkit.errors import LdmkitError
from ldmkit.pipeline import Pipeline
from ldmkit.run.files import check
from ldmkit.run.folder import recipe_of_run
from ldmkit.run.gate import read_quality
from ldmkit.run.metrics import read_metrics
from ldmkit.run.networks import load_networks
from ldmkit.runtime.bundle import Bundle

OVERRIDES = (*TINY, *ANY_QUALITY, "data.num_pictures=40", *(f"{part}.steps=6" for part in PARTS.values()))
USED = ("ema.safetensors", "mean.npy", "std.npy", "statistics.json", "quality.json", "captions.jsonl", "recipe.json")
USED += ("ids.npy", "mask.npy", "index.npy", "captions.json", "tokenizer.json", "metrics.jsonl", ".onnx", "record.json")


def damage(path: Path, kind: str, rng: random.Random) -> None:
    """One of a kind; size and time stay where they can."""
    found, data = path.stat(), bytearray(path.read_bytes())
    if kind == "gone":
        path.unlink()
        return
    if kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "bit":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        data = bytearray(rng.randbytes(len(data)))
    path.write_bytes(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def told(open_run: Callable[[], Pipeline], *, deep: bool) -> list[str]:
    """What `ldmkit status` has to say, `--deep` or not."""
    pipeline = open_run()
    pipeline.dataset.remembers, pipeline.dataset.closely = True, deep
    others = list(other_damages(pipeline)) if deep else []
    return [*others, *(f"{name} {status.state} {status.reason}" for name, status in pipeline.states().items())]


def uses(pipeline: Pipeline) -> Iterator[Callable[[], object]]:
    """Whatever reads the run to draw, to export or to train on."""
    recipe, folder = pipeline.recipe, pipeline.run_dir
    yield lambda: recipe_of_run(folder)
    yield lambda: load_networks(recipe, pipeline.registry, folder)
    yield lambda: LatentSet(folder / "latents", recipe.latents, recipe.seed)
    yield lambda: TextSet(folder / "text")
    yield lambda: read_quality(folder / "latents")
    yield lambda: check(folder / "captions" / "captions.jsonl")
    for part in PARTS.values():
        yield lambda part=part: (check(folder / part / "metrics.jsonl"), read_metrics(folder / part / "metrics.jsonl"))
    yield lambda: Bundle.load(pipeline.bundle_dir).verify()
    yield partial(plan, pipeline, "encode")
    yield lambda: pipeline.steps(("caption", "train-vae", "encode", "train-unet", "train-t2i", "export"))


def plan(pipeline: Pipeline, stage: str) -> None:
    """As the stage itself begins. Raises LdmkitError where it would stop."""
    for step in pipeline.steps((stage,)).values():
        if step.action == "stop":
            raise LdmkitError(step.reason)


def refused(pipeline: Pipeline, file: Path) -> bool:
    """Whether whoever reads the damaged file says so, in a message; of a part without a record, that it is not done."""
    undone = (f"{file.parent}: not finished", f"{file.parent}: missing") if file.name == "record.json" else ()
    names = (file.name, *undone)
    found = ""
    for use in uses(pipeline):
        try:
            use()
        except LdmkitError as error:
            found += str(error)
    return any(name in found for name in names)


def strike(
    folder: Path, open_run: Callable[[], Pipeline], damages: int, rng: random.Random
) -> tuple[Counter[str], list[str]]:
    """Damages the run in `folder`, where this process is, so many times; counts, and what went wrong."""
    counts, wrong = Counter[str](), []
    tops = [top for top in ("runs", "exports") if (folder / top).is_dir()]
    clean = {deep: told(open_run, deep=deep) for deep in (True, False, True)}  # once for where the pictures lie now
    files = [path for top in tops for path in sorted((folder / top).rglob("*"))]
    files = [path for path in files if path.is_file() and path.stat().st_size and path.name != ".lock"]
    rng.shuffle(files)
    with tempfile.TemporaryDirectory(prefix="ldmkit-whole-") as whole:
        for top in tops:
            shutil.copytree(folder / top, Path(whole, top))
        for number in range(damages):
            path = files[number % len(files)]
            name, kind = path.relative_to(folder), rng.choice(("bit", "bit", "gone", "cut", "other"))
            damage(path, kind, rng)
            used = any(name.name.endswith(each) for each in USED) and not {"checkpoints", "bundle"} & {*name.parts}
            try:
                deep = told(open_run, deep=True) != clean[True]  # first: to look may write the list of pictures anew
                counts["status"] += told(open_run, deep=False) != clean[False]
                safe = not used or refused(open_run(), name)
            except LdmkitError as error:
                deep = safe = name.name in str(error)
            except Exception as error:
                counts["errors"] += 1
                deep = safe = False
                wrong.append(f"{type(error).__name__}: {error}")
            counts["deep"] += deep
            counts["used"] += used
            counts["refused"] += used and safe
            if not (deep and safe):
                wrong.append(f"{name}, {kind}: {'noticed' if deep else 'missed'}, {'refused' if safe else 'used'}")
            for top in tops:
                shutil.copytree(Path(whole, top), folder / top, dirs_exist_ok=True)
    return counts, wrong


def main(*, damages: int = 300, seed: int = 0, folder: Path | None = None, recipe: str = "toy-cats") -> None:
    overrides = OVERRIDES if folder is None else ()
    with tempfile.TemporaryDirectory(prefix="ldmkit-damages-") as scratch:
        copied = Path(scratch, "run")
        if folder is None:
            copied.mkdir()
            finish(copied, "train", recipe, overrides=overrides)
        else:
            shutil.copytree(folder, copied)
        os.chdir(copied)
        open_run = partial(open_pipeline, recipe, overrides, looks=True)
        counts, wrong = strike(copied, open_run, damages, random.Random(seed))
    print_table(
        ("damages", damages, ""),
        ("noticed by status", counts["status"], ""),
        ("noticed by status --deep", counts["deep"], ""),
        ("to files that are read: refused by the reader", counts["refused"], f"of {counts['used']}"),
        ("errors without a message", counts["errors"], ""),
    )
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    run(main)

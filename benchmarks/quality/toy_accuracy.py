"""How often a toy-cats bundle draws what it was asked for.

python -m benchmarks.quality.toy_accuracy BUNDLE_DIR [--num 500] [--steps N] [--guidance G] [--seed S] [--out DIR]
python -m benchmarks.quality.toy_accuracy --pictures DIR     reads pictures that lie beside a metadata.jsonl

A bundle draws --num prompts whose compositions it has seen, though not their words, and --num of compositions that
the toy set holds out (`HELD_OUT_PAIRS`): of those, `pairs` is the share of pictures that show the held-out pairs
right, whatever their other attributes.

The reader is checked first on freshly drawn pictures whose attributes are known; below 99% on any of them the
script stops with exit code 1, since its other numbers would mean nothing.
"""

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from benchmarks.command import Folder, print_table, run
from benchmarks.quality.toy_attributes import ATTRIBUTES, read_attributes
from benchmarks.quality.toy_prompts import ToyPrompt, captions, prompts
from ldmkit.atomic import new_folder
from ldmkit.data.toy_cats import held_out_pairs, make_toy_cats
from ldmkit.data.toy_drawing import ToyCat
from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle

# No recipe trains with these seeds: training pictures and prompts come from small ones.
HELD_OUT_SEED = 1_000_003
NUM_READER_CHECK = 500
BATCH = 25


@dataclass
class Score:
    """Which pictures show what."""

    right: list[dict[str, bool]] = field(default_factory=list)
    """of each picture: its attributes, `all` of them, and `pairs` where it was asked to show a held-out pair"""
    mistakes: list[str] = field(default_factory=list)

    def add(self, name: str, image: Image.Image, wanted: dict[str, Any]) -> None:
        read = asdict(read_attributes(image))
        right = {attribute: read[attribute] == wanted[attribute] for attribute in ATTRIBUTES}
        self.mistakes += [f"{name}: {a} {read[a]}, not {wanted[a]}" for a in ATTRIBUTES if not right[a]]
        right["all"] = all(right.values())
        paired = {key for pair in held_out_pairs(ToyCat(**{key: wanted[key] for key in ATTRIBUTES})) for key in pair}
        if paired:
            right["pairs"] = all(right[key] for key in paired)
        self.right.append(right)

    @property
    def accuracy(self) -> dict[str, float]:
        """Shares of the pictures that are right; `pairs` only where some were asked for."""
        shares = {key: [right[key] for right in self.right if key in right] for key in (*ATTRIBUTES, "all", "pairs")}
        return {key: fmean(found) for key, found in shares.items() if found}


def score_folder(*folders: Path) -> Score:
    """Reads the pictures that `folder/metadata.jsonl` lists. Raises LdmkitError where it lacks or names nothing."""
    score = Score()
    for metadata in (folder / "metadata.jsonl" for folder in folders):
        try:
            rows = [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise LdmkitError(f"{metadata}: cannot be read ({error})") from error
        if not rows:
            raise LdmkitError(f"{metadata}: lists no pictures")
        for row in rows:
            if missing := [key for key in ("file_name", *ATTRIBUTES) if key not in row]:
                raise LdmkitError(f"{metadata}: a row lacks {', '.join(missing)}")
            with Image.open(metadata.parent / row["file_name"]) as image:
                score.add(row["file_name"], image, row)
    return score


def score_reader(num: int) -> Score:
    """Reads freshly drawn pictures, which no model has touched, half of them of held-out compositions."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / kind for kind in ("seen", "unseen")]
        for folder in folders:
            unseen = folder.name == "unseen"
            make_toy_cats(folder, num_pictures=num - num // 2, seed=HELD_OUT_SEED, unseen=unseen)
        return score_folder(*folders)


def new_prompts(num: int, *, trained_on: Iterable[str], unseen: bool = False) -> list[ToyPrompt]:
    """Prompts whose words stand in no caption of `trained_on`; with `unseen`, of compositions held out of the set.

    Raises LdmkitError where there are not as many.
    """
    known = {text.lower() for text in trained_on}
    found = [p for p in prompts(20 * num, HELD_OUT_SEED, unseen=unseen) if p.text.lower() not in known][:num]
    if len(found) < num:
        raise LdmkitError(f"--num {num}: only {len(found)} prompts were not trained on; ask for fewer")
    return found


def generate(bundle: Bundle, folder: Path, *, num: int, unseen: bool = False, **settings: Any) -> int:
    """Draws `num` prompts that the bundle was not trained on into `folder`; the calls of its network in all."""
    wanted = new_prompts(num, trained_on=captions(int(bundle.manifest.notes["num_pictures"])), unseen=unseen)
    calls: list[int] = []
    texts = [prompt.text for prompt in wanted]
    images = bundle.generate(texts, batch_size=BATCH, **settings, on_step=lambda step: calls.append(step.total))
    write_pictures(folder, images, [asdict(prompt) for prompt in wanted])
    return calls[-1]


def write_pictures(folder: Path, pictures: Iterable[Image.Image], rows: Iterable[dict[str, Any]]) -> None:
    """`NNNNN.png`, and their rows in a metadata.jsonl: all of them or none."""
    with new_folder(folder) as partial:
        lines = []
        for number, (picture, row) in enumerate(zip(pictures, rows, strict=True)):
            name = f"{number:05d}.png"
            picture.save(partial / name)
            lines.append(json.dumps({"file_name": name, **row}) + "\n")
        (partial / "metadata.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def show(scores: Mapping[str, Score]) -> None:
    """Prints a table, and every mistake."""
    columns = (*ATTRIBUTES, "all", "pairs")
    rows = [("", "pictures", *columns)]
    for title, score in scores.items():
        shares = {key: f"{share:.1%}" for key, share in score.accuracy.items()}
        rows.append((title, len(score.right), *(shares.get(key, "") for key in columns)))
    print_table(*rows)
    for title, score in scores.items():
        print("".join(f"{title} {mistake}\n" for mistake in score.mistakes), end="")


def main(
    bundle: Folder = None,
    *,
    pictures: Path | None = None,
    num: int = 500,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    if (bundle is None) == (pictures is None):
        raise LdmkitError("give either a bundle's folder or --pictures DIR")
    scores = {"reader": score_reader(NUM_READER_CHECK)}
    if min(scores["reader"].accuracy.values()) < 0.99:
        show(scores)
        sys.exit("the reader of the pictures is not to be trusted")
    if pictures is not None:
        scores["pictures"] = score_folder(pictures)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            for kind, unseen in (("seen", False), ("never seen", True)):
                folder = (out or Path(temporary)) / kind.replace(" ", "-")
                generate(
                    Bundle.load(bundle), folder, num=num, unseen=unseen, seed=seed, steps=steps, guidance_scale=guidance
                )
                scores[kind] = score_folder(folder)
    show(scores)


if __name__ == "__main__":
    run(main)

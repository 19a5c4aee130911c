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
from typing import Any

from PIL import Image

from benchmarks.command import print_table, run
from benchmarks.quality.toy_attributes import ATTRIBUTES, read_attributes
from ldmkit.atomic import new_folder
from ldmkit.data.toy_cats import ToyPrompt, captions, held_out_pairs, make_toy_cats, prompts
from ldmkit.data.toy_drawing import ToyCat
from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle

# No recipe trains with these seeds: training pictures and prompts come from small ones.
HELD_OUT_SEED = 1_000_003
NUM_READER_CHECK = 500
_LEAST_READER_ACCURACY = 0.99


@dataclass
class Score:
    """Counts over pictures."""

    num: int = 0
    right: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*ATTRIBUTES, "all"), 0))
    num_unseen: int = 0
    """of them, pictures asked to show a held-out pair"""
    right_pairs: int = 0
    """of those, how many show their held-out pairs"""
    mistakes: list[str] = field(default_factory=list)

    def add(self, name: str, image: Image.Image, wanted: dict[str, Any]) -> None:
        read = asdict(read_attributes(image))
        wrong = [attribute for attribute in ATTRIBUTES if read[attribute] != wanted[attribute]]
        self.num += 1
        for attribute in ATTRIBUTES:
            self.right[attribute] += attribute not in wrong
        self.right["all"] += not wrong
        paired = {key for pair in held_out_pairs(ToyCat(**{key: wanted[key] for key in ATTRIBUTES})) for key in pair}
        self.num_unseen += bool(paired)
        self.right_pairs += bool(paired) and not paired & set(wrong)
        self.mistakes += [f"{name}: {attribute} {read[attribute]}, not {wanted[attribute]}" for attribute in wrong]

    @property
    def accuracy(self) -> dict[str, float]:
        pairs = {"pairs": self.right_pairs / self.num_unseen} if self.num_unseen else {}
        return {**{attribute: count / self.num for attribute, count in self.right.items()}, **pairs}


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


def generate(bundle_dir: Path, folder: Path, *, num: int, unseen: bool, **settings: Any) -> None:
    """Draw `num` prompts that the bundle was not trained on into `folder`, with a metadata.jsonl."""
    bundle = Bundle.load(bundle_dir)
    wanted = new_prompts(num, trained_on=captions(int(bundle.manifest.notes["num_pictures"])), unseen=unseen)
    images = bundle.generate(
        [prompt.text for prompt in wanted],
        batch_size=25,
        **settings,
        on_step=lambda step: print(f"\r{step.done} of {step.total}", end="", file=sys.stderr),
    )
    print(file=sys.stderr)
    write_pictures(folder, images, [asdict(prompt) for prompt in wanted])


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
    rows = [
        (title, score.num, *(f"{score.accuracy[c]:.1%}" if c in score.accuracy else "" for c in columns))
        for title, score in scores.items()
    ]
    print_table(("", "pictures", *columns), *rows)
    for title, score in scores.items():
        print("".join(f"{title} {mistake}\n" for mistake in score.mistakes), end="")


def main(
    bundle: Path | None = None,
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
    if min(scores["reader"].accuracy.values()) < _LEAST_READER_ACCURACY:
        show(scores)
        sys.exit("the reader of the pictures is not to be trusted")
    if pictures is not None:
        scores["pictures"] = score_folder(pictures)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            for kind, unseen in (("seen", False), ("never seen", True)):
                folder = (out or Path(temporary)) / kind.replace(" ", "-")
                generate(bundle, folder, num=num, unseen=unseen, seed=seed, steps=steps, guidance_scale=guidance)
                scores[kind] = score_folder(folder)
    show(scores)


if __name__ == "__main__":
    run(main)

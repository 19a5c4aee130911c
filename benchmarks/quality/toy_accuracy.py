"""How often a toy-cats bundle draws what it was asked for.

python -m benchmarks.quality.toy_accuracy BUNDLE_DIR [--num 500] [--steps N] [--guidance G] [--seed S] [--out DIR]
python -m benchmarks.quality.toy_accuracy --pictures DIR     reads pictures that lie beside a metadata.jsonl

A bundle draws --num prompts of each kind, none of them word for word one of its training captions: complete ones, and
ones that name any subset of the attributes, in the captions' grammar; ones of any subset in another grammar's phrasings
(`toy_prompts`); and complete ones of compositions that the toy set holds out (`HELD_OUT_PAIRS`): of those, `pairs` is
the share of pictures that show the held-out pairs right, whatever their other attributes. An attribute counts where it
was asked for. What was not is to stay as varied as in the set: `unasked` is the least share that a value has among the
pictures that might show any, as a part of its share in the set.

The reader is checked first on freshly drawn pictures whose attributes are known; below 99% on any of them the
script stops with exit code 1, since its other numbers would mean nothing.
"""

import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from benchmarks.command import Folder, print_table, run
from benchmarks.quality.toy_attributes import ATTRIBUTES, read_attributes
from benchmarks.quality.toy_prompts import ToyPrompt, captions, prompts, unseen_phrasing
from ldmkit.atomic import new_folder
from ldmkit.data.toy_cats import held_out_pairs, make_toy_cats
from ldmkit.data.toy_drawing import BACKGROUND, COATS, EYES, FUR, ToyCat
from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle

# No recipe trains with these seeds: training pictures and prompts come from small ones.
HELD_OUT_SEED = 1_000_003
NUM_READER_CHECK = 500
BATCH = 25
KINDS: dict[str, dict[str, Any]] = {
    "complete": {},
    "subsets": {"subsets": True},
    "unseen phrasings": {"subsets": True, "phrase": unseen_phrasing},
    "unseen pairs": {"unseen": True},
}
"""kind -> what `prompts` is asked for it"""
COMPOSITIONS = [
    cat
    for fur, eyes, coat, background in product(FUR, EYES, COATS, BACKGROUND)
    if not held_out_pairs(cat := ToyCat(fur=fur, eyes=eyes, coat=coat, background=background))
]
"""what the set shows, each as often"""


@dataclass
class Score:
    """Which pictures show what."""

    right: list[dict[str, bool]] = field(default_factory=list)
    """of each picture: the attributes asked for, `all` of them, and `pairs` where a held-out pair was asked for"""
    mistakes: list[str] = field(default_factory=list)
    drawn: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    """(attribute, value) -> pictures that show it unasked"""
    expected: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    """the same, were the pictures those of the set with what was asked for"""

    def add(self, name: str, image: Image.Image, wanted: dict[str, Any]) -> None:
        read, asked = asdict(read_attributes(image)), wanted.get("asked", ATTRIBUTES)
        right = {attribute: read[attribute] == wanted[attribute] for attribute in ATTRIBUTES if attribute in asked}
        self.mistakes += [
            f"{name}: {a} {read[a]}, not {wanted[a]}: {wanted.get('text', '')}".removesuffix(": ")
            for a, is_right in right.items()
            if not is_right
        ]
        right["all"] = all(right.values())
        paired = {key for pair in held_out_pairs(ToyCat(**{key: wanted[key] for key in ATTRIBUTES})) for key in pair}
        if paired:
            right["pairs"] = all(right[key] for key in paired)
        self.right.append(right)
        unasked = [key for key in ATTRIBUTES if key not in asked]
        self.drawn.update((key, read[key]) for key in unasked)
        alike = [cat for cat in COMPOSITIONS if unasked and all(getattr(cat, key) == wanted[key] for key in asked)]
        for cat, key in product(alike, unasked):
            self.expected[key, getattr(cat, key)] += 1 / len(alike)

    @property
    def accuracy(self) -> dict[str, float]:
        """Shares of the pictures that are right; those of `pairs` and of what is unasked only where there are any."""
        shares = {key: [right[key] for right in self.right if key in right] for key in (*ATTRIBUTES, "all", "pairs")}
        found = {key: fmean(values) for key, values in shares.items() if values}
        if self.expected:
            found["unasked"] = min(self.drawn[value] / expected for value, expected in self.expected.items())
        return found


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


def new_prompts(num: int, *, trained_on: Iterable[str], **kind: Any) -> list[ToyPrompt]:
    """Prompts of a kind whose words stand in no caption of `trained_on`, but for those that name nothing.

    Raises LdmkitError where there are not as many.
    """
    known = {text.lower() for text in trained_on}
    found = [p for p in prompts(20 * num, HELD_OUT_SEED, **kind) if not p.asked or p.text.lower() not in known][:num]
    if len(found) < num:
        raise LdmkitError(f"--num {num}: only {len(found)} prompts were not trained on; ask for fewer")
    return found


def generate(bundle: Bundle, folder: Path, *, num: int, kind: str = "complete", **settings: Any) -> int:
    """Draws `num` prompts that the bundle was not trained on into `folder`; the calls of its network in all."""
    wanted = new_prompts(num, trained_on=captions(int(bundle.manifest.notes["num_pictures"])), **KINDS[kind])
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
    accuracy = {title: score.accuracy for title, score in scores.items()}
    rows = [("", *scores), ("pictures", *(len(score.right) for score in scores.values()))]
    for key in (*ATTRIBUTES, "all", "pairs", "unasked"):
        rows.append((key, *(f"{found[key]:.1%}" if key in found else "" for found in accuracy.values())))
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
            for kind in KINDS:
                folder = (out or Path(temporary)) / kind.replace(" ", "-")
                generate(
                    Bundle.load(bundle), folder, num=num, kind=kind, seed=seed, steps=steps, guidance_scale=guidance
                )
                scores[kind] = score_folder(folder)
    show(scores)


if __name__ == "__main__":
    run(main)

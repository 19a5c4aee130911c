"""How often a toy-cats bundle draws what it was asked for.

python benchmarks/toy_accuracy.py BUNDLE_DIR [--num 500] [--steps N] [--guidance G] [--seed S] [--out DIR] [--json]
python benchmarks/toy_accuracy.py --pictures DIR        reads pictures that lie beside a metadata.jsonl

A bundle draws --num prompts whose compositions it has seen, though not their words, and --num of compositions that
the toy set holds out (`HELD_OUT_PAIRS`): of those, `pairs` is the share of pictures that show the held-out pairs
right, whatever their other attributes.

The reader is checked first on freshly drawn pictures whose attributes are known; below 99% on any of them the
script stops with exit code 1, since its other numbers would mean nothing.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from toy_attributes import ATTRIBUTES, read_attributes

from ldmkit.data.toy_cats import ToyPrompt, captions, held_out_pairs, make_toy_cats, prompts
from ldmkit.data.toy_drawing import ToyCat
from ldmkit.errors import LdmkitError

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


def score_folder(folder: Path, *, into: Score | None = None) -> Score:
    """Read the pictures that `folder/metadata.jsonl` lists. Raises LdmkitError where it lacks or names nothing."""
    metadata = folder / "metadata.jsonl"
    try:
        rows = [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise LdmkitError(f"{metadata}: cannot be read ({error})") from error
    if not rows:
        raise LdmkitError(f"{metadata}: lists no pictures")
    score = Score() if into is None else into
    for row in rows:
        missing = [key for key in ("file_name", *ATTRIBUTES) if key not in row]
        if missing:
            raise LdmkitError(f"{metadata}: a row lacks {', '.join(missing)}")
        with Image.open(folder / row["file_name"]) as image:
            score.add(row["file_name"], image, row)
    return score


def score_reader(num: int) -> Score:
    """Read freshly drawn pictures, which no model has touched, half of them of held-out compositions."""
    score = Score()
    for unseen in (False, True):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "drawn"
            make_toy_cats(folder, num_pictures=num - num // 2, seed=HELD_OUT_SEED, unseen=unseen)
            score_folder(folder, into=score)
    return score


def new_prompts(num: int, *, trained_on: Iterable[str], unseen: bool = False) -> list[ToyPrompt]:
    """Prompts whose words stand in no caption of `trained_on`; with `unseen`, of compositions held out of the set.

    Raises LdmkitError where there are not as many.
    """
    known = {text.lower() for text in trained_on}
    found = [p for p in prompts(20 * num, HELD_OUT_SEED, unseen=unseen) if p.text.lower() not in known][:num]
    if len(found) < num:
        raise LdmkitError(f"--num {num}: only {len(found)} prompts were not trained on; ask for fewer")
    return found


def generate(
    bundle_dir: Path, folder: Path, *, num: int, unseen: bool, seed: int, steps: int | None, guidance: float | None
) -> None:
    """Draw `num` prompts that the bundle was not trained on into `folder`, with a metadata.jsonl."""
    from ldmkit.runtime.bundle import Bundle

    bundle = Bundle.load(bundle_dir)
    wanted = new_prompts(num, trained_on=captions(int(bundle.manifest.notes["num_pictures"])), unseen=unseen)
    images = bundle.generate(
        [prompt.text for prompt in wanted],
        seed=seed,
        steps=steps,
        guidance_scale=guidance,
        batch_size=25,
        on_step=lambda step: print(f"\r{step.done} of {step.total}", end="", file=sys.stderr),
    )
    print(file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (prompt, image) in enumerate(zip(wanted, images, strict=True)):
        image.save(folder / f"{number:05d}.png")
        rows.append({"file_name": f"{number:05d}.png", **asdict(prompt)})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8", newline="\n")


def table(scores: Iterable[tuple[str, Score]]) -> str:
    lines = [f"{'':12}{'pictures':>9}" + "".join(f"{name:>12}" for name in (*ATTRIBUTES, "all", "pairs"))]
    for title, score in scores:
        cells = "".join(f"{share:>12.1%}" for share in score.accuracy.values())
        lines.append(f"{title:12}{score.num:>9}{cells}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="How often a toy-cats bundle draws what it was asked for.")
    parser.add_argument("bundle", nargs="?", type=Path, help="folder of the bundle")
    parser.add_argument("--pictures", type=Path, help="read this folder's pictures and metadata.jsonl instead")
    parser.add_argument("--num", type=int, default=500, help="prompts to draw of either kind (500)")
    parser.add_argument("--steps", type=int, help="denoising steps (the bundle's default)")
    parser.add_argument("--guidance", type=float, help="guidance scale (the bundle's default)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (0)")
    parser.add_argument("--out", type=Path, help="keep the drawn pictures here")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    if (arguments.bundle is None) == (arguments.pictures is None):
        parser.error("give either a bundle's folder or --pictures DIR")
    if arguments.num < 1:
        parser.error("--num must be at least 1")

    reader = score_reader(NUM_READER_CHECK)
    if min(reader.accuracy.values()) < _LEAST_READER_ACCURACY:
        print(table([("reader", reader)]), *reader.mistakes, sep="\n", file=sys.stderr)
        return 1
    try:
        if arguments.pictures is not None:
            scores = {"pictures": score_folder(arguments.pictures)}
        else:
            scores = {}
            with tempfile.TemporaryDirectory() as temporary:
                for kind, unseen in (("seen", False), ("never seen", True)):
                    folder = (arguments.out or Path(temporary)) / kind.replace(" ", "-")
                    generate(
                        arguments.bundle,
                        folder,
                        num=arguments.num,
                        unseen=unseen,
                        seed=arguments.seed,
                        steps=arguments.steps,
                        guidance=arguments.guidance,
                    )
                    scores[kind] = score_folder(folder)
    except LdmkitError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        report = {
            title: {"num": each.num, "accuracy": each.accuracy, "mistakes": each.mistakes}
            for title, each in {"reader": reader, **scores}.items()
        }
        print(json.dumps(report, indent=2))
    else:
        print(table([("reader", reader), *scores.items()]))
        for title, score in scores.items():
            print(*(f"{title} {mistake}" for mistake in score.mistakes), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

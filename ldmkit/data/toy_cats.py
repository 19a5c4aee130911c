"""Toy cats: drawn cat faces whose attributes are known, so that what a model learned can be measured.

Every picture follows from (seed, its number) alone. Only `random.Random.random()` is drawn from: Python promises
that stream for a string seed across versions, which numpy does not for its generators.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random

from ldmkit.atomic import new_folder
from ldmkit.data.toy_captions import caption, named, pick
from ldmkit.data.toy_drawing import BACKGROUND, COATS, EYES, FUR, ToyCat, draw_toy_cat
from ldmkit.errors import LdmkitError

HELD_OUT_PAIRS: tuple[dict[str, str], ...] = (
    {"fur": "orange", "background": "purple"},
    {"fur": "white", "background": "teal"},
    {"fur": "grey", "background": "pink"},
    {"fur": "black", "background": "yellow"},
    {"fur": "cream", "eyes": "turquoise"},
    {"fur": "brown", "eyes": "blue"},
    {"fur": "white", "eyes": "yellow"},
    {"eyes": "green", "background": "red"},
    {"eyes": "blue", "background": "green"},
    {"coat": "tabby", "background": "blue"},
)
"""attributes that no drawn picture shows together: whether a model composes them can be asked of it afterwards

None is of a fur and a coat: the colour of a fur's stripes would then be in no picture at all, which is more to ask for
than a composition.
"""


def make_toy_cats(
    folder: Path,
    *,
    num_pictures: int,
    size: int = 64,
    seed: int = 0,
    unseen: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw `NNNNN.png` of size x size pixels and `metadata.jsonl` (file_name, text, fur, eyes, coat, background).

    No picture shows one of `HELD_OUT_PAIRS`; with `unseen`, every picture shows at least one.
    The folder appears whole or not at all. `progress(done, total)` is called after each picture.
    Raises LdmkitError where the folder already holds something, or a number is out of range.
    """
    folder = Path(folder)
    if not 1 <= num_pictures <= 99_999:
        raise LdmkitError(f"toy cats: num_pictures must be 1 to 99999, not {num_pictures}")
    if not 16 <= size <= 1024:
        raise LdmkitError(f"toy cats: size must be 16 to 1024 pixels, not {size}")
    with new_folder(folder) as partial, (partial / "metadata.jsonl").open("w", encoding="utf-8", newline="\n") as rows:
        for number in range(num_pictures):
            rng, cat, text = describe(seed, number, unseen)
            name = f"{number:05d}.png"
            row = {"file_name": name, "text": text, **asdict(cat)}
            rows.write(json.dumps(row) + "\n")
            draw_toy_cat(cat, rng, size=size).save(partial / name)
            if progress is not None:
                progress(number + 1, num_pictures)


def describe(seed: int, number: int, unseen: bool = False) -> tuple[Random, ToyCat, str]:
    """The stream that one picture is drawn from, its attributes and its caption."""
    rng = Random(f"toy-cats/picture/{seed}/{number}")
    cat = draw_attributes(rng, unseen)
    for _ in range(4 if cat.coat == "plain" else 3):  # what captions once took: the pictures stay what they are
        rng.random()
    words = Random(f"toy-cats/caption/{seed}/{number}")
    return rng, cat, caption(cat, named(words), words)


def held_out_pairs(cat: ToyCat) -> list[dict[str, str]]:
    """Those of `HELD_OUT_PAIRS` that the cat shows."""
    return [pair for pair in HELD_OUT_PAIRS if all(getattr(cat, name) == value for name, value in pair.items())]


def draw_attributes(rng: Random, unseen: bool) -> ToyCat:
    """A cat that shows none of `HELD_OUT_PAIRS`, or at least one."""
    while True:
        cat = ToyCat(
            fur=pick(rng, tuple(FUR)),
            eyes=pick(rng, tuple(EYES)),
            coat=pick(rng, COATS),
            background=pick(rng, tuple(BACKGROUND)),
        )
        if bool(held_out_pairs(cat)) == unseen:
            return cat

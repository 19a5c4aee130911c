"""Toy cats: drawn cat faces whose attributes are known, so that what a model learned can be measured.

Every picture follows from (seed, its number) alone. Only `random.Random.random()` is drawn from: Python promises
that stream for a string seed across versions, which numpy does not for its generators.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TypeVar

from ldmkit.atomic import new_folder
from ldmkit.data.toy_drawing import BACKGROUND, COATS, EYES, FUR, ToyCat, draw_toy_cat
from ldmkit.errors import LdmkitError

T = TypeVar("T")

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
# {coat} holds its own trailing space: "tabby ", "plain " or nothing.
COMPLETE_PHRASINGS = (
    "a cute {fur} {coat}cat with {eyes} eyes on a {background} background",
    "a {fur} {coat}cat with {eyes} eyes in front of a {background} wall",
    "{fur} {coat}cat, {eyes} eyes, {background} background",
    "a picture of a {fur} {coat}cat with {eyes} eyes, the background is {background}",
    "on a {background} background, a {fur} {coat}cat with {eyes} eyes looks at the camera",
    "a {eyes}-eyed {fur} {coat}cat against a {background} background",
    "the face of a cute {coat}cat with {fur} fur and {eyes} eyes, {background} behind it",
)
SHORT_PHRASINGS = (
    "a cute {fur} {coat}cat with {eyes} eyes",
    "a {fur} {coat}cat with {eyes} eyes",
    "a {fur} {coat}cat looking at the camera",
    "a {fur} {coat}cat",
    "a cute {fur} {coat}cat",
    "a {coat}cat with {fur} fur on a {background} background",
)
_SHARE_SHORT = 0.25
_SHARE_PLAIN_NAMED = 0.7


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
    """The stream of one picture, behind what its attributes and its caption took of it."""
    rng = Random(f"toy-cats/picture/{seed}/{number}")
    cat = draw_attributes(rng, unseen)
    return rng, cat, caption(cat, rng)


def caption(cat: ToyCat, rng: Random) -> str:
    """One caption; a cat that is not called tabby is plain."""
    phrasings = SHORT_PHRASINGS if rng.random() < _SHARE_SHORT else COMPLETE_PHRASINGS
    text = pick(rng, phrasings)
    coat = "" if cat.coat == "plain" and rng.random() >= _SHARE_PLAIN_NAMED else cat.coat + " "
    text = articles(text.format(**{**asdict(cat), "coat": coat}))
    return text[0].upper() + text[1:] if rng.random() < 0.15 else text


def articles(text: str) -> str:
    """`a` as `an` before a vowel."""
    words = text.split(" ")
    for index, (word, following) in enumerate(pairwise(words)):
        if word == "a" and following[0] in "aeiou":
            words[index] = "an"
    return " ".join(words)


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


def pick(rng: Random, choices: Sequence[T]) -> T:
    """One of the choices, by `rng.random()` alone."""
    return choices[int(rng.random() * len(choices))]

"""What toy cats are asked for: prompts whose pictures are known, and the captions of a set without drawing it."""

from dataclasses import asdict, dataclass
from random import Random

from ldmkit.data.toy_cats import COMPLETE_PHRASINGS, articles, describe, draw_attributes, pick
from ldmkit.data.toy_drawing import ToyCat


@dataclass(frozen=True, kw_only=True)
class ToyPrompt(ToyCat):
    """A prompt and what a picture of it must show."""

    text: str


def captions(num_pictures: int, seed: int = 0) -> list[str]:
    """The captions that `make_toy_cats` gives its pictures."""
    return [describe(seed, number)[2] for number in range(num_pictures)]


def prompts(num: int, seed: int = 0, *, unseen: bool = False) -> list[ToyPrompt]:
    """Prompts that name every attribute, from a stream of their own; the words may still be a training caption's.

    With `unseen` each asks for at least one of `HELD_OUT_PAIRS`, without it for none.
    """
    found = []
    for number in range(num):
        rng = Random(f"toy-cats/prompt/{seed}/{number}")
        cat = draw_attributes(rng, unseen)
        text = pick(rng, COMPLETE_PHRASINGS).format(**{**asdict(cat), "coat": cat.coat + " "})
        found.append(ToyPrompt(text=articles(text), **asdict(cat)))
    return found

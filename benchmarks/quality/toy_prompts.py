"""What toy cats are asked for: prompts whose pictures are known, and the captions of a set without drawing it.

`unseen_phrasings` are a second grammar's, which shares no sentence pattern and no phrase of an attribute with the
captions': tests/benchmarks/test_toy_prompts.py. It was written before any model had been asked by it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random

from ldmkit.data.toy_captions import ATTRIBUTES, articles, caption, named, pick, shuffled
from ldmkit.data.toy_cats import describe, draw_attributes
from ldmkit.data.toy_drawing import ToyCat

SUBJECTS = (
    *(
        "portrait of a {cat}",
        "a portrait of a {cat}",
        "could you paint a {cat} for me",
        "imagine a {cat}",
        "just a {cat}",
    ),
    *("we see a {cat}", "a {cat} posing", "my neighbour's {cat}", "a {cat} stares at you", "head of a {cat}"),
    *("a {cat} that nobody owns", "what about a {cat}", "give me a {cat}", "an adorable {cat}", "a really sweet {cat}"),
    *("a {cat} has come to visit", "generate a {cat}", "wallpaper with a {cat}", "a {cat} sits for the painter"),
)
NOUNS = ("cat", "cat", "cat", "kitten", "kitty")
PHRASES: dict[str, tuple[str, ...]] = {
    "fur": (
        *("{fur} all over", "the animal is {fur}", "make its fur {fur}", "fur of {fur}", "its fur should be {fur}"),
        *(
            "{fur} hair on its head",
            "{fur} is the fur",
            "the cat's fur looks {fur}",
            "fur colour {fur}",
            "a coat of {fur} fur",
        ),
    ),
    "coat": (
        *("the fur is {coat}", "{coat} fur", "the animal is {coat}", "a {coat} one", "the fur has {stripes}"),
        *("there are {stripes} on the fur", "make its coat {coat}", "of the {coat} kind", "{stripes} to be seen"),
    ),
    "eyes": (
        *(
            "two {eyes} eyes",
            "make its eyes {eyes}",
            "eyes of {eyes}",
            "its eyes should be {eyes}",
            "{eyes} are its eyes",
        ),
        *(
            "the cat's eyes look {eyes}",
            "eye colour {eyes}",
            "a pair of {eyes} eyes",
            "the eyes of the animal shine {eyes}",
        ),
    ),
    "background": (
        *("make the background {background}", "a wall of {background}", "the backdrop should be {background}"),
        *(
            "all {background} behind the animal",
            "background colour {background}",
            "the wall at the back was painted {background}",
        ),
        *("{background} as a background", "the whole background in {background}", "surrounded by {background}"),
        *("photographed against {background}", "in a room with {background} walls"),
    ),
}
"""attribute -> what is said of it beside the adjectives before the noun; stripes are there or not"""
STRIPES = {"plain": "no stripes", "tabby": "stripes"}
SPOKEN = {"orange": "ginger", "grey": "gray", "tabby": "striped"}


@dataclass(frozen=True, kw_only=True)
class ToyPrompt(ToyCat):
    """A prompt, and a cat that it may have been said of."""

    text: str
    asked: tuple[str, ...] = ATTRIBUTES
    """the attributes that it names"""


Phrase = Callable[[ToyCat, tuple[str, ...], Random], str]


def captions(num_pictures: int, seed: int = 0) -> list[str]:
    """The captions that `make_toy_cats` gives its pictures."""
    return [describe(seed, number)[2] for number in range(num_pictures)]


def prompts(
    num: int, seed: int = 0, *, unseen: bool = False, subsets: bool = False, phrase: Phrase = caption
) -> list[ToyPrompt]:
    """Prompts from a stream of their own, in the captions' grammar; the words may still be a training caption's.

    With `unseen` each asks for at least one of `HELD_OUT_PAIRS`, without it for none. With `subsets` they name any
    attributes, without it all.
    """
    found = []
    for number in range(num):
        rng = Random(f"toy-cats/prompt/{seed}/{number}")
        cat = draw_attributes(rng, unseen)
        asked = named(rng) if subsets else ATTRIBUTES
        found.append(ToyPrompt(text=phrase(cat, asked, rng), asked=asked, **asdict(cat)))
    return found


def unseen_phrasing(cat: ToyCat, asked: tuple[str, ...], rng: Random) -> str:
    """A sentence of the second grammar that names these attributes of the cat."""
    words = {name: pick(rng, (value, SPOKEN.get(value, value))) for name, value in asdict(cat).items()}
    before = [name for name in ("fur", "coat") if name in asked and rng.random() < 0.5]
    phrases = [pick(rng, PHRASES[name]) for name in shuffled(rng, asked) if name not in before]
    noun = " ".join([*(words[name] for name in shuffled(rng, before)), pick(rng, NOUNS)])
    text = pick(rng, SUBJECTS).replace("{cat}", noun)
    if phrases and rng.random() < 0.2:
        text = phrases.pop() + pick(rng, (", ", " / ", ". ")) + text
    for phrase in phrases:
        text += pick(rng, (", ", "; ", ". ", " and ", ", and ", " / ")) + phrase
    text = articles(text.format(**words, stripes=STRIPES[cat.coat]))
    return text[0].upper() + text[1:] if rng.random() < 0.5 else text

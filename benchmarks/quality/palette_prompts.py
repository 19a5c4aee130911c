"""Prompts for `ldmkit eval RUN --prompts FILE`, in phrasings that no caption of `palette` has.

python -m benchmarks.quality.palette_prompts [--num 240] [--seed S] [--noun cat] > prompts.txt

A grammar of its own, which shares no sentence pattern with the captioner's: tests/benchmarks/test_palette_prompts.py.
Colours are those that photographs of cats and their backgrounds have often; some prompts name the subject's alone.
"""

from dataclasses import dataclass
from itertools import product
from random import Random

from benchmarks.command import run
from ldmkit.data.toy_captions import articles

SUBJECTS = ("orange", "black", "white", "grey", "brown", "black and white", "grey and white", "orange and white")
BACKGROUNDS = ("black", "white", "grey", "green", "brown", "blue", "dark")
COMPLETE = (
    "the wall behind my {noun} is {b}; its coat is {c}",
    "{b} wall. {noun} of {c} fur",
    "the backdrop: {b}. the animal: {c} {noun}",
    "what a sweet {noun}: the fur is {c} and the scenery is {b}",
    *(
        f"{who}{joint} {where}"
        for (who, joint), where in product(
            (
                ("portrait of a {noun} that is {c}", ","),
                ("my {noun} has {c} fur", " and sits"),
                ("this {noun} has a {c} coat and looks at me", ","),
                ("an adorable little {c} {noun} photographed", ""),
                ("some {c} {noun} whose face is seen", ""),
                ("fluffy {c} {noun} staring", ""),
            ),
            ("before a {b} wall", "against {b} scenery", "while the wall is {b}", "in {b} surroundings"),
        )
    ),
)
SHORT = (
    "portrait of a {noun} that is {c}",
    "my {noun} has {c} fur",
    "an adorable little {c} {noun}",
    "fluffy {c} {noun} staring at me",
    "the coat of this {noun} is {c}",
    "a {noun} whose fur is {c}",
)


@dataclass(frozen=True)
class PalettePrompt:
    """A prompt, and the colours that it names."""

    text: str
    subject: str
    background: str
    """empty where none is named"""


def prompts(num: int, seed: int = 0, noun: str = "cat") -> list[PalettePrompt]:
    """Different ones, the same for a seed."""
    rng = Random(f"palette/prompts/{seed}")
    found: dict[str, PalettePrompt] = {}
    while len(found) < num:
        subject, background = rng.choice(SUBJECTS), rng.choice(("", *3 * BACKGROUNDS))
        short = not background or rng.random() < 0.2
        text = rng.choice(SHORT if short else COMPLETE).format(c=subject, b=background, noun=noun)
        found.setdefault(text, PalettePrompt(articles(text), subject, "" if short else background))
    return list(found.values())


def main(*, num: int = 240, seed: int = 0, noun: str = "cat") -> None:
    print("\n".join(prompt.text for prompt in prompts(num, seed, noun)))


if __name__ == "__main__":
    run(main)

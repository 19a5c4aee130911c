"""What a bundle draws for each colour that its prompts name, as `palette` reads the pictures.

python -m benchmarks.quality.palette_drawn BUNDLE [--num 400] [--seed S] [--guidance G] [--own]

Every colour is named about as often; backgrounds are counted by the word that they are called by as well. Prompts are
those of palette_prompts, or, with --own, the same colours in the captioner's phrasings: what is wrong in these too is
not a matter of words.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from ldmkit_palette import Palette, read
from ldmkit_palette_words import caption, named_colors
from PIL import Image

from benchmarks.command import print_table, run
from benchmarks.quality.palette_prompts import PalettePrompt, prompts
from ldmkit.runtime.bundle import Bundle

NOUN = "cat"
COMMONEST = 3
SETTINGS = ("wall", "backdrop", "scenery", "surroundings")
"""words for the background; the last two stand in no caption of `palette`"""


def in_own_words(prompt: PalettePrompt, rng: Random) -> PalettePrompt:
    """Its colours, all of them, in a phrasing that the captioner itself may take."""
    subject = prompt.subject.split(" and ")
    named = named_colors(prompt.text)
    while True:
        text = caption(NOUN, subject, prompt.background, "", rng)
        if named_colors(text) == named:
            return replace(prompt, text=text)


def drawn(asked: Sequence[PalettePrompt], images: Sequence[Image.Image]) -> Iterable[tuple[object, ...]]:
    """Rows: what was named, how often, how often it was drawn, and as what it was read most."""
    counts: dict[str, dict[str, Counter[str]]] = {
        name: defaultdict(Counter) for name in ("subject", "background", "called")
    }
    right: Counter[tuple[str, str]] = Counter()
    shown = Palette(subject=NOUN).shows(images, [prompt.text for prompt in asked])
    for prompt, image, found in zip(asked, images, shown, strict=True):
        reading = read(image)
        seen = {"subject": " and ".join(reading.subject), "background": reading.background}
        called = next((word for word in SETTINGS if word in prompt.text.lower()), "otherwise")
        of = [(name, str(getattr(prompt, name)), name) for name in found]
        for name, row, shows in of + [("called", called, "background")] * ("background" in found):
            counts[name][row][seen[shows]] += 1
            right[name, row] += found[shows]
    for name, colors in counts.items():
        if total := sum(map(Counter.total, colors.values())):
            yield name, total, f"{sum(right[name, color] for color in colors) / total:.1%}", ""
        for color, readings in sorted(colors.items()):
            most = ", ".join(f"{reading} {count}" for reading, count in readings.most_common(COMMONEST))
            yield f"  {color}", readings.total(), f"{right[name, color] / readings.total():.1%}", most


def main(bundle: Path, *, num: int = 400, seed: int = 7, guidance: float | None = None, own: bool = False) -> None:
    asked = prompts(num, seed, NOUN)
    if own:
        rng = Random(f"palette/drawn/{seed}")
        asked = [in_own_words(prompt, rng) for prompt in asked]
    texts = [prompt.text for prompt in asked]
    images = list(Bundle.load(bundle).generate(texts, seed=0, batch_size=25, guidance_scale=guidance))
    print_table(("named", "prompts", "right", "read as"), *drawn(asked, images))


if __name__ == "__main__":
    run(main)

"""How often the captioner `palette` names fur and background of freshly drawn toy cats right, and how fast it is.

python -m benchmarks.quality.palette_accuracy [--num 2000] [--seed S] [--size 64]

Fur is right where the first of fur's colours in the caption is the cat's. No fur has a background's colour: the caption
may have none of these but the background's own. Captions that name none count as neither right nor wrong.
"""

import re
import time
from pathlib import Path
from statistics import fmean

from PIL import Image

from benchmarks.command import print_table, run
from benchmarks.quality.toy_accuracy import HELD_OUT_SEED
from ldmkit import Picture
from ldmkit.components.registry import Registry
from ldmkit.data.toy_cats import describe
from ldmkit.data.toy_drawing import BACKGROUND, FUR, ToyCat, draw_toy_cat

SYNONYMS = {"ginger": "orange", "gray": "grey", "beige": "cream"}


def colors(caption: str, palette: dict[str, tuple[int, int, int]]) -> list[str]:
    """Those of the palette that the caption names, in its order."""
    words = [SYNONYMS.get(word, word) for word in re.findall(r"[a-z]+", caption.lower())]
    return [word for word in words if word in palette]


def score(cats: list[ToyCat], captions: list[str]) -> dict[str, float]:
    """Shares of the captions."""
    told = list(zip(cats, captions, strict=True))
    furs = [(cat, found) for cat, caption in told if (found := colors(caption, FUR))]
    grounds = [(cat, found) for cat, caption in told if (found := colors(caption, BACKGROUND))]
    return {
        "fur": fmean(found[0] == cat.fur for cat, found in furs),
        "fur named": len(furs) / len(cats),
        "background": fmean(found == [cat.background] for cat, found in grounds),
        "background named": len(grounds) / len(cats),
    }


def main(*, num: int = 2000, seed: int = HELD_OUT_SEED, size: int = 64) -> None:
    cats, images = [], []
    for number in range(num):
        rng, cat, _ = describe(seed, number)
        cats.append(cat)
        images.append(draw_toy_cat(cat, rng, size=size))
    captioner = Registry.load().build("captioner", {"use": "palette", "subject": "cat"}, where="palette_accuracy")

    def picture(image: Image.Image) -> Picture:
        return Picture(Path(), "", lambda: image)

    start = time.process_time()
    captions = captioner.caption([picture(image) for image in images])
    seconds = time.process_time() - start
    print_table(
        ("pictures", "captions", *(found := score(cats, captions)), "ms of a core each"),
        (num, len(set(captions)), *(f"{share:.1%}" for share in found.values()), f"{1000 * seconds / num:.2f}"),
    )


if __name__ == "__main__":
    run(main)

"""In how many pictures OpenCV's extended frontal-cat-face cascade finds a face, drawn ones beside real ones.

pip install 'opencv-python-headless<5'      # 5.0 ships no cascades
python -m benchmarks.quality.cat_faces BUNDLE REFERENCE [--prompts FILE] [--num 232] [--seed 0] [--guidance G]
    [--out DIR]

Real pictures, those in the folder REFERENCE, brought to the bundle's size as training would, are the ceiling. A picture
is enlarged to 160 pixels and given a border of 20; one face at least counts. Prompts are a file's lines in turn, or the
bundle's examples.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.command import print_table, run
from ldmkit.data.decode import prepare
from ldmkit.data.pictures import scan
from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle

BATCH = 29


def faces(pictures: Iterable[Image.Image]) -> list[bool]:
    try:
        import cv2
    except ImportError:
        raise LdmkitError("needs OpenCV: pip install 'opencv-python-headless<5'") from None
    cv2.setNumThreads(1)
    cascade = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_frontalcatface_extended.xml")
    found = []
    for picture in pictures:
        grey = cv2.resize(np.asarray(picture.convert("L")), (160, 160), interpolation=cv2.INTER_CUBIC)
        grey = cv2.copyMakeBorder(grey, 20, 20, 20, 20, cv2.BORDER_REFLECT)
        found.append(len(cascade.detectMultiScale(grey, 1.09, 3, minSize=(28, 28))) > 0)
    return found


def main(
    bundle: Path,
    reference: Path,
    *,
    prompts: Path | None = None,
    num: int = 232,
    seed: int = 0,
    guidance: float | None = None,
    out: Path | None = None,
) -> None:
    loaded = Bundle.load(bundle)
    size, lines = loaded.manifest.size, list(loaded.manifest.examples)
    if prompts is not None:
        lines = prompts.read_text(encoding="utf-8").splitlines()
    drawn: list[Image.Image] = []
    for first in range(0, num, BATCH):
        seeds = range(seed + first, seed + min(first + BATCH, num))
        texts = [lines[k % len(lines)] for k in seeds] if lines else None
        drawn += loaded.generate(texts, n=1 if texts else len(seeds), seed=seeds.start, guidance_scale=guidance)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(drawn):
            picture.save(out / f"{number:04d}.png")
    real = (Image.fromarray(prepare(picture.load(), size, "center")) for picture in scan(reference).pictures())
    rows = []
    for name, pictures in (("drawn", drawn), ("real", real)):
        found = faces(pictures)
        share = sum(found) / len(found)
        error = (share * (1 - share) / len(found)) ** 0.5
        rows.append((name, len(found), f"{share:.1%}", f"{error:.1%}"))
    print_table(("pictures", "number", "with a face", "standard error"), *rows)


if __name__ == "__main__":
    run(main)

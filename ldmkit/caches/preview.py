"""`ldmkit caption --preview`: a few pictures beside the captions that they would get."""

import time
from collections.abc import Sequence
from pathlib import Path

from ldmkit.caches.caption import at_once, captions_beside
from ldmkit.components.protocols import Captioner, Picture, TextEncoder
from ldmkit.components.registry import Registry
from ldmkit.data.captions import captions_of
from ldmkit.data.check_captions import words_cut
from ldmkit.data.check_page import escaped, img_of, write_html
from ldmkit.data.pictures import PictureIndex
from ldmkit.errors import LdmkitError
from ldmkit.recipe import Recipe
from ldmkit.report import Reporter, duration, printable

SIDE = 288
"""pixels, the longer side of a picture on the page"""


def preview_captions(
    file: Path, recipe: Recipe, registry: Registry, index: PictureIndex, reporter: Reporter, *, count: int
) -> None:
    """Captions `count` of the pictures that the captioner would be asked for, spread over the set, and keeps nothing.

    Prints the captions and what all would take, and writes one page with the pictures beside them.
    Raises LdmkitError where every picture has a caption beside it.
    """
    pictures: Sequence[Picture] = index.pictures()
    if beside := captions_beside(recipe, registry):
        texts = beside.caption(pictures)
        pictures = [picture for picture, text in zip(pictures, texts, strict=True) if text is None]
    use = recipe.caption.use
    if not pictures:
        raise LdmkitError(
            f"caption.use = {use!r} would not be asked for anything: every picture has a caption beside it; "
            "--set caption.keep_existing=false has all of them written anew"
        )
    captioner: Captioner = registry.build("captioner", recipe.caption.table(), where="[caption]")
    count = min(count, len(pictures))
    shown = [pictures[number * len(pictures) // count] for number in range(count)]
    captions: list[str | None] = []
    started, size = time.monotonic(), at_once(captioner)
    with reporter.bar("caption", count) as bar:
        while len(captions) < count:
            if len(captions) == 1:
                started = time.monotonic()
            # The first one by itself: the network is loaded for it.
            batch = shown[len(captions) : len(captions) + (size if captions else 1)]
            captions += captioner.caption(batch)
            bar.advance(len(batch))
    each = (time.monotonic() - started) / max(count - 1, 1)
    takes = f"{duration(each)} a picture, about {duration(each * len(pictures))} for the {len(pictures)} without one"
    remarks: list[str] = [*getattr(captioner, "remarks", list)()]
    lost: dict[str, str] = {}
    if recipe.t2i is not None:
        encoder: TextEncoder = registry.build("text_encoder", recipe.text.table(), where="[text]")
        if not encoder.trainable:  # whose tokens do not depend on the captions
            written = [line for text in captions if text for line in captions_of(text)]
            try:
                lost, most = words_cut(dict(zip(written, written, strict=True)), encoder), encoder.max_tokens
                number = sum(line in lost for line in written)
                remarks.append(
                    f"{number} of {len(written)} are longer than the {most} tokens of {recipe.text.use}, and cut"
                )
            except (LdmkitError, ModuleNotFoundError) as error:
                remarks.append(f"their tokens are not counted, {recipe.text.use} cannot be had: {error}")
    figures = ""
    for picture, text in zip(shown, captions, strict=True):
        lines = captions_of("(no caption)" if text is None else text or "(no words)")
        seen = ""
        for line in lines:
            reporter.line(f"caption: {printable(picture.key)}: {printable(line)}")
            rest = lost.get(line, "")
            seen += f"{escaped(line.removesuffix(rest))}<s>{escaped(rest)}</s><br>"
        figures += (
            f"<figure><div>{img_of(picture.load().convert('RGB'), SIDE)}</div><figcaption>{seen}"
            f"<small>{escaped(picture.key)}</small></figcaption></figure>\n"
        )
    options = ", ".join(f"{key} = {value}" for key, value in recipe.caption.table().items())
    title = f"{count} of {len(pictures)} pictures, captioned by {use}"
    write_html(file, title, [options, takes, *remarks], f'<div class="grid">{figures}</div>')
    for line in (*remarks, takes, f"beside their pictures: {file}; none was kept"):
        reporter.line(f"caption: {line}")

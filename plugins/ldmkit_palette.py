"""The captioner `palette`: names the colours of the subject and of the background; no network, no download.

A colour is called what people called the nearest colour of the XKCD colour survey (Munroe 2010: 954 names by 222,500
people, in the public domain; matplotlib has them), nearest by CIEDE2000 (CIE 142-2001). Of a name its noun counts,
brought down to the eleven basic terms of Berlin & Kay 1969 and to beige, teal and turquoise. Browns and greys of the
subject are called what fur is called: ginger fur is a light brown of the survey. Drawn pictures are read by the same
rule.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from random import Random
from typing import Annotated, Any, NamedTuple

import numpy as np
from ldmkit_palette_words import TERMS, caption, named_colors
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from ldmkit import LdmkitError, Picture, hookimpl

Floats = NDArray[np.float64]

_HUES = "red|orang|yellow|green|teal|turq|aqua|blu|purpl|pink|tan|brown|grey"

SIDE = 32
"""pixels a side at which a picture is read: whiskers are gone, eyes and patches are not"""
_y, _x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
MIDDLE = np.hypot((_x - 0.5) / 0.29, (_y - 0.56) / 0.27) < 1
BORDER = (_y < 0.1) | (((_x < 0.1) | (_x > 0.9)) & (_y < 0.5))  # not the lower sides, where shoulders are

_FURS = ("black", "grey", "white", "brown", "orange", "beige")
_SECOND = {True: 0.22, False: 0.35}
"""share of the subject from which a second colour is named: one that no fur has may be the eyes'"""
_COMMONEST_ALONE = 0.4
"""share of the captions that leave a second colour out"""
_UNIFORM = 0.5
"""share of the border that must be of one colour for the background to have it"""
# Shades of one fur, where enough of it is of the first word: a black cat shines.
_SHADES = (
    ("beige", 0.35, ("brown", "orange")),
    ("white", 0.2, ("light grey",)),
    ("black", 0.3, ("dark grey",)),
)
_BROWNS = ("light brown", "brown", "dark brown")
_LEAST_ORANGE = 0.18
"""share of the middle that must be orange, pixel by pixel, before any of its brown is called so: eyes have less"""
_ALL_ORANGE = 0.9
"""share of orange and brown from which none of it is called brown"""
_STRIPES = 1.5
_RED = -4.5
"""a* of the darker fur, less _STRIPES times its contrast, above which the rest is orange: see `_settle_warm`"""


@dataclass(frozen=True, kw_only=True)
class Palette:
    """Colours of the subject and of the background: "a dark grey and white cat on a green background"."""

    subject: Annotated[str, Field(min_length=1, description='what the pictures show, as in "cat"')]
    num_captions: Annotated[
        int, Field(ge=1, le=64, description="captions of a picture, each phrased anew; training takes one each time")
    ] = 1

    def caption(self, pictures: Sequence[Picture]) -> list[str | None]:
        return ["\n".join(self._captions(picture.load())) for picture in pictures]

    def _captions(self, image: Image.Image) -> list[str]:
        """In phrasings that the picture's content chooses."""
        found = read(image)
        rng = Random(sha256(_pixels(image).tobytes()).hexdigest())
        return [self._phrased(found, rng) for _ in range(self.num_captions)]

    def _phrased(self, found: "Reading", rng: Random) -> str:
        border, all_of_it = found.light
        background = found.background
        if found.share < _UNIFORM:
            background = "dark" if border < 30 else "light" if border > 78 else ""
        elif background in ("black", "white") and rng.random() < 0.33:
            background = "dark" if background == "black" else "bright"
        light = "in dim light" if all_of_it < 28 else "in bright light" if all_of_it > 72 else ""
        # Who types "a brown cat" means grey and brown ones too, and of brown alone there are few.
        alone = len(found.subject) > 1 and rng.random() < _COMMONEST_ALONE
        subject = found.subject[:1] if alone else found.subject
        return caption(self.subject, subject, background, light if rng.random() < 0.5 else "", rng)

    def shows(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, bool]]:
        """Of each picture whether it shows what its prompt names: "subject" and "background", where it names them.

        The first colours must be the subject's, however much of each; more may follow. The background is right where
        the commonest colour of the border is the one named; "dark" and "light" go by its mean lightness.
        """
        return [_compare(read(image), named_colors(prompt)) for image, prompt in zip(images, prompts, strict=True)]


class Reading(NamedTuple):
    """What a picture shows, in words such as "dark grey"."""

    subject: tuple[str, ...]
    """one colour or two, the commonest first"""
    background: str
    """the commonest of the border"""
    share: float
    """of the border that is called so"""
    light: tuple[float, float]
    """mean L* of the border and of the whole picture, in [0, 100]"""


def read(image: Image.Image) -> Reading:
    """The colours of the middle and of the border."""
    rgb = _pixels(image)
    survey = _survey()
    names = survey.nearest(rgb)
    fur = Counter(survey.fur[k] for k in names[MIDDLE])
    for into, least, shades in _SHADES:
        if fur[into] and fur[into] >= least * MIDDLE.sum():
            fur[into] += sum(fur.pop(shade, 0) for shade in shades)
    lab = rgb_to_lab(rgb)
    _settle_warm(fur, lab)
    subject = _by_term(fur)
    second = [word for word, count in subject[1:2] if count >= _SECOND[word.split()[-1] in _FURS] * MIDDLE.sum()]
    background, count = _by_term(survey.plain[k] for k in names[BORDER])[0]
    light = lab[..., 0]
    mean_light = float(light[BORDER].mean()), float(light.mean())
    return Reading((subject[0][0], *second), background, count / int(BORDER.sum()), mean_light)


def _settle_warm(fur: Counter[str], lab: Floats) -> None:
    """Makes what is orange and brown all orange or all brown, in place; `lab` (SIDE, SIDE, 3).

    Pixel by pixel a ginger cat's shadows are brown, and the lit fur of a brown tabby is orange. But a brown one's
    stripes are black, where those of a ginger one are of a darker orange: redder, and of less contrast. Fitted on 139
    photographs, about half of each: 88% right, where a share of orange pixels alone had 63% right.
    """
    orange, brown = fur["orange"], sum(fur[shade] for shade in _BROWNS)
    if orange >= _LEAST_ORANGE * MIDDLE.sum() and (
        orange > _ALL_ORANGE * (orange + brown) or _redness(lab) - _STRIPES * _contrast(lab[..., 0]) > _RED
    ):
        fur["orange"] += sum(fur.pop(shade, 0) for shade in (*_BROWNS, "beige"))
    elif brown:
        fur["brown"] += fur.pop("orange", 0)


def _redness(lab: Floats) -> float:
    """Median a* of the darkest three tenths of the middle."""
    light, a = lab[MIDDLE][:, 0], lab[MIDDLE][:, 1]
    return float(np.median(a[light <= np.percentile(light, 30)]))


def _contrast(light: Floats) -> float:
    """Mean difference in L* between neighbours in the middle."""
    down = np.abs(light[1:] - light[:-1])[MIDDLE[1:] & MIDDLE[:-1]]
    right = np.abs(light[:, 1:] - light[:, :-1])[MIDDLE[:, 1:] & MIDDLE[:, :-1]]
    return float(down.mean() + right.mean()) / 2


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """(SIDE, SIDE, 3)"""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))


def _by_term(words: Counter[str] | Iterable[str]) -> list[tuple[str, int]]:
    """Each term in its commonest shade, and how many pixels all its shades have; the commonest first."""
    terms: Counter[str] = Counter()
    shade: dict[str, str] = {}
    for word, count in Counter(words).most_common():
        term = word.split()[-1]
        terms[term] += count
        shade.setdefault(term, word)
    return [(shade[term], count) for term, count in terms.most_common()]


@dataclass(frozen=True)
class _Survey:
    """The colours of the survey whose names end in a noun of `TERMS`."""

    lab: Floats
    """(N, 3)"""
    plain: list[str]
    """each one's word on a wall"""
    fur: list[str]
    """each one's word on an animal"""
    cells: NDArray[np.int64]
    """(32768,) the nearest colour to each cell of 8 x 8 x 8 values of sRGB; -1 where none has been asked for"""

    def nearest(self, rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(...) numbers of the nearest colours to pixels (..., 3)."""
        r, g, b = np.moveaxis(rgb.astype(np.int64) >> 3, -1, 0)
        cells = (r << 10) + (g << 5) + b
        new = np.unique(cells[self.cells[cells] < 0])
        middles = np.stack([new >> 10, new >> 5 & 31, new & 31], axis=-1) * 8 + 4
        self.cells[new] = ciede2000(rgb_to_lab(middles)[:, None], self.lab).argmin(axis=1)
        found: NDArray[np.int64] = self.cells[cells]
        return found


@cache
def _survey() -> _Survey:
    try:
        from matplotlib.colors import XKCD_COLORS, to_rgb
    except ModuleNotFoundError:
        raise LdmkitError("the names of the colours come with matplotlib; `pip install matplotlib`") from None
    # "greenish blue" is neither, whereas a brownish grey is a grey.
    named = [
        (name, TERMS[noun])
        for name in XKCD_COLORS
        for *others, noun in [name.removeprefix("xkcd:").split()]
        if noun in TERMS and (noun in ("grey", "brown") or not any(re.match(_HUES, word) for word in others))
    ]
    lab = rgb_to_lab(np.array([to_rgb(XKCD_COLORS[name]) for name, _ in named]) * 255)
    plain = [_shade(term, color) for (_, term), color in zip(named, lab, strict=True)]
    fur = [_fur(term, color) for (_, term), color in zip(named, lab, strict=True)]
    return _Survey(lab, plain, fur, np.full(32**3, -1))


def _shade(term: str, lab: Floats) -> str:
    """The term with "dark" or "light"; what photographs show of black and white is greyer than a screen's."""
    light = lab[0]
    if term in ("grey", "black", "white") or light < 8:
        if light < 24 or light > 85:
            return "black" if light < 24 else "white"
        term = "grey"
    if term == "turquoise" and light < 60:
        term = "teal"
    if light < 36 and term in ("grey", "red", "brown", "green", "teal", "blue", "purple"):
        return f"dark {term}"
    if light > 72 and term in ("grey", "brown", "green", "turquoise", "blue", "purple"):
        return f"light {term}"
    return term


def _fur(term: str, lab: Floats) -> str:
    """As `_shade`, but what is grey, brown or orange goes by lightness and saturation, as the words for fur do."""
    light, a, b = lab
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360
    saturation = chroma / max(light, 1)
    if light < 16:
        return "black"
    if term == "grey" or saturation < 0.19 or chroma < 5:
        word = "black" if light < 24 else "white" if light > 68 else "grey"
    elif not 30 < hue < 102 or (chroma > 65 and hue > 80):
        return "grey" if saturation < 0.35 and chroma < 16 else _shade(term, lab)
    elif saturation > 0.4 and light > 44.5:
        word = "beige" if light > 80 and saturation < 0.5 else "orange"
    elif light > 72:
        word = "beige" if saturation > 0.2 else "white"
    else:
        word = "grey" if saturation < 0.2 else "brown"
        if word == "brown" and light > 55:
            return "light brown"
    if word == "grey":
        return "dark grey" if light < 42 else "light grey" if light > 58 else "grey"
    return "dark brown" if word == "brown" and light < 32 else word


def rgb_to_lab(rgb: NDArray[np.integer[Any]] | Floats) -> Floats:
    """sRGB (..., 3) in [0, 255] (IEC 61966-2-1) to CIELAB (..., 3) (CIE 15:2004, D65): L* in [0, 100]."""
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(1)  # white is 1, 1, 1
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def ciede2000(first: Floats, second: Floats) -> Floats:
    """CIEDE2000 of CIELAB colours (..., 3), as Sharma, Wu & Dalal 2005 write it (eq. 2 to 22)."""
    l1, a1, b1 = np.moveaxis(first, -1, 0)
    l2, a2, b2 = np.moveaxis(second, -1, 0)
    c7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    stretch = 1.5 - 0.5 * np.sqrt(c7 / (c7 + 25.0**7))
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = np.arctan2(b1, stretch * a1) % (2 * np.pi), np.arctan2(b2, stretch * a2) % (2 * np.pi)
    grey = c1 * c2 == 0
    turn = np.where(grey, 0.0, h2 - h1)
    turn -= 2 * np.pi * np.round(turn / (2 * np.pi))  # the shorter way round
    lightness, chroma, hue = l2 - l1, c2 - c1, 2 * np.sqrt(c1 * c2) * np.sin(turn / 2)
    h = np.where(grey, h1 + h2, h1 + turn / 2)
    light, c = (l1 + l2) / 2, (c1 + c2) / 2
    t = 1 - 0.17 * np.cos(h - np.pi / 6) + 0.24 * np.cos(2 * h)
    t += 0.32 * np.cos(3 * h + np.pi / 30) - 0.20 * np.cos(4 * h - np.radians(63))
    lightness /= 1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    chroma /= 1 + 0.045 * c
    hue /= 1 + 0.015 * c * t
    degrees = np.degrees(h) % 360
    r = -2 * np.sqrt(c**7 / (c**7 + 25.0**7)) * np.sin(np.radians(60) * np.exp(-(((degrees - 275) / 25) ** 2)))
    return np.asarray(np.sqrt(lightness**2 + chroma**2 + hue**2 + r * chroma * hue))


def _compare(found: Reading, named: Mapping[str, set[str]]) -> dict[str, bool]:
    right = {}
    if subject := named["subject"]:
        right["subject"] = {word.split()[-1] for word in found.subject[: len(subject)]} == subject
    if background := named["background"]:
        light = found.light[0]
        shown = {found.background.split()[-1], "dark" if light < 40 else "light" if light > 60 else ""}
        right["background"] = background <= shown
    return right


@hookimpl
def register_captioners() -> Mapping[str, type[Palette]]:
    """`palette`."""
    return {"palette": Palette}

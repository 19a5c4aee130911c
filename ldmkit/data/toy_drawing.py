"""Draws one toy cat: its palettes, and shapes in the face's own units."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw, ImageFilter

Color = tuple[int, int, int]

# Far apart in CIELAB, so that a colour can be read back off a blurred picture.
FUR: dict[str, Color] = {
    "orange": (240, 148, 58),
    "black": (44, 43, 50),
    "white": (244, 243, 241),
    "grey": (142, 147, 156),
    "brown": (122, 77, 47),
    "cream": (243, 213, 162),
}
EYES: dict[str, Color] = {
    "green": (66, 178, 52),
    "blue": (38, 92, 226),
    "yellow": (255, 221, 30),
    "turquoise": (42, 214, 206),
}
COATS = ("plain", "tabby")
BACKGROUND: dict[str, Color] = {
    "red": (208, 58, 62),
    "blue": (66, 112, 214),
    "green": (104, 182, 84),
    "yellow": (250, 224, 104),
    "purple": (138, 84, 186),
    "pink": (248, 160, 200),
    "teal": (18, 136, 140),
}
# Darker than the fur, except that black fur carries lighter stripes.
STRIPES: dict[str, Color] = {
    "orange": (182, 84, 22),
    "black": (82, 81, 88),
    "white": (170, 168, 172),
    "grey": (78, 82, 92),
    "brown": (62, 36, 22),
    "cream": (210, 168, 112),
}
INK: Color = (38, 33, 38)
PINK: Color = (238, 150, 158)
WHITE: Color = (255, 255, 255)

_SUPERSAMPLE = 4
_SOFTNESS = 0.6
"""standard deviation, pixels of the finished picture"""


@dataclass(frozen=True, kw_only=True)
class ToyCat:
    """What one picture shows."""

    fur: str
    eyes: str
    coat: str
    background: str


def _between(rng: Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _mix(color: Color, other: Color, share: float) -> Color:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(color, other, strict=True))
    return red, green, blue


class _Canvas:
    """Draws in face units (the picture is 64 wide, the face's centre is 0, 0) through shift, rotation and scale."""

    def __init__(self, size: int, background: Color, rng: Random) -> None:
        self.pixels = size * _SUPERSAMPLE
        top, bottom = _mix(background, WHITE, 0.10), _mix(background, INK, 0.08)
        shade = Image.linear_gradient("L").resize((self.pixels, self.pixels), Image.Resampling.BILINEAR)
        self.image = Image.composite(Image.new("RGB", shade.size, bottom), Image.new("RGB", shade.size, top), shade)
        self.draw = ImageDraw.Draw(self.image)
        self.unit = self.pixels / 64
        self.x, self.y = 32 + _between(rng, -3.5, 3.5), 37 + _between(rng, -2.5, 2.5)
        angle = math.radians(_between(rng, -9, 9))
        scale = _between(rng, 0.94, 1.12)
        self.cos, self.sin = scale * math.cos(angle), scale * math.sin(angle)

    def polygon(self, points: Sequence[tuple[float, float]], color: Color) -> None:
        self.draw.polygon(
            [
                (
                    (self.x + x * self.cos - y * self.sin) * self.unit,
                    (self.y + x * self.sin + y * self.cos) * self.unit,
                )
                for x, y in points
            ],
            fill=color,
        )

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color, *, power: float = 2.0) -> None:
        """A superellipse: `power` 2 is an ellipse, above it the shape grows squarer."""
        exponent = 2 / power
        points = []
        for step in range(48):
            cos, sin = math.cos(math.tau * step / 48), math.sin(math.tau * step / 48)
            points.append(
                (
                    x + rx * math.copysign(abs(cos) ** exponent, cos),
                    y + ry * math.copysign(abs(sin) ** exponent, sin),
                )
            )
        self.polygon(points, color)

    def stroke(self, points: Sequence[tuple[float, float]], width: float, color: Color, *, taper: float = 1.0) -> None:
        """A line whose width runs from `width` at the first point to `width * taper` at the last."""
        left, right = [], []
        for index, (x, y) in enumerate(points):
            x0, y0 = points[max(index - 1, 0)]
            x1, y1 = points[min(index + 1, len(points) - 1)]
            length = math.hypot(x1 - x0, y1 - y0)
            half = width / 2 * (1 + (taper - 1) * index / (len(points) - 1))
            dx, dy = -(y1 - y0) / length * half, (x1 - x0) / length * half
            left.append((x + dx, y + dy))
            right.append((x - dx, y - dy))
        self.polygon(left + right[::-1], color)
        self.ellipse(*points[0], width / 2, width / 2, color)


def draw_toy_cat(cat: ToyCat, rng: Random, *, size: int = 64) -> Image.Image:
    """One face, RGB, size x size pixels; `rng` gives pose, proportions and small changes of colour."""
    light = _between(rng, -0.06, 0.06)
    fur = _mix(FUR[cat.fur], WHITE if light > 0 else INK, abs(light))
    edge = _mix(fur, INK, 0.35) if cat.fur != "black" else _mix(fur, WHITE, 0.16)
    ear = STRIPES[cat.fur] if cat.coat == "tabby" else fur
    background = BACKGROUND[cat.background]
    canvas = _Canvas(size, background, rng)

    head_x, head_y = _between(rng, 19.5, 22.5), _between(rng, 16.0, 18.0)
    ear_height, ear_x = _between(rng, 9.0, 13.0), head_x * _between(rng, 0.60, 0.66)
    eye_x, eye_y = _between(rng, 8.6, 9.8), _between(rng, -1.5, 0.5)
    eye_rx, eye_ry = _between(rng, 4.9, 5.8), _between(rng, 4.8, 6.0)
    pupil = _between(rng, 1.2, 2.3)
    gaze = _between(rng, -0.6, 0.6)
    glint = math.copysign(1.7, rng.random() - 0.5)

    for grow, color in ((0.9, edge), (0.0, fur)):  # the edge is the same shape, a little larger, beneath
        canvas.ellipse(0, head_y + 14, 15 + grow, 15 + grow, color)  # shoulders
    canvas.ellipse(0, head_y + 8, 7, 10, _mix(fur, WHITE, 0.45))  # chest
    for grow, color in ((0.9, edge), (0.0, fur)):
        for side in (-1, 1):
            _ear(canvas, side, ear_x, head_y, ear_height, grow, color if grow else ear)
        canvas.ellipse(0, 0, head_x + grow, head_y + grow, color, power=2.3)
    for side in (-1, 1):
        _ear(canvas, side, ear_x, head_y, ear_height, -2.4, _mix(PINK, ear, 0.15 if ear == fur else 0.5))
    canvas.ellipse(0, 1.5, head_x - 0.4, head_y - 1.9, fur, power=2.3)  # the head lies before the inner ears

    if cat.coat == "tabby":
        _stripes(canvas, head_x, head_y, STRIPES[cat.fur])

    muzzle = _mix(fur, WHITE, 0.6)
    mouth = _mix(muzzle, INK, 0.65)
    for side in (-1, 1):
        canvas.ellipse(side * 3.4, 9.2, 4.6, 3.9, muzzle)
    for side in (-1, 1):
        whisker = _mix(fur, INK if cat.fur != "black" else WHITE, 0.35)
        for y, dy in ((8.4, -1.2), (10.2, 1.2)):
            canvas.stroke([(side * 8.6, y), (side * 13.5, y + dy * 0.6), (side * 18.5, y + dy)], 0.55, whisker)
        canvas.stroke([(0, 8.0), (side * 0.5, 10.1), (side * 2.2, 10.9), (side * 3.9, 9.9)], 0.75, mouth)
    canvas.polygon([(-2.2, 6.0), (2.2, 6.0), (0.9, 8.2), (0, 8.7), (-0.9, 8.2)], _mix(PINK, INK, 0.08))

    iris = EYES[cat.eyes]
    for side in (-1, 1):
        x = side * eye_x
        canvas.ellipse(x, eye_y, eye_rx + 0.8, eye_ry + 0.8, INK)
        canvas.ellipse(x, eye_y, eye_rx, eye_ry, iris)
        canvas.ellipse(x + gaze, eye_y, pupil, eye_ry * 0.72, INK)
        canvas.ellipse(x + gaze + glint, eye_y - eye_ry * 0.4, 1.25, 1.25, WHITE)
    # Soft edges, as of a camera slightly out of focus: an autoencoder of a few minutes spends itself on hard ones.
    soft = canvas.image.filter(ImageFilter.GaussianBlur(_SOFTNESS * _SUPERSAMPLE))
    return soft.reduce(_SUPERSAMPLE)


def _stripes(canvas: _Canvas, head_x: float, head_y: float, color: Color) -> None:
    """As broad as a face of this size bears: what is a hundredth of the picture, a small network learns last."""
    top = -head_y + 0.8
    canvas.stroke([(0, top), (0, top + 6), (0, top + 11)], 4.4, color, taper=0.4)
    for side in (-1, 1):
        canvas.stroke([(side * 7, top + 0.6), (side * 6.4, top + 4), (side * 5.6, top + 8)], 4.2, color, taper=0.4)
        for y, length in ((1.6, 6.0), (6.2, 7.6), (10.8, 7.0)):
            outer = head_x * max(0.0, 1 - abs(y / head_y) ** 2.3) ** (1 / 2.3) - 0.3
            points = [(side * outer, y), (side * (outer - length / 2), y + 0.9), (side * (outer - length), y + 1.0)]
            canvas.stroke(points, 3.3, color, taper=0.4)
        for y in (3.5, 8.5):  # on the shoulders
            outer = math.sqrt(15**2 - (14 - y) ** 2) - 0.3
            points = [
                (side * outer, head_y + y),
                (side * (outer - 3), head_y + y + 0.6),
                (side * (outer - 6), head_y + y),
            ]
            canvas.stroke(points, 3.2, color, taper=0.4)


def _ear(canvas: _Canvas, side: int, x: float, head_y: float, height: float, grow: float, color: Color) -> None:
    tip_x, tip_y = side * (x + 3.2), -head_y - height + 4.5 - grow
    inner, outer = side * (x - 8.5 - grow), side * (x + 6.8 + grow * 0.7)
    canvas.polygon(
        [
            (inner, -head_y + 3.0),
            (tip_x - side * 1.7, tip_y + 0.9),
            (tip_x - side * 0.4, tip_y),
            (tip_x + side * 0.9, tip_y + 1.1),
            (outer, -head_y + 10.0),
            (0, 0),
        ],
        color,
    )

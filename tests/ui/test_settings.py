"""What may be asked for: by hand, and by forged requests to the server."""

import math
from typing import Any

import pytest

from ldmkit.errors import LdmkitError
from ldmkit.runtime.manifest import Latent, Manifest
from ldmkit.runtime.request import DrawRequest, PictureRequest
from ldmkit.ui.settings import request_of, sides_of

SAMPLERS = ("ddim", "euler")
SIDES = (range(32, 129, 32), range(32, 129, 32))
VALUES = {
    "prompt": "a cat",
    "negative": None,
    "seed": 2**32 - 1,
    "steps": 200.0,
    "guidance": 30,
    "sampler": "euler",
    "width": 128,
    "height": 32.0,
    "count": 16,
}
REFUSED = [
    ("prompt", "x" * 1001, "the prompt has 1001 characters; 1000 are the most"),
    ("prompt", 5, "the prompt must be text"),
    ("negative", "x" * 5000, "the negative prompt has 5000 characters; 1000 are the most"),
    ("seed", -1, "the seed is -1; it must be from 0 to 4294967295"),
    ("seed", 2**32, "the seed is 4294967296; it must be from 0 to 4294967295"),
    ("seed", "0", "the seed must be a whole number from 0 to 4294967295"),
    ("seed", None, "the seed must be a whole number from 0 to 4294967295"),
    ("steps", 0, "the number of steps is 0; it must be from 1 to 200"),
    ("steps", 5000, "the number of steps is 5000; it must be from 1 to 200"),
    ("steps", 2.5, "the number of steps must be a whole number from 1 to 200"),
    ("steps", math.nan, "the number of steps must be a whole number from 1 to 200"),
    ("steps", True, "the number of steps must be a whole number from 1 to 200"),
    ("guidance", math.nan, "the guidance must be a number from 0 to 30"),
    ("guidance", math.inf, "the guidance must be a number from 0 to 30"),
    ("guidance", -0.1, "the guidance is -0.1; it must be from 0 to 30"),
    ("guidance", 30.5, "the guidance is 30.5; it must be from 0 to 30"),
    ("guidance", "2", "the guidance must be a number from 0 to 30"),
    ("sampler", "eulr", "the sampler must be one of ddim, euler"),
    ("sampler", None, "the sampler must be one of ddim, euler"),
    ("width", 160, "the width is 160; it must be from 32 to 128"),
    ("width", 65, "the width is 65; it must be a multiple of 32"),
    ("height", 0, "the height is 0; it must be from 32 to 128"),
    ("height", "64", "the height must be a whole number from 32 to 128"),
    ("count", 0, "the number of pictures is 0; it must be from 1 to 16"),
    ("count", 17, "the number of pictures is 17; it must be from 1 to 16"),
    ("count", math.inf, "the number of pictures must be a whole number from 1 to 16"),
]


def test_the_limits_themselves_are_allowed() -> None:
    pictures = [PictureRequest("a cat", 2**32 - 1 + k) for k in range(16)]
    high = DrawRequest(pictures, steps=200, guidance_scale=30.0, sampler="euler", size=(128, 32))
    assert request_of(VALUES, SAMPLERS, SIDES) == high
    low = VALUES | {"prompt": None, "seed": 0, "steps": 1, "guidance": 0, "count": 1, "width": 32}
    lowest = DrawRequest([PictureRequest("", 0)], steps=1, guidance_scale=0.0, sampler="euler", size=(32, 32))
    assert request_of(low, SAMPLERS, SIDES) == lowest


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_one_step_beyond_is_refused_in_one_line(key: str, value: Any, message: str) -> None:
    with pytest.raises(LdmkitError) as refused:
        request_of(VALUES | {key: value}, SAMPLERS, SIDES)
    assert str(refused.value) == message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("usual", "latents", "multiple", "sides"),
    [
        (64, 8, 4, [32, 64, 96, 128]),
        (64, 8, None, [64]),
        (96, 12, 4, [64, 96, 128, 160, 192]),
        (32, 4, 4, [32, 64]),
        (256, 32, 8, [128, 192, 256, 320, 384, 448, 512]),
    ],
)
def test_sides_are_what_the_graphs_take_from_half_to_twice_the_usual(
    usual: int, latents: int, multiple: int | None, sides: list[int]
) -> None:
    latent = Latent(channels=1, height=latents, width=latents, mean=(0.0,), std=(1.0,), multiple=multiple)
    manifest = Manifest.model_construct(picture_size=usual, latent=latent)
    assert [list(each) for each in sides_of(manifest)] == [sides, sides]

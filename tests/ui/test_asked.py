"""What may be asked for: by hand, and by forged requests to the server."""

import math
from typing import Any

import pytest

from ldmkit.errors import LdmkitError
from ldmkit.runtime.manifest import Latent, Manifest
from ldmkit.ui.asked import Asked, check_asked, sides_of

SAMPLERS = ("ddim", "euler")
SIDES = range(32, 129, 32)
VALUES = {
    "prompt": "a cat",
    "negative_prompt": None,
    "seed": 2**32 - 1,
    "steps": 200.0,
    "guidance_scale": 30,
    "sampler": "euler",
    "width": 128,
    "height": 32.0,
    "count": 16,
}
REFUSED = [
    ("prompt", "x" * 1001, "The prompt has 1001 characters; 1000 are the most."),
    ("prompt", 5, "The prompt must be text."),
    ("negative_prompt", "x" * 5000, "The negative prompt has 5000 characters; 1000 are the most."),
    ("seed", -1, "The seed is -1; it must be from 0 to 4294967295."),
    ("seed", 2**32, "The seed is 4294967296; it must be from 0 to 4294967295."),
    ("seed", "0", "The seed must be a whole number from 0 to 4294967295."),
    ("seed", None, "The seed must be a whole number from 0 to 4294967295."),
    ("steps", 0, "The number of steps is 0; it must be from 1 to 200."),
    ("steps", 5000, "The number of steps is 5000; it must be from 1 to 200."),
    ("steps", 2.5, "The number of steps must be a whole number from 1 to 200."),
    ("steps", math.nan, "The number of steps must be a whole number from 1 to 200."),
    ("steps", True, "The number of steps must be a whole number from 1 to 200."),
    ("guidance_scale", math.nan, "The guidance must be a number from 0 to 30."),
    ("guidance_scale", math.inf, "The guidance must be a number from 0 to 30."),
    ("guidance_scale", -0.1, "The guidance is -0.1; it must be from 0 to 30."),
    ("guidance_scale", 30.5, "The guidance is 30.5; it must be from 0 to 30."),
    ("guidance_scale", "2", "The guidance must be a number from 0 to 30."),
    ("sampler", "eulr", "The sampler must be one of ddim, euler."),
    ("sampler", None, "The sampler must be one of ddim, euler."),
    ("width", 160, "The width is 160; it must be from 32 to 128."),
    ("width", 65, "The width is 65; it must be a multiple of 32."),
    ("height", 0, "The height is 0; it must be from 32 to 128."),
    ("height", "64", "The height must be a whole number from 32 to 128."),
    ("count", 0, "The number of pictures is 0; it must be from 1 to 16."),
    ("count", 17, "The number of pictures is 17; it must be from 1 to 16."),
    ("count", math.inf, "The number of pictures must be a whole number from 1 to 16."),
]


def test_the_limits_themselves_are_allowed() -> None:
    assert check_asked(VALUES, SAMPLERS, SIDES) == Asked("a cat", "", 2**32 - 1, 200, 30.0, "euler", 128, 32, 16)
    low = VALUES | {"prompt": None, "seed": 0, "steps": 1, "guidance_scale": 0, "count": 1, "width": 32}
    assert check_asked(low, SAMPLERS, SIDES) == Asked("", "", 0, 1, 0.0, "euler", 32, 32, 1)


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_one_step_beyond_is_refused_in_one_line(key: str, value: Any, message: str) -> None:
    with pytest.raises(LdmkitError) as refused:
        check_asked(VALUES | {key: value}, SAMPLERS, SIDES)
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
    assert list(sides_of(manifest)) == sides

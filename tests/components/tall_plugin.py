"""A sampler with an option of every form that a recipe can write."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ldmkit import hookimpl


@hookimpl
def register_samplers():
    return {"tall": Tall, "plain": plain}


@dataclass(frozen=True, kw_only=True)
class Tall:
    """Takes every form of option.

    Second paragraph.
    """

    word: Annotated[str, Field(min_length=1)]
    steps: Annotated[int, Field(gt=0, description="denoising steps")] = 50
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    form: Literal["round", "square"] = "round"
    widths: tuple[Annotated[int, Field(gt=0)], ...] = (1, 2)
    pair: tuple[int, float] = (1, 0.5)
    weights: Path | None = None
    copy: bool = False
    gain: float = 1.0


def plain(*, model_dump: int = 3):
    return model_dump

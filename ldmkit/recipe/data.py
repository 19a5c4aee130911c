"""[data]: the pictures, and the sizes that they are brought to."""

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ldmkit.recipe.training import Section, later, no_result

MAX_SIDE = 2048
MAX_BUCKETS = 64
Side = Annotated[int, Field(ge=8, le=MAX_SIDE)]
Shape = tuple[Side, Side]
"""pixels, width and height"""


@cache
def by_step(size: Shape, step: int) -> tuple[Shape, ...]:
    """The aspect buckets of kohya's sd-scripts (`make_bucket_resolutions`), from 1:2 to 2:1, ordered by width: for each
    side that is a multiple of `step` the longest other one with no more pixels than `size`, upright and lying."""
    area = size[0] * size[1]
    upright = [(side, area // side // step * step) for side in range(step, MAX_SIDE + 1, step)]
    shapes = {*upright, *((height, width) for width, height in upright)}
    return tuple(sorted(shape for shape in shapes if max(shape) <= min(MAX_SIDE, 2 * min(shape))))


class Data(Section):
    path: str = Field(
        "data/pictures",
        min_length=1,
        description="folder of pictures, searched with its subfolders and archives (.zip, .tar), or such an archive; "
        "relative to where ldmkit is started",
    )
    follow_links: tuple[str, ...] = later(
        (),
        description="folders into which symbolic links are followed, relative to `path` (`.`: within it); a link to "
        "anywhere else is left out and named",
    )
    source: str = Field(
        "folder",
        pattern=r"^(folder|toy-cats|hub:[A-Za-z0-9][^/]*/[A-Za-z0-9][^/]*/([^/.][^/]*/)*[^/.][^/]*\.zip)$",
        description="where the pictures come from if the folder does not exist: `folder` (nowhere), "
        "`toy-cats` (drawn here) or `hub:OWNER/NAME[@COMMIT]/FILE.zip` (a data set on the Hugging Face hub)",
    )
    num_pictures: int | None = Field(
        None, gt=0, description="pictures to use (or to draw, for toy-cats); all if left out"
    )
    size: Side | Shape = Field(
        64, description="pixels that pictures are brought to: one number for width and height alike, or [width, height]"
    )
    buckets: Side | Annotated[tuple[Shape, ...], Field(max_length=MAX_BUCKETS)] = later(
        (),
        description="further sizes, [[width, height], ...]: a picture is brought to that one of them and `size` whose "
        "aspect ratio is nearest to its own, and the pictures of a batch have one size; one number: the sizes of about "
        "as many pixels as `size` whose sides are multiples of it, from 1:2 to 2:1",
    )
    crop: Literal["center", "squash"] = Field(
        "center", description="`center` keeps the aspect ratio and cuts the longer side, `squash` distorts"
    )
    flip: bool = Field(True, description="use each picture's mirror image as well")
    held_out: float = Field(0.05, ge=0, lt=1, description="share of the pictures never trained on")
    max_bad: float = Field(0.1, ge=0, le=1, description="largest share of unreadable pictures before a run stops")
    group_duplicates: bool = later(
        False,
        description="pictures that look alike, by a perceptual hash, go to one side of the held-out split together; "
        "`ldmkit data check` names those that do not",
    )
    exclude: str = no_result(
        "", description="list of pictures to leave out, lines of JSON as `ldmkit data check` writes them; empty: none"
    )
    grow: float = no_result(
        0.5,
        ge=0,
        le=1,
        description="where pictures were added, changed or taken away: largest share of them that a finished "
        "autoencoder may not have been trained with to be kept, so that these alone are encoded; 0: it is always "
        "trained anew",
    )
    num_workers: int = no_result(
        2, ge=0, le=64, description="processes that decode pictures; 0: none beside the main one"
    )
    cache_gb: float = no_result(
        10.0,
        ge=0,
        description="GB of disk for pictures much larger than `size`, which are decoded once and kept at that size in "
        "the run's folder; 0: decoded at each draw",
    )

    @field_validator("size")
    @classmethod
    def _one_number_for_a_square(cls, size: int | Shape) -> int | Shape:
        return size[0] if isinstance(size, tuple) and size[0] == size[1] else size

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Width and height that pictures are brought to: `size`, then the other buckets."""
        shape = (self.size, self.size) if isinstance(self.size, int) else self.size
        return tuple(
            dict.fromkeys((shape, *(by_step(shape, buckets) if isinstance(buckets := self.buckets, int) else buckets)))
        )

    def fingerprint_keys(self) -> dict[str, Any]:
        """As of any section; buckets by a step count as the sizes that it gives."""
        stepped = {"buckets": [list(shape) for shape in self.shapes[1:]]} if isinstance(self.buckets, int) else {}
        return super().fingerprint_keys() | stepped

    def bucket(self, width: int, height: int) -> int:
        """Which of `shapes` a picture is brought to: the nearest in aspect ratio, of several the first."""
        ratios = [(width * down, height * across) for across, down in self.shapes]
        return min(range(len(ratios)), key=lambda i: max(ratios[i]) / min(ratios[i]))

"""Aspect buckets: the shape that each picture is brought to, and batches that hold pictures of one shape."""

import numpy as np

from ldmkit.data.pictures import PictureIndex
from ldmkit.errors import LdmkitError
from ldmkit.recipe.data import Data


def buckets_of(index: PictureIndex, data: Data) -> np.ndarray:
    """(N,) int64: which of `data.shapes` each picture is brought to."""
    if not data.buckets:  # of millions it would take seconds
        return np.zeros(len(index), dtype=np.int64)
    sides = zip(index.entries.files["width"].tolist(), index.entries.files["height"].tolist(), strict=True)
    return np.array([data.bucket(width, height) for width, height in sides], dtype=np.int64)


def of_one_bucket(buckets: np.ndarray, size: int) -> list[np.ndarray]:
    """The places 0 to N - 1 of `buckets` (N,), bucket by bucket and rising in each, in parts of `size` at most."""
    each = (np.flatnonzero(buckets == bucket) for bucket in np.unique(buckets))
    return [places[i : i + size] for places in each for i in range(0, len(places), size)]


def describe(index: PictureIndex, data: Data, *, batch_size: int) -> list[str]:
    """A line for each bucket: how many pictures, what is cut off them, how many are enlarged; none without buckets.

    Raises LdmkitError where no picture comes to `data.size`, in which pictures are drawn unless told otherwise.
    """
    if not data.buckets:
        return []
    lines, found = [], buckets_of(index, data)
    for bucket, (width, height) in enumerate(data.shapes):
        # Of each picture its width and height as multiples of the bucket's.
        sides = np.array(
            [
                (index.entries[i].width / width, index.entries[i].height / height)
                for i in np.flatnonzero(found == bucket)
            ]
        )
        if not len(sides):
            lines.append(f"{width}x{height}: no picture")
            continue
        less, more = sides.min(axis=1), sides.max(axis=1)
        kept = f"{1 - (less / more).mean():.1%} of their pixels cropped" if data.crop == "center" else "none cropped"
        told = f"{width}x{height}: {len(sides)} picture{'s' * (len(sides) > 1)}, {kept}, {(less < 1).sum()} enlarged"
        few = "; fewer than a batch, in which each comes several times" if len(sides) < batch_size else ""
        lines.append(told + few)
    if lines[0].endswith("no picture"):
        there = ", ".join(f"[{width}, {height}]" for width, height in (data.shapes[i] for i in np.unique(found)))
        raise LdmkitError(
            f"data.size = {data.size}: every picture is nearer to one of data.buckets, and none would be trained on in "
            f"the size that is drawn; choose one of {there}"
        )
    return [*lines, "no picture is left out of the buckets"]

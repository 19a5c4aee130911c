"""What a glance at a picture tells, in the pass that decodes it: whether it is blank or blurred, what it is like."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GLANCE = 256
"""pixels, the shorter side that a larger picture is looked at with, or up to twice as many"""
LEVELS = (32, 64, 128, 256)
"""pixels, the shorter sides at which sharpness is measured"""
ALIKE = 40
"""bits of 256 by which the hashes of near-duplicates differ at most. Of 1,500 photos of cats the most alike differ by
84, of AFHQ's aligned faces by 56; saved anew, at half the size or a fifth brighter they differ by 2 to 22, with 3% cut
off by 27 to 60"""
BLANK = 12
"""grey levels of contrast below which there is nothing to see"""
HASHED = 64
"""pixels a side that are hashed"""
_BITS = 16
_DCT = np.cos(np.pi / (2 * HASHED) * np.outer(np.arange(_BITS), 2 * np.arange(HASHED) + 1))
"""(16, 64) the lower frequencies of the DCT-II; a factor for all would not matter"""
_BLOCK = 1024


class Look(NamedTuple):
    """Of the grey picture, upright and whole; its numbers do not depend on `data.size`."""

    phash: str
    """perceptual hash of 256 bits, hexadecimal"""
    contrast: int
    """grey levels between the first and the last hundredth of the pixels"""
    sharpness: tuple[float, ...] | None
    """variance of the Laplacian, in grey levels squared, at each of LEVELS that the shorter side reaches; None where
    nobody asked for it: it takes most of the time, and without it the picture is looked at smaller, by which up to 8
    bits of the hash are others"""

    @classmethod
    def at(cls, image: Image.Image, *, sharpness: bool = True) -> "Look":
        """The look of a picture of any size and mode."""
        if (times := min(image.size) // (GLANCE if sharpness else HASHED)) > 1:
            image = image.reduce(times)
        grey = image.convert("L")
        shares = np.cumsum(grey.histogram()) / (grey.width * grey.height)
        low, high = np.searchsorted(shares, (0.01, 0.99))
        levels = [level for level in LEVELS if level <= min(grey.size)]
        measured = tuple(round(_sharpness(grey, level), 1) for level in levels) if sharpness else None
        return cls(_phash(grey), int(high - low), measured)

    def sharpness_at(self, size: int) -> float | None:
        """Near the working size `size`; None for a picture too small to tell."""
        fitting = [
            value for level, value in zip(LEVELS, self.sharpness or (), strict=False) if level <= max(size, LEVELS[0])
        ]
        return fitting[-1] if fitting else None


def _phash(grey: Image.Image) -> str:
    """The low frequencies above their median (Zauner 2010, sec. 3.2.1); `phash` of the library imagehash, hash_size 16,
    to the bit."""
    pixels = np.asarray(grey.resize((HASHED, HASHED), Image.Resampling.LANCZOS), dtype=np.float64)
    low = _DCT @ pixels @ _DCT.T
    return np.packbits(low > np.median(low)).tobytes().hex()


def _sharpness(grey: Image.Image, level: int) -> float:
    """Pech-Pacheco et al. 2000; of a picture whose shorter side is brought to `level` pixels."""
    scale = level / min(grey.size)
    if scale < 1:
        grey = grey.resize((round(grey.width * scale), round(grey.height * scale)), Image.Resampling.BOX)
    x = np.asarray(grey, dtype=np.float32)
    around = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]
    return float((around - 4 * x[1:-1, 1:-1]).var())


def alike(hashes: Sequence[str]) -> list[int]:
    """For each hash the first one of its group: those that differ by at most ALIKE bits, mirrored ones too, and
    whatever is like one of these.

    Every pair is compared: a second for 10,000 hashes, a minute and a half for 100,000.
    """
    root = np.arange(len(hashes))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = i = root[root[i]]
        return i

    for rows, columns in _pairs(hashes):
        # Each with the first one that is like it: of a large group hardly a pair of two groups is left after that.
        first = np.unique(columns, return_index=True)[1]
        for some in (first, slice(None)):
            ends = np.stack([_roots(root, rows[some]), _roots(root, columns[some])])
            for i, j in np.unique(ends[:, ends[0] != ends[1]], axis=1).T:
                low, high = sorted((find(int(i)), find(int(j))))
                root[high] = low
    return [int(i) for i in _roots(root, np.arange(len(hashes)))]


def first_alike(hashes: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(N,) for each hash (32 bytes) the place of the first one of `others` that differs from it by at most ALIKE bits,
    mirrored or not; -1 where none does. A second and a half for 2,500 against 47,500."""
    own, found = _signs(hashes), np.full(len(hashes), -1)
    for start in range(0, len(others), _BLOCK):
        near = _near(own, _signs(others[start : start + _BLOCK]))
        new = near.any(axis=1) & (found < 0)
        found[new] = start + near[new].argmax(axis=1)
    return found


def _roots(root: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.int64]:
    while not np.array_equal(found := root[indices], indices):
        indices = found
    return indices


def _pairs(hashes: Sequence[str]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(i, j) with i < j of hashes that are alike, a block of i after the other, ordered by i."""
    even, odd = _signs(np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(-1, _BITS * _BITS // 8))
    for start in range(0, len(hashes), _BLOCK):
        own = slice(start, start + _BLOCK)
        rows, columns = np.nonzero(_near((even[own], odd[own]), (even[start:], odd[start:])))
        later = rows < columns
        yield rows[later] + start, columns[later] + start


def _signs(hashes: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The bits of even and of odd horizontal frequencies, (N, 128) each, as 1 and -1."""
    signs = np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1
    return np.ascontiguousarray(signs[:, ::2]), np.ascontiguousarray(signs[:, 1::2])


def _near(
    ones: tuple[NDArray[np.float32], NDArray[np.float32]], others: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> NDArray[np.bool_]:
    """(N, M) whether each of `ones` and each of `others`, as `_signs` gives them, are alike."""
    # In a mirrored picture the odd horizontal frequencies change their sign, and but for the median their bits.
    same: NDArray[np.float32] = ones[0] @ others[0].T + np.abs(ones[1] @ others[1].T)  # bits alike minus others
    return same >= _BITS * _BITS - 2 * ALIKE

"""The cached latents and captions that a U-Net trains on, memory-mapped."""

import json
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ldmkit.errors import LdmkitError
from ldmkit.recipe.sections import Latents
from ldmkit.run.files import check, remedy
from ldmkit.run.networks import latent_statistics, read_buckets
from ldmkit.run.randomness import numpy_generator

FILES = ("mask.npy", "index.npy", "captions.json", "ids.npy", "states.npy", "offsets.npy")
"""of `text/`, `states.npy` and `offsets.npy` where the encoder is frozen"""
CHUNK = 65_536
"""captions whose tokens are counted at a time"""


class LatentSet:
    """Posterior means and stds on disk, handed out as normalised latents."""

    def __init__(self, folder: Path, options: Latents, seed: int) -> None:
        check(*(folder / name for name in ("mean.npy", "std.npy", "pictures.json")))
        self.mean = open_mapped(folder / "mean.npy")  # (N, F, C, h, w), or flat and bucket by bucket
        self.std = open_mapped(folder / "std.npy")
        self.folder = folder
        self.options = options
        self.seed = seed
        channel_mean, channel_std = latent_statistics(folder, options)
        self.channel_mean = channel_mean[:, None, None]
        self.channel_std = channel_std[:, None, None]
        found = read_buckets(folder)
        self.buckets = np.zeros(len(self.mean), np.int64) if found is None else np.array(found["buckets"], np.int64)
        """(N,) of each picture; those of `data.size` have 0"""
        self._rows = np.arange(len(self.buckets))
        self._by_bucket = [(self.mean, self.std)]
        if found is not None:
            self._by_bucket = list(self._apart(found["shapes"], len(channel_mean)))

    def _apart(self, shapes: list[tuple[int, int]], channels: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Mean and std (N, F, C, h, w) of each bucket, out of the flat files."""
        counts = np.bincount(self.buckets, minlength=len(shapes))
        places = counts * np.prod(shapes, axis=1) * channels
        copies, end = len(self.mean) // int(places.sum()), 0
        for bucket, (height, width) in enumerate(shapes):
            self._rows[self.buckets == bucket] = np.arange(counts[bucket])
            own = slice(end, end := end + copies * int(places[bucket]))
            shape = (counts[bucket], copies, channels, height, width)
            yield self.mean[own].reshape(shape), self.std[own].reshape(shape)

    def __len__(self) -> int:
        return len(self.buckets)

    def names(self, indices: np.ndarray) -> list[str]:
        """The pictures' names, read when a message needs them: those of a million take 120 MB of memory."""
        every = _json_list(self.folder / "pictures.json")
        return [every[i] for i in indices]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture of `data.size`."""
        return self.shape_of(0)

    @property
    def copies(self) -> int:
        """2 with the mirrored copy, else 1."""
        return int(self._by_bucket[0][0].shape[1])

    def shape_of(self, bucket: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture in this bucket."""
        _, _, channels, height, width = self._by_bucket[bucket][0].shape
        return channels, height, width

    def batch(self, indices: np.ndarray, mirrored: np.ndarray, noise: torch.Tensor | None) -> torch.Tensor:
        """(B, C, h, w) float32 normalised latents of these pictures, all of one bucket; on the device of `noise`, or
        else the CPU.

        `noise` (B, C, h, w) draws from the posterior; without it, its mean is taken.
        """
        (bucket,) = np.unique(self.buckets[indices])
        means, stds = self._by_bucket[bucket]
        rows, copies = self._rows[indices], np.where(mirrored, self.copies - 1, 0)
        mean = torch.from_numpy(means[rows, copies].astype(np.float32))
        device = torch.device("cpu") if noise is None else noise.device
        z = mean.to(device, non_blocking=True)
        if self.options.draw == "each_step" and noise is not None:
            z = z + torch.from_numpy(stds[rows, copies].astype(np.float32)).to(device) * noise
        elif self.options.draw == "once":
            # One draw for each picture and copy, the same whenever it is asked for.
            draws = [
                numpy_generator(self.seed, "latent-once", int(i) * 2 + int(copy)).standard_normal(mean.shape[1:])
                for i, copy in zip(indices, copies, strict=True)
            ]
            std = torch.from_numpy((stds[rows, copies] * np.stack(draws)).astype(np.float32))
            z = z + std.to(device)
        return (z - self.channel_mean.to(device)) / self.channel_std.to(device)


class TextSet:
    """Each picture's captions as token ids or cached states; caption 0 is the empty one."""

    def __init__(self, folder: Path, *, cut_padding: bool = False) -> None:
        """`cut_padding`: batches end with their longest caption, and not all at the same length L.

        For whoever masks padding and takes any length, which saves the work on it; states that are cached without
        their padding come with zeros in its place otherwise.
        """
        check(*(folder / name for name in FILES))
        self.cut_padding = cut_padding
        self.mask = open_mapped(folder / "mask.npy")  # (U, L)
        self.numbers = np.array(open_mapped(folder / "index.npy"))
        """(N, K) of each picture's captions, -1 behind its last"""
        self.numbers = self.numbers.reshape(len(self.numbers), -1)
        self.index = self.numbers[:, 0]
        """(N,) of its first caption, -1 for none"""
        self.captions: list[str] = _json_list(folder / "captions.json")
        self.offsets: np.ndarray | None = None
        if (folder / "states.npy").is_file():
            self.texts = open_mapped(folder / "states.npy")  # (S, D)
            self.offsets = open_mapped(folder / "offsets.npy")  # (U + 1,)
        else:
            self.texts = open_mapped(folder / "ids.npy")  # (U, L)

    def draw(self, pictures: np.ndarray, u: np.ndarray) -> np.ndarray:
        """(B,) one of each picture's captions, by `u` (B,) in [0, 1); all are equally likely."""
        numbers = self.numbers[pictures]
        drawn: np.ndarray = numbers[np.arange(len(pictures)), (u * (numbers >= 0).sum(axis=1)).astype(np.int64)]
        return drawn

    def token_counts(self, pictures: np.ndarray, vocab_size: int) -> np.ndarray:
        """(vocab_size,) int64: how often each token stands in these pictures' captions and the empty one, of ids."""
        numbers, times = np.unique(self.numbers[pictures], return_counts=True)
        known = numbers >= 0
        captions, times = np.append(numbers[known], 0), np.append(times[known], 1)
        counts = np.zeros(vocab_size, np.int64)
        for first in range(0, len(captions), CHUNK):
            part = slice(first, first + CHUNK)
            ids = np.array(self.texts[captions[part]])
            np.add.at(counts, ids, times[part, None])
        return counts

    def batch(self, captions: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (B, L) int64 or states (B, L, D) float32, and mask (B, L) int64, of these captions by number."""
        mask = np.array(self.mask[captions], dtype=np.int64)
        if self.cut_padding:
            mask = mask[:, : real_lengths(mask).max()]
        length = mask.shape[1]
        if self.offsets is None:
            texts = np.array(self.texts[captions, :length], dtype=np.int64)
        else:
            texts = np.zeros((len(captions), length, self.texts.shape[1]), dtype=np.float32)
            for row, first, end in zip(texts, self.offsets[captions], self.offsets[captions + 1], strict=True):
                row[: end - first] = self.texts[first:end][:length]
        return torch.from_numpy(texts).to(device), torch.from_numpy(mask).to(device)


def _json_list(file: Path) -> list[str]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise LdmkitError(f"{file}: missing or damaged; {remedy(file.parent)}")
    return found


def open_mapped(file: Path) -> np.ndarray:
    """The array of an .npy file, memory-mapped for reading in any order. Raises LdmkitError where it is none."""
    try:
        array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise LdmkitError(f"{file}: no array that can be read: {error}; run `ldmkit encode RECIPE --again`") from None
    # Without it the system reads the neighbours of each row as well: 600 times as long for a batch out of a million.
    if hasattr(mmap, "MADV_RANDOM") and isinstance(array.base, mmap.mmap):
        array.base.madvise(mmap.MADV_RANDOM)
    return array


def real_lengths(mask: np.ndarray) -> np.ndarray:
    """(U,) tokens of each caption up to its last real one, at least 1; `mask` (U, L), 1 = token."""
    last = mask.shape[1] - np.argmax(mask[:, ::-1] != 0, axis=1)
    return np.where(mask.any(axis=1), last, 1)

"""Who encodes which batches, how far each process is, and what all of them have done: no one waits before the end."""

import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.state import PartialState

from ldmkit.caches.quality import LatentMoments
from ldmkit.caches.shards import ShardedArrays, read_progress, write_progress
from ldmkit.data.buckets import of_one_bucket
from ldmkit.run.files import read_sealed, write_sealed


class Share:
    """One process's part of the latents: of N processes every N-th batch.

    One alone counts in `progress.json`. Of several each counts in `share-RANK.json` its batches that are safe, and
    keeps the sums of each (see `LatentMoments`) in `share-RANK.bin`, for `gather` to add up as one process would.
    """

    def __init__(self, shards: ShardedArrays, team: PartialState, channels: int, batch: int) -> None:
        self.shards = shards
        self.rank, self.count = team.process_index, team.num_processes
        self.first: int = shards.memory.get("pictures", shards.done)
        """the picture, in the order of the latents, that nobody has encoded yet"""
        self._facts = {"of": self.count, "first": self.first, "batch": batch}
        self._done = self._crc32 = 0
        self._moments = LatentMoments(channels, shards.memory.get("moments"))
        self._sums: list[np.ndarray] = []

    def append(self, row: int, mean: np.ndarray, std: np.ndarray, *, flat: bool) -> None:
        """A batch's mean and std, (B, F, C, h, w) each, to be written from this row on; `flat`: a number is a row."""
        moments = LatentMoments(mean.shape[2])
        moments.add(mean, std)
        self._sums.append(moments.sums)
        self.shards.seek(row)
        self.shards.append(mean=mean.ravel() if flat else mean, std=std.ravel() if flat else std)

    def save(self, pictures: int) -> None:
        """Ends a shard; `pictures`: how many there are so far of a process that is alone."""
        if self.count == 1:
            for sums in self._sums:
                self._moments.sums += sums
            self.shards.save({"moments": self._moments.sums.tolist(), "pictures": pictures})
        else:
            self.shards.sync()
            data = np.stack(self._sums).tobytes()
            with (self.shards.folder / f"share-{self.rank}.bin").open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._done += len(self._sums)
            self._crc32 = zlib.crc32(data, self._crc32)
            facts = {**self._facts, "done": self._done, "crc32": self._crc32}
            write_sealed(self.shards.folder / f"share-{self.rank}.json", facts)
        self._sums = []


def gather(folder: Path, channels: int, buckets: np.ndarray, rows: np.ndarray) -> LatentMoments:
    """Counts into `progress.json` what several processes have done, up to the first batch that one of them lacks.

    `buckets` (N,) of the pictures in the order of the latents, `rows` (N + 1,) where each one's begin and all end.
    For the first process while nobody writes. Returns the sums of what is done.
    """
    done, memory = read_progress(folder)
    first, moments = memory.get("pictures", done), LatentMoments(channels, memory.get("moments"))
    shares: dict[int, tuple[dict[str, Any], np.ndarray]] = {}
    for file in folder.glob("share-*.json"):
        with suppress(OSError, ValueError):  # a damaged one: its batches are encoded again
            share, data = read_sealed(file), file.with_suffix(".bin").read_bytes()
            data = data[: share["done"] * moments.sums.nbytes]  # behind it what was not safe yet
            if share["first"] == first and share["crc32"] == zlib.crc32(data):
                shares[int(file.stem[6:])] = share, np.frombuffer(data).reshape(-1, *moments.sums.shape)
    if shares:
        facts, _ = next(iter(shares.values()))
        count = facts["of"]
        whole = min(rank + count * (shares[rank][0]["done"] if rank in shares else 0) for rank in range(count))
        batches = of_one_bucket(buckets[first:], facts["batch"])[:whole]
        for number in range(len(batches)):
            moments.sums += shares[number % count][1][number // count]
        first += sum(map(len, batches))
        write_progress(folder, int(rows[first]), {"moments": moments.sums.tolist(), "pictures": first})
    for file in folder.glob("share-*"):
        file.unlink()
    return moments

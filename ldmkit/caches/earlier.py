"""What caches of other pictures hold of the same ones: taken over, and not computed again."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldmkit.caches.shards import read_progress
from ldmkit.components.protocols import Picture
from ldmkit.data.captions import captioners, read_captions
from ldmkit.data.pictures import PictureIndex
from ldmkit.errors import LdmkitError
from ldmkit.report import Reporter
from ldmkit.run.files import check
from ldmkit.run.folder import Part
from ldmkit.run.grow import earlier
from ldmkit.run.networks import BUCKETS


class EarlierLatents:
    """Latents of pictures by their content, from caches that were set aside when the pictures changed."""

    def __init__(self, part: Part, reporter: Reporter) -> None:
        """Looks through what `part` may take over; a damaged cache is left out, and that is said."""
        self.rows: dict[str, tuple[int, int]] = {}
        """SHA-256 of a picture -> (number of the cache, row in it)"""
        self._caches: list[tuple[np.ndarray, np.ndarray]] = []  # mean and std, (N, F, C, h, w)
        try:
            for folder, finished, contents in earlier(part):
                if (folder / BUCKETS).exists():  # flat: no row of it is a picture
                    continue
                files = [folder / f"{name}.npy" for name in ("mean", "std")]
                if finished:
                    check(*files)
                # Of an interrupted one, as far as it would be gone on with.
                safe = len(contents) if finished else read_progress(folder)[0]
                if not safe:
                    continue
                self._caches.append((_rows(files[0], safe), _rows(files[1], safe)))
                for row, content in enumerate([*contents.values()][:safe]):
                    self.rows.setdefault(content, (len(self._caches) - 1, row))
        except (LdmkitError, OSError, ValueError) as error:
            reporter.line(f"encode latents: not taken over: {error}")

    def fill(self, mean: np.ndarray, std: np.ndarray, contents: Sequence[str]) -> None:
        """Writes what is known into (B, F, C, h, w) each; `contents` names the pictures of the B rows."""
        for at, content in enumerate(contents):
            if content in self.rows:
                cache, row = self.rows[content]
                mean[at], std[at] = (array[row] for array in self._caches[cache])


def _rows(file: Path, count: int) -> np.ndarray:
    """The first rows of an .npy file that may end behind them, mapped."""
    with file.open("rb") as opened:
        np.lib.format.read_magic(opened)
        shape, _, dtype = np.lib.format.read_array_header_1_0(opened)
        return np.memmap(file, dtype, "r", opened.tell(), (count, *shape[1:]))


class EarlierCaptions:
    """A captioner that knows what the same one said of the same pictures, or a person corrected since."""

    def __init__(self, part: Part, index: PictureIndex, reporter: Reporter) -> None:
        self.known: dict[str, str] = {}
        now = {entry.key: entry.sha256 for entry in index.entries}
        try:
            for folder, finished, contents in earlier(part):
                file = folder / "captions.jsonl"
                if finished:
                    try:
                        check(file)
                    except LdmkitError:  # as by a correction by hand, which is not to be lost
                        reporter.line(f"caption: {file} was changed since it was written, and is taken over as it is")
                wrote, captions = captioners(file), read_captions(file)
                for key, content in contents.items():
                    if now.get(key) == content and key in captions and wrote.get(key) not in (None, "sidecar"):
                        self.known.setdefault(key, captions[key])
        except (LdmkitError, OSError, ValueError) as error:
            reporter.line(f"caption: not taken over: {error}")
        if self.known:
            reporter.line(
                f"caption: {len(self.known)} of {len(now)} captions taken over, of pictures that are the same"
            )

    def caption(self, pictures: Sequence[Picture]) -> list[str | None]:
        return [self.known.get(picture.key) for picture in pictures]

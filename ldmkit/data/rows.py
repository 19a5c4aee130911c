"""What was read of each picture, in columns."""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from ldmkit.data.columns import Bytes, Names, Positions
from ldmkit.data.looks import LEVELS, Look

_SIDES = [("width", "<i4"), ("height", "<i4")]
_FILE = np.dtype([("size", "<i8"), ("mtime_ns", "<i8"), *_SIDES, ("text", "<i4"), ("good", "?")])
_SHARP = ("sharpness", "<f8", len(LEVELS))
_LOOK = np.dtype([("there", "?"), ("whole", "?"), ("phash", "u1", 32), ("contrast", "<i4"), _SHARP])
_PACK_FILE, _PACK_LOOK = struct.Struct("<qqiii?").pack, struct.Struct(f"<??32si{len(LEVELS)}d").pack
_AT_ONCE = 2**12


@dataclass(frozen=True)
class Entry:
    """One good picture."""

    key: str
    """path relative to the folder, with ending, `/`-separated; bytes that are no UTF-8 as surrogates (PEP 383)"""
    sha256: str
    """of the file's bytes, hexadecimal"""
    width: int
    """pixels, upright"""
    height: int
    """pixels, upright"""
    size: int
    """bytes"""
    mtime_ns: int
    """time of the last change, nanoseconds"""
    note: str | None = None
    """what of the file is lost or taken on trust, as frames after the first"""
    look: Look | None = None
    """None where it was read by an ldmkit that did not look"""


@dataclass(frozen=True, eq=False)
class Rows:
    """One for each file, each an `Entry` made when it is asked for, or the reason why it cannot be used."""

    names: Names
    texts: list[str]
    """notes and reasons"""
    files: NDArray[np.void]
    """size, mtime_ns, width, height, the text's number or -1, whether it is an `Entry`"""
    sha256: Bytes
    """(N, 32)"""
    looks: NDArray[np.void]
    """none where no picture has one; `whole` where sharpness was measured"""

    @classmethod
    def of(cls, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> "Rows":
        """Of (key, {size, mtime_ns and reason, or width, height, sha256, note, maybe look}).

        Raises ValueError or struct.error where something is out of its range.
        """
        names, sha256, files, looks, any_look = list[str](), bytearray(), bytearray(), bytearray(), False
        texts: dict[str, int] = {}
        for key, row in rows:
            if "\0" in key:
                raise ValueError("a name with a NUL")
            text, good, look = row.get("reason", row.get("note")), "reason" not in row, row.get("look")
            code = -1 if text is None else texts.setdefault(text, len(texts))
            names.append(key)
            files += _PACK_FILE(row["size"], row["mtime_ns"], row.get("width", 0), row.get("height", 0), code, good)
            sha256 += bytes.fromhex(row.get("sha256", "00" * 32))
            phash, contrast, measured = look or ("", 0, None)
            sharpness = (*(measured or ()), *[np.nan] * (len(LEVELS) - len(measured or ())))
            looks += _PACK_LOOK(look is not None, measured is not None, bytes.fromhex(phash), contrast, *sharpness)
            any_look |= look is not None
        columns = {"files": files, "sha256": sha256, "looks": looks if any_look else b"", "texts": _json([*texts])}
        made = {name: np.frombuffer(column, np.uint8) for name, column in columns.items()}
        return cls.from_columns(made | {"names": Names.of(names).blob})

    @classmethod
    def from_columns(cls, columns: Mapping[str, Bytes]) -> "Rows":
        """Of what `columns` gives. Raises KeyError or ValueError where it is something else."""
        files, looks, sha256 = columns["files"].view(_FILE), columns["looks"].view(_LOOK), columns["sha256"]
        made = cls(
            Names(columns["names"]), json.loads(columns["texts"].tobytes()), files, sha256.reshape(-1, 32), looks
        )
        if not len(made) == len(files) == len(made.sha256) or len(looks) not in (0, len(made)):
            raise ValueError("columns of several lengths")
        if not all(isinstance(text, str) for text in made.texts) or files["text"].max(initial=-1) >= len(made.texts):
            raise ValueError("no text where one is named")
        return made

    def columns(self) -> dict[str, NDArray[Any]]:
        """All of it in arrays."""
        texts = np.frombuffer(_json(self.texts), np.uint8)
        names = {"names": self.names.blob, "texts": texts}
        return names | {"files": self.files, "sha256": self.sha256, "looks": self.looks}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: SupportsIndex) -> Entry:
        i = range(len(self))[index]
        return next(self._entries(i, i + 1, [self.names[i]]))

    def __iter__(self) -> Iterator[Entry]:
        names = iter(self.names)
        for i in range(0, len(self), _AT_ONCE):
            yield from self._entries(i, min(i + _AT_ONCE, len(self)), names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and len(self) == len(other) and all(map(Entry.__eq__, self, other))

    def _entries(self, begin: int, end: int, names: Iterable[str]) -> Iterator[Entry]:
        looks = self.looks[begin:end] if len(self.looks) else [None] * (end - begin)
        rows = zip(self.files[begin:end].tolist(), self.sha256[begin:end], looks, names, strict=False)
        for (size, mtime_ns, width, height, text, good), sha256, look, key in rows:
            assert good, key
            note, seen = None if text < 0 else self.texts[text], None
            if look is not None and look["there"]:
                sharpness = look["sharpness"]
                measured = (*sharpness[~np.isnan(sharpness)].tolist(),) if look["whole"] else None
                seen = Look(look["phash"].tobytes().hex(), int(look["contrast"]), measured)
            yield Entry(key, sha256.tobytes().hex(), width, height, size, mtime_ns, note, seen)

    def reasons(self) -> list[tuple[str, str]]:
        """(key, reason) of each that is no `Entry`."""
        bad = np.flatnonzero(~self.files["good"])
        return [(self.names[i], self.texts[self.files["text"][i]]) for i in bad]

    def lacks_look(self) -> NDArray[np.bool_]:
        """(N,) whether it is an `Entry` without a whole one."""
        good: NDArray[np.bool_] = self.files["good"]
        return good & ~self.looks["whole"] if len(self.looks) else good

    def take(self, positions: Positions) -> "Rows":
        """Those at `positions`, in that order."""
        if np.array_equal(positions, np.arange(len(self))):
            return self
        files, looks = self.files[positions], self.looks[positions] if len(self.looks) else self.looks
        told = files["text"] >= 0
        used, files["text"][told] = np.unique(files["text"][told], return_inverse=True)
        return Rows(self.names.take(positions), [self.texts[i] for i in used], files, self.sha256[positions], looks)

    def __add__(self, other: "Rows") -> "Rows":
        if not len(self) or not len(other):
            return self if len(self) else other
        files = np.concatenate([self.files, other.files])
        files["text"][len(self) :][other.files["text"] >= 0] += len(self.texts)
        looks = [rows.looks if len(rows.looks) else np.zeros(len(rows), _LOOK) for rows in (self, other)]
        none = not len(self.looks) and not len(other.looks)
        return Rows(
            Names(np.concatenate([self.names.blob, other.names.blob])),
            self.texts + other.texts,
            files,
            np.concatenate([self.sha256, other.sha256]),
            self.looks if none else np.concatenate(looks),
        )


def _json(texts: list[str]) -> bytes:
    return json.dumps(texts).encode("ascii")

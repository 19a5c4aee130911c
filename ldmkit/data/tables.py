"""Parquet files and what `datasets.save_to_disk` writes, read with pyarrow.

Neither can be read picture by picture: a row costs its whole row group. So a table is copied once into the cache, as a
tar of `ROW.jpg` and `ROW.json`, the other columns, and read like any tar.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmkit.data.archives import MAX_RATIO, open_archive, write_tar
from ldmkit.data.cache import made_once
from ldmkit.data.kinds import HEAD, kind
from ldmkit.data.members import Archive
from ldmkit.errors import LdmkitError

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = (".parquet", ".arrow")
_OTHERS = ".not-read"
_BATCH = 32
"""rows in memory at once, beside what pyarrow keeps of a row group"""


class NoPictures(LdmkitError):
    """A table of something else."""


def is_table(name: str) -> bool:
    """By its ending; metadata.parquet holds captions, and the library `datasets` leaves results in cache-*.arrow."""
    return name.lower().endswith(ENDINGS) and name != "metadata.parquet" and not name.startswith("cache-")


def open_table(path: Path) -> Archive:
    """The tar in the cache. Raises LdmkitError where the file is no table of pictures, or pyarrow is not there."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise LdmkitError(f"{path}: tables are read with pyarrow: pip install 'ldmkit[hub]'") from error
    try:
        tar = made_once("tables-2", path, lambda tar: write_tar(tar, _files(path)))
    except (pa.ArrowException, OSError) as error:
        raise LdmkitError(f"{path}: not a table that can be read: {str(error).splitlines()[0].rstrip('.')}") from error
    archive = open_archive(tar)
    archive.mtime_ns = path.stat().st_mtime_ns
    if _OTHERS in archive.members:
        archive.said.append(archive.read(_OTHERS, 2**16).decode())
    return archive


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each picture and of its row's other columns."""
    columns, number, written = list[str](), 0, 0
    most = MAX_RATIO * path.stat().st_size
    for batch in _batches(path):
        columns = columns or _picture_columns(batch, path)
        column = columns[0]
        for row in batch.to_pylist():
            value = row.pop(column)
            data = value.get("bytes") if isinstance(value, dict) else value
            data = data or b""  # as where a table only names files: an empty one is refused with the others
            written += len(data)
            if written > most:
                raise LdmkitError(f"{path}: would unpack to more than {MAX_RATIO} times its size")
            others = {key: cell for key, cell in row.items() if _is_kept(cell)}
            yield f"{number:08}.{_ending(data)}", data
            yield f"{number:08}.json", json.dumps(others).encode()
            number += 1
    if columns[1:]:
        yield _OTHERS, f"pictures are read from its column {column} and not from {', '.join(columns[1:])}".encode()


def _is_kept(cell: Any) -> bool:
    """Plain values, and lists of texts, which several captions of a picture are."""
    return isinstance(cell, str | int | float | None) or (
        isinstance(cell, list) and all(isinstance(value, str) for value in cell)
    )


def _batches(path: Path) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa
    from pyarrow import parquet

    if path.suffix.lower() == ".parquet":
        with parquet.ParquetFile(path) as table:
            groups = (table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups))
            if max(groups, default=0) > MAX_RATIO * path.stat().st_size:  # which pyarrow takes at once
                raise LdmkitError(f"{path}: would unpack to more than {MAX_RATIO} times its size")
            yield from table.iter_batches(batch_size=_BATCH)
        return
    with pa.memory_map(str(path)) as file:
        try:
            batches: Any = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:
            opened = pa.ipc.open_file(file)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
        for batch in batches:
            yield from (batch.slice(start, _BATCH) for start in range(0, batch.num_rows, _BATCH))


def _picture_columns(batch: "pa.RecordBatch", path: Path) -> list[str]:
    """Those whose bytes begin like a picture, as they are or, by `datasets`, as {bytes, path}."""
    import pyarrow as pa

    found = []
    for column in batch.schema.names:
        kind_of = batch.schema.field(column).type
        if pa.types.is_struct(kind_of) and kind_of.get_field_index("bytes") >= 0:
            cells = batch.column(column).field("bytes").drop_null()
        elif pa.types.is_binary(kind_of) or pa.types.is_large_binary(kind_of):
            cells = batch.column(column).drop_null()
        else:
            continue
        if len(cells) and kind(cells[0].as_py()[:HEAD])[1]:
            found.append(column)
    if not found:
        names = ", ".join(batch.schema.names)
        raise NoPictures(f"{path}: no column of it holds pictures' bytes; its columns are: {names}")
    return found


def _ending(data: bytes) -> str:
    name, is_picture = kind(data[:HEAD])
    endings = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "TIFF": "tif", "WEBP": "webp", "AVIF": "avif"}
    return endings.get(name or "", "jpg") if is_picture else "jpg"

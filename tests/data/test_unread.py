"""What lies in a folder beside its pictures is read, or named."""

import io
import os

import pytest
from PIL import Image, features

from ldmkit.data.pictures import scan
from ldmkit.errors import LdmkitError

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"  # ISO/IEC 23008-12: the file type box of an iPhone


def picture(file_format: str = "JPEG", color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(file, file_format)
    return file.getvalue()


def test_other_endings_of_the_formats_are_read(tmp_path):
    for ending, file_format in (("jfif", "JPEG"), ("JPE", "JPEG"), ("mpo", "MPO"), ("apng", "PNG")):
        (tmp_path / f"a.{ending}").write_bytes(picture(file_format))
    assert {entry.key for entry in scan(tmp_path).entries} == {"a.jfif", "a.JPE", "a.mpo", "a.apng"}


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read_under_any_name(tmp_path):
    for name in ("a.avif", "b.jpg"):
        (tmp_path / name).write_bytes(picture("AVIF"))
    assert len(scan(tmp_path)) == 2


def test_files_that_are_not_read_are_counted_and_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture())
    for name in ("download", "tweet.jpg_large", "x.jpg?w=1024", "y.jpg?w=1024"):
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "video.MOV").write_bytes(b"\0\0\0\x14ftypqt  ")
    (tmp_path / "comic.cbz").write_bytes(b"PK\x03\x04")
    (tmp_path / "a.txt").write_text("a caption")
    index = scan(tmp_path)
    assert set(index.unread) == {
        "2 with .jpg?w=1024",
        "1 with no ending",
        "1 with .jpg_large",
        "1 with .MOV",
        "1 with .cbz",
        "comic.cbz: by its first bytes zip archive; unpack it",
        *(
            f"{name}: by its first bytes JPEG"
            for name in ("download", "tweet.jpg_large", "x.jpg?w=1024", "y.jpg?w=1024")
        ),
    }
    assert "  1 with .MOV" in index.summary()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer; git lfs pull"),
        (b"\r\n<!DOCTYPE html><title>403</title>", "HTML page"),
        (b"%PDF-1.7", "PDF"),
        (b"\xff\x0a\0\0", "JPEG XL; convert it"),
        (b"8BPS\0\1", "Photoshop document"),
        (b"Rar!\x1a\x07", "RAR archive; unpack it"),
        (b"\x28\xb5\x2f\xfd\0", "Zstandard file"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(data, said, tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / "b.jpg").write_bytes(data)
    ((_, reason),) = scan(tmp_path, max_bad=1).rejected
    assert said in reason


def test_thumbnails_and_recycle_bins_are_left_out_and_named(tmp_path):
    names = ("@eaDir/a.jpg", "#recycle", "$RECYCLE.BIN/S-1-5", "lost+found", "sub/__MACOSX", "sub/#snapshot")
    for name in (*names, "sub"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "a.jpg").write_bytes(picture())
    index = scan(tmp_path)
    assert [entry.key for entry in index.entries] == ["sub/a.jpg"]
    assert len(index.unread) == 6


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_stops_the_run(tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(LdmkitError, match=r"data\.path: .*locked cannot be read"):
        scan(tmp_path)

"""What a file is by its first bytes, whatever its name says."""

# Captions and system files, of which nobody expects a picture.
BESIDE = frozenset({".txt", ".caption", ".json", ".jsonl", ".csv", ".db", ".ini", ".md", ".toml"})
HEAD = 512
"""bytes that `kind` looks at"""
_HEIC = 'HEIC; convert it, or pip install "ldmkit[heif]"'
_PICTURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\xff\x0a", "JPEG XL; convert it"),
    (b"\0\0\0\x0cJXL ", "JPEG XL; convert it"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000; convert it"),
    (b"8BPS", "Photoshop document; convert it"),
)
_OTHERS = (
    (b"version https://git-lfs", "Git LFS pointer; git lfs pull brings the picture"),
    (b"<svg", "SVG"),
    (b"<!doctype html", "HTML page"),
    (b"<html", "HTML page"),
    (b"%pdf", "PDF"),
    (b"pk\x03\x04", "zip archive; unpack it"),
    (b"rar!", "RAR archive; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive; unpack it"),
    (b"\x1f\x8b", "gzip file; unpack it"),
    (b"(\xb5/\xfd", "Zstandard file; unpack it"),
    (b"par1", "Parquet file; unpack its pictures"),
    (b"arrow1", "Arrow file; unpack its pictures"),
)
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys((b"heic", b"heix", b"heim", b"hevc", b"mif1"), _HEIC)


def kind(head: bytes) -> tuple[str | None, bool]:
    """(what the file is, or None where nothing is known; whether that is a picture)."""
    for start, name in _PICTURES:
        if head.startswith(start):
            return name, True
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        # Which of the two `mif1` stands for, the brands after it say (ISO/IEC 23008-12).
        return ("AVIF" if b"avif" in head[8:64] else _BRANDS[head[8:12]]), True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP", True
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, name in _OTHERS:
        if text.startswith(start):
            return name, False
    if head[257:262] == b"ustar":
        return "tar archive; unpack it", False
    return None, False

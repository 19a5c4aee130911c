"""The fuzz targets on a few inputs each, the same every time; `python -m fuzz` takes others and more."""

import pytest
from hypothesis import HealthCheck, given, settings

from fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str) -> None:
    target = TARGETS[name]
    few = settings(
        max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    few(given(target.inputs)(target.check))()


# What fuzzing and the corpus found once: each let something else out than LdmkitError.
FOUND = {
    "recipe": [
        b"plugins = ['~nosuchuser/x.py']",
        b"[" + b"a." * 2000 + b"a]\n",
        b"[data]\npath = 'a\\u0000'",
        b"plugins = ['\\u0000']",
    ],
    "override": [b"plugins=['~nosuchuser/x.py']", b"data.path=\xff", b"plugins=[3]"],
    "captions": [
        b"[" * 100_000,
        b'{"file_name": "a.jpg", "text": "\\ud800"}',
        b"9" * 5000,
        b'{"file": [], "caption": ""}\n\n',
    ],
    "manifest": [b"[" * 100_000, b"{}", b"9" * 5000],
    "tokenizer": [b"[" * 100_000, b"{}", b"9" * 5000, b"\xff"],
    "picture": [b"", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8L"],
    "archive": [b"", b"PK\5\6" + bytes(18), b"PK\1\2" + bytes(42) + b"PK\5\6" + bytes(8) + b"\1\0.\0\0\0\0\0\0\0"],
}


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, found in FOUND.items() for data in found])
def test_what_was_found(name: str, data: bytes) -> None:
    TARGETS[name].check(data)

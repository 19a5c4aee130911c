"""The fuzz targets on a few inputs each, the same every time; `python -m fuzz` takes others and more."""

import io
import json
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

from fuzz.targets import TARGETS
from ldmkit.runtime.tokenizer import read_tokenizer


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str) -> None:
    target = TARGETS[name]
    few = settings(
        max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    few(given(target.inputs)(target.check))()


def _nameless() -> bytes:
    """A zip whose only member is called NUL."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("Q", b"")
    return buffer.getvalue().replace(b"Q", b"\0")


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
    "graph": [b"", b"\x3a\x05\x0a", b"ORTMORTM", b"\x3a\x06\x2a\x04\x6a\x09\x0a\x01"],
    "tokenizer": [b"[" * 100_000, b"{}", b"9" * 5000, b"\xff"],
    "picture": [b"", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8L"],
    "archive": [
        _nameless(),
        b"",
        b"PK\5\6" + bytes(18),
        b"PK\1\2" + bytes(42) + b"PK\5\6" + bytes(8) + b"\1\0.\0\0\0\0\0\0\0",
    ],
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(name: str) -> None:
    for data in FOUND[name]:
        TARGETS[name].check(data)


def test_a_template_of_tokens_that_are_not_there_is_refused() -> None:
    """The library takes such a tokenizer, and panics over the first text."""
    tokenizer = Tokenizer(WordLevel({"a": 0, "[end]": 1}, unk_token="a"))
    tokenizer.post_processor = TemplateProcessing(single="$A [end]", special_tokens=[("[end]", 1)])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    table = json.loads(tokenizer.to_str())
    assert read_tokenizer(json.dumps(table).encode(), 8).encode("a").ids[:2] == [0, 1]
    table["post_processor"]["special_tokens"] = {}
    with pytest.raises(ValueError, match="no entry found for key"):
        read_tokenizer(json.dumps(table).encode(), 8)

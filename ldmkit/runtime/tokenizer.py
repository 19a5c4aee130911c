"""The tokenizer of a bundle: a stranger's JSON, which the library that reads it would let grow beyond all memory."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_BYTES = 64 << 20
MAX_TOKENS = 65_536
MAX_GROWTH = 2_000
"""times that the steps before the vocabulary may make a text longer, all together"""
# The most that one character becomes: of Unicode's compatibility forms U+FDFA, 18; of UTF-8 and so of ByteLevel, 4.
_GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Precompiled": 18, "Lowercase": 3, "ByteLevel": 4}
_GROWTH |= {"BertNormalizer": 4, "Nmt": 1}


def read_tokenizer(data: bytes, max_tokens: int) -> "Tokenizer":
    """The tokenizer of a `tokenizer.json`, which must pad and cut to `max_tokens`. Raises ValueError where it is none,
    or would need memory without end."""
    from tokenizers import Tokenizer

    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
    try:
        table = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(table, dict):
        raise ValueError("not a JSON object")
    if max_tokens > MAX_TOKENS:
        raise ValueError(f"{max_tokens} tokens, more than {MAX_TOKENS}")
    padding, truncation = table.get("padding"), table.get("truncation")
    if not isinstance(truncation, dict) or truncation.get("max_length") != max_tokens:
        raise ValueError(f"it must cut texts to {max_tokens} tokens")
    if not isinstance(padding, dict) or padding.get("strategy") != {"Fixed": max_tokens}:
        raise ValueError(f"it must pad texts to {max_tokens} tokens")
    if padding.get("pad_to_multiple_of") is not None:
        raise ValueError("it must not pad to a multiple")
    growth = 1
    for step in _steps([table.get("normalizer"), table.get("pre_tokenizer")]):
        replacement = step.get("content", step.get("replacement", ""))
        longer = len(replacement) + 1 if isinstance(replacement, str) and replacement else 1
        growth *= max(longer, _GROWTH.get(str(step.get("type")), 1))
    if growth > MAX_GROWTH:
        raise ValueError("its normalizer or pre_tokenizer could make a text thousands of times longer")
    try:
        tokenizer = Tokenizer.from_str(data.decode())
        tokenizer.encode("a")  # a template may name tokens that it does not have, over which the library panics
    except (KeyboardInterrupt, MemoryError, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and its panics are not even that
        raise ValueError(str(error)) from None
    return tokenizer


def _steps(parts: list[Any]) -> Iterator[dict[str, Any]]:
    """Each object within that has a type: the steps, those within a Sequence too."""
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if "type" in part:
                yield part
            parts += part.values()
        elif isinstance(part, list):
            parts += part

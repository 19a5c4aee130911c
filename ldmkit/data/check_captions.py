"""What is wrong with the captions beside a set of pictures."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ldmkit.components.protocols import Files, TextEncoder
from ldmkit.data.captions import captions_of, shown
from ldmkit.data.check import Check, Finding
from ldmkit.errors import LdmkitError
from ldmkit.report import printable

if TYPE_CHECKING:
    from ldmkit.components.registry import Registry
    from ldmkit.recipe import Recipe

BOILERPLATE = 0.5
"""share of the captions that begin alike from which that is called boilerplate"""
BEGINNING = 3
"""words that make a beginning"""
SHARED = 0.01
"""share of the captions that one caption may be before it is named, and at least 2 of them"""


def check_captions(check: Check, recipe: "Recipe", registry: "Registry") -> dict[str, str]:
    """Adds what is found of the captions beside the pictures; returns these captions by key."""
    if recipe.t2i is None:
        check.facts.append("captions: this recipe uses none")
        return {}
    captions = _read(check, registry.build("captioner", _beside(recipe), where="[caption]"), recipe.caption.use)
    if not captions:
        check.facts.append("captions: none beside the pictures")
        return {}
    words = [len(line.split()) for text in captions.values() for line in captions_of(text)]
    empty = f"; {words.count(0)} of them empty" if 0 in words else ""
    check.facts.append(
        f"captions: {len(captions)} of {len(check.index)} pictures have one beside them; words in the shortest "
        f"{min(words)}, in the median {statistics.median(words):g}, in the longest {max(words)}{empty}"
    )
    check.facts += [f"  {printable(key)}: {shown(text)}" for key, text in list(captions.items())[:3]]
    _repeated(check, {key: captions_of(text)[0] for key, text in captions.items()})
    _cut(check, {key: max(captions_of(text), key=len) for key, text in captions.items()}, recipe, registry)
    return captions


def _beside(recipe: "Recipe") -> dict[str, Any]:
    """The captioner that reads them, as the stage `caption` chooses it."""
    return recipe.caption.table() if recipe.caption.use == "sidecar" else {"use": "sidecar"}


def _read(check: Check, captioner: Any, use: str) -> dict[str, str]:
    captions: dict[str, str] = {}
    missing, unreadable, told = [], [], set()
    for picture in check.index.pictures():
        try:  # one after the other: a caption that cannot be read must not hide the next one
            text = captioner.caption([picture])[0]
        except LdmkitError as error:
            if str(error) not in told:
                told.add(str(error))
                files = [_inside(file, check.index.folder) for file in error.files]
                reason = str(error).partition(": " + ", ".join(map(str, error.files)))[0] if files else str(error)
                unreadable += [Finding(file, reason) for file in files or [picture.key]]
            continue
        if text is None:
            other = PurePosixPath(picture.key).with_suffix(".json")
            unread = f"; {other.name} has none that is read" if _is_there(picture.files, str(other)) else ""
            missing.append(Finding(picture.key, f"no caption beside it{unread}"))
        else:
            captions[picture.key] = text
    check.add("caption_unreadable", unreadable)
    if use == "sidecar":
        check.add("caption_missing", missing)
    elif missing:
        check.facts.append(f"captions: the captioner {use} is to write {len(missing)} of them")
    orphans = [line.partition(": ") for line in getattr(captioner, "remarks", list)()]
    check.add("caption_orphaned", (Finding(_inside(Path(file), check.index.folder), why) for file, _, why in orphans))
    return captions


def _is_there(files: Files, key: str) -> bool:
    try:
        return bool(files.read(key, 0))
    except (LdmkitError, OSError):
        return False


def _inside(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)


def _repeated(check: Check, captions: Mapping[str, str]) -> None:
    """The same caption for several, and the same beginning for most."""
    owners: defaultdict[str, list[str]] = defaultdict(list)
    for key, text in captions.items():
        if text:
            owners[text].append(key)
    least = max(2, SHARED * len(captions))
    check.add(
        "caption_repeated",
        (
            Finding(keys[0], f"it and {len(keys) - 1} others: {text}", score=len(keys))
            for text, keys in owners.items()
            if len(keys) >= least
        ),
    )
    texts = {key: text.split() for key, text in captions.items() if text}
    if not texts:
        return
    length, beginning, number = 0, "", 0
    while True:  # the longest beginning that most of them have
        starts = Counter(" ".join(words[: length + 1]) for words in texts.values() if len(words) > length)
        most, count = max(starts.items(), key=lambda item: item[1], default=("", 0))
        if count <= BOILERPLATE * len(texts):
            break
        length, beginning, number = length + 1, most, count
    if length >= BEGINNING and len(owners) > 1:
        first = next(key for key, words in texts.items() if " ".join(words).startswith(beginning))
        check.add("caption_boilerplate", [Finding(first, f"{number} of {len(texts)} begin with: {beginning}")])


def _cut(check: Check, captions: Mapping[str, str], recipe: "Recipe", registry: "Registry") -> None:
    """Captions of which the recipe's text encoder sees a part only."""
    encoder: TextEncoder = registry.build("text_encoder", recipe.text.table(), where="[text]")
    try:
        lost, most = words_cut(captions, encoder), encoder.max_tokens
    except (LdmkitError, ModuleNotFoundError) as error:  # a tokenizer that is not on this machine
        check.facts.append(f"captions: their tokens are not counted, {recipe.text.use} cannot be had: {error}")
        return
    found = (
        Finding(k, f"cut after {most} tokens, without: {rest.strip()}", score=len(rest)) for k, rest in lost.items()
    )
    check.add("caption_cut", found)


def words_cut(captions: Mapping[str, str], encoder: TextEncoder) -> dict[str, str]:
    """By key the end of each caption that this text encoder does not see; LdmkitError where it cannot be had."""
    tokenizer = encoder.build_tokenizer(list(dict.fromkeys(text for text in captions.values() if text)))
    encodings = zip(captions.items(), tokenizer.encode_batch(list(captions.values())), strict=True)
    return {key: text[max(stop for _, stop in e.offsets) :] for (key, text), e in encodings if e.overflowing}

"""What is said of a toy cat: captions that name any of its attributes, from a grammar, as people type them.

A caption is a noun phrase and further phrases. Each attribute that it names takes one form: adjective, "with ...",
"whose ...", place, a clause of its own, or a tag between commas. Only the words that a colour stands with tell what it
is the colour of, never its place in the sentence.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from random import Random
from typing import TypeVar

from ldmkit.data.toy_drawing import ToyCat

T = TypeVar("T")

ATTRIBUTES = ("fur", "coat", "eyes", "background")
SPOKEN: dict[str, tuple[str, ...]] = {
    "orange": ("orange", "orange", "ginger"),
    "grey": ("grey", "grey", "gray"),
    "cream": ("cream", "cream", "beige"),
    "purple": ("purple", "purple", "violet"),
    "plain": ("plain", "plain", "unstriped", "solid"),
    "tabby": ("tabby", "tabby", "striped", "stripy"),
}
"""value -> its words, where it is not its own only one; what stands there twice is taken more often"""
STRIPES: dict[str, tuple[str, ...]] = {
    "plain": ("no stripes", "no stripes", "no stripes at all", "a {coat} coat"),
    "tabby": ("stripes", "stripes", "dark stripes", "a {coat} coat"),
}
BEARING: dict[str, tuple[str, ...]] = {
    "plain": ("without stripes", "without stripes", "without any stripes", "that is not striped"),
    "tabby": ("with stripes", "with stripes", "with a few stripes", "that is striped"),
}
WALLS = ("background", "background", "background", "wall", "backdrop")

OPENINGS = (
    *("a", "a", "a", "a", "", "", "the", "one", "this", "my", "some", "there is a", "here is a", "it's a", "this is a"),
    *(
        "a picture of a",
        "picture of a",
        "a photo of a",
        "photo of one",
        "an image of a",
        "a drawing of a",
        "drawing of a",
    ),
    *("the face of a", "draw a", "draw me a", "show me a", "please draw a", "I want a", "I would like a", "make a"),
)
QUALITIES = (
    *("cute", "cute", "little", "small", "sweet", "lovely", "pretty", "young", "old", "happy", "fluffy"),
    *("funny", "nice", "friendly"),
)
NOUNS = ("cat", "cat", "cat", "cat", "kitten", "kitty", "cat's face", "cat face")
DOINGS = (
    *("looking at the camera", "looking at me", "sitting", "who looks at the camera", "that looks straight ahead"),
    *("seen from the front", "in close-up", "up close", "who is sitting there", "that looks curious"),
)
REMARKS = ("please", "high quality", "simple drawing", "nice light", "soft edges", "thank you", "digital art")

FORMS: dict[str, dict[str, tuple[str, ...]]] = {
    "adjective": {
        "fur": ("{fur}", "{fur}", "{fur}", "{fur}", "{fur}-furred", "{fur} coloured"),
        "coat": ("{coat}",),
        "eyes": ("{eyes}-eyed", "{eyes} eyed"),
    },
    "with": {
        "fur": ("{fur} fur", "{fur} fur", "a {fur} coat", "a {fur} face", "fur that is {fur}", "{fur} coloured fur"),
        "coat": ("{stripes}",),
        "eyes": (
            "{eyes} eyes",
            "{eyes} eyes",
            "{eyes} eyes",
            "big {eyes} eyes",
            "eyes that are {eyes}",
            "eyes in {eyes}",
        ),
    },
    "whose": {
        "fur": ("whose fur is {fur}", "which is {fur}", "that has {fur} fur", "having {fur} fur", "in {fur}"),
        "coat": ("whose coat is {coat}", "which has {stripes}", "that has {stripes}", "{bearing}", "{bearing}"),
        "eyes": ("whose eyes are {eyes}", "which has {eyes} eyes", "that has {eyes} eyes", "having {eyes} eyes"),
    },
    "place": {
        "background": (
            *("on a {background} {wall}", "on a {background} {wall}", "in front of a {background} {wall}"),
            *("in front of a {background} {wall}", "before a {background} {wall}", "against a {background} {wall}"),
            *("with a {background} {wall}", "with a {background} {wall} behind it", "near a {background} {wall}"),
            *(
                "with {background} behind it",
                "on {background}",
                "over a {background} {wall}",
                "at a {background} {wall}",
            ),
            "on a {wall} that is {background}",
        ),
    },
    "clause": {
        "fur": (
            *("its fur is {fur}", "the fur is {fur}", "it is {fur}", "it has {fur} fur", "the cat is {fur}"),
            *(
                "it has a {fur} coat",
                "its face is {fur}",
                "the colour of the fur is {fur}",
            ),
        ),
        "coat": (
            *("it has {stripes}", "its coat is {coat}", "the coat is {coat}", "it is {coat}", "the cat has {stripes}"),
        ),
        "eyes": (
            *("its eyes are {eyes}", "the eyes are {eyes}", "it has {eyes} eyes", "the cat has {eyes} eyes"),
            *("both eyes are {eyes}", "it looks at me with {eyes} eyes", "the colour of the eyes is {eyes}"),
        ),
        "background": (
            *("the {wall} is {background}", "the {wall} is {background}", "its {wall} is {background}"),
            *(
                "the {wall} behind it is {background}",
                "behind it is a {background} {wall}",
                "it has a {background} {wall}",
            ),
            *("everything behind it is {background}", "it sits in front of a {background} {wall}"),
            *("the colour of the {wall} is {background}", "there is a {background} {wall} behind it"),
        ),
    },
    "tag": {
        "fur": ("{fur} fur", "{fur} coat", "{fur}", "fur: {fur}"),
        "coat": ("{stripes}", "{coat}", "coat: {coat}"),
        "eyes": ("{eyes} eyes", "{eyes} eyes", "with {eyes} eyes", "eyes: {eyes}"),
        "background": (
            *("{background} {wall}", "{background} {wall}", "{background} behind it", "a {background} {wall}"),
            "{wall}: {background}",
        ),
    },
}
"""form -> attribute -> its phrases"""
_SHARES = {"adjective": 8, "with": 4, "whose": 2, "place": 8, "clause": 3, "tag": 3}
"""of the forms, where an attribute can take them"""
_ALL_NAMED, _EACH_NAMED = 0.3, 0.55
"""share of captions that name every attribute; by which one of the others names any"""
_SLIPS = 0.06


def named(rng: Random) -> tuple[str, ...]:
    """The attributes that a caption names: any of them, none and all as well."""
    every, kept = rng.random() < _ALL_NAMED, [rng.random() < _EACH_NAMED for _ in range(4)]
    return tuple(name for name, keep in zip(ATTRIBUTES, kept, strict=True) if every or keep)


def caption(cat: ToyCat, names: Sequence[str], rng: Random) -> str:
    """One caption that names these attributes of the cat; typing slips, capitals and stops come and go."""
    text = articles(_sentence(cat, names, rng))
    if rng.random() < _SLIPS:
        text = _slip(text, rng)
    if rng.random() < 0.1:
        text = re.sub(r"\b(an?|the) ", "", text)
    start = rng.random()
    text = text.upper() if start < 0.02 else text[0].upper() + text[1:] if start < 0.35 else text
    return text + "." if rng.random() < 0.15 else text


def _sentence(cat: ToyCat, names: Sequence[str], rng: Random) -> str:
    """The noun phrase and what stands before and after it."""
    found: dict[str, list[str]] = {form: [] for form in FORMS}
    for name in shuffled(rng, names):
        forms = [form for form, phrases in FORMS.items() if name in phrases for _ in range(_SHARES[form])]
        form = pick(rng, forms)
        found[form].append(_fill(pick(rng, FORMS[form][name]), cat, rng))
    if rng.random() < 0.3:
        found["adjective"].insert(int(rng.random() * 1.5), pick(rng, QUALITIES))
    noun = " ".join([*found["adjective"], pick(rng, NOUNS)])
    if found["with"]:
        found["whose"].append("with " + _listed(found["with"], rng))
    if rng.random() < 0.12:
        found["whose"].append(pick(rng, DOINGS))
    subject = f"{pick(rng, OPENINGS)} {noun}".strip()
    before: list[str] = []
    after = shuffled(rng, found["whose"])
    for place in found["place"]:
        (before if rng.random() < 0.25 else after).append(place)
    tags = found["tag"]
    if tags and rng.random() < 0.2:
        before.append(tags.pop())
    for phrase in after:
        subject += pick(rng, (" ", " ", " ", ", ")) + phrase
    clauses = found["clause"]
    if rng.random() < 0.05:
        tags.append(pick(rng, REMARKS))
    rest = [*tags, *clauses] if rng.random() < 0.5 else shuffled(rng, [*tags, *clauses])
    mark = pick(rng, (", ", ", ", ", ", ". ", "; ", " - ", " "))
    text = subject
    for phrase in rest:
        text += (pick(rng, (" and ", ", and ", ", ", ". ")) if phrase in clauses else mark) + phrase
    return pick(rng, (", ", ", ", " ", ": ", ". ")).join([*before, text])


def _fill(phrase: str, cat: ToyCat, rng: Random) -> str:
    """The phrase with the cat's words in its places."""
    for slot, phrases in (("{stripes}", STRIPES), ("{bearing}", BEARING)):
        phrase = phrase.replace(slot, pick(rng, phrases[cat.coat]))
    words = {name: pick(rng, SPOKEN.get(value, (value,))) for name, value in vars(cat).items()}
    return phrase.format(**words, wall=pick(rng, WALLS))


def _listed(phrases: Sequence[str], rng: Random) -> str:
    """One, "one and two", "one, two and three"."""
    joint = pick(rng, (" and ", " and ", ", ", " and with "))
    return joint.join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def _slip(text: str, rng: Random) -> str:
    """A letter of one longer word is left out, doubled, or changes places with the next."""
    words = [match.span() for match in re.finditer(r"[a-z]{4,}", text)]
    start, end = pick(rng, words) if words else (0, 2)
    at = start + 1 + int(rng.random() * (end - start - 2))
    changed = pick(rng, ("", text[at] * 2, text[at + 1] + text[at]))
    return text[:at] + changed + text[at + (2 if len(changed) == 2 and changed[0] != text[at] else 1) :]


def articles(text: str) -> str:
    """`a` as `an` before a vowel."""
    words = text.split(" ")
    for index, (word, following) in enumerate(pairwise(words)):
        if word == "a" and following[0] in "aeiou":
            words[index] = "an"
    return " ".join(words)


def pick(rng: Random, choices: Sequence[T]) -> T:
    """One of the choices, by `rng.random()` alone."""
    return choices[int(rng.random() * len(choices))]


def shuffled(rng: Random, items: Iterable[T]) -> list[T]:
    """The items in another order, by `rng.random()` alone."""
    return sorted(items, key=lambda _: rng.random())

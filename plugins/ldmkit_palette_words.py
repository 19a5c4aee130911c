"""The words of the captioner `palette`: how a caption says which colours a picture has, and which ones a prompt names.

A caption is a noun phrase and further phrases, as people type them. The subject's colours and the background's each
take one form: adjective, "with ...", "whose ...", place, a clause of its own, or a tag between commas. Only the words
that a colour stands with tell what it is the colour of, never its place in the sentence.
"""

import re
from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")

TERMS: dict[str, str] = {
    noun: term
    for term, nouns in {
        "red": "red crimson scarlet ruby cherry maroon burgundy brick wine cranberry",
        "orange": "orange ginger tangerine pumpkin apricot rust copper amber",
        "brown": "brown chocolate umber sienna mocha coffee chestnut mahogany cocoa sepia tan camel caramel taupe",
        "yellow": "yellow lemon mustard gold sunflower dandelion canary maize butter",
        "green": "green lime olive moss forest fern grass emerald sage pine avocado khaki mint pistachio celery leaf",
        "teal": "teal",
        "turquoise": "turquoise aqua cyan aquamarine",
        "blue": "blue navy azure cobalt sky denim cornflower sapphire periwinkle indigo",
        "purple": "purple violet lavender lilac plum eggplant mauve grape amethyst",
        "pink": "pink rose salmon magenta fuchsia blush carnation bubblegum coral",
        "beige": "beige cream sand ecru parchment wheat fawn buff stone",
        "grey": "grey gray silver slate charcoal cement steel gunmetal",
        "black": "black",
        "white": "white",
    }.items()
    for noun in nouns.split()
}
"""noun of a colour's name -> the term that it is brought down to"""

# Nouns that a prompt rather means themselves by.
_THINGS = (
    "brick wine cherry cranberry pumpkin coffee butter sunflower dandelion maize fern grass leaf celery sky sand wheat"
)

_SPOKEN = {
    "orange": ("orange", "orange", "ginger"),
    "beige": ("cream", "cream", "beige"),
    "grey": ("grey", "grey", "gray"),
    "light": ("light", "light", "pale"),
}
"""what captions say of a term, beside the term; what stands here or below twice is taken more often"""
_FURRED = (
    "animal bear bunny calf cat cow dog fox goat hamster horse kitten leopard lion lynx monkey mouse panda pet pony "
    "puppy rabbit sheep squirrel tiger wolf"
)
"""nouns of which captions speak of the fur"""
# Words that name no colour are many, and most of them rare: a prompt has some that no caption has, and the pieces that
# such a word falls into must have been passed over before.
WALLS = (
    *(*16 * ("background",), *6 * ("wall",), *6 * ("backdrop",)),
    *("setting", "scene", "environment", "surface", "canvas", "screen", "sheet", "cloth", "curtain", "paper", "board"),
    *("panel", "room", "studio", "space", "area", "place", "fabric", "blanket", "carpet", "floor", "landscape"),
)
OPENINGS = (
    *(*8 * ("a",), *4 * ("",), *("the", "one", "this", "my", "there is a", "here is a", "it's a", "this is a") * 2),
    *("a photo of a", "photo of a", "a picture of a", "picture of one", "an image of a", "photograph of the") * 2,
    *("show me a", "draw a", "please draw a", "I want a", "I would like a", "make me a") * 2,
    *("close-up of a", "a snapshot of a", "a shot of this", "our", "your", "another", "just a", "look at this"),
    *("give me a", "generate a", "render one", "can you make a", "could I have a", "imagine a", "we have a"),
    *("I saw a", "that's the", "a postcard with a", "a poster of a", "the face of a", "any", "some kind of"),
)
QUALITIES = (
    *("cute", "cute", "cute", "nice", "lovely", "pretty", "beautiful", "funny", "little", "young", "old", "small"),
    *("tiny", "big", "charming", "elegant", "handsome", "splendid", "simple", "strange", "real", "perfect", "famous"),
)
MOODS = (
    *("fluffy", "fluffy", "happy", "sleepy", "calm", "curious", "shy", "proud", "gentle", "grumpy", "friendly"),
    *("playful", "tired", "wild", "clever", "brave", "lazy", "hungry", "serious", "long-haired", "well-fed"),
)
"""an animal's qualities"""
REMARKS = (
    *("please", "high quality", "in focus", "sharp picture", "thank you", "no text", "natural colours", "realistic"),
    *("detailed", "best quality", "as sharp as you can", "for my phone", "for a card", "nothing else", "square format"),
    *("taken yesterday", "number 7", "award winning", "4k", "professional photography", "no frame", "film grain"),
)
DOINGS = {
    "subject": (
        *("seen from the front", "in close-up", "at home", "in the middle", "seen from nearby", "at dawn"),
        *("from our street", "at noon", "on a Sunday", "of my neighbours", "in full view", "that I found in town"),
        *("which everybody likes", "as in a magazine", "for sale", "without any people"),
    ),
    "fur": (
        *("looking at the camera", "sitting", "who is sitting there", "that looks curious", "lying down", "resting"),
        *("that has just woken up", "turning its head", "which waits for dinner", "listening", "dreaming of fish"),
        *("watching birds", "with its ears up", "keeping very still", "who wants to play", "after a long nap"),
        *("which follows me", "thinking about food", "called Felix", "that never sleeps", "about to yawn"),
    ),
}
"""what of -> what is said beside its colours; "fur" is an animal's"""
FORMS: dict[str, dict[str, tuple[str, ...]]] = {
    "adjective": {"subject": ("{c}", "{c}", "{c}", "{c}", "{c} coloured")},
    "with": {
        "fur": ("{c} fur", "{c} fur", "a {c} coat", "fur that is {c}", "{c} coloured fur", "a coat in {c}", "{c} hair")
    },
    "whose": {
        "subject": ("which is {c}", "in {c}", "whose colour is {c}", "that is {c} all over"),
        "fur": ("whose coat is {c}", "that has {c} fur", "having {c} fur", "which has a {c} coat", "whose hair is {c}"),
    },
    "place": {
        "background": (
            *("on a {b} {wall}", "on a {b} {wall}", "in front of a {b} {wall}", "in front of a {b} {wall}"),
            *("against a {b} {wall}", "with a {b} {wall}", "with a {b} {wall} behind it", "near a {b} {wall}"),
            *("over a {b} {wall}", "on {b}", "with {b} behind it", "on a {wall} that is {b}"),
            *("set against a {b} {wall}", "beside a {b} {wall}", "by a {b} {wall}", "surrounded by {b}"),
            *("in a {b} {wall}", "inside a {b} {wall}", "upon a {b} {wall}", "next to a {b} {wall}"),
            *("at a {b} {wall}", "along with a {b} {wall}", "close to some {b} {wall}", "having a {b} {wall}"),
        ),
    },
    "clause": {
        "subject": ("it is {c}", "the {noun} is {c}", "its colour is {c}", "make it {c}", "it looks {c}"),
        "fur": (
            *("its fur is {c}", "it has {c} fur", "it has a {c} coat", "the colour of the fur is {c}"),
            *("make its fur {c}", "all its fur is {c}", "it has fur in {c}", "its hair looks {c}"),
        ),
        "background": (
            *("the background is {b}", "its {wall} is {b}", "the {wall} behind it is {b}", "it has a {b} {wall}"),
            *("behind it is a {b} {wall}", "it is in front of a {b} {wall}", "there is a {b} {wall} behind it"),
            *("the colour of the {wall} is {b}", "everything behind it is {b}", "make the {wall} {b}"),
            *("you see a {b} {wall}", "the {wall} looks {b}", "all around it is {b}"),
            *("I see some {b} {wall}", "it stays in a {b} {wall}"),
        ),
    },
    "tag": {
        "subject": ("{c}", "{c} colour"),
        "fur": ("{c} fur", "{c} coat"),
        "background": (
            *("{b} background", "{b} background", "{b} behind it", "a {b} backdrop", "{wall} in {b}"),
            *("background: {b}", "{b} room", "all in front of {b}"),
        ),
    },
}
"""form -> what of -> its phrases; "fur" is the subject's where it has one"""
_SHARES = {"adjective": 8, "with": 4, "whose": 2, "place": 8, "clause": 3, "tag": 3}
"""of the forms, where they can be taken"""
_NAMED = (*9 * (("subject", "background"),), *3 * (("subject",),), *2 * (("background",),))
"""what a caption names, where the background has a colour"""


def caption(noun: str, subject: Sequence[str], background: str, light: str, rng: Random) -> str:
    """One caption, in a phrasing that `rng` chooses.

    `subject`: colours as "dark grey", the commonest first; `background`: one or "" where it has none; `light`: a remark
    on it, or "".
    """
    found: dict[str, list[str]] = {form: [] for form in FORMS}
    fur = bool(set(noun.lower().split()[-1:]) & set(_FURRED.split()))
    colors = {"c": " and ".join(_spoken(color, rng) for color in subject), "b": _spoken(background, rng)}
    for name in _pick(_NAMED, rng) if background else ("subject",):
        kinds = (name, "fur") if name == "subject" and fur else (name,)
        choices = {form: sum((FORMS[form].get(kind, ()) for kind in kinds), ()) for form in FORMS}
        form = _pick([form for form, phrases in choices.items() if phrases for _ in range(_SHARES[form])], rng)
        found[form].append(_pick(choices[form], rng).format(**colors, noun=noun, wall=_pick(WALLS, rng)))
    qualities = (*QUALITIES, *MOODS) if fur else QUALITIES
    adjectives = [_pick(qualities, rng) for _ in range(_pick((0, 0, 0, 1, 1, 2), rng))]
    text = " ".join(filter(None, [_pick(OPENINGS, rng), *adjectives, *found["adjective"], noun]))
    before: list[str] = []
    places: list[str] = []
    for place in found["place"]:
        (places if rng.random() < 0.75 else before).append(place)
    deeds = (*DOINGS["subject"], *DOINGS["fur"]) if fur else DOINGS["subject"]
    doings = [_pick(deeds, rng)] if rng.random() < 0.3 else []
    for phrase in [*(f"with {it}" for it in found["with"]), *found["whose"], *_shuffled([*doings, *places], rng)]:
        text += _pick((" ", " ", " ", ", "), rng) + phrase
    for phrase in _shuffled(found["clause"], rng):
        text += _pick((" and ", ", and ", ", ", ". "), rng) + phrase
    tags = [*found["tag"], *filter(None, [light]), *([_pick(REMARKS, rng)] if rng.random() < 0.1 else [])]
    if tags and rng.random() < 0.15:
        before.append(tags.pop(0))
    for phrase in tags:
        text += _pick(_joints(text, (", ", ", ", ", ", ". ", " - ")), rng) + phrase
    for phrase in before:
        text = phrase + _pick(_joints(phrase, (", ", ", ", ": ", ". ")), rng) + text
    if rng.random() < 0.1:
        text = re.sub(r"\b(an?|the) ", "", text)
    text = re.sub(r"\b([aA])(?= [aeiou])", r"\1n", text)
    text = text[0].upper() + text[1:] if rng.random() < 0.35 else text
    return text + "." if rng.random() < 0.15 else text


def _joints(text: str, joints: Sequence[str]) -> Sequence[str]:
    """Without commas after a colour: "in white, black background" would be read as white and black."""
    return [joint for joint in joints if joint != ", "] if _GROUP.search(text.split()[-1]) else joints


def _spoken(color: str, rng: Random) -> str:
    return " ".join(_pick(_SPOKEN.get(word, (word,)), rng) for word in color.split())


def _pick(choices: Sequence[T], rng: Random) -> T:
    """By `rng.random()` alone, which no version of Python changes."""
    return choices[int(rng.random() * len(choices))]


def _shuffled(items: Iterable[T], rng: Random) -> list[T]:
    return sorted(items, key=lambda _: rng.random())


_COLOR = rf"(?:(?:very|dark|light|pale|bright|deep|soft) )*\b(?:{'|'.join(TERMS.keys() - set(_THINGS.split()))})\b"
_PLACES = "|".join(sorted({*WALLS, "scenery", "surrounding", "ground"}))
_SETTINGS = rf"(?:{_PLACES})s?|(?:everything|all) (?:behind|around)(?: it)?"
_PARTS = "eyes?|eyed|iris|irises|nose|collar|ribbon|bow|stripes|paws|socks|ears|whiskers|tongue|chest|spots|patches"
_GROUP = re.compile(rf"{_COLOR}(?:(?:, {_COLOR})*(?:,? and |,? & |/| ){_COLOR})*|\b(?:dark|dim|light|pale|bright)\b")
_HEAD = re.compile(
    rf"\b(?:(?P<background>{_SETTINGS})|(?P<part>{_PARTS})|(?P<subject>fur|coat|hair|coloured|colored))\b"
)
_END = re.compile(
    r"[,.;:]|\b(?:and|or|on|in|before|against|near|over|beside|surrounded|by|with|of|at|upon|inside|next|close|from"
    r"|for|about|after|as|without|is|are|was|has|that|while|when|who|whose|which|seen|called|taken"
    r"|(?!setting|surrounding)\w+ing)\b"
)
_BEFORE = re.compile(r"\b(?:on|against|before|over|upon|surrounded by)(?: \w+){0,2} $")


def named_colors(prompt: str) -> dict[str, set[str]]:
    """The terms that a prompt gives its "subject" and its "background"; empty where it gives none.

    Colours belong to the noun that follows ("black and white cat", "green eyes", "red brick wall"), else to the one
    before ("its eyes are yellow"). A noun unknown here is the subject, or the background after "on" and the like.
    """
    text = " ".join(prompt.lower().replace("in front of", "before").replace(" - ", "; ").replace("-", " ").split())
    named: dict[str, set[str]] = {"subject": set(), "background": set(), "part": set()}
    for found in _GROUP.finditer(text):
        before, after = text[: found.start()], _END.split(text[found.end() :])[0]
        if following := _HEAD.search(after):
            owner = following.lastgroup
        elif _BEFORE.search(before) or after.strip().startswith("behind"):
            owner = "background"
        elif after.strip():
            owner = "subject"
        else:  # "the background is blue", "a cat, black and white"
            heads = list(_HEAD.finditer(re.split(r"[.,;]|:(?= \w)| and ", before)[-1]))
            owner = heads[-1].lastgroup if heads else "subject"
        terms = {TERMS[word] for word in re.findall(r"[a-z]+", found[0]) if word in TERMS}
        if not terms and owner == "background":
            terms = {"dark" if found[0] in ("dark", "dim") else "light"}
        named[str(owner)] |= terms
    del named["part"]
    return named

"""The second grammar of toy prompts shares no sentence pattern with the captions'."""

import re
from itertools import combinations
from random import Random

from benchmarks.quality import toy_prompts
from benchmarks.quality.toy_prompts import PHRASES, prompts, unseen_phrasing
from ldmkit.data import toy_captions
from ldmkit.data.toy_captions import ATTRIBUTES, FORMS, caption
from ldmkit.data.toy_drawing import ToyCat

CAT = ToyCat(fur="orange", eyes="turquoise", coat="tabby", background="purple")


def pattern(text: str) -> str:
    """Words alone, without articles, each word of an attribute as its letter: two cats' sentences then look alike."""
    words = re.findall(r"[a-z']+", text.lower())
    letters = {"orange": "F", "ginger": "F", "turquoise": "E", "purple": "B", "violet": "B"}
    letters |= dict.fromkeys(("tabby", "striped", "stripy"), "C")
    return " ".join(letters.get(word, word) for word in words if word not in ("a", "an", "the"))


def phrases() -> list[str]:
    """Every piece that a caption is made of, as a pattern."""
    found = [*toy_captions.OPENINGS, *toy_captions.NOUNS, *toy_captions.QUALITIES]
    found += [*toy_captions.DOINGS, *toy_captions.REMARKS, "with", "and", "and with"]
    for each in FORMS.values():
        for attribute in each.values():
            found += attribute
    whole = []
    for text in found:
        for stripes in toy_captions.STRIPES["tabby"]:
            for bearing in toy_captions.BEARING["tabby"]:
                filled = text.replace("{stripes}", stripes).replace("{bearing}", bearing)
                for wall in toy_captions.WALLS:
                    words = {"fur": "orange", "eyes": "turquoise", "coat": "tabby", "background": "purple"}
                    whole.append(pattern(filled.format(**words, wall=wall)))
    return sorted({text for text in whole if text}, key=len, reverse=True)


CAPTION = re.compile(f"(?:(?:{'|'.join(map(re.escape, phrases()))})(?: |$))*")
"""any of a caption's pieces in any order: every caption, and more"""


def test_captions_are_what_the_pattern_says(monkeypatch):
    monkeypatch.setattr(toy_captions, "_SLIPS", 0)
    for number in range(300):
        assert CAPTION.fullmatch(pattern(caption(CAT, ATTRIBUTES, Random(number)))), number


def test_no_sentence_pattern_is_shared():
    """Not one can even be laid out of the captions' pieces: every subject, and every phrase beside it."""
    asked = [names for n in range(5) for names in combinations(ATTRIBUTES, n)]
    own = {pattern(unseen_phrasing(CAT, names, Random(f"{names}/{i}"))) for names in asked for i in range(100)}
    assert len(own) > 900
    assert not [text for text in own if CAPTION.fullmatch(text)]
    for subject in toy_prompts.SUBJECTS:
        assert not CAPTION.fullmatch(pattern(subject.replace("{cat}", "cat"))), subject
    theirs = set(phrases())
    for attribute, texts in PHRASES.items():
        for text in texts:
            filled = pattern(
                text.format(fur="orange", eyes="turquoise", coat="tabby", background="purple", stripes="stripes")
            )
            assert filled not in theirs, (attribute, text)


def test_prompts_name_what_they_ask_for():
    words = {
        "fur": "orange|ginger|gr[ae]y|black|white|brown|cream",
        "coat": "tabby|plain|strip",
        "eyes": r"eye",
        "background": r"background|wall(?!p)|backdrop|behind|surrounded|photographed",
    }
    found = prompts(600, seed=3, subsets=True, phrase=unseen_phrasing)
    assert {len(prompt.asked) for prompt in found} == {0, 1, 2, 3, 4}
    for prompt in found:
        text = prompt.text.lower()
        assert {name for name, word in words.items() if re.search(word, text)} == set(prompt.asked), text
        assert all(getattr(prompt, name) in text for name in ("eyes", "background") if name in prompt.asked)
        assert not re.search(r"[{}]|\ba [aeiou]", text), text

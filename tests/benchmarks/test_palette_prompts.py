"""The prompts of another grammar than the captions' of `palette`."""

import re
from itertools import product

from ldmkit_palette import OPENINGS, SETTINGS, SUBJECTS, named_colors

from benchmarks.quality import palette_prompts

FILLED = {"colors": "C", "noun": "N", "c": "C", "b": "B", "background": "B"}


def pattern(text: str) -> str:
    """Its words in their order, without articles: "B", "C" and "N" for the background, the colours and the noun."""
    return " ".join(word for word in re.findall(r"[a-z]+|[BCN]", text) if word not in ("a", "an", "the"))


def test_no_sentence_pattern_is_a_captions() -> None:
    captions = set()
    for setting, opening, subject, light in product(
        SETTINGS, OPENINGS, SUBJECTS, ("", " in dim light", " bright light")
    ):
        text = (setting + light).format(subject=opening + subject.format(**FILLED), background="B")
        captions.add(pattern(text))
    own = {pattern(text.format(**FILLED)) for text in (*palette_prompts.COMPLETE, *palette_prompts.SHORT)}
    assert len(own) == len(palette_prompts.COMPLETE) + len(palette_prompts.SHORT)
    assert len(captions) > 100
    assert not own & captions
    # Nor does one hold what captions say of the background in its own words.
    settings = {pattern(re.sub("{subject}", "", text).format(background="B")) for text in SETTINGS} - {""}
    assert "on B background" in settings
    assert not [(text, setting) for text in own for setting in settings if setting in text]


def test_every_prompt_is_read_as_it_is_meant() -> None:
    found = palette_prompts.prompts(240, seed=3)
    assert len({prompt.text for prompt in found}) == 240
    assert 10 < sum(not prompt.background for prompt in found) < 120
    for prompt in found:
        subject = set(prompt.subject.replace(" and ", " ").split())
        assert named_colors(prompt.text) == {"subject": subject, "background": set(prompt.background.split())}, prompt

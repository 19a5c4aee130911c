"""The prompts of another grammar than the captions' of `palette`."""

import re
from random import Random

from ldmkit_palette_words import FORMS, WALLS, caption, named_colors
from PIL import Image

from benchmarks.quality import palette_drawn, palette_prompts


def pattern(text: str) -> str:
    """Its words in their order, without articles: "B", "C" and "N" for the background, the colours and the noun."""
    return " ".join(word for word in re.findall(r"[a-z]+|[BCN]", text) if word not in ("a", "an", "the"))


def test_no_sentence_pattern_is_a_captions() -> None:
    own = {pattern(text.format(c="C", b="B", noun="N")) for text in (*palette_prompts.COMPLETE, *palette_prompts.SHORT)}
    assert len(own) == len(palette_prompts.COMPLETE) + len(palette_prompts.SHORT)
    captions = set()
    for number in range(20_000):
        text = caption("cat", ["purple"], "teal", "", Random(number)).lower()
        captions.add(pattern(text.replace("cat", "N").replace("purple", "C").replace("teal", "B")))
    assert len(captions) > 5_000
    assert not own & captions
    # These stand for words that a network has never seen.
    words = {word for text in captions for word in text.split()}
    assert {"wall", "curtain"} < words
    assert not {"scenery", "surroundings", "adorable", "photographed", "staring"} & words
    # Nor does one hold what captions say of the background in its own words.
    phrases = {
        pattern(phrase.format(b="B", wall=wall))
        for form in FORMS.values()
        for phrase in form.get("background", ())
        for wall in WALLS
    }
    assert "on B background" in phrases
    assert not [(text, phrase) for text in own for phrase in phrases if f" {phrase} " in f" {text} "]


def test_every_prompt_is_read_as_it_is_meant() -> None:
    found = palette_prompts.prompts(240, seed=3)
    assert len({prompt.text for prompt in found}) == 240
    assert 10 < sum(not prompt.background for prompt in found) < 120
    for prompt in found:
        subject = set(prompt.subject.replace(" and ", " ").split())
        assert named_colors(prompt.text) == {"subject": subject, "background": set(prompt.background.split())}, prompt


def test_own_words_name_the_same_colours() -> None:
    rng = Random(1)
    for prompt in palette_prompts.prompts(60, seed=2):
        own = palette_drawn.in_own_words(prompt, rng)
        assert own.text != prompt.text
        assert (own.subject, own.background) == (prompt.subject, prompt.background)
        assert named_colors(own.text) == named_colors(prompt.text)


def test_what_is_drawn_is_counted_by_colour() -> None:
    """Flat pictures, whose one colour is known."""
    asked = [
        palette_prompts.PalettePrompt("a white cat on a green background", "white", "green"),
        palette_prompts.PalettePrompt("a black cat before a green wall", "black", "green"),
        palette_prompts.PalettePrompt("a white cat", "white", ""),
    ]
    images = [Image.new("RGB", (64, 64), color) for color in ("white", "black", "black")]
    rows = {str(row[0]).strip(): row[1:] for row in palette_drawn.drawn(asked, images)}
    assert rows["subject"] == (3, "66.7%", "")
    assert rows["white"] == (2, "50.0%", "white 1, black 1")
    assert rows["black"] == (1, "100.0%", "black 1")
    assert rows["background"] == (2, "0.0%", "")
    assert rows["green"] == (2, "0.0%", "white 1, black 1")
    assert rows["called"] == (2, "0.0%", "")
    assert rows["wall"] == (1, "0.0%", "black 1")
    assert rows["otherwise"] == (1, "0.0%", "white 1")

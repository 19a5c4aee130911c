"""Captions of the toy set: what they name, and that nothing else decides."""

import re
from collections import Counter
from itertools import combinations
from random import Random

import pytest
from scipy.stats import binomtest

from ldmkit.data.toy_captions import ATTRIBUTES, SPOKEN, articles, caption, named
from ldmkit.data.toy_cats import describe
from ldmkit.data.toy_drawing import ToyCat

# No value of one attribute is another's, so that a word tells which attribute a caption names.
TABBY = ToyCat(fur="orange", eyes="turquoise", coat="tabby", background="purple")
PLAIN = ToyCat(fur="grey", eyes="yellow", coat="plain", background="red")
WORDS = {
    TABBY: {"fur": "orange|ginger", "eyes": "turquoise", "coat": "tabby|strip", "background": "purple|violet"},
    PLAIN: {"fur": "gr[ea]y", "eyes": "yellow", "coat": "plain|strip|solid", "background": "red"},
}
DENIED = r"no stripes|without (any )?stripes|not striped|unstriped|plain|solid"


@pytest.fixture
def no_slips(monkeypatch):
    monkeypatch.setattr("ldmkit.data.toy_captions._SLIPS", 0)


@pytest.mark.parametrize("cat", [TABBY, PLAIN])
def test_a_caption_names_what_it_is_to_and_nothing_else(no_slips, cat):
    for count in range(5):
        for names in combinations(ATTRIBUTES, count):
            for number in range(100):
                text = caption(cat, names, Random(f"{names}/{number}")).lower()
                found = {name for name, words in WORDS[cat].items() if re.search(rf"(?<![a-z])(un)?({words})", text)}
                assert found == set(names), text
                denied = re.search(DENIED, text) is not None
                assert denied == (cat.coat == "plain" and "coat" in names), text
                assert not re.search(r"[{}]|  | ,|^\W", text), text


def test_any_subset_is_named_and_each_attribute_as_often():
    counts = [named(Random(f"named/{number}")) for number in range(4000)]
    assert set(counts) == {names for n in range(5) for names in combinations(ATTRIBUTES, n)}
    shares = [sum(name in names for names in counts) for name in ATTRIBUTES]
    assert all(binomtest(share, 4000, 0.3 + 0.7 * 0.55).pvalue > 1e-3 for share in shares)


def test_captions_are_as_people_type_them():
    """Words and forms of daily use, in any order, with and without articles, commas, capitals and slips."""
    texts = [caption(TABBY, ATTRIBUTES, Random(f"type/{number}")) for number in range(1500)]
    assert len(set(texts)) > 1450
    wanted = "a purple wall,its eyes are turquoise,whose eyes are,it has,kitten,ginger,stripes,backdrop,turquoise-eyed"
    for words in wanted.split(","):
        assert any(words in text.lower() for text in texts), words
    assert 0.2 < sum(text[0].isupper() for text in texts) / 1500 < 0.5
    assert 0.01 < sum(text.isupper() for text in texts) / 1500 < 0.04
    # Each attribute comes first in some captions, and last.
    for place in (min, max):
        ends = {place(WORDS[TABBY], key=lambda name: _position(text, name)) for text in texts}
        assert ends == set(ATTRIBUTES)
    words = Counter(re.findall(r"[a-z'-]+", " ".join(texts).lower()))
    assert sum(count == 1 for count in words.values()) > 30  # slips


def _position(text: str, name: str) -> int:
    found = re.search(WORDS[TABBY][name], text.lower())
    return found.start() if found else 0


def test_words_of_two_values_differ():
    words = [word for value in SPOKEN for word in set(SPOKEN[value])]
    assert len(words) == len(set(words))
    assert articles("a orange cat on a blue wall, a animal") == "an orange cat on a blue wall, an animal"


def test_a_pictures_caption_is_its_numbers_own():
    assert [describe(3, number)[2] for number in range(5)] == [describe(3, number)[2] for number in range(5)]
    assert len({describe(seed, number)[2] for seed in (3, 4) for number in range(400)}) > 780

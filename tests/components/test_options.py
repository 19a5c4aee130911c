"""Options of components: how a recipe writes them, what is refused and in which words, and their schema."""

import tomllib
from pathlib import Path

import jsonschema
import pytest

from ldmkit import LdmkitError
from ldmkit.components.registry import Registry

TALL = Path(__file__).with_name("tall_plugin.py")


@pytest.fixture(scope="module")
def tall() -> Registry:
    return Registry.load([TALL])


def test_options_as_toml_writes_them(tall: Registry) -> None:
    table = tomllib.loads("""
        use = "tall"
        word = "x"
        eta = 1
        form = "square"
        widths = [3, 4, 5]
        pair = [2, 1]
        weights = "a/b.pth"
        copy = true
    """)
    checked = tall.check("sampler", table, where="[sampler]")
    assert checked == {
        "word": "x",
        "steps": 50,
        "eta": 1.0,
        "form": "square",
        "widths": (3, 4, 5),
        "pair": (2, 1.0),
        "weights": Path("a/b.pth"),
        "copy": True,
        "gain": 1.0,
    }
    assert isinstance(checked["eta"], float)
    assert tall.build("sampler", table, where="[sampler]").widths == (3, 4, 5)


def test_option_may_be_called_like_an_attribute_of_pydantic(tall: Registry) -> None:
    assert tall.build("sampler", {"use": "plain", "model_dump": 4}, where="[sampler]") == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("steps = 0", "[sampler] steps = 0 is not allowed: the sampler \"tall\" takes integer > 0 (denoising steps)"),
        ("steps = 2.0", "[sampler] steps = 2.0 is not allowed"),
        ("steps = true", "[sampler] steps = true is not allowed"),
        ('steps = "9"', '[sampler] steps = "9" is not allowed'),
        ("eta = 1.5", "takes float >= 0, <= 1"),
        ("eta = nan", "[sampler] eta = NaN is not allowed"),
        ("gain = inf", "[sampler] gain = Infinity is not allowed"),
        ('form = "squar"', '[sampler] form = "squar" is not allowed (did you mean "square"?)'),
        ('form = "squar"', 'one of "round", "square"'),
        ("widths = [1, 0]", "[sampler] widths[1] = 0 is not allowed: the sampler \"tall\" takes list of integer > 0"),
        ("pair = [1]", "takes list of integer, float, 2 items"),
        ("copy = 1", "takes true or false"),
        ('word = ""', "takes string not empty"),
        ("step = 3", 'has the unknown option "step" (did you mean "steps"?): the sampler "tall" takes word, steps'),
    ],
)  # fmt: skip
def test_wrong_option_is_named_with_what_is_allowed(tall: Registry, change: str, words: str) -> None:
    table = tomllib.loads(f'use = "tall"\n{change}\n') if "word" in change else None
    table = table or tomllib.loads(f'use = "tall"\nword = "x"\n{change}\n')
    with pytest.raises(LdmkitError) as raised:
        tall.check("sampler", table, where="[sampler]")
    assert words in str(raised.value)
    # The schema of editors says the same; but JSON has neither nan nor inf, and JSON Schema counts 2.0 as an integer.
    if change not in ("eta = nan", "gain = inf", "steps = 2.0"):
        del table["use"]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(table, tall.get("sampler", "tall").options.schema)


def test_every_mistake_of_a_table_is_told_at_once(tall: Registry) -> None:
    with pytest.raises(LdmkitError) as raised:
        tall.check("sampler", {"use": "tall", "steps": 0, "etta": 1}, where="[sampler]")
    lines = str(raised.value).splitlines()
    assert len(lines) == 3
    assert any('lacks the key "word"' in line for line in lines)


@pytest.mark.parametrize("table", [{}, {"use": 3}])
def test_table_without_use(tall: Registry, table: dict[str, object]) -> None:
    with pytest.raises(LdmkitError, match=r'\[sampler\] lacks use = "NAME": the sampler, one of .*plain.*tall'):
        tall.check("sampler", table, where="[sampler]")


def test_unknown_name_and_unknown_kind(tall: Registry) -> None:
    with pytest.raises(LdmkitError, match=r'\[sampler\] use = "tal": no sampler is called "tal" \(did you mean "tall"'):
        tall.check("sampler", {"use": "tal"}, where="[sampler]")
    with pytest.raises(LdmkitError, match=r'"samplers" \(did you mean "sampler"\?\): captioner, text_encoder, loss'):
        tall.names("samplers")


def test_options_in_words_and_schema(tall: Registry) -> None:
    options = tall.get("sampler", "tall").options.described
    assert list(options) == ["word", "steps", "eta", "form", "widths", "pair", "weights", "copy", "gain"]
    assert options["steps"] == ("steps", "integer", 50, "> 0", "denoising steps", False)
    assert options["eta"][1:4] == ("float", 0.0, ">= 0, <= 1")
    assert options["form"][1:4] == ("string", "round", 'one of "round", "square"')
    assert options["widths"][1] == "list of integer > 0"
    assert options["weights"][1:3] == ("string", None)
    assert options["word"].required
    assert tall.get("sampler", "tall").summary == "Takes every form of option."
    schema = tall.get("sampler", "tall").options.schema
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate({"word": "x", "eta": 1, "widths": [2], "weights": "a"}, schema)

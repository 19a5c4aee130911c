"""The page's scripts by themselves, in node, against numpy, tokenizers and Pillow."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.pictures import grid, slug
from ldmkit.web.write import SCRIPTS, bundled
from tests.web.node import PAGE, evaluate, needs_node

pytestmark = needs_node

AWKWARD = [
    "",
    "a cute orange cat",
    "  Two   spaces\tand a tab\n",
    "ÉCOLE Übergröße İstanbul ß ﬁ Ⅷ",
    "猫が好き 🐈‍⬛👨‍👩‍👧 \U0001f1e9\U0001f1ea",
    "<|bos|>a<|eos|> cat<|pad|>",
    "don't can't we'll I'm they've he'd",
    "1234567890 3.14 1e-5 --- ... !!!",
    "\ufeffa\u0085 white\ufeff cat\u0085",
    "\u202eright to left\u202c \u200bzero\u200dwidth\ufeff",
    "a black cat " * 30,
    "x" * 1000,
    "نص عربي שלום हिन्दी ไทย",
    "\u0000\u0007control\u007f",
    "e\u0301 versus \u00e9, \u1e9b\u0323",
]


def test_noise_is_numpys() -> None:
    seeds = [*range(40), 12345, 2**31, 2**32 - 1, 2**32, 2**40 + 7, 2**53 - 1]
    code = (
        'import { Source } from "PAGE/random.js";'
        "console.log(JSON.stringify(given.map((seed) => Array.from(new Source(seed).draw(20000)))));"
    )
    for seed, drawn in zip(seeds, evaluate(code, seeds), strict=True):
        expected = np.random.Generator(np.random.PCG64(seed)).standard_normal(20000)
        # The tail's logarithm may be rounded the other way.
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=2e-15)
        assert np.mean(np.array(drawn) != expected) < 1e-3


def test_a_seed_of_any_length_is_numpys() -> None:
    code = (
        'import { seedState } from "PAGE/random.js";'
        "console.log(JSON.stringify(given.map((seed) => Array.from(seedState(BigInt(seed))))));"
    )
    seeds = [0, 1, 2**64 + 5, 2**128 - 1, 2**160 + 3, 10**60]
    for seed, words in zip(seeds, evaluate(code, [str(seed) for seed in seeds]), strict=True):
        assert words == np.random.SeedSequence(seed).generate_state(8).tolist()


def test_prompts_become_the_same_ids(page: Path, bundle: Bundle) -> None:
    code = f"""
    import {{ readFileSync }} from "node:fs";
    import {{ TextReader }} from "PAGE/text.js";
    const {{ Tokenizer }} = await import({json.dumps((page / "runtime" / "tokenizers.mjs").as_uri())});
    const table = JSON.parse(readFileSync({json.dumps(str(page / "bundle" / "tokenizer.json"))}, "utf8"));
    const reader = new TextReader(Tokenizer, table);
    const told = given.map((text) => {{
      const {{ ids, mask, cut }} = reader.encode(text);
      return [ids.map(Number), mask.map(Number), cut];
    }});
    console.log(JSON.stringify(told));
    """
    for text, (ids, mask, cut) in zip(AWKWARD, evaluate(code, AWKWARD), strict=True):
        expected = bundle.tokenizer.encode(text)
        assert ids == expected.ids, text
        assert mask == expected.attention_mask, text
        assert bool(cut) == bool(expected.overflowing), text
        assert cut in text


def test_a_png_is_as_pillow_reads_and_writes_it() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    pictures = rng.integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    metadata = {"prompt": "süß", "negative": "☺ 猫", "sampler": "{}", "empty": ""}
    code = """
    import { sheet, toPng } from "PAGE/png.js";
    const pictures = given.pictures.map((each) => Uint8Array.from(each.flat(2)));
    const whole = sheet(pictures, [8, 6]);
    const files = [await toPng(pictures[0], 8, given.metadata), await toPng(whole.rgb, whole.width, {})];
    const bytes = await Promise.all(files.map((file) => file.arrayBuffer()));
    const texts = bytes.map((each) => Buffer.from(each).toString("base64"));
    console.log(JSON.stringify(texts));
    """
    one, all_ = (
        base64.b64decode(text) for text in evaluate(code, {"pictures": pictures.tolist(), "metadata": metadata})
    )
    with Image.open(io.BytesIO(one)) as image:
        assert image.info == metadata
        np.testing.assert_array_equal(np.asarray(image), pictures[0])
    with Image.open(io.BytesIO(all_)) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(grid([Image.fromarray(each) for each in pictures])))


def test_text_of_the_metadata_is_as_python_writes_it() -> None:
    numbers = [0, 1, 2.5, 30, 0.01, 7.25, 29.99]
    table = {"use": "dpmpp_2m_sde", "eta": 1, "spacing": "kärräs ☺", "steps": 8}
    words = ["A cute, ORANGE cat!", "", "äöü ß", "猫" * 40, "__x__", "a" * 100, "!!!"]
    code = """
    import { pythonFloat, pythonJson, slug } from "PAGE/png.js";
    console.log(JSON.stringify([given[0].map(pythonFloat), pythonJson(given[1]), given[2].map(slug)]));
    """
    floats, text, slugs = evaluate(code, [numbers, table, words])
    assert floats == [str(float(number)) for number in numbers]
    assert text == json.dumps(table | {"eta": 1.0})
    assert slugs == [slug(word) for word in words]


def test_levels_and_previews_are_the_runtimes(bundle: Bundle) -> None:
    rng = np.random.Generator(np.random.PCG64(2))
    halves = (np.arange(-4, 260) + 0.5) / 127.5 - 1
    pixels = np.concatenate([halves, rng.uniform(-1.2, 1.2, 996)]).astype(np.float32).reshape(1, 3, 20, 21)
    x0 = np.kron(rng.standard_normal((2, 8, 4, 4)), np.ones((2, 2)))  # bicubic resizing keeps what is smooth
    rgb = bundle.manifest.latent.rgb
    assert rgb is not None
    code = """
    import { previews, psnr, toLevels } from "PAGE/draw.js";
    const levels = Array.from(toLevels(Float32Array.from(given.pixels)));
    const shown = previews(given.rgb, Float64Array.from(given.x0), 8, 64).map((each) => Array.from(each));
    console.log(JSON.stringify([levels, shown, psnr(Uint8Array.of(0, 255), Uint8Array.of(0, 0))]));
    """
    given = {"pixels": pixels.ravel().tolist(), "x0": x0.ravel().tolist(), "rgb": rgb.model_dump()}
    levels, shown, decibels = evaluate(code, given)
    expected = np.rint((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    assert levels == expected.ravel().tolist()
    for drawn, picture in zip(shown, bundle.preview(x0), strict=True):
        small = np.asarray(picture.resize((8, 8), Image.Resampling.BOX)).astype(int)
        assert np.abs(np.array(drawn).reshape(8, 8, 3) - small).mean() < 12  # bicubic up and box down again
    assert decibels == pytest.approx(3.0103, abs=1e-3)


HOSTILE = [
    "",
    "#",
    "#seed=",
    "#seed=NaN&steps=Infinity&guidance=-Infinity&count=1e999",
    "#seed=-1&steps=-5&count=-3&guidance=-0",
    "#seed=0x10&steps=1e3&count=99999999999999999999",
    "#sampler=__proto__&prompt=%00%ff%fe&negative=%ED%A0%80",
    "#sampler=constructor&sampler=toString",
    "#prompt=%F0%9F%90%88" + "%20x" * 2000,
    "#prompt=<script>&prompt=2&__proto__[x]=1&constructor=2",
    "#%&&==&=&seed=%zz",
    "#seed=4294967296.9&steps=2.9&count=1.5&guidance=1.23456",
    "#prompt=a%0Ab%0D%E2%80%A8c%07",
]


def test_whatever_an_address_says_the_settings_are_in_range() -> None:
    code = """
    import { fragmentOf, settingsFrom } from "PAGE/settings.js";
    import { SAMPLERS } from "PAGE/samplers.js";
    const defaults = { sampler: "euler", sampler_options: {}, steps: 8, guidance_scale: 2 };
    const manifest = { defaults, text: {} };
    const all = given.map((address) => settingsFrom(address, manifest, 100));
    const again = all.map((settings) => settingsFrom("#" + fragmentOf(settings), manifest, 100));
    console.log(JSON.stringify([all, again, Object.keys(SAMPLERS)]));
    """
    found, again, samplers = evaluate(code, HOSTILE)
    for settings, repeated in zip(found, again, strict=True):
        assert isinstance(settings["seed"], int)
        assert 0 <= settings["seed"] < 2**32
        assert settings["count"] in range(1, 17)
        assert settings["steps"] in range(1, 101)
        assert 0 <= settings["guidance"] <= 30
        assert settings["sampler"] in samplers
        assert len(settings["prompt"]) <= 1000
        assert not re.search(r"[\x00-\x1f\ud800-\udfff\u2028]", settings["prompt"])
        assert repeated == settings | {"held": True}
    assert found[-1]["prompt"] == "a b c"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_bundled_script_stands_alone(name: str) -> None:
    text = bundled(name)
    assert not re.search(r"^(import|export) ", text, re.MULTILINE)
    names = re.findall(r"^(?:async )?(?:const|let|function|class) (\w+)", text, re.MULTILINE)
    assert len(names) == len(set(names)), sorted({each for each in names if names.count(each) > 1})


def test_nothing_in_the_page_becomes_markup() -> None:
    for path in PAGE.glob("*.js"):
        used = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function", path.read_text()
        )
        assert not used, path

import colorsys
import hashlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFilter
from scipy.stats import chisquare

from benchmarks.quality import toy_accuracy, toy_attributes
from benchmarks.quality.toy_prompts import captions, prompts
from ldmkit.data import toy_cats
from ldmkit.data.toy_cats import HELD_OUT_PAIRS, make_toy_cats
from ldmkit.data.toy_drawing import BACKGROUND, COATS, EYES, FUR, ToyCat, draw_toy_cat
from ldmkit.errors import LdmkitError


@pytest.fixture
def reader():
    return toy_attributes


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_folder_holds_pictures_and_captions(tmp_path):
    counted = []
    make_toy_cats(tmp_path / "cats", num_pictures=5, progress=lambda done, total: counted.append((done, total)))
    rows = rows_of(tmp_path / "cats")
    assert [row["file_name"] for row in rows] == [f"0000{number}.png" for number in range(5)]
    assert len(list((tmp_path / "cats").glob("*.png"))) == 5
    assert counted == [(number, 5) for number in range(1, 6)]
    assert [path.name for path in tmp_path.iterdir()] == ["cats"]
    for row in rows:
        assert set(row) == {"file_name", "text", "fur", "eyes", "coat", "background"}
        with Image.open(tmp_path / "cats" / row["file_name"]) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX's signals and locks")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_ended_while_it_draws(tmp_path, number):
    """SIGTERM and SIGHUP leave nothing, SIGKILL what the next one removes; what a living process draws stays."""

    def begin():
        process = subprocess.Popen(
            [sys.executable, "-m", "ldmkit", "data", "make", "toy-cats", "-n", "99999", "--out", "cats"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not list(tmp_path.rglob("*.png")):
            time.sleep(0.02)
        return process

    with begin() as process:
        alive = list(tmp_path.iterdir())
        assert len(alive) == 1
        if number == signal.SIGKILL:
            make_toy_cats(tmp_path / "cats", num_pictures=1)
            assert alive[0].is_dir()
            shutil.rmtree(tmp_path / "cats")
        process.send_signal(number)
        _, err = process.communicate()
    if number == signal.SIGKILL:
        assert list(tmp_path.iterdir()) == alive
        make_toy_cats(tmp_path / "cats", num_pictures=1)
        assert list(tmp_path.iterdir()) == [tmp_path / "cats"]
    else:
        assert (process.returncode, err.strip()) == (128 + number, "interrupted")
        assert list(tmp_path.iterdir()) == []


def test_same_seed_same_bytes_and_a_prefix_of_more(tmp_path):
    for name, num, seed in (("a", 4, 7), ("b", 4, 7), ("more", 6, 7), ("other", 4, 8)):
        make_toy_cats(tmp_path / name, num_pictures=num, seed=seed)
    first, again, more, other = (contents(tmp_path / name) for name in ("a", "b", "more", "other"))
    assert first == again
    assert all(more[name] == digest for name, digest in first.items() if name != "metadata.jsonl")
    assert not set(first.values()) & set(other.values())


def test_random_stream_is_the_documented_one():
    """Drawn cats stay the same across Python versions as long as seeding with a string does (version 2, SHA-512)."""
    first = Random("toy-cats/picture/0/0").random()
    seed = b"toy-cats/picture/0/0"
    assert first == Random(int.from_bytes(seed + hashlib.sha512(seed).digest(), "big")).random()


@pytest.mark.parametrize("options", [{"num_pictures": 0}, {"num_pictures": 10**6}, {"num_pictures": 1, "size": 4}])
def test_numbers_out_of_range(tmp_path, options):
    with pytest.raises(LdmkitError, match="toy cats: "):
        make_toy_cats(tmp_path / "cats", **options)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_nothing_left_behind(tmp_path, monkeypatch):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "mine.txt").touch()
    with pytest.raises(LdmkitError, match="not an empty folder"):
        make_toy_cats(tmp_path / "cats", num_pictures=1)
    monkeypatch.setattr(toy_cats, "draw_toy_cat", lambda *_args, **_kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_toy_cats(tmp_path / "new", num_pictures=1)
    assert [path.name for path in tmp_path.rglob("*")] == ["cats", "mine.txt"]


def test_palettes_are_far_apart():
    """In CIELAB by littleCMS; 25 is ten times what is just noticed."""
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    for palette in (FUR, EYES, BACKGROUND):
        strip = Image.new("RGB", (len(palette), 1))
        strip.putdata(list(palette.values()))
        lab = np.asarray(to_lab.apply(strip)).astype(float)[0]
        lab = np.stack([lab[:, 0] / 2.55, *((lab[:, axis].astype(np.uint8).view(np.int8)) for axis in (1, 2))], axis=-1)
        distances = np.linalg.norm(lab[:, None] - lab, axis=-1)
        assert distances[~np.eye(len(palette), dtype=bool)].min() > 25
    assert (len(FUR), len(EYES), len(BACKGROUND)) >= (6, 4, 6)


def test_lab_agrees_with_littlecms(reader):
    """littleCMS's Lab is relative to D50, so that greys and hue angles are compared, not colours to the digit."""
    greys = np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[:, None], 3, axis=1)
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    found = np.asarray(to_lab.apply(Image.fromarray(greys[None])))[0, :, 0] / 2.55
    np.testing.assert_allclose(reader.rgb_to_lab(greys)[:, 0], found, atol=0.4)
    # CIE 15:2004 values of the sRGB primaries under D65, as published in colour calculators
    primaries = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
    published = [[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(reader.rgb_to_lab(primaries), published, atol=0.02)


ATTRIBUTES = {"fur": FUR, "eyes": EYES, "coat": COATS, "background": BACKGROUND}


def compositions(*, unseen):
    """Every composition of attributes by enumeration: those that show a held-out pair, or those that show none."""
    every = [dict(zip(ATTRIBUTES, values, strict=True)) for values in itertools.product(*ATTRIBUTES.values())]
    return [c for c in every if any(pair.items() <= c.items() for pair in HELD_OUT_PAIRS) == unseen]


def test_ten_pairs_are_held_out_and_every_attribute_is_still_seen():
    seen, unseen = compositions(unseen=False), compositions(unseen=True)
    assert len(seen) + len(unseen) == 6 * 4 * 2 * 7
    assert len({tuple(sorted(pair.items())) for pair in HELD_OUT_PAIRS}) == 10
    assert {len(pair) for pair in HELD_OUT_PAIRS} == {2}
    for attribute, names in ATTRIBUTES.items():
        assert {c[attribute] for c in seen} == set(names)


@pytest.mark.parametrize("unseen", [False, True])
def test_pictures_and_prompts_show_held_out_pairs_only_when_asked(tmp_path, unseen):
    allowed = compositions(unseen=unseen)
    make_toy_cats(tmp_path / "cats", num_pictures=100, size=16, seed=2, unseen=unseen)
    drawn = [{key: row[key] for key in ATTRIBUTES} for row in rows_of(tmp_path / "cats")]
    asked = [{key: getattr(prompt, key) for key in ATTRIBUTES} for prompt in prompts(1000, seed=2, unseen=unseen)]
    assert all(composition in allowed for composition in [*drawn, *asked])


@pytest.mark.parametrize("unseen", [False, True])
def test_compositions_are_drawn_evenly(unseen):
    """Pearson's chi-squared test against the uniform distribution over what the enumeration allows."""
    allowed = compositions(unseen=unseen)
    drawn = Counter(tuple(getattr(p, key) for key in ATTRIBUTES) for p in prompts(6000, seed=5, unseen=unseen))
    assert len(drawn) == len(allowed)
    assert chisquare(list(drawn.values())).pvalue > 1e-3
    for attribute, names in ATTRIBUTES.items():
        counts = [
            sum(n for cat, n in drawn.items() if cat[list(ATTRIBUTES).index(attribute)] == name) for name in names
        ]
        expected = [6000 * sum(c[attribute] == name for c in allowed) / len(allowed) for name in names]
        assert chisquare(counts, expected).pvalue > 1e-3


def test_prompts_are_a_seeds_own(tmp_path):
    wanted = prompts(300, seed=1)
    assert wanted == prompts(300, seed=1)
    assert wanted[:10] == prompts(10, seed=1)
    assert wanted != prompts(300, seed=2)
    make_toy_cats(tmp_path / "cats", num_pictures=100, size=16, seed=1)
    attributes = ("fur", "eyes", "coat", "background")
    trained = [tuple(row[key] for key in attributes) for row in rows_of(tmp_path / "cats")]
    assert trained != [tuple(getattr(prompt, key) for key in attributes) for prompt in wanted[:100]]


def test_pictures_are_what_they_were_when_captions_were_few(tmp_path):
    """SHA-256 of the pixels of the plain cats among twelve pictures, as the first version of the captions left their
    streams, and with stripes of any breadth."""
    make_toy_cats(tmp_path / "cats", num_pictures=12, size=16)
    rows = [row for row in rows_of(tmp_path / "cats") if row["coat"] == "plain"]
    assert len(rows) == 11
    pixels = b"".join(Image.open(tmp_path / "cats" / row["file_name"]).tobytes() for row in rows)
    assert hashlib.sha256(pixels).hexdigest() == "8b6a2b615858879da4de5805709ac1a9d40e9f48eb42cb9a7372b54990b912b1"


@pytest.mark.parametrize("blur", [0, 1])
def test_reader_reads_what_was_drawn(reader, blur):
    """A blur of one pixel stands for the autoencoder's."""
    wrong = dict.fromkeys(reader.ATTRIBUTES, 0)
    for prompt in prompts(100, seed=9) + prompts(50, seed=9, unseen=True):
        rng = Random(f"reader/{prompt.text}")
        image = draw_toy_cat(prompt, rng).filter(ImageFilter.GaussianBlur(blur))
        read = reader.read_attributes(image)
        mirrored = reader.read_attributes(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        for attribute in reader.ATTRIBUTES:
            wrong[attribute] += getattr(read, attribute) != getattr(prompt, attribute)
            wrong[attribute] += getattr(mirrored, attribute) != getattr(prompt, attribute)
    assert max(wrong.values()) <= 3, wrong  # of 300: at least 99%


def test_reader_knows_when_there_is_no_cat(reader):
    for color in BACKGROUND.values():
        read = reader.read_attributes(Image.new("RGB", (64, 64), color))
        assert (read.fur, read.eyes, read.coat) == (None, None, "plain")


def test_iris_hues_are_the_palettes(reader):
    """HSV, by the standard library, orders the irises as the reader's Lab hue bands do."""
    hues = {name: colorsys.rgb_to_hsv(*(value / 255 for value in color))[0] for name, color in EYES.items()}
    assert sorted(hues, key=hues.__getitem__) == ["yellow", "green", "turquoise", "blue"]


def test_benchmark_scores_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(toy_accuracy, "NUM_READER_CHECK", 50)

    make_toy_cats(tmp_path / "cats", num_pictures=20, seed=3)
    rows = rows_of(tmp_path / "cats")
    rows[0]["fur"] = next(name for name in FUR if name != rows[0]["fur"])
    (tmp_path / "cats" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    toy_accuracy.main(pictures=tmp_path / "cats")
    *table, mistake = capsys.readouterr().out.splitlines()
    assert [line.split() for line in table] == [
        ["reader", "pictures"],
        ["pictures", "50", "20"],
        ["fur", "100.0%", "95.0%"],
        *([name, "100.0%", "100.0%"] for name in ("eyes", "coat", "background")),
        ["all", "100.0%", "95.0%"],
        ["pairs", "100.0%"],
        ["unasked"],
    ]
    assert mistake.startswith("pictures 00000.png: fur ")
    with pytest.raises(LdmkitError, match=r"metadata.jsonl: cannot be read"):
        toy_accuracy.main(pictures=tmp_path)


def test_benchmark_counts_held_out_pairs(tmp_path):
    """Of four pictures of a held-out composition one is drawn wrong in the pair, one only beside it."""
    wanted = {"fur": "orange", "eyes": "green", "coat": "plain", "background": "purple"}
    drawn = [{}, {}, {"background": "teal"}, {"eyes": "blue"}]
    rows = []
    for number, wrong in enumerate(drawn):
        picture = draw_toy_cat(ToyCat(**{**wanted, **wrong}), Random(f"pairs/{number}"))
        picture.save(tmp_path / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", **wanted}) + "\n")
    (tmp_path / "metadata.jsonl").write_text("".join(rows))
    accuracy = toy_accuracy.score_folder(tmp_path).accuracy
    assert accuracy == {"fur": 1, "eyes": 0.75, "coat": 1, "background": 0.75, "all": 0.5, "pairs": 0.75}


def test_what_was_not_asked_for_is_compared_with_the_set(tmp_path):
    """Asked for a white cat alone: the set has no white cat on teal and none with yellow eyes, and all else evenly."""
    seen = [composition for composition in compositions(unseen=False) if composition["fur"] == "white"]
    rows = [{"asked": ["fur"], "text": "a white cat", **composition} for composition in seen]
    score = toy_accuracy.Score()
    for number, row in enumerate(rows):
        drawn = {key: row[key] for key in ATTRIBUTES}
        score.add("", draw_toy_cat(ToyCat(**drawn), Random(f"unasked/{number}")), row)
    assert score.accuracy == {"fur": 1, "all": 1, "unasked": pytest.approx(1)}
    assert ("background", "teal") not in score.expected
    assert score.expected["coat", "tabby"] == pytest.approx(sum(row["coat"] == "tabby" for row in rows))
    # A model that draws pink walls where it was not told one
    drawn = draw_toy_cat(ToyCat(fur="white", eyes="blue", coat="plain", background="pink"), Random(0))
    score.add("", drawn, rows[0])
    assert score.accuracy["unasked"] < 1
    for _ in range(4 * len(rows)):
        score.add("", drawn, rows[0])
    assert score.accuracy["unasked"] < 0.25


def test_benchmark_asks_for_nothing_it_trained_on():
    first = toy_accuracy.new_prompts(5, trained_on=[])
    again = toy_accuracy.new_prompts(5, trained_on=[first[0].text.capitalize()])
    assert again[:4] == first[1:]
    allowed = compositions(unseen=True)
    for prompt in toy_accuracy.new_prompts(20, trained_on=[], **toy_accuracy.KINDS["unseen pairs"]):
        assert {key: getattr(prompt, key) for key in ATTRIBUTES} in allowed
    with pytest.raises(LdmkitError, match="--num 5: only 0 prompts"):
        toy_accuracy.new_prompts(5, trained_on=[prompt.text for prompt in prompts(100, toy_accuracy.HELD_OUT_SEED)])


def test_captions_are_those_of_the_drawn_set(tmp_path: Path) -> None:
    make_toy_cats(tmp_path / "drawn", num_pictures=9, size=16, seed=4)
    rows = (tmp_path / "drawn" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert captions(9, seed=4) == [json.loads(row)["text"] for row in rows]

"""What is wrong with a set of pictures and its captions, by kind."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFilter, ImageOps

from ldmkit.components.registry import Registry
from ldmkit.data.check import Check, check_pictures, held_out_copies
from ldmkit.data.check_captions import check_captions
from ldmkit.data.checked import quarantine, read_excluded, write_excluded
from ldmkit.data.looks import Look
from ldmkit.data.pictures import PictureIndex, scan
from ldmkit.data.sources import Source
from ldmkit.errors import LdmkitError
from ldmkit.recipe.data import Data
from ldmkit.recipe.sections import Recipe
from tests.data.test_looks import photo

CASES = Path(__file__).parents[3] / "shared" / "cases" / "data"


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def write(name: str, image: Image.Image) -> None:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "set" / name)

    return write


def checked(folder: Path, **data: Any) -> Check:
    return check_pictures(scan(folder, max_bad=None, looks=True), Data(path=str(folder), **data), seed=1)


def files(check: Check, kind: str) -> list[str]:
    return [finding.file for finding in check.findings.get(kind, [])]


def test_each_kind_is_found_and_nothing_else(save: Any, tmp_path: Path) -> None:
    for seed in range(6):
        save(f"good {seed}.png", photo(seed))
    save("blurred.png", photo(10).filter(ImageFilter.GaussianBlur(9)))
    save("blank.png", Image.new("RGB", (100, 100), "teal"))
    save("small.png", photo(11, (48, 40)))
    save("wide.png", photo(12, (400, 100)))
    save("like.png", ImageOps.mirror(photo(3)).resize((150, 120)))
    (tmp_path / "set" / "broken.png").write_bytes(b"x")
    check = checked(tmp_path / "set", held_out=0.0)
    assert {kind: files(check, kind) for kind in check.findings} == {
        "unusable": ["broken.png"],
        "near_duplicates": ["like.png"],
        "blank": ["blank.png"],
        "blurred": ["blurred.png"],
        "small": ["small.png"],
        "cropped": ["wide.png"],
    }
    assert check.findings["near_duplicates"][0].other == "good 3.png", "the larger one is kept"
    assert check.dispensable().keys() == {"like.png", "blank.png", "blurred.png", "small.png"}
    assert "small.png: 48x40 is enlarged 1.6 times" in "\n".join(check.lines(every=True))


def test_the_summary_groups_what_has_one_reason(tmp_path: Path, save: Any) -> None:
    save("a.png", photo(0))
    for number in range(30):
        (tmp_path / "set" / f"{number:02d}.png").write_bytes(b"x")
    lines = checked(tmp_path / "set").lines()
    assert lines[0] == "cannot be used: 30"
    assert lines[1].startswith("  00.png, 01.png, 02.png and 27 more: not a JPEG")
    assert len(lines) == 2
    assert len(checked(tmp_path / "set").lines(every=True)) == 31


@pytest.mark.parametrize(
    ("sizes", "proposal"),
    [
        ([(160, 160)] * 8 + [(160, 120)] * 2, "that fits"),
        ([(160, 120)] * 8 + [(160, 160)] * 2, "data.size = [72, 56] would fit 8 of them"),
        ([(90, 160)] * 5 + [(160, 90)] * 5 + [(100, 100)], "data.buckets would"),
    ],
)
def test_shapes_and_what_is_cut_away(sizes: list[tuple[int, int]], proposal: str, save: Any, tmp_path: Path) -> None:
    for number, size in enumerate(sizes):
        save(f"{number:02d}.png", photo(number, size))
    check = checked(tmp_path / "set", size=64)
    assert check.cut == pytest.approx(sum(1 - min(size) / max(size) for size in sizes) / len(sizes))
    assert check.proposal.endswith(proposal)


def straddles(index: PictureIndex, groups: list[set[str]], *, together: bool) -> bool:
    for seed in range(8):
        held = {index.entries[i].key for i in index.split(0.3, seed, together=together)[1]}
        assert held
        if any(group & held and group - held for group in groups):
            return True
    return False


def test_near_duplicates_go_to_one_side_where_the_recipe_says_so(save: Any, tmp_path: Path) -> None:
    groups = []
    for seed in range(8):
        save(f"{seed}.png", photo(seed))
        save(f"{seed}.jpg", photo(seed))
        groups.append({f"{seed}.png", f"{seed}.jpg"})
    index = scan(tmp_path / "set", looks=True)
    assert straddles(index, groups, together=False)
    assert not straddles(index, groups, together=True)
    plain = scan(tmp_path / "set")
    assert [plain.split(0.3, seed) for seed in range(5)] == [index.split(0.3, seed) for seed in range(5)]
    check = checked(tmp_path / "set", held_out=0.3)
    held = {index.entries[i].key for i in index.split(0.3, 1)[1]}
    assert {row.file for row in check.findings["straddling"]} == {
        key for group in groups for key in group - held if group & held
    }
    assert "straddling" not in checked(tmp_path / "set", held_out=0.3, group_duplicates=True).findings


def test_a_run_names_the_held_out_pictures_that_look_like_one_that_trains(
    save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imagehash = pytest.importorskip("imagehash")
    folder, data = tmp_path / "set", Data(path=str(tmp_path / "set"), held_out=0.4)
    for seed in range(12):
        save(f"{seed}.png", photo(seed))
        save(f"{seed} again.jpg", ImageOps.mirror(photo(seed)))
        save(f"{seed} alone.png", photo(100 + seed))
        save(f"{seed} blank.png", Image.new("L", (100, 100), 10 * seed))
    index = scan(folder)
    sides = [
        [index.entries[i].key for i in side if "blank" not in index.entries[i].key] for side in index.split(0.4, 3)
    ]
    train, held = ([(key, Image.open(folder / key)) for key in side] for side in sides)
    phash = partial(imagehash.phash, hash_size=16)
    hashes = [(key, phash(image), phash(ImageOps.mirror(image))) for key, image in train]
    pairs = []
    for key, image in held:
        own = phash(image)
        pairs += [f"{key} like {other}" for other, *its in hashes if min(own - one for one in its) <= 40][:1]
    assert 3 < len(pairs) < len(held)
    (line,) = held_out_copies(index, data, 3)
    assert line.startswith(f"{len(pairs)} of {len(held)} held-out pictures look like one that trains, so that ")
    assert f"should be: {', '.join(pairs[:3])}, ...; " in line
    for other in ({"group_duplicates": True}, {"held_out": 0.0}, {"source": "toy-cats"}):
        assert held_out_copies(index, data.model_copy(update=other), 3) == []
    monkeypatch.setattr("ldmkit.data.check.MOST_PAIRS", len(held) * len(train) // 2)
    (line,) = held_out_copies(index, data, 3)
    assert f" of {-(-len(held) // 3)} held-out pictures compared look like one" in line


def test_reading_for_looks_keeps_what_was_read(save: Any, tmp_path: Path) -> None:
    save("a.png", photo(0))
    folder, own, other = tmp_path / "set", tmp_path / "own.safetensors", tmp_path / "other.safetensors"
    plain = scan(folder, index_cache=own)
    assert plain.entries[0].look == Look.at(photo(0), sharpness=False)
    looked = scan(folder, index_cache=other, also=own, looks=True)
    assert looked.entries[0].look is not None
    assert looked.entries[0].look.sharpness
    read = []
    for _ in range(2):
        again = scan(folder, index_cache=own, also=other, looks=True, progress=lambda *done: read.append(done))
        assert again == looked
    assert read == [], "a picture was decoded anew"
    assert scan(folder, index_cache=other).hash == plain.hash


@pytest.mark.parametrize("look", [["00" * 32, 3], ["0" * 63, 3, []], ["00" * 32, "3", []], ["00" * 32, 3, ["x"]], None])
def test_a_spoilt_look_is_looked_for_again(look: Any, save: Any, tmp_path: Path) -> None:
    save("a.png", photo(0))
    whole = scan(tmp_path / "set", looks=True)
    row = {key: value for key, value in asdict(whole.entries[0]).items() if key != "key"} | {"look": look}
    table = {"version": 3, "folder": str(tmp_path / "set"), "pictures": {"a.png": row}}
    (tmp_path / "pictures.json").write_text(json.dumps(table))
    assert scan(tmp_path / "set", index_cache=tmp_path / "pictures.safetensors", looks=True) == whole


# --- what is left out, and moved -----------------------------------------------------------------------------


def test_a_list_to_exclude(save: Any, tmp_path: Path) -> None:
    names = ["a.png", "line\nbreak.png", "sub/ü.png"]
    for number, name in enumerate(names):
        save(name, photo(number))
    file = tmp_path / "exclude.jsonl"
    write_excluded(file, dict.fromkeys(names[1:], "why"))
    index = scan(tmp_path / "set", excluded=read_excluded(str(file)))
    assert [entry.key for entry in index.entries] == ["a.png"]
    assert read_excluded("") == frozenset()
    file.write_text('{"file": "a.png"}\n\n["a.png"]\n')
    with pytest.raises(LdmkitError, match=r"data\.exclude: .*exclude\.jsonl, line 3: needs an object"):
        read_excluded(str(file))
    with pytest.raises(LdmkitError, match=r"data\.exclude: .*gone cannot be read: No such file"):
        read_excluded(str(tmp_path / "gone"))


def test_quarantine_moves_all_or_nothing(save: Any, tmp_path: Path) -> None:
    folder, to = tmp_path / "set", tmp_path / "aside"
    for number, name in enumerate(("a.png", "sub/b.png", "c.png")):
        save(name, photo(number))
    (folder / "sub" / "b.txt").write_text("a cat")
    before = sorted(folder.rglob("*"))
    reasons = {"a.png": "blank", "sub/b.png": "blurred", "gone.png": "gone"}
    with pytest.raises(LdmkitError, match="lies inside"):
        quarantine(Source(folder), reasons, folder / "aside", {})
    (to / "sub").mkdir(parents=True)
    (to / "sub" / "b.png").touch()
    with pytest.raises(LdmkitError, match=r"holds sub/b\.png already"):
        quarantine(Source(folder), reasons, to, {})
    assert sorted(folder.rglob("*")) == before
    (to / "sub" / "b.png").unlink()
    assert quarantine(Source(folder), reasons, to, {"sub/b.png": ["sub/b.txt"]}) == 2
    assert {str(path.relative_to(to)) for path in to.rglob("*") if path.is_file()} == {
        "a.png",
        "sub/b.png",
        "sub/b.txt",
        "moved.jsonl",
    }
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["c.png"]
    rows = [json.loads(line) for line in (to / "moved.jsonl").read_text().splitlines()]
    assert {row["file"]: row["reason"] for row in rows} == {"a.png": "blank", "sub/b.png": "blurred"}


# --- captions ------------------------------------------------------------------------------------------------


@pytest.fixture
def with_captions(tmp_path: Path) -> Any:
    def make(texts: dict[str, str | bytes | None], more: dict[str, str] | None = None, **sections: Any) -> Check:
        folder = tmp_path / "set"
        folder.mkdir()
        for key, text in texts.items():
            Image.new("RGB", (8, 8)).save(folder / f"{key}.png")
            if text is not None:
                (folder / f"{key}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        for name, text in (more or {}).items():
            (folder / name).write_text(text)
        table = {"vae": {"steps": 1}, "t2i": {"steps": 1}, "data": {"path": str(folder)}, **sections}
        check = Check(scan(folder))
        check_captions(check, Recipe.model_validate(table), Registry.load())
        return check

    return make


def test_every_caption_is_accounted_for(with_captions: Any) -> None:
    check = with_captions(
        {"a": "a cat", "b": None, "c": "süß".encode("cp1252"), "d": "猫".encode("shift-jis"), "e": "", "f": "x"},
        {"g.txt": "nobody's"},
    )
    assert {kind: files(check, kind) for kind in check.findings} == {
        "caption_missing": ["b.png"],
        "caption_unreadable": ["c.txt", "d.txt"],
        "caption_orphaned": ["g.txt"],
    }
    assert check.facts[0].startswith("captions: 3 of 6 pictures have one beside them; words in the shortest 0")
    assert check.facts[0].endswith("; 1 of them empty")
    assert check.facts[1:] == ["  a.png: a cat", "  e.png: ", "  f.png: x"]


def test_a_table_that_cannot_be_read_is_one_finding(with_captions: Any) -> None:
    check = with_captions({"a": None, "b": None, "c": "a cat"}, {"metadata.csv": "name;text\na;b\n"})
    (finding,) = check.findings["caption_unreadable"]
    assert "metadata.csv, line 2: needs" in finding.reason


def test_repeated_and_boilerplate(with_captions: Any) -> None:
    texts = {f"{number}": f"a photo of a cat number {number}" for number in range(6)}
    check = with_captions({**texts, "x": "the same", "y": "the same", "z": "another"})
    (repeated,) = check.findings["caption_repeated"]
    assert (repeated.file, repeated.reason) == ("x.png", "it and 1 others: the same")
    (boilerplate,) = check.findings["caption_boilerplate"]
    assert boilerplate.reason == "6 of 9 begin with: a photo of a cat number"


def test_what_the_text_encoder_cuts(with_captions: Any) -> None:
    long = "one two three four five six seven eight nine ten"
    text = {"use": "transformer", "max_tokens": 8, "vocab_size": 300}
    check = with_captions({"a": "cat", "b": long}, text=text)
    (cut,) = check.findings["caption_cut"]
    left = cut.reason.partition("without: ")[2]
    assert cut.file == "b.png"
    assert long.endswith(left)
    # Of 8 tokens two are the beginning's and the end's: a vocabulary of bytes leaves 6 letters with the first space.
    assert len(long) - len(left) in range(4, 12)


def test_captions_that_another_captioner_writes_are_not_missing(with_captions: Any) -> None:
    check = with_captions({"a": "a cat", "b": None}, caption={"use": "palette"})
    assert "caption_missing" not in check.findings
    assert "captions: the captioner palette is to write 1 of them" in check.facts


# --- cases from public reports ---------------------------------------------------------------------------------


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases lie beside the repository")
def test_case_of_near_duplicates() -> None:
    index = scan(CASES / "22-same-pixels-near-duplicates" / "pics", looks=True)
    groups: dict[str, set[str]] = {}
    for entry in index.entries:
        groups.setdefault(index.alike[entry.sha256], set()).add(entry.key)
    zero = {"cat_000.jpg", "copy_as.png", "copy_cropped.jpg", "copy_half.jpg", "copy_mirrored.jpg"}
    assert sorted(sorted(own) for own in groups.values() if len(own) > 1) == [
        ["burst_0.jpg", "burst_1.jpg", "burst_2.jpg", "burst_3.jpg", "cat_002.jpg"],
        sorted(zero | {"copy_resaved_q70.jpg"}),
        ["cat_001.jpg", "copy_comment.jpg"],
    ]
    assert straddles(index, list(groups.values()), together=False)
    assert not straddles(index, list(groups.values()), together=True)

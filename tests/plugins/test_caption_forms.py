"""Captions as people have them: spellings of names, metadata above the pictures, encodings, class folders."""

import csv
import io
import json

import pytest
from ldmkit_captions import Filename, Folder, Sidecar
from PIL import Image

from ldmkit import LdmkitError
from ldmkit.data.pictures import scan


@pytest.fixture
def captions(tmp_path):
    """Writes the files given, draws the pictures given, and returns their captions by key, and the remarks."""

    def make(pictures, files=None, captioner=None):
        for key in pictures:
            (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(tmp_path / key)
        for name, text in (files or {}).items():
            (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        captioner = captioner or Sidecar()
        found = scan(tmp_path).pictures()
        texts = dict(zip((picture.key for picture in found), captioner.caption(found), strict=True))
        return texts, captioner.remarks() if isinstance(captioner, Sidecar) else []

    return make


def rows(*names, column="text"):
    return "".join(json.dumps({"file_name": name, column: f"row {number}"}) + "\n" for number, name in enumerate(names))


def test_metadata_above_the_pictures(captions):
    texts, remarks = captions(
        ["images/a.png", "images/deep/b.png"], {"metadata.jsonl": rows("images/a.png", "gone.png", "images/deep/b.png")}
    )
    assert texts == {"images/a.png": "row 0", "images/deep/b.png": "row 2"}
    assert len(remarks) == 1
    assert "gone.png, which is not there" in remarks[0]


def test_names_spelled_otherwise(captions):
    names = ["./0.png", ".\\1.png", "/data/pics/2.png", "3.PNG", "C:\\pics\\4.png"]
    texts, remarks = captions([f"{number}.png" for number in range(5)], {"metadata.jsonl": rows(*names)})
    assert texts == {f"{number}.png": f"row {number}" for number in range(5)}
    assert remarks == []


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_usual_columns_are_found_and_any_can_be_named(column, captions):
    assert captions(["a.png"], {"metadata.jsonl": rows("a.png", column=column)})[0] == {"a.png": "row 0"}


def test_a_column_of_a_csv(captions):
    table = 'file_name,title,text\r\na.png,"one, ""two""\r\nthree",x\r\n'
    assert captions(["a.png"], {"metadata.csv": table}, Sidecar(column="title"))[0] == {"a.png": 'one, "two" three'}


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv_with_any_usual_separator(separator, captions):
    """As the standard library's writer and Excel's locales have it: the caption holds every one of them."""
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator).writerows([["text", "file_name"], ["a cat; grey, 2\tkg | old", "a.png"]])
    assert captions(["a.png"], {"metadata.csv": file.getvalue()})[0] == {"a.png": "a cat; grey, 2 kg | old"}


def test_an_empty_caption_is_one_and_null_is_none(captions):
    lines = [{"file_name": "a.png", "text": ""}, {"file_name": "b.png", "text": None}]
    texts, _ = captions(["a.png", "b.png", "c.png"], {"metadata.jsonl": "\n".join(map(json.dumps, lines))})
    assert texts == {"a.png": "", "b.png": None, "c.png": None}


def test_parquet(captions, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"file_name": ["a.png"], "text": ["a cat"]}), tmp_path / "metadata.parquet")
    assert captions(["a.png"])[0] == {"a.png": "a cat"}


def test_sidecars_in_another_case_and_after_the_whole_name(captions):
    files = {"IMG_0.TXT": "zero", "IMG_1.JPG.txt": "one", "img_2.txt": "two", "other.txt": "nobody's", "IMG_3.txt": ""}
    texts, remarks = captions([f"IMG_{number}.JPG" for number in range(4)], files)
    assert texts == {"IMG_0.JPG": "zero", "IMG_1.JPG": "one", "IMG_2.JPG": "two", "IMG_3.JPG": ""}
    assert len(remarks) == 1
    assert "other.txt: a caption without a picture" in remarks[0]


def test_a_caption_in_another_case_stays_with_its_own_picture(captions):
    assert captions(["a.png", "A.png"], {"a.txt": "small"})[0] == {"a.png": "small", "A.png": None}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_encodings_with_a_mark(encoding, captions):
    assert captions(["a.png"], {"a.txt": "süße Katze".encode(encoding)})[0] == {"a.png": "süße Katze"}


def test_all_files_of_other_encodings_are_named_at_once(captions):
    bad = {"a.txt": "süß".encode("cp1252"), "b.txt": "cat".encode("utf-16-le"), "c/c.TXT": "猫です".encode("shift-jis")}
    with pytest.raises(LdmkitError, match=r"(?s)UTF-8: .*a\.txt, .*b\.txt, .*c\.TXT$"):
        captions(["a.png", "b.png", "c/c.png", "d.png"], {**bad, "d.txt": "good"})


CAMERAS = ["IMG_0042", "DSC00017", "PXL_20230101_101112", "P1010001", "IMG-20230101-WA0003", "IMG_E1234", "_MG_1234"]


@pytest.mark.parametrize(
    "name",
    [*CAMERAS, "WhatsApp Image 2023-01-02 at 10.11.12 PM", "9b2f6c1e-0b1a-4c7d-9a55-0123456789ab", "0a" * 16],
)
def test_names_by_cameras_are_no_captions(name, captions):
    assert captions([f"{name}.png", "photo of a cat.png"], captioner=Filename())[0] == {
        f"{name}.png": None,
        "photo of a cat.png": "photo of a cat",
    }


def test_class_folders(captions):
    texts, _ = captions(["black cat/1.png", "10_tabby/2.png", "x/Siamese/3.png", "0.png"], captioner=Folder())
    assert texts == {
        "black cat/1.png": "black cat",
        "10_tabby/2.png": "tabby",
        "x/Siamese/3.png": "Siamese",
        "0.png": None,
    }

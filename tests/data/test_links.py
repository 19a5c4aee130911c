"""Symbolic links are followed where the recipe says so, and what is not followed is said."""

import hashlib
import os

import pytest
from ldmkit_captions import Sidecar
from PIL import Image

from ldmkit import LdmkitError
from ldmkit.data.captions import caption_content_hash
from ldmkit.data.pictures import scan


def draw(path, color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), color).save(path)
    return path


def keys(index):
    return [entry.key for entry in index.entries]


@pytest.fixture
def hub(tmp_path):
    """A data set as the Hugging Face hub's client keeps it: names are links to contents."""
    repository = tmp_path / "datasets--me--cats"
    snapshot = repository / "snapshots" / "abc123"
    (repository / "blobs").mkdir(parents=True)
    (snapshot / "data").mkdir(parents=True)
    files = {f"data/{color}.jpg": draw(tmp_path / f"{color}.jpg", color).read_bytes() for color in ("red", "blue")}
    files["metadata.jsonl"] = b'{"file_name": "data/red.jpg", "text": "a red cat"}\n'
    for name, data in files.items():
        blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    return snapshot


def test_a_hub_cache_is_read_with_its_captions(hub, tmp_path):
    index = scan(hub)
    assert keys(index) == ["data/blue.jpg", "data/red.jpg"]
    assert Sidecar().caption(index.pictures()) == [None, "a red cat"]
    (hub / "secret.jpg").symlink_to(draw(tmp_path / "secret.jpg"))  # its own blobs, and nothing else
    assert "outside of data.follow_links" in dict(scan(hub, max_bad=1).rejected)["secret.jpg"]


def test_links_lead_into_named_folders_alone(tmp_path):
    draw(tmp_path / "nas" / "cats" / "a.png")
    draw(tmp_path / "nas" / "b.png", "blue")
    draw(tmp_path / "other" / "c.png", "green")
    data = tmp_path / "data"
    draw(data / "own.png", "white")
    for name, target in {"cats": "nas/cats", "b.png": "nas/b.png", "c.png": "other/c.png", "d": "other"}.items():
        (data / name).symlink_to(tmp_path / target)
    (data / "gone.png").symlink_to(tmp_path / "nas" / "nowhere.png")
    (data / "disk").symlink_to("/nowhere/at/all")
    index = scan(data, follow_links=["../nas"], max_bad=1)
    assert keys(index) == ["b.png", "cats/a.png", "own.png"]
    reasons = dict(index.rejected)
    assert list(reasons) == ["c.png", "d", "disk", "gone.png"]
    assert str(tmp_path / "other" / "c.png") in reasons["c.png"]
    assert reasons["gone.png"] == reasons["disk"] == "a symbolic link to nothing"
    assert keys(scan(data, follow_links=[str(tmp_path / "nas")], max_bad=1)) == keys(index)


def test_loops_end(tmp_path):
    data = tmp_path / "data"
    draw(data / "x" / "a.png")
    (data / "x" / "up").symlink_to(data)
    (data / "itself").symlink_to("itself")
    (data / "out").symlink_to(tmp_path)  # which holds the data set
    (data / "again").symlink_to(data / "x")
    index = scan(data, follow_links=[".."], max_bad=1)
    assert keys(index) == ["x/a.png"]
    assert [line for line in index.unread if "read under its own name" in line] == [
        f"{name}/: leads to a folder that is read under its own name" for name in ("again", "out/data", "x/up")
    ]
    assert dict(index.rejected) == {"itself": "a symbolic link to nothing"}


def test_a_caption_that_is_a_link_is_read_where_links_are_followed(tmp_path):
    data = tmp_path / "data"
    draw(data / "a.png")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a cat")
    (data / "a.txt").symlink_to(tmp_path / "texts" / "a.txt")
    followed = scan(data, follow_links=["../texts"])
    assert Sidecar().caption(followed.pictures()) == ["a cat"]
    before = caption_content_hash(followed.source)
    (tmp_path / "texts" / "a.txt").write_text("a dog")
    assert caption_content_hash(followed.source) != before
    with pytest.raises(LdmkitError, match=r"a\.txt: a symbolic link, which is not followed"):
        Sidecar().caption(scan(data).pictures())

"""Shards by a pattern, over HTTP with breaks, and a repository as the hub's own client lays it out."""

import io
import json
import re
import tarfile
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ldmkit_captions import Sidecar
from PIL import Image

from ldmkit import LdmkitError
from ldmkit.data import remote
from ldmkit.data.pictures import scan
from ldmkit.data.sources import is_there


def shard(numbers):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as opened:
        for number in numbers:
            picture = io.BytesIO()
            Image.new("RGB", (9, 9), (number, 0, 0)).save(picture, "PNG")
            for name, data in ((f"{number:06}.png", picture.getvalue()), (f"{number:06}.txt", b"cat %d" % number)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                opened.addfile(info, io.BytesIO(data))
    return file.getvalue()


SHARDS = {f"cats-{n:03}.tar": shard(range(3 * n, 3 * n + 3)) for n in range(9, 12)}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDMKIT_CACHE", str(tmp_path / "cache"))


class Server(ThreadingHTTPServer):
    """Serves `files` by path; the first answers with a body break off after `breaks` bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.breaks, self.version = {}, [], [], "1"
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server, path = self.server, self.path.partition("?")[0]
        server.asked.append((path, self.headers.get("Range")))
        if path not in server.files:
            return self.send_error(404)
        data, start = server.files[path], 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        tag = f'"{zlib.crc32(path.encode())}-{server.version}"'  # the hub's client keeps contents by it
        if asked and self.headers.get("If-Range", tag) == tag:
            start = int(asked[1])
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            stop = server.breaks.pop(0) if server.breaks else len(data)
            self.wfile.write(data[start : start + stop])
        return None


@pytest.fixture
def server():
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        serving.files = {f"/sets/{name}": data for name, data in SHARDS.items()}
        yield serving
        serving.shutdown()
        thread.join()


def captions(index):
    return Sidecar().caption(index.pictures())


def test_local_shards_by_a_pattern(tmp_path):
    for name, data in SHARDS.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "other.tar").write_bytes(shard([99]))
    path = tmp_path / "cats-{009..011}.tar"
    index = scan(path)
    assert is_there(path)
    assert [entry.key for entry in index.entries][::4] == [f"cats-{n:03}.tar/{4 * n - 9:06}.png" for n in (9, 10, 11)]
    assert captions(index) == [f"cat {number}" for number in range(27, 36)]
    (tmp_path / "cats-010.tar").unlink()
    with pytest.raises(LdmkitError, match=r"data\.path: .*cats-010\.tar does not exist"):
        scan(path)


def test_patterns_are_webdatasets_own():
    braceexpand = pytest.importorskip("braceexpand").braceexpand
    for pattern in ("a-{000..012}.tar", "{8..11}/b-{00..02}.tar", "c.tar"):
        assert remote.expanded(pattern) == list(braceexpand(pattern))
    with pytest.raises(LdmkitError, match="must count up"):
        remote.expanded("a-{5..1}.tar")


def test_shards_over_http_go_on_where_they_broke(server):
    path = Path(f"{server.url}/sets/cats-{{009..011}}.tar")
    assert not is_there(path)
    server.breaks = [5000, 3000, 10**9]
    counted = []
    remote.fetched(remote.address(path), lambda *numbers: counted.append(numbers))
    index = scan(path)
    assert captions(index) == [f"cat {number}" for number in range(27, 36)]
    assert [each for each in server.asked if each[0].endswith("009.tar")] == [
        ("/sets/cats-009.tar", None),
        ("/sets/cats-009.tar", "bytes=5000-"),
        ("/sets/cats-009.tar", "bytes=8000-"),
    ]
    assert counted == [(1, 3), (2, 3), (3, 3)]
    server.files = {}
    assert is_there(path)
    assert scan(path) == index  # from the cache
    (index.folder / "cats-010.tar").unlink()
    assert not is_there(path)


def test_what_has_come_is_kept_and_a_changed_file_is_fetched_anew(server):
    path = Path(f"{server.url}/sets/cats-{{009..009}}.tar")
    server.breaks = [5000, 0, 0, 0]
    with pytest.raises(LdmkitError, match=r"cats-009\.tar cannot be had: .*goes on from there"):
        scan(path)
    server.version, server.files["/sets/cats-009.tar"] = "2", SHARDS["cats-010.tar"]
    server.breaks = []
    assert captions(scan(path)) == ["cat 30", "cat 31", "cat 32"]
    assert server.asked[-1] == ("/sets/cats-009.tar", "bytes=5000-")
    with pytest.raises(LdmkitError, match=r"data\.path: .*none\.tar cannot be had: HTTP 404"):
        scan(Path(f"{server.url}/none.tar"))


def test_a_data_set_of_the_hub(server, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    picture = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(picture, "PNG")
    files = {"data/a.png": picture.getvalue(), "data/cats.tar": shard([7])}
    files["metadata.jsonl"] = json.dumps({"file_name": "data/a.png", "text": "a red cat"}).encode()
    siblings = [{"rfilename": name} for name in files]
    told = json.dumps({"id": "me/cats", "sha": "c" * 40, "siblings": siblings, "private": False}).encode()
    tree = json.dumps([{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in files.items()])
    server.files = {f"/datasets/me/cats/resolve/{'c' * 40}/{name}": data for name, data in files.items()}
    for revision in ("main", "c" * 40):
        server.files[f"/api/datasets/me/cats/revision/{revision}"] = told
        server.files[f"/api/datasets/me/cats/tree/{revision}"] = tree.encode()
    index = scan(Path("hf://me/cats@main"))
    assert [entry.key for entry in index.entries] == ["data/a.png", "data/cats.tar/000007.png"]
    assert captions(index) == ["a red cat", "cat 7"]
    server.files = {}
    assert scan(Path("hf://me/cats@main")) == index
    with pytest.raises(LdmkitError, match=r"data\.path: hf://me/dogs cannot be had from the Hugging Face hub: "):
        scan(Path("hf://me/dogs"))
    with pytest.raises(LdmkitError, match=r"write hf://OWNER/NAME\[@REVISION\]"):
        scan(Path("hf://cats"))

"""`ldmkit export web`, and the server of `ldmkit ui --web`."""

import gzip
import hashlib
import io
import json
import re
import tarfile
import urllib.request
from base64 import b64encode
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ldmkit.cli import cli
from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle
from ldmkit.web import packages, write
from ldmkit.web.packages import COMMAND, PACKAGES, Package, read_members
from ldmkit.web.serve import serving
from ldmkit.web.tables import MAX_STEPS
from tests.web.conftest import SHIPPED


def archive(name: str = "small", **members: bytes) -> tuple[Package, bytes]:
    """An npm package of these files, and what npm would give as it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, data in members.items():
            info = tarfile.TarInfo(f"package/{path}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = buffer.getvalue()
    return Package(name, "1.0.0", b64encode(hashlib.sha512(data).digest()).decode()), data


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_the_page_lists_every_file_by_its_hash(page: Path, bundle: Bundle) -> None:
    web = json.loads((page / "web.json").read_text())
    found = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    assert found == {*web["files"], "web.json", "index.html", "index.sha256"}
    for name, entry in web["files"].items():
        data = (page / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}, name
    index = (page / "index.html").read_bytes()
    assert (page / "index.sha256").read_text().strip() == hashlib.sha256(index).hexdigest()
    assert hashlib.sha256((page / "web.json").read_bytes()).hexdigest() in index.decode()
    assert web["manifest_sha256"] == bundle.sha256
    assert len(web["grids"]["spacings"]["trailing"]) == MAX_STEPS


def test_what_comes_with_it_is_small_and_has_its_licences(page: Path) -> None:
    ours = sum((page / name).stat().st_size for name in ("index.html", "page.js", "worker.js", "style.css", "sw.js"))
    assert ours < 110_000
    text = (page / "runtime" / "LICENSES.txt").read_text()
    assert all(str(package) in text for package in PACKAGES)
    assert "Apache License" in text
    assert "MIT License" in text
    wasm = gzip.decompress((page / "runtime" / "ort-wasm-simd-threaded.wasm.gz").read_bytes())
    assert wasm[:4] == b"\0asm"


def test_the_policy_allows_no_inline_script_and_no_other_host(page: Path) -> None:
    index = (page / "index.html").read_text()
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', index)[0].replace("&#x27;", "'")
    assert "default-src 'none'" in policy
    assert "connect-src 'self';" in policy
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy
    assert re.findall(r"<script(?![^>]*src=)", index) == []
    assert re.findall(r" on\w+=", index) == []
    assert re.findall(r"https?:", index) == []


def test_two_exports_are_the_same(page: Path, tmp_path: Path) -> None:
    list(write.write_page(SHIPPED, tmp_path / "again"))
    for path in page.rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(page)).read_bytes() == path.read_bytes()


def test_with_a_cdn_the_runtime_stays_there_and_is_still_checked(page: Path, tmp_path: Path) -> None:
    list(write.write_page(SHIPPED, tmp_path / "far", cdn="https://cdn.invalid/npm"))
    files = json.loads((tmp_path / "far" / "web.json").read_text())["files"]
    far = {name: entry for name, entry in files.items() if "url" in entry}
    assert len(far) == 3
    for name, entry in far.items():
        assert not (tmp_path / "far" / name).exists()
        assert entry["url"].startswith("https://cdn.invalid/npm/")
        assert re.search(r"@\d+\.\d+\.\d+/dist/", entry["url"])
    assert "connect-src &#x27;self&#x27; https://cdn.invalid;" in (tmp_path / "far" / "index.html").read_text()
    with pytest.raises(LdmkitError, match="--cdn is"):
        list(write.write_page(SHIPPED, tmp_path / "x", cdn="http://cdn.invalid/'; script-src *"))
    assert not (tmp_path / "x").exists()


def test_a_bundle_that_is_damaged_or_of_another_sampler_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in SHIPPED.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((SHIPPED / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["defaults"]["sampler"] = "somebodys"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LdmkitError, match=r"defaults\.sampler is somebodys"):
        list(write.write_page(folder, tmp_path / "site"))
    data = bytearray((folder / "unet.onnx").read_bytes())
    data[1000] ^= 1
    (folder / "unet.onnx").write_bytes(data)
    with pytest.raises(LdmkitError, match="does not match its SHA-256"):
        list(write.write_page(folder, tmp_path / "site"))
    assert not (tmp_path / "site").exists()


def test_the_command_takes_a_bundle_a_run_or_nothing(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("export", "web", "--out", "site").exit_code == 0  # the shipped one
    assert (tmp_path / "site" / "bundle" / "manifest.json").read_bytes() == (SHIPPED / "manifest.json").read_bytes()
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "mine").symlink_to(SHIPPED)
    assert "exports/mine" in run("export", "web", "runs/mine", "--out", "second").output
    again = run("export", "web", "mine", "--out", "site")
    assert "already exists and is not an empty folder" in str(again.exception)
    (tmp_path / "runs" / "other").mkdir(parents=True)
    (tmp_path / "runs" / "other" / "recipe.json").write_text("{}")
    assert "`ldmkit export onnx other` writes it" in str(run("export", "web", "other", "--out", "x").exception)
    assert "neither a bundle nor a run" in str(run("export", "web", "nothing", "--out", "x").exception)


def test_the_runtime_comes_from_a_folder(tmp_path: Path) -> None:
    package, data = archive(**{"dist/a.js": b"a" * 600, "LICENSE": b"free", "dist/b.js": b""})
    with pytest.raises(LdmkitError, match=re.escape(f"there is no small-1.0.0.tgz: run `{COMMAND}` there")):
        read_members(package, ("LICENSE",), tmp_path)
    (tmp_path / package.archive).write_bytes(data)
    found = read_members(package, ("dist/a.js", "dist/b.js", "LICENSE"), tmp_path)
    assert found == {"dist/a.js": b"a" * 600, "dist/b.js": b"", "LICENSE": b"free"}
    (tmp_path / package.archive).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(LdmkitError, match="its SHA-512 is not that of small@1"):
        read_members(package, ("LICENSE",), tmp_path)


def test_what_is_fetched_is_kept_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, data = archive(LICENSE=b"free")
    fetched = []
    monkeypatch.setattr(packages, "cache_folder", lambda _: tmp_path / "cache")
    monkeypatch.setattr(packages, "_fetched", lambda which: fetched.append(which) or data)
    for _ in range(2):
        assert read_members(package, ("LICENSE",), None) == {"LICENSE": b"free"}
    assert len(fetched) == 1
    (tmp_path / "cache" / package.archive).write_bytes(b"damaged")
    assert read_members(package, ("LICENSE",), None) == {"LICENSE": b"free"}
    assert len(fetched) == 2
    monkeypatch.setattr(packages, "_fetched", lambda _: b"something else")
    (tmp_path / "cache" / package.archive).unlink()
    with pytest.raises(LdmkitError, match="its SHA-512 is not the pinned one"):
        read_members(package, ("LICENSE",), None)
    assert not (tmp_path / "cache" / package.archive).exists()


def test_without_npm_the_registry_of_the_environment_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, data = archive("@somebody/small", LICENSE=b"free")
    monkeypatch.setattr(packages, "cache_folder", lambda _: tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LdmkitError, match=re.escape(f"Run `{COMMAND}` in a folder where npm works")):
        read_members(package, ("LICENSE",), None)
    asked = []

    def answer(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        return io.BytesIO(data)

    monkeypatch.setattr(packages, "urlopen", answer)
    monkeypatch.setenv("npm_config_registry", "https://registry.invalid/")
    assert read_members(package, ("LICENSE",), None) == {"LICENSE": b"free"}
    assert asked == ["https://registry.invalid/@somebody/small/-/small-1.0.0.tgz"]


def test_the_server_sends_the_headers_for_threads_and_lists_no_folder(page: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with serving(page) as address:
        with opener.open(address) as answer:
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        with opener.open(f"{address}worker.js") as answer:
            assert answer.headers["Content-Type"].startswith("text/javascript")
        for path in ("bundle/", "%2e%2e/pyproject.toml"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                opener.open(address + path)


def test_ui_web_refuses_what_is_no_page(tmp_path: Path) -> None:
    assert "is not a page: it has no index.html" in str(run("ui", "--web", str(tmp_path)).exception)
    assert run("ui", "somewhere", "--web", str(tmp_path)).exit_code == 2

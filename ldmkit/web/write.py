"""Writes the page: a folder of static files that any web host serves."""

import base64
import gzip
import hashlib
import html
import json
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ldmkit.atomic import new_folder
from ldmkit.errors import LdmkitError
from ldmkit.report import command
from ldmkit.runtime.manifest import MANIFEST, VAE_ENCODER, WEIGHTS, Manifest
from ldmkit.runtime.onnx_backend import OnnxBackend
from ldmkit.web.packages import ONNXRUNTIME, TOKENIZERS, Package, read_members
from ldmkit.web.tables import SAMPLERS, grids

WEB = "web.json"
"""lists the SHA-256 of every other file but index.html, which holds its own"""
INDEX = "index.html"
INDEX_HASH = "index.sha256"
STATIC = ("style.css", "sw.js")
SCRIPTS = ("page.js", "worker.js")
LICENSES = "runtime/LICENSES.txt"
UNUSED = {VAE_ENCODER, WEIGHTS[VAE_ENCODER]}
"""of a bundle: the page starts from noise only"""
_RUNTIMES = {
    "wasm": ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"),
    "webgpu": ("dist/ort.webgpu.bundle.min.mjs", "dist/ort-wasm-simd-threaded.asyncify.wasm"),
}
"""provider -> module and WebAssembly of onnxruntime-web"""
_TOKENIZER = "dist/tokenizers.min.mjs"
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=const|function|async function|class)", re.MULTILINE)


def write_page(
    source: Path, out: Path, *, runtime: Path | None = None, cdn: str | None = None, webgpu: bool = False
) -> Iterator[str]:
    """Writes the page of the bundle in `source` to `out`, a new or empty folder; yields lines for the user.

    `runtime`: a folder with the archives of the npm packages, which are fetched without it. `cdn`: an address under
    which packages lie as NAME@VERSION/FILE; the visitor's browser then gets the runtime from there, checked as ever.
    `webgpu`: adds the larger runtime that computes on the visitor's GPU where that draws the golden pictures well.
    Raises LdmkitError where the bundle is damaged or names a sampler that the page does not know, or the runtime
    cannot be had.
    """
    bundle = OnnxBackend.load(source)
    bundle.verify()
    manifest = bundle.manifest
    _check_samplers(source, manifest)
    if cdn is not None and not re.fullmatch(r"https://[A-Za-z0-9.-]+(:\d+)?(/[\w@.-]+)*/?", cdn):
        raise LdmkitError(f"--cdn is {cdn!r}; it must be an address such as https://HOST/npm")
    table: dict[str, dict[str, Any]] = {}
    with new_folder(out) as folder:
        for name in ("bundle", "runtime"):
            (folder / name).mkdir()

        def add(name: str, data: bytes) -> None:
            (folder / name).write_bytes(data)
            table[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}

        for name in (MANIFEST, *manifest.files):
            if name not in UNUSED:
                shutil.copyfile(source / name, folder / "bundle" / name)
                with (folder / "bundle" / name).open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                table[f"bundle/{name}"] = {"sha256": digest, "size": (source / name).stat().st_size}
        used = {}
        for provider in ("wasm", "webgpu") if webgpu else ("wasm",):
            members = read_members(ONNXRUNTIME, _RUNTIMES[provider], runtime)
            names = []
            for name, data in members.items():
                # Packed, since few hosts compress WebAssembly: 14 MB become 3.7.
                packed = name.endswith(".wasm") and cdn is None
                names.append(f"runtime/{Path(name).name}{'.gz' * packed}")
                add(names[-1], gzip.compress(data, mtime=0) if packed else data)
                if cdn is not None:
                    _leave_at(cdn, ONNXRUNTIME, name, folder / names[-1], table[names[-1]])
            used[provider] = dict(zip(("module", "binary"), names, strict=True))
        tokenizer = read_members(TOKENIZERS, (_TOKENIZER, "LICENSE"), runtime)
        add("runtime/tokenizers.mjs", tokenizer[_TOKENIZER])
        if cdn is not None:
            _leave_at(cdn, TOKENIZERS, _TOKENIZER, folder / "runtime/tokenizers.mjs", table["runtime/tokenizers.mjs"])
        add(LICENSES, _licenses(tokenizer["LICENSE"]))
        for name in STATIC:
            add(name, _page_file(name).encode())
        for name in SCRIPTS:
            add(name, bundled(name).encode())
        web = {
            "format_version": 1,
            "manifest_sha256": bundle.sha256,
            "runtimes": used,
            "tokenizers": "runtime/tokenizers.mjs",
            "grids": grids(manifest),
            "files": table,
        }
        content = json.dumps(web, separators=(",", ":"), allow_nan=False).encode()
        (folder / WEB).write_bytes(content)
        index = _index(manifest.name, content, table, cdn).encode()
        (folder / INDEX).write_bytes(index)
        (folder / INDEX_HASH).write_text(hashlib.sha256(index).hexdigest() + "\n")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    yield f"page: {out}, {size / 1e6:.1f} MB"
    yield f"look at it: {command('ui', '--web', out)}"


def bundled(entry: str) -> str:
    """A script and those that it imports, as one: a script that stands alone can be checked as a whole.

    Top-level names are unique among the page's scripts, so that putting them one behind the other is enough.
    """
    done: dict[str, str] = {}

    def visit(name: str) -> None:
        if name not in done:
            done[name] = ""
            text = _page_file(name)
            for each in _IMPORT.findall(text):
                visit(each)
            done.pop(name)
            done[name] = _EXPORT.sub("", _IMPORT.sub("", text))

    visit(entry)
    return "\n".join(done.values())


def _page_file(name: str) -> str:
    return (files("ldmkit.web") / "page" / name).read_text(encoding="utf-8")


def _check_samplers(source: Path, manifest: Manifest) -> None:
    used = {"defaults.sampler": manifest.defaults.sampler}
    if manifest.golden is not None:
        used["golden.sampler"] = manifest.golden.sampler
    for key, name in used.items():
        if name not in SAMPLERS:
            raise LdmkitError(
                f"{source / MANIFEST}: {key} is {name}, a plugin's, and the page draws with {', '.join(SAMPLERS)}: "
                "export the run again with one of these"
            )


def _leave_at(cdn: str, package: Package, name: str, path: Path, entry: dict[str, Any]) -> None:
    """The file is not part of the page: the browser gets it from the CDN."""
    path.unlink()
    entry["url"] = f"{cdn.rstrip('/')}/{package}/{name}"


def _index(title: str, web: bytes, table: dict[str, dict[str, Any]], cdn: str | None) -> str:
    elsewhere = f" {'/'.join(cdn.split('/')[:3])}" if cdn is not None else ""
    policy = {
        "default-src": "'none'",
        # blob: what a script has checked and handed on, and nothing else.
        "script-src": "'self' blob: 'wasm-unsafe-eval'",
        "worker-src": "'self' blob:",
        "connect-src": f"'self'{elsewhere}",
        "img-src": "'self' blob: data:",
        "style-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }

    def integrity(name: str) -> str:
        return "sha256-" + base64.b64encode(bytes.fromhex(table[name]["sha256"])).decode()

    values = {
        "title": title,
        "csp": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "web_sha256": hashlib.sha256(web).hexdigest(),
        "web_size": str(len(web)),
        "style_integrity": integrity("style.css"),
        "page_integrity": integrity("page.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: html.escape(values[match[1]]), _page_file(INDEX))


def _licenses(tokenizers: bytes) -> bytes:
    """Of what runs in the page; onnxruntime's own stand in its Python package, which ldmkit needs anyway."""
    parts = [f"{TOKENIZERS}\n\n".encode() + tokenizers]
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    for name in ("LICENSE", "ThirdPartyNotices.txt"):
        path = Path(spec.origin).parent / name
        if path.is_file():
            parts.append(f"{ONNXRUNTIME}: {name}\n\n".encode() + path.read_bytes())
    return (b"\n\n" + b"=" * 100 + b"\n\n").join(parts)

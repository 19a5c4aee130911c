"""Pickles under every name, safetensors with headers that lie, and checkpoints whose manifest leads elsewhere."""

import hashlib
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.models
from ldmkit_lpips import LPIPS
from safetensors.torch import save_file

from ldmkit.caches.sets import open_mapped
from ldmkit.data.captions import read_captions
from ldmkit.data.columns import load_columns, save_columns
from ldmkit.data.index_cache import INDEX, read_cache
from ldmkit.data.pictures import scan
from ldmkit.models.convert import convert_checkpoint
from ldmkit.recipe import load_recipe
from ldmkit.run.checkpoint import load_newest, load_weights
from ldmkit.run.first_weights import shapes
from ldmkit.run.folder import Part, recipe_of_run
from ldmkit.runtime.manifest import read_manifest
from tests.corpus.artefact import Artefact, Payload, canary

assert torchvision.models  # what LPIPS imports on first use is imported before anybody watches
DEEP = b"[" * 100_000


def _pickle(folder: Path, protocol: int = 4) -> bytes:
    return pickle.dumps({"state_dict": Payload(canary(folder)), "x": 1}, protocol)


def _system(folder: Path) -> bytes:
    """By hand, in protocol 0: os.system, as in the oldest of these attacks."""
    return b"cposix\nsystem\n(S'touch " + str(canary(folder)).encode() + b"'\ntR."


def _torch_zip(folder: Path) -> bytes:
    path = folder / "zipped"
    torch.save({"vae_state_dict": Payload(canary(folder)), "gan_state_dict": {}}, path)
    data = path.read_bytes()
    path.unlink()
    return data


def _torch_old(folder: Path) -> bytes:
    path = folder / "old"
    torch.save({"x": Payload(canary(folder))}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.unlink()
    return data


def _torch_script(folder: Path) -> bytes:
    """An archive that torch.load would hand to torch.jit, whose code would be compiled."""
    path = folder / "script"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("model/constants.pkl", pickle.dumps(()))
        opened.writestr("model/data.pkl", _pickle(folder))
        opened.writestr("model/code/__torch__.py", "def forward(self): boom()")
        opened.writestr("model/version", "3\n")
    data = path.read_bytes()
    path.unlink()
    return data


FORMS: dict[str, Callable[[Path], bytes]] = {
    "pickle": _pickle,
    "pickle, protocol 0": partial(_pickle, protocol=0),
    "pickle, protocol 2": partial(_pickle, protocol=2),
    "os.system": _system,
    "torch file": _torch_zip,
    "old torch file": _torch_old,
    "torch script": _torch_script,
}


def _backbone(path: Path) -> Any:
    return LPIPS(backbone="alex", backbone_weights=str(path))


READERS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "weights": ("model.safetensors", load_weights, "no readable safetensors"),
    "checkpoint to convert": (
        "checkpoint.pth",
        lambda path: convert_checkpoint(path, path.parent / "out"),
        "refused|none of",
    ),
    "LPIPS's backbone": ("alex.pth", _backbone, "holds no state dict"),
    "recipe": ("cats.toml", load_recipe, "not UTF-8|not valid TOML"),
    "bundle's manifest": ("manifest.json", lambda path: read_manifest(path.parent), "is not a bundle"),
    "run's recipe": ("recipe.json", lambda path: recipe_of_run(path.parent), "damaged"),
}


def _put(
    name: str, content: Callable[[Path], bytes] | bytes, read: Callable[[Path], Any], folder: Path
) -> Callable[[], Any]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content(folder))
    return lambda: read(path)


def _record_is_damaged(path: Path) -> None:
    assert Part(path.parent, "vae", {}).status().state == "damaged"


def _cache_is_made_anew(path: Path) -> None:
    from PIL import Image

    pictures = path.parent / "pictures"
    assert len(scan(pictures, index_cache=path.with_name(INDEX))) == 1
    with Image.open(pictures / "a.png") as image:
        assert read_cache(path.with_name(INDEX), pictures)[0].width == image.width


def _picture(folder: Path) -> Path:
    from PIL import Image

    (folder / "pictures").mkdir()
    Image.new("RGB", (5, 7)).save(folder / "pictures" / "a.png")
    return folder / "pictures"


def _cached(content: bytes, folder: Path) -> Callable[[], Any]:
    _picture(folder)
    return _put("pictures.json", content, _cache_is_made_anew, folder)


def _columns(changes: dict[str, bytes], folder: Path) -> Callable[[], Any]:
    """The list of pictures with other columns, and with the seal that belongs to them."""
    path, pictures = folder / INDEX, _picture(folder)
    scan(pictures, index_cache=path)
    columns = load_columns(path, {})
    assert columns is not None
    for name, data in changes.items():
        columns[name] = np.frombuffer(data, np.uint8)
    save_columns(path, columns, {"version": "3", "folder": json.dumps(str(pictures))})
    return lambda: _cache_is_made_anew(path)


def pickles() -> Iterator[Artefact]:
    for reader, (name, read, said) in READERS.items():
        for form, content in FORMS.items():
            if form in ("old torch file", "torch script") and reader not in (
                "weights",
                "checkpoint to convert",
                "LPIPS's backbone",
            ):
                continue
            yield Artefact(f"{reader}: {form}", partial(_put, name, content, read), said)
    yield Artefact("array of objects", partial(_put, "mean.npy", _object_array, open_mapped), "mean.npy")
    yield Artefact("record.json: pickle", partial(_put, "record.json", _pickle, _record_is_damaged))
    yield Artefact(
        "captions.jsonl: pickle",
        partial(_put, "captions.jsonl", lambda f: _system(f) + b"\n{}\n", read_captions),
        "needs",
    )


def _object_array(folder: Path) -> bytes:
    path = folder / "objects.npy"
    np.save(path, np.array([Payload(canary(folder))], dtype=object), allow_pickle=True)
    data = path.read_bytes()
    path.unlink()
    return data


def _header(header: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def safetensors() -> Iterator[Artefact]:
    """The format's own rules: https://github.com/huggingface/safetensors#format."""
    one = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    lies = {
        "header of 2^63 bytes": _header({"w": one}, length=2**63),
        "header longer than the file": _header({"w": one}, length=10_000),
        "no header": b"\0" * 7,
        "header that is no JSON": _header(b"\xff\xfe{nonsense"),
        "deep header": _header(DEEP),
        "offsets beyond the end": _header({"w": {**one, "data_offsets": [0, 2**40]}}),
        "offsets back to front": _header({"w": {**one, "data_offsets": [16, 0]}}),
        "offsets that overlap": _header({"v": one, "w": one}),
        "negative shape": _header({"w": {**one, "shape": [-4]}}),
        "shape that overflows": _header({"w": {**one, "shape": [2**62, 4]}}),
        "more shape than data": _header({"w": {**one, "shape": [4000]}}),
        "unknown dtype": _header({"w": {**one, "dtype": "PICKLE"}}),
        "list for a header": _header([one]),
        "metadata that is no text": _header({"__metadata__": {"a": {"b": 1}}, "w": one}),
        "bytes that nobody owns": _header({"w": one}, bytes(99)),
    }
    for word, data in lies.items():
        yield Artefact(
            f"safetensors: {word}", partial(_put, "model.safetensors", data, load_weights), "no readable safetensors"
        )
        yield Artefact(
            f"--init-from: {word}", partial(_put, "model.safetensors", data, shapes), "no readable safetensors"
        )


def nothing(_saved: Path) -> None:
    """The control: a checkpoint left as it is loads, so that the others are refused for what was changed."""


def _checkpoint(change: Callable[[Path], Any], folder: Path) -> Callable[[], Any]:
    """One checkpoint, changed behind its hashes: it is set aside, and nothing of it is used."""
    saved = folder / "checkpoints" / "step_00000003"
    saved.mkdir(parents=True)
    save_file({"w": torch.zeros(2)}, saved / "model.safetensors")
    (saved / "state.json").write_text('{\n "step": 3\n}\n')
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in saved.iterdir()}
    (saved / "manifest.json").write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n")
    change(saved)

    def use() -> None:
        if change is nothing:
            assert load_newest(folder / "checkpoints") is not None
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert load_newest(folder / "checkpoints") is None
        assert any("set aside" in str(warning.message) for warning in caught)

    return use


def _edit(saved: Path, **hashes: str) -> None:
    manifest = saved / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **hashes}))


def _link(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved.parent.parent.parent / "elsewhere.safetensors")
    (saved / "model.safetensors").symlink_to(saved.parent.parent.parent / "elsewhere.safetensors")


def checkpoints() -> Iterator[Artefact]:
    secret = "../../../secret.txt"
    changes: dict[str, Callable[[Path], Any]] = {
        "manifest with ..": lambda saved: _edit(saved, **{secret: "0" * 64}),
        "manifest with an absolute path": lambda saved: _edit(saved, **{"/etc/passwd": "0" * 64}),
        "manifest that is a list": lambda saved: (saved / "manifest.json").write_text("[1]"),
        "manifest that is deep": lambda saved: (saved / "manifest.json").write_bytes(DEEP),
        "manifest without a file": lambda saved: (saved / "manifest.json").write_text("{}"),
        "state that is a pickle": lambda saved: (saved / "state.json").write_bytes(_pickle(saved.parent.parent)),
        "weights that are a link": _link,
        "left as it is": nothing,
        "one byte flipped": lambda saved: (saved / "model.safetensors").write_bytes(b"x" * 99),
    }
    for word, change in changes.items():
        yield Artefact(f"checkpoint: {word}", partial(_checkpoint, change))
    row = {"size": "5", "mtime_ns": None, "sha256": "../x", "width": 1, "height": 1, "note": None}
    for word, rows in (("odd row", {"a.png": row}), ("list", [1]), ("lie", {"a.png": {"size": 1}})):
        table = {"version": 3, "folder": "FOLDER", "pictures": rows}
        yield Artefact(
            f"list of pictures: {word}",
            lambda folder, table=table: _cached(
                json.dumps({**table, "folder": str(folder / "pictures")}).encode(), folder
            ),
        )
    yield Artefact("list of pictures: deep", partial(_cached, DEEP))
    columns = {"name too many": {"names": b"_.png\0a.png\0"}, "deep texts": {"texts": DEEP}, "cut": {"files": b"x"}}
    for word, changes in columns.items():
        yield Artefact(f"list of pictures in columns: {word}", partial(_columns, changes))

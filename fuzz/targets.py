"""One target each for recipes, manifests, captions, pictures and archives: (inputs, what must hold of each)."""

import io
import json
import shutil
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message
from hypothesis import strategies as st
from ldmkit_captions import Sidecar
from PIL import Image

from fuzz.spoil import spoilt
from ldmkit import Picture
from ldmkit.components.registry import Registry
from ldmkit.data.captions import captions_hash, read_captions
from ldmkit.data.decode import DecodeError, decode, measure, prepare
from ldmkit.data.fetch import unzip
from ldmkit.data.sources import Source
from ldmkit.errors import LdmkitError
from ldmkit.recipe import RecipeFile
from ldmkit.recipe.template import to_toml
from ldmkit.runtime.graph import external_files
from ldmkit.runtime.manifest import read_manifest, write_manifest
from ldmkit.runtime.tokenizer import read_tokenizer

REPOSITORY = Path(__file__).parents[1]


class Target(NamedTuple):
    inputs: st.SearchStrategy[bytes]
    check: Callable[[bytes], None]
    """lets out nothing but AssertionError, and that where ldmkit is wrong"""


@cache
def registry() -> Registry:
    return Registry.load()


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="ldmkit-fuzz-"))


def recipe(data: bytes) -> None:
    """A recipe that is taken is shown as TOML that loads as the same recipe."""
    path = folder() / "fuzz.toml"
    path.write_bytes(data)
    try:
        file = RecipeFile.read(path)
        if file.plugin_files():
            return
        taken = file.validate(registry())
    except LdmkitError as error:
        assert str(path) in str(error), "the message names the file"
        return
    shown = to_toml(taken, registry())
    assert RecipeFile(path, tomllib.loads(shown)).validate(registry()) == taken


def override(data: bytes) -> None:
    """The same of `--set`."""
    text = data.decode(errors="surrogateescape")
    try:
        taken = RecipeFile.read(REPOSITORY / "recipes" / "toy-cats.toml", [text]).validate(registry())
    except LdmkitError as error:
        assert "toy-cats.toml" in str(error) or "--set" in str(error)
        return
    assert type(taken).model_validate_json(taken.model_dump_json()) == taken


def manifest(data: bytes) -> None:
    """A manifest that is taken is written so that the same one is read."""
    (folder() / "manifest.json").write_bytes(data)
    try:
        taken, _ = read_manifest(folder())
    except LdmkitError as error:
        assert "manifest.json" in str(error)
        return
    write_manifest(folder(), taken)
    assert read_manifest(folder())[0].model_copy(update={"sha256": None}) == taken


def without_hash(data: bytes) -> bytes:
    """A manifest without its own SHA-256, which would refuse whatever is changed before anything else is looked at."""
    content = json.loads(data)
    del content["sha256"]
    return json.dumps(content).encode()


def tokenizer(data: bytes) -> None:
    """A tokenizer that is taken cuts and pads whatever it is given."""
    try:
        taken = read_tokenizer(data, 32)
    except ValueError:
        return
    try:
        found = taken.encode("a cat " * 50)
    except Exception as error:  # the library's own; the runtime tells of it
        assert str(error)
    else:
        assert len(found.ids) == len(found.attention_mask)


def graph(data: bytes) -> None:
    """Of a graph that is taken no file is missed in which onnx's own reader sees weights."""
    try:
        found = external_files(data)
    except ValueError:
        return
    try:
        model = onnx.load_from_string(data)
    except ProtobufError:
        return
    for tensor in _tensors(model):
        if tensor.external_data:
            entries = [(_raw(entry.key), _raw(entry.value)) for entry in tensor.external_data]
            assert ({value for key, value in entries if key == b"location"} or {b""}) <= found


def _raw(text: str | bytes) -> bytes:
    """protobuf gives the bytes of text that is not UTF-8."""
    return text if isinstance(text, bytes) else text.encode()


def _tensors(message: Message) -> Iterator[Any]:
    if isinstance(message, onnx.TensorProto):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from _tensors(inner)


def captions(data: bytes) -> None:
    """Captions that are taken are text, whatever file they come from."""
    for name in ("captions.jsonl", "a.txt", "metadata.jsonl"):
        (folder() / name).unlink(missing_ok=True)
    (folder() / "captions.jsonl").write_bytes(data)
    try:
        found = read_captions(folder() / "captions.jsonl")
        assert len(captions_hash(folder() / "captions.jsonl")) == 64
        again = b"".join(json.dumps({"file": k, "caption": v}).encode() + b"\n" for k, v in found.items())
        (folder() / "captions.jsonl").write_bytes(again)
        assert read_captions(folder() / "captions.jsonl") == found
    except LdmkitError as error:
        assert "captions.jsonl" in str(error)
    for name in ("a.txt", "metadata.jsonl"):
        (folder() / name).write_bytes(data)
        try:
            (caption,) = Sidecar().caption([Picture(folder() / "a.jpg", "a.jpg", _nothing)])
        except LdmkitError as error:
            assert name in str(error)
        else:
            assert caption is None or caption.encode().decode().split() == caption.split()
        (folder() / name).unlink()


def _nothing() -> Any:
    raise AssertionError("a caption beside the picture needs no pixels")


def picture(data: bytes) -> None:
    """A picture that is taken is RGB, of the size that was measured, and the same the next time."""
    try:
        image, note = decode(data)
    except DecodeError as error:
        assert str(error)
        return
    assert image.mode == "RGB"
    assert measure(data) == (image.size, note)
    assert prepare(image, (8, 8)).shape == (8, 8, 3)
    assert decode(data)[0].tobytes() == image.tobytes()
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert decode(buffer.getvalue())[0].tobytes() == image.tobytes()


def archive(data: bytes) -> None:
    """What is unpacked is a picture's or a caption's file below the folder; of a refused archive nothing is left."""
    packed, target = folder() / "set.zip", folder() / "unpacked"
    shutil.rmtree(target, ignore_errors=True)
    packed.write_bytes(data)
    try:
        unzip(packed, target)
    except LdmkitError as error:
        assert str(error)
        assert not target.exists()
        assert not list(folder().glob(".unpacked*"))
        return
    for path in target.rglob("*"):
        assert path.is_dir() or (path.is_file() and not path.is_symlink())
        assert path.resolve().is_relative_to(target.resolve())


def in_place(data: bytes) -> None:
    """A member is read whole, or refused with a reason; its key leads nowhere."""
    path = folder() / ("set.zip" if data.startswith(b"PK") else "set.tar")
    path.write_bytes(data)
    try:
        found = Source(path)
    except LdmkitError as error:
        assert path.name in str(error)
        return
    for key in found.walk():
        assert not key.startswith("/")
        assert ".." not in key.split("/")
        try:
            assert len(found.read(key, 50)) <= 51
        except OSError as error:
            assert error.strerror
        found.picture(key)


def _tars() -> list[bytes]:
    found = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as opened:
            for name in ("cats/ü.png", "long/" * 30 + "a.png", "cats/ü.txt"):
                info = tarfile.TarInfo(name)
                info.size = 63
                opened.addfile(info, io.BytesIO(b"picture" * 9))
        found.append(buffer.getvalue())
    return found


def _pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(np.kron(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8), np.ones((5, 5, 1), np.uint8)))
    modes = {
        "PNG": ("RGB", "RGBA", "P", "L", "1", "I;16"),
        "JPEG": ("RGB", "L", "CMYK"),
        "GIF": ("P",),
        "WEBP": ("RGBA",),
    }
    modes |= {"BMP": ("RGB", "P"), "TIFF": ("RGB", "CMYK", "LA")}
    found = []
    for file_format, named in modes.items():
        for mode in named:
            buffer = io.BytesIO()
            (rgb.convert("L") if mode == "I;16" else rgb).convert(mode).save(buffer, file_format)
            found.append(buffer.getvalue())
    return found


def _zips() -> list[bytes]:
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as opened:
            # A ZipInfo's own date is always the same, and so then are a seed's inputs.
            opened.writestr(zipfile.ZipInfo("cats/ü.png"), b"picture" * 9, method)
            opened.writestr(zipfile.ZipInfo("cats/ü.txt"), "a cat", method)
        found.append(buffer.getvalue())
    return found


def _graphs() -> list[bytes]:
    """A graph with weights in other files, wherever ONNX may have them."""
    weight = onnx.TensorProto(name="w", data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "8")):
        weight.external_data.add(key=key, value=value)
    inner = onnx.GraphProto(name="branch", initializer=[weight])
    nodes = [
        onnx.helper.make_node("Constant", [], ["c"], value=weight),
        onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner),
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], [weight]))
    model.graph.sparse_initializer.add().values.CopyFrom(weight)
    model.functions.add(name="f").node.append(nodes[0])
    plain = onnx.helper.make_graph([nodes[1]], "g", [], [], [onnx.helper.make_tensor("v", 1, [2], [1.0, 2.0])])
    return [model.SerializeToString(), onnx.helper.make_model(plain).SerializeToString()]


def _targets() -> dict[str, Target]:
    recipes = [path.read_bytes() for path in sorted((REPOSITORY / "recipes").glob("*.toml"))]
    bundle = REPOSITORY / "exports" / "toy-cats"
    rows = b'{"file": "a", "caption": "a cat", "captioner": "me"}\n{"file": "b", "caption": null, "captioner": null}\n'
    table = b'{"file_name": "a.jpg", "text": "a cat"}\n{"file_name": "b.jpg", "text": null}\n'
    sets = [b"vae.steps=3", b"data.path=x", b"vae.losses.l1.weight=0.5", b"vae.channels=[8, 16]", b"sampler.use='ddim'"]
    words = [line.split(b"=")[0].strip() for line in recipes[0].splitlines() if b"=" in line]
    return {
        "recipe": Target(spoilt(recipes, words), recipe),
        "override": Target(spoilt(sets, words), override),
        "manifest": Target(spoilt([without_hash((bundle / "manifest.json").read_bytes())]), manifest),
        "tokenizer": Target(spoilt([(bundle / "tokenizer.json").read_bytes()]), tokenizer),
        "graph": Target(spoilt(_graphs(), [b"location", b"weights.bin", b"\x6a", b"\x6a\x02"]), graph),
        "captions": Target(spoilt([rows, table, b"a cat\n"]), captions),
        "picture": Target(spoilt(_pictures()), picture),
        "archive": Target(spoilt(_zips()), archive),
        "in place": Target(spoilt(_zips() + _tars()), in_place),
    }


TARGETS = _targets()

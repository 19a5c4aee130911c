"""Bundles by strangers: the one that ships, changed so that its hashes agree again, and prompts."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx import TensorProto, helper

from ldmkit import shipped
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.pictures import slug, write_picture
from tests.corpus.artefact import Artefact
from tests.corpus.checkpoints import FORMS

assert onnxruntime  # imported before anybody watches
Change = Callable[[Path], Any]
DEEP = "[" * 100_000
UNET = "unet.onnx"
PROMPTS = (
    "../../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "\x1b[2J\x07",
    "$(touch canary)",
    "CON",
    "%s%n",
    "\u202ecat",
    "[PAD] [MASK] <|endoftext|>",
    "a cat\n" * 20,
    "猫" * 500,
    "x" * 100_000,
)


def shipped_bundle(folder: Path) -> Path:
    """The bundle that ships, in a folder that may be changed: its files are links until `put` writes one anew."""
    source = shipped.exports_dir()
    assert source is not None
    target = folder / "bundle"
    target.mkdir()
    for path in (source / "toy-cats").iterdir():
        try:
            os.link(path, target / path.name)
        except OSError:  # another file system
            (target / path.name).write_bytes(path.read_bytes())
    return target


def put(bundle: Path, name: str, data: bytes, *, listed: bool = True) -> None:
    """Writes a file, and makes the manifest agree."""
    (bundle / name).unlink(missing_ok=True)
    (bundle / name).write_bytes(data)
    if listed:
        entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        edit(bundle, lambda manifest: manifest["files"].update({name: entry}))


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    manifest.pop("sha256", None)  # a stranger would make it agree
    put(bundle, "manifest.json", json.dumps(manifest).encode(), listed=False)


def _draw(change: Change, prompt: str | None, folder: Path) -> Callable[[], Any]:
    bundle = shipped_bundle(folder)
    change(bundle)
    return lambda: Bundle.load(bundle, provider="cpu").generate(prompt, steps=1)


def _entry(name: str) -> Change:
    entry = {"sha256": "0" * 64, "size": 1}
    return lambda bundle: edit(bundle, lambda manifest: manifest["files"].update({name: entry}))


def _key(**keys: Any) -> Change:
    return lambda bundle: edit(bundle, lambda manifest: manifest.update(keys))


def _link(name: str) -> Change:
    def change(bundle: Path) -> None:
        (bundle.parent / "elsewhere").write_bytes((bundle / name).read_bytes())
        (bundle / name).unlink()
        (bundle / name).symlink_to(bundle.parent / "elsewhere")

    return change


def _external(place: str, location: str) -> Change:
    """A graph whose weight lies in another file, in each place where ONNX has tensors."""

    def change(bundle: Path) -> None:
        secret = bundle.parent.parent / "secret.txt"
        secret.write_bytes(bytes(4))
        if place == "link":
            (bundle / location).symlink_to(secret)
        elif place == "hard link":
            os.link(secret, bundle / location)
        put(bundle, UNET, _graph(place, location.replace("FOLDER", str(bundle.parent.parent))).SerializeToString())

    return change


def _graph(place: str, location: str) -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    constant = helper.make_node("Constant", [], ["x"], value=weight)
    inner = helper.make_graph([constant], "inner", [], [value])
    nodes = {
        "attribute": [constant],
        "branch": [helper.make_node("If", ["c"], ["x"], then_branch=inner, else_branch=inner)],
        "function": [helper.make_node("Mine", [], ["x"], domain="own")],
    }.get(place, [helper.make_node("Identity", ["w"], ["x"])])
    graph = helper.make_graph(
        nodes, "g", [], [value], [weight] if len(nodes[0].input) and nodes[0].input[0] == "w" else []
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "Mine", [], ["x"], [constant], opsets[:1])] if place == "function" else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def _custom_operator(bundle: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("PyOp", [], ["x"], domain="ai.onnx.contrib", module="os", name="system")
    graph = helper.make_graph([node], "g", [], [value])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.contrib", 1)], ir_version=8)
    put(bundle, UNET, model.SerializeToString())


def _tokenizer(change: Callable[[dict[str, Any]], Any]) -> Change:
    def edited(bundle: Path) -> None:
        tokenizer = json.loads((bundle / "tokenizer.json").read_text())
        change(tokenizer)
        put(bundle, "tokenizer.json", json.dumps(tokenizer).encode())

    return edited


def _doubling(tokenizer: dict[str, Any]) -> None:
    """Each step replaces a letter by two: a terabyte out of a word."""
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [step] * 40}


@cache
def _opened() -> Bundle:
    """The bundle that ships, whose graphs are open."""
    source = shipped.exports_dir()
    assert source is not None
    bundle = Bundle.load(source / "toy-cats", provider="cpu")
    bundle.generate("a cat", steps=1)
    return bundle


def _prompt(prompt: str, folder: Path) -> Callable[[], Any]:
    """Draws the prompt and writes the picture, as `ldmkit generate` does."""
    bundle, out = _opened(), folder / "outputs"

    def use() -> None:
        (image,) = bundle.generate(prompt, steps=1)
        path = write_picture(image, out / f"{slug(prompt)}-0.png", {"prompt": prompt})
        assert path.parent == out
        assert len(path.name) < 100
        assert path.name.isprintable()

    return use


def bundles() -> Iterator[Artefact]:
    for name in ("../evil.onnx", "/etc/passwd", "..\\evil.onnx", "sub/unet.onnx", "evil.so", "plugin.py", "UNET.ONNX"):
        yield Artefact(f"bundle lists {name}", partial(_draw, _entry(name), None), "manifest.json: files")
    for name in ("manifest.json", UNET, "tokenizer.json", "vae_decoder.onnx"):
        yield Artefact(
            f"bundle with a link for {name}", partial(_draw, _link(name), "a cat"), "not a file there|no manifest"
        )
    refused: dict[str, tuple[Change, str]] = {
        "name ../../evil": (_key(name="../../evil"), "manifest.json: name"),
        "name with an escape": (_key(name="\x1b[2J"), "manifest.json: name"),
        "sampler by import path": (
            _key(defaults={"sampler": "os:system", "steps": 1, "guidance_scale": 1.0}),
            "no sampler",
        ),
        "latents of a terabyte": (
            _key(latent={"channels": 1024, "height": 10**6, "width": 10**6, "mean": [0.0], "std": [1.0]}),
            "latent",
        ),
        "deep manifest": (lambda bundle: put(bundle, "manifest.json", DEEP.encode(), listed=False), "is not a bundle"),
        "manifest of 5 MiB": (
            lambda bundle: put(bundle, "manifest.json", b" " * (5 << 20), listed=False),
            "larger than",
        ),
        "own operator": (_custom_operator, "unet.onnx cannot be loaded"),
        "own format of onnxruntime": (lambda bundle: put(bundle, UNET, b"\x28\0\0\0ORTM" + bytes(99)), "own format"),
        "graph that is text": (
            lambda bundle: put(bundle, UNET, b"touch canary"),
            "is not an ONNX graph|cannot be loaded",
        ),
        "changed byte": (
            lambda bundle: put(bundle, UNET, bytes((bundle / UNET).stat().st_size), listed=False),
            "does not match",
        ),
    }
    for word, (change, said) in refused.items():
        yield Artefact(f"bundle: {word}", partial(_draw, change, None), said)
    for form, content in FORMS.items():
        change = lambda bundle, content=content: put(bundle, UNET, content(bundle))  # noqa: E731
        yield Artefact(f"graph: {form}", partial(_draw, change, None), "is not an ONNX graph|cannot be loaded")
    places = {"initializer": "weights.bin", "above": "../../secret.txt", "absolute": "FOLDER/secret.txt",
              "link": "weights.bin", "hard link": "weights.bin", "attribute": "../../secret.txt",
              "branch": "../../secret.txt", "function": "../../secret.txt"}  # fmt: skip
    for place, location in places.items():
        yield Artefact(
            f"weights elsewhere: {place}", partial(_draw, _external(place, location), None), "refers to a file outside"
        )
    tokenizers: dict[str, Callable[[dict[str, Any]], Any]] = {
        "a terabyte by doubling": _doubling,
        "a terabyte by padding": lambda t: t.update(padding={**t["padding"], "strategy": {"Fixed": 10**12}}),
        "a terabyte by multiples": lambda t: t.update(padding={**t["padding"], "pad_to_multiple_of": 10**12}),
        "no cut": lambda t: t.update(truncation=None),
        "unknown model": lambda t: t.update(model={"type": "Python", "module": "os"}),
    }
    for word, spoil in tokenizers.items():
        yield Artefact(f"tokenizer: {word}", partial(_draw, _tokenizer(spoil), "a cat"), "tokenizer.json")
    for word, data in {
        "deep": DEEP.encode(),
        "pickle": b"cposix\nsystem\n(S'touch canary'\ntR.",
        "no UTF-8": b"\xff",
    }.items():
        spoilt = lambda bundle, data=data: put(bundle, "tokenizer.json", data)  # noqa: E731
        yield Artefact(f"tokenizer: {word}", partial(_draw, spoilt, "a cat"), "tokenizer.json")
    for prompt in PROMPTS:
        yield Artefact(f"prompt {prompt[:30]!r}", partial(_prompt, prompt))
    yield Artefact("prompt with half a character", partial(_draw, lambda _: None, "caf\udce9"), "not valid Unicode")

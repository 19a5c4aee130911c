"""What a bundle on disk may be, and what is refused before it is used."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from ldmkit.errors import LdmkitError
from ldmkit.runtime import bundle as bundle_module
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.find import bundles_in, default_bundle
from ldmkit.runtime.manifest import file_entry

MakeBundle = Callable[..., Path]

LATENT = {"channels": 2, "height": 2, "width": 2, "mean": [0, 0], "std": [1, 1]}
GOLDEN = {"prompts": [""], "seed": 0, "steps": 2, "guidance_scale": 1, "sampler": "euler", "min_psnr": 40}


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_graph(folder: Path, name: str, data: bytes) -> None:
    """Swaps a graph and makes the manifest agree, as a bundle from a stranger would."""
    (folder / name).write_bytes(data)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit(folder, files={**files, name: file_entry(folder / name).model_dump()})


def test_a_newer_format_asks_for_an_update(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    # A newer format may have any keys at all: the version decides first.
    for needs, told in (
        ("", "reads 2. A newer ldmkit reads it"),
        (', "needs": "0.9.1"', "ldmkit 0.9.1 or newer reads it: update ldmkit"),
        (', "needs": "9 \\u001b[31m"', "reads 2. A newer ldmkit reads it"),
        (', "needs": 9', "reads 2. A newer ldmkit reads it"),
    ):
        (folder / "manifest.json").write_text(f'{{"format_version": 3, "whatever": {{}}{needs}}}')
        with pytest.raises(LdmkitError, match=f"format_version is 3, and .*{told}"):
            Bundle.load(folder)


def test_an_older_format_is_to_be_exported_again(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    edit(folder, format_version=1)
    with pytest.raises(LdmkitError, match=r"format_version is 1, and .* reads 2. Export its run again with `ldmkit"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "nonsense", '{"format_version": "1"}', '{"format_version": true}', "[" * 100_000]
)
def test_anything_else_is_not_a_bundle(make_bundle: MakeBundle, content: str) -> None:
    folder = make_bundle()
    (folder / "manifest.json").write_text(content)
    with pytest.raises(LdmkitError, match="is not a bundle"):
        Bundle.load(folder)


def test_a_folder_without_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path(__file__)):
        with pytest.raises(LdmkitError, match=r"is not a bundle: it has no manifest\.json"):
            Bundle.load(path)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"surprise": 1}, "surprise"),
        ({"prediction": "noise"}, "prediction"),
        ({"name": "../../evil"}, "name"),
        ({"created": "yesterday"}, "created"),
        ({"latent": {"channels": 2, "height": 2, "width": 2, "mean": [0], "std": [1, 1]}}, "latent"),
        ({"latent": {"channels": 2, "height": 10**9, "width": 2, "mean": [0, 0], "std": [1, 1]}}, "latent.height"),
        ({"latent": {**LATENT, "multiple": 4}}, "latent"),
        ({"latent": {**LATENT, "multiple": 0}}, "latent.multiple"),
        ({"latent": {**LATENT, "rgb": {"weights": [[1, 0, 0]] * 3, "bias": [0, 0, 0], "r2": 0.5}}}, "latent"),
        ({"latent": {**LATENT, "rgb": {"weights": [[1, 0]] * 3, "bias": [0, 0], "r2": 0.5}}}, "latent.rgb.bias"),
        ({"precision": "int8"}, "precision"),
        ({"needs": "soon"}, "needs"),
        ({"golden": GOLDEN}, "files must list golden.png"),
        ({"golden": {**GOLDEN, "steps": 0}}, "golden.steps"),
        ({"text": None}, "unet_t2i.onnx needs text"),
        ({"files": {}}, "files must list vae_decoder.onnx"),
        (
            {"files": {"unet.onnx.data": {"sha256": "0" * 64, "size": 1}}},
            "files lists unet.onnx.data without its graph",
        ),
        ({"files": {"../evil.onnx": {"sha256": "0" * 64, "size": 1}}}, "files"),
        ({"files": {"/etc/passwd": {"sha256": "0" * 64, "size": 1}}}, "files"),
    ],
)
def test_a_wrong_key_is_named(make_bundle: MakeBundle, changes: dict[str, Any], key: str) -> None:
    folder = make_bundle()
    edit(folder, **changes)
    with pytest.raises(LdmkitError, match=r"manifest\.json.*" + key.replace(".", r"\.")):
        Bundle.load(folder)


def test_a_changed_file_is_refused(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    data = bytearray((folder / "unet.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "unet.onnx").write_bytes(data)
    bundle = Bundle.load(folder)
    with pytest.raises(LdmkitError, match=r"unet\.onnx does not match its SHA-256"):
        bundle.generate()
    with pytest.raises(LdmkitError, match=r"unet\.onnx does not match its SHA-256"):
        bundle.verify()
    (folder / "unet.onnx").write_bytes(bytes(data) + b"x")
    with pytest.raises(LdmkitError, match=r"unet\.onnx has .* bytes where manifest\.json says"):
        Bundle.load(folder)
    (folder / "unet.onnx").unlink()
    with pytest.raises(LdmkitError, match=r"not a whole bundle: unet\.onnx"):
        Bundle.load(folder)


def test_links_are_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = make_bundle()
    (folder / "unet.onnx").rename(tmp_path / "elsewhere.onnx")
    (folder / "unet.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(LdmkitError, match=r"unet\.onnx is in manifest\.json, but not a file"):
        Bundle.load(folder)


def test_weights_outside_a_graph_are_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = make_bundle()
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../../secret")
    shape = ["batch", 2, 2, 2]
    graph = helper.make_graph(
        [helper.make_node("Add", ["latents", "w"], ["output"])],
        "g",
        [helper.make_tensor_value_info("latents", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    replace_graph(folder, "vae_decoder.onnx", model.SerializeToString())
    with pytest.raises(LdmkitError, match="refers to a file outside itself"):
        Bundle.load(folder).generate()


def apart(folder: Path, *, weight: float, location: str = "vae_decoder.onnx.data") -> None:
    """A decoder that adds `weight`, which lies in a file beside it, to the latents."""
    value = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    value.external_data.add(key="location", value=location)
    shapes = [["batch", channels, 2, 2] for channels in (2, 3)]
    graph = helper.make_graph(
        [
            helper.make_node("Pad", ["latents", "pads"], ["padded"]),
            helper.make_node("Add", ["padded", "w"], ["output"]),
        ],
        "g",
        [helper.make_tensor_value_info("latents", TensorProto.FLOAT, shapes[0])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shapes[1])],
        [value, helper.make_tensor("pads", TensorProto.INT64, [8], [0, 0, 0, 0, 0, 1, 0, 0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    replace_graph(folder, "vae_decoder.onnx.data", np.array([weight], dtype="<f4").tobytes())
    replace_graph(folder, "vae_decoder.onnx", model.SerializeToString())


def test_weights_beside_their_graph(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    for weight, level in ((0.0, 128), (0.6, 204)):  # the third colour is the weight alone
        apart(folder, weight=weight)
        (picture,) = Bundle.load(folder).generate()
        assert set(picture.getchannel("B").get_flattened_data()) == {level}
    data = folder / "vae_decoder.onnx.data"
    data.write_bytes(np.array([0.5], dtype="<f4").tobytes())
    with pytest.raises(LdmkitError, match=r"vae_decoder\.onnx\.data does not match its SHA-256"):
        Bundle.load(folder).generate()
    with pytest.raises(LdmkitError, match=r"vae_decoder\.onnx\.data does not match its SHA-256"):
        Bundle.load(folder).verify()
    data.rename(folder.parent / "elsewhere")
    data.symlink_to(folder.parent / "elsewhere")
    with pytest.raises(LdmkitError, match=r"vae_decoder\.onnx\.data is in manifest\.json, but not a file there"):
        Bundle.load(folder)


@pytest.mark.parametrize("location", ["unet.onnx", "./vae_decoder.onnx.data", "*/_ORT_MEM_ADDR_/*"])
def test_weights_in_no_file_but_the_graphs_own(make_bundle: MakeBundle, location: str) -> None:
    folder = make_bundle()
    apart(folder, weight=0.5, location=location)
    with pytest.raises(LdmkitError, match="refers to a file outside itself"):
        Bundle.load(folder).generate()


@pytest.mark.parametrize("name", [b"caf\xe9", "Ünï 猫\n".encode()])
def test_a_folder_of_any_name(make_bundle: MakeBundle, name: bytes) -> None:
    folder = make_bundle()
    other = folder.parent / os.fsdecode(name)
    try:
        folder.rename(other)
    except OSError:
        pytest.skip("this file system takes no such name")
    (picture,) = Bundle.load(other).generate()
    assert picture.size == (2, 2)


def test_a_file_that_changes_while_it_is_opened(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between hashing and opening lies a moment: an export over the bundle, or a download, may fall into it."""
    folder = make_bundle()
    other = (folder / "vae_decoder.onnx").read_bytes()
    opened = bundle_module.open_session

    def in_between(graph: Path, **options: Any) -> Any:
        if graph.name == "unet.onnx":
            (folder / "new").write_bytes(other)
            (folder / "new").replace(graph)
        return opened(graph, **options)

    monkeypatch.setattr(bundle_module, "open_session", in_between)
    with pytest.raises(LdmkitError, match=r"unet\.onnx was changed while it was opened: try again"):
        Bundle.load(folder).generate()


def test_a_graph_that_onnxruntime_cannot_read_is_named(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    for data, message in (
        (b"not a graph", r"is not an ONNX graph \(a field of the unknown kind 6 at byte 1\)"),
        (b"\x3a\x05\x0a", r"is not an ONNX graph \(cut off\)"),
        (b"\x28\x00\x00\x00ORTM", "onnxruntime's own format"),
        (b"", r"is not an ONNX graph \(it is empty\)"),
    ):
        replace_graph(folder, "unet.onnx", data)
        with pytest.raises(LdmkitError, match=r"unet\.onnx " + message if "own" not in message else message):
            Bundle.load(folder).generate()


def test_a_graph_of_another_shape_is_named(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    edit(folder, latent={**LATENT, "height": 4, "width": 4}, picture_size=4)
    with pytest.raises(LdmkitError, match=r"unet\.onnx failed on cpu"):
        Bundle.load(folder, provider="cpu").generate()


def test_special_tokens_in_a_prompt_are_text(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[pad]"])
    assert tokenizer.encode("cat [pad]").ids == [3, 0, 0, 0]
    replace_graph(folder, "tokenizer.json", tokenizer.to_str().encode())
    assert Bundle.load(folder).tokenizer.encode("cat [pad]").ids == [3, 1, 1, 1]  # "[", "pad", "]", all unknown


def test_graphs_are_opened_when_needed(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    session = Bundle._session

    def spy(self: Bundle, name: str) -> Any:
        opened.append(name)
        return session(self, name)

    monkeypatch.setattr(Bundle, "_session", spy)
    bundle = Bundle.load(make_bundle())
    assert opened == []
    bundle.generate(steps=1)
    assert opened == ["unet.onnx", "vae_decoder.onnx"]


def test_an_input_that_the_exporter_dropped_is_not_fed(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    model = onnx.load(folder / "unet.onnx")
    model.graph.node.append(helper.make_node("Identity", ["x_t"], ["output"]))
    del model.graph.node[:-1]
    del model.graph.input[1]  # t
    replace_graph(folder, "unet.onnx", model.SerializeToString())
    assert len(Bundle.load(folder).generate()) == 1


def test_the_newest_bundle_is_the_default(make_bundle: MakeBundle, tmp_path: Path) -> None:
    old = make_bundle("old", created="2026-01-01T00:00:00Z")
    # Later although its clock reads less: dates are compared, not text.
    new = make_bundle("new", created="2025-12-31T23:00:00-05:00")
    exports = old.parent
    shutil.copytree(new, exports / ".newest.abc.partial")  # what a killed export leaves
    edit(exports / ".newest.abc.partial", created="2026-06-01T00:00:00Z")
    (exports / "notes").mkdir()
    (exports / "broken").mkdir()
    (exports / "broken" / "manifest.json").write_text("{}")
    (exports / "file").write_text("")
    assert [path for path, _ in bundles_in(exports)] == [new, old]
    assert default_bundle(tmp_path / "none", exports) == new
    with pytest.raises(LdmkitError, match=r"there is no bundle in .*--bundle DIR"):
        default_bundle(tmp_path / "none", None)


@pytest.mark.parametrize(
    ("prompts", "negative", "graphs"),
    [
        (["", " "], "", {"unet.onnx", "vae_decoder.onnx"}),
        (["red cat"], "", {"unet_t2i.onnx", "text_encoder.onnx", "vae_decoder.onnx"}),
        ([""], "mat", {"unet_t2i.onnx", "text_encoder.onnx", "vae_decoder.onnx"}),
        (["", "cat"], "", {"unet.onnx", "unet_t2i.onnx", "text_encoder.onnx", "vae_decoder.onnx"}),
    ],
)
def test_what_will_be_drawn_tells_which_graphs_are_needed(
    make_bundle: MakeBundle, prompts: list[str], negative: str, graphs: set[str]
) -> None:
    """Drawing itself says whether these are all: it opens no other."""
    bundle = Bundle.load(make_bundle(), provider="cpu")
    bundle.prepare(prompts, negative)
    for thread in threading.enumerate():
        if thread.name.startswith("open "):
            thread.join()
    assert set(bundle._sessions) == graphs
    bundle.generate(prompts, negative_prompt=negative, steps=1, guidance_scale=2.0)
    assert set(bundle._sessions) == graphs


def test_a_graph_that_could_not_be_prepared_is_told_where_it_is_needed(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    replace_graph(folder, "unet_t2i.onnx", b"not a graph")
    bundle = Bundle.load(folder, provider="cpu")
    bundle.prepare(["red cat"])
    with pytest.raises(LdmkitError, match=r"unet_t2i\.onnx is not an ONNX graph"):
        bundle.generate("red cat")

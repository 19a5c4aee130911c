"""Where first weights may come from, and what they make stale; networks of three numbers."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ldmkit.errors import LdmkitError
from ldmkit.run.first_weights import find_starts, keep_start, kept_starts, misfit
from ldmkit.run.folder import Part
from ldmkit.run.parts import PartSpec, stage_names
from ldmkit.training import warm_start as initial

NAMES = {"vae": "encoder.stem.weight", "unet": "time_embedding.linear1.weight", "t2i": "unet.stem.weight"}
ALL = ("vae", "unet", "t2i")


def weights(path: Path, *names: str, value: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.full(3, value, np.float32) for name in names}, path)
    return path


def make_run(folder: Path, *parts: str, text: str | None = None) -> Path:
    """A run's finished parts, as far as their weights are looked for."""
    for name in parts:
        part = Part(folder / name, name, {"text": text})
        part.begin()
        weights(folder / name / "model.safetensors", NAMES[name])
        if name == "vae":
            weights(folder / name / "ema.safetensors", NAMES[name], value=1.0)
        part.finish(1.0)
    return folder


def test_a_run_a_folder_and_a_file(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    make_run(tmp_path / "runs" / "other", "vae", "unet")
    Part(tmp_path / "runs" / "other" / "t2i", "t2i", {}).begin()  # not finished
    for source in (tmp_path / "runs" / "other", Path("other")):
        found = find_starts(source, ALL, run)
        assert {part: Path(start.file).name for part, start in found.items()} == {
            "vae": "ema.safetensors",  # the average where there is one
            "unet": "model.safetensors",
        }
        assert {start.name for start in found.values()} == {"other"}
    assert set(find_starts(Path("other"), ("unet",), run)) == {"unet"}
    for name in ("vae", "unet_t2i"):  # what `export safetensors` and `convert` write
        weights(tmp_path / "exported" / f"{name}.safetensors", "x")
    assert set(find_starts(tmp_path / "exported", ALL, run)) == {"vae", "t2i"}
    for part, name in {**NAMES, "t2i": "down.0.cross_attention.weight"}.items():
        assert set(find_starts(weights(tmp_path / "a.safetensors", name), ALL, run)) == {part}


def test_what_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "mine", "vae")
    other = make_run(tmp_path / "runs" / "other", "vae")
    unet = weights(tmp_path / "unet.safetensors", NAMES["unet"])
    (tmp_path / "cut.safetensors").write_bytes(unet.read_bytes()[:20])
    (tmp_path / "empty").mkdir()
    for source, told in {
        "nowhere": "neither a run nor a safetensors file. A run that has begun keeps the weights",
        str(tmp_path / "empty"): "no finished vae or t2i there; it takes another run's folder",
        str(tmp_path / "cut.safetensors"): "no readable safetensors file",
        str(unet): "holds the weights of unet, and this command trains vae and t2i",
        str(weights(tmp_path / "b.safetensors", "weight")): r"holds none of ldmkit's networks \(tensors: weight\)",
        str(weights(tmp_path / "c.safetensors", "text_encoder.x")): "holds a text encoder, and of which words cannot",
        "mine": "lies in the run itself",
        str(run / "vae" / "ema.safetensors"): "lies in the run itself",
    }.items():
        with pytest.raises(LdmkitError, match=rf"^--init-from .*: {told}"):
            find_starts(Path(source), ("vae", "t2i"), run)
    (run / "stale").mkdir()
    shutil.copytree(other / "vae", run / "stale" / "vae-1")
    assert find_starts(run / "stale" / "vae-1" / "ema.safetensors", ALL, run)  # which nothing sets aside
    weights(other / "vae" / "ema.safetensors", NAMES["vae"], value=2.0)
    with pytest.raises(LdmkitError, match="not what its run wrote: it is damaged or was changed"):
        find_starts(Path("other"), ALL, run)


def test_the_words_of_a_text_encoder_are_those_it_was_trained_with(tmp_path: Path) -> None:
    """A run's captions may have changed since; the part set aside was trained with the text set aside."""
    run = tmp_path / "runs" / "mine"
    text = {name: Part(tmp_path / name, "text", {"captions": name}) for name in ("old", "new")}
    for name, part in text.items():
        part.begin()
        (part.folder / "tokenizer.json").write_text(json.dumps({"words": name}))
    other = make_run(tmp_path / "runs" / "other", "t2i", text=text["old"].fingerprint)
    weights(other / "t2i" / "model.safetensors", "text_encoder.x", "unet.y")
    weights(other / "t2i" / "checkpoints" / "step_00000001" / "ema.safetensors", "text_encoder.x")
    record = json.loads((other / "t2i" / "record.json").read_text())
    unsealed = {key: value for key, value in record.items() if key not in ("seal", "files")}
    (other / "t2i" / "record.json").write_text(json.dumps({**unsealed, "weights": None}))
    shutil.copytree(tmp_path / "new", other / "text")
    with pytest.raises(LdmkitError, match="of which words cannot be told"):
        find_starts(Path("other"), ALL, run)
    (other / "stale").mkdir()
    shutil.copytree(tmp_path / "old", other / "stale" / "text-1")
    (other / "t2i").rename(other / "stale" / "t2i-1")
    for file in ("model.safetensors", "checkpoints/step_00000001/ema.safetensors"):
        found = find_starts(other / "stale" / "t2i-1" / file, ALL, run)["t2i"].tokenizer
        assert found == hashlib.sha256(b'{"words":"old"}').hexdigest()


def test_the_runs_own_copy(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    file = weights(tmp_path / "a.safetensors", NAMES["vae"])
    first = find_starts(file, ALL, run)["vae"]
    keep_start(first, run)
    weights(file, NAMES["vae"], value=5.0)
    assert kept_starts(run)["vae"].sha256 == first.sha256
    assert Path(kept_starts(run)["vae"].file).parent == run / "init"
    with pytest.raises(LdmkitError, match="changed while it was read"):
        keep_start(first, run)
    keep_start(find_starts(file, ALL, run)["vae"], run)
    assert Path(kept_starts(run)["vae"].file).read_bytes() == file.read_bytes()
    assert len(list((run / "init").iterdir())) == 2  # one copy and what it is
    (run / "init" / "vae.json").write_text("{")
    with pytest.raises(LdmkitError, match=r"vae\.json: damaged; give --init-from again, or remove .*init to train"):
        kept_starts(run)


def test_what_does_not_fit() -> None:
    wanted = {"a": (2, 3), "b": (4,), "c": ()}
    assert misfit(wanted, wanted) is None
    assert misfit({**wanted, "a": (3, 3)}, wanted) == "a is 3x3 there and 2x3 here"
    assert misfit({"a": (1,), "b": (1,), "d": ()}, wanted) == (
        "a is 1 there and 2x3 here, and 1 more of other shapes; c not there (1 in all); d not known here (1 in all)"
    )


@pytest.fixture
def made(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The workshop with every part made, by fakes, which any weights fit."""

    def fake(spec: PartSpec) -> Callable[..., dict[str, Any]]:
        def make(workspace: Any) -> dict[str, Any]:
            bundle_dir = workspace.parts["bundle"].bundle
            bundle_dir.mkdir(parents=True, exist_ok=True)
            manifest = {"files": {}, "fingerprint": workspace.parts["bundle"].fingerprint}
            (bundle_dir / "manifest.json").write_text(json.dumps(manifest))
            rows = [{"file": entry.key, "caption": "a cat"} for entry in workspace.index.entries]
            (workspace.folder("captions") / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
            quality = {"held_out": {"num_pictures": 1, "psnr": 20.0, "ssim": 0.5}, "channels": []}
            if spec.name == "latents":
                (workspace.folder(spec.name) / "quality.json").write_text(json.dumps(quality))
            return {}

        return make

    monkeypatch.setattr(PartSpec, "load", fake)
    monkeypatch.setattr(initial, "check_starts", lambda *_: None)
    monkeypatch.chdir(workshop.folder)
    workshop.pipeline().run()
    return workshop


def not_done(pipeline: Any) -> dict[str, str]:
    return {name: status.reason for name, status in pipeline.states().items() if status.state != "done"}


def test_first_weights_are_part_of_what_a_result_depends_on(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """As a key of the recipe would be; without them no record and no fingerprint knows of it."""
    assert "init_from" not in (made.run / "unet" / "record.json").read_text()
    file = weights(made.folder / "a.safetensors", NAMES["unet"])
    every = stage_names()
    pipeline = made.pipeline()
    pipeline.start_from(file, every)
    assert not_done(pipeline) == {"unet": "init_from changed", "bundle": "unet changed"}
    assert not_done(made.pipeline()) == {}  # who only looks changes nothing
    pipeline.reporter.quiet = False
    pipeline.run()
    lines = capsys.readouterr().out
    assert "train-unet: out of date (init_from changed); the old one is kept" in lines
    assert f"train-unet: first weights: {file} (SHA-256 " in lines

    assert not_done(made.pipeline()) == {}  # without the option it is the same run,
    pipeline = made.pipeline()
    pipeline.start_from(file, every)
    assert not_done(pipeline) == {}  # and with it too;
    weights(file, NAMES["unet"], value=1.0)
    assert not_done(made.pipeline()) == {}
    pipeline = made.pipeline()
    pipeline.start_from(file, every)
    assert not_done(pipeline) == {"unet": "init_from changed", "bundle": "unet changed"}  # other weights are another's
    shutil.rmtree(made.run / "init")
    assert not_done(made.pipeline()) == {"unet": "init_from changed", "bundle": "unet changed"}
    with pytest.raises(LdmkitError, match="--init-from other: encode trains nothing"):
        made.pipeline().start_from(Path("other"), ("encode",))


def test_parts_that_the_other_run_has_not(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(made.folder / "runs" / "other", "unet")
    pipeline = made.pipeline("unet.steps=9", "t2i.steps=9")
    pipeline.start_from(Path("other"), ("train-unet", "train-t2i"))
    pipeline.reporter.quiet = False
    pipeline.run(("train-unet", "train-t2i"))
    lines = capsys.readouterr().out
    assert "train-unet: first weights: " in lines
    assert "train-t2i: first weights: random, other has no finished t2i" in lines

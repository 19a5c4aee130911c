"""What `train` announces before it does anything, against what then lies in the run's folder."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from PIL import Image

from ldmkit.cli import train as command
from ldmkit.errors import LdmkitError
from ldmkit.run.files import read_record, write_sealed
from ldmkit.run.folder import Part
from ldmkit.run.parts import PARTS, PartSpec, stage_names

SEEN = {"resume": "go on", "restore": "go on"}
"""how a part's folder shows what was done, where several things show alike"""


def fake(spec: PartSpec) -> Callable[[Any], dict[str, Any]]:
    """Makes a part at no cost: weights that follow from what they are made from, and the checkpoint they are in."""

    def make(workspace: Any) -> dict[str, Any]:
        part: Part = workspace.parts[spec.name]
        if part.bundle is not None:
            part.bundle.mkdir(parents=True, exist_ok=True)
            (part.bundle / "unet.onnx").write_bytes(b"graph")
            entry = {"size": 5, "sha256": hashlib.sha256(b"graph").hexdigest()}
            manifest = {"files": {"unet.onnx": entry}, "fingerprint": part.fingerprint}
            (part.bundle / "manifest.json").write_text(json.dumps(manifest))
        if not (part.folder / "identity").exists():
            (part.folder / "identity").write_text(uuid4().hex)
        if spec.name == "captions" and not (part.folder / "captions.jsonl").exists():
            caption = workspace.recipe.caption.use
            rows = [json.dumps({"file": entry.key, "caption": caption}) for entry in workspace.index.entries]
            (part.folder / "captions.jsonl").write_text("\n".join(rows))
        if spec.name == "latents":
            quality = {"held_out": {"num_pictures": 0}, "channels": []}
            (part.folder / "quality.json").write_text(json.dumps(quality))
            (part.folder / "mean.npy").write_bytes(b"mean" * 300_000)  # more than is hashed to look at a run
        if spec.trained:
            train(part, num_steps(workspace, spec.name))
        return {}

    return make


def num_steps(workspace: Any, name: str) -> int:
    steps: int = getattr(workspace.recipe, name).num_steps(len(workspace.split()[0]))
    return steps


def train(part: Part, steps: int) -> None:
    at = part.folder / "checkpoints" / f"step_{steps:08d}"
    weights = hashlib.sha256((part.fingerprint + json.dumps(part.made_of)).encode()).digest() * 50_000
    if not at.exists():
        at.mkdir(parents=True)
        (at / "ema.safetensors").write_bytes(weights)
        state = {"step": steps, "inputs": part.inputs, "num_samples": 16}
        (at / "state.json").write_text(json.dumps(state))
    shutil.copy(at / "ema.safetensors", part.folder)
    (part.folder / "metrics.jsonl").write_text(json.dumps({"step": steps, "seconds": 1.5}) + "\n")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.conftest import new_workshop

    workshop = new_workshop(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartSpec, "load", fake)
        workshop.pipeline().run()
    return workshop.folder


@pytest.fixture
def made(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The workshop with every part made, by fakes; a copy, whose captions are newer."""
    from tests.conftest import Workshop

    monkeypatch.setattr(PartSpec, "load", fake)
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return Workshop(tmp_path)


def edit(path: str) -> Callable[[Any], None]:
    """Another bit, the size and the time left as they are."""

    def change(made: Any) -> None:
        file = made.folder / path
        found, data = file.stat(), bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))

    return change


def cut(path: str) -> Callable[[Any], None]:
    return lambda made: os.truncate(made.folder / path, 10)


def gone(path: str) -> Callable[[Any], None]:
    def remove(made: Any) -> None:
        target = made.folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return remove


def ran(*overrides: str) -> Callable[[Any], None]:
    return lambda made: made.pipeline(*overrides).run()


def interrupted(part: str, steps: int) -> Callable[[Any], None]:
    """As a kill leaves it that much on its way."""

    def interrupt(made: Any) -> None:
        folder = made.run / part
        record = read_record(folder)
        assert record is not None
        kept = {key: record[key] for key in ("inputs", "fingerprint", "made_of")}
        write_sealed(folder / "record.json", {**kept, "state": "running"})
        shutil.rmtree(folder / "checkpoints")
        (folder / "ema.safetensors").unlink()
        at = folder / "checkpoints" / f"step_{steps:08d}"
        at.mkdir(parents=True)
        (at / "ema.safetensors").write_bytes(b"begun")
        (at / "state.json").write_text(json.dumps({"step": steps, "inputs": record["inputs"], "num_samples": 16}))

    return interrupt


def repaint(made: Any) -> None:
    picture = Image.open(made.folder / "pictures" / "03.png").convert("RGB")
    picture.putpixel((2, 2), (1, 2, 3))
    picture.save(made.folder / "pictures" / "03.png")


def together(*changes: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda made: [change(made) for change in changes] and None


RUN = "runs/tiny"
KINDS: dict[str, tuple[list[str], Callable[[Any], None] | None, str]] = {
    # What is changed: overrides, what happens to the files; and what a part or two must be said to do about it.
    "nothing": ([], None, "vae keep, bundle keep"),
    "more steps": (["unet.steps=16"], None, "unet go on, bundle renew, t2i keep"),
    "fewer steps": (["unet.steps=4"], None, "unet renew"),
    "epochs for steps": (["unet.epochs=9"], None, "unet go on"),
    "too few epochs": (["unet.epochs=1"], None, "unet renew"),
    "learning rate": (["t2i.learning_rate=0.5"], None, "t2i go on, unet keep"),
    "learning rate of the autoencoder": (["vae.learning_rate=0.5"], None, "vae go on, latents renew, t2i renew"),
    "schedule": (["unet.lr_schedule='cosine'"], None, "unet go on"),
    "averages": (["unet.ema_decays=[0.9,0.5]"], None, "unet go on"),
    "accumulation": (["unet.grad_accumulation=3"], None, "unet go on"),
    "batch": (["t2i.batch_size=4"], None, "t2i go on"),
    "precision": (["unet.precision='fp32'"], None, "unet go on"),
    "compilation": (["unet.compile='off'"], None, "unet go on"),
    "logging": (["unet.log_every=3"], None, "unet keep"),
    "evaluations": (["unet.eval_every=3"], None, "unet keep"),
    "autoencoder's network": (["vae.channels=[8,8]"], None, "vae renew, text keep, bundle renew"),
    "network": (["unet.channels=[16,8]"], None, "unet renew, t2i keep"),
    "network and steps": (["unet.steps=16", "unet.dropout=0.0"], None, "unet renew"),
    "loss": (["vae.losses.kl.weight=0.5"], None, "vae renew"),
    "noise": (["diffusion.schedule='cosine'"], None, "unet renew, latents keep"),
    "size": (["data.size=24"], None, "vae renew, text keep"),
    "seed": (["seed=1"], None, "vae renew"),
    "captioner": (["caption.use='filename'"], None, "captions renew, text open, t2i open, bundle open, unet keep"),
    "captions that are missing": (["caption.missing='skip'"], None, "captions keep, text renew"),
    "text encoder": (["text.layers=2"], None, "text renew, t2i renew"),
    "cache": (["latents.dtype='float16'"], None, "latents renew, unet renew"),
    "opset": (["export.opset=19"], None, "t2i keep, bundle renew"),
    "sampler": (["sampler.steps=7"], None, "bundle keep"),
    "fewer pictures": (["data.num_pictures=15"], None, "captions renew, vae renew"),
    "picture": ([], repaint, "vae renew, captions renew"),
    "caption": (
        [],
        lambda made: (made.folder / "pictures" / "03.txt").write_text("a cat in a hat"),
        "captions renew, text open",
    ),
    "caption touched": ([], lambda made: os.utime(made.folder / "pictures" / "03.txt", ns=(0, 0)), "captions keep"),
    "part removed": ([], gone(f"{RUN}/unet"), "unet make, bundle open"),
    "weights cut": ([], cut(f"{RUN}/vae/ema.safetensors"), "vae restore, latents keep"),
    "weights gone": ([], gone(f"{RUN}/t2i/ema.safetensors"), "t2i restore, bundle keep"),
    "weights flipped": (["unet.steps=16"], edit(f"{RUN}/vae/ema.safetensors"), "vae restore, unet go on"),
    "no way back": ([], together(gone(f"{RUN}/vae/checkpoints"), cut(f"{RUN}/vae/ema.safetensors")), "vae stop"),
    "cache flipped": (["unet.steps=16"], edit(f"{RUN}/latents/mean.npy"), "latents remake, unet go on, t2i keep"),
    "captions flipped": ([], edit(f"{RUN}/captions/captions.jsonl"), "captions stop"),
    "record of weights": ([], edit(f"{RUN}/unet/record.json"), "unet restore"),
    "record of a cache": ([], edit(f"{RUN}/latents/record.json"), "latents remake, unet keep"),
    "graph gone": ([], gone("exports/tiny/unet.onnx"), "bundle make"),
    "there and back": ([], ran("vae.channels=[8,8]"), "vae take back, latents take back, t2i take back, captions keep"),
    "captions there and back": ([], ran("caption.use='filename'"), "captions take back, text open, unet keep"),
    "interrupted": ([], interrupted("unet", 3), "unet resume, bundle open"),
    "interrupted, another rate": (["unet.learning_rate=0.5"], interrupted("unet", 3), "unet go on"),
    "interrupted, beyond the end": (["unet.steps=2"], interrupted("unet", 3), "unet renew"),
}


def look(made: Any) -> dict[str, tuple[str, bytes, str | None]]:
    """Of each part that is there its folder, its record and its identity."""
    found = {}
    for folder in [*(made.run / name for name in PARTS), *(made.run / "stale").glob("*")]:
        if (folder / "record.json").exists():
            identity = folder / "identity"
            record = (folder / "record.json").read_bytes()
            found[f"{folder.parent.name}/{folder.name}"] = (
                folder.name,
                record,
                identity.read_text() if identity.exists() else None,
            )
    return found


def seen(name: str, before: Any, after: Any) -> str:
    """What was done about a part, by what lies there."""
    old, new = before.get(f"tiny/{name}"), after.get(f"tiny/{name}")
    aside = {key: entry[2] for key, entry in before.items() if key.startswith("stale/")}
    if old == new:
        return "keep"
    if new[2] in aside.values():
        return "take back"
    if old is None:
        return "make"
    if old[2] == new[2]:
        return "go on"
    kept = any(entry[2] == old[2] for key, entry in after.items() if key.startswith("stale/"))
    return "renew" if kept else "remake"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_announced_is_what_happens(kind: str, made: Any) -> None:
    overrides, change, words = KINDS[kind]
    if change is not None:
        change(made)
    steps = made.pipeline(*overrides).steps(stage_names())
    told = {name: step.action for name, step in steps.items()}
    assert told.items() >= dict(word.split(" ", 1) for word in words.split(", ")).items()
    before, pictures = look(made), made.folder / "exports" / "tiny" / "manifest.json"
    at = pictures.stat().st_mtime_ns
    if "stop" in told.values():
        message = next(step.reason for step in steps.values() if step.action == "stop")
        with pytest.raises(LdmkitError, match=re.escape(message)):
            made.pipeline(*overrides).run()
        assert look(made) == before
        return
    made.pipeline(*overrides).run()
    after = look(made)
    for name, action in told.items():
        if name == "bundle":  # whose folder has no identity: the new one replaces it
            happened = "keep" if pictures.exists() and pictures.stat().st_mtime_ns == at else SEEN.get(action, action)
            happened = "renew" if happened == "open" else happened
        else:
            happened = seen(name, before, after)
        if action == "open":
            assert happened in ("keep", "renew", "take back"), name
        else:
            assert happened == SEEN.get(action, action), name
    again = made.pipeline(*overrides).steps(stage_names())
    assert {step.action for step in again.values()} == {"keep"}


def test_fresh_begins_anew(made: Any) -> None:
    interrupted("unet", 3)(made)
    pipeline = made.pipeline("t2i.steps=16")
    assert {name: pipeline.steps(stage_names(), fresh=True)[name].action for name in ("unet", "t2i", "vae")} == {
        "unet": "renew",
        "t2i": "renew",
        "vae": "keep",
    }
    pipeline.run(fresh=True)
    assert {path.name for path in (made.run / "stale").iterdir()} >= {"t2i-1", "unet-1"}


def test_long_work_is_set_aside_after_a_question_alone(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.folder)
    log = made.run / "t2i" / "metrics.jsonl"
    log.write_text(json.dumps({"step": 8, "seconds": 7500.0}) + "\n")
    made.pipeline().run()  # taken as it is, from the last checkpoint
    log.write_text(json.dumps({"step": 8, "seconds": 7500.0}) + "\n")
    part = made.pipeline().parts()["t2i"]
    part.finish(7500)
    before = look(made)
    monkeypatch.setattr(command, "require", lambda *_: None)
    options = ["tiny.toml", "--set", "t2i.num_heads=4", "--set", f"export.path={made.folder / 'exports'}"]
    left = CliRunner().invoke(command.train, options)
    assert isinstance(left.exception, LdmkitError)
    assert re.search(r"2 h 5 min of work .*t2i \(t2i\.num_heads: 2 -> 4\).*--yes`", str(left.exception))
    assert look(made) == before
    left = CliRunner().invoke(command.train, [*options, "--yes"], catch_exceptions=False)
    assert left.exit_code == 0
    assert (made.run / "stale" / "t2i-1").is_dir()


def test_a_run_without_its_pictures(made: Any) -> None:
    """As `status` and `export` see it: the pictures as they were last seen."""
    (made.folder / "pictures").rename(made.folder / "elsewhere")
    pipeline = made.pipeline()
    pipeline.dataset.remembers = True
    assert {status.state for status in pipeline.states().values()} == {"done"}
    pipeline.run(("export",), forced="export", bundle_dir=made.folder / "other")
    assert (made.folder / "other" / "manifest.json").is_file()
    with pytest.raises(LdmkitError, match=r"pictures does not exist; name a folder of pictures"):
        made.pipeline("data.source='folder'").run()


def test_captions_that_are_missing_are_told_before_hours_of_training(made: Any) -> None:
    for number in range(7):
        (made.folder / "pictures" / f"{number:02d}.txt").unlink()
    captions = made.run / "captions" / "captions.jsonl"
    rows = captions.read_text().splitlines()
    captions.write_text("\n".join([*rows[7:], ""]))
    made.pipeline().parts()["captions"].finish(1)
    before = look(made)
    message = r"7 of 20 pictures have no caption: 00\.png, .*04\.png and 2 more; write each to a \.txt .*, or set "
    with pytest.raises(LdmkitError, match=message):
        made.pipeline("vae.channels=[8,8]").run()
    assert look(made) == before


def test_most_captions_missing_stops_where_single_ones_do_not(made: Any) -> None:
    for picture in sorted((made.folder / "pictures").glob("*.txt"))[:11]:
        picture.unlink()
    captions = made.run / "captions" / "captions.jsonl"
    rows = captions.read_text().splitlines()
    captions.write_text("\n".join([*rows[11:], ""]))
    made.pipeline().parts()["captions"].finish(1)
    before, skip = look(made), ("caption.missing='skip'", "vae.channels=[8,8]")
    message = r"11 of 20 pictures have no caption, more than caption\.max_missing = 0\.5 allows: 00\.png, .*go on"
    with pytest.raises(LdmkitError, match=message):
        made.pipeline(*skip).run()
    assert look(made) == before
    made.pipeline(*skip, "caption.max_missing=0.6").run()
    assert look(made) != before
    made.pipeline("caption.missing='empty'").run(ignore_gate=True)


def test_what_came_and_went_is_said(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made.folder / "pictures"
    assert made.pipeline().index.news == "", "they were read elsewhere"
    (folder / "03.png").unlink()
    (folder / "04.png").write_bytes((folder / "05.png").read_bytes())
    for name in ("new 1.png", "new 2.png"):
        Image.new("RGB", (20, 20), "red").save(folder / name)
    pipeline = made.pipeline("caption.missing='empty'")
    pipeline.reporter.quiet = False
    pipeline.run()
    assert "data: since the pictures were last read 2 came, 1 went, 1 changed\n" in capsys.readouterr().out

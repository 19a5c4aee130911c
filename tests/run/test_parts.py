"""The table of parts: fingerprints are what they were, and a row is all that a new stage needs beside its file."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ldmkit.data import captions as caption_file
from ldmkit.plan.planner import Planner
from ldmkit.recipe import load_recipe
from ldmkit.report import Reporter
from ldmkit.run import inputs
from ldmkit.run.inputs import RunParts
from ldmkit.run.parts import PARTS, PartSpec, behind

REPOSITORY = Path(__file__).parents[2]
EVERY = ("captions", "vae", "latents", "text", "unet", "t2i", "bundle")
# Of the recipes that ship: with an encoder that is trained along, and with a frozen one and given first weights of the
# autoencoder. Another value would make every run that was ever trained with that recipe stale.
GOLDEN = {
    "cats-seed": (
        "f25cfc3b42a8 cd710f67525c 1da58b962c8d 017eb8e91485 5d80998200a7 73441c00e77d 1110948ccc5a",
        "f25cfc3b42a8 1246589921ee df6b7782c40c f1ba74f332ee 4d0647091e48 2aba29754990 292c6deeba43",
    ),
    "cats": (
        "4fe74734f012 0c062d35933f 205a90949f8b 017eb8e91485 0ca076e9aa70 66feeddf3481 b12c44e7d51f",
        "4fe74734f012 f486fc2306ce 7320c67d2472 5b22e20dae78 5bdc625a0427 3b8af08074ea 091205445891",
    ),
    "toy-cats": (
        "65d9a9e2a114 2592e7265270 751926735c52 9d061c94bacd 6894096ea27f c0c23fc31d5c 14c84b511b8b",
        "65d9a9e2a114 27999e042cb5 2cdb202c69e4 13435bf1326c 2132b1630cf2 094c2126815e 8c23a6a23b3e",
    ),
}


def parts_of(recipe: str, run: Path, *overrides: str, frozen: bool = False) -> RunParts:
    return RunParts(
        load_recipe(REPOSITORY / "recipes" / f"{recipe}.toml", overrides),
        run,
        run / "exported",
        pictures="a" * 64,
        caption_files="b" * 64,
        frozen=frozen,
        starts={"vae": "c" * 64} if frozen else {},
    )


@pytest.mark.parametrize("recipe", GOLDEN)
def test_fingerprints(recipe: str, tmp_path: Path) -> None:
    for frozen, golden in enumerate(GOLDEN[recipe]):
        parts = parts_of(recipe, tmp_path, frozen=bool(frozen))
        found = {name: part.fingerprint[:12] for name, part in parts.items()}
        assert found == dict(zip(EVERY, golden.split(), strict=True))


def test_fingerprints_of_what_is_named_only_where_asked_for(tmp_path: Path) -> None:
    asked = parts_of("toy-cats", tmp_path, "export.precision='fp16'", "export.encoder=true")["bundle"].inputs["export"]
    assert asked == {"opset": 18, "tolerance": 1e-4, "precision": "fp16", "encoder": True}
    plain = parts_of("toy-cats", tmp_path, "export.precision='fp32'", "export.encoder=false")["bundle"].inputs["export"]
    assert plain == {"opset": 18, "tolerance": 1e-4}


def test_every_part_is_made_after_what_it_needs() -> None:
    for number, (name, spec) in enumerate(PARTS.items()):
        assert spec.name == name
        assert set(spec.needs) <= set(list(PARTS)[:number])
        assert (name in behind("vae")) == (name in ("latents", "unet", "t2i", "bundle"))
    assert behind("captions") == ("text", "t2i", "bundle")
    assert behind("bundle") == ()


def test_captions_are_read_once_a_command(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And once more where they were made anew; each part is looked at as it is when its turn comes."""
    reads = []
    monkeypatch.setattr(inputs, "captions_hash", lambda path: reads.append(path) or caption_file.captions_hash(path))

    def fake(spec: PartSpec) -> Any:
        def make(workspace: Any) -> dict[str, Any]:
            part = workspace.parts[spec.name]
            if spec.name == "captions":
                text = workspace.recipe.caption.use
                rows = [{"file": entry.key, "caption": text} for entry in workspace.index.entries]
                (part.folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
            elif spec.name == "text":
                assert len(reads) == 1  # of the captions that were made a moment ago
                assert part.inputs["captions"] == caption_file.captions_hash(
                    workspace.folder("captions") / "captions.jsonl"
                )
            elif spec.name == "latents":
                quality = {"held_out": {"num_pictures": 0}, "channels": []}
                (part.folder / "quality.json").write_text(json.dumps(quality))
            elif spec.name == "bundle":
                part.bundle.mkdir(parents=True)
                (part.bundle / "manifest.json").write_text(json.dumps({"files": {}, "fingerprint": part.fingerprint}))
            return {}

        return make

    monkeypatch.setattr(PartSpec, "load", fake)
    workshop.pipeline().run()
    assert len(reads) == 1
    reads.clear()
    workshop.pipeline().run()
    assert len(reads) == 1
    reads.clear()
    assert {status.state for status in workshop.pipeline().states().values()} == {"done"}
    assert len(reads) == 1


def test_plan_has_a_row_for_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that it does not know how to measure is named, and its time is not."""
    monkeypatch.setitem(PARTS, "colours", PartSpec(name="colours", stage="colour", maker="", inputs=lambda _: {}))
    for name in ("empty", "fresh_autoencoder", "save_weights"):  # of the autoencoder that stands in
        monkeypatch.setattr(f"ldmkit.plan.planner.{name}", lambda *_: SimpleNamespace(state_dict=dict))
    planner: Any = Planner.__new__(Planner)
    planner.states = {**dict.fromkeys(PARTS, "done"), "colours": "missing"}
    planner.measures, planner.recipe = {}, load_recipe(REPOSITORY / "recipes" / "toy-cats.toml")
    planner.workspace = SimpleNamespace(folder=Path, reporter=Reporter(quiet=True))
    rows = list(planner.rows())
    assert [row.stage for row in rows] == [spec.label for spec in PARTS.values()]
    assert [(row.state, row.seconds) for row in rows] == [("done", 0.0)] * 7 + [("to do", None)]


ROW = """
import json, sys
from ldmkit.run.parts import PARTS, PartSpec

rows = dict(PARTS)
PARTS.clear()
for name, row in rows.items():
    if name == "bundle":
        PARTS["colours"] = PartSpec(
            name="colours", stage="colour", maker="colours:make", needs=("captions",), torch=False,
            inputs=lambda run: {"pictures": run.pictures, "size": run.recipe.data.size}, help="Find the colours.")
    PARTS[name] = row
from ldmkit.cli import main
main()
"""
STAGE = """
def make(workspace):
    (workspace.folder("colours") / "colours.txt").write_text("red")
    return {"colours": 1}
"""


def test_a_row_and_a_file_are_a_stage(workshop: Any) -> None:
    """It has a command, is a choice of `--only`, stands in `status` and `--dry-run`, and has a fingerprint."""
    (workshop.folder / "colours.py").write_text(STAGE)
    path = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "plugins", workshop.folder)))

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", ROW, *arguments],
            cwd=workshop.folder,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "colour         Find the colours." in run("--help")
    dry = ("train", "tiny.toml", "--only", "colour", "--dry-run")
    assert "  colour      colours   blocked  (runs/tiny/captions: missing, and colours is made from it" in run(*dry)
    run("caption", "tiny.toml")
    assert "  colour      colours   missing" in run(*dry).splitlines()
    assert "colour: done in" in run("colour", "tiny.toml")
    assert (workshop.run / "colours" / "colours.txt").read_text() == "red"
    record = json.loads((workshop.run / "colours" / "record.json").read_text())
    assert (record["facts"], record["inputs"]["size"]) == ({"colours": 1}, 16)
    states = {row["part"]: row["state"] for row in json.loads(run("status", "tiny.toml", "--json"))["parts"]}
    assert list(states) == [*EVERY[:-1], "colours", "bundle"]
    assert states["colours"] == "done"
    changed = run("status", "tiny.toml", "--set", "data.size=24").splitlines()
    assert "  colour      colours   stale  (size: 16 -> 24)" in changed

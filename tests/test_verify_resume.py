"""`ldmkit verify-resume`: it really kills, and one bit of difference is enough to be told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ldmkit.cli.verify_resume import verify_resume
from ldmkit.recipe import Recipe, load_recipe
from ldmkit.verify_resume import PICTURES, ResumeCheck, Verdict, contents, cut

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


def test_of_a_recipe(processes: Any, workshop: Any) -> None:
    command = ("verify-resume", "tiny.toml", "--only", "train-unet", "--kills", "3", "--steps", "6", "--json")
    code, output = processes.run(workshop.folder, command)
    assert code == 0, output
    told, _, rest = output.partition("{")
    assert "train-unet: 3 kills" in told
    (verdict,) = json.loads("{" + rest)["stages"]
    assert verdict["kills"] == 3
    assert (verdict["same"], verdict["different"]) == (True, [])
    # Six steps; raw weights and two averages, in the part and in its last checkpoint, which has the optimizer as well.
    assert verdict["compared"] == (6 + 7) * verdict["runs"]
    assert verdict["environment"]["threads"] == 1
    assert not (workshop.folder / "runs").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_cut_recipe_is_a_recipe(recipe: Path, tmp_path: Path) -> None:
    short = cut(load_recipe(recipe), steps=6, pictures=tmp_path / "none", scratch=tmp_path)
    assert Recipe.model_validate_json(short.model_dump_json()) == short
    sections = [section for section in (short.vae, short.unet, short.t2i) if section is not None]
    assert {section.num_steps(1000) for section in sections} <= {6, 0 if short.vae.pretrained else 6}
    assert all(loss.start_step <= 3 for loss in short.vae.losses.values())  # each has its say
    assert (short.data.source, short.data.num_pictures) == ("toy-cats", PICTURES)
    assert Path(short.data.path).parent == tmp_path


@pytest.mark.parametrize("change", ["a bit of a loss", "a step left out", "a bit of a weight", "a file left out"])
def test_one_bit_is_enough(change: str, trained: Any, tmp_path: Path) -> None:
    before = contents(trained.run / "t2i")
    assert contents(trained.run / "t2i") == before
    part = tmp_path / "t2i"
    shutil.copytree(trained.run / "t2i", part)
    log = part / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    if change == "a bit of a loss":
        rows[3]["loss"] = float.fromhex(rows[3]["loss"].hex()) * (1 + 2**-52)
    elif change == "a step left out":
        del rows[-1]
    elif change == "a bit of a weight":
        weights = part / "checkpoints" / "step_00000008" / "optimizer_model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    else:
        (part / "ema.safetensors").unlink()
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = contents(part)
    (different,) = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    assert different in ("line 4", "line 8", "checkpoints/step_00000008/optimizer_model.safetensors", "ema.safetensors")


def test_a_difference_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, and by exit code 1."""
    found = Verdict("train-unet", {"device": "cpu"}, kills=4, inside_saves=1, runs=2, compared=26, different=["line 4"])
    monkeypatch.setattr(ResumeCheck, "check", lambda *_, **__: found)
    command = ["toy-cats", "--only", "train-unet"]
    left = CliRunner().invoke(verify_resume, command, standalone_mode=False)
    assert left.return_value == 1
    stage, kills, differ, verdict = left.stdout.splitlines()
    assert stage == "train-unet on device cpu:"
    assert kills == "  4 kills, 1 of them inside a save, in 2 runs"
    assert differ == "  1 of 26 steps and weights differ: line 4"
    assert verdict.startswith("a resumed run differs from an uninterrupted one")
    found.different.clear()
    left = CliRunner().invoke(verify_resume, command, standalone_mode=False)
    assert left.return_value == 0
    assert left.stdout.splitlines()[-1].startswith("a resumed run repeats an uninterrupted one")

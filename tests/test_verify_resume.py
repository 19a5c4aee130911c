"""`ldmkit verify-resume`: it really kills, and one bit of difference is enough to be told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ldmkit.recipe import Recipe, load_recipe
from ldmkit.verify_resume import PICTURES, ResumeCheck, Verdict, cut

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


def test_of_a_recipe(processes: Any, workshop: Any) -> None:
    command = ("verify-resume", "tiny.toml", "--only", "train-unet", "--kills", "3", "--steps", "6", "--json")
    code, output = processes.run(workshop.folder, command)
    assert code == 0, output
    told, _, rest = output.partition("{")
    assert "train-unet: 3 kills" in told
    (verdict,) = json.loads("{" + rest)["stages"]
    assert verdict["kills"] == 3
    assert (verdict["same"], verdict["different_steps"], verdict["different_files"]) == (True, 0, 0)
    assert verdict["steps"] == 6 * verdict["runs"]
    # Raw weights and two averages, in the part and in its last checkpoint, which has the optimizer as well.
    assert verdict["files"] == 7 * verdict["runs"]
    assert verdict["environment"]["threads"] == 1
    assert not (workshop.folder / "runs").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_cut_recipe_is_a_recipe(recipe: Path, tmp_path: Path) -> None:
    short = cut(load_recipe(recipe), steps=6, pictures=tmp_path / "none", scratch=tmp_path)
    assert Recipe.model_validate_json(short.model_dump_json()) == short
    assert [section.num_steps(1000) for section in (short.vae, short.unet, short.t2i)] == [6, 6, 6]
    assert all(loss.start_step <= 3 for loss in short.vae.losses.values())  # each has its say
    assert (short.data.source, short.data.num_pictures) == ("toy-cats", PICTURES)
    assert Path(short.data.path).parent == tmp_path


@pytest.mark.parametrize("change", ["a bit of a loss", "a step left out", "a bit of a weight", "a file left out"])
def test_one_bit_is_enough(change: str, trained: Any, tmp_path: Path) -> None:
    recipe = trained.pipeline().recipe
    check = ResumeCheck(recipe, tmp_path)
    for run in (check.alone, check.killed):
        shutil.copytree(trained.run, run)
    same = Verdict("train-t2i", {})
    check._compare("t2i", same)
    assert same.same
    part = check.killed / "t2i"
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
    verdict = Verdict("train-t2i", {})
    check._compare("t2i", verdict)
    assert not verdict.same
    assert verdict.different_steps + verdict.different_files == 1

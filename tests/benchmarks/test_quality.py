"""Variants of one U-Net on a run's own latents: trained as the stage trains, drawn, scored once. Samplers."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import command
from benchmarks.quality import ablation, results, samplers, variants
from ldmkit.caches.sets import LatentSet
from ldmkit.data.decode import load_picture, prepare
from ldmkit.errors import LdmkitError
from ldmkit.run.checkpoint import load_weights
from ldmkit.run.networks import load_autoencoder

REPOSITORY = Path(__file__).parents[2]
# Called as the real one is: tells how many pictures it saw in either folder.
KID = """
import json, pathlib, sys
reference, generated, as_json = sys.argv[1:]
assert as_json == "--json"
counts = [len(list(pathlib.Path(folder).glob("*.png"))) for folder in (reference, generated)]
print(json.dumps({"kid_x1000": counts[0] + counts[1] / 100, "std": 0.5}))
"""


@pytest.fixture(autouse=True)
def _as_the_run_was_trained(monkeypatch, trained):
    monkeypatch.chdir(trained.folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measure(trained, out, **more):
    common = {"stage": "train-t2i", "steps": 2, "num": 3, "out": out, "only": ["linear eps", "flow logit_normal"]}
    ablation.main(trained.run, **{**common, **more})


def rows_of(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("stage", "part"), [("train-t2i", "t2i"), ("train-unet", "unet")])
def test_a_variant_without_changes_is_the_stage_itself(trained, tmp_path, stage, part):
    shared = variants.open_run(trained.run)
    workspace, row = variants.train(shared, shared.recipe, stage, tmp_path / "run")
    assert workspace.folder(part) == tmp_path / "run" / part
    for name in ("model", "ema"):
        own, stages = (
            load_weights(folder / part / f"{name}.safetensors") for folder in (tmp_path / "run", trained.run)
        )
        for key, value in stages.items():
            torch.testing.assert_close(own[key], value, rtol=1e-4, atol=1e-6)
    assert row["seconds"] >= 0
    assert "held_out_loss" in row


def test_seeds_differ_in_training_and_not_in_what_is_held_out(trained, tmp_path):
    shared = variants.open_run(trained.run)
    overrides = variants.short_run(shared.recipe, "train-unet", steps=1, seed=7)
    recipe = variants.with_overrides(shared.recipe, overrides)
    assert (recipe.seed, recipe.unet.steps, recipe.vae) == (7, 1, shared.recipe.vae)
    workspace, _ = variants.train(shared, recipe, "train-unet", tmp_path / "run")
    assert [list(part) for part in workspace.split()] == list(variants.split(shared))
    assert set(shared.index.split(0.2, seed=7)[1]) != set(variants.split(shared)[1])  # else that says nothing
    same = load_weights(trained.run / "unet" / "model.safetensors")
    own = load_weights(tmp_path / "run" / "unet" / "model.safetensors")
    assert not all(torch.equal(own[key], same[key]) for key in same)


def test_short_runs_average_over_their_last_tenth(trained):
    recipe = variants.open_run(trained.run).recipe
    for steps, decay in ((1, 0.5), (40, 0.75), (10**6, 0.9)):
        assert variants.short_run(recipe, "train-t2i", steps=steps, seed=0)["t2i.ema_decays"] == [decay]


@pytest.mark.parametrize("normalize", [True, False])
def test_drawing_decodes_in_the_latents_own_scale(trained, monkeypatch, normalize):
    """A network that always answers x0 = 0 draws what the decoder makes of the channels' means, or of zeros."""
    shared = variants.open_run(trained.run)
    recipe = variants.with_overrides(
        shared.recipe, {"diffusion.schedule": "cosine", "diffusion.prediction": "x0", "latents.normalize": normalize}
    )
    parts = shared.parts()
    workspace = variants.VariantWorkspace(
        recipe, shared.registry, shared.index, trained.run, parts, None, shared=shared
    )

    class Zero(torch.nn.Module):
        def load_state_dict(self, state):
            pass

        def forward(self, x_t, t):
            return torch.zeros_like(x_t)

    monkeypatch.setattr(variants, "build_unet", lambda *_: Zero())
    pictures = [np.asarray(p) for p in variants.draw(workspace, "train-unet", ["", ""])]
    assert len(pictures) == 2
    statistics = json.loads((trained.run / "latents" / "statistics.json").read_text())
    mean = torch.tensor(statistics["mean"] if normalize else [0.0, 0.0])
    autoencoder = load_autoencoder(recipe, trained.run / "vae")
    with torch.no_grad():
        pixels = autoencoder.decode(mean[None, :, None, None].expand(1, 2, 8, 8))[0].permute(1, 2, 0).numpy()
    for picture in pictures:
        assert np.abs(picture - (np.clip(pixels, -1, 1) + 1) * 127.5).max() <= 0.51


def test_results_are_kept_and_nothing_is_trained_twice(trained, tmp_path, monkeypatch, capsys):
    measure(trained, tmp_path)
    printed = capsys.readouterr().out
    rows = rows_of(tmp_path)
    assert [(row["name"], row["seed"], row["steps"]) for row in rows] == [
        ("linear eps", 0, 2),
        ("flow logit_normal", 0, 2),
    ]
    assert not list((tmp_path / "runs").iterdir())
    folders = [folder for folder in (tmp_path / "pictures").iterdir() if folder.is_dir()]
    assert sorted(len(list(folder.glob("*.png"))) for folder in folders) == [3, 3]
    drawn = [json.loads(line)["text"] for line in (folders[0] / "metadata.jsonl").read_text().splitlines()]
    assert set(drawn) <= {"a red cat", "a blue cat", "a cat on a mat", "two cats"}

    def never(*_arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(variants, "train", never)
    measure(trained, tmp_path)
    assert capsys.readouterr().out == printed
    assert rows_of(tmp_path) == rows

    # A reference that comes later costs no training either. It is the held-out pictures, as the run prepares them.
    shared, held_out = variants.open_run(trained.run), tmp_path / "held-out"
    positions = variants.split(shared)[1]
    ablation.main(trained.run, held_out_to=held_out)
    listed = [json.loads(line) for line in (held_out / "metadata.jsonl").read_text().splitlines()]
    assert [row["source"] for row in listed] == [shared.index.entries[i].key for i in positions]
    for row in listed:
        picture = np.asarray(Image.open(held_out / row["file_name"]))
        original = load_picture(trained.folder / "pictures" / row["source"])
        np.testing.assert_array_equal(picture, prepare(original, (16, 16), "center"))
    (tmp_path / "kid.py").write_text(KID)
    measure(trained, tmp_path, reference=held_out, kid_script=tmp_path / "kid.py")
    assert [row["kid_x1000"] for row in rows_of(tmp_path)[2:]] == [len(positions) + 0.03] * 2
    with pytest.raises(AssertionError, match="trained again"):
        measure(trained, tmp_path, seeds=[1])


def test_users_mistakes(trained, tmp_path, monkeypatch, capsys):
    with pytest.raises(LdmkitError, match="not a run"):
        ablation.main(tmp_path)
    (tmp_path / "kid.py").write_text("raise SystemExit('no pictures there')")
    with pytest.raises(LdmkitError, match="no pictures there"):
        results.kid(tmp_path / "kid.py", tmp_path, tmp_path)
    with pytest.raises(LdmkitError, match="go together"):
        measure(trained, tmp_path, kid_script=tmp_path / "kid.py")
    with pytest.raises(LdmkitError, match="--only cosine: not one of linear eps, "):
        measure(trained, tmp_path, only=["cosine"])
    monkeypatch.setattr(sys, "argv", ["ablation", str(tmp_path), "--seeds", "1", "--seeds", "2"])
    with pytest.raises(SystemExit, match="1"):
        command.run(ablation.main)
    assert re.match("error: .* not a run", capsys.readouterr().err)


def test_tables_give_means_over_seeds_and_their_spread():
    def row(seed, kid, right):
        shares = {"fur": 1.0, "eyes": 0.5, "coat": 0.5, "background": 0.5, "all": right}
        scores = {"kid_x1000": kid, "kid_std": 2.0, "right": shares}
        return {"name": "a", "seed": seed, "steps": 9, "num": 100, "seconds": 60, **scores}

    three = [row(0, 10.0, 0.2), row(1, 12.0, 0.4), row(2, 14.0, 0.6)]
    assert results.summary(three, "kid_x1000") == pytest.approx((12, 2, 2))  # sqrt((4 + 0 + 4) / 2)
    assert results.summary(three[:1], "right") == pytest.approx((0.2, 0.04, 0.04))  # sqrt(0.2 * 0.8 / 100)
    line = results.table({"a": three}).splitlines()[2]
    assert line == "| a | 3 | 9 | 40.0% ± 20.0% | 100.0% | 50.0% | 50.0% | 50.0% | 12.00 ± 2.00 (2.00) | 60 |"


# --- the seed's way ----------------------------------------------------------------------------------------------


def recipe_of(shared, name):
    overrides = ablation.overrides(shared, "train-t2i", name, steps=5, seed=3)
    return variants.with_overrides(shared.recipe, overrides)


def test_the_seeds_way_is_the_published_one(trained):
    """As the seed's notebooks: AdamW 1e-4, mse on eps, linear betas 1e-4 to 0.02, T = 1000, raw latents, no extras."""
    shared = variants.open_run(trained.run)
    recipe = recipe_of(shared, "the seed")
    diffusion, t2i = recipe.diffusion, recipe.t2i
    assert (diffusion.schedule, diffusion.prediction, diffusion.weighting) == ("linear", "eps", "none")
    assert (diffusion.beta_start, diffusion.beta_end, diffusion.num_timesteps) == (1e-4, 0.02, 1000)
    assert (t2i.optimizer, t2i.learning_rate, t2i.lr_schedule, t2i.warmup_steps) == ("adamw", 1e-4, "constant", 0)
    assert (t2i.ema_decays, t2i.grad_clip, t2i.caption_dropout) == ((), 0, 0)
    assert recipe.sampler.guidance_scale == 1
    assert not recipe.data.flip
    assert t2i.network() == shared.recipe.t2i.network()
    ddpm = recipe_of(shared, "the seed, ddpm")
    assert (ddpm.sampler.use, ddpm.sampler.guidance_scale) == ("ddpm", 1)
    keys = [variants.training_key(shared, each, "train-t2i") for each in (recipe, ddpm)]
    assert keys[0] == keys[1]
    ours = recipe_of(shared, "the recipe")
    same = {"steps", "epochs", "eval_every", "sample_every"}
    assert ours.t2i.model_dump(exclude=same) == shared.recipe.t2i.model_dump(exclude=same)
    untouched = (shared.recipe.diffusion, shared.recipe.latents, shared.recipe.sampler)
    assert (ours.diffusion, ours.latents, ours.sampler) == untouched


def test_the_seeds_latents_are_raw_and_the_same_each_time(trained):
    """Though the cache holds mirrored copies: mean + std * one fixed noise, of the plain copy."""
    recipe = recipe_of(variants.open_run(trained.run), "the seed")
    latents = LatentSet(trained.run / "latents", recipe.latents, recipe.seed)
    plain = np.zeros(3, dtype=bool)
    noises = torch.randn(2, 3, *latents.shape)  # a fresh draw would take them
    first, again = (latents.batch(np.array([4, 0, 7]), plain, noise).numpy() for noise in noises)
    np.testing.assert_array_equal(first, again)
    whole = latents.batch(np.arange(20), np.zeros(20, dtype=bool), None).numpy()
    np.testing.assert_array_equal(first, whole[[4, 0, 7]])
    plainly = json.loads((trained.run / "latents" / "statistics.json").read_text())
    expected = np.array(plainly["std"])  # of z, both copies and all draws: raw latents have about this spread
    np.testing.assert_allclose(whole.std(axis=(0, 2, 3)), expected, rtol=0.25)


def test_each_way_gets_the_steps_that_fit(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "rates", lambda shared, stage, names: {"the recipe": 40.0, "the seed": 60.0})
    trainings = []
    real = variants.MAKERS["train-t2i"]
    spied = lambda workspace: trainings.append(workspace.recipe.t2i.steps) or real(workspace)  # noqa: E731
    monkeypatch.setitem(variants.MAKERS, "train-t2i", spied)
    ways = ["the recipe", "the seed, ddpm", "the seed"]
    measure(trained, tmp_path, minutes=0.001, num=2, only=ways)
    # 0.001 minutes at 40 and 60 steps a second
    assert [(row["name"], row["steps"]) for row in rows_of(tmp_path)] == list(zip(ways, (2, 4, 4), strict=True))
    assert trainings == [2, 4]  # the seed's two samplers draw from one training
    monkeypatch.setattr(ablation, "rates", lambda *_: {"the recipe": 1.0, "the seed": 1.0})
    measure(trained, tmp_path, minutes=0.001, num=2, only=ways)  # goes on with the rates of before
    assert trainings == [2, 4]


def test_rates_leave_out_the_first_steps(trained, monkeypatch):
    """Twelve steps of 0.5 s or 0.25 s, after four that take 10 s each."""
    shared = variants.open_run(trained.run)

    def train(shared, recipe, stage, folder):
        (folder / "t2i").mkdir()
        step = 0.25 if recipe.t2i.ema_decays == () else 0.5
        seconds = [10.0 * (n + 1) if n < 4 else 40 + step * (n - 3) for n in range(recipe.t2i.steps)]
        lines = [json.dumps({"step": n + 1, "seconds": value}) + "\n" for n, value in enumerate(seconds)]
        (folder / "t2i" / "metrics.jsonl").write_text("".join(lines))

    monkeypatch.setattr(ablation, "train", train)
    found = ablation.rates(shared, "train-t2i", ["the recipe", "the seed"])
    assert found == pytest.approx({"the recipe": 2, "the seed": 4})


# --- samplers ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.* too long for the text encoder")  # the bundle reads 32 tokens, captions have more
def test_samplers_are_scored_and_the_same_command_goes_on(tmp_path, capsys):
    bundle, settings = REPOSITORY / "exports" / "toy-cats", {"num": 4, "calls": [3], "out": tmp_path}
    samplers.main(bundle, only=["ddim"], **settings)
    first = (tmp_path / "samplers.jsonl").read_text()
    samplers.main(bundle, only=["ddim", "heun"], plot=tmp_path / "plot.png", **settings)
    lines = (tmp_path / "samplers.jsonl").read_text()
    assert lines.startswith(first)
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [(row["sampler"], row["steps"], row["calls"]) for row in rows] == [("ddim", 3, 3), ("heun", 2, 3)]
    assert all(0 <= row["right"] <= 1 for row in rows)
    assert "recommended: " in capsys.readouterr().out
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width > 600


def test_the_fewest_calls_within_the_error_of_the_best_are_recommended():
    def row(calls, right, **more):
        return {"calls": calls, "right": right, "error": 0.02, **more}

    rows = [row(4, 0.80), row(8, 0.935), row(12, 0.945), row(20, 0.95)]
    assert samplers.recommended(rows) is rows[1]
    rows = [
        row(4, 0, kid_x1000=9.0, kid_std=1),
        row(8, 0, kid_x1000=5.2, kid_std=0.1),
        row(20, 1, kid_x1000=5, kid_std=0.5),
    ]
    assert samplers.recommended(rows) is rows[1]

"""Two ways of training for the same minutes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldmkit.caches.sets import LatentSet

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch, trained):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(trained.folder)
    import against_seed
    import variants

    return SimpleNamespace(against_seed=against_seed, variants=variants)


def test_the_seeds_way_is_the_published_one(bench, trained):
    """As the seed's notebooks: AdamW 1e-4, mse on eps, linear betas 1e-4 to 0.02, T = 1000, raw latents, no extras."""
    shared = bench.variants.open_run(trained.run)
    recipe = bench.against_seed.variant(shared, "seed", "train-t2i", steps=5, seed=3, num=1).recipe
    diffusion, t2i = recipe.diffusion, recipe.t2i
    assert (diffusion.schedule, diffusion.prediction, diffusion.weighting) == ("linear", "eps", "none")
    assert (diffusion.beta_start, diffusion.beta_end, diffusion.num_timesteps) == (1e-4, 0.02, 1000)
    assert (t2i.optimizer, t2i.learning_rate, t2i.lr_schedule, t2i.warmup_steps) == ("adamw", 1e-4, "constant", 0)
    assert (t2i.ema_decays, t2i.grad_clip, t2i.caption_dropout) == ((), 0, 0)
    assert recipe.sampler.guidance_scale == 1
    assert not recipe.data.flip
    assert t2i.network() == {**shared.recipe.t2i.network()}
    ours = bench.against_seed.variant(shared, "ours", "train-t2i", steps=5, seed=3, num=1).recipe
    same = {"steps", "epochs", "eval_every", "sample_every"}
    assert ours.t2i.model_dump(exclude=same) == shared.recipe.t2i.model_dump(exclude=same)
    assert (ours.diffusion, ours.latents, ours.sampler) == (
        shared.recipe.diffusion,
        shared.recipe.latents,
        shared.recipe.sampler,
    )


def test_the_seeds_latents_are_raw_and_the_same_each_time(bench, trained):
    """Though the cache holds mirrored copies: mean + std * one fixed noise, of the plain copy."""
    shared = bench.variants.open_run(trained.run)
    recipe = bench.against_seed.variant(shared, "seed", "train-t2i", steps=5, seed=3, num=1).recipe
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


def test_each_arm_gets_the_steps_that_fit(bench, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.against_seed, "rates", lambda shared, stage: {"ours": 40.0, "seed": 60.0})
    trainings = []
    real = bench.variants.train_t2i
    make = {"train-t2i": ("t2i", lambda context: trainings.append(context.recipe.t2i.steps) or real(context))}
    monkeypatch.setitem(bench.variants.STAGES, "train-t2i", make["train-t2i"])
    words = [str(trained.run), "--minutes", "0.001", "--seeds", "0", "--num", "2", "--out", str(tmp_path)]
    assert bench.against_seed.main([*words, "--seed-steps", "3"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    # 0.001 minutes at 40 and 60 steps a second
    assert [(row["name"], row["steps"]) for row in rows] == [("ours", 2), ("seed, ddpm 3", 4), ("seed, ddim 2", 4)]
    assert trainings == [2, 4]  # the seed's two samplers draw from one training
    monkeypatch.setattr(bench.against_seed, "rates", lambda shared, stage: {"ours": 1.0, "seed": 1.0})
    assert bench.against_seed.main([*words, "--seed-steps", "3"]) == 0  # goes on with the rates of before
    assert trainings == [2, 4]
    assert "steps a second: ours 40.00, seed 60.00" in capsys.readouterr().out


def test_rates_leave_out_the_first_steps(bench, trained, monkeypatch):
    """Twelve steps of 0.5 s or 0.25 s, after four that take 10 s each."""
    shared = bench.variants.open_run(trained.run)

    def train(shared, variant, folder):
        (folder / "t2i").mkdir()
        step = 0.5 if variant.name == "ours" else 0.25
        seconds = [10.0 * (n + 1) if n < 4 else 40 + step * (n - 3) for n in range(variant.recipe.t2i.steps)]
        lines = [json.dumps({"step": n + 1, "seconds": value}) + "\n" for n, value in enumerate(seconds)]
        (folder / "t2i" / "metrics.jsonl").write_text("".join(lines))

    monkeypatch.setattr(bench.against_seed, "train", train)
    assert bench.against_seed.rates(shared, "train-t2i") == pytest.approx({"ours": 2, "seed": 4})


def test_verdict_takes_the_better_of_the_seeds_samplers(bench):
    def rows(*values):
        return [{"kid_x1000": value, "kid_std": 1.0} for value in values]

    by_name = {"ours": rows(10, 12), "seed, ddpm 100": rows(30, 34), "seed, dpmpp_2m 20": rows(20, 24)}
    assert bench.against_seed.verdict(by_name) == ("kid_x1000: ours 11 ± 1.4, seed, dpmpp_2m 20 22 ± 2.8: -50%, apart")
    by_name["ours"] = rows(18, 26)
    assert bench.against_seed.verdict(by_name).endswith("+0%, not apart")

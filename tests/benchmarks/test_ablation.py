"""Variants of one U-Net on a run's own latents: trained as the stage trains, drawn, scored once."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ldmkit.data.decode import load_picture, prepare
from ldmkit.errors import LdmkitError
from ldmkit.run.checkpoint import load_weights
from ldmkit.run.networks import load_autoencoder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Called as the real one is: tells how many pictures it saw in either folder.
KID = """
import json, pathlib, sys
reference, generated, as_json = sys.argv[1:]
assert as_json == "--json"
counts = [len(list(pathlib.Path(folder).glob("*.png"))) for folder in (reference, generated)]
print(json.dumps({"kid_x1000": counts[0] + counts[1] / 100, "std": 0.5}))
"""


@pytest.fixture
def bench(monkeypatch, trained):
    """The benchmark modules, started where the shared run was trained."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(trained.folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the run was trained with
    import ablation
    import variant_table
    import variants

    yield SimpleNamespace(ablation=ablation, variants=variants, table=variant_table)
    torch.set_num_threads(threads)


def words(trained, out, *more):
    common = ["--stage", "train-t2i", "--steps", "2", "--num", "3", "--out", str(out)]
    return [str(trained.run), *common, "--only", "linear eps", "flow logit_normal", *more]


def rows_of(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("stage", "part"), [("train-t2i", "t2i"), ("train-unet", "unet")])
def test_a_variant_without_changes_is_the_stage_itself(bench, trained, tmp_path, stage, part):
    shared = bench.variants.open_run(trained.run)
    variant = bench.variants.Variant(name="same", recipe=shared.recipe, stage=stage, num=1)
    context, row = bench.variants.train(shared, variant, tmp_path / "run")
    assert context.folder(part) == tmp_path / "run" / part
    for name in ("model", "ema"):
        own, stages = (
            load_weights(folder / part / f"{name}.safetensors") for folder in (tmp_path / "run", trained.run)
        )
        for key, value in stages.items():
            torch.testing.assert_close(own[key], value, rtol=1e-4, atol=1e-6)
    assert row["seconds"] >= 0
    assert "held_out_loss" in row


def test_seeds_differ_in_training_and_not_in_what_is_held_out(bench, trained, tmp_path):
    shared = bench.variants.open_run(trained.run)
    overrides = bench.variants.short_run(shared.recipe, "train-unet", steps=1, seed=7)
    recipe = bench.variants.with_overrides(shared.recipe, overrides)
    assert (recipe.seed, recipe.unet.steps, recipe.vae) == (7, 1, shared.recipe.vae)
    variant = bench.variants.Variant(name="seven", recipe=recipe, stage="train-unet", num=1)
    context, _ = bench.variants.train(shared, variant, tmp_path / "run")
    assert [list(part) for part in context.split()] == list(shared.split())
    assert set(shared.index.split(0.2, seed=7)[1]) != set(shared.split()[1])  # else the line above says nothing
    same = load_weights(trained.run / "unet" / "model.safetensors")
    own = load_weights(tmp_path / "run" / "unet" / "model.safetensors")
    assert not all(torch.equal(own[key], same[key]) for key in same)


@pytest.mark.parametrize(("steps", "decay"), [(1, 0.5), (40, 0.75), (10**6, 0.9)])
def test_short_runs_average_over_their_last_tenth(bench, trained, steps, decay):
    shared = bench.variants.open_run(trained.run)
    assert bench.variants.short_run(shared.recipe, "train-t2i", steps=steps, seed=0)["t2i.ema_decays"] == [decay]


@pytest.mark.parametrize("normalize", [True, False])
def test_drawing_decodes_in_the_latents_own_scale(bench, trained, monkeypatch, normalize):
    """A network that always answers x0 = 0 draws what the decoder makes of the channels' means, or of zeros."""
    shared = bench.variants.open_run(trained.run)
    recipe = bench.variants.with_overrides(
        shared.recipe, {"diffusion.schedule": "cosine", "diffusion.prediction": "x0", "latents.normalize": normalize}
    )
    context = bench.variants.VariantWorkspace(
        recipe, shared.registry, shared.index, trained.run, shared.parts, None, split_seed=0
    )

    class Zero(torch.nn.Module):
        def forward(self, x_t, t):
            return torch.zeros_like(x_t)

    monkeypatch.setattr(bench.variants, "_unet", lambda context: Zero())
    pictures = [np.asarray(p) for p in bench.variants.draw(context, "train-unet", ["", ""], num=2)]
    statistics = json.loads((trained.run / "latents" / "statistics.json").read_text())
    mean = torch.tensor(statistics["mean"] if normalize else [0.0, 0.0])
    autoencoder = load_autoencoder(recipe, trained.run / "vae")
    with torch.no_grad():
        pixels = autoencoder.decode(mean[None, :, None, None].expand(1, 2, 8, 8))[0].permute(1, 2, 0).numpy()
    for picture in pictures:
        assert np.abs(picture - (np.clip(pixels, -1, 1) + 1) * 127.5).max() <= 0.51


def test_results_are_kept_and_nothing_is_trained_twice(bench, trained, tmp_path, monkeypatch, capsys):
    assert bench.ablation.main(words(trained, tmp_path)) == 0
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

    monkeypatch.setattr(bench.variants, "train", never)
    assert bench.ablation.main(words(trained, tmp_path)) == 0
    assert capsys.readouterr().out == printed
    assert rows_of(tmp_path) == rows

    # A reference that comes later costs no training either.
    (tmp_path / "kid.py").write_text(KID)
    assert bench.ablation.main([str(trained.run), "--held-out-to", str(tmp_path / "held-out")]) == 0
    scored = words(trained, tmp_path, "--reference", str(tmp_path / "held-out"), "--kid", str(tmp_path / "kid.py"))
    plot = tmp_path / "plot.png"
    assert bench.ablation.main([*scored, "--plot", str(plot)]) == 0
    held_out = len(bench.variants.open_run(trained.run).split()[1])
    assert [row["kid_x1000"] for row in rows_of(tmp_path)[2:]] == [held_out + 0.03] * 2
    with Image.open(plot) as image:
        assert min(image.size) > 100
    with pytest.raises(AssertionError, match="trained again"):
        bench.ablation.main([*words(trained, tmp_path), "--seeds", "1"])


def test_exported_pictures_are_those_held_out(bench, trained, tmp_path):
    shared = bench.variants.open_run(trained.run)
    for held_out in (True, False):
        folder = tmp_path / str(held_out)
        positions = shared.split()[1] if held_out else range(20)
        assert bench.variants.export_pictures(shared, folder, held_out=held_out) == len(positions)
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        assert [row["source"] for row in rows] == [shared.index.entries[i].key for i in positions]
        for row in rows:
            picture = np.asarray(Image.open(folder / row["file_name"]))
            original = load_picture(trained.folder / "pictures" / row["source"])
            np.testing.assert_array_equal(picture, prepare(original, 16, "center"))


def test_users_mistakes(bench, trained, tmp_path, capsys):
    assert bench.ablation.main([str(tmp_path)]) == 1
    assert "not a run" in capsys.readouterr().err
    (tmp_path / "kid.py").write_text("raise SystemExit('no pictures there')")
    with pytest.raises(LdmkitError, match="no pictures there"):
        bench.variants.kid(tmp_path / "kid.py", tmp_path, tmp_path)
    with pytest.raises(SystemExit):
        bench.ablation.main([str(trained.run), "--kid", sys.executable])
    assert "go together" in capsys.readouterr().err


def test_tables_give_means_over_seeds_and_their_spread(bench):
    def row(seed, kid, right):
        shares = {"fur": 1.0, "eyes": 0.5, "coat": 0.5, "background": 0.5, "all": right}
        scores = {"kid_x1000": kid, "kid_std": 2.0, "right": shares}
        return {"name": "a", "seed": seed, "steps": 9, "num": 100, "seconds": 60, "cpu_seconds": 50, **scores}

    three = [row(0, 10.0, 0.2), row(1, 12.0, 0.4), row(2, 14.0, 0.6)]
    assert bench.table.summary(three, "kid_x1000") == pytest.approx((12, 2))  # sqrt((4 + 0 + 4) / 2)
    assert bench.table.summary(three[:1], "kid_x1000") == (10, 2.0)
    assert bench.table.summary(three[:1], "right") == pytest.approx((0.2, 0.04))  # sqrt(0.2 * 0.8 / 100)
    line = bench.table.table({"a": three}).splitlines()[2]
    assert line == "| a | 3 | 9 | 40.0% ± 20.0% | 100.0% | 50.0% | 50.0% | 50.0% | 12.00 ± 2.00 (2.00) | 60 | 50 |"

"""Pictures that are not square, and several shapes in one run: from the files to what is drawn."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ldmkit.caches.sets import LatentSet
from ldmkit.components.registry import Registry
from ldmkit.data.batches import picture_batches
from ldmkit.data.buckets import describe
from ldmkit.data.decode import prepare
from ldmkit.data.pictures import scan
from ldmkit.data.prepared import prepared_pictures
from ldmkit.errors import LdmkitError
from ldmkit.export.torch_backend import TorchBackend
from ldmkit.recipe import load_recipe
from ldmkit.recipe.data import Data, by_step
from ldmkit.report import Reporter
from ldmkit.run.networks import load_autoencoder
from ldmkit.run.randomness import BucketOrder, SampleOrder, order_of
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.generate import draw
from ldmkit.runtime.manifest import VAE_DECODER, VAE_ENCODER
from ldmkit.runtime.request import DrawRequest, each_prompt
from ldmkit.runtime.settings import resolve
from ldmkit.runtime.verify import verify
from tests.conftest import TINY
from tests.training.test_processes import both, settings, watched

CORNERS = {"red": (0, 0), "lime": (0, -1), "blue": (-1, 0), "white": (-1, -1)}
"""colour of a picture's quarter -> row and column of a corner in it: no turn, flip or swapped axis leaves them all"""
BUCKETS = ("data.buckets=[[24, 16], [16, 24]]",)


def quarters(width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height))
    for colour, (row, column) in CORNERS.items():
        left, top = -column * width // 2, -row * height // 2
        image.paste(Image.new("RGB", (width - width // 2, height - height // 2), colour), (left, top))
    return image


def colours(pixels: np.ndarray) -> list[str]:
    """The nearest of the colours to each quarter's middle, in the order of CORNERS; (H, W, 3) levels."""
    height, width = pixels.shape[:2]
    known = {name: np.array(Image.new("RGB", (1, 1), name))[0, 0] for name in CORNERS}
    found = []
    for row, column in CORNERS.values():
        y, x = height // 4 + -row * height // 2, width // 4 + -column * width // 2
        seen = pixels[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1))
        found.append(min(known, key=lambda name: float(np.square(known[name] - seen).sum())))
    return found


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16), (9, 40)])
def test_the_crop_is_pillows(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for height, width in rng.integers(5, 90, (12, 2)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = np.asarray(ImageOps.fit(image, shape, Image.Resampling.LANCZOS))
        assert np.abs(prepare(image, shape).astype(int) - expected).max() <= 1
        assert prepare(image, shape, "squash").shape == (shape[1], shape[0], 3)


def test_size_and_buckets_of_a_recipe(workshop: Any) -> None:
    def data(*overrides: str) -> Data:
        return load_recipe(workshop.folder / "tiny.toml", overrides).data

    plain = data()
    assert data("data.size=[16, 16]", "data.buckets=[]").fingerprint_keys() == plain.fingerprint_keys()
    assert "buckets" not in plain.fingerprint_keys()
    assert data("data.size=[24, 16]").fingerprint_keys()["size"] == [24, 16]
    # The ratios' logarithms halve the way: 1.22 between 16x16 and 24x16.
    stepped = data("data.size=24", "data.buckets=8")
    listed = data("data.size=24", "data.buckets=[[16, 32], [32, 16]]")
    assert stepped.shapes == listed.shapes
    assert stepped.fingerprint_keys() == listed.fingerprint_keys()
    several = data(*BUCKETS)
    assert several.shapes == ((16, 16), (24, 16), (16, 24))
    sizes = [(100, 100), (121, 100), (123, 100), (4000, 100), (100, 123), (100, 121), (7, 4000)]
    assert [several.bucket(*size) for size in sizes] == [0, 0, 1, 1, 2, 0, 2]
    for wrong, words in (
        (("data.size=[24, 17]",), "size = [24, 17] must be multiples of 2, by which vae.channels and vae.patch_size"),
        (("data.buckets=[[24, 17]]",), "buckets: [24, 17] must be multiples of 2, by which vae.channels and"),
        (("data.size=[24, 18]",), "[8, 8] shrink by 2, but the latents are 12 wide and 9 high: use fewer levels"),
        (("data.buckets=[[32, 32]]",), "buckets: [32, 32] has the aspect ratio of [16, 16], so that no picture comes"),
        (("data.size=[24]",), "size = [24] is not allowed: it takes integer >= 8, <= 2048 or list of integer"),
        (("data.size=24", "data.buckets=7"), "buckets = 7 is not allowed: it takes integer >= 8, <= 2048 or list of"),
        (("data.size=24", "data.buckets=9"), "[data] buckets = 9 must divide size = 24, which is one of the sizes"),
        (("data.buckets=16",), "buckets = 16 gives no size but size = 16; use a smaller step"),
        (("data.size=1024", "data.buckets=8"), "buckets = 8 gives 105 sizes, more than 64, for size = 1024; use a lar"),
        (("data.size=36", "data.buckets=9"), "[data] buckets = 9 must be a multiple of 2, by which vae.channels and"),
        (("data.size=60", "data.buckets=10"), "use fewer levels, or make [data] buckets = 10 a multiple of 4"),
        (("data.buckets=[[24, 4]]",), "buckets = [[24, 4]] is not allowed: it takes integer >= 8, <= 2048 or list"),
    ):
        with pytest.raises(LdmkitError) as refused:
            data(*wrong)
        assert words in str(refused.value)


KOHYA_512 = [(256, side) for side in (832, 896, 960, 1024)] + [
    (320, 704),
    (320, 768),
    (384, 640),
    (448, 576),
    (512, 512),
]
"""sd-scripts' resolutions for 512x512 in steps of 64, upright (those of the NovelAI model too)"""
SDXL = {
    **{704: (1344, 1408), 768: (1280, 1344), 832: (1152, 1216), 896: (1088, 1152), 960: (1024, 1088), 1024: (1024,)},
    **{512: (1856, 1920, 1984, 2048), 576: (1664, 1728, 1792), 640: (1536, 1600)},
}
"""Podell et al. 2023, appendix I: width -> heights of the upright ones, but for 704x1472"""


def test_buckets_by_a_step_are_those_that_others_train_in() -> None:
    upright = [(width, height) for width, height in KOHYA_512 if height <= 2 * width]
    assert set(by_step((512, 512), 64)) == {*upright, *((height, width) for width, height in upright)}
    found = [shape for shape in by_step((1024, 1024), 64) if shape[0] <= shape[1]]
    assert all(height in SDXL[width] for width, height in found)
    # Of theirs some are smaller than they need be: one of ours holds each.
    within = [(width, height) for width, heights in SDXL.items() for height in heights if height <= 2 * width]
    assert all(any(w >= width and h >= height for w, h in found) for width, height in within)


def test_buckets_by_a_step_fill_the_area() -> None:
    rng = np.random.default_rng(0)
    for step, across, down in rng.integers((1, 2, 2), (9, 12, 12), (50, 3)) * [8, 1, 1]:
        size = (int(step * across), int(step * down))
        shapes = by_step(size, int(step))
        assert (size in shapes) == (max(size) <= 2 * min(size))
        assert {(height, width) for width, height in shapes} == set(shapes)
        assert len({width / height for width, height in shapes}) == len(shapes)
        for width, height in shapes:
            assert width % step == height % step == 0
            assert 0.5 <= width / height <= 2
            # No more pixels than `size`, and a step more on the longer or the shorter side would be too many.
            assert width * height <= size[0] * size[1] < width * height + step * max(width, height)


def test_what_buckets_crop_is_told(tmp_path: Path) -> None:
    data = Data(size=16, buckets=((24, 16), (8, 32)))
    # 40x20 loses a quarter of its width to 24x16; 12x12 is enlarged and loses nothing.
    for number, size in enumerate([(40, 20), (24, 16), (12, 12)]):
        Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"{number}.png")
    assert describe(scan(tmp_path), data, batch_size=2) == [
        "16x16: 1 picture, 0.0% of their pixels cropped, 1 enlarged; fewer than a batch, in which each comes several "
        "times",
        "24x16: 2 pictures, 12.5% of their pixels cropped, 0 enlarged",
        "8x32: no picture",
        "no picture is left out of the buckets",
    ]
    (tmp_path / "2.png").unlink()
    with pytest.raises(LdmkitError, match=r"data.size = 16: every picture is nearer .*; choose one of \[24, 16\]"):
        describe(scan(tmp_path), data, batch_size=2)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_each_buckets_epochs_are_permutations(batch_size: int) -> None:
    buckets = np.array([0] * 10 + [2] * 23 + [5] * 3)[np.random.default_rng(0).permutation(36)]
    order = BucketOrder(7, buckets)
    batches = [order.batch(step, batch_size) for step in range(600)]
    for bucket, number in ((0, 10), (2, 23), (5, 3)):
        own = [batch for batch in batches if buckets[batch[0]] == bucket]
        assert all((buckets[batch] == bucket).all() for batch in own)  # one shape a batch
        stream = np.concatenate(own)
        epochs = stream[: len(stream) // number * number].reshape(-1, number)
        assert (np.sort(epochs, axis=1) == np.flatnonzero(buckets == bucket)).all()  # each once, none left out
        # At all times as far as the others: a batch of its own at most, one for each other bucket.
        turns = np.cumsum([buckets[batch[0]] == bucket for batch in batches])
        assert np.abs(turns - np.arange(1, 601) * number / 36).max() < 3
    for step in (0, 1, 37, 599):
        assert np.array_equal(BucketOrder(7, buckets).batch(step, batch_size), batches[step])  # taken up anywhere
    late = BucketOrder(7, buckets).batch(5000, batch_size)
    assert np.array_equal(order.batch(5000, batch_size), late)  # however many turns were thought of before
    one = order_of(7, 36, np.full(36, 2))
    assert np.array_equal(one.batch(3, 5), SampleOrder(7, 36).batch(3, 5))


def test_large_pictures_are_prepared_in_their_buckets(tmp_path: Path) -> None:
    data = Data(size=16, buckets=((24, 16), (16, 24)), num_workers=0)
    (tmp_path / "pictures").mkdir()
    for number, size in enumerate([(90, 60), (60, 60), (60, 90), (61, 95)]):
        quarters(*size).save(tmp_path / "pictures" / f"{number}.png")
    index = scan(tmp_path / "pictures")
    pictures = prepared_pictures(index, data, tmp_path / "run", Reporter(quiet=True))
    assert [picture.load().size for picture in pictures] == [(24, 16), (16, 16), (16, 24), (16, 24)]
    batches = [[0], [1], [2, 3]]
    for ours, plain in zip(
        picture_batches(pictures, data, batches), picture_batches(index.pictures(), data, batches), strict=True
    ):
        assert torch.equal(ours, plain)
        assert all(colours(((each + 1) * 127.5).permute(1, 2, 0).numpy()) == list(CORNERS) for each in ours)


def test_a_wide_run_from_its_files_to_its_bundle(workshop: Any) -> None:
    """An autoencoder that has learnt the corners gives them back where they were, by onnxruntime as by torch."""
    shutil.rmtree(workshop.folder / "pictures")
    (workshop.folder / "pictures").mkdir()
    for number in range(8):
        quarters(50 + number, 30).save(workshop.folder / "pictures" / f"{number}.png")
    recipe = (workshop.folder / "tiny.toml").read_text()
    first, last = recipe.index("[t2i]"), recipe.index("[gate]")
    recipe = (
        (recipe[:first] + recipe[last:]).replace("steps = 8", "steps = 120", 1).replace("size = 16", "size = [24, 16]")
    )
    recipe = recipe[: recipe.index("[vae.losses.gan]")] + recipe[recipe.index("[unet]") :]
    start, end = recipe.index("[unet]"), recipe.index("[gate]")
    dit = '[unet]\nuse = "dit"\nwidth = 8\ndepth = 1\nnum_heads = 2\nsteps = 2\nbatch_size = 4\nprecision = "fp32"\n'
    (workshop.folder / "tiny.toml").write_text(recipe[:start] + dit + recipe[end:])
    pipeline = workshop.pipeline("export.encoder=true", "data.flip=false", "vae.dropout=0.0", "vae.eval_every=120")
    pipeline.run()

    bundle = Bundle.load(workshop.folder / "exports" / "tiny", provider="cpu")
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    assert manifest["picture_size"] == [24, 16]
    assert "sizes" not in manifest
    assert (manifest["latent"]["width"], manifest["latent"]["height"]) == (12, 8)
    assert all(check.state == "ok" for check in verify(bundle.folder, provider="cpu"))
    picture = np.asarray(ImageOps.fit(quarters(50, 30), (24, 16)), dtype=np.float32) / 127.5 - 1
    torch_backend = TorchBackend(pipeline.recipe, pipeline.registry, workshop.run)
    drawn = []
    for backend in (bundle, torch_backend):
        latents = backend.run(VAE_ENCODER, pixels=picture.transpose(2, 0, 1)[None])
        assert latents.shape[2:] == (8, 12)
        back = (backend.run(VAE_DECODER, latents=latents)[0].transpose(1, 2, 0) + 1) * 127.5
        assert back.shape == (16, 24, 3)
        assert colours(back) == list(CORNERS)
        settings = resolve(backend, DrawRequest(each_prompt(None, n=2, seed=3)))
        drawn.append(draw(backend, settings))
    assert {each.size for each in drawn[0] + drawn[1]} == {(24, 16)}
    for ours, theirs in zip(*drawn, strict=True):
        assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= 1
    (kept,) = {each.size for each in bundle.generate(init_image=quarters(75, 50), strength=0.1)}
    assert kept == (24, 16)


@pytest.fixture(scope="module")
def bucketed(processes: Any, trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe in buckets, trained to its end by one process: 21 pictures, of which 7 are of each shape."""
    folder = watched(crowd(tmp_path_factory.mktemp("bucketed")))
    code, output = processes.run(folder, *STAGES)
    assert code == 0, output
    assert "buckets: 24x16: 7 pictures" in output
    return folder


STAGES = [(stage, "tiny.toml", *settings(*BUCKETS)) for stage in ("caption", "train-vae", "encode", "train-t2i")]


def crowd(folder: Path) -> Path:
    (folder / "pictures").mkdir(parents=True)
    (folder / "tiny.toml").write_text(TINY[: TINY.index("[unet]")] + TINY[TINY.index("[t2i]") :])
    for number in range(21):
        rng = np.random.default_rng(number)
        size = [(16, 16), (24, 16), (16, 24)][number % 3]
        noise = rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
        picture = Image.fromarray(np.kron(noise, np.ones((4, 4, 1), np.uint8)))
        picture.save(folder / "pictures" / f"{number:02d}.png")
        (folder / "pictures" / f"{number:02d}.txt").write_text(f"cat {number}")
    return folder


def test_latents_of_each_bucket_are_the_encoders(bucketed: Path) -> None:
    recipe = load_recipe(bucketed / "tiny.toml", BUCKETS)
    latents = LatentSet(bucketed / "runs" / "tiny" / "latents", recipe.latents, recipe.seed)
    autoencoder = load_autoencoder(recipe, bucketed / "runs" / "tiny" / "vae")
    assert latents.buckets.tolist() == [0, 1, 2] * 7
    every = []
    for number in range(21):
        pixels = np.asarray(Image.open(bucketed / "pictures" / f"{number:02d}.png"), dtype=np.float32) / 127.5 - 1
        x = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
        for mirrored in (False, True):
            with torch.no_grad():
                posterior = autoencoder.encode(x.flip(-1) if mirrored else x)
            every.append((posterior.mean, posterior.std))
            z = latents.batch(np.array([number]), np.array([mirrored]), None)
            expected = (posterior.mean - latents.channel_mean) / latents.channel_std
            torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-4)
    means, stds = (torch.cat([each[k].movedim(1, 0).flatten(1) for each in every], dim=1) for k in (0, 1))
    torch.testing.assert_close(latents.channel_mean.flatten(), means.mean(1), rtol=1e-3, atol=1e-4)
    spread = (means.var(1, correction=0) + stds.square().mean(1)).sqrt()
    torch.testing.assert_close(latents.channel_std.flatten(), spread, rtol=1e-3, atol=1e-4)


def test_two_processes_encode_buckets_as_one_does(bucketed: Path, processes: Any, tmp_path: Path) -> None:
    shutil.copytree(bucketed, tmp_path, dirs_exist_ok=True)
    latents = tmp_path / "runs" / "tiny" / "latents"
    expected = {file.name: file.read_bytes() for file in latents.iterdir() if file.name != "record.json"}
    shutil.rmtree(latents)
    found = both(processes, tmp_path, STAGES[2])
    assert [code for code, _ in found] == [0, 0], found
    assert {file.name: file.read_bytes() for file in latents.iterdir() if file.name != "record.json"} == expected


def test_a_run_in_buckets_knows_and_draws_its_sizes(bucketed: Path) -> None:
    registry = Registry.load([bucketed / "watch.py"])
    backend = TorchBackend(load_recipe(bucketed / "tiny.toml", BUCKETS), registry, bucketed / "runs" / "tiny")
    assert backend.manifest.trained == ((16, 16), (24, 16), (16, 24))
    for size in (None, (16, 24), (24, 16)):
        (picture,) = draw(backend, resolve(backend, DrawRequest(each_prompt("cat 3", n=1, seed=0), size=size)))
        assert picture.size == (size or (16, 16))


def test_stopped_in_buckets_and_gone_on_to_the_bit(bucketed: Path, exact: Any, processes: Any, tmp_path: Path) -> None:
    folder = watched(crowd(tmp_path / "w"))
    code, output = processes.run(folder, *STAGES[:2])
    assert code == 0, output
    code, output = processes.run(folder, STAGES[2], strike=1, at="pictures/00.png", signal=signal.SIGTERM)
    assert code == 143, output
    assert "encode latents: saved up to picture 7 of 21" in output  # a batch ends with its bucket
    code, output = processes.run(folder, STAGES[2])
    assert code == 0, output
    assert "encode latents: resuming after picture 7 of 21" in output
    code, output = processes.run(folder, STAGES[3], strike=60, at="t2i/")
    assert code == -signal.SIGKILL, output
    code, output = processes.run(folder, STAGES[3])
    assert code == 0, output
    for name in ("mean.npy", "std.npy", "buckets.json", "statistics.json"):
        ours, theirs = (each / "runs" / "tiny" / "latents" / name for each in (folder, bucketed))
        assert ours.read_bytes() == theirs.read_bytes()
    exact.assert_same(folder / "runs" / "tiny" / "t2i", bucketed / "runs" / "tiny" / "t2i")


def test_two_processes_see_the_samples_of_one(bucketed: Path, processes: Any, tmp_path: Path) -> None:
    """Each share of a batch, one behind the other; 17 pictures are trained on, and a batch has 6."""
    folder = watched(crowd(tmp_path / "w"))
    found = both(processes, folder, STAGES[1])
    assert [code for code, _ in found] == [0, 0], found
    one = [json.loads(line) for line in (bucketed / "seen-0.jsonl").read_text().splitlines()]
    shares = [(folder / f"seen-{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    two = [json.loads(first) + json.loads(second) for first, second in zip(*shares, strict=True)]
    assert two == one
    assert len(one) == 8
    assert all(len(batch) == 6 for batch in one)

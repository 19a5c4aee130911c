"""The cached latents and captions against numpy, PIL and the autoencoder itself."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldmkit.caches.sets import LatentSet, TextSet
from ldmkit.denoising.conditioning import Captions
from ldmkit.errors import LdmkitError
from ldmkit.recipe.sections import Latents
from ldmkit.run.networks import load_autoencoder


def encoded(workshop: Any, *, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """(N, C, h, w) mean and std of every picture by way of PIL, one picture at a time, in float64."""
    autoencoder = load_autoencoder(workshop.pipeline().recipe, workshop.run / "vae").double()
    found = []
    for path in sorted((workshop.folder / "pictures").glob("*.png")):
        picture = Image.open(path).convert("RGB")
        if mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.asarray(picture).astype(np.float64) / 127.5 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            posterior = autoencoder.encode(pixels)
        found.append((posterior.mean[0].numpy(), posterior.logvar[0].exp().sqrt().numpy()))
    mean, std = zip(*found, strict=True)
    return np.stack(mean), np.stack(std)


def test_latents_are_the_encoders_posterior(trained: Any) -> None:
    folder = trained.run / "latents"
    mean, std = np.load(folder / "mean.npy"), np.load(folder / "std.npy")
    assert mean.shape == std.shape == (20, 2, 2, 8, 8)
    assert mean.dtype == np.float32
    for copy in (0, 1):
        expected_mean, expected_std = encoded(trained, mirrored=bool(copy))
        np.testing.assert_allclose(mean[:, copy], expected_mean, atol=1e-5)
        np.testing.assert_allclose(std[:, copy], expected_std, rtol=1e-4)
    assert np.abs(mean[:, 1] - mean[:, 0, ..., ::-1]).max() > 1e-3  # which is not the mirrored encoding
    names = [f"{i:02d}.png" for i in range(20)]
    assert json.loads((folder / "pictures.json").read_text()) == names


def test_statistics(trained: Any) -> None:
    """Law of total variance over pictures, copies, places and draws."""
    both = [encoded(trained, mirrored=mirrored) for mirrored in (False, True)]
    mean, std = (np.stack([pair[i] for pair in both], axis=1) for i in (0, 1))
    statistics = json.loads((trained.run / "latents" / "statistics.json").read_text())
    axes = (0, 1, 3, 4)
    np.testing.assert_allclose(statistics["mean"], mean.mean(axes), atol=1e-5)
    np.testing.assert_allclose(statistics["std"], np.sqrt(mean.var(axes) + (std**2).mean(axes)), rtol=1e-5)
    assert (std**2).mean() > 1e-3  # enough to see it missing


@pytest.fixture
def whole(trained: Any) -> Any:
    """batch(draw, noise) of every picture and copy: (40, 2, 8, 8), plain ones first."""

    def batch(noise: torch.Tensor | None, **options: Any) -> torch.Tensor:
        latents = LatentSet(trained.run / "latents", Latents(**options), seed=3)
        indices, mirrored = np.tile(np.arange(20), 2), np.repeat([False, True], 20)
        return latents.batch(indices, mirrored, noise)

    return batch


def test_batches_are_normalised(whole: Any) -> None:
    ones = torch.ones(40, 2, 8, 8)
    # The two points one std to either side have the very mean and variance of the Gaussian between them.
    both = torch.cat([whole(ones), whole(-ones)]).double()
    assert both.dtype == torch.float64
    torch.testing.assert_close(both.mean((0, 2, 3)), torch.zeros(2).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(both.var((0, 2, 3), correction=0), torch.ones(2).double(), atol=1e-5, rtol=0)


def test_draws(whole: Any, trained: Any) -> None:
    noise = torch.randn(40, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    raw = {"normalize": False}
    mean, std = (
        torch.from_numpy(np.concatenate(np.load(trained.run / "latents" / f"{name}.npy").swapaxes(0, 1)))
        for name in ("mean", "std")
    )
    torch.testing.assert_close(whole(noise, **raw), mean + std * noise)
    assert torch.equal(whole(None, **raw), mean)
    assert torch.equal(whole(noise, draw="mean", **raw), mean)
    once = whole(noise, draw="once", **raw)
    assert torch.equal(once, whole(None, draw="once", **raw))  # whatever the step's noise
    drawn = ((once - mean) / std).double()
    assert abs(float(drawn.mean())) < 4 / 5120**0.5
    assert abs(float(drawn.std()) - 1) < 4 / (2 * 5120) ** 0.5
    assert len(drawn.flatten().unique()) > 5000  # each picture, copy and place its own
    assert whole(noise).dtype == once.dtype == torch.float32


def test_float16_without_mirrored_copies(trained: Any, processes: Any, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    overrides = ("--set", "data.flip=false", "--set", "latents.dtype='float16'", "--set", "vae.steps=1")
    code, output = processes.run(tmp_path, ("train-vae", "tiny.toml", *overrides), ("encode", "tiny.toml", *overrides))
    assert code == 0, output
    folder = tmp_path / "runs" / "tiny" / "latents"
    mean = np.load(folder / "mean.npy")
    assert (mean.dtype, mean.shape) == (np.float16, (20, 1, 2, 8, 8))
    latents = LatentSet(folder, Latents(dtype="float16"), seed=0)
    indices = np.arange(4)
    plain, mirrored = (latents.batch(indices, np.full(4, flip), None) for flip in (False, True))
    assert torch.equal(plain, mirrored)
    assert plain.dtype == torch.float32
    lines = [line.split(":")[0] for line in output.splitlines() if "out of date" in line]
    assert lines == ["train-vae", "encode latents"]  # the text does not depend on the pictures' encoding


def test_text(trained: Any) -> None:
    texts = TextSet(trained.run / "text")
    assert texts.captions[0] == ""
    assert sorted(texts.captions[1:]) == sorted(["a red cat", "a blue cat", "a cat on a mat", "two cats"])
    written = [(trained.folder / "pictures" / f"{i:02d}.txt").read_text() for i in range(20)]
    assert [texts.captions[i] for i in texts.index] == written
    ids, mask = texts.batch(texts.index, torch.device("cpu"))
    assert ids.shape == mask.shape == (20, 16)
    assert (ids[mask == 0] == 0).all()
    assert [int(n) for n in mask.sum(1)] == [int(mask[written.index(text)].sum()) for text in written]


def test_share_of_dropped_captions(trained: Any) -> None:
    texts = TextSet(trained.run / "text")
    rng = np.random.default_rng(0)
    asked = []

    def uniform(purpose: str, step: int) -> np.ndarray:
        asked.append((purpose, step))
        return rng.random(20)

    engine: Any = SimpleNamespace(uniform=uniform, device=torch.device("cpu"))
    captions = Captions(texts, engine, dropout=0.25)
    indices = np.arange(20)
    (kept, _), (empty, _) = captions.batch(indices, None), texts.batch(np.zeros(20, np.int64), torch.device("cpu"))
    dropped = []
    for step in range(200):
        ids, _mask = captions.batch(indices, step)
        is_empty = (ids == empty).all(1)
        assert torch.equal(ids[~is_empty], kept[~is_empty])
        dropped.append(is_empty.float().mean())
    assert asked == [("caption-dropout", step) for step in range(200)]
    assert abs(float(torch.stack(dropped).mean()) - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.parametrize(("missing", "number"), [("skip", -1), ("empty", 0)])
def test_picture_without_caption(missing: str, number: int, workshop: Any) -> None:
    (workshop.folder / "pictures" / "05.txt").unlink()
    pipeline = workshop.pipeline(f"caption.missing='{missing}'")
    pipeline.run(("caption",))
    make_text(pipeline)
    texts = TextSet(workshop.run / "text")
    assert texts.index[5] == number
    assert (np.delete(texts.index, 5) > 0).all()


def test_of_several_captions_each_is_drawn_as_often(workshop: Any) -> None:
    (workshop.folder / "pictures" / "05.txt").unlink()
    rows = [{"file_name": "05.png", "text": ["one", "two  ", "a  third"]}]
    (workshop.folder / "pictures" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pipeline = workshop.pipeline()
    pipeline.run(("caption",))
    make_text(pipeline)
    texts = TextSet(workshop.run / "text")
    assert [texts.captions[number] for number in texts.numbers[5]] == ["one", "two", "a third"]
    assert texts.captions[texts.index[5]] == "one"
    assert (np.delete(texts.numbers, 5, axis=0)[:, 1:] == -1).all()
    rng = np.random.default_rng(0)
    drawn = texts.draw(np.full(3000, 5), rng.random(3000))
    counts = np.array([(drawn == number).sum() for number in texts.numbers[5]])
    assert counts.sum() == 3000
    assert ((counts - 1000) ** 2 / 1000).sum() < 13.8  # chi-squared of 2 degrees of freedom, 0.1%
    assert (texts.draw(np.arange(20)[np.arange(20) != 5], rng.random(19)) == np.delete(texts.index, 5)).all()
    engine: Any = SimpleNamespace(uniform=lambda purpose, step: np.full(20, 0.99), device=torch.device("cpu"))
    captions = Captions(texts, engine, dropout=0.5)
    for step, wanted in ((None, "one"), (3, "a third")):
        number = texts.captions.index(wanted)
        (of_picture,), (alone,) = (
            captions.batch(np.array([5]), None if step is None else step)[:1],
            texts.batch(np.array([number]), torch.device("cpu"))[:1],
        )
        assert torch.equal(of_picture[0], alone[0])


def test_an_empty_caption_is_trained_as_no_words(workshop: Any) -> None:
    (workshop.folder / "pictures" / "05.txt").write_text("")
    pipeline = workshop.pipeline()
    pipeline.run(("caption",))
    make_text(pipeline)
    texts = TextSet(workshop.run / "text")
    assert texts.captions[texts.index[5]] == ""
    assert (np.delete(texts.index, 5) > 0).all()


def test_picture_without_caption_is_an_error(workshop: Any) -> None:
    (workshop.folder / "pictures" / "05.txt").unlink()
    pipeline = workshop.pipeline()
    pipeline.run(("caption",))
    with pytest.raises(LdmkitError, match=r"1 of 20 pictures have no caption: 05\.png; .*caption\.missing"):
        make_text(pipeline)


def make_text(pipeline: Any) -> dict[str, Any]:
    """Makes the text part alone, which needs no autoencoder, and returns what its record would keep."""
    from ldmkit.caches.encode import encode_text
    from ldmkit.run.workspace import Workspace

    parts = pipeline.parts()
    parts["text"].begin()
    return encode_text(
        Workspace(pipeline.recipe, pipeline.registry, pipeline.index, pipeline.run_dir, parts, pipeline.reporter)
    )

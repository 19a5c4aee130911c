"""Negative prompts, pictures to start from, ways between seeds and prompts, sizes and previews, by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageOps

from ldmkit.cli import cli
from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.generate import Source, Step, slerp
from ldmkit.runtime.pictures import grid
from ldmkit.runtime.settings import to_pixels
from ldmkit.runtime.verify import split_golden

MakeBundle = Callable[..., Path]

BETAS = {"num_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "zero_terminal_snr": False}


def noise(seed: int, shape: tuple[int, ...] = (2, 2, 2)) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)


def as_picture(latents: np.ndarray) -> np.ndarray:
    """What the hand-made decoder shows of latents (2, H, W)."""
    pixels = np.clip(latents[[0, 1, 0]], -1, 1)
    return np.rint((pixels + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)


def colour(image: Any) -> int:
    values = np.unique(np.asarray(image))
    assert len(values) == 1
    return int(values[0])


@pytest.mark.parametrize("scale", [0.0, 2.0, 3.5])
def test_guidance_moves_away_from_the_negative_prompt(make_bundle: MakeBundle, scale: float) -> None:
    bundle = Bundle.load(make_bundle())
    # x0 of a prompt is 0.1 + a hundredth of each id: red 0.02, cat 0.03, mat 0.05.
    picture = bundle.generate("red cat", negative_prompt="mat", guidance_scale=scale)[0]
    assert colour(picture) == np.rint((0.1 + scale * 0.05 + (1 - scale) * 0.05 + 1) * 127.5)
    # Without a prompt the empty caption is what is guided, not the unconditional network (0).
    picture = bundle.generate(None, negative_prompt="mat", guidance_scale=scale)[0]
    assert colour(picture) == np.rint((0.1 + (1 - scale) * 0.05 + 1) * 127.5)
    # The prompt and its own opposite cancel out, in a batch where another does not.
    pictures = bundle.generate(["mat", "cat"], negative_prompt="mat", guidance_scale=scale)
    assert [colour(each) for each in pictures] == [
        np.rint((x + 1) * 127.5) for x in (0.15, 0.1 + scale * 0.03 + (1 - scale) * 0.05)
    ]


def test_a_negative_prompt_without_guidance_is_a_mistake(make_bundle: MakeBundle) -> None:
    with pytest.raises(LdmkitError, match="negative_prompt has no effect at guidance_scale 1"):
        Bundle.load(make_bundle()).generate("cat", negative_prompt="mat")
    with pytest.raises(LdmkitError, match=r"no unet_t2i\.onnx"):
        Bundle.load(make_bundle("other", t2i=False)).generate(negative_prompt="mat", guidance_scale=2)


def test_each_call_is_reported_with_its_x0(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle(prediction="flow"))
    seen: list[Step] = []
    bundle.generate(["", "cat", ""], seed=3, steps=2, batch_size=1, on_step=seen.append)
    assert [(step.done, step.total, step.pictures) for step in seen] == [
        (k + 1, 6, (number,)) for k, number in enumerate([0, 0, 2, 2, 1, 1])
    ]
    # A velocity of 0 leaves x0 where the noise is; the text network's is 0.13.
    np.testing.assert_allclose(seen[0].x0, noise(3)[None])
    np.testing.assert_allclose(seen[4].x0, noise(4)[None] - 0.13, rtol=1e-6)


def original(size: tuple[int, int] = (2, 2)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(("name", "strength"), [("flow", 0.3), ("flow", 1.0), ("scaled_linear", 0.5)])
def test_a_picture_to_start_from_is_noised_to_the_strength(make_bundle: MakeBundle, name: str, strength: float) -> None:
    # A network that always puts out 0: where that is the velocity, or the noise, the ODE has a closed form.
    bundle = Bundle.load(
        make_bundle(
            encoder=True,
            schedule={"name": name, **BETAS},
            prediction="flow" if name == "flow" else "eps",
            latent={"channels": 2, "height": 2, "width": 2, "mean": [0, 0], "std": [1, 1]},
        )
    )
    z = np.asarray(original(), dtype=np.float64).transpose(2, 0, 1)[:2] / 127.5 - 1
    if name == "flow":
        expected = (1 - strength) * z + strength * noise(7)  # it stays where it starts
    else:
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        alpha_bar = np.cumprod(1 - betas)[round(1000 * strength) - 1]
        expected = z + np.sqrt((1 - alpha_bar) / alpha_bar) * noise(7)  # x_t / alpha
    drawn = bundle.generate(None, seed=7, steps=10, init_image=original(), strength=strength)[0]
    np.testing.assert_allclose(np.asarray(drawn).astype(int), as_picture(expected).astype(int), atol=1)


def test_strength_1_on_flow_leaves_nothing_of_the_picture(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle(encoder=True, prediction="flow"))
    again = bundle.generate("cat", seed=5, init_image=original(), strength=1.0)
    assert again[0].tobytes() == bundle.generate("cat", seed=5)[0].tobytes()


@pytest.mark.parametrize(("strength", "calls"), [(0.01, 1), (0.25, 5), (0.6, 12), (1.0, 20)])
def test_strength_is_the_share_of_the_steps(make_bundle: MakeBundle, strength: float, calls: int) -> None:
    bundle = Bundle.load(make_bundle(encoder=True))
    seen: list[Step] = []
    bundle.generate(steps=20, init_image=original(), strength=strength, on_step=seen.append)
    assert [(step.done, step.total) for step in seen] == [(k, calls) for k in range(1, calls + 1)]


def test_a_picture_is_scaled_and_cut_as_pillow_does(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle(encoder=True, prediction="flow"))
    wide = original((9, 4))
    fitted = ImageOps.fit(wide, (2, 2), Image.Resampling.LANCZOS)
    settings: dict[str, Any] = {"steps": 1000, "strength": 0.001}  # a thousandth of noise
    drawn = np.asarray(bundle.generate(init_image=wide, **settings)[0]).astype(int)
    np.testing.assert_allclose(drawn[..., :2], np.asarray(fitted).astype(int)[..., :2], atol=1)
    clear = Image.new("RGBA", (5, 3), (200, 0, 0, 0))  # nothing shows but white
    drawn = np.asarray(bundle.generate(init_image=clear, **settings)[0]).astype(int)
    np.testing.assert_allclose(drawn, 255, atol=1)


def test_the_levels_of_a_picture_lie_from_minus_1_to_1() -> None:
    pixels = to_pixels(Image.new("RGB", (3, 5), (0, 51, 255)), 2, 2)
    assert (pixels.shape, pixels.dtype) == ((1, 3, 2, 2), np.float32)
    np.testing.assert_allclose(pixels[0, :, 0, 0], [-1, -0.6, 1], atol=1e-7)


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_strength_out_of_range(make_bundle: MakeBundle, strength: float) -> None:
    with pytest.raises(LdmkitError, match=f"strength is {strength:g}"):
        Bundle.load(make_bundle(encoder=True)).generate(init_image=original(), strength=strength)


def test_a_picture_needs_an_encoder(make_bundle: MakeBundle) -> None:
    with pytest.raises(LdmkitError, match=r"no vae_encoder\.onnx.*ldmkit export onnx"):
        Bundle.load(make_bundle()).generate(init_image=original())


def test_slerp_keeps_length_and_angle() -> None:
    a, b = noise(0, (5000,)), noise(1, (5000,))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    angle = np.arccos(a @ b)
    for fraction in (0.0, 0.25, 0.5, 1.0):
        c = slerp(a, b, fraction)
        assert np.linalg.norm(c) == pytest.approx(1)
        assert np.arccos(np.clip(a @ c, -1, 1)) == pytest.approx(fraction * angle, abs=1e-7)
    np.testing.assert_allclose(slerp(a, a, 0.3), a, rtol=1e-12)  # no circle through one point
    np.testing.assert_allclose(slerp(a, -a, 0.25), 0.5 * a)  # nor a single one through opposite ones
    np.testing.assert_array_equal(Source(3).draw((4,)), noise(3, (4,)))
    np.testing.assert_allclose(Source(3, 9, 1.0).draw((4,)), noise(9, (4,)))


def test_a_way_between_seeds_ends_at_their_pictures(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle(prediction="flow"))
    frames = bundle.interpolate(seeds=(3, 8), frames=4, batch_size=3, sampler="ddpm")
    ends = [bundle.generate(seed=seed, sampler="ddpm")[0] for seed in (3, 8)]
    assert [frames[0].tobytes(), frames[-1].tobytes()] == [end.tobytes() for end in ends]
    assert len({frame.tobytes() for frame in frames}) == 4
    # A velocity of 0: the picture is the noise.
    (_, middle, _) = bundle.interpolate(seeds=(3, 8), frames=3)
    np.testing.assert_array_equal(np.asarray(middle), as_picture(slerp(noise(3), noise(8), 0.5)))


def test_a_way_between_prompts_weighs_their_outputs(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle())
    # x0: 0.13 of "cat", 0.15 + ... of longer ones, whatever their masks; guided by 2 away from 0.1.
    frames = bundle.interpolate(("cat", "red cat on mat"), frames=5, guidance_scale=2.0)
    expected = [0.1 + 2 * ((1 - f) * 0.03 + f * 0.14) for f in np.linspace(0, 1, 5)]
    assert [colour(frame) for frame in frames] == [np.rint((x + 1) * 127.5) for x in expected]


def test_variations_are_a_set_angle_away(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle(prediction="flow"))
    pictures = bundle.vary(seed=4, n=2, amount=0.2)
    expected = [noise(4), slerp(noise(4), noise(5), 0.2), slerp(noise(4), noise(6), 0.2)]
    for picture, latents in zip(pictures, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), as_picture(latents))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: b.interpolate(), "nothing between one prompt and itself"),
        (lambda b: b.interpolate(("cat", None)), "needs two prompts"),
        (lambda b: b.interpolate(seeds=(1, 2), frames=1), "frames is 1; it must be a whole number from 2"),
        (lambda b: b.interpolate(seeds=(1, -2)), "seed is -2"),
        (lambda b: b.vary(n=0), "variations is 0"),
        (lambda b: b.vary(amount=1.5), "amount is 1.5; it must be a finite number from 0 to 1"),
        (lambda b: b.generate(size=(4, 2)), "size is 4x2; bundle .* draws 2x2 only"),
    ],
)
def test_mistakes(make_bundle: MakeBundle, call: Callable[[Bundle], Any], message: str) -> None:
    with pytest.raises(LdmkitError, match=message):
        call(Bundle.load(make_bundle()))


@pytest.mark.parametrize("size", [(2, 2), (4, 8), (8, 4)])
def test_other_sizes(make_bundle: MakeBundle, any_size_unet: str, size: tuple[int, int]) -> None:
    latent = {"channels": 2, "height": 2, "width": 2, "mean": [0, 0], "std": [1, 1], "multiple": 2}
    bundle = Bundle.load(make_bundle(unet=any_size_unet, any_size=True, latent=latent, prediction="flow"))
    (picture,) = bundle.generate(seed=2, size=size)
    assert picture.size == size
    np.testing.assert_array_equal(np.asarray(picture), as_picture(noise(2, (2, size[1], size[0]))))
    for odd in ((3, 2), (4, 0), (-2, 2), (1026, 2)):
        with pytest.raises(LdmkitError, match=f"size is {odd[0]}x{odd[1]}; .* multiples of 2 pixels, 512 at most"):
            bundle.generate(size=odd)


def test_a_bundle_that_is_wide_and_was_trained_in_several_sizes(
    make_bundle: MakeBundle, any_size_unet: str, tmp_path: Path
) -> None:
    latent = {"channels": 2, "height": 2, "width": 6, "mean": [0, 0], "std": [1, 1], "multiple": 2}
    wide = {"unet": any_size_unet, "any_size": True, "prediction": "flow", "latent": latent, "picture_size": [6, 2]}
    folder = make_bundle(**wide, sizes=[[6, 2], [2, 4]])
    bundle = Bundle.load(folder)
    (picture,) = bundle.generate(seed=2)
    np.testing.assert_array_equal(np.asarray(picture), as_picture(noise(2, (2, 2, 6))))
    assert [each.size for each in split_golden(grid([picture, picture], columns=2, gap=0), 6)] == [(6, 2), (6, 2)]
    for size, told in (
        ("2x4", ""),
        ("6x2", ""),
        ("4x4", "warning: --size 4x4 is none that it was trained at: 6x2, 2x4"),
    ):
        command = ["generate", "--bundle", str(folder), "--size", size, "--out", str(tmp_path / size)]
        drawn = CliRunner().invoke(cli, command, catch_exceptions=False)
        assert drawn.exit_code == 0
        assert drawn.stderr.strip().endswith(told)
        assert bool(told) == ("trained" in drawn.stderr)
    for name, wrong in (("a", [2, 6]), ("b", [6, 4]), ("c", 6)):
        with pytest.raises(LdmkitError, match=r"picture_size must be a multiple of latent.width and latent.height"):
            Bundle.load(make_bundle(name, **{**wide, "picture_size": wrong}))


def test_preview_is_the_bundles_linear_map(make_bundle: MakeBundle) -> None:
    rgb = {"weights": [[1, 0], [0, 1], [0.5, 0.5]], "bias": [0, 0.25, -0.5], "r2": 0.9}
    latent = {"channels": 2, "height": 2, "width": 2, "mean": [0, 0], "std": [1, 1]}
    x0 = np.array([[[[0.5, -1.0], [0, 0]], [[0.25, 0], [2.0, 0]]]])
    (picture,) = Bundle.load(make_bundle(latent={**latent, "rgb": rgb}, picture_size=2)).preview(x0)
    levels = np.rint((np.array([[0.5, 0.5, -0.125], [-1, 0.25, -1]]) + 1) * 127.5)
    np.testing.assert_array_equal(np.asarray(picture)[0], levels)
    (large,) = Bundle.load(make_bundle("large", latent={**latent, "rgb": rgb}, picture_size=16)).preview(x0)
    assert large.size == (16, 16)
    assert Bundle.load(make_bundle("without")).preview(x0) == []

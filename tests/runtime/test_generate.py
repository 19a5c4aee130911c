"""Drawing, against pictures worked out by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.generate import PromptCutWarning

MakeBundle = Callable[..., Path]

TIME = "output = Add(nothing, time)"


def levels(values: np.ndarray) -> np.ndarray:
    return np.rint((np.clip(values, -1, 1) + 1) * 127.5).astype(np.uint8)


def colour(image: Any) -> int:
    """The one level of a picture of one colour."""
    values = np.unique(np.asarray(image))
    assert len(values) == 1
    return int(values[0])


def test_noise_of_picture_k_is_that_of_seed_plus_k(make_bundle: MakeBundle) -> None:
    # A velocity of 0 leaves the noise where it is: the picture is the noise itself.
    bundle = Bundle.load(make_bundle(prediction="flow"))
    pictures = bundle.generate(None, n=3, seed=5, batch_size=2)
    for k, picture in enumerate(pictures):
        noise = np.random.Generator(np.random.PCG64(5 + k)).standard_normal((2, 2, 2))
        np.testing.assert_array_equal(np.asarray(picture), levels(noise[[0, 1, 0]]).transpose(1, 2, 0))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_picture_does_not_depend_on_its_batch(make_bundle: MakeBundle, batch_size: int) -> None:
    bundle = Bundle.load(make_bundle(prediction="flow"))
    # ddpm draws fresh noise in each step, which must come from the picture's own source too.
    many = bundle.generate(None, n=5, seed=1, sampler="ddpm", batch_size=batch_size)
    alone = bundle.generate(None, seed=4, sampler="ddpm")
    assert many[3].tobytes() == alone[0].tobytes()
    assert len({picture.tobytes() for picture in many}) == 5


def test_the_network_sees_the_timesteps_of_the_grid(make_bundle: MakeBundle, unet_text: Callable[[str], str]) -> None:
    # x0 = t / 1000, and the last of 4 flow timesteps is 250.
    bundle = Bundle.load(make_bundle(unet=unet_text(TIME)))
    assert colour(bundle.generate()[0]) == round((0.25 + 1) * 127.5)
    assert colour(bundle.generate(steps=10)[0]) == round((0.1 + 1) * 127.5)


@pytest.mark.parametrize(
    ("prompt", "scale", "x0"),
    [
        ("red cat", 1.0, 0.1 + 0.05),  # ids 2 + 3, hundredths
        ("red cat", 3.0, 0.1 + 3 * 0.05),  # the empty caption gives 0.1
        ("red cat", 0.0, 0.1),
        ("red cat on mat", 5.0, 0.1 + 5 * 0.14),
    ],
)
def test_guidance_moves_away_from_the_empty_caption(
    make_bundle: MakeBundle, prompt: str, scale: float, x0: float
) -> None:
    bundle = Bundle.load(make_bundle())
    assert colour(bundle.generate(prompt, guidance_scale=scale)[0]) == np.rint((x0 + 1) * 127.5)


def test_guidance_is_one_doubled_batch(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load(make_bundle())
    sizes: list[tuple[str, int]] = []
    run, bind = bundle.run, bundle.bind

    def spy(name: str, **inputs: np.ndarray) -> np.ndarray:
        sizes.append((name, len(next(iter(inputs.values())))))
        return run(name, **inputs)

    def spy_bound(name: str, **fixed: np.ndarray) -> Callable[..., np.ndarray]:
        call = bind(name, **fixed)

        def counted(*, x_t: np.ndarray, t: np.ndarray) -> np.ndarray:
            sizes.append((name, len(x_t)))
            return call(x_t=x_t, t=t)

        return counted

    monkeypatch.setattr(bundle, "run", spy)
    monkeypatch.setattr(bundle, "bind", spy_bound)
    bundle.generate("cat", n=3, steps=2, guidance_scale=2.0)
    assert sizes == [("text_encoder.onnx", 6), *[("unet_t2i.onnx", 6)] * 2, ("vae_decoder.onnx", 3)]
    sizes.clear()
    bundle.generate("cat", n=3, steps=1, guidance_scale=1.0)
    assert sizes == [("text_encoder.onnx", 3), ("unet_t2i.onnx", 3), ("vae_decoder.onnx", 3)]


def test_prompts_with_and_without_words_keep_their_order(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle())
    pictures = bundle.generate(["cat", " ", "red", ""])
    # x0 is 0 without a prompt (unet.onnx), 0.1 + 0.01 * id with one.
    assert [colour(picture) for picture in pictures] == [np.rint((x + 1) * 127.5) for x in (0.13, 0, 0.12, 0)]


def test_no_prompt_draws_the_empty_caption_where_there_is_no_unconditional_unet(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle(unet=None))
    assert colour(bundle.generate(None, guidance_scale=7.0)[0]) == np.rint(1.1 * 127.5)


def test_steps_are_reported_up_to_their_number(make_bundle: MakeBundle) -> None:
    seen: list[tuple[int, int]] = []
    bundle = Bundle.load(make_bundle(prediction="flow"))
    bundle.generate(n=3, steps=4, batch_size=2, on_step=lambda step: seen.append((step.done, step.total)))
    assert seen == [(k, 8) for k in range(1, 9)]
    seen.clear()
    bundle.generate(steps=3, sampler="heun", on_step=lambda step: seen.append((step.done, step.total)))
    assert seen == [(k, 5) for k in range(1, 6)]  # two calls a step, one in the last


def test_a_prompt_that_is_too_long_names_the_words_cut(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle())
    with pytest.warns(PromptCutWarning, match="cut off: 'red cat'"):
        bundle.generate("red cat on mat red cat")
    bundle.generate("red cat on mat")  # fits; a warning would be an error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": -3}, "steps is -3"),
        ({"steps": True}, "steps is True"),
        ({"n": 0}, "n is 0"),
        ({"n": 1.0}, r"n is 1\.0"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": -0.5}, "guidance_scale is -0.5"),
        ({"sampler": "eulr"}, 'did you mean "euler"'),
        ({"prompts": []}, "there are no prompts"),
        ({"prompts": "\udcff"}, "not valid Unicode"),
        ({"seed": np.float64(3.0)}, "seed is"),
        ({"seed": np.int64(-1)}, "seed is"),
    ],
)
def test_values_out_of_range_end_before_a_graph_is_opened(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    bundle = Bundle.load(make_bundle())
    monkeypatch.setattr(bundle, "_session", lambda name: pytest.fail(f"opened {name}"))
    with pytest.raises(LdmkitError, match=message):
        bundle.generate(**settings)


def test_numpys_integers_are_whole_numbers(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle(prediction="flow"))
    drawn = bundle.generate(n=np.int32(2), seed=np.int64(3), steps=np.uint8(2), batch_size=np.int64(1))
    expected = bundle.generate(n=2, seed=3, steps=2, batch_size=1)
    assert [picture.tobytes() for picture in drawn] == [picture.tobytes() for picture in expected]
    frames = bundle.interpolate(seeds=(np.int64(1), np.int64(2)), frames=np.int64(3))
    assert len(frames) == len(bundle.vary(n=np.int64(2), seed=np.int64(1))) == 3


def test_an_unknown_setting_is_an_error(make_bundle: MakeBundle) -> None:
    with pytest.raises(TypeError, match="step"):
        Bundle.load(make_bundle()).generate(step=3)  # type: ignore[call-arg]


def test_more_steps_than_timesteps_are_refused(make_bundle: MakeBundle) -> None:
    schedule = {
        "name": "linear",
        "num_timesteps": 50,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "zero_terminal_snr": False,
    }
    bundle = Bundle.load(make_bundle(schedule=schedule, encoder=True))
    start = Image.new("RGB", (2, 2))
    for settings in ({}, {"init_image": start, "strength": 0.5}):  # of which half the steps would be walked
        with pytest.raises(LdmkitError, match="steps must lie in 1 to 50"):
            bundle.generate(steps=51, **settings)


def test_a_prompt_needs_a_text_unet(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle(t2i=False))
    with pytest.raises(LdmkitError, match=r"no unet_t2i\.onnx"):
        bundle.generate("cat")
    assert len(bundle.generate("")) == 1


def test_output_that_is_not_finite_is_an_error(make_bundle: MakeBundle, unet_text: Callable[[str], str]) -> None:
    bundle = Bundle.load(make_bundle(unet=unet_text("output = Div(x_t, nothing)")))
    with pytest.raises(LdmkitError, match="not finite"):
        bundle.generate()


def test_sampler_options_of_the_bundle_hold_for_its_own_sampler_only(make_bundle: MakeBundle) -> None:
    defaults = {"sampler": "ddim", "sampler_options": {"eta": 1.0}, "steps": 4, "guidance_scale": 1.0}
    bundle = Bundle.load(make_bundle(prediction="flow", defaults=defaults))
    default = bundle.generate()[0]
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal((2, 2, 2))
    unmoved = levels(noise[[0, 1, 0]]).transpose(1, 2, 0).tobytes()
    assert default.tobytes() != unmoved  # eta brings in fresh noise
    assert bundle.generate(sampler="euler")[0].tobytes() == unmoved

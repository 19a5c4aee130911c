"""Samplers by themselves: on Gaussian data solved in closed form, on numpy and torch, and what they promise."""

from dataclasses import fields
from functools import partial
from itertools import pairwise
from typing import get_type_hints

import ldmkit_samplers
import numpy as np
import pytest
import torch
from ldmkit_samplers import DDIM, DDPM, DPMpp2M, DPMpp2MSDE, Euler, EulerAncestral, Heun, UniPC
from pydantic import TypeAdapter, ValidationError

from ldmkit import LdmkitError, Sampler
from ldmkit.diffusion.process import make_schedule, to_x0
from tests.plugins.sampler_runs import Recorder, agree, in_all, noise_stream, ours, x_T

ALL = [DDPM, DDIM, Euler, EulerAncestral, Heun, DPMpp2M, DPMpp2MSDE, UniPC]
STOCHASTIC = (DDPM, EulerAncestral, DPMpp2MSDE)


SCHEDULES = {
    "linear": make_schedule("linear"),
    "cosine": make_schedule("cosine"),
    "flow": make_schedule("flow"),
    "linear, zero-terminal": make_schedule("linear", zero_terminal_snr=True),
}


def test_2m_sde_without_fresh_noise_is_2m():
    def check(name):
        agree(*(ours(sampler, SCHEDULES[name], "v") for sampler in (DPMpp2MSDE(steps=12, eta=0.0), DPMpp2M(steps=12))))

    in_all(check, name=("linear", "cosine", "flow"))


def test_spaced_timesteps_are_whole_and_no_two_alike():
    schedules = [*SCHEDULES.values(), make_schedule("cosine", zero_terminal_snr=True)]

    def check(schedule, spacing, steps):
        times = np.array(Recorder(DPMpp2M(steps=steps, spacing=spacing), schedule).times)
        assert len(times) == steps
        np.testing.assert_allclose(times, np.round(times), atol=1e-9)
        assert (np.diff(times) < 0).all()
        assert times[0] == schedule.grid(1)[0][0]
        if steps > 1:
            assert times[-1] == schedule.grid(1000)[0][-1]

    in_all(check, schedule=schedules, spacing=("karras", "logsnr"), steps=(1, 2, 7, 40, 333, 1000))


def test_more_spaced_steps_than_timesteps_is_a_clear_error():
    with pytest.raises(LdmkitError, match="'karras' needs steps of at most 1000, not 1001"):
        Recorder(DPMpp2M(steps=1001, spacing="karras"), make_schedule("flow"))


MEAN, STD = 0.7, 0.5


def gaussian_denoiser(schedule, mean=MEAN, std=STD):
    """E[x0 | x_t] for x0 ~ N(mean, std^2)."""

    def denoise(x_t, time):
        a, s = float(schedule.alpha(time)), float(schedule.sigma(time))
        return mean + a * std**2 / (a**2 * std**2 + s**2) * (x_t - a * mean)

    return denoise


def drawn_mean_and_std(sampler, schedule, mean=MEAN, std=STD):
    """Exact, without drawing: on Gaussian data a sampler is linear in its noises, so feed it each one alone.

    Row 0 gets no noise, row 1 a unit x_T, row k a unit in the k-th draw.
    """
    count = 1

    def randn_like(x):
        nonlocal count
        count += 1
        return np.eye(len(x))[:, count]

    rows = np.zeros(sampler.steps + 2)
    rows[1] = 1
    x0 = sampler.sample(gaussian_denoiser(schedule, mean, std), rows, schedule, randn_like)
    return x0[0], np.sqrt(((x0[1:] - x0[0]) ** 2).sum())


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (DDPM, {}),
        (DDPM, {"variance": "posterior"}),
        (DDIM, {}),
        (DDIM, {"eta": 1.0}),
        (Euler, {}),
        (Heun, {}),
        (DPMpp2M, {}),
        (DPMpp2M, {"spacing": "karras"}),
        (DPMpp2M, {"spacing": "logsnr"}),
        (DPMpp2MSDE, {}),
        (UniPC, {}),
    ],
)
def test_samplers_converge_on_gaussian_data(sampler, options):
    def check(name):
        errors = []
        for steps in (16, 64, 256):
            mean, std = drawn_mean_and_std(sampler(steps=steps, **options), SCHEDULES[name])
            # x_T ~ N(0, 1) where N(alpha_T * MEAN, ...) would be exact: up to 0.003 in the mean on `linear`.
            assert mean == pytest.approx(MEAN, abs=0.005)
            errors.append(abs(std - STD))
        # A second-order sampler is as exact as a grid of whole timesteps allows from some 256 steps on.
        assert all(after < 0.7 * before or after < 5e-5 for before, after in pairwise(errors)), errors
        assert errors[-1] < 0.015, errors

    in_all(check, name=SCHEDULES)


def test_ddpm_is_exact_at_any_number_of_steps_for_data_of_unit_variance():
    """Ho et al. 2020, sec. 3.2: beta_t is the right variance for x0 ~ N(0, I).

    Then every x_t has its true distribution however large the step, and the last step, noiseless, gives E[x0 | x_t].
    """

    def check(name, steps):
        _, alpha, sigma = SCHEDULES[name].grid(steps)
        drawn = drawn_mean_and_std(DDPM(steps=steps), SCHEDULES[name], 0.0, 1.0)
        np.testing.assert_allclose(drawn, (0, alpha[-2] / np.hypot(alpha[-2], sigma[-2])), atol=1e-12)

    in_all(check, name=SCHEDULES, steps=(2, 5, 40))


def ode_errors(sampler, schedule):
    """Greatest error at 50, 100 and 200 steps.

    The probability-flow ODE carries x_T to MEAN + STD * (x_T - alpha_T * MEAN) / std(x_T).
    """
    noise = np.linspace(-3, 3, 7)
    errors = []
    for steps in (50, 100, 200):
        _, alpha, sigma = schedule.grid(steps)
        exact = MEAN + STD * (noise - alpha[0] * MEAN) / np.sqrt((alpha[0] * STD) ** 2 + sigma[0] ** 2)
        x0 = sampler(steps=steps).sample(gaussian_denoiser(schedule), noise, schedule, None)
        errors.append(np.abs(x0 - exact).max())
    return np.array(errors)


def test_first_and_second_order_samplers_solve_the_ode():
    def check(name):
        first = ode_errors(Euler, SCHEDULES[name])
        np.testing.assert_allclose(first, ode_errors(DDIM, SCHEDULES[name]), rtol=1e-6)
        np.testing.assert_allclose(first[:-1] / first[1:], 2, rtol=0.03)
        for second in (Heun, DPMpp2M, UniPC):
            assert (ode_errors(second, SCHEDULES[name]) < 0.2 * first).all(), second

    in_all(check, name=SCHEDULES)


def test_heun_is_of_second_order_on_flow():
    errors = ode_errors(Heun, SCHEDULES["flow"])
    np.testing.assert_allclose(errors[:-1] / errors[1:], 4, rtol=0.03)


@pytest.mark.parametrize("sampler", [*ALL, partial(UniPC, spacing="karras")])
def test_numpy_and_torch_agree_and_float32_stays(sampler):
    """Warnings are errors, so this also says that no step divides by zero."""
    start = np.random.default_rng(0).standard_normal((2, 4, 3, 3)).astype(np.float32)

    def draws(convert):
        rng = np.random.default_rng(1)
        return lambda x: convert(rng.standard_normal(x.shape).astype(np.float32))

    def check(name, steps):
        schedule = SCHEDULES[name]

        def denoise(x_t, time):
            output = (x_t - time / 1000) / (1 + x_t * x_t)
            return to_x0("v", output, x_t, float(schedule.alpha(time)), float(schedule.sigma(time)))

        on_numpy = sampler(steps=steps).sample(denoise, start, schedule, draws(np.asarray))
        on_torch = sampler(steps=steps).sample(denoise, torch.from_numpy(start), schedule, draws(torch.from_numpy))
        assert on_numpy.dtype == np.float32
        assert on_torch.dtype == torch.float32
        assert np.isfinite(on_numpy).all()
        np.testing.assert_allclose(on_numpy, on_torch.numpy(), rtol=1e-4, atol=1e-4)

    in_all(check, name=SCHEDULES, steps=(1, 2, 3, 20))


def test_one_step_is_the_denoised_noise():
    noise = np.linspace(-2, 2, 5)

    def check(sampler, name):
        denoise = gaussian_denoiser(SCHEDULES[name])
        x0 = sampler(steps=1).sample(denoise, noise, SCHEDULES[name], None)
        np.testing.assert_allclose(x0, denoise(noise, SCHEDULES[name].grid(1)[0][0]), atol=1e-12)

    in_all(check, sampler=ALL, name=SCHEDULES)


def test_same_noise_same_result_and_x_T_is_left_alone():  # noqa: N802 - the field's name
    schedule = SCHEDULES["cosine"]

    def check(sampler):
        results = [ours(sampler(steps=10), schedule, "v", seed) for seed in (0, 0, 1)]
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2]) == (sampler in set(ALL) - set(STOCHASTIC))
        start = x_T()
        sampler(steps=3).sample(gaussian_denoiser(schedule), start, schedule, noise_stream(0))
        assert torch.equal(start, x_T())

    in_all(check, sampler=[*ALL, partial(DDIM, eta=1.0)])


def test_number_of_network_calls():
    schedule = SCHEDULES["flow"]
    denoise = gaussian_denoiser(schedule)

    def check(sampler):
        seen = []
        sampler(steps=10).sample(lambda x, t: seen.append(t) or denoise(x, t), np.zeros(2), schedule, np.zeros_like)
        assert len(seen) == (19 if sampler is Heun else 10)
        assert {type(t) for t in seen} == {float}
        assert sorted(seen, reverse=True) == seen

    in_all(check, sampler=ALL)


def test_registered_names_and_options():
    registered = ldmkit_samplers.register_samplers()
    assert list(registered) == [
        "ddpm",
        "ddim",
        "euler",
        "euler_a",
        "heun",
        "dpmpp_2m",
        "dpmpp_2m_sde",
        "unipc",
    ]
    for factory in registered.values():
        assert isinstance(factory(), Sampler)
        hints = get_type_hints(factory, include_extras=True)
        for option in fields(factory):
            assert TypeAdapter(hints[option.name]).validate_python(option.default) == option.default
            assert TypeAdapter(hints[option.name]).json_schema()["description"]
        for steps in (0, -1):
            with pytest.raises(ValidationError, match="greater than 0"):
                TypeAdapter(hints["steps"]).validate_python(steps)


def test_more_steps_than_timesteps_is_a_clear_error():
    with pytest.raises(LdmkitError, match="steps must lie in 1 to 1000"):
        DDIM(steps=1001).sample(lambda x, t: x, np.zeros(2), SCHEDULES["linear"], None)

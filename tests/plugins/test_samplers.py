"""Samplers against diffusers' schedulers on the same model outputs, and on Gaussian data solved in closed form."""

from dataclasses import fields
from functools import partial
from itertools import pairwise
from typing import get_type_hints

import ldmkit_samplers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from ldmkit_samplers import DDIM, DDPM, DPMpp2M, DPMpp2MSDE, Euler, EulerAncestral, Heun, UniPC
from pydantic import TypeAdapter, ValidationError

from ldmkit import LdmkitError, Sampler
from ldmkit.diffusion import make_schedule, noised_to, to_noise, to_x0

ALL = [DDPM, DDIM, Euler, EulerAncestral, Heun, DPMpp2M, DPMpp2MSDE, UniPC]
WITH_OPTIONS = [partial(DDIM, eta=0.7), partial(UniPC, spacing="karras"), partial(DPMpp2MSDE, spacing="logsnr")]
STOCHASTIC = (DDPM, EulerAncestral, DPMpp2MSDE)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
DIFFUSERS_NAME = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
DIFFUSERS_PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@pytest.fixture
def diffusers_in_double(monkeypatch):
    """diffusers computes in float32 whatever it is given; under this fixture its own code runs in float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(np, "float32", np.float64)


# diffusers hands torch tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def network(x_t, t):
    """Any fixed nonlinear function of x_t and t."""
    return 0.8 * x_t + 0.3 * torch.sin(2 * x_t + float(t) / 150)


def noise_stream(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def x_T():  # noqa: N802 - the field's name
    return noise_stream(1)(torch.empty(2, 4, 3, 3, dtype=torch.float64))


def ours(sampler, schedule, prediction, seed=0):
    def denoise(x_t, time):
        return to_x0(prediction, network(x_t, time), x_t, float(schedule.alpha(time)), float(schedule.sigma(time)))

    return sampler.sample(denoise, x_T(), schedule, noise_stream(seed))


def agree(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


class DownToZero:
    """Timesteps T - 1 .. 0: diffusers' DDPM leaves the noise out at t = 0 alone, not in the last step of any grid."""

    def __init__(self, schedule):
        self.schedule, self.num_timesteps = schedule, schedule.num_timesteps
        self.alpha, self.sigma = schedule.alpha, schedule.sigma

    def grid(self, steps):
        t = np.linspace(self.num_timesteps - 1, 0, steps).round()
        return t, np.append(self.schedule.alpha(t), 1.0), np.append(self.schedule.sigma(t), 0.0)


@pytest.mark.parametrize("steps", [2, 7, 50, 1000])
@pytest.mark.parametrize(("variance", "theirs"), [("beta", "fixed_large"), ("posterior", "fixed_small")])
@pytest.mark.parametrize(("prediction", "zero_snr"), [("eps", False), ("v", False), ("v", True)])
def test_ddpm_is_diffusers(steps, variance, theirs, prediction, zero_snr, diffusers_in_double):
    scheduler = DDPMScheduler(
        **BETAS,
        prediction_type=DIFFUSERS_PREDICTION[prediction],
        variance_type=theirs,
        rescale_betas_zero_snr=zero_snr,
        clip_sample=False,
    )
    schedule = DownToZero(make_schedule("linear", **BETAS, zero_terminal_snr=zero_snr))
    scheduler.set_timesteps(timesteps=schedule.grid(steps)[0].astype(int).tolist())
    x, generator = x_T(), torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, generator=generator).prev_sample
    agree(ours(DDPM(steps=steps, variance=variance), schedule, prediction), x)


def test_ddpm_with_the_seeds_settings_is_algorithm_2():
    """Ho et al. 2020, alg. 2, as printed, with sigma_t^2 = beta_t, over all 1000 timesteps."""
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - betas)
    x, randn = x_T(), noise_stream(0)
    for t in reversed(range(1000)):
        z = randn(x) if t > 0 else 0
        eps = network(x, t)
        x = (x - betas[t] / (1 - alpha_bar[t]) ** 0.5 * eps) / (1 - betas[t]) ** 0.5 + betas[t] ** 0.5 * z
    agree(ours(DDPM(), make_schedule("linear"), "eps"), x)


@pytest.mark.parametrize("steps", [1, 10, 50])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("name", "zero_snr"), [("linear", False), ("cosine", False), ("scaled_linear", True)])
def test_ddim_is_diffusers(steps, eta, name, zero_snr, diffusers_in_double):
    scheduler = DDIMScheduler(
        **BETAS,
        beta_schedule=DIFFUSERS_NAME[name],
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=zero_snr,
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    x, generator = x_T(), torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, eta=eta, generator=generator).prev_sample
    schedule = make_schedule(name, **BETAS, zero_terminal_snr=zero_snr)
    agree(ours(DDIM(steps=steps, eta=eta), schedule, "v"), x)


@pytest.mark.parametrize("steps", [1, 2, 10, 30])
@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(("sampler", "scheduler"), [(Euler, EulerDiscreteScheduler), (Heun, HeunDiscreteScheduler)])
def test_euler_and_heun_are_diffusers(sampler, scheduler, steps, name, prediction, diffusers_in_double):
    schedule = make_schedule(name, **BETAS)
    scheduler = scheduler(
        **BETAS,
        beta_schedule=name,
        prediction_type=DIFFUSERS_PREDICTION[prediction],
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    x = x_T() / float(schedule.grid(steps)[1][0])  # diffusers' variable here is x / alpha
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    agree(ours(sampler(steps=steps), schedule, prediction), x)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 30])
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_dpmpp_2m_is_diffusers(steps, name, prediction, diffusers_in_double):
    scheduler = DPMSolverMultistepScheduler(
        **BETAS,
        beta_schedule=DIFFUSERS_NAME[name],
        prediction_type=DIFFUSERS_PREDICTION[prediction],
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    x = x_T()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    agree(ours(DPMpp2M(steps=steps), make_schedule(name, **BETAS), prediction), x)


@pytest.mark.parametrize("steps", [1, 2, 10, 30])
def test_euler_on_flow_is_diffusers(steps, diffusers_in_double):
    schedule = make_schedule("flow")
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=schedule.grid(steps)[2][:-1].tolist())
    x = x_T()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    agree(ours(Euler(steps=steps), schedule, "flow"), x)
    agree(ours(DDIM(steps=steps), schedule, "flow"), x)


@pytest.mark.parametrize("steps", [1, 2, 10, 30])
@pytest.mark.parametrize(("name", "zero_snr"), [("flow", False), ("linear", True), ("cosine", False)])
def test_heun_from_pure_noise_is_diffusers_flow_heun(name, zero_snr, steps, diffusers_in_double):
    """On a VP schedule diffusers' x, over its sigma, is x / (alpha + sigma) over sigma / (alpha + sigma)."""
    schedule = make_schedule(name, zero_terminal_snr=zero_snr)
    t, alpha, sigma = schedule.grid(steps)
    scale = alpha + sigma
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(steps)
    index = np.concatenate([[0], np.repeat(np.arange(1, steps), 2)])
    scheduler.sigmas = torch.from_numpy(np.append((sigma / scale)[index], 0.0))
    x = x_T() / scale[0]
    for i, scheduler_t in zip(index, scheduler.timesteps, strict=True):
        x_t = x * scale[i]
        output = network(x_t, t[i])
        x0, noise = (to("v", output, x_t, float(alpha[i]), float(sigma[i])) for to in (to_x0, to_noise))
        x = scheduler.step(noise - x0, scheduler_t, x).prev_sample
    agree(ours(Heun(steps=steps), schedule, "v"), x)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 30])
def test_dpmpp_2m_on_flow_is_diffusers(steps, diffusers_in_double):
    schedule = make_schedule("flow")
    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    scheduler.set_timesteps(steps)
    t, _, sigma = schedule.grid(steps)
    scheduler.sigmas, scheduler.timesteps = torch.from_numpy(sigma), torch.from_numpy(t)
    x = x_T()
    for step in scheduler.timesteps:
        x = scheduler.step(network(x, step), step, x).prev_sample
    agree(ours(DPMpp2M(steps=steps), schedule, "flow"), x)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 30])
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_dpmpp_2m_sde_is_diffusers(steps, name, prediction, diffusers_in_double):
    scheduler = DPMSolverMultistepScheduler(
        **BETAS,
        beta_schedule=DIFFUSERS_NAME[name],
        prediction_type=DIFFUSERS_PREDICTION[prediction],
        algorithm_type="sde-dpmsolver++",
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    x, generator = x_T(), torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, generator=generator).prev_sample
    agree(ours(DPMpp2MSDE(steps=steps), make_schedule(name, **BETAS), prediction), x)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 30])
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_unipc_is_diffusers(steps, name, prediction, diffusers_in_double):
    scheduler = UniPCMultistepScheduler(
        **BETAS,
        beta_schedule=DIFFUSERS_NAME[name],
        prediction_type=DIFFUSERS_PREDICTION[prediction],
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    x = x_T()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    agree(ours(UniPC(steps=steps), make_schedule(name, **BETAS), prediction), x)


@pytest.mark.parametrize("steps", [1, 2, 10, 30])
@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_euler_ancestral_is_diffusers(steps, name, diffusers_in_double):
    schedule = make_schedule(name, **BETAS)
    scheduler = EulerAncestralDiscreteScheduler(
        **BETAS, beta_schedule=name, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = x_T() / float(schedule.grid(steps)[1][0])  # diffusers' variable here is x / alpha
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    agree(ours(EulerAncestral(steps=steps), schedule, "v"), x)


@pytest.mark.parametrize("steps", [2, 3, 10, 30])
@pytest.mark.parametrize(
    ("sampler", "scheduler", "options", "strength"),
    [
        (DPMpp2MSDE, DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, 1.0),
        (DPMpp2MSDE, DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, 0.9),
        (UniPC, UniPCMultistepScheduler, {}, 1.0),
        (UniPC, UniPCMultistepScheduler, {}, 0.9),
    ],
)
def test_new_samplers_on_flow_are_diffusers(sampler, scheduler, options, strength, steps, diffusers_in_double):
    schedule = noised_to(make_schedule("flow"), strength)
    scheduler = scheduler(use_flow_sigmas=True, prediction_type="flow_prediction", **options)
    scheduler.set_timesteps(steps)
    t, _, sigma = schedule.grid(steps)
    scheduler.sigmas, scheduler.timesteps = torch.from_numpy(sigma), torch.from_numpy(t)
    x, generator = x_T(), torch.Generator().manual_seed(0)
    extra = {} if sampler is UniPC else {"generator": generator}
    for step in scheduler.timesteps:
        x = scheduler.step(network(x, step), step, x, **extra).prev_sample
    agree(ours(sampler(steps=steps), schedule, "flow"), x)


@pytest.mark.parametrize("name", ["linear", "cosine", "flow"])
def test_2m_sde_without_fresh_noise_is_2m(name):
    schedule = make_schedule(name)
    agree(ours(DPMpp2MSDE(steps=12, eta=0.0), schedule, "v"), ours(DPMpp2M(steps=12), schedule, "v"))


class Recorder:
    """Timesteps at which a sampler calls."""

    def __init__(self, sampler, schedule):
        self.times = []
        sampler.sample(lambda x, t: self.times.append(t) or x, np.zeros(2), schedule, np.zeros_like)


@pytest.mark.parametrize(("spacing", "option"), [("karras", "use_karras_sigmas"), ("logsnr", "use_exponential_sigmas")])
@pytest.mark.parametrize("steps", [2, 5, 12])
@pytest.mark.parametrize("sampler", [DPMpp2M, DPMpp2MSDE, UniPC])
def test_spacing_is_diffusers_to_a_timestep(sampler, steps, spacing, option):
    scheduler = DPMSolverMultistepScheduler(**BETAS, beta_schedule="scaled_linear", **{option: True})
    scheduler.set_timesteps(steps)
    times = Recorder(sampler(steps=steps, spacing=spacing), make_schedule("scaled_linear", **BETAS)).times
    np.testing.assert_allclose(times, scheduler.timesteps.numpy(), atol=1)
    assert times[0] == 999


@pytest.mark.parametrize("spacing", ["karras", "logsnr"])
@pytest.mark.parametrize("steps", [1, 2, 7, 40, 333, 1000])
@pytest.mark.parametrize(
    ("name", "zero_snr"), [("linear", False), ("cosine", False), ("cosine", True), ("flow", False)]
)
def test_spaced_timesteps_are_whole_and_no_two_alike(name, zero_snr, steps, spacing):
    schedule = make_schedule(name, zero_terminal_snr=zero_snr)
    times = np.array(Recorder(DPMpp2M(steps=steps, spacing=spacing), schedule).times)
    assert len(times) == steps
    np.testing.assert_allclose(times, np.round(times), atol=1e-9)
    assert (np.diff(times) < 0).all()
    assert times[0] == schedule.grid(1)[0][0]
    if steps > 1:
        assert times[-1] == schedule.grid(1000)[0][-1]


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


SCHEDULES = {
    "linear": make_schedule("linear"),
    "cosine": make_schedule("cosine"),
    "flow": make_schedule("flow"),
    "linear, zero-terminal": make_schedule("linear", zero_terminal_snr=True),
}


@pytest.mark.parametrize("name", SCHEDULES)
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
def test_samplers_converge_on_gaussian_data(sampler, options, name):
    schedule = SCHEDULES[name]
    errors = []
    for steps in (16, 64, 256, 1000):
        mean, std = drawn_mean_and_std(sampler(steps=steps, **options), schedule)
        # x_T ~ N(0, 1) where N(alpha_T * MEAN, ...) would be exact: up to 0.003 in the mean on `linear`.
        assert mean == pytest.approx(MEAN, abs=0.005)
        errors.append(abs(std - STD))
    # A second-order sampler is as exact as a grid of whole timesteps allows from some 256 steps on.
    assert all(after < 0.7 * before or after < 5e-5 for before, after in pairwise(errors))
    assert errors[-1] < 0.005


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [2, 5, 40])
def test_ddpm_is_exact_at_any_number_of_steps_for_data_of_unit_variance(steps, name):
    """Ho et al. 2020, sec. 3.2: beta_t is the right variance for x0 ~ N(0, I).

    Then every x_t has its true distribution however large the step, and the last step, noiseless, gives E[x0 | x_t].
    """
    schedule = SCHEDULES[name]
    _, alpha, sigma = schedule.grid(steps)
    drawn = drawn_mean_and_std(DDPM(steps=steps), schedule, 0.0, 1.0)
    np.testing.assert_allclose(drawn, (0, alpha[-2] / np.hypot(alpha[-2], sigma[-2])), atol=1e-12)


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


@pytest.mark.parametrize("name", SCHEDULES)
def test_first_and_second_order_samplers_solve_the_ode(name):
    first = ode_errors(Euler, SCHEDULES[name])
    np.testing.assert_allclose(first, ode_errors(DDIM, SCHEDULES[name]), rtol=1e-6)
    np.testing.assert_allclose(first[:-1] / first[1:], 2, rtol=0.03)
    for second in (Heun, DPMpp2M, UniPC):
        assert (ode_errors(second, SCHEDULES[name]) < 0.2 * first).all()


def test_heun_is_of_second_order_on_flow():
    errors = ode_errors(Heun, SCHEDULES["flow"])
    np.testing.assert_allclose(errors[:-1] / errors[1:], 4, rtol=0.03)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("sampler", [*ALL, lambda steps: UniPC(steps=steps, spacing="karras")])
def test_numpy_and_torch_agree_and_float32_stays(sampler, steps, name):
    """Warnings are errors, so this also says that no step divides by zero."""
    schedule = SCHEDULES[name]
    start = np.random.default_rng(0).standard_normal((2, 4, 3, 3)).astype(np.float32)

    def both(time):
        return float(schedule.alpha(time)), float(schedule.sigma(time))

    def denoise(x_t, time):
        return to_x0("v", (x_t - time / 1000) / (1 + x_t * x_t), x_t, *both(time))

    def draws(convert):
        rng = np.random.default_rng(1)
        return lambda x: convert(rng.standard_normal(x.shape).astype(np.float32))

    on_numpy = sampler(steps=steps).sample(denoise, start, schedule, draws(np.asarray))
    on_torch = sampler(steps=steps).sample(denoise, torch.from_numpy(start), schedule, draws(torch.from_numpy))
    assert on_numpy.dtype == np.float32
    assert on_torch.dtype == torch.float32
    assert np.isfinite(on_numpy).all()
    np.testing.assert_allclose(on_numpy, on_torch.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", ALL)
def test_one_step_is_the_denoised_noise(sampler, name):
    schedule = SCHEDULES[name]
    noise = np.linspace(-2, 2, 5)
    denoise = gaussian_denoiser(schedule)
    x0 = sampler(steps=1).sample(denoise, noise, schedule, None)
    np.testing.assert_allclose(x0, denoise(noise, schedule.grid(1)[0][0]), atol=1e-12)


@pytest.mark.parametrize("sampler", [*ALL, lambda steps: DDIM(steps=steps, eta=1.0)])
def test_same_noise_same_result_and_x_T_is_left_alone(sampler):  # noqa: N802 - the field's name
    schedule = SCHEDULES["cosine"]
    results = [ours(sampler(steps=10), schedule, "v", seed) for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2]) == (sampler in set(ALL) - set(STOCHASTIC))
    start = x_T()
    sampler(steps=3).sample(gaussian_denoiser(schedule), start, schedule, noise_stream(0))
    assert torch.equal(start, x_T())


@pytest.mark.parametrize(("sampler", "calls"), [(sampler, 19 if sampler is Heun else 10) for sampler in ALL])
def test_number_of_network_calls(sampler, calls):
    schedule = SCHEDULES["flow"]
    seen = []
    denoise = gaussian_denoiser(schedule)
    sampler(steps=10).sample(lambda x, t: seen.append(t) or denoise(x, t), np.zeros(2), schedule, np.zeros_like)
    assert len(seen) == calls
    assert {type(t) for t in seen} == {float}
    assert sorted(seen, reverse=True) == seen


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

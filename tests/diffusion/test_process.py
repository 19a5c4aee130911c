"""Schedules and predictions against diffusers and the papers' formulas."""

import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from ldmkit.diffusion.process import Prediction, add_noise, make_schedule, target, to_x0
from ldmkit.errors import LdmkitError

PREDICTIONS = get_args(Prediction)
DIFFUSERS_NAME = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def draws(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("name", DIFFUSERS_NAME)
@pytest.mark.parametrize("num_timesteps", [1000, 50])
def test_vp_schedules_are_diffusers(name, zero_terminal_snr, num_timesteps, diffusers_in_double):
    options = {"beta_start": 0.00085, "beta_end": 0.012, "num_timesteps": num_timesteps}
    schedule = make_schedule(name, zero_terminal_snr=zero_terminal_snr, **options)
    oracle = DDPMScheduler(
        num_train_timesteps=num_timesteps,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=DIFFUSERS_NAME[name],
        rescale_betas_zero_snr=zero_terminal_snr,
    )
    np.testing.assert_allclose(schedule.betas, oracle.betas.numpy(), rtol=1e-9)
    np.testing.assert_allclose(schedule.alphas_cumprod, oracle.alphas_cumprod.numpy(), rtol=1e-9, atol=1e-15)
    assert (schedule.alphas_cumprod[-1] == 0) is np.bool_(zero_terminal_snr)


def test_the_seeds_betas():
    schedule = make_schedule("linear")
    assert schedule.betas[[0, -1]].tolist() == [1e-4, 0.02]
    t = np.array([0, 500, 999])
    np.testing.assert_allclose(schedule.alpha(t) ** 2, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t])
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1)


def test_alpha_and_sigma_take_scalars_and_keep_shapes():
    for schedule in (make_schedule("cosine"), make_schedule("flow")):
        assert schedule.alpha(3).shape == schedule.sigma(3.0).shape == ()
        assert schedule.alpha(np.array([[1.0, 2.0]])).shape == (1, 2)
        assert schedule.alpha(np.float32(3)).dtype == schedule.sigma(np.array([3])).dtype == np.float64
    np.testing.assert_allclose(make_schedule("flow", num_timesteps=200).sigma([0, 50, 200]), [0, 0.25, 1])


@pytest.mark.parametrize("steps", [1, 4, 10, 13, 50, 999, 1000])
def test_vp_grid_is_diffusers_trailing(steps):
    schedule = make_schedule("scaled_linear")
    oracle = DDPMScheduler(timestep_spacing="trailing")
    oracle.set_timesteps(steps)
    t, alpha, sigma = schedule.grid(steps)
    assert t.tolist() == oracle.timesteps[:steps].tolist()
    assert alpha.shape == sigma.shape == (steps + 1,)
    np.testing.assert_array_equal(alpha[:-1], schedule.alpha(t))
    assert (alpha[-1], sigma[-1]) == (1, 0)
    assert (np.diff(sigma / alpha) < 0).all()


def test_flow_grid_runs_from_noise_to_picture():
    t, alpha, sigma = make_schedule("flow").grid(4)
    assert t.tolist() == [1000, 750, 500, 250]
    assert alpha.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert sigma.tolist() == [1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("name", DIFFUSERS_NAME)
def test_add_noise_and_v_are_diffusers(name, diffusers_in_double):
    schedule = make_schedule(name)
    oracle = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule=DIFFUSERS_NAME[name])
    t = np.array([0, 1, 400, 998, 999])
    x0, noise = torch.from_numpy(draws(5, 4, 3, 2)), torch.from_numpy(draws(5, 4, 3, 2, seed=1))
    alpha, sigma = (torch.from_numpy(a(t)).reshape(-1, 1, 1, 1) for a in (schedule.alpha, schedule.sigma))
    steps = torch.from_numpy(t)
    torch.testing.assert_close(add_noise(x0, noise, alpha, sigma), oracle.add_noise(x0, noise, steps))
    torch.testing.assert_close(target("v", x0, noise, alpha, sigma), oracle.get_velocity(x0, noise, steps))


@pytest.mark.parametrize(("prediction", "theirs"), [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")])
def test_x0_is_what_diffusers_reads_from_an_output(prediction, theirs, diffusers_in_double):
    schedule = make_schedule("linear")
    oracle = DDPMScheduler(prediction_type=theirs, clip_sample=False)
    output, x_t = torch.from_numpy(draws(2, 4)), torch.from_numpy(draws(2, 4, seed=1))
    for t in (0, 10, 700, 999):
        ours = to_x0(prediction, output, x_t, float(schedule.alpha(t)), float(schedule.sigma(t)))
        torch.testing.assert_close(ours, oracle.step(output, t, x_t).pred_original_sample)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["linear", "cosine", "flow"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_output_gives_back_x0(prediction, name, library):
    schedule = make_schedule(name)
    t = np.array([1, 300, 900])
    arrays = [draws(3, 4, 2, 2), draws(3, 4, 2, 2, seed=1)]
    arrays += [a(t).reshape(-1, 1, 1, 1) for a in (schedule.alpha, schedule.sigma)]
    x0, noise, alpha, sigma = arrays if library == "numpy" else map(torch.from_numpy, arrays)
    x_t = add_noise(x0, noise, alpha, sigma)
    output = target(prediction, x0, noise, alpha, sigma)
    np.testing.assert_allclose(to_x0(prediction, output, x_t, alpha, sigma), x0, atol=1e-10)


def test_flow_target_is_the_velocity_of_the_path():
    schedule = make_schedule("flow")
    x0, noise, t, dt = draws(5), draws(5, seed=1), 400.0, 1e-3
    before, after = (add_noise(x0, noise, schedule.alpha(s), schedule.sigma(s)) for s in (t - dt, t + dt))
    np.testing.assert_allclose(target("flow", x0, noise, 0.6, 0.4), (after - before) / (2 * dt) * 1000, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_schedule("linear", num_timesteps=0), "num_timesteps = 0 is too few; at least 1"),
        (lambda: make_schedule("cosine", num_timesteps=1, zero_terminal_snr=True), "at least 2"),
        (lambda: make_schedule("linear", beta_start=0.5), "beta_start = 0.5 and beta_end = 0.02 are not possible"),
        (lambda: make_schedule("scaled_linear", beta_end=1.0), "0 < beta_start <= beta_end < 1"),
        (lambda: make_schedule("linear").grid(0), "steps must lie in 1 to 1000"),
        (lambda: make_schedule("linear").grid(1001), "steps must lie in 1 to 1000"),
        (lambda: make_schedule("flow").grid(0), "at least 1"),
    ],
)
def test_mistakes_say_what_is_allowed(call, message):
    with pytest.raises(LdmkitError, match=message):
        call()


@pytest.mark.parametrize("t", [0.5, -1, 1000])
def test_a_timestep_off_a_vp_schedule_is_our_bug(t):
    with pytest.raises(AssertionError):
        make_schedule("linear").alpha(t)


def test_diffusion_and_samplers_need_no_torch():
    code = "import sys, ldmkit.diffusion.process, ldmkit_samplers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

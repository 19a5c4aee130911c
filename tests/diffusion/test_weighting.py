"""Loss weights and drawn timesteps against diffusers, scipy and the papers' formulas."""

from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from scipy import special, stats

from ldmkit.diffusion.process import Prediction, add_noise, make_schedule, target, to_x0
from ldmkit.diffusion.weighting import draw_timesteps, loss_weight

PREDICTIONS = get_args(Prediction)
DIFFUSERS_NAME = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def draws(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_min_snr_is_the_papers(name, diffusers_in_double):
    """Hang et al. 2023, sec. 3.4: min(SNR, gamma) for x0, over SNR for eps, over SNR + 1 for v."""
    schedule = make_schedule(name)
    t = np.arange(1000)
    oracle = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule=DIFFUSERS_NAME[name])
    snr = compute_snr(oracle, torch.from_numpy(t)).numpy()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    clipped = np.minimum(snr, 5)
    np.testing.assert_allclose(loss_weight("min_snr", "x0", alpha, sigma), clipped, rtol=1e-6)
    np.testing.assert_allclose(loss_weight("min_snr", "eps", alpha, sigma), clipped / snr, rtol=1e-6)
    np.testing.assert_allclose(loss_weight("min_snr", "v", alpha, sigma), clipped / (snr + 1), rtol=1e-6)
    np.testing.assert_allclose(
        loss_weight("min_snr", "x0", alpha, sigma, min_snr_gamma=1.0), np.minimum(snr, 1), rtol=1e-6
    )


def test_min_snr_on_flow_is_zero_at_both_ends():
    schedule = make_schedule("flow")
    t = np.array([0, 100, 500, 900, 1000])
    weight = loss_weight("min_snr", "flow", schedule.alpha(t), schedule.sigma(t))
    np.testing.assert_allclose(weight, [0, 5 * 0.01, 0.25, 0.01, 0], atol=1e-12)


@pytest.mark.parametrize("name", ["cosine", "flow"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_is_one_loss_whatever_the_prediction(prediction, name):
    schedule = make_schedule(name)
    t = np.array([20, 300, 800])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, noise = draws(3), draws(3, seed=1)
    x_t = add_noise(x0, noise, alpha, sigma)
    wrong = target(prediction, x0, noise, alpha, sigma) + draws(3, seed=2)
    weighted = loss_weight("min_snr", prediction, alpha, sigma) * draws(3, seed=2) ** 2
    error = to_x0(prediction, wrong, x_t, alpha, sigma) - x0
    np.testing.assert_allclose(weighted, np.minimum((alpha / sigma) ** 2, 5) * error**2, rtol=1e-8)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize(("k", "gamma"), [(1.0, 1.0), (1.0, 0.5), (0.3, 2.0)])
def test_p2_is_the_papers(name, k, gamma, diffusers_in_double):
    """Choi et al. 2022, eq. 8, on L_simple: eps weighted by 1 / (k + SNR)^gamma, here stated for x0 and v as well."""
    schedule = make_schedule(name)
    t = np.arange(1000)
    oracle = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule=DIFFUSERS_NAME[name])
    snr = compute_snr(oracle, torch.from_numpy(t)).numpy()
    papers = 1 / (k + snr) ** gamma
    for prediction, factor in (("eps", 1), ("x0", snr), ("v", snr / (snr + 1))):
        ours = loss_weight("p2", prediction, schedule.alpha(t), schedule.sigma(t), p2_k=k, p2_gamma=gamma)
        np.testing.assert_allclose(ours, papers * factor, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", ["cosine", "flow"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_p2_is_one_loss_whatever_the_prediction(prediction, name, gamma):
    schedule = make_schedule(name)
    t = np.array([20, 300, 800])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, noise, mistake = draws(3), draws(3, seed=1), draws(3, seed=2)
    x_t = add_noise(x0, noise, alpha, sigma)
    wrong = target(prediction, x0, noise, alpha, sigma) + mistake
    weighted = loss_weight("p2", prediction, alpha, sigma, p2_k=0.7, p2_gamma=gamma) * mistake**2
    error = (x_t - alpha * to_x0(prediction, wrong, x_t, alpha, sigma)) / sigma - noise
    np.testing.assert_allclose(weighted, error**2 / (0.7 + (alpha / sigma) ** 2) ** gamma, rtol=1e-8)


def test_velocity_is_the_papers():
    """Li & He 2025, table 1: on a flow schedule the velocity (x_t - x) / t has 1 / t^2 times the error of x."""
    t = np.array([0.0, 0.05, 0.1, 0.15, 0.5, 1.0])
    np.testing.assert_allclose(loss_weight("velocity", "x0", 1 - t, t), 1 / np.maximum(t, 0.15) ** 2)
    np.testing.assert_allclose(loss_weight("velocity", "flow", 1 - t, t), [0, 1 / 9, 4 / 9, 1, 1, 1])
    floor = loss_weight("velocity", "x0", 1 - t, t, velocity_floor=0.05)
    np.testing.assert_allclose(floor, [400, 400, 100, 1 / 0.15**2, 4, 1])


@pytest.mark.parametrize("name", ["cosine", "flow"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_velocity_is_one_loss_whatever_the_prediction(prediction, name, library):
    """The error of noise - x0, as x0 and x_t give it, wherever sigma is above the floor; below it, less."""
    schedule = make_schedule(name)
    t = np.array([20, 300, 800])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, noise, mistake = draws(3), draws(3, seed=1), draws(3, seed=2)
    x_t = add_noise(x0, noise, alpha, sigma)
    found = to_x0(prediction, target(prediction, x0, noise, alpha, sigma) + mistake, x_t, alpha, sigma)
    error = ((x_t - alpha * found) / sigma - found) - (noise - x0)
    weighted = loss_weight("velocity", prediction, library(alpha), library(sigma)) * library(mistake) ** 2
    np.testing.assert_allclose(weighted, error**2 * np.minimum(sigma / 0.15, 1) ** 2, rtol=1e-8)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("gamma", [1.0, 1.5])
def test_p2_at_the_ends_is_its_limit(prediction, gamma, library):
    """The values next to the ends, not 0 / 0: numpy would warn, which is an error here."""
    ends, near = np.array([0.0, 1.0]), np.array([1e-9, 1 - 1e-9])
    if library == "torch":
        ends, near = torch.from_numpy(ends), torch.from_numpy(near)
    at, beside = (loss_weight("p2", prediction, a, 1 - a, p2_k=2.0, p2_gamma=gamma) for a in (ends, near))
    np.testing.assert_allclose(at, beside, atol=1e-7)
    assert at[0] == (0 if prediction != "eps" else 2.0**-gamma)


def test_p2_with_gamma_0_is_the_weighting_of_eps():
    alpha, sigma = np.array([0.1, 0.0]), np.array([0.9, 1.0])
    assert loss_weight("p2", "eps", alpha, sigma, p2_gamma=0.0).tolist() == [1, 1]


def test_weights_are_alike_for_torch_and_without_weighting_one():
    alpha, sigma = np.array([0.1, 0.9]), np.array([0.9, 0.1])
    ours = loss_weight("min_snr", "v", torch.from_numpy(alpha).float(), torch.from_numpy(sigma).float())
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours, loss_weight("min_snr", "v", alpha, sigma), rtol=1e-6)
    ours = loss_weight("p2", "v", torch.from_numpy(alpha).float(), torch.from_numpy(sigma).float())
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours, loss_weight("p2", "v", alpha, sigma), rtol=1e-6)
    assert loss_weight("none", "eps", alpha, sigma).tolist() == [1, 1]


def test_drawn_timesteps():
    u = (np.arange(20_000) + 0.5) / 20_000
    vp, flow = make_schedule("linear"), make_schedule("flow")

    t = draw_timesteps(u, vp)
    assert t.dtype == np.float64
    assert np.bincount(t.astype(int)).tolist() == [20] * 1000
    np.testing.assert_allclose(draw_timesteps(u, flow), u * 1000)

    oracle = special.expit(stats.norm.ppf(u)) * 1000
    np.testing.assert_allclose(draw_timesteps(u, flow, "logit_normal"), oracle, rtol=1e-9)
    np.testing.assert_array_equal(draw_timesteps(u, vp, "logit_normal"), np.floor(oracle))

    oracle = special.expit(stats.norm.ppf(u, loc=0.2)) * 1000
    np.testing.assert_allclose(draw_timesteps(u, flow, "logit_normal", logit_mean=0.2), oracle, rtol=1e-9)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_the_ends_of_the_unit_interval_stay_on_the_schedule(distribution):
    """Generators do draw 0; its normal would be -inf."""
    low, high = draw_timesteps([0.0, 1.0], make_schedule("linear"), distribution)
    assert (low, high) == (0, 999)
    low, high = draw_timesteps([0.0, 1.0], make_schedule("flow"), distribution)
    assert 0 < low < 1
    assert 999 < high < 1000

"""Samplers against diffusers' schedulers on the same model outputs."""

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

from ldmkit.diffusion.process import make_schedule, noised_to, to_x0
from tests.plugins.sampler_runs import Recorder, agree, in_all, network, noise_stream, ours, x_T

BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
DIFFUSERS_NAME = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
DIFFUSERS_PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


# diffusers hands torch tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


class DownToZero:
    """Timesteps T - 1 .. 0: diffusers' DDPM leaves the noise out at t = 0 alone, not in the last step of any grid."""

    def __init__(self, schedule):
        self.schedule, self.num_timesteps = schedule, schedule.num_timesteps
        self.alpha, self.sigma = schedule.alpha, schedule.sigma

    def grid(self, steps):
        t = np.linspace(self.num_timesteps - 1, 0, steps).round()
        return t, np.append(self.schedule.alpha(t), 1.0), np.append(self.schedule.sigma(t), 0.0)


@pytest.mark.parametrize(("variance", "theirs"), [("beta", "fixed_large"), ("posterior", "fixed_small")])
def test_ddpm_is_diffusers(variance, theirs, diffusers_in_double):
    def check(steps, prediction, zero_snr):
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

    in_all(check, steps=(2, 7, 50), prediction=("eps", "v"), zero_snr=(False,))
    in_all(check, steps=(2, 50), prediction=("v",), zero_snr=(True,))


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


def test_ddim_is_diffusers(diffusers_in_double):
    def check(steps, eta, name, zero_snr):
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

    in_all(check, steps=(1, 10), eta=(0.0, 0.4, 1.0), name=("linear", "cosine"), zero_snr=(False,))
    in_all(check, steps=(1, 10), eta=(0.0, 0.4, 1.0), name=("scaled_linear",), zero_snr=(True,))


@pytest.mark.parametrize(
    ("sampler", "theirs"),
    [
        (Euler, EulerDiscreteScheduler),
        (Heun, HeunDiscreteScheduler),
        (EulerAncestral, EulerAncestralDiscreteScheduler),
    ],
)
def test_eulers_and_heun_are_diffusers(sampler, theirs, diffusers_in_double):
    def check(steps, name, prediction):
        schedule = make_schedule(name, **BETAS)
        scheduler = theirs(
            **BETAS,
            beta_schedule=name,
            prediction_type=DIFFUSERS_PREDICTION[prediction],
            timestep_spacing="trailing",
        )
        scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(0)
        fresh = {"generator": generator} if sampler is EulerAncestral else {}
        x = x_T() / float(schedule.grid(steps)[1][0])  # diffusers' variable here is x / alpha
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **fresh).prev_sample
        agree(ours(sampler(steps=steps), schedule, prediction), x)

    in_all(check, steps=(1, 2, 10), name=("linear", "scaled_linear"), prediction=("eps", "v"))


MULTISTEP = [
    (DPMpp2M, DPMSolverMultistepScheduler, {}),
    (DPMpp2MSDE, DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    (UniPC, UniPCMultistepScheduler, {}),
]


def walked(scheduler, sampler):
    """Where diffusers' scheduler ends."""
    x, generator = x_T(), torch.Generator().manual_seed(0)
    fresh = {"generator": generator} if sampler is DPMpp2MSDE else {}
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, **fresh).prev_sample
    return x


@pytest.mark.parametrize(("sampler", "theirs", "options"), MULTISTEP)
def test_multistep_is_diffusers(sampler, theirs, options, diffusers_in_double):
    def check(steps, name, prediction):
        scheduler = theirs(
            **BETAS,
            beta_schedule=DIFFUSERS_NAME[name],
            prediction_type=DIFFUSERS_PREDICTION[prediction],
            timestep_spacing="trailing",
            **options,
        )
        scheduler.set_timesteps(steps)
        agree(ours(sampler(steps=steps), make_schedule(name, **BETAS), prediction), walked(scheduler, sampler))

    in_all(check, steps=(1, 2, 3, 10), name=("linear", "cosine"), prediction=("eps", "v"))


@pytest.mark.parametrize(("sampler", "theirs", "options"), MULTISTEP)
def test_multistep_on_flow_is_diffusers(sampler, theirs, options, diffusers_in_double):
    def check(steps, strength):
        schedule = noised_to(make_schedule("flow"), strength)
        scheduler = theirs(use_flow_sigmas=True, prediction_type="flow_prediction", **options)
        scheduler.set_timesteps(steps)
        t, _, sigma = schedule.grid(steps)
        scheduler.sigmas, scheduler.timesteps = torch.from_numpy(sigma), torch.from_numpy(t)
        agree(ours(sampler(steps=steps), schedule, "flow"), walked(scheduler, sampler))

    in_all(check, steps=(2, 3, 10), strength=(1.0, 0.9))


def test_euler_and_ddim_on_flow_are_diffusers(diffusers_in_double):
    def check(steps):
        schedule = make_schedule("flow")
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=schedule.grid(steps)[2][:-1].tolist())
        x = x_T()
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x).prev_sample
        agree(ours(Euler(steps=steps), schedule, "flow"), x)
        agree(ours(DDIM(steps=steps), schedule, "flow"), x)

    in_all(check, steps=(1, 2, 10))


@pytest.mark.parametrize(("name", "zero_snr"), [("flow", False), ("linear", True), ("cosine", False)])
def test_heun_from_pure_noise_is_diffusers_flow_heun(name, zero_snr, diffusers_in_double):
    """On a VP schedule diffusers' x, over its sigma, is x / (alpha + sigma) over sigma / (alpha + sigma)."""

    def check(steps):
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
            x0 = to_x0("v", network(x_t, t[i]), x_t, float(alpha[i]), float(sigma[i]))
            x = scheduler.step((x_t - alpha[i] * x0) / sigma[i] - x0, scheduler_t, x).prev_sample
        agree(ours(Heun(steps=steps), schedule, "v"), x)

    in_all(check, steps=(1, 2, 10))


@pytest.mark.parametrize(("spacing", "option"), [("karras", "use_karras_sigmas"), ("logsnr", "use_exponential_sigmas")])
def test_spacing_is_diffusers_to_a_timestep(spacing, option):
    def check(steps, sampler):
        scheduler = DPMSolverMultistepScheduler(**BETAS, beta_schedule="scaled_linear", **{option: True})
        scheduler.set_timesteps(steps)
        times = Recorder(sampler(steps=steps, spacing=spacing), make_schedule("scaled_linear", **BETAS)).times
        np.testing.assert_allclose(times, scheduler.timesteps.numpy(), atol=1)
        assert times[0] == 999

    in_all(check, steps=(2, 5, 12), sampler=(DPMpp2M, DPMpp2MSDE, UniPC))

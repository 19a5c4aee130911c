"""What the samplers' tests let them walk: a fixed network, fixed noise, and a record of the calls."""

from itertools import product

import numpy as np
import torch

from ldmkit.diffusion.process import to_x0


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


def in_all(check, **choices):
    """Calls `check` with every combination of the choices, and lists each one that it fails with."""
    failed = []
    for values in product(*choices.values()):
        combination = dict(zip(choices, values, strict=True))
        try:
            check(**combination)
        except AssertionError as error:
            failed.append(f"{combination}: {error}")
    assert not failed, "\n\n".join(failed)


class Recorder:
    """Timesteps at which a sampler calls."""

    def __init__(self, sampler, schedule):
        self.times = []
        sampler.sample(lambda x, t: self.times.append(t) or x, np.zeros(2), schedule, np.zeros_like)

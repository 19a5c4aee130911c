"""How much training makes of each noise level: the weight of the loss there, and how often it is drawn."""

from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from ldmkit.diffusion.process import Array, Floats, NoiseSchedule, Prediction

Weighting = Literal["none", "min_snr", "p2", "velocity"]
TimestepDistribution = Literal["uniform", "logit_normal"]


def loss_weight(
    weighting: Weighting,
    prediction: Prediction,
    alpha: Array,
    sigma: Array,
    *,
    min_snr_gamma: float = 5.0,
    p2_k: float = 1.0,
    p2_gamma: float = 1.0,
    velocity_floor: float = 0.15,
) -> Array:
    """Weight of the squared error of `prediction`, shaped like alpha; SNR = alpha^2 / sigma^2.

    none: 1, whatever the prediction. The others are one loss each, stated in terms of the U-Net's output: the squared
    errors of (eps, x0) are those of v times (alpha^2, sigma^2) / (alpha^2 + sigma^2)^2, and those of flow times
    (alpha^2, sigma^2) / (alpha + sigma)^2.

    min_snr: Hang et al. 2023, sec. 3.4, the squared error of x0 weighted by min(SNR, min_snr_gamma). On a VP schedule
    that is min / SNR for eps and min / (SNR + 1) for v. The paper has no flow: there it is
    min((1 - t)^2, gamma * t^2), which is 0 at both ends, so "none" is the usual choice.
    p2: Choi et al. 2022, eq. 8, the squared error of eps weighted by 1 / (p2_k + SNR)^p2_gamma. On a VP schedule that
    is SNR times as much for x0, SNR / (SNR + 1) for v, and on a flow schedule (1 - t)^2 for flow. Finite at alpha = 0
    and at sigma = 0, save that x0 needs sigma > 0 where p2_gamma < 1: its weight has no bound there.
    """
    if weighting == "none":
        return alpha * 0 + 1.0
    if weighting == "min_snr":
        return _min_snr(prediction, alpha**2, sigma**2, alpha + sigma, min_snr_gamma)
    if weighting == "velocity":
        return _velocity(prediction, alpha, sigma, velocity_floor)
    return _p2(prediction, alpha**2, sigma**2, alpha + sigma, p2_k, p2_gamma)


def _min_snr(prediction: Prediction, signal: Array, variance: Array, span: Array, gamma: float) -> Array:
    """`signal` and `variance` are alpha^2 and sigma^2, `span` is alpha + sigma."""
    capped = gamma * variance
    # min(SNR, gamma) * sigma^2: free of the division by sigma, and of a minimum() that each library calls its own.
    weight = signal * (signal < capped) + capped * (signal >= capped)
    match prediction:
        case "eps":
            return weight / signal
        case "x0":
            return weight / variance
        case "v":
            return weight / (signal + variance) ** 2
        case "flow":
            return weight / span**2


def _p2(prediction: Prediction, signal: Array, variance: Array, span: Array, k: float, gamma: float) -> Array:
    """As `_min_snr`; each form multiplies sigma^2 through, so that nothing is divided by 0 at either end."""
    scale = k * variance + signal
    weight = (variance / scale) ** gamma
    match prediction:
        case "eps":
            return weight
        case "x0":
            return signal * variance ** (gamma - 1) / scale**gamma
        case "v":
            return weight * signal / (signal + variance) ** 2
        case "flow":
            return weight * signal / span**2


def _velocity(prediction: Prediction, alpha: Array, sigma: Array, floor: float) -> Array:
    """An error of the output is this many times as large in noise - x0, with at least `floor` divided by for sigma."""
    span, capped = alpha + sigma, sigma + (floor - sigma) * (sigma < floor)
    match prediction:
        case "eps":
            return (sigma * span / (alpha * capped)) ** 2
        case "x0":
            return (span / capped) ** 2
        case "v":
            return (sigma * span / ((alpha**2 + sigma**2) * capped)) ** 2
        case "flow":
            return (sigma / capped) ** 2


def draw_timesteps(
    uniform: npt.ArrayLike,
    schedule: NoiseSchedule,
    distribution: TimestepDistribution = "uniform",
    *,
    logit_mean: float = 0.0,
) -> Floats:
    """Timesteps to train at: `uniform` (B,) draws from (0, 1) -> t (B,), float64.

    uniform: t = u * T. logit_normal: t = sigmoid(n + logit_mean) * T with n the standard normal of rank u (Esser et
    al. 2024, sec. 3.1), which favours the middle. Flow takes real t in (0, T), the others floor(t) in 0 .. T - 1.
    """
    # Generators draw from [0, 1): a single 0 would be -inf on the normal's axis.
    u = np.clip(np.asarray(uniform, dtype=np.float64), 2**-53, 1 - 2**-53)
    if distribution == "logit_normal":
        inverse = NormalDist().inv_cdf
        normal = np.array([inverse(float(rank)) for rank in u.ravel()]).reshape(u.shape)
        u = 1 / (1 + np.exp(-normal - logit_mean))
    t = u * schedule.num_timesteps
    return t if schedule.name == "flow" else np.floor(t)

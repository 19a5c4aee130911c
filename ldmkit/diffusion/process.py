"""Noise schedules and predictions: numpy for the schedules, plain operators for everything that meets a U-Net.

Throughout, x_t = alpha * x0 + sigma * noise. Where papers differ:

    here          DDPM, Ho et al. 2020     EDM, Karras et al. 2022     rectified flow, Liu et al. 2022
    alpha         sqrt(alpha_bar_t)        1 / sqrt(1 + s^2)           1 - t
    sigma         sqrt(1 - alpha_bar_t)    s / sqrt(1 + s^2)           t
    t in [0, T]   t - 1                    a function of s             T * t
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from ldmkit.errors import LdmkitError

ScheduleName = Literal["linear", "scaled_linear", "cosine", "flow"]
Prediction = Literal["eps", "x0", "v", "flow"]
Floats = npt.NDArray[np.float64]
Array = Any
"""torch tensor, numpy array or float"""


@dataclass(frozen=True, eq=False)
class VPSchedule:
    """Variance preserving, alpha^2 + sigma^2 = 1, at the integer timesteps 0 .. T - 1 (DDPM, Ho et al. 2020)."""

    name: ScheduleName
    num_timesteps: int
    betas: Floats = field(repr=False)
    """(T,) variance added at each timestep"""
    alphas_cumprod: Floats = field(repr=False)
    """(T,) alpha^2"""

    def alpha(self, t: npt.ArrayLike) -> Floats:
        """sqrt(alphas_cumprod) at the integer timesteps t, float64, shaped like t."""
        return cast(Floats, np.sqrt(self.alphas_cumprod[self._index(t)]))

    def sigma(self, t: npt.ArrayLike) -> Floats:
        """sqrt(1 - alphas_cumprod) at the integer timesteps t, float64, shaped like t."""
        return cast(Floats, np.sqrt(1 - self.alphas_cumprod[self._index(t)]))

    def grid(self, steps: int) -> tuple[Floats, Floats, Floats]:
        """Trailing spacing, Lin et al. 2023, table 2: starts at T - 1 whatever the number of steps.

        Returns t (steps,), alpha (steps + 1,), sigma (steps + 1,).
        Raises: LdmkitError where steps is not in 1 .. T, since timesteps would repeat.
        """
        if not 1 <= steps <= self.num_timesteps:
            raise LdmkitError(
                f"sampler: steps = {steps} is not possible; schedule '{self.name}' has {self.num_timesteps} timesteps, "
                f"so steps must lie in 1 to {self.num_timesteps}"
            )
        t = np.round(self.num_timesteps - np.arange(steps) * (self.num_timesteps / steps)) - 1
        return t, np.append(self.alpha(t), 1.0), np.append(self.sigma(t), 0.0)

    def _index(self, t: npt.ArrayLike) -> npt.NDArray[np.int64]:
        index = np.asarray(t).astype(np.int64)
        assert np.all(index == t), "timesteps of a VP schedule are whole numbers"
        assert np.all((index >= 0) & (index < self.num_timesteps)), "timestep outside the schedule"
        return index


@dataclass(frozen=True)
class FlowSchedule:
    """Straight line from x0 to noise, alpha + sigma = 1, t real in [0, T] (rectified flow, Liu et al. 2022)."""

    num_timesteps: int = 1000
    name: ScheduleName = "flow"
    start: float = 1.0
    """sigma at which grids start"""

    def alpha(self, t: npt.ArrayLike) -> Floats:
        """1 - t / T, float64, shaped like t."""
        return 1 - self.sigma(t)

    def sigma(self, t: npt.ArrayLike) -> Floats:
        """t / T, float64, shaped like t."""
        return np.asarray(t, dtype=np.float64) / self.num_timesteps

    def grid(self, steps: int) -> tuple[Floats, Floats, Floats]:
        """t evenly from T * start down to T * start / steps; t (steps,), alpha (steps + 1,), sigma (steps + 1,).

        Raises: LdmkitError where steps is below 1.
        """
        if steps < 1:
            raise LdmkitError(f"sampler: steps = {steps} is not possible; steps must be at least 1")
        t = np.linspace(self.num_timesteps * self.start, 0, steps + 1)
        return t[:-1], self.alpha(t), self.sigma(t)


NoiseSchedule = VPSchedule | FlowSchedule
"""a `Schedule` as samplers know it, with alpha and sigma at any of its timesteps, by which training draws"""


def make_schedule(
    name: ScheduleName,
    *,
    num_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    zero_terminal_snr: bool = False,
) -> NoiseSchedule:
    """A noise schedule by name.

    linear: betas evenly from beta_start to beta_end (Ho et al. 2020).
    scaled_linear: their square roots evenly (Rombach et al. 2022).
    cosine: alpha_bar = cos^2, betas capped at 0.999 (Nichol & Dhariwal 2021, eq. 17); beta_start and beta_end unused.
    flow: alpha = 1 - t / T (Liu et al. 2022); it ends in pure noise by itself, so of the options only T counts.

    zero_terminal_snr moves the last timestep of a VP schedule to pure noise (Lin et al. 2023, alg. 1).

    Raises: LdmkitError for num_timesteps below 1 (below 2 with zero_terminal_snr), or betas that don't satisfy
        0 < beta_start <= beta_end < 1.
    """
    if num_timesteps < 1 + zero_terminal_snr:
        raise LdmkitError(
            f"diffusion: num_timesteps = {num_timesteps} is too few; at least {1 + zero_terminal_snr} needed"
        )
    if name == "flow":
        return FlowSchedule(num_timesteps)

    if name == "cosine":
        steps = np.arange(num_timesteps + 1) / num_timesteps
        alpha_bar = np.cos((steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    else:
        if not 0 < beta_start <= beta_end < 1:
            raise LdmkitError(
                f"diffusion: beta_start = {beta_start} and beta_end = {beta_end} are not possible; "
                "they must satisfy 0 < beta_start <= beta_end < 1"
            )
        if name == "linear":
            betas = np.linspace(beta_start, beta_end, num_timesteps)
        else:
            betas = np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps) ** 2
    alphas_cumprod = np.cumprod(1 - betas)

    if zero_terminal_snr:
        alpha = np.sqrt(alphas_cumprod)
        # Shift so that the last is 0, scale so that the first stays.
        alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
        alphas_cumprod = alpha**2
        betas = 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
    return VPSchedule(name, num_timesteps, betas, alphas_cumprod)


def noised_to(schedule: NoiseSchedule, strength: float) -> NoiseSchedule:
    """The last part of a schedule, `strength` in (0, 1] of its timesteps: for pictures that are not drawn from noise.

    At least the one timestep nearest to the clean picture is left.
    """
    assert 0 < strength <= 1
    if isinstance(schedule, FlowSchedule):
        return replace(schedule, start=strength)
    left = max(1, round(schedule.num_timesteps * strength))
    return VPSchedule(schedule.name, left, schedule.betas[:left], schedule.alphas_cumprod[:left])


def add_noise(x0: Array, noise: Array, alpha: Array, sigma: Array) -> Array:
    """x_t = alpha * x0 + sigma * noise; alpha and sigma broadcast against x0, such as (B, 1, 1, 1)."""
    return alpha * x0 + sigma * noise


def target(prediction: Prediction, x0: Array, noise: Array, alpha: Array, sigma: Array) -> Array:
    """What the U-Net learns to put out, shaped like x0; alpha and sigma broadcast against it.

    eps: noise (Ho et al. 2020). x0: x0. v: alpha * noise - sigma * x0 (Salimans & Ho 2022, sec. 4).
    flow: noise - x0 (Liu et al. 2022).
    """
    match prediction:
        case "eps":
            return noise
        case "x0":
            return x0
        case "v":
            return alpha * noise - sigma * x0
        case "flow":
            return noise - x0


def to_x0(prediction: Prediction, output: Array, x_t: Array, alpha: Array, sigma: Array) -> Array:
    """The x0 that the U-Net's output stands for, shaped like x_t; alpha and sigma broadcast against it.

    Holds for any alpha and sigma, VP or not, save that eps needs alpha > 0 (Lin et al. 2023, sec. 3.3).
    """
    match prediction:
        case "eps":
            return (x_t - sigma * output) / alpha
        case "x0":
            return output
        case "v":
            return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)
        case "flow":
            return (x_t - sigma * output) / (alpha + sigma)

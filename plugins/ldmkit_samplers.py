"""Samplers for numpy arrays and torch tensors alike.

Every sampler walks down the schedule's grid, on which x_t = alpha * x0 + sigma * noise, so it serves VP and flow
schedules and every prediction. Coefficients are python floats: the arrays keep their own dtype and device.
All are finite at alpha = 0, where flow and zero-terminal-SNR schedules start, and at sigma = 0, where all end.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, expm1, inf, log, sqrt
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ldmkit import Denoise, LdmkitError, Sampler, Schedule, hookimpl

Array = Any
RandnLike = Callable[[Array], Array]
Steps = Annotated[int, Field(gt=0, description="denoising steps")]
Spacing = Annotated[
    Literal["trailing", "karras", "logsnr"],
    Field(description="timesteps: even in t, or in noise / signal as Karras et al. 2022 (rho = 7), or in log SNR"),
]


@hookimpl
def register_samplers() -> Mapping[str, Callable[..., Sampler]]:
    return {
        "ddpm": DDPM,
        "ddim": DDIM,
        "euler": Euler,
        "euler_a": EulerAncestral,
        "heun": Heun,
        "dpmpp_2m": DPMpp2M,
        "dpmpp_2m_sde": DPMpp2MSDE,
        "unipc": UniPC,
    }


@dataclass(frozen=True, kw_only=True)
class DDPM:
    """Ancestral sampling, Ho et al. 2020, alg. 2, for grids that skip timesteps and for flow as well.

    From (alpha, sigma) to (next_alpha, next_sigma), with beta the variance that the forward process adds in between:
    next_x is drawn around the mean of q(next_x | x, x0), their eq. 7, without noise in the last step.
    """

    steps: Steps = 1000
    variance: Annotated[
        Literal["beta", "posterior"],
        Field(description="noise of a step: beta_t, right for data of unit variance, or that of q(x_t-1 | x_t, x0)"),
    ] = "beta"

    def sample(self, denoise: Denoise, x_T: Array, schedule: Schedule, randn_like: RandnLike) -> Array:  # noqa: N803 - the field's name
        """x0, shaped like x_T."""
        t, alpha, sigma = _grid(schedule, self.steps)
        x = x_T
        for i in range(self.steps):
            x0 = denoise(x, t[i])
            beta = _beta(alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])
            kept = alpha[i] / alpha[i + 1] * sigma[i + 1] ** 2 / sigma[i] ** 2
            x = alpha[i + 1] * beta / sigma[i] ** 2 * x0 + kept * x
            if i + 1 < self.steps:
                if self.variance == "posterior":
                    variance = beta * sigma[i + 1] ** 2 / sigma[i] ** 2
                else:
                    # The variance of q(next_x | x) for x0 ~ N(0, 1), for which Ho et al. chose beta_t: the quotient
                    # is 1 in a VP schedule, and in flow makes up for x_t's variance, which is below 1.
                    variance = beta * (alpha[i + 1] ** 2 + sigma[i + 1] ** 2) / (alpha[i] ** 2 + sigma[i] ** 2)
                x = x + sqrt(variance) * randn_like(x)
        return x


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """DDIM, Song et al. 2021, eq. 12 and 16; eta = 0 is deterministic, 1 is DDPM with the posterior variance."""

    steps: Steps = 50
    eta: Annotated[float, Field(ge=0, le=1, description="fresh noise: 0 none, 1 as much as DDPM")] = 0.0

    def sample(self, denoise: Denoise, x_T: Array, schedule: Schedule, randn_like: RandnLike) -> Array:  # noqa: N803 - the field's name
        """x0, shaped like x_T. `randn_like` is called only where eta > 0."""
        t, alpha, sigma = _grid(schedule, self.steps)
        x = x_T
        for i in range(self.steps):
            x0 = denoise(x, t[i])
            noise = (x - alpha[i] * x0) / sigma[i]
            beta = _beta(alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])
            fresh = self.eta * sqrt(beta) * sigma[i + 1] / sigma[i]
            x = alpha[i + 1] * x0 + sqrt(max(sigma[i + 1] ** 2 - fresh**2, 0.0)) * noise
            if fresh > 0:
                x = x + fresh * randn_like(x)
        return x


@dataclass(frozen=True, kw_only=True)
class Euler:
    """Euler's method, Karras et al. 2022 (k-diffusion sample_euler); on a flow schedule, x += dt * velocity.

    Written without the division by alpha it equals DDIM with eta = 0, whichever the schedule. No churn:
    it raises sigma / alpha by a factor, which has no meaning at alpha = 0; for fresh noise take ddim or ddpm.
    """

    steps: Steps = 50

    def sample(self, denoise: Denoise, x_T: Array, schedule: Schedule, randn_like: RandnLike) -> Array:  # noqa: N803 - the field's name
        """x0, shaped like x_T. Deterministic: `randn_like` is not called."""
        t, alpha, sigma = _grid(schedule, self.steps)
        x = x_T
        for i in range(self.steps):
            x = _euler_step(x, denoise(x, t[i]), alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])
        return x


@dataclass(frozen=True, kw_only=True)
class EulerAncestral(DDIM):
    """Euler with fresh noise (k-diffusion sample_euler_ancestral): DDIM with eta, under the name and default of others.

    Its step down to sigma_down and back up by sigma_up is DDIM's, eq. 12 and 16, once x / alpha is written as x.
    """

    eta: Annotated[float, Field(ge=0, le=1, description="fresh noise: 0 none, 1 all that keeps the distribution")] = 1.0


@dataclass(frozen=True, kw_only=True)
class Heun:
    """Heun's method, Karras et al. 2022, alg. 1: two network calls a step, one in the last, which is Euler's.

    Karras et al. integrate x / alpha over s = sigma / alpha. Both are infinite where a grid starts at alpha = 0 (flow
    and zero-terminal-SNR schedules), and where it starts close to it (cosine: s = 20,000) the trapezium over the first
    step overshoots without bound. Where s starts above 1,000, as it does in those, x / (alpha + sigma) is therefore
    integrated over s = sigma / (alpha + sigma), which on a flow schedule is x over t; linear and scaled_linear, where s
    starts at 157 or less, follow Karras et al.
    """

    steps: Steps = 25

    def sample(self, denoise: Denoise, x_T: Array, schedule: Schedule, randn_like: RandnLike) -> Array:  # noqa: N803 - the field's name
        """x0, shaped like x_T. Deterministic: `randn_like` is not called."""
        t, alpha, sigma = _grid(schedule, self.steps)
        flow = sigma[0] > 1000 * alpha[0]
        x = x_T
        x0 = denoise(x, t[0])
        for i in range(self.steps - 1):
            slope = (x - alpha[i] * x0) / sigma[i] - flow * x0
            x = _euler_step(x, x0, alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])
            x0 = denoise(x, t[i + 1])
            next_slope = (x - alpha[i + 1] * x0) / sigma[i + 1] - flow * x0

            scale, next_scale = alpha[i] + flow * sigma[i], alpha[i + 1] + flow * sigma[i + 1]
            ds = sigma[i + 1] / next_scale - sigma[i] / scale
            x = x + next_scale * ds / 2 * (next_slope - slope)
            x0 = denoise(x, t[i + 1])
        return x0


@dataclass(frozen=True, kw_only=True)
class DPMpp2M:
    """DPM-Solver++(2M), Lu et al. 2022, alg. 2 (k-diffusion sample_dpmpp_2m); first order in the first and last step.

    Where the grid starts at alpha = 0 the first step is infinitely long in log SNR, so the second, whose
    extrapolation divides by that length, is of first order too.
    """

    steps: Steps = 25
    spacing: Spacing = "trailing"

    def sample(self, denoise: Denoise, x_T: Array, schedule: Schedule, randn_like: RandnLike) -> Array:  # noqa: N803 - the field's name
        """x0, shaped like x_T. Deterministic: `randn_like` is not called."""
        return _dpmpp_2m(denoise, x_T, _grid(schedule, self.steps, self.spacing), randn_like, eta=0.0)


@dataclass(frozen=True, kw_only=True)
class DPMpp2MSDE:
    """SDE-DPM-Solver++(2M), Lu et al. 2022, sec. 6 (k-diffusion sample_dpmpp_2m_sde, midpoint): 2M with fresh noise."""

    steps: Steps = 25
    eta: Annotated[float, Field(ge=0, le=1, description="fresh noise: 0 none, which is dpmpp_2m; 1 the SDE's")] = 1.0
    spacing: Spacing = "trailing"

    def sample(self, denoise: Denoise, x_T: Array, schedule: Schedule, randn_like: RandnLike) -> Array:  # noqa: N803 - the field's name
        """x0, shaped like x_T. `randn_like` is called only where eta > 0."""
        return _dpmpp_2m(denoise, x_T, _grid(schedule, self.steps, self.spacing), randn_like, eta=self.eta)


@dataclass(frozen=True, kw_only=True)
class UniPC:
    """UniPC of order 2 (B(h) = e^h - 1), Zhao et al. 2023, alg. 1: each x0 also corrects the step that led to it.

    Its predictor is DPM-Solver++(2M), with the same steps of first order.
    """

    steps: Steps = 25
    spacing: Spacing = "trailing"

    def sample(self, denoise: Denoise, x_T: Array, schedule: Schedule, randn_like: RandnLike) -> Array:  # noqa: N803 - the field's name
        """x0, shaped like x_T. Deterministic: `randn_like` is not called."""
        t, alpha, sigma = _grid(schedule, self.steps, self.spacing)
        half_log_snr = _half_log_snr(alpha, sigma)
        x = x_T
        x0 = denoise(x, t[0])
        previous = None
        for i in range(self.steps - 1):
            h = half_log_snr[i + 1] - half_log_snr[i]
            step = (alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])
            slope = back = 0.0
            ahead = 0.5
            if previous is not None:
                ratio = h / (half_log_snr[i] - half_log_snr[i - 1])
                slope = ratio * (x0 - previous)  # of x0 over half_log_snr / h
                back, ahead = _unipc_weights(h, ratio)
            next_x0 = denoise(_euler_step(x, x0 + slope / 2, *step), t[i + 1])
            x = _euler_step(x, x0 + back * slope + ahead * (next_x0 - x0), *step)
            previous, x0 = x0, next_x0
        # The last step, of infinite length to sigma = 0, is x0 itself at first order.
        return _euler_step(x, x0, alpha[-2], sigma[-2], alpha[-1], sigma[-1])


def _unipc_weights(h: float, ratio: float) -> tuple[float, float]:
    """The corrector's rho for the points behind, r = -1 / ratio, and ahead, r = 1: Zhao et al. 2023, eq. 3 and 9.

    R rho = b has rows of powers of r, and b from phi_2 and phi_3 at -h over B(-h) = e^-h - 1.
    """
    b = expm1(-h)
    phi_2 = b / -h - 1
    phi_3 = phi_2 / -h - 1 / 2
    back = (phi_2 - 2 * phi_3) / b * ratio / (ratio + 1)
    return back, phi_2 / b - back


def _dpmpp_2m(
    denoise: Denoise,
    x: Array,
    grid: tuple[list[float], list[float], list[float]],
    randn_like: RandnLike,
    *,
    eta: float,
) -> Array:
    t, alpha, sigma = grid
    half_log_snr = _half_log_snr(alpha, sigma)
    previous = None
    for i in range(len(t)):
        x0 = extrapolated = denoise(x, t[i])
        if previous is not None and i + 1 < len(t):
            ratio = (half_log_snr[i + 1] - half_log_snr[i]) / (half_log_snr[i] - half_log_snr[i - 1])
            extrapolated = x0 + ratio / 2 * (x0 - previous)
        if eta == 0:
            x = _euler_step(x, extrapolated, alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])
        else:
            shrink = alpha[i] / sigma[i] * sigma[i + 1] / alpha[i + 1]  # e^-h: 0 where h is infinite
            x = sigma[i + 1] / sigma[i] * shrink**eta * x + alpha[i + 1] * (1 - shrink ** (1 + eta)) * extrapolated
            if i + 1 < len(t):
                x = x + sigma[i + 1] * sqrt(1 - shrink ** (2 * eta)) * randn_like(x)
        previous = x0
    return x


def _half_log_snr(alpha: list[float], sigma: list[float]) -> list[float]:
    """log(alpha / sigma), lambda in Lu et al. 2022, without the last point, where it is infinite."""
    return [log(a / s) if a > 0 else -inf for a, s in zip(alpha[:-1], sigma[:-1], strict=True)]


def _grid(schedule: Schedule, steps: int, spacing: str = "trailing") -> tuple[list[float], list[float], list[float]]:
    """t (steps), alpha and sigma (steps + 1) of the schedule's own grid, or of whole timesteps spaced otherwise."""
    t, alpha, sigma = schedule.grid(steps)
    if spacing != "trailing" and steps > 1:
        num = schedule.num_timesteps
        if steps > num:
            raise LdmkitError(f"sampler: spacing = '{spacing}' needs steps of at most {num}, not {steps}")
        t, alpha, sigma = schedule.grid(num)
        with np.errstate(divide="ignore"):
            noisiness = np.log(sigma[:-1]) - np.log(alpha[:-1])  # descending, inf where alpha is 0
        # Beyond this a picture is nothing but noise; `linear` starts just below it.
        first, last = min(noisiness[0], log(160)), noisiness[-1]
        if spacing == "karras":
            wanted = 7 * np.log(np.linspace(exp(first / 7), exp(last / 7), steps))
        else:
            wanted = np.linspace(first, last, steps)
        index = np.abs(noisiness[None] - wanted[:, None]).argmin(axis=1)
        index[0] = 0  # pure noise is where sampling starts, however far out
        order = np.arange(steps)
        index = np.maximum.accumulate(index - order) + order  # no timestep twice
        index = np.minimum(index, num - steps + order)
        kept = np.append(index, num)
        t, alpha, sigma = t[index], alpha[kept], sigma[kept]
    return t.tolist(), alpha.tolist(), sigma.tolist()


def _beta(alpha: float, sigma: float, next_alpha: float, next_sigma: float) -> float:
    """Variance of q(x | next_x): beta_t between neighbours of a VP schedule. Rounding must not make it negative."""
    return max(sigma**2 - (alpha / next_alpha * next_sigma) ** 2, 0.0)


def _euler_step(x: Array, x0: Array, alpha: float, sigma: float, next_alpha: float, next_sigma: float) -> Array:
    """next_alpha * x0 + next_sigma * noise with noise = (x - alpha * x0) / sigma."""
    kept = next_sigma / sigma
    return kept * x + (next_alpha - kept * alpha) * x0

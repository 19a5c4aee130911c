"""Samplers for numpy arrays and torch tensors alike.

Every sampler walks down the schedule's grid, on which x_t = alpha * x0 + sigma * noise, so it serves VP and flow
schedules and every prediction. Coefficients are python floats: the arrays keep their own dtype and device.
All are finite at alpha = 0, where flow and zero-terminal-SNR schedules start, and at sigma = 0, where all end.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, log, sqrt
from typing import Annotated, Any, Literal

from pydantic import Field

from ldmkit import Denoise, Sampler, Schedule, hookimpl

Array = Any
RandnLike = Callable[[Array], Array]
Steps = Annotated[int, Field(gt=0, description="denoising steps")]


@hookimpl
def register_samplers() -> Mapping[str, Callable[..., Sampler]]:
    return {"ddpm": DDPM, "ddim": DDIM, "euler": Euler, "heun": Heun, "dpmpp_2m": DPMpp2M}


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

    def sample(self, denoise: Denoise, x_T: Array, schedule: Schedule, randn_like: RandnLike) -> Array:  # noqa: N803 - the field's name
        """x0, shaped like x_T. Deterministic: `randn_like` is not called."""
        t, alpha, sigma = _grid(schedule, self.steps)
        half_log_snr = [log(a / s) if a > 0 else -inf for a, s in zip(alpha[:-1], sigma[:-1], strict=True)]
        x = x_T
        previous = None
        for i in range(self.steps):
            x0 = extrapolated = denoise(x, t[i])
            if previous is not None and i + 1 < self.steps:
                ratio = (half_log_snr[i + 1] - half_log_snr[i]) / (half_log_snr[i] - half_log_snr[i - 1])
                extrapolated = x0 + ratio / 2 * (x0 - previous)
            x = _euler_step(x, extrapolated, alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])
            previous = x0
        return x


def _grid(schedule: Schedule, steps: int) -> tuple[list[float], list[float], list[float]]:
    t, alpha, sigma = schedule.grid(steps)
    return t.tolist(), alpha.tolist(), sigma.tolist()


def _beta(alpha: float, sigma: float, next_alpha: float, next_sigma: float) -> float:
    """Variance of q(x | next_x): beta_t between neighbours of a VP schedule. Rounding must not make it negative."""
    return max(sigma**2 - (alpha / next_alpha * next_sigma) ** 2, 0.0)


def _euler_step(x: Array, x0: Array, alpha: float, sigma: float, next_alpha: float, next_sigma: float) -> Array:
    """next_alpha * x0 + next_sigma * noise with noise = (x - alpha * x0) / sigma."""
    kept = next_sigma / sigma
    return kept * x + (next_alpha - kept * alpha) * x0

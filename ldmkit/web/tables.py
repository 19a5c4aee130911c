"""What the page's samplers need of a schedule, as numbers."""

from typing import Any

import numpy as np

from ldmkit.components.registry import Registry
from ldmkit.diffusion.process import NoiseSchedule, make_schedule
from ldmkit.runtime.manifest import Manifest

MAX_STEPS = 100
"""of a drawing on the page"""
SAMPLERS = ("ddpm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
"""those that page/samplers.js knows"""
SPACINGS = ("trailing", "karras", "logsnr")


def grids(manifest: Manifest) -> dict[str, Any]:
    """The grids of 1 to MAX_STEPS steps.

    `t`, `alpha`, `sigma`: the points of all grids. `spacings`: of each spacing, for each number of steps, which of the
    points are its own; the last point of every grid, alpha = 1 and sigma = 0, is left out.
    """
    schedule: NoiseSchedule = make_schedule(**manifest.schedule.model_dump())
    registry = Registry.load(kinds=("sampler",))
    most = MAX_STEPS if schedule.name == "flow" else min(MAX_STEPS, schedule.num_timesteps)
    numbers: dict[float, int] = {}
    spacings: dict[str, list[list[int]]] = {}
    for spacing in SPACINGS:
        # Others than the schedule's own choose among its timesteps, on a flow schedule too.
        longest = most if spacing == "trailing" else min(most, schedule.num_timesteps)
        spacings[spacing] = [
            [numbers.setdefault(t, len(numbers)) for t in _visited(registry, schedule, spacing, steps)]
            for steps in range(1, longest + 1)
        ]
    t = np.array(list(numbers))
    return {"t": t.tolist(), "alpha": schedule.alpha(t).tolist(), "sigma": schedule.sigma(t).tolist()} | {
        "spacings": spacings
    }


def _visited(registry: Registry, schedule: NoiseSchedule, spacing: str, steps: int) -> list[float]:
    """The timesteps that a sampler asks a network about, seen by walking an empty picture."""
    table = {"use": "dpmpp_2m", "spacing": spacing, "steps": steps}
    found: list[float] = []

    def denoise(x_t: np.ndarray, t: float) -> np.ndarray:
        found.append(t)
        return x_t

    registry.build("sampler", table, where="sampler").sample(denoise, np.empty(0), schedule, np.zeros_like)
    return found

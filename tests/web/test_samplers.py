"""The page's samplers against Python's: every sampler, schedule and prediction that a recipe can choose."""

import json
from collections.abc import Iterator
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any, cast, get_args

import numpy as np

from ldmkit.components.registry import Registry
from ldmkit.diffusion.process import Prediction, ScheduleName, make_schedule
from ldmkit.runtime.backend import Backend
from ldmkit.runtime.generate import draw_latents
from ldmkit.runtime.manifest import Latent, Manifest, Schedule, read_manifest
from ldmkit.runtime.request import PictureRequest
from ldmkit.runtime.settings import DrawSettings
from ldmkit.shipped import exports_dir
from ldmkit.web.tables import MAX_STEPS, SAMPLERS, SPACINGS, grids
from tests.web.node import evaluate, needs_node, node

SEEDS = (0, 7)
ETAS = (0.0, 0.3, 1.0)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ddpm": [{}, {"variance": "beta"}, {"variance": "posterior"}],
    "ddim": [{}, *({"eta": eta} for eta in ETAS)],
    "euler": [{}],
    "euler_a": [{}, *({"eta": eta} for eta in ETAS)],
    "heun": [{}],
    "dpmpp_2m": [{}, *({"spacing": spacing} for spacing in SPACINGS)],
    "dpmpp_2m_sde": [{}, *({"eta": eta, "spacing": spacing} for eta, spacing in product(ETAS, SPACINGS))],
    "unipc": [{}, *({"spacing": spacing} for spacing in SPACINGS)],
}
SCHEDULES = {
    f"{name}{' from pure noise' * zero}": Schedule(
        name=name, num_timesteps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=zero
    )
    for name, zero in product(get_args(ScheduleName), (False, True))
}


@cache
def shipped() -> Manifest:
    folder = exports_dir()
    assert folder is not None
    return read_manifest(folder / "toy-cats")[0]


def manifest_of(schedule: Schedule, prediction: Prediction = "v") -> Manifest:
    latent = Latent(channels=2, height=3, width=4, mean=(0, 0), std=(1, 1))
    return shipped().model_copy(update={"schedule": schedule, "prediction": prediction, "latent": latent})


def cases() -> Iterator[dict[str, Any]]:
    for (name, schedule), prediction in product(SCHEDULES.items(), get_args(Prediction)):
        if prediction == "eps" and make_schedule(**schedule.model_dump()).grid(1)[1][0] == 0:
            continue  # no recipe can choose it: pure noise holds nothing of x0
        for sampler, choices in OPTIONS.items():
            for options, steps in product(choices, (1, 2, 3, 11)):
                yield {
                    "schedule": name,
                    "prediction": prediction,
                    "sampler": sampler,
                    "options": options,
                    "steps": steps,
                    "seeds": SEEDS,
                }


@cache
def weights_of(name: str, steps: int) -> dict[float, tuple[float, float]]:
    """alpha and sigma by the float32 that the network gets: on a flow schedule it is not the timestep itself."""
    schedule = make_schedule(**SCHEDULES[name].model_dump())
    t = np.concatenate([np.arange(1000) + (schedule.name == "flow"), schedule.grid(steps)[0]])
    weights = zip(schedule.alpha(t).tolist(), schedule.sigma(t).tolist(), strict=True)
    return dict(zip(t.astype(np.float32).tolist(), weights, strict=True))


def drawn_by_python(case: dict[str, Any], registry: Registry) -> np.ndarray:
    """Latents by the runtime, with the network of latents.mjs."""
    manifest = manifest_of(SCHEDULES[case["schedule"]], case["prediction"])
    schedule = make_schedule(**manifest.schedule.model_dump())
    table = {"use": case["sampler"], **case["options"], "steps": case["steps"]}
    walk = registry.build("sampler", table, where="sampler")
    pictures = [PictureRequest("", seed) for seed in case["seeds"]]
    settings = DrawSettings(pictures, "", case["steps"], 1.0, table, walk, schedule, None, (3, 4), 1.0)
    exact = weights_of(case["schedule"], case["steps"])

    def network(x_t: np.ndarray, t: np.ndarray) -> np.ndarray:
        x = x_t.astype(np.float64)
        alpha, sigma = exact[float(t[0])]
        z = 1.5 * x - (0.2 * float(t[0])) / 1000
        x0 = z / (1 + np.abs(z))
        noise = (x - alpha * x0) / sigma
        outputs = {"eps": noise, "x0": x0, "v": alpha * noise - sigma * x0, "flow": noise - x0}
        return np.asarray(outputs[case["prediction"]], dtype=np.float32)

    backend = cast(Backend, SimpleNamespace(manifest=manifest))
    return draw_latents(backend, settings, network, pictures, None, lambda _, __: None)


@needs_node
def test_every_sampler_schedule_and_prediction_ends_where_pythons_does() -> None:
    all_cases = list(cases())
    tables = {name: grids(manifest_of(schedule)) for name, schedule in SCHEDULES.items()}
    drawn = json.loads(node("latents.mjs", given={"grids": tables, "cases": all_cases}))
    registry = Registry.load(kinds=("sampler",))
    for case, latents in zip(all_cases, drawn, strict=True):
        expected = drawn_by_python(case, registry)
        assert np.isfinite(expected).all(), case
        difference = np.abs(expected.ravel() - np.array(latents)).max()
        assert difference <= 1e-4 * max(1, np.abs(expected).max()), (case, difference)
    assert len(all_cases) > 2500


@needs_node
def test_the_page_knows_the_samplers_that_ship_and_their_defaults() -> None:
    ours = set(Registry.load(kinds=("sampler",)).names("sampler"))
    assert set(SAMPLERS) == set(OPTIONS) == ours
    found = evaluate(
        'import { SAMPLERS } from "PAGE/samplers.js"; console.log(JSON.stringify(Object.keys(SAMPLERS)));', 0
    )
    assert tuple(found) == SAMPLERS


def test_grids_hold_every_number_of_steps() -> None:
    for schedule in SCHEDULES.values():
        table = grids(manifest_of(schedule))
        made = make_schedule(**schedule.model_dump())
        assert [len(spacing) for spacing in table["spacings"].values()] == [MAX_STEPS] * len(SPACINGS)
        for steps in (1, 7, MAX_STEPS):
            t, alpha, sigma = made.grid(steps)
            points = table["spacings"]["trailing"][steps - 1]
            assert [table["t"][point] for point in points] == t.tolist()
            assert [table["alpha"][point] for point in points] == alpha[:-1].tolist()
            assert [table["sigma"][point] for point in points] == sigma[:-1].tolist()


def test_a_schedule_of_few_timesteps_has_grids_of_as_many() -> None:
    few = SCHEDULES["linear"].model_copy(update={"num_timesteps": 10})
    assert {len(spacing) for spacing in grids(manifest_of(few))["spacings"].values()} == {10}

"""Pictures drawn from a model, judged against real ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from ldmkit.evaluation.features import FeatureNetwork
from ldmkit.evaluation.metrics import Floats, Kid, distances, kernel_distance, paired_difference, precision_coverage
from ldmkit.runtime.backend import Backend
from ldmkit.runtime.generate import Step, draw
from ldmkit.runtime.request import DrawRequest, PictureRequest
from ldmkit.runtime.settings import resolve

BATCH = 20
NUM_SHOWN = 8
"""pictures in a row of `sheet`"""


@dataclass(frozen=True)
class Drawn:
    """Pictures of one network: picture k from the noise of seed + k."""

    pictures: list[Image.Image]
    prompts: list[str]
    """each one's, empty where drawn unconditionally"""
    latents: np.ndarray
    """(N, C, h, w) normalised"""
    features: Floats
    """(N, D)"""


@dataclass(frozen=True)
class Scores:
    """How near a set of pictures is to the reference."""

    kid: float
    kid_standard_error: float
    precision: float
    coverage: float

    @classmethod
    def of(cls, features: Floats, reference: Floats) -> "Scores":
        """features (N, D), reference (M, D)."""
        kid = kernel_distance(reference, features)
        return cls(kid.value, kid.standard_error, *precision_coverage(reference, features))


def draw_set(
    backend: Backend,
    prompts: Sequence[str],
    features: FeatureNetwork,
    *,
    num: int,
    seed: int,
    settings: Mapping[str, Any],
    progress: Callable[[int], Any],
) -> Drawn:
    """`num` pictures of the prompts in turn; `settings`: of `DrawRequest`, the model's own where they say nothing.

    Without prompts they are drawn unconditionally. `progress` gets the number of pictures drawn since its last call.
    """
    pictures: list[Image.Image] = []
    asked = [prompts[k % len(prompts)] if prompts else "" for k in range(num)]
    latents: list[np.ndarray] = []
    for first in range(0, num, BATCH):
        numbers = range(first, min(first + BATCH, num))
        wanted = [PictureRequest(asked[k], seed + k) for k in numbers]
        last = np.zeros((len(wanted), *_latent_shape(backend)))

        def keep(step: Step, last: np.ndarray = last) -> None:
            last[list(step.pictures)] = step.x0  # the last call's stays

        pictures += draw(backend, resolve(backend, DrawRequest(wanted, **settings)), batch_size=BATCH, on_step=keep)
        latents.append(last)
        progress(len(wanted))
    return Drawn(pictures, asked, np.concatenate(latents), features(pictures))


def _latent_shape(backend: Backend) -> tuple[int, int, int]:
    latent = backend.manifest.latent
    return latent.channels, latent.height, latent.width


def compare(reference: Floats, first: Drawn, second: Drawn) -> Kid:
    """KID of the second less that of the first, over pairs of pictures from the same seeds."""
    return paired_difference(reference, first.features, second.features)


def sheet(drawn: Drawn, reference: Floats, nearest: tuple[Floats, list[Image.Image]] | None = None) -> Image.Image:
    """Rows of pictures: the best, the worst, then those nearest to training pictures, each over its nearest one.

    Best and worst are by the distance to the nearest reference picture's features (M, D). `nearest`: each drawn
    picture's distance to its nearest training picture (N,), and those training pictures.
    """
    by_reference = np.argsort(distances(drawn.features, reference).min(axis=1), kind="stable")
    rows = [[drawn.pictures[k] for k in chosen] for chosen in (by_reference[:NUM_SHOWN], by_reference[-NUM_SHOWN:])]
    if nearest is not None:
        closest = np.argsort(nearest[0], kind="stable")[:NUM_SHOWN]
        rows += [[drawn.pictures[k] for k in closest], [nearest[1][k] for k in closest]]
    width, height = drawn.pictures[0].size
    whole = Image.new("RGB", (NUM_SHOWN * (width + 2) - 2, len(rows) * (height + 2) - 2), "white")
    for j, row in enumerate(rows):
        for i, picture in enumerate(row):
            whole.paste(picture.resize((width, height)), (i * (width + 2), j * (height + 2)))
    return whole


def table(rows: Mapping[str, Scores]) -> list[str]:
    """Lines to print: KID times 1000 with its standard error, precision, coverage."""
    lines = [f"  {'':<36} {'KID x1000':>16}  {'precision':>9}  {'coverage':>8}"]
    for name, row in rows.items():
        kid = f"{1000 * row.kid:.1f} ± {1000 * row.kid_standard_error:.1f}"
        lines.append(f"  {name:<36} {kid:>16}  {row.precision:>9.3f}  {row.coverage:>8.3f}")
    return lines


def as_json(rows: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    return {name: asdict(row) for name, row in rows.items()}

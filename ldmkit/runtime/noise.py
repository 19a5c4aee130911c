"""The noise that pictures start from: one source a picture, and ways between two of them."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Source:
    """Unit Gaussian noise of a seed, or of a point on the way from one seed to another.

    A source a picture, so that none depends on what it is drawn beside. PCG64 by name: what numpy's default generator
    is may change.
    """

    def __init__(self, seed: int, to_seed: int | None = None, fraction: float = 0.0) -> None:
        self._from = np.random.Generator(np.random.PCG64(seed))
        self._to = None if to_seed is None else np.random.Generator(np.random.PCG64(to_seed))
        self._fraction = fraction

    def draw(self, shape: tuple[int, ...]) -> Floats:
        """The next noise of this shape, float64."""
        noise = self._from.standard_normal(shape)
        return noise if self._to is None else slerp(noise, self._to.standard_normal(shape), self._fraction)


def slerp(a: Floats, b: Floats, fraction: float) -> Floats:
    """Spherical interpolation, Shoemake 1985: `a` at fraction 0, `b` at 1, along the great circle in between.

    A straight line between two noises passes through shorter vectors than a network has ever seen; the circle does
    not. Where one is nearly a multiple of the other the circle is undefined, and the straight line it is.
    """
    cosine = float(np.clip(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))
    angle = np.arccos(cosine)
    if abs(cosine) > 1 - 1e-9:
        return (1 - fraction) * a + fraction * b
    between: Floats = (np.sin((1 - fraction) * angle) * a + np.sin(fraction * angle) * b) / np.sin(angle)
    return between

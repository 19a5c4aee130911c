"""Distances between two sets of pictures, by their features. No torch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Kid:
    """Kernel inception distance, and its standard error over the choice of the pictures."""

    value: float
    standard_error: float


def kernel_distance(real: Floats, drawn: Floats) -> Kid:
    """KID, Binkowski et al. 2018, sec. 4: the unbiased squared MMD of the kernel (x . y / D + 1)^3.

    real (M, D), drawn (N, D) features of at least two pictures each. The standard error is that of the U-statistic to
    first order (Hoeffding 1948, sec. 5), from each picture's influence on the value. The spread over subsets that is
    often quoted is no error, since they overlap.
    """
    m, n = len(real), len(drawn)
    k_real, k_drawn, k_both = (
        (a @ b.T / real.shape[1] + 1) ** 3 for a, b in ((real, real), (drawn, drawn), (real, drawn))
    )
    within_real = (k_real.sum(1) - np.diag(k_real)) / (m - 1)  # (M,) each picture's mean over the others
    within_drawn = (k_drawn.sum(1) - np.diag(k_drawn)) / (n - 1)
    value = within_real.mean() + within_drawn.mean() - 2 * k_both.mean()
    of_real = 2 * (within_real - k_both.mean(1))
    of_drawn = 2 * (within_drawn - k_both.mean(0))
    variance = of_real.var(ddof=1) / m + of_drawn.var(ddof=1) / n
    return Kid(float(value), float(np.sqrt(variance)))


def paired_difference(real: Floats, first: Floats, second: Floats) -> Kid:
    """KID of `second` less that of `first`, and its standard error, where picture i of both was drawn from one seed.

    first, second (N, D). What the pairs have in common, the reference among it, leaves the error.
    """
    size = real.shape[1]

    def influence(drawn: Floats) -> tuple[float, Floats, Floats]:
        k_drawn, k_both = ((a @ b.T / size + 1) ** 3 for a, b in ((drawn, drawn), (real, drawn)))
        within = (k_drawn.sum(1) - np.diag(k_drawn)) / (len(drawn) - 1)
        value = within.mean() - 2 * k_both.mean()
        return float(value), 2 * (within - k_both.mean(0)), -2 * k_both.mean(1)

    (a, a_drawn, a_real), (b, b_drawn, b_real) = influence(first), influence(second)
    variance = (b_drawn - a_drawn).var(ddof=1) / len(first) + (b_real - a_real).var(ddof=1) / len(real)
    return Kid(b - a, float(np.sqrt(variance)))


def precision_coverage(real: Floats, drawn: Floats, *, k: int = 5) -> tuple[float, float]:
    """Precision (Kynkäänniemi et al. 2019, eq. 2) and coverage (Naeem et al. 2020, eq. 6), each in [0, 1].

    Around each of the real pictures (M, D), M > k, lies a ball that reaches to its k-th nearest other one. Precision is
    the share of the drawn pictures (N, D) that lie in any ball: whether they look real. Coverage is the share of the
    balls that hold a drawn picture: whether they are as varied. Of real pictures against others of the same kind,
    precision and coverage stay below 1 as well: quote both beside the held-out pictures'.
    """
    among_real = distances(real, real)
    np.fill_diagonal(among_real, np.inf)
    radius = np.partition(among_real, k - 1, axis=1)[:, k - 1]  # (M,)
    inside = distances(real, drawn) < radius[:, None]  # (M, N)
    return float(inside.any(axis=0).mean()), float(inside.any(axis=1).mean())


def distances(x: Floats, y: Floats) -> Floats:
    """(M, N) Euclidean distances between the rows of x (M, D) and y (N, D)."""
    square = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    found: Floats = np.sqrt(np.maximum(square, 0.0))
    return found

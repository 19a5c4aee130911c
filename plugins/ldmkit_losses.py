"""Plain losses of the autoencoder: l1, mse, kl."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from ldmkit import Loss, Reconstruction, hookimpl

PixelReduction = Annotated[
    Literal["mean", "sum"],
    Field(description="over one picture's values, 3 * size * size of them; over the batch it is always the mean"),
]


@hookimpl
def register_losses() -> Mapping[str, Callable[..., Loss]]:
    return {"l1": L1, "mse": MSE, "kl": KL}


def _reduce(values: Any, reduction: str) -> Any:
    """Mean over the batch of each picture's sum, or the mean over all; values are (B, ...)."""
    return values.flatten(1).sum(1).mean() if reduction == "sum" else values.mean()


@dataclass(frozen=True, kw_only=True)
class L1:
    """Absolute error of the pixels."""

    reduction: PixelReduction = "mean"

    def __call__(self, reconstruction: Reconstruction) -> Any:
        """A scalar; pixels span [-1, 1], so a mean lies in [0, 2] for pixels in range."""
        return _reduce((reconstruction.output.float() - reconstruction.target.float()).abs(), self.reduction)


@dataclass(frozen=True, kw_only=True)
class MSE:
    """Squared error of the pixels."""

    reduction: PixelReduction = "mean"

    def __call__(self, reconstruction: Reconstruction) -> Any:
        """A scalar; pixels span [-1, 1], so a mean lies in [0, 4] for pixels in range."""
        return _reduce((reconstruction.output.float() - reconstruction.target.float()).square(), self.reduction)


@dataclass(frozen=True, kw_only=True)
class KL:
    """KL divergence of the posterior from the unit Gaussian, Kingma & Welling 2014, eq. 10."""

    reduction: Annotated[
        Literal["sum", "mean"],
        Field(description="over one picture's latents; over the batch it is always the mean. In nats"),
    ] = "sum"

    def __call__(self, reconstruction: Reconstruction) -> Any:
        """A scalar in nats: per picture ("sum") or per latent value ("mean")."""
        # In fp32 whatever the precision: exp(logvar) of bf16 loses the small variances that matter here.
        mean, logvar = reconstruction.mean.float(), reconstruction.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)  # (B, C, h, w)
        return _reduce(divergence, self.reduction)

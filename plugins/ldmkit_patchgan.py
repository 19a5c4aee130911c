"""The adversarial loss of the autoencoder, with a discriminator of patches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from ldmkit import AdversarialLoss, DiscriminatorLoss, Reconstruction, hookimpl


@hookimpl
def register_losses() -> Mapping[str, Callable[..., AdversarialLoss]]:
    return {"patchgan": PatchGAN}


@dataclass(kw_only=True, eq=False)
class PatchGAN:
    """PatchGAN, Isola et al. 2017: a discriminator that judges patches, trained along with the autoencoder.

    With D(x) the logits, one per patch, means over batch and patches:

    | form | generator | discriminator |
    |---|---|---|
    | "seed" | softplus(-D(output)) | (softplus(-D(target)) + softplus(D(output))) / 2 |
    | "hinge" | -D(output) | (relu(1 - D(target)) + relu(1 + D(output))) / 2 |

    softplus(-D) is binary cross entropy against 1, softplus(D) against 0. Hinge: Lim & Ye 2017; both
    halved as in taming-transformers.

    Regularisation of the discriminator, w being `regularization_weight`:

    | regularization | penalty | |
    |---|---|---|
    | "r1" | w / 2 E[|grad D(target)|^2] | Mescheder et al. 2018, eq. 9; D of a picture is the mean over its patches |
    | "lecam" | w (E[(D(target) - a_fake)^2] + E[(D(output) - a_real)^2]) | R_LC of Tseng et al. 2021 |

    The anchors a_real and a_fake are moving averages of the mean logits, from 0, this batch's included. They are
    buffers of the discriminator, so that they are saved and restored with it.
    """

    form: Annotated[
        Literal["seed", "hinge"], Field(description="seed: binary cross entropy with logits; hinge: hinge loss")
    ] = "seed"
    channels: Annotated[
        tuple[Annotated[int, Field(gt=0)], ...],
        Field(min_length=1, description="width of each stride-2 convolution of the discriminator"),
    ] = (64, 128, 256, 512)
    norm_groups: Annotated[
        int, Field(gt=0, description="groups of the discriminator's norms; divides every width but the first")
    ] = 32
    regularization: Annotated[
        Literal["none", "r1", "lecam"],
        Field(description="of the discriminator; r1: flat around pictures; lecam: logits kept near each other's mean"),
    ] = "none"
    regularization_weight: Annotated[
        float | None,
        Field(gt=0, description="factor of the regularisation; left out: that of its paper, 10 for r1, 0.3 for lecam"),
    ] = None
    lecam_decay: Annotated[
        float, Field(ge=0, lt=1, description="decay of lecam's moving averages of the logits, a part of a batch each")
    ] = 0.99
    discriminator: Any = field(init=False, repr=False)
    """the PatchDiscriminator; the trainer may put it on a device or wrap it"""

    def __post_init__(self) -> None:
        import torch

        from ldmkit import PatchDiscriminator

        self.discriminator = PatchDiscriminator(channels=self.channels, norm_groups=self.norm_groups)
        self._bare = self.discriminator
        if self.regularization == "lecam":
            for name in ("anchor_real", "anchor_fake"):
                self._bare.register_buffer(name, torch.zeros(()))

    def __call__(self, reconstruction: Reconstruction) -> Any:
        """The generator's term, a scalar. Its gradient also reaches the discriminator's parameters."""
        from torch.nn.functional import softplus

        fake = self.discriminator(reconstruction.output).float()  # (B, 1, h, w)
        if self.form == "hinge":
            return -fake.mean()
        return softplus(-fake).mean()

    def discriminator_loss(self, reconstruction: Reconstruction) -> DiscriminatorLoss:
        """The discriminator's own loss; no gradient reaches the autoencoder."""
        from torch.nn.functional import relu, softplus

        target = reconstruction.target
        if self.regularization == "r1":
            target = target.detach().requires_grad_()
        real = self.discriminator(target).float()  # (B, 1, h, w)
        fake = self.discriminator(reconstruction.output.detach()).float()
        if self.form == "hinge":
            loss = (relu(1 - real).mean() + relu(1 + fake).mean()) / 2
        else:
            loss = (softplus(-real).mean() + softplus(fake).mean()) / 2
        penalty = self._penalty(target, real, fake)
        return DiscriminatorLoss(loss, real.detach().mean(), fake.detach().mean(), penalty)

    def _penalty(self, target: Any, real: Any, fake: Any) -> Any:
        import torch

        if self.regularization == "r1":
            weight = 10.0 if self.regularization_weight is None else self.regularization_weight
            # Of the sum, then divided in fp32: of the mean it might be too small for half precision.
            (gradient,) = torch.autograd.grad(real.sum(), target, create_graph=True)
            gradient = gradient.float() / real[0].numel()
            return weight / 2 * gradient.square().flatten(1).sum(1).mean()
        if self.regularization == "lecam":
            weight = 0.3 if self.regularization_weight is None else self.regularization_weight
            anchor_real, anchor_fake = self._bare.anchor_real, self._bare.anchor_fake
            with torch.no_grad():
                anchor_real.lerp_(real.mean(), 1 - self.lecam_decay)
                anchor_fake.lerp_(fake.mean(), 1 - self.lecam_decay)
            return weight * ((real - anchor_fake).square().mean() + (fake - anchor_real).square().mean())
        return None

"""The adversarial loss of the autoencoder, with a discriminator of patches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from ldmkit import AdversarialLoss, Reconstruction, hookimpl


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
    discriminator: Any = field(init=False, repr=False)
    """the PatchDiscriminator; the trainer may put it on a device or wrap it"""

    def __post_init__(self) -> None:
        from ldmkit import PatchDiscriminator

        self.discriminator = PatchDiscriminator(channels=self.channels, norm_groups=self.norm_groups)

    def __call__(self, reconstruction: Reconstruction) -> Any:
        """The generator's term, a scalar. Its gradient also reaches the discriminator's parameters."""
        from torch.nn.functional import softplus

        fake = self.discriminator(reconstruction.output).float()  # (B, 1, h, w)
        if self.form == "hinge":
            return -fake.mean()
        return softplus(-fake).mean()

    def discriminator_loss(self, reconstruction: Reconstruction) -> Any:
        """The discriminator's own term, a scalar; no gradient reaches the autoencoder."""
        from torch.nn.functional import relu, softplus

        real = self.discriminator(reconstruction.target).float()  # (B, 1, h, w)
        fake = self.discriminator(reconstruction.output.detach()).float()
        if self.form == "hinge":
            return (relu(1 - real).mean() + relu(1 + fake).mean()) / 2
        return (softplus(-real).mean() + softplus(fake).mean()) / 2

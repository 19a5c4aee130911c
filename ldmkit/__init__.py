"""ldmkit: train a latent diffusion model of your own. This module is all that a plugin may import."""

from typing import TYPE_CHECKING, Any

from ldmkit.errors import LdmkitError

if TYPE_CHECKING:
    from ldmkit.components.hookspecs import hookimpl
    from ldmkit.components.hub import load_pretrained, model_name
    from ldmkit.components.protocols import (
        AdversarialLoss,
        Captioner,
        Denoise,
        DiscriminatorLoss,
        Loss,
        Picture,
        Reconstruction,
        Sampler,
        Schedule,
        TextEncoder,
    )
    from ldmkit.models.discriminator import PatchDiscriminator

__version__ = "0.1.0"

# Looked up on first use, so that `ldmkit --help` imports neither pluggy nor torch.
_HOMES = {
    "hookimpl": "ldmkit.components.hookspecs",
    "AdversarialLoss": "ldmkit.components.protocols",
    "load_pretrained": "ldmkit.components.hub",
    "model_name": "ldmkit.components.hub",
    "Captioner": "ldmkit.components.protocols",
    "Denoise": "ldmkit.components.protocols",
    "DiscriminatorLoss": "ldmkit.components.protocols",
    "Loss": "ldmkit.components.protocols",
    "Picture": "ldmkit.components.protocols",
    "Reconstruction": "ldmkit.components.protocols",
    "Sampler": "ldmkit.components.protocols",
    "Schedule": "ldmkit.components.protocols",
    "TextEncoder": "ldmkit.components.protocols",
    "PatchDiscriminator": "ldmkit.models.discriminator",
}

__all__ = [
    "AdversarialLoss",
    "Captioner",
    "Denoise",
    "DiscriminatorLoss",
    "LdmkitError",
    "Loss",
    "PatchDiscriminator",
    "Picture",
    "Reconstruction",
    "Sampler",
    "Schedule",
    "TextEncoder",
    "__version__",
    "hookimpl",
    "load_pretrained",
    "model_name",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ldmkit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

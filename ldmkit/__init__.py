"""ldmkit: train a latent diffusion model of your own. This module is all that a plugin may import."""

from typing import TYPE_CHECKING, Any

from ldmkit.errors import LdmkitError

if TYPE_CHECKING:
    from ldmkit.components import (
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
    from ldmkit.hookspecs import hookimpl
    from ldmkit.hub import load_pretrained, model_name
    from ldmkit.models.discriminator import PatchDiscriminator

__version__ = "0.1.0"

# Looked up on first use, so that `ldmkit --help` imports neither pluggy nor torch.
_HOMES = {
    "hookimpl": "ldmkit.hookspecs",
    "AdversarialLoss": "ldmkit.components",
    "load_pretrained": "ldmkit.hub",
    "model_name": "ldmkit.hub",
    "Captioner": "ldmkit.components",
    "Denoise": "ldmkit.components",
    "DiscriminatorLoss": "ldmkit.components",
    "Loss": "ldmkit.components",
    "Picture": "ldmkit.components",
    "Reconstruction": "ldmkit.components",
    "Sampler": "ldmkit.components",
    "Schedule": "ldmkit.components",
    "TextEncoder": "ldmkit.components",
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

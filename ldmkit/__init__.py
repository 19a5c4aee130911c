"""ldmkit: train a latent diffusion model of your own. This module is all that a plugin may import."""

from typing import TYPE_CHECKING, Any

from ldmkit.errors import LdmkitError

if TYPE_CHECKING:  # what type checkers read in place of `_HOMES`; `as` is their sign for a public name
    from ldmkit.components.hookspecs import hookimpl as hookimpl
    from ldmkit.components.hub import hub_commit as hub_commit
    from ldmkit.components.hub import load_pretrained as load_pretrained
    from ldmkit.components.protocols import AdversarialLoss as AdversarialLoss
    from ldmkit.components.protocols import Captioner as Captioner
    from ldmkit.components.protocols import Denoise as Denoise
    from ldmkit.components.protocols import DiscriminatorLoss as DiscriminatorLoss
    from ldmkit.components.protocols import Files as Files
    from ldmkit.components.protocols import Loss as Loss
    from ldmkit.components.protocols import Picture as Picture
    from ldmkit.components.protocols import PromptReader as PromptReader
    from ldmkit.components.protocols import Reconstruction as Reconstruction
    from ldmkit.components.protocols import Sampler as Sampler
    from ldmkit.components.protocols import Schedule as Schedule
    from ldmkit.components.protocols import TextEncoder as TextEncoder
    from ldmkit.models.discriminator import PatchDiscriminator as PatchDiscriminator

__version__ = "0.1.0"

# Looked up on first use, so that `ldmkit --help` imports neither pluggy nor torch.
_PROTOCOLS = (
    *("AdversarialLoss", "Captioner", "Denoise", "DiscriminatorLoss", "Files", "Loss"),
    *("Picture", "PromptReader", "Reconstruction", "Sampler", "Schedule", "TextEncoder"),
)
_HOMES = {
    "hookimpl": "ldmkit.components.hookspecs",
    **dict.fromkeys(("hub_commit", "load_pretrained"), "ldmkit.components.hub"),
    **dict.fromkeys(_PROTOCOLS, "ldmkit.components.protocols"),
    "PatchDiscriminator": "ldmkit.models.discriminator",
}
__all__ = ["LdmkitError", "__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ldmkit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

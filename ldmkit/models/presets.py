"""Keyword arguments that rebuild the seed's four networks, parameter for parameter."""

from typing import Any

SEED_VAE: dict[str, Any] = {
    "channels": (64, 128, 256, 512),
    "latent_channels": 4,
    "num_res_blocks": 2,
    "attention_levels": (3,),
    "norm_groups": 32,
    "dropout": 0.0,
}
"""41,275,339 parameters; 256x256 pixels become 4x32x32 latents."""

SEED_DISCRIMINATOR: dict[str, Any] = {"channels": (64, 128, 256, 512), "norm_groups": 32}
"""1,557,377 parameters."""

SEED_UNET: dict[str, Any] = {
    "in_channels": 4,
    "channels": (64, 64, 128, 128, 256),
    "num_res_blocks": 2,
    "attention_levels": (3, 4),
    "context_dim": None,
    "time_dim": 256,
    "norm_groups": 32,
    "dropout": 0.0,
}
"""11,401,284 parameters; no text."""

SEED_UNET_T2I: dict[str, Any] = {
    **SEED_UNET,
    "context_dim": 768,
    "num_heads": 8,
    # The seed attends to all 77 states, padding included.
    "mask_padding": False,
}
"""14,586,052 parameters; context of 77x768 CLIP states."""

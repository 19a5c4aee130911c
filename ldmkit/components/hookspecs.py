"""The hooks that a plugin may implement; `docs/plugins.md` documents each."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pluggy

from ldmkit.components.protocols import Captioner, Loss, Sampler, TextEncoder

hookspec = pluggy.HookspecMarker("ldmkit")
hookimpl = pluggy.HookimplMarker("ldmkit")


@hookspec
def register_captioners() -> Mapping[str, Callable[..., Captioner]]:  # type: ignore[empty-body]
    """Captioners by name."""


@hookspec
def register_text_encoders() -> Mapping[str, Callable[..., TextEncoder]]:  # type: ignore[empty-body]
    """Text encoders by name."""


@hookspec
def register_losses() -> Mapping[str, Callable[..., Loss]]:  # type: ignore[empty-body]
    """Losses of the autoencoder by name."""


@hookspec
def register_samplers() -> Mapping[str, Callable[..., Sampler]]:  # type: ignore[empty-body]
    """Samplers by name."""


@hookspec
def log_metrics(run_dir: Path, stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Called at each logging step of each training stage."""

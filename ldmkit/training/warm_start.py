"""First weights from elsewhere, into the networks of a training stage; nothing but weights: no optimizer, no step."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ldmkit.components.protocols import TextEncoder
from ldmkit.components.registry import Registry
from ldmkit.errors import LdmkitError
from ldmkit.models.build import build_text_to_image, build_unet
from ldmkit.recipe import Recipe
from ldmkit.run.checkpoint import load_weights
from ldmkit.run.files import check, fingerprint
from ldmkit.run.first_weights import Start, kept_starts, misfit, shapes, ways_on
from ldmkit.run.networks import fresh_autoencoder
from ldmkit.run.parts import PARTS
from ldmkit.run.workspace import Workspace

Shapes = Mapping[str, tuple[int, ...]]
T = TypeVar("T")
_UNET, _TEXT = "unet.", "text_encoder."


def check_starts(recipe: Recipe, registry: Registry, starts: Sequence[Start]) -> None:
    """Raises LdmkitError where weights do not fit the recipe's networks, naming a tensor and both its shapes.

    A text encoder that is trained along is left out: its size follows from captions that may not be there yet.
    """
    autoencoder = fresh_autoencoder(recipe)
    for start in starts:
        with torch.device("meta"):
            network: nn.Module = autoencoder
            if start.part == "unet":
                network = build_unet(recipe, autoencoder.latent_channels)
            elif start.part == "t2i":
                encoder: TextEncoder = registry.build("text_encoder", recipe.text.table(), where="[text]")
                network = build_text_to_image(recipe, autoencoder.latent_channels, encoder, None)
        found = {
            name: shape
            for name, shape in _ours(network, shapes(Path(start.file))).items()
            if not name.startswith(_TEXT)
        }
        _refuse_misfit(start, found, _shapes(network.state_dict()))


def load_start(workspace: Workspace, part: str, network: nn.Module) -> None:
    """Loads the weights that the run's `part` starts from into its network, where it does not start from random ones.

    Raises LdmkitError where they are damaged, do not fit, or hold a text encoder of other words.
    """
    start = kept_starts(workspace.run_dir).get(part)
    if start is None:
        return
    file = Path(start.file)
    try:
        whole = hashlib.sha256(file.read_bytes()).hexdigest() == start.sha256
    except OSError:
        whole = False
    if not whole:
        raise LdmkitError(f"{file}: damaged or gone; {ways_on(file.parent)}")
    if start.tokenizer:
        words = workspace.folder("text") / "tokenizer.json"
        check(words)
        tokenizer = json.loads(words.read_text(encoding="utf-8"))
        if fingerprint(tokenizer) != start.tokenizer:
            raise LdmkitError(
                f"{start.source}: its text encoder knows the words of other captions, which these are not; "
                f"{_unet_alone(start)}"
            )
    tensors = _ours(network, load_weights(file))
    own = network.state_dict()
    if not any(name.startswith(_TEXT) for name in tensors) and any(name.startswith(_TEXT) for name in own):
        own = {name: tensor for name, tensor in own.items() if not name.startswith(_TEXT)}
        workspace.reporter.line(f"{part}: {start.source} holds no text encoder: this one's first weights are random")
    found, wanted = _shapes(tensors), _shapes(own)
    _refuse_misfit(start, found, wanted)
    network.load_state_dict(tensors, strict=False)  # what is missing is a text encoder that starts anew


def _ours(network: nn.Module, tensors: Mapping[str, T]) -> dict[str, T]:
    """A U-Net's weights alone under the names that they have beside a text encoder's."""
    beside = any(name.startswith(_UNET) for name in network.state_dict())
    alone = not any(name.startswith((_UNET, _TEXT)) for name in tensors)
    return {_UNET + name if beside and alone else name: value for name, value in tensors.items()}


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _refuse_misfit(start: Start, found: Shapes, wanted: Shapes) -> None:
    if (told := misfit(found, wanted)) is not None:
        also = f", or {_unet_alone(start)}" if _TEXT in told else ""
        raise LdmkitError(
            f"--init-from {start.source}: does not fit [{start.part}]: {told}. Give the recipe the networks of these "
            f"weights{also}"
        )


def _unet_alone(start: Start) -> str:
    return f"start from its U-Net alone: `ldmkit export safetensors` writes it as {PARTS[start.part].weights}"

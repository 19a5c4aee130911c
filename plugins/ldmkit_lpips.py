"""Perceptual loss of the autoencoder, by the `lpips` package."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ldmkit import LdmkitError, Loss, Reconstruction, hookimpl

if TYPE_CHECKING:
    import torch


@hookimpl
def register_losses() -> Mapping[str, Callable[..., Loss]]:
    return {"lpips": LPIPS}


@dataclass(kw_only=True, eq=False)
class LPIPS:
    """LPIPS, Zhang et al. 2018, version 0.1: distance of deep features, weighted by human judgement.

    Frozen, and in fp32 whatever the precision of the training.

    Raises:
        LdmkitError: the backbone's weights are neither given, nor cached, nor to be downloaded.
    """

    backbone: Annotated[Literal["vgg", "alex", "squeeze"], Field(description="network whose features are compared")] = (
        "vgg"
    )
    backbone_weights: Annotated[
        str | None,
        Field(
            min_length=1,
            description="torchvision state dict of the backbone (.pth or .safetensors); "
            "without it torch hub's cache, then the download",
        ),
    ] = None
    network: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # At once and not at the first batch: missing weights must show before anything is trained.
        self.network = _build(self.backbone, self._backbone_state())

    def __call__(self, reconstruction: Reconstruction) -> Any:
        """A scalar >= 0, the mean over the batch."""
        import torch

        device = reconstruction.output.device
        network = self.network.to(device)
        with torch.autocast(device.type, enabled=False):
            return network(reconstruction.output.float(), reconstruction.target.float()).mean()  # of (B, 1, 1, 1)

    def _backbone_state(self) -> "dict[str, torch.Tensor]":
        from http.client import HTTPException

        import torch
        from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

        if self.backbone_weights is not None:
            return _read(Path(self.backbone_weights))
        url = {"vgg": VGG16_Weights, "alex": AlexNet_Weights, "squeeze": SqueezeNet1_1_Weights}[
            self.backbone
        ].IMAGENET1K_V1.url
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                # torchvision puts the first digits of the SHA-256 into the name; they are checked here.
                torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rsplit("-", 1)[1])
            except (OSError, HTTPException, RuntimeError) as error:
                raise LdmkitError(
                    f"the weights of the {self.backbone} backbone are not in {path.parent} and cannot be "
                    f"downloaded ({error}): copy torchvision's {path.name} there from a machine that has it, "
                    f'or name a copy with backbone_weights = "PATH", or leave this loss out'
                ) from error
        return _read(path)


def _read(path: Path) -> "dict[str, torch.Tensor]":
    """A state dict from .safetensors, or from a pickle of which only tensors are accepted."""
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise LdmkitError(f"backbone_weights: no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle fails in more ways than can be listed
        raise LdmkitError(f"{path} holds no state dict: {(str(error) or repr(error)).splitlines()[0]}") from error
    if not isinstance(state, dict):
        raise LdmkitError(f"{path} holds no state dict but a {type(state).__name__}")
    return state


def _build(backbone: str, state: "Mapping[str, torch.Tensor]") -> "torch.nn.Module":
    """lpips.LPIPS around the torchvision state dict `state`, in eval mode and frozen."""
    import lpips
    import torch

    # On the meta device the random backbone, which is thrown away, costs neither time nor memory,
    # and leaves the global random numbers where they were.
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # lpips says pretrained=
        network: torch.nn.Module = lpips.LPIPS(net=backbone, pretrained=False, pnet_rand=True, verbose=False)
    features = network.get_submodule("net")
    # lpips cuts torchvision's `features` into slices but keeps the numbers: slice2.5.bias is features.5.bias.
    tensors: dict[str, torch.Tensor] = {}
    for key, wanted in features.state_dict().items():
        source = f"features.{key.partition('.')[2]}"
        tensor = state.get(source)
        if not isinstance(tensor, torch.Tensor) or tensor.shape != wanted.shape:
            raise LdmkitError(
                f"these weights are not those of torchvision's {backbone} backbone: "
                f"{source} must be a tensor of shape {tuple(wanted.shape)}"
            )
        tensors[key] = tensor.float()
    features.load_state_dict(tensors, assign=True)
    linear = _read(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{backbone}.pth")
    network.load_state_dict(linear, strict=False, assign=True)  # the file holds the linear layers alone
    return network.requires_grad_(False).eval()

"""The text U-Net with its text encoder, where the encoder is trained along with it."""

from torch import Tensor, nn

from ldmkit.models.unet import UNet


class TextToImage(nn.Module):
    """Rombach et al. 2022: an encoder trained jointly with the U-Net, or a U-Net that is handed cached states."""

    def __init__(self, unet: UNet, text_encoder: nn.Module | None) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """x_t (B, C, H, W), t (B,), text: ids (B, L) where there is an encoder, else states (B, L, D); mask (B, L)."""
        context = text if self.text_encoder is None else self.text_encoder(text, mask)
        return self.unet(x_t, t, context, mask)  # type: ignore[no-any-return]

"""TAESD's form against diffusers' own class with the same weights, and against a real pretrained one where it is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from ldmkit.errors import LdmkitError
from ldmkit.models.tiny_autoencoder import TinyDecoder, TinyEncoder, shrinks_by, tiny_layers

SHARED = Path(__file__).parents[2] / ".." / "shared"


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.fixture(scope="module")
def theirs() -> AutoencoderTiny:
    torch.manual_seed(0)
    blocks = {"num_encoder_blocks": (1, 2, 1), "num_decoder_blocks": (2, 1, 1)}
    widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    return AutoencoderTiny(latent_channels=5, **blocks, **widths).eval()


@torch.no_grad()
def test_encoder_is_that_of_diffusers(theirs: AutoencoderTiny) -> None:
    state = theirs.encoder.layers.state_dict()
    layers = tiny_layers(shapes(state), decoder=False)
    layers.load_state_dict(state)
    pixels = torch.rand(2, 3, 24, 16) * 2 - 1
    mean, logvar = TinyEncoder(layers)(pixels).chunk(2, dim=1)
    torch.testing.assert_close(mean, theirs.encoder(pixels))
    assert (logvar == -30).all()
    assert shrinks_by(layers) == 4


@torch.no_grad()
def test_decoder_is_that_of_diffusers(theirs: AutoencoderTiny) -> None:
    # Published files count the clamp as a layer; diffusers has it outside.
    state = {
        f"{int(name.partition('.')[0]) + 1}.{name.partition('.')[2]}": tensor
        for name, tensor in theirs.decoder.layers.state_dict().items()
    }
    layers = tiny_layers(shapes(state), decoder=True)
    layers.load_state_dict(state)
    z = torch.randn(2, 5, 4, 6) * 3  # some of it clamped
    torch.testing.assert_close(TinyDecoder(layers)(z), theirs.decoder(z))


@pytest.mark.parametrize("change", ["another layer", "a linear layer", "names", "nothing"])
def test_weights_of_another_form_are_refused(change: str, theirs: AutoencoderTiny) -> None:
    found = shapes(theirs.encoder.layers.state_dict())
    match change:
        case "another layer":
            found["3.conv.6.weight"] = (8, 8, 3, 3)
        case "a linear layer":
            found["0.weight"] = (8, 27)
        case "names":
            found = {f"encoder.{name}": shape for name, shape in found.items()}
        case "nothing":
            found = {}
    with pytest.raises(LdmkitError, match="no autoencoder in TAESD's form"):
        tiny_layers(found, decoder=False)


@pytest.mark.skipif(not (SHARED / "weights" / "taef2").is_dir(), reason="the pretrained autoencoder is not here")
@torch.no_grad()
def test_a_real_one_gives_back_photographs() -> None:
    """27.4 dB on these cats at 64x64, as its README says."""
    coders = []
    for kind, make in (("encoder", TinyEncoder), ("decoder", TinyDecoder)):
        file = SHARED / "weights" / "taef2" / f"taef2_{kind}.pth"
        state = torch.load(file, weights_only=True)
        layers = tiny_layers(shapes(state), decoder=kind == "decoder")
        layers.load_state_dict(state)
        coders.append(make(layers).eval())
    files = sorted((SHARED / "data" / "afhq-cats-reference").rglob("*.jpg"))[:24]
    pictures = [Image.open(file).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR) for file in files]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 127.5 - 1
    back = coders[1](coders[0](pixels).chunk(2, dim=1)[0]).clamp(-1, 1)
    psnr = 10 * torch.log10(4 / ((back - pixels) ** 2).flatten(1).mean(1))
    assert psnr.mean() == pytest.approx(27.4, abs=0.7)

"""The networks' parts against published formulas and torch's own attention; masks, sizes, starting point."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from ldmkit.errors import LdmkitError
from ldmkit.models.autoencoder import AutoencoderKL, Posterior, largest_components
from ldmkit.models.blocks import Attention, ResidualBlock, timestep_embedding
from ldmkit.models.convert import SEED_DISCRIMINATOR, SEED_UNET, SEED_UNET_T2I, SEED_VAE
from ldmkit.models.denoiser import Denoiser
from ldmkit.models.discriminator import PatchDiscriminator
from ldmkit.models.dit import DiT
from ldmkit.models.unet import UNet

N = TypeVar("N", bound=nn.Module)
TEXT: dict[str, Any] = {"channels": (8, 8, 16), "attention_levels": (2,), "context_dim": 6, "num_heads": 2}
SMALL: dict[str, Any] = {"norm_groups": 4, "time_dim": 16}

BUILDS: dict[str, Callable[..., Denoiser]] = {
    "unet": partial(UNet, **TEXT, **SMALL),
    "dit": partial(DiT, patch_size=4, width=16, depth=2, num_heads=2, context_dim=6),
}
of_each_network = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def waken(network: N) -> N:
    """Random values everywhere, so that the blocks which start at zero take part."""
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.eval()


@pytest.mark.parametrize(
    ("build", "options", "count"),
    [
        (AutoencoderKL, SEED_VAE, 41_275_339),
        (PatchDiscriminator, SEED_DISCRIMINATOR, 1_557_377),
        (UNet, SEED_UNET, 11_401_284),
        (UNet, SEED_UNET_T2I, 14_586_052),
    ],
)
def test_presets_have_the_seeds_parameters(build: Any, options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build(**options).parameters()) == count


def test_time_embedding_is_the_published_formula() -> None:
    times, dim = [0.0, 0.25, 7.0, 999.0], 16
    expected = [[f(t / 10000 ** (2 * i / dim)) for f in (math.sin, math.cos) for i in range(dim // 2)] for t in times]
    found = timestep_embedding(torch.tensor(times), dim)
    assert (found - torch.tensor(expected)).abs().max() < 1e-4  # the last bits of 999 in float32
    found = timestep_embedding(torch.tensor(times, dtype=torch.float64), dim)
    assert (found - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-12


def test_time_embedding_of_half_precision_keeps_its_digits() -> None:
    t = torch.tensor([1000.0], dtype=torch.float16)
    assert torch.equal(timestep_embedding(t, 16), timestep_embedding(t.float(), 16))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs_multihead_attention(masked: bool) -> None:
    ours = waken(Attention(16, num_heads=4, context_dim=6, qkv_bias=True))
    theirs = nn.MultiheadAttention(16, 4, kdim=6, vdim=6, batch_first=True).eval()
    assert isinstance(ours, Attention)
    with torch.no_grad():
        theirs.q_proj_weight.copy_(ours.to_q.weight)
        theirs.k_proj_weight.copy_(ours.to_k.weight)
        theirs.v_proj_weight.copy_(ours.to_v.weight)
        theirs.in_proj_bias.copy_(torch.cat([ours.to_q.bias, ours.to_k.bias, ours.to_v.bias]))
        theirs.out_proj.load_state_dict(ours.to_out.state_dict())
    x, context = draw(2, 9, 16), draw(2, 5, 6, seed=1)
    mask = torch.arange(5) < torch.tensor([[2], [5]]) if masked else None
    expected, _ = theirs(x, context, context, key_padding_mask=None if mask is None else ~mask)
    assert (ours(x, context, mask) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_training_in_16_bits_is_float32s(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a CPU does not call torch's fused kernel, whose backward pass is slow: the same output and gradients."""
    attention = waken(Attention(32, num_heads=2, context_dim=12, qk_norm=True))
    x, context = draw(2, 9, 32), draw(2, 5, 12, seed=1)
    mask = torch.arange(5) < torch.tensor([[2], [0]]) if masked else None
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        attention.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            out = attention(x, context, mask)
        (out.float() * draw(2, 9, 32, seed=2)).sum().backward()
        found.append(
            [out.detach(), *(weight.grad.clone() for weight in attention.parameters() if weight.grad is not None)]
        )
        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", None)  # not in 16 bits
    exact, half = found
    assert len(exact) == len(half) == 11
    for expected, close in zip(exact, half, strict=True):
        assert (close.float() - expected).norm() <= 0.03 * expected.norm() + 1e-3


@torch.no_grad()
@of_each_network
@pytest.mark.parametrize("mask_padding", [True, False])
def test_padding_is_seen_only_without_the_mask(mask_padding: bool, build: Callable[..., Denoiser]) -> None:
    network = waken(build(mask_padding=mask_padding))
    x, t, context = draw(2, 4, 8, 8), torch.tensor([1.0, 500.0]), draw(2, 5, 6)
    mask = (torch.arange(5) < torch.tensor([[2], [4]])).long()
    other = torch.where(mask[..., None] == 1, context, 9.0)
    changed = (network(x, t, context, mask) - network(x, t, other, mask)).abs().amax(dim=(1, 2, 3))
    assert torch.all(changed == 0) if mask_padding else torch.all(changed > 1e-3)
    # What the mask lets through is seen either way.
    other = torch.where(mask[..., None] == 1, 9.0, context)
    assert torch.all((network(x, t, context, mask) - network(x, t, other, mask)).abs().amax(dim=(1, 2, 3)) > 1e-3)


@of_each_network
@torch.no_grad()
def test_cutting_the_padding_off_is_the_same_as_masking_it(build: Callable[..., Denoiser]) -> None:
    network = waken(build())
    x, t, context = draw(1, 4, 8, 8), torch.tensor([31.5]), draw(1, 5, 6)
    masked = network(x, t, context, torch.tensor([[1, 1, 1, 0, 0]]))
    assert (masked - network(x, t, context[:, :3])).abs().max() < 1e-5


@of_each_network
def test_caption_without_a_token_gives_finite_output_and_gradient(build: Callable[..., Denoiser]) -> None:
    network = waken(build())
    context = draw(2, 5, 6).requires_grad_()
    output = network(draw(2, 4, 8, 8), torch.zeros(2), context, torch.tensor([[0] * 5, [1] * 5]))
    output.square().sum().backward()
    assert output.isfinite().all()
    assert context.grad is not None
    assert torch.all(context.grad[0] == 0)
    assert torch.any(context.grad[1] != 0)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's exporter uses what its own dependencies deprecate
def test_caption_without_a_token_means_the_same_to_onnxruntime() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    attention = waken(Attention(16, num_heads=2, context_dim=6))
    inputs = draw(2, 9, 16), draw(2, 5, 6), torch.arange(5) < torch.tensor([[0], [3]])
    program = torch.onnx.export(attention, inputs, dynamo=True, input_names=["x", "context", "mask"], verbose=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: x.numpy() for name, x in zip(["x", "context", "mask"], inputs, strict=True)})
    assert (torch.from_numpy(found) - attention(*inputs)).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    "build",
    [
        *BUILDS.values(),
        partial(UNet, channels=(8, 12), attention_levels=(), num_res_blocks=1, **SMALL),
        partial(DiT, patch_size=1, width=16, depth=1, num_heads=2),
    ],
)
def test_a_row_of_the_batch_does_not_depend_on_the_others(build: Callable[..., Denoiser]) -> None:
    network = waken(build())
    context = draw(3, 5, 6) if network.context_dim else None
    x, t = draw(3, 4, 8, 12), torch.tensor([0.0, 12.5, 999.0])
    together = network(x, t, context)
    assert together.shape == x.shape
    for i in range(3):
        alone = network(x[i : i + 1], t[i : i + 1], None if context is None else context[i : i + 1])
        assert (together[i] - alone[0]).abs().max() < 1e-5


@of_each_network
@torch.no_grad()
def test_fractional_timesteps_differ(build: Callable[..., Denoiser]) -> None:
    network = waken(build())
    x, context = draw(1, 4, 8, 8).expand(2, -1, -1, -1), draw(1, 5, 6).expand(2, -1, -1)
    outputs = network(x, torch.tensor([500.0, 500.5]), context)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@torch.no_grad()
def test_unet_starts_at_zero_and_its_residual_blocks_as_shortcuts() -> None:
    network = UNet(**TEXT, **SMALL)
    assert torch.all(network(draw(1, 4, 8, 8), torch.zeros(1), draw(1, 5, 6)) == 0)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 2 * 2 + 2 + 2 * 2
    for block in blocks:
        x = draw(1, block.norm1.num_channels, 4, 4)
        assert torch.equal(block(x, draw(1, 16)), block.shortcut(x))


def test_every_parameter_learns() -> None:
    """No part of a network is built and left out of its forward pass."""
    denoisers = [waken(build()) for build in BUILDS.values()]
    for network in denoisers:
        network(draw(1, 4, 8, 8), torch.ones(1), draw(1, 5, 6)).square().sum().backward()
    vae = waken(AutoencoderKL((8, 8, 16), attention_levels=(2,), norm_groups=4))
    output, posterior = vae(draw(1, 3, 16, 16), draw(1, 4, 4, 4))
    (output.square().sum() + posterior.logvar.sum()).backward()
    for network in (*denoisers, vae):
        assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_posterior_is_torchs_normal_distribution() -> None:
    posterior = Posterior(mean=draw(1, 4, 2, 2), logvar=draw(1, 4, 2, 2, seed=1))
    normal = torch.distributions.Normal(posterior.mean, posterior.logvar.exp().sqrt())
    assert torch.allclose(posterior.std, normal.stddev)
    noise = draw(1, 4, 2, 2, seed=2)
    torch.testing.assert_close(normal.cdf(posterior.sample(noise)), torch.special.ndtr(noise))  # type: ignore[no-untyped-call]


@torch.no_grad()
@pytest.mark.parametrize(("bias", "logvar"), [(100.0, 20.0), (-100.0, -30.0)])
def test_log_variance_is_clamped(bias: float, logvar: float) -> None:
    vae = AutoencoderKL((8, 8), norm_groups=4)
    assert vae.encoder.conv_out.bias is not None
    vae.encoder.conv_out.bias[4:] = bias
    assert torch.all(vae.encode(draw(1, 3, 4, 4)).logvar == logvar)


@torch.no_grad()
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_autoencoder_sizes(levels: int) -> None:
    vae = AutoencoderKL((8,) * (levels + 1), latent_channels=3, num_res_blocks=1, norm_groups=4)
    pixels = draw(2, 3, 16, 24)
    output, posterior = vae(pixels, torch.zeros(2, 3, 16 // 2**levels, 24 // 2**levels))
    assert (vae.downsample, vae.latent_channels) == (2**levels, 3)
    assert output.shape == pixels.shape
    assert torch.equal(output, vae.decode(posterior.mean))


@torch.no_grad()
def test_the_linear_shortcut_begins_as_a_block_transform() -> None:
    """All components of a patch give the picture back; of some, the best choice for a first-order Markov process."""
    options: dict[str, Any] = {"channels": [8, 8], "patch_size": 2, "num_res_blocks": 1, "norm_groups": 4}
    pixels = draw(2, 3, 8, 8)
    for count, exact in ((48, True), (64, True), (40, False)):
        model = AutoencoderKL(**options, latent_channels=count, linear_shortcut=True)
        restored = model.decode(model.encode(pixels).mean)
        assert torch.allclose(restored, pixels, atol=1e-5) == exact

    basis, std = largest_components(8, 192)
    assert torch.allclose(basis @ basis.T, torch.eye(192), atol=1e-5)
    place = torch.arange(8)
    rows = 0.95 ** (place[:, None] - place).abs()
    colors = torch.tensor([[0.26, 0.23, 0.2], [0.23, 0.25, 0.23], [0.2, 0.23, 0.26]])  # alike, as those of photographs
    covariance = torch.kron(colors, torch.kron(rows, rows))
    best = torch.linalg.eigvalsh(covariance).flip(0).cumsum(0)
    kept = torch.einsum("ki,ij,kj->k", basis, covariance, basis).cumsum(0)
    assert (kept[[3, 31, 63]] > 0.98 * best[[3, 31, 63]]).all()
    assert torch.allclose(std.square().sum(), torch.tensor(48.0))  # 64 pixels of three colours, each of variance 1/4


def test_discriminator_sees_patches() -> None:
    network = PatchDiscriminator((8, 16), norm_groups=4)
    assert network(draw(2, 3, 32, 30)).shape == (2, 1, 8, 8)


@torch.no_grad()
def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(LdmkitError, match="unet: a 8x6 input does not fit; height and width must be multiples of 4"):
        UNet(**TEXT, **SMALL)(draw(1, 4, 8, 6), torch.zeros(1), draw(1, 5, 6))
    with pytest.raises(LdmkitError, match="dit: a 6x8 input does not fit; height and width must be multiples of 4"):
        BUILDS["dit"]()(draw(1, 4, 6, 8), torch.zeros(1), draw(1, 5, 6))
    with pytest.raises(LdmkitError, match=r"vae: a 15x16 input does not fit; .* multiples of 2"):
        AutoencoderKL((8, 8), norm_groups=4).encode(draw(1, 3, 15, 16))


@of_each_network
def test_context_that_does_not_fit(build: Callable[..., Denoiser]) -> None:
    with pytest.raises(LdmkitError, match=r"context_dim = 6: it takes a context \(B, L, 6\)"):
        build()(draw(1, 4, 8, 8), torch.zeros(1))
    with pytest.raises(LdmkitError, match="context_dim = None: it takes no context"):
        UNet(channels=(8, 8), attention_levels=(), **SMALL)(draw(1, 4, 8, 8), torch.zeros(1), draw(1, 5, 6))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"channels": (8,)}, "at least two entries"),
        ({"channels": (8, 10)}, "multiples of norm_groups = 4"),
        ({"channels": (8, 0)}, "multiples of norm_groups = 4"),
        ({"channels": (8, 8), "attention_levels": (2,)}, r"attention_levels = \[2\] must lie between 1 and 1"),
        ({"channels": (8, 8), "attention_levels": (0,)}, "must lie between 1 and 1"),
    ],
)
def test_widths_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    options = {"attention_levels": (), **options}
    with pytest.raises(LdmkitError, match=f"vae: .*{said}"):
        AutoencoderKL(**options, norm_groups=4)
    with pytest.raises(LdmkitError, match=f"unet: .*{said}"):
        UNet(**options, **SMALL)


def test_other_options_that_do_not_fit() -> None:
    with pytest.raises(LdmkitError, match="16 wide, no multiple of num_heads=3"):
        UNet(**{**TEXT, "num_heads": 3}, **SMALL)
    with pytest.raises(LdmkitError, match="time_dim = 15 must be even"):
        UNet(**TEXT, **{**SMALL, "time_dim": 15})
    with pytest.raises(LdmkitError, match="width = 6 must be a multiple of 4"):
        DiT(width=6, num_heads=2)
    with pytest.raises(LdmkitError, match="width = 16 is no multiple of num_heads = 3"):
        DiT(width=16, num_heads=3)
    with pytest.raises(LdmkitError, match=r"discriminator: .* norm_groups = 32"):
        PatchDiscriminator((8, 40))
    with pytest.raises(LdmkitError, match="at least one width"):
        PatchDiscriminator(())

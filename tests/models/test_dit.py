"""The transformer's block and positions against diffusers' own parts; its start and its overlapping patches."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from ldmkit.models.blocks import Attention
from ldmkit.models.denoiser import TextToImage
from ldmkit.models.dit import DiT, DiTBlock
from ldmkit.training.device import cpu_compiler_works


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def waken(network: nn.Module, *, std: float) -> None:
    """Random values everywhere, so that what starts at zero takes part."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_the_block_is_built_of_diffusers_parts(masked: bool) -> None:
    """adaLN-zero, attention with normalised queries and keys, SwiGLU: each with diffusers' code and our weights."""
    from diffusers.models.attention import FeedForward
    from diffusers.models.attention_processor import Attention
    from diffusers.models.normalization import AdaLayerNormZero

    ours = DiTBlock(16, num_heads=4, context_dim=6, dropout=0.0).eval()
    waken(ours, std=0.3)
    heads = {"heads": 4, "dim_head": 4, "bias": True, "qk_norm": "rms_norm", "eps": 1e-6}
    adaptive, attention, cross = AdaLayerNormZero(16), Attention(16, **heads), Attention(16, 6, **heads)
    feed_forward = FeedForward(16, activation_fn="swiglu", inner_dim=ours.linear2.in_features)
    for theirs, mine in ((attention, ours.self_attention), (cross, ours.cross_attention)):
        theirs.load_state_dict({k.replace("to_out.", "to_out.0."): tensor for k, tensor in mine.state_dict().items()})
    adaptive.linear.load_state_dict(ours.modulation.state_dict())
    feed_forward.net[0].proj.load_state_dict(ours.linear1.state_dict())
    feed_forward.net[2].load_state_dict(ours.linear2.state_dict())

    x, time, context = draw(2, 9, 16), draw(2, 16, seed=1), draw(2, 5, 6, seed=2)
    mask = torch.arange(5) < torch.tensor([[2], [5]]) if masked else None
    # diffusers' mask is added to the logits.
    hidden = None if mask is None else torch.where(mask, 0.0, -1e9)[:, None]
    normed, gate1, shift2, scale2, gate2 = adaptive(x, emb=time)
    h = x + gate1[:, None] * attention(normed)
    h = h + cross(ours.norm_cross(h), encoder_hidden_states=context, attention_mask=hidden)
    h = h + gate2[:, None] * feed_forward(adaptive.norm(h) * (1 + scale2[:, None]) + shift2[:, None])
    found = ours(x, nn.functional.silu(time)[:, None], context, mask)
    torch.testing.assert_close(found, h, rtol=1e-5, atol=1e-5)


def test_positions_are_diffusers_sinusoids() -> None:
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    network = DiT(4, width=16, depth=1, num_heads=2)
    with torch.no_grad():
        nn.init.eye_(network.position_embedding.weight)
        nn.init.zeros_(network.position_embedding.bias)
    theirs = get_2d_sincos_pos_embed(16, 5, base_size=5, output_type="pt")  # column first
    row_first = theirs.roll(8, dims=1).float()
    found = network._positions(5, 5, torch.device("cpu"))
    torch.testing.assert_close(found, row_first, rtol=1e-5, atol=1e-6)
    # Where a patch lies does not depend on the picture's size.
    wide = network._positions(3, 7, torch.device("cpu")).unflatten(0, (3, 7))
    torch.testing.assert_close(wide[:, :5], found.unflatten(0, (5, 5))[:3])


@torch.no_grad()
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_it_starts_at_zero_and_its_blocks_as_the_identity(patch_size: int) -> None:
    network = DiT(4, patch_size=patch_size, width=16, depth=2, num_heads=2, context_dim=6)
    assert network.downsample == patch_size
    x, context = draw(2, 4, 8, 12), draw(2, 5, 6)
    assert torch.equal(network(x, torch.tensor([0.0, 900.0]), context), torch.zeros_like(x))
    tokens, time = draw(2, 9, 16), draw(2, 1, 16)
    assert torch.equal(network.blocks[0](tokens, time, context, None), tokens)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_a_token_sees_one_latent_beyond_its_patch(patch_size: int) -> None:
    """The stem alone: of the first token, the patch and one row and column of each neighbour."""
    network = DiT(4, patch_size=patch_size, width=16, depth=1, num_heads=2)
    x = draw(1, 4, 8, 8).requires_grad_()
    network.stem(x)[..., 0, 0].square().sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0) > 0
    assert seen.nonzero().max() == patch_size
    assert seen[: patch_size + 1, : patch_size + 1].all()


@torch.no_grad()
def test_its_blocks_are_compiled_once_for_all() -> None:
    counter = CompileCounter()
    network = DiT(4, width=16, depth=3, num_heads=2, context_dim=6)
    waken(network, std=0.3)
    inputs = draw(2, 4, 8, 8), torch.tensor([3.0, 700.0]), draw(2, 5, 6), torch.ones(2, 5)
    expected = network(*inputs)
    TextToImage(network, None).compile(backend=counter)
    torch.testing.assert_close(network(*inputs), expected)
    assert counter.frame_count == 1
    assert counter.op_count > 10


def test_under_autocast_it_draws_the_same() -> None:
    """bf16 has 8 bits; a warning, such as of a kernel that does not fit, would be an error here."""
    network = DiT(4, width=32, depth=2, num_heads=2, context_dim=6)
    waken(network, std=0.1)
    x, t, context = draw(2, 4, 8, 8), torch.tensor([3.0, 700.0]), draw(2, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x, t, context, torch.ones(2, 5))
    half.float().square().sum().backward()
    full = network(x, t, context, torch.ones(2, 5))
    assert half.dtype == torch.bfloat16
    assert (half - full).norm() / full.norm() < 0.03


@pytest.mark.skipif(not cpu_compiler_works(), reason="no C++ compiler for torch.compile")
def test_compiled_gradients_at_256_tokens_are_those_of_eager_torch() -> None:
    """As many tokens as pictures of 256x256 have; the order of its operations decides whether they are numbers."""
    attention = Attention(256, num_heads=4, qk_norm=True)
    x, gradients = draw(4, 256, 256), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile's own
        for network in (attention, torch.compile(attention)):
            with torch.autocast("cpu", torch.bfloat16):
                network(x).float().square().mean().backward()
            gradients.append(attention.to_k.weight.grad)
            attention.zero_grad()
    eager, compiled = gradients
    assert eager is not None
    assert compiled is not None
    assert (compiled - eager).norm() < 0.01 * eager.norm()

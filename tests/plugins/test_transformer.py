"""The text encoder `transformer`: its tokenizer, and its network against torch's own layers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ldmkit_transformer import Transformer
from tokenizers import Tokenizer
from torch import nn

from ldmkit import LdmkitError, TextEncoder

CAPTIONS = [
    f"a cute {fur} cat with {eyes} eyes on a {background} background"
    for fur in ("orange", "black", "white")
    for eyes in ("green", "blue")
    for background in ("red", "pink")
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Transformer().build_tokenizer(CAPTIONS)


def encode(tokenizer: Tokenizer, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    encodings = tokenizer.encode_batch(captions)
    ids = torch.tensor([encoding.ids for encoding in encodings])
    return ids, torch.tensor([encoding.attention_mask for encoding in encodings])


def test_is_a_trainable_text_encoder() -> None:
    encoder = Transformer(width=96, heads=3, max_tokens=20)
    assert isinstance(encoder, TextEncoder)
    assert (encoder.trainable, encoder.context_dim, encoder.max_tokens) == (True, 96, 20)


def test_width_must_be_a_multiple_of_heads() -> None:
    with pytest.raises(LdmkitError, match=r"width = 100 .* heads = 3"):
        Transformer(width=100, heads=3)


def test_caption_is_framed_padded_and_masked(tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode("A  Cute\nORANGE cat ")
    assert encoding.tokens[:7] == ["<|bos|>", "Ġa", "Ġcute", "Ġorange", "Ġcat", "<|eos|>", "<|pad|>"]
    assert encoding.attention_mask == [1] * 6 + [0] * 26
    assert encoding.ids[6:] == [0] * 26


@pytest.mark.parametrize("empty", ["", "   ", "\n"])
def test_empty_caption_is_bos_eos(tokenizer: Tokenizer, empty: str) -> None:
    encoding = tokenizer.encode(empty)
    assert encoding.ids == [1, 2] + [0] * 30
    assert encoding.attention_mask == [1, 1] + [0] * 30


def test_long_caption_is_cut_and_keeps_its_end(tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode("cat " * 100)
    assert len(encoding.ids) == 32
    assert (encoding.tokens[0], encoding.tokens[-1]) == ("<|bos|>", "<|eos|>")
    assert sum(encoding.attention_mask) == 32


def test_any_text_survives(tokenizer: Tokenizer) -> None:
    # "cafe" with a combining accent is composed (NFC); bytes never seen in training are spelled out.
    assert tokenizer.decode(tokenizer.encode("cafe\u0301 猫 🐈").ids) == " caf\u00e9 猫 🐈"


def test_special_tokens_in_a_caption_are_text(tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode("a <|eos|> cat<|pad|>")
    assert (encoding.ids.count(1), encoding.ids.index(2)) == (1, sum(encoding.attention_mask) - 1)
    assert 0 not in encoding.ids[: encoding.ids.index(2)]
    assert tokenizer.decode(encoding.ids) == " a <|eos|> cat<|pad|>"


def test_merges_are_those_of_the_published_example() -> None:
    # Sennrich et al. 2016, fig. 1: "e s" then "es t" are the most frequent pairs, 9 times each.
    captions = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    tokenizer = Transformer(vocab_size=261).build_tokenizer(captions)
    assert tokenizer.get_vocab_size() == 261  # 3 special tokens, 256 bytes, 2 merges
    assert tokenizer.token_to_id("est") == 260
    assert tokenizer.encode("newest", add_special_tokens=False).tokens[:5] == ["Ġ", "n", "e", "w", "est"]


def test_tokenizer_json_is_the_same_in_another_process(tokenizer: Tokenizer) -> None:
    code = (
        "import hashlib, sys; from ldmkit_transformer import Transformer;"
        "json = Transformer().build_tokenizer(sys.argv[1].split('|')).to_str();"
        "print(hashlib.sha256(json.encode()).hexdigest())"
    )
    command = [sys.executable, "-c", code, "|".join(CAPTIONS)]
    assert len({subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)}) == 1


def test_tokenizer_survives_its_json(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for caption in ("", "a cute cat", "cat " * 100):
        assert again.encode(caption).ids == tokenizer.encode(caption).ids
        assert again.encode(caption).attention_mask == tokenizer.encode(caption).attention_mask


def test_output_equals_torch_encoder_layers(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    module = Transformer(width=48, heads=4, layers=3).load_module(tokenizer)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)  # not the initial zeros and ones, which would hide a mix-up
    layers = []
    for block in module.blocks:
        layer = nn.TransformerEncoderLayer(
            48, 4, dim_feedforward=192, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        names = {
            "self_attn.in_proj_weight": block.qkv.weight,
            "self_attn.in_proj_bias": block.qkv.bias,
            "self_attn.out_proj.weight": block.out.weight,
            "self_attn.out_proj.bias": block.out.bias,
            "linear1.weight": block.mlp[0].weight,
            "linear1.bias": block.mlp[0].bias,
            "linear2.weight": block.mlp[-1].weight,
            "linear2.bias": block.mlp[-1].bias,
            "norm1.weight": block.norm_attention.weight,
            "norm1.bias": block.norm_attention.bias,
            "norm2.weight": block.norm_mlp.weight,
            "norm2.bias": block.norm_mlp.bias,
        }
        layer.load_state_dict(names)
        layers.append(layer)

    ids, mask = encode(tokenizer, ["", CAPTIONS[0], "cat " * 100])
    expected = nn.functional.embedding(ids, module.token_embedding.weight) + module.position_embedding
    for layer in layers:
        expected = layer(expected, src_key_padding_mask=mask == 0)
    expected = nn.functional.layer_norm(expected, (48,), module.norm.weight, module.norm.bias)

    output = module(ids, mask)
    assert output.shape == (3, 32, 48)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


def test_padding_does_not_reach_the_tokens(tokenizer: Tokenizer) -> None:
    module = Transformer().load_module(tokenizer)
    ids, mask = encode(tokenizer, ["", CAPTIONS[0]])
    other = torch.where(mask.bool(), ids, torch.full_like(ids, 77))
    tokens = mask.bool()
    torch.testing.assert_close(module(other, mask)[tokens], module(ids, mask)[tokens], rtol=0, atol=0)
    assert not torch.equal(module(other, torch.ones_like(mask))[tokens], module(ids, mask)[tokens])


@pytest.mark.parametrize("std", [0.02, 0.5])
def test_a_words_own_meaning_is_as_strong_as_asked(tokenizer: Tokenizer, std: float) -> None:
    """Of two captions that differ in one word: how much more its state changes than those of the others do, before
    training. At 0.02 attention spreads it over all of them."""
    torch.manual_seed(0)
    module = Transformer(width=64, embedding_std=std).load_module(tokenizer)
    assert module.token_embedding.weight.std().item() == pytest.approx(std, rel=0.05)  # type: ignore[union-attr, operator]
    ids, mask = torch.arange(3, 23)[None], torch.ones(1, 20, dtype=torch.int64)
    changed = ids.clone()
    changed[0, 7] = 40
    moved = (module(ids, mask) - module(changed, mask)).norm(dim=-1)[0]
    assert (moved[7] / moved[torch.arange(20) != 7].mean() > 8) == (std == 0.5)


def test_every_parameter_learns_and_dropout_is_for_training_only(tokenizer: Tokenizer) -> None:
    module = Transformer(dropout=0.5).load_module(tokenizer)
    ids, mask = encode(tokenizer, CAPTIONS[:2])
    (module(ids, mask) * torch.randn(2, 32, 128)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    assert not torch.equal(module(ids, mask), module(ids, mask))
    module.eval()
    assert torch.equal(module(ids, mask), module(ids, mask))


def test_traces_for_export_with_a_dynamic_batch(tokenizer: Tokenizer) -> None:
    module = Transformer(layers=1).load_module(tokenizer).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        module, encode(tokenizer, ["", "a cat"]), dynamic_shapes={"ids": {0: batch}, "mask": {0: batch}}
    )
    ids, mask = encode(tokenizer, CAPTIONS[:5])
    torch.testing.assert_close(program.module()(ids, mask), module(ids, mask))


def test_module_imports_no_torch() -> None:
    code = "import sys, ldmkit_transformer as t; t.Transformer(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

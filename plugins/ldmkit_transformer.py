"""The text encoder `transformer`: small, trained together with the U-Net, needs no download."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ldmkit import LdmkitError, hookimpl

if TYPE_CHECKING:
    import numpy as np
    import torch
    from tokenizers import Tokenizer

PAD, BOS, EOS = SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>")  # ids 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A transformer trained with the U-Net, Rombach et al. 2022, app. E.2.1; byte-level BPE of its own.

    LdmkitError where `width` is no multiple of `heads`.
    """

    width: Annotated[int, Field(gt=0, description="width of one state, which is the U-Net's context size")] = 128
    layers: Annotated[int, Field(gt=0, description="number of transformer blocks")] = 2
    heads: Annotated[int, Field(gt=0, description="attention heads; must divide width")] = 4
    max_tokens: Annotated[int, Field(ge=3, description="captions are padded or cut to this many tokens")] = 32
    vocab_size: Annotated[
        int, Field(ge=259, description="most entries of the vocabulary: 256 bytes, 3 special tokens, merges")
    ] = 1024
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout probability in training")] = 0.0
    embedding_std: Annotated[
        float, Field(gt=0, le=2, description="standard deviation of new token embeddings; at 0.5 words tell sooner")
    ] = 0.02

    @property
    def trainable(self) -> bool:
        return True

    @property
    def context_dim(self) -> int:
        return self.width

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise LdmkitError(
                f"text encoder 'transformer': width = {self.width} is not a multiple of heads = {self.heads}; "
                "change one of them"
            )

    def build_tokenizer(self, captions: Sequence[str]) -> "Tokenizer":
        """Byte-level BPE learned from `captions`: any text encodes, and the same captions give the same JSON.

        Lower-cased, white space collapsed, `bos ... eos` padded and cut to `max_tokens` by the tokenizer itself,
        so that its JSON is all that a runtime needs but for `encode_special_tokens`. An empty caption is `bos eos`.
        """
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.NFC(),
                normalizers.Lowercase(),
                normalizers.Replace(Regex(r"\s+"), " "),
                normalizers.Strip(),
            ]
        )
        # The prefix space makes a caption's first word the same token as that word elsewhere.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=2,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(captions, trainer)
        pad, bos, eos = (tokenizer.token_to_id(token) for token in SPECIAL_TOKENS)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A {EOS}", special_tokens=[(BOS, bos), (EOS, eos)]
        )
        tokenizer.encode_special_tokens = True  # a caption that spells one is text; not part of the JSON
        tokenizer.enable_truncation(self.max_tokens)
        tokenizer.enable_padding(length=self.max_tokens, pad_id=pad, pad_token=PAD)
        return tokenizer

    def load_module(self, tokenizer: "Tokenizer") -> "torch.nn.Module":
        """A new network: forward(ids (B, L), mask (B, L), 1 = token) -> context (B, L, width).

        Each row of the mask holds at least one token, as every row of the tokenizer does. States at padding are
        finite and meaningless: whoever reads them masks them.
        """
        return _network(self, tokenizer.get_vocab_size())

    def start_module(self, module: "torch.nn.Module", token_counts: "np.ndarray") -> None:
        """Silences the tokens that no caption has.

        A word that the captions lack falls into such pieces. No step moves their random embeddings, which would speak
        as loudly as the words: in "grey surroundings" they drown the grey.
        """
        embedding = module.get_submodule("token_embedding")
        weight = embedding.get_parameter("weight")
        weight.data[token_counts == 0] = 0


def _network(options: Transformer, vocab_size: int) -> "torch.nn.Module":
    """The network's classes are local: reading the plugin's options must not load torch."""
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812 - the field's name

    width, heads, dropout = options.width, options.heads, options.dropout

    class Block(nn.Module):
        """Pre-norm self-attention and MLP. Spelled out: nn.TransformerEncoder's fast path does not export."""

        def __init__(self) -> None:
            super().__init__()
            self.norm_attention = nn.LayerNorm(width)
            self.qkv = nn.Linear(width, 3 * width)
            self.out = nn.Linear(width, width)
            self.norm_mlp = nn.LayerNorm(width)
            self.mlp = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
            )
            self.dropout = nn.Dropout(dropout)

        def forward(self, x: torch.Tensor, attend: torch.Tensor) -> torch.Tensor:
            batch, length, _ = x.shape
            qkv = self.qkv(self.norm_attention(x)).reshape(batch, length, 3, heads, width // heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, L, width / heads)
            states = F.scaled_dot_product_attention(
                q, k, v, attn_mask=attend, dropout_p=dropout if self.training else 0.0
            )
            states = states.transpose(1, 2).reshape(batch, length, width)  # (B, L, width)
            x = x + self.dropout(self.out(states))
            x = x + self.dropout(self.mlp(self.norm_mlp(x)))
            return x

    class TextTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_embedding = nn.Embedding(vocab_size, width)
            self.position_embedding = nn.Parameter(torch.empty(options.max_tokens, width))
            self.dropout = nn.Dropout(dropout)
            self.blocks = nn.ModuleList(Block() for _ in range(options.layers))
            self.norm = nn.LayerNorm(width)
            nn.init.normal_(self.token_embedding.weight, std=options.embedding_std)
            nn.init.normal_(self.position_embedding, std=options.embedding_std)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            x = self.dropout(self.token_embedding(ids) + self.position_embedding[: ids.shape[1]])
            attend = mask.bool()[:, None, None, :]  # (B, 1, 1, L): over heads and queries
            for block in self.blocks:
                x = block(x, attend)
            normed: torch.Tensor = self.norm(x)
            return normed

    return TextTransformer()


@hookimpl
def register_text_encoders() -> Mapping[str, type[Transformer]]:
    """`transformer`: trained with the U-Net."""
    return {"transformer": Transformer}

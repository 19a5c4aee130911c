"""A plugin: a frozen text encoder of CLIP ViT-L/14's shape that needs no download. Its states mean nothing."""

from typing import Any

from ldmkit import hookimpl


@hookimpl
def register_text_encoders():
    return {"random-text": RandomText}


class RandomText:
    """77 tokens of one word each, a random state of 768 numbers for each word."""

    trainable = False
    context_dim = 768
    max_tokens = 77

    def build_tokenizer(self, captions) -> Any:
        """One entry a word, padded and cut to 77; an empty caption is one token."""
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        words = sorted({word for caption in captions for word in caption.split()})
        entries = {word: number for number, word in enumerate(["[pad]", "[end]", *words])}
        tokenizer = Tokenizer(models.WordLevel(entries, unk_token="[pad]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(single="$A [end]", special_tokens=[("[end]", 1)])
        tokenizer.enable_truncation(self.max_tokens)
        tokenizer.enable_padding(length=self.max_tokens, pad_id=0, pad_token="[pad]")
        return tokenizer

    def load_module(self, tokenizer) -> Any:
        """forward(ids (B, L), mask (B, L)) -> states (B, L, 768)."""
        import torch

        states = torch.nn.Embedding(tokenizer.get_vocab_size(), self.context_dim)
        states.forward = lambda ids, mask, look_up=states.forward: look_up(ids)
        return states

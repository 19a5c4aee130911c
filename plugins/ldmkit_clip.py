"""The text encoder `clip`: CLIP's text transformer, frozen, from a local folder or the Hugging Face hub."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ldmkit import LdmkitError, hookimpl, hub_commit, load_pretrained

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Clip:
    """CLIP's text transformer, Radford et al. 2021, frozen: its states are the context (Rombach et al. 2022).

    Everything is read on first use, from the Hugging Face cache where it holds the model, else from the hub. Any
    property or method raises LdmkitError where the model can be had from neither.
    """

    model: Annotated[str, Field(min_length=1, description="repository on the hugging face hub, or a local folder")] = (
        "openai/clip-vit-large-patch14"
    )
    revision: Annotated[str | None, Field(description="commit, tag or branch of the repository; none: its newest")] = (
        None
    )
    layer: Annotated[
        Literal["last", "penultimate"],
        Field(description="which layer's states; both pass the final norm"),
    ] = "last"

    @property
    def commit(self) -> str | None:
        """Of the hub's repository, for the run's record."""
        return hub_commit(self.model, self.revision)

    @property
    def trainable(self) -> bool:
        return False

    @property
    def context_dim(self) -> int:
        return int(self._config.hidden_size)

    @property
    def max_tokens(self) -> int:
        return int(self._config.max_position_embeddings)

    def build_tokenizer(self, captions: Sequence[str]) -> "Tokenizer":
        """The model's own tokenizer; `captions` are not needed. Padded and cut to `max_tokens` in its JSON."""
        from tokenizers import Tokenizer
        from transformers import CLIPTokenizer

        loaded = self._load(CLIPTokenizer.from_pretrained)
        # Without its vocabulary files the class builds an empty tokenizer and says nothing.
        if len(loaded) != self._config.vocab_size:
            raise LdmkitError(
                f"text encoder 'clip': the tokenizer of {self.model} has {len(loaded)} entries, its config says "
                f"{self._config.vocab_size}; it needs tokenizer.json, or vocab.json and merges.txt"
            )
        tokenizer: Tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
        tokenizer.enable_truncation(self.max_tokens)
        tokenizer.enable_padding(length=self.max_tokens, pad_id=loaded.pad_token_id, pad_token=loaded.pad_token)
        return tokenizer

    def load_module(self, tokenizer: "Tokenizer") -> "torch.nn.Module":
        """The frozen network: forward(ids (B, L), mask (B, L), 1 = token) -> context (B, L, context_dim) float32.

        It stays in evaluation mode and without gradients. States at padding are finite and meaningless.
        """
        import torch
        from torch import nn
        from transformers import CLIPTextModel

        text_model = self._load(CLIPTextModel.from_pretrained, weights=True, dtype=torch.float32)
        penultimate = self.layer == "penultimate"

        class TextStates(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.text_model = text_model
                self.requires_grad_(False)
                self.eval()

            def train(self, mode: bool = True) -> "TextStates":
                """Frozen: a trainer that puts everything in training mode leaves this in evaluation mode."""
                super().train(False)
                return self

            def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                output = self.text_model(input_ids=ids, attention_mask=mask, output_hidden_states=penultimate)
                states: torch.Tensor = output.last_hidden_state
                if penultimate:
                    states = self.text_model.final_layer_norm(output.hidden_states[-2])
                return states

        return TextStates()

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        config = self._load(AutoConfig.from_pretrained, trust_remote_code=False)
        config = getattr(config, "text_config", config)  # of a whole CLIP, its text half
        if config.model_type != "clip_text_model":
            raise LdmkitError(
                f"text encoder 'clip': {self.model} is a {config.model_type!r}, not a CLIP; correct text.model"
            )
        return config

    def _load(self, from_pretrained: Callable[..., Any], **options: Any) -> Any:
        return load_pretrained(
            from_pretrained,
            self.model,
            revision=self.revision,
            owner="text encoder 'clip'",
            key="text.model",
            needs="a local folder with config.json, tokenizer.json (or vocab.json, merges.txt) and model.safetensors",
            **options,
        )


@hookimpl
def register_text_encoders() -> Mapping[str, type[Clip]]:
    """`clip`: frozen."""
    return {"clip": Clip}

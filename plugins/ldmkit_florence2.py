"""The captioner `florence2`: Florence-2 in transformers' native class, from a local folder or the hub."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from ldmkit import LdmkitError, Picture, hookimpl, hub_commit, load_pretrained

BOILERPLATE = re.compile(
    r"(?:(?:the|this) (?:image|picture|photo|photograph) "
    r"(?:shows|depicts|features|captures|displays|portrays|showcases|contains|is of|is(?! not))"
    r"|in (?:the|this) (?:image|picture|photo|photograph),? (?:we can see|you can see|there is|there are)"
    r"|this is)"
    r"(?: an? (?:image|picture|photo|photograph) of)?\s+(?=\w)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Florence2:
    """Florence-2, Xiao et al. 2023, beam search, many pictures at a time.

    The model is read on the first call of `caption`, from the Hugging Face cache where it holds it, else from the hub,
    and kept. On a CUDA device it runs in bfloat16, or float16 where that has none, elsewhere in float32. Pictures are
    not sorted: the processor brings each to one square, so that a batch is never padded, whatever their sizes.
    """

    model: Annotated[
        str,
        Field(min_length=1, description="repository on the Hugging Face hub in the native format, or a local folder"),
    ] = "florence-community/Florence-2-large"
    revision: Annotated[str | None, Field(description="commit, tag or branch of the repository; none: its newest")] = (
        None
    )
    task: Annotated[
        Literal["<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>"],
        Field(description="Florence-2's task prompt: how long a caption"),
    ] = "<MORE_DETAILED_CAPTION>"
    num_beams: Annotated[int, Field(gt=0, description="beams of the search; 1 is greedy")] = 3
    max_new_tokens: Annotated[int, Field(gt=0, description="longest caption, in tokens")] = 1024
    batch_size: Annotated[int, Field(gt=0, description="pictures at a time; halved where memory runs out")] = 8
    strip_boilerplate: Annotated[
        bool, Field(description='drop openings such as "The image shows"; "The image shows a cat." becomes "A cat."')
    ] = True
    device: Annotated[str, Field(description='torch device such as "cuda:0"; "auto": CUDA where it is')] = "auto"

    @property
    def commit(self) -> str | None:
        """Of the hub's repository, for the run's record."""
        return hub_commit(self.model, self.revision)

    def caption(self, pictures: Sequence[Picture]) -> list[str | None]:
        """One caption a picture, decoded and captioned `batch_size` at a time.

        LdmkitError where the model can be had from nowhere, and where one picture alone does not fit into memory.
        """
        import torch

        captions: list[str | None] = []
        while len(captions) < len(pictures):
            batch = pictures[len(captions) : len(captions) + self._room["pictures"]]
            try:
                captions += self._generate(batch)
                continue
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise LdmkitError(
                        f"captioner 'florence2': out of memory on one picture alone, {batch[0].key}; lower "
                        "caption.num_beams or caption.max_new_tokens, or choose a smaller caption.model"
                    ) from error
            # Outside the handler: while the exception lives, its frames hold the tensors.
            self._room["pictures"] = (len(batch) + 1) // 2
            torch.cuda.empty_cache()
            told = f"florence2: out of memory, continuing with {self._room['pictures']} pictures at a time"
            warnings.warn(told, stacklevel=2)
        return captions

    @cached_property
    def _room(self) -> dict[str, int]:
        """Pictures that fit into memory at once, as far as is known; what one call finds out the next one knows."""
        return {"pictures": self.batch_size}

    def _generate(self, batch: Sequence[Picture]) -> list[str | None]:
        import torch

        processor, model = self._loaded
        with ThreadPoolExecutor(4) as pool:  # Pillow decodes without Python's lock, and the device waits
            images = list(pool.map(lambda picture: picture.load().convert("RGB"), batch))
        inputs = processor(text=[self.task] * len(images), images=images, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(
                **inputs.to(model.device, model.dtype),
                num_beams=self.num_beams,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
            )
        captions: list[str | None] = []
        for image, text in zip(images, processor.batch_decode(ids, skip_special_tokens=True), strict=True):
            answer = processor.post_process_generation(text=text, task=self.task, image_size=image.size)[self.task]
            caption = " ".join(answer.split())
            captions.append((strip_boilerplate(caption) if self.strip_boilerplate else caption) or None)
        return captions

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The processor and the model, in evaluation mode on its device."""
        import torch
        from transformers import AutoConfig, AutoProcessor, Florence2ForConditionalGeneration

        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float32
        if device.startswith("cuda"):
            dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        # First: without a config.json the model class would build its full default size from nothing.
        config = self._load(AutoConfig.from_pretrained, trust_remote_code=False)
        if config.model_type != "florence2":
            raise LdmkitError(
                f"captioner 'florence2': {self.model} is a {config.model_type!r}, not Florence-2; correct caption.model"
            )
        processor = self._load(AutoProcessor.from_pretrained, trust_remote_code=False)
        # Weights in Microsoft's own format lack tensors of the native class.
        model = self._load(
            Florence2ForConditionalGeneration.from_pretrained,
            weights=True,
            dtype=dtype,
        )
        return processor, model.to(device).eval()

    def _load(self, from_pretrained: Callable[..., Any], **options: Any) -> Any:
        return load_pretrained(
            from_pretrained,
            self.model,
            revision=self.revision,
            owner="captioner 'florence2'",
            key="caption.model",
            needs="a local folder with config.json, the processor's files and model.safetensors, in the format of the "
            "transformers library as florence-community/Florence-2-large has it",
            otherwise='captions that exist already: caption.use = "sidecar" or "filename"',
            **options,
        )


def strip_boilerplate(caption: str) -> str:
    """The caption without its opening "The image shows" and the like, its first letter a capital."""
    rest = caption[match.end() :] if (match := BOILERPLATE.match(caption)) else caption
    return rest[:1].upper() + rest[1:]


@hookimpl
def register_captioners() -> Mapping[str, type[Florence2]]:
    """`florence2`."""
    return {"florence2": Florence2}

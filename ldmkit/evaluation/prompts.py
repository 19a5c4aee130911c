"""Whether drawn pictures show what their prompts ask for: by a rule that reads pictures, and by CLIP."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldmkit.components.hub import load_pretrained
from ldmkit.components.protocols import PromptReader
from ldmkit.components.registry import Registry
from ldmkit.evaluation.features import FeatureNetwork

ClipScore = Callable[[Sequence[Image.Image], Sequence[str]], tuple[float, float]]
"""pictures and their prompts -> the mean over the pictures, and its standard error"""
CLIP = "openai/clip-vit-large-patch14"
"""the network that the text encoder `clip` takes by default: who trains with it has it here"""
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""mean and std of the channels, pixels in [0, 1]"""


@dataclass(frozen=True)
class Share:
    """The share of pictures that are right in one thing, of those whose prompts name it."""

    right: float
    standard_error: float
    num: int

    @classmethod
    def of(cls, right: Sequence[bool]) -> "Share":
        """The error is half of Wilson's interval (1927) at one standard deviation, which no share makes 0."""
        p, n = float(np.mean(right)), len(right)
        return cls(p, float(np.sqrt(p * (1 - p) / n + 1 / (4 * n**2)) / (1 + 1 / n)), n)


def prompt_reader(registry: Registry, caption: Mapping[str, Any] | None = None) -> PromptReader:
    """The captioner of a recipe's [caption], where it reads prompts too, else `palette`."""
    if caption is not None:
        captioner = registry.build("captioner", caption, where="[caption]")
        if isinstance(captioner, PromptReader):
            return captioner
    # Reading needs no name for the subject.
    reader: PromptReader = registry.build("captioner", {"use": "palette", "subject": "subject"}, where="eval")
    return reader


def prompts_right(reader: PromptReader, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Share]:
    """Of each thing that any of the prompts names, how many pictures show it."""
    found = reader.shows(pictures, prompts)
    things = dict.fromkeys(thing for each in found for thing in each)
    return {thing: Share.of([each[thing] for each in found if thing in each]) for thing in things}


def load_clip(device: torch.device) -> ClipScore | None:
    """CLIPScore, Hessel et al. 2021, as torchmetrics scales it: 100 max(cos, 0).

    None where the network is not in the Hugging Face cache: nothing is fetched for it. Raises LdmkitError where it is
    there and damaged.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from transformers import CLIPModel, CLIPTokenizer

    try:
        folder = snapshot_download(CLIP, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    load = partial(
        load_pretrained, revision=None, owner="CLIP score", key="network", needs=f"all of it: `hf download {CLIP}`"
    )
    network = load(CLIPModel.from_pretrained, folder, weights=True, dtype=torch.float32)
    network = network.eval().requires_grad_(False).to(device)
    tokenizer = load(CLIPTokenizer.from_pretrained, folder)

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output)
        return found

    size = network.config.vision_config.image_size
    features = FeatureNetwork(embed, size=size, normalize=CLIP_PIXELS, device=device)
    longest = network.config.text_config.max_position_embeddings

    def score(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> tuple[float, float]:
        images = features(pictures)  # (N, D)
        distinct = list(dict.fromkeys(prompts))
        words = tokenizer(distinct, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(device)
        with torch.inference_mode():
            texts = network.text_projection(network.text_model(**words).pooler_output).double().cpu().numpy()
        rows = texts[[distinct.index(prompt) for prompt in prompts]]  # (N, D)
        cosine = (images * rows).sum(1) / np.linalg.norm(images, axis=1) / np.linalg.norm(rows, axis=1)
        scores = 100 * np.maximum(cosine, 0)
        return float(scores.mean()), float(scores.std(ddof=1) / np.sqrt(len(scores)))

    return score

"""Shares of prompts that are right, their error against scipy, CLIP's score against transformers' own logits."""

from math import erf, sqrt
from pathlib import Path
from statistics import fmean

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from ldmkit.components.registry import Registry
from ldmkit.data.toy_cats import describe
from ldmkit.data.toy_drawing import draw_toy_cat
from ldmkit.errors import LdmkitError
from ldmkit.evaluation.prompts import CLIP, Share, load_clip, prompt_reader, prompts_right


@pytest.mark.parametrize(("right", "num"), [(0, 20), (430, 500), (500, 500)])
def test_the_error_is_wilsons(right: int, num: int) -> None:
    share = Share.of([True] * right + [False] * (num - right))
    one_sigma = binomtest(right, num).proportion_ci(erf(1 / sqrt(2)), method="wilson")
    assert share.right == right / num
    assert share.standard_error == pytest.approx((one_sigma.high - one_sigma.low) / 2)


def test_what_a_prompt_does_not_name_does_not_count() -> None:
    cats = [describe(3_000_017, number) for number in range(12)]
    pictures = [draw_toy_cat(cat, rng) for rng, cat, _ in cats]
    prompts = [f"a {cat.fur} cat" for _, cat, _ in cats[:6]] + [f"cat, {cat.background} wall" for _, cat, _ in cats[6:]]
    reader = prompt_reader(Registry.load(kinds=("captioner",)))
    found = prompts_right(reader, pictures, [*prompts[:11], "a picture of a cat"])
    assert {thing: (share.right, share.num) for thing, share in found.items()} == {
        "subject": (1, 6),
        "background": (1, 5),
    }
    shuffled = prompts_right(reader, pictures[1:6] + pictures[:1], prompts[:6])["subject"]
    furs = [cat.fur for _, cat, _ in cats[:6]]
    assert shuffled.right == fmean(a == b for a, b in zip(furs, furs[1:] + furs[:1], strict=True)) < 1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_clip_score_is_the_cosine_of_clips_own_logits(cache: Path) -> None:
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_factor": 9.0,
    }
    special = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    network = CLIPModel(
        CLIPConfig(
            text_config={**size, "vocab_size": 54, "max_position_embeddings": 20, **special},
            vision_config={**size, "image_size": 16, "patch_size": 8},
            projection_dim=4,  # of few dimensions, some cosines are negative
        )
    ).eval()
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=20)
    repository = cache / f"models--{CLIP.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    network.save_pretrained(repository / "snapshots" / "c0ffee")
    tokenizer.save_pretrained(repository / "snapshots" / "c0ffee")
    noise = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    prompts = ["a cat", "a dog on a wall", "ox", "a cat", "zebra", "a very long prompt that is cut somewhere"]
    edge = {"shortest_edge": 16}
    processor = CLIPProcessor(CLIPImageProcessor(size=edge, crop_size=16), tokenizer)
    pictures = [Image.fromarray(pixels) for pixels in noise]
    inputs = processor(text=prompts, images=pictures, padding=True, truncation=True, max_length=20, return_tensors="pt")
    with torch.inference_mode():
        logits = network(**inputs).logits_per_image.diag() / network.logit_scale.exp()
    expected = 100 * logits.clamp(min=0).numpy()
    assert 0 < np.count_nonzero(expected) < 6
    clip_score = load_clip(torch.device("cpu"))
    assert clip_score is not None
    found = clip_score(pictures, prompts)
    assert found[0] == pytest.approx(np.mean(expected), abs=1e-3)
    assert found[1] == pytest.approx(np.std(expected, ddof=1) / sqrt(6), abs=1e-3)

    (repository / "snapshots" / "c0ffee" / "model.safetensors").unlink()
    with pytest.raises(LdmkitError, match=r"CLIP score: can't read network .*; give all of it: `hf download openai/"):
        load_clip(torch.device("cpu"))


def test_no_clip_score_where_clip_is_not_at_hand(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network is asked"))
    assert load_clip(torch.device("cpu")) is None

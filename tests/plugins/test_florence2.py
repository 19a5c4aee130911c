"""The captioner `florence2`, on a tiny Florence-2 that has learned three captions, saved as the published ones are."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ldmkit_florence2 import Florence2, strip_boilerplate
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import (
    AutoProcessor,
    BartTokenizer,
    BertConfig,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
)

from ldmkit import Captioner, LdmkitError, Picture

CAPTIONS = {
    "red": "The image shows a fox.",
    "green": "A pea.",
    "black": "This is a picture of a black cat.",
}
STRIPPED = {"red": "A fox.", "green": "A pea.", "black": "A black cat."}


def pictures(*colours: str) -> list[Picture]:
    images = {colour: Image.new("RGB", (50, 40), colour) for colour in colours}
    return [Picture(path=Path(c), key=f"{c}.png", load=lambda c=c: images[c]) for c in colours]  # type: ignore[misc]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("florence2")
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = BartTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=[],
        extra_special_tokens={"image_token": "<image>"},
    )
    image_processor = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    image_processor.image_seq_length = 5  # 2 x 2 patches and their mean
    processor = Florence2Processor(
        image_processor=image_processor, tokenizer=tokenizer, post_processor_config={"pure_text": {}}
    )
    text_config = {
        "model_type": "bart",
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 256,
        "d_model": 16,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        **{f"{half}_{key}": n for half in ("encoder", "decoder") for key, n in (("layers", 1), ("ffn_dim", 16))},
        **{f"{half}_attention_heads": 2 for half in ("encoder", "decoder")},
    }
    vision_config = {
        "depths": [1],
        "patch_size": [7],
        "patch_stride": [16],
        "patch_padding": [3],
        "patch_prenorm": [False],
        "embed_dim": [16],
        "num_heads": [2],
        "num_groups": [2],
        "window_size": 4,
        "projection_dim": 16,
    }
    torch.manual_seed(0)
    model = Florence2ForConditionalGeneration(
        Florence2Config(text_config=text_config, vision_config=vision_config, image_token_id=4)
    ).eval()
    inputs = processor(
        text=["<MORE_DETAILED_CAPTION>"] * 3,
        images=[picture.load() for picture in pictures(*CAPTIONS)],
        return_tensors="pt",
    )
    ids = [torch.tensor([0, *tokenizer.encode(c, add_special_tokens=False), 2]) for c in CAPTIONS.values()]
    labels = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-100)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        loss = model(**inputs, labels=labels).loss
        if loss < 0.03:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.generation_config.decoder_start_token_id = 2
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def captioner(folder: Path) -> Florence2:
    return Florence2(model=str(folder), max_new_tokens=60, batch_size=2, device="cpu")


def test_is_a_captioner_and_builds_without_reading_the_model() -> None:
    assert isinstance(Florence2(), Captioner)


def test_captions_batches_of_unequal_length(captioner: Florence2) -> None:
    order = ["black", "green", "red", "green", "black"]
    assert captioner.caption(pictures(*order)) == [STRIPPED[colour] for colour in order]
    assert captioner.caption([]) == []


def test_batch_equals_transformers_one_by_one(folder: Path) -> None:
    task = "<MORE_DETAILED_CAPTION>"
    processor = AutoProcessor.from_pretrained(folder)
    model = Florence2ForConditionalGeneration.from_pretrained(folder).eval()
    expected = []
    for picture in pictures(*CAPTIONS):
        image = picture.load()
        ids = model.generate(
            **processor(text=task, images=image, return_tensors="pt"), num_beams=3, max_new_tokens=60, do_sample=False
        )
        text = processor.batch_decode(ids, skip_special_tokens=False)[0]
        expected.append(processor.post_process_generation(text=text, task=task, image_size=image.size)[task])
    batched = Florence2(model=str(folder), max_new_tokens=60, batch_size=3, strip_boilerplate=False, device="cpu")
    assert batched.caption(pictures(*CAPTIONS)) == expected == list(CAPTIONS.values())


def test_options_reach_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    generate = Florence2ForConditionalGeneration.generate

    def spy(self: Any, **options: Any) -> Any:
        seen.update(options)
        return generate(self, **options)

    monkeypatch.setattr(Florence2ForConditionalGeneration, "generate", spy)
    captioner = Florence2(model=str(folder), num_beams=2, max_new_tokens=4, task="<CAPTION>", device="cpu")
    captioner.caption(pictures("red", "black"))
    assert (seen["num_beams"], seen["max_new_tokens"], seen["do_sample"]) == (2, 4, False)
    prompt = AutoProcessor.from_pretrained(folder).batch_decode(seen["input_ids"], skip_special_tokens=True)
    assert prompt == ["What does the image describe?"] * 2


@pytest.mark.parametrize(
    ("device", "has_bf16", "dtype"),
    [("auto", True, torch.bfloat16), ("cuda:0", False, torch.float16), ("cpu", True, torch.float32)],
)
def test_number_type_of_the_device(
    device: str, has_bf16: bool, dtype: torch.dtype, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    from_pretrained = Florence2ForConditionalGeneration.from_pretrained

    def spy(*names: Any, **options: Any) -> Any:
        asked.update(options)
        return from_pretrained(*names, **options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    monkeypatch.setattr(Florence2ForConditionalGeneration, "from_pretrained", spy)
    monkeypatch.setattr(Florence2ForConditionalGeneration, "to", lambda self, device: self)
    captioner = Florence2(model=str(folder), max_new_tokens=60, device=device)
    assert captioner.caption(pictures(*CAPTIONS)) == list(STRIPPED.values()), "whatever the numbers' type"
    assert asked["dtype"] == dtype


def test_batch_is_halved_where_memory_runs_out(
    folder: Path, captioner: Florence2, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    generate = Florence2ForConditionalGeneration.generate

    def small_memory(self: Any, **options: Any) -> Any:
        sizes.append(len(options["input_ids"]))
        if sizes[-1] > room:
            raise torch.OutOfMemoryError("no room")
        return generate(self, **options)

    monkeypatch.setattr(Florence2ForConditionalGeneration, "generate", small_memory)
    wide = Florence2(model=str(folder), max_new_tokens=60, batch_size=8, device="cpu")
    order = ["red", "green", "black", "red", "green"]
    room = 2
    with pytest.warns(UserWarning, match="out of memory") as caught:
        assert wide.caption(pictures(*order)) == [STRIPPED[colour] for colour in order]
    assert sizes == [5, 3, 2, 2, 1]
    assert len(caught) == 2
    sizes.clear()
    wide.caption(pictures(*order))  # without a warning: it knows by now
    assert sizes == [2, 2, 1]

    room = 0
    with pytest.raises(LdmkitError, match=r"one picture alone, red\.png"):
        wide.caption(pictures("red"))


@pytest.mark.parametrize(
    ("caption", "stripped"),
    [
        ("The image shows a cat.", "A cat."),
        ("The image is a close-up of a cat.", "A close-up of a cat."),
        ("The image is a photo of two cats.", "Two cats."),
        ("This is a picture of a cat.", "A cat."),
        ("This is a photo of a cat", "A cat"),
        ("In this image we can see a cat.", "A cat."),
        ("In the picture, there is a cat on a mat.", "A cat on a mat."),
        ("This image depicts an orange cat.", "An orange cat."),
        ("the photograph captures Tom.", "Tom."),
        ("A cat. The image shows it from above.", "A cat. The image shows it from above."),
        ("The image is not clear.", "The image is not clear."),
        ("The image shows.", "The image shows."),
        ("The imagery is dark.", "The imagery is dark."),
        ("a cat", "A cat"),
        ("", ""),
    ],
)
def test_boilerplate(caption: str, stripped: str) -> None:
    assert strip_boilerplate(caption) == stripped


def test_reads_the_cache_without_network_and_records_the_commit(folder: Path, cache: Path, workshop: Any) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / "models--owner--tiny"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    captioner = Florence2(model="owner/tiny", max_new_tokens=60, device="cpu")
    assert captioner.caption(pictures("green")) == ["A pea."]

    for file in (workshop.folder / "pictures").iterdir():
        file.unlink()
    for picture in pictures(*CAPTIONS):
        picture.load().save(workshop.folder / "pictures" / picture.key)
    table = '[caption]\nuse = "florence2"\nmodel = "owner/tiny@main"\nmax_new_tokens = 60\ndevice = "cpu"\n'
    recipe = workshop.folder / "tiny.toml"
    recipe.write_text(table + recipe.read_text())
    workshop.pipeline().run(("caption",))
    record = json.loads((workshop.run / "captions" / "record.json").read_text())
    assert record["facts"] == {"captions": {"florence2": 3}, "commit": commit}
    for colour in CAPTIONS:
        (workshop.folder / "pictures" / f"{colour}.txt").write_text("by hand")
    workshop.pipeline().run(("caption",))
    record = json.loads((workshop.run / "captions" / "record.json").read_text())
    assert record["facts"] == {"captions": {"sidecar": 3}}, "it was not asked for any"


def test_neither_cache_nor_hub(cache: Path, asked: list[object]) -> None:
    with pytest.raises(LdmkitError, match="no network in tests") as caught:
        Florence2(revision="v1").caption(pictures("red"))
    assert 1 <= len(asked) <= 2  # no retries, each of which would wait
    for words in ("florence-community/Florence-2-large at revision v1", "HF_HOME", "caption.model", "sidecar"):
        assert words in str(caught.value)


def test_weights_of_another_format(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    tensors = {f"other.{key}": value for key, value in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(LdmkitError, match=r"lack .* of the network's tensors.*florence-community/Florence-2-large"):
        Florence2(model=str(tmp_path), device="cpu").caption(pictures("red"))


def test_weights_of_another_size(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    tensors = {key: value.repeat(2, *[1] * (value.ndim - 1)) for key, value in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(LdmkitError, match=r"can't read caption\.model"):
        Florence2(model=str(tmp_path), device="cpu").caption(pictures("red"))


def test_folder_of_another_model(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(LdmkitError, match="is a 'bert', not Florence-2"):
        Florence2(model=str(tmp_path)).caption(pictures("red"))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_incomplete_folder(folder: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / missing).unlink()
    with pytest.raises(LdmkitError, match=r"can't read caption\.model") as caught:
        Florence2(model=str(tmp_path), device="cpu").caption(pictures("red"))
    assert str(tmp_path) in str(caught.value)

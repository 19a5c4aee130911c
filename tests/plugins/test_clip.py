"""The text encoder `clip`, on small networks of random weights saved as the published ones are."""

import gzip
import json
import re
import shutil
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from ldmkit_clip import Clip
from safetensors.torch import load_file, save_file
from transformers import BertConfig, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import ldmkit.components.hub
from ldmkit import LdmkitError, TextEncoder
from tests.caches.test_encode import make_text

VOCABULARY = Path(__file__).parents[2] / ".." / "shared" / "data" / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CAPTIONS = ["", "a photo of a cat", "cat " * 100]


def text_config(vocab_size: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, both towers, and its tokenizer of single letters."""
    folder = tmp_path_factory.mktemp("clip")
    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[]).save_pretrained(folder)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 8,
    }
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text_config(len(tokens)).to_dict(), vision_config=vision))
    model.save_pretrained(folder)
    return folder


def put_into_cache(cache: Path, folder: Path, commit: str) -> None:
    repository = cache / "models--owner--tiny"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


def encode(encoder: Clip, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    encodings = encoder.build_tokenizer([]).encode_batch(captions)
    ids = torch.tensor([encoding.ids for encoding in encodings])
    return ids, torch.tensor([encoding.attention_mask for encoding in encodings])


def test_is_a_frozen_text_encoder_whose_sizes_come_from_the_config(folder: Path) -> None:
    encoder = Clip(model=str(folder))
    assert isinstance(encoder, TextEncoder)
    assert (encoder.trainable, encoder.context_dim, encoder.max_tokens) == (False, 16, 77)


def test_tokens_equal_those_of_transformers(folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    expected = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    ids, mask = encode(Clip(model=str(folder)), CAPTIONS)
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"])
    assert mask.sum(1).tolist() == [2, 14, 77]


@pytest.mark.skipif(not VOCABULARY.is_file(), reason="CLIP's vocabulary is not here")
def test_published_vocabulary_gives_the_published_ids(tmp_path: Path) -> None:
    lines = gzip.decompress(VOCABULARY.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    # CLIP's own order of bytes: the printable ones first, the others moved to 256 and up.
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges).save_pretrained(tmp_path)
    text_config(len(tokens)).save_pretrained(tmp_path)

    ids, mask = encode(Clip(model=str(tmp_path)), ["A photo  of a cat"])
    assert ids[0].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407] + [49407] * 70
    assert mask[0].tolist() == [1] * 7 + [0] * 70


def test_states_equal_those_of_transformers_one_by_one(folder: Path) -> None:
    encoder = Clip(model=str(folder))
    ids, mask = encode(encoder, CAPTIONS)
    states = encoder.load_module(encoder.build_tokenizer([]))(ids, mask)
    assert states.shape == (3, 77, 16)
    assert states.dtype == torch.float32
    assert torch.isfinite(states).all()

    reference = CLIPTextModel.from_pretrained(folder)
    for row, caption_ids, caption_mask in zip(states, ids, mask, strict=True):
        length = int(caption_mask.sum())
        expected = reference(caption_ids[None, :length]).last_hidden_state[0]  # the caption without any padding
        torch.testing.assert_close(row[:length], expected, rtol=0, atol=1e-6)


def test_penultimate_is_the_network_without_its_last_block(folder: Path) -> None:
    encoder = Clip(model=str(folder), layer="penultimate")
    ids, mask = encode(encoder, CAPTIONS)
    states = encoder.load_module(encoder.build_tokenizer([]))(ids, mask)
    reference = CLIPTextModel.from_pretrained(folder)
    del reference.encoder.layers[-1]
    torch.testing.assert_close(states, reference(ids, attention_mask=mask).last_hidden_state, rtol=0, atol=1e-6)


def test_padding_is_masked(folder: Path) -> None:
    encoder = Clip(model=str(folder))
    ids, mask = encode(encoder, CAPTIONS[:2])
    module = encoder.load_module(encoder.build_tokenizer([]))
    assert not torch.allclose(module(ids, mask)[:, -1], module(ids, torch.ones_like(mask))[:, -1], atol=1e-4)


def test_stays_frozen_and_in_evaluation_mode(folder: Path) -> None:
    encoder = Clip(model=str(folder))
    module = encoder.load_module(encoder.build_tokenizer([]))
    trainer = torch.nn.ModuleList([module]).train()
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in trainer.parameters())


def test_reads_the_cache_without_network(folder: Path, cache: Path) -> None:
    put_into_cache(cache, folder, "0123456789abcdef0123456789abcdef01234567")
    for revision in (None, "main", "0123456789abcdef0123456789abcdef01234567"):
        encoder = Clip(model="owner/tiny", revision=revision)
        assert encoder.context_dim == 16
    encoder.load_module(encoder.build_tokenizer([]))


def test_the_commit_that_a_recipe_pins_is_read_and_recorded(
    folder: Path, cache: Path, workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest, pinned = "a" * 40, "0123456789abcdef0123456789abcdef01234567"
    put_into_cache(cache, folder, newest)
    other = cache / "models--owner--tiny" / "snapshots" / pinned
    shutil.copytree(folder, other)
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.final_layer_norm.weight"] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    (cache / "models--owner--tiny" / "refs" / "v1").write_text(pinned)
    for model, revision, commit in [
        ("owner/tiny", None, newest),
        ("owner/tiny@v1", None, pinned),
        (f"owner/tiny@{pinned}", None, pinned),
        ("owner/tiny", "v1", pinned),
    ]:
        encoder = Clip(model=model, revision=revision)
        assert encoder.commit == commit
        norm = encoder.load_module(encoder.build_tokenizer([])).text_model.final_layer_norm
        assert float(norm.weight.detach().mean()) == (2 if commit == pinned else 1)
    with pytest.raises(LdmkitError, match="names a revision, and so does the key `revision`"):
        _ = Clip(model="owner/tiny@v1", revision="v1").context_dim
    with pytest.raises(LdmkitError, match="owner/tiny at revision v2"):
        _ = Clip(model="owner/tiny@v2").context_dim

    shutil.copytree(folder, workshop.folder / "clip@v1")  # a folder is a folder, whatever its name
    monkeypatch.chdir(workshop.folder)
    encoder = Clip(model="clip@v1")
    assert (encoder.context_dim, encoder.commit) == (16, None)
    recipe = (workshop.folder / "tiny.toml").read_text()
    text = '[text]\nuse = "clip"\nmodel = "owner/tiny@v1"\n\n'
    recipe = recipe[: recipe.index("[text]")] + text + recipe[recipe.index("[vae]") :]
    (workshop.folder / "tiny.toml").write_text(recipe)
    workshop.pipeline().run(("caption",))
    assert make_text(workshop.pipeline())["commit"] == pinned


def test_a_preview_strikes_out_what_is_not_seen(folder: Path, cache: Path, workshop: Any) -> None:
    (workshop.folder / "pictures" / "05.txt").write_text("cat " * 25 + "ab & <dog>")
    recipe = (workshop.folder / "tiny.toml").read_text()
    recipe = recipe[: recipe.index("[text]")] + '[text]\nuse = "clip"\n\n' + recipe[recipe.index("[vae]") :]
    (workshop.folder / "tiny.toml").write_text(recipe)
    page = workshop.run / "captions-preview.html"
    workshop.pipeline(f"text.model='{folder}'").preview_captions(20)
    assert "1 of 20 are longer than the 77 tokens of clip" in page.read_text()
    # Of 77 tokens two are the beginning and the end, the others the letters of the cats, as this tokenizer has them.
    assert re.findall("(.{7})<s>(.+?)</s>", page.read_text()) == [("cat cat", " ab &amp; &lt;dog&gt;")]
    workshop.pipeline("text.model='owner/none'").preview_captions(20)
    assert "their tokens are not counted, clip cannot be had: text encoder &#x27;clip&#x27;" in page.read_text()


def test_neither_cache_nor_hub(cache: Path, asked: list[object]) -> None:
    with pytest.raises(LdmkitError, match="no network in tests") as caught:
        _ = Clip(revision="v1").context_dim
    assert 1 <= len(asked) <= 2  # no retries, each of which would wait
    for words in ("openai/clip-vit-large-patch14 at revision v1", "HF_HOME", "text.model", "local folder"):
        assert words in str(caught.value)


def test_offline_mode(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LdmkitError, match="offline mode is enabled"):
        _ = Clip().max_tokens


def test_silent_hub_is_left_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(ldmkit.components.hub, "HUB_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, never answers
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(LdmkitError, match="gives no answer: timed out"):
            _ = Clip(model="owner/tiny").context_dim
        server.setblocking(False)
        server.accept()[0].close()
        with pytest.raises(BlockingIOError):  # it was asked once
            server.accept()


class Refusal(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def refusing_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with HTTPServer(("127.0.0.1", 0), Refusal) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("refusing_hub")
def test_repository_that_does_not_exist() -> None:
    with pytest.raises(LdmkitError, match=r"refuses owner/tiny: .*correct text\.model"):
        _ = Clip(model="owner/tiny").context_dim


def test_folder_that_does_not_exist(cache: Path) -> None:
    with pytest.raises(LdmkitError, match=r"/no/such/folder is neither a folder"):
        _ = Clip(model="/no/such/folder").context_dim


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "can't read text.model"),
        ("model.safetensors", "model.safetensors"),
        ("tokenizer", "the tokenizer of .* has 2 entries"),
    ],
)
def test_incomplete_folder(folder: Path, tmp_path: Path, missing: str, message: str) -> None:
    for path in folder.iterdir():
        if not path.name.startswith(missing):
            shutil.copy(path, tmp_path)
    encoder = Clip(model=str(tmp_path))
    with pytest.raises(LdmkitError, match=message) as caught:
        encoder.load_module(encoder.build_tokenizer([]))
    assert str(tmp_path) in str(caught.value)


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    encoder = Clip(model=str(tmp_path))
    with pytest.raises(LdmkitError, match="safetensors"):
        encoder.load_module(encoder.build_tokenizer([]))


def test_damaged_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    encoder = Clip(model=str(tmp_path))
    tokenizer = encoder.build_tokenizer([])

    tensors = load_file(weights)
    save_file({key: value for key, value in tensors.items() if "q_proj" not in key}, weights, {"format": "pt"})
    with pytest.raises(LdmkitError, match=r"lack .*q_proj"):
        encoder.load_module(tokenizer)

    save_file(tensors, weights, {"format": "pt"})
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(LdmkitError, match=r"can't read text\.model"):
        encoder.load_module(tokenizer)


def test_folder_of_another_model(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert"
    with pytest.raises(LdmkitError, match="is a 'bert', not a CLIP"):
        _ = Clip(model=str(tmp_path)).context_dim


def test_code_in_a_models_folder_is_not_run(tmp_path: Path) -> None:
    """transformers would ask on the terminal whether to run it."""
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: ...\n")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LdmkitError, match=r"can't read text\.model"):
        _ = Clip(model=str(tmp_path)).context_dim
    assert not canary.exists()

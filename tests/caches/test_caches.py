"""Encoding that is killed and goes on; text states without their padding; a GPU that runs out of memory."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldmkit.caches.encode import BATCH, _Encoder
from ldmkit.caches.sets import TextSet
from ldmkit.errors import LdmkitError
from ldmkit.models.build import build_text_to_image
from ldmkit.models.unet import UNet
from ldmkit.report import Reporter
from ldmkit.run.networks import load_autoencoder
from ldmkit.run.randomness import derive
from tests.training.test_processes import both

CAPTIONS = ("a red cat", "a blue cat", "a cat on a mat", "two cats")
ENCODE = ("encode", "tiny.toml", "--set", 'plugins=["./words.py", "./shards.py"]')
SMALL_SHARDS = """
from ldmkit.caches import encode

encode.SHARD = encode.BATCH = 4
"""
PLUGIN = '''
from ldmkit import hookimpl


class Words:
    """A word's state is made of the words up to it."""

    trainable = False
    context_dim = 6
    max_tokens = 9

    def build_tokenizer(self, captions):
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        words = sorted({word for caption in captions for word in caption.split()})
        vocabulary = {word: i for i, word in enumerate(["[PAD]", "[BOS]", *words])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, "[PAD]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 1)])
        tokenizer.enable_truncation(self.max_tokens)
        tokenizer.enable_padding(length=self.max_tokens)
        return tokenizer

    def load_module(self, tokenizer):
        import torch

        class States(torch.nn.Module):
            def forward(self, ids, mask):
                waves = torch.sin((ids[..., None] + 1) * torch.arange(1, 7))
                return torch.cumsum(waves, dim=1)

        return States()


@hookimpl
def register_text_encoders():
    return {"words": Words}
'''


def in_small_shards(trained: Any, folder: Path) -> Path:
    """A copy of the trained workshop before it encoded, with a frozen encoder and longer captions; returns its run."""
    shutil.copytree(trained.folder, folder, dirs_exist_ok=True)
    run = folder / "runs" / "tiny"
    for part in ("latents", "text", "unet", "t2i"):
        shutil.rmtree(run / part)
    (folder / "words.py").write_text(PLUGIN)
    (folder / "shards.py").write_text(SMALL_SHARDS)
    recipe = (folder / "tiny.toml").read_text()
    recipe = recipe[: recipe.index("[text]")] + '[text]\nuse = "words"\n\n' + recipe[recipe.index("[vae]") :]
    (folder / "tiny.toml").write_text('plugins = ["./words.py"]\n' + recipe)
    # Each picture with a caption of its own, so that there are several shards of them.
    for i in range(20):
        (folder / "pictures" / f"{i:02d}.txt").write_text(" ".join([CAPTIONS[i % 4], *["very"] * (i % 6), f"n{i}"]))
    return run


def contents(part: Path) -> dict[str, bytes]:
    """Of each file but the record, which holds times."""
    return {path.name: path.read_bytes() for path in part.iterdir() if path.name != "record.json"}


@pytest.fixture(scope="module")
def undisturbed(trained: Any, processes: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(run, workshop) encoded in small shards, frozen states among them. Read only."""
    folder = tmp_path_factory.mktemp("shards")
    run = in_small_shards(trained, folder)
    code, output = processes.run(folder, ("caption", "tiny.toml"), ENCODE)
    assert code == 0, output
    return run, type(trained)(folder)


def test_killed_between_shards(undisturbed: Any, trained: Any, processes: Any, tmp_path: Path) -> None:
    """Each shard's progress is opened, renamed and swept: 5 shards of pictures, then 6 of captions."""
    run = in_small_shards(trained, tmp_path)
    code, output = processes.run(tmp_path, ("caption", "tiny.toml"))
    assert code == 0, output
    for strike, behind in [
        (5, None),  # at the rename of the second: one is safe
        (4, "encode latents: resuming after picture 4 of 20"),
        (8, "encode latents: resuming after picture 8 of 20"),
        (5, "encode latents: resuming after picture 16 of 20"),  # and at the rename of the first captions
        (7, None),
        (-1, "encode text: resuming after caption 8 of 21"),
    ]:
        code, output = processes.run(tmp_path, ENCODE, strike=strike, at="/.progress.json")
        assert code == (0 if strike == -1 else -signal.SIGKILL), output
        assert [line for line in output.splitlines() if "resuming after" in line] == ([behind] if behind else []), (
            output
        )
    for name in ("latents", "text"):
        assert contents(run / name) == contents(undisturbed[0] / name)


def test_two_processes_make_what_one_makes_whoever_is_killed(
    undisturbed: Any, trained: Any, processes: Any, tmp_path: Path
) -> None:
    """Of 5 batches the first process has 3 and the second 2; how far one is, is opened, renamed and swept."""
    run = in_small_shards(trained, tmp_path)
    code, output = processes.run(tmp_path, ("caption", "tiny.toml"))
    assert code == 0, output
    # The second one loses its second batch: the last of the first one comes behind it.
    (code, output), (killed, _) = both(processes, tmp_path, ENCODE, strike=4, at="/.share-1.json")
    assert (code, killed) == (1, -signal.SIGKILL), output
    assert "error: another process of this run has ended" in output
    assert not (run / "latents" / "pictures.json").exists()
    code, output = processes.run(tmp_path, ENCODE, strike=8, at="/.progress.json")  # one alone, at its second batch
    assert code == -signal.SIGKILL
    assert "encode latents: resuming after picture 12 of 20" in output
    (code, output), (other, quiet) = both(processes, tmp_path, ENCODE)
    assert (code, other, quiet) == (0, 0, ""), output
    assert "encode latents: resuming after picture 16 of 20" in output
    for name in ("latents", "text"):
        assert contents(run / name) == contents(undisturbed[0] / name)


def states_one_by_one(workshop: Any) -> list[np.ndarray]:
    """Each caption's states by the encoder itself, of nothing but its tokens."""
    pipeline = workshop.pipeline()
    encoder = pipeline.registry.build("text_encoder", {"use": "words"}, where="[text]")
    captions = json.loads((workshop.run / "text" / "captions.json").read_text())
    tokenizer = encoder.build_tokenizer([caption for caption in captions if caption])
    module = encoder.load_module(tokenizer)
    tokenizer.no_padding()
    ids = [torch.tensor([tokenizer.encode(caption).ids]) for caption in captions]
    return [module(each, torch.ones_like(each))[0].numpy() for each in ids]


def test_states_are_kept_once_and_without_padding(undisturbed: Any) -> None:
    run, workshop = undisturbed
    expected = states_one_by_one(workshop)
    lengths = [len(states) for states in expected]
    assert len(set(lengths)) > 3
    assert max(lengths) <= 9
    np.testing.assert_array_equal(np.load(run / "text" / "offsets.npy"), np.cumsum([0, *lengths]))
    np.testing.assert_allclose(np.load(run / "text" / "states.npy"), np.concatenate(expected), atol=1e-6)
    numbers = np.array([3, 0, 7, 3])
    for cut_padding, width in ((True, max(lengths[i] for i in numbers)), (False, 9)):
        states, mask = TextSet(run / "text", cut_padding=cut_padding).batch(numbers, torch.device("cpu"))
        assert (states.shape, mask.shape) == ((4, width, 6), (4, width))
        assert (states.dtype, mask.dtype) == (torch.float32, torch.int64)
        for row, shown, number in zip(states, mask, numbers, strict=True):
            assert shown.tolist() == [1] * lengths[number] + [0] * (width - lengths[number])
            np.testing.assert_allclose(row[: lengths[number]], expected[number], atol=1e-6)
            assert not row[lengths[number] :].any()
    states, mask = TextSet(run / "text", cut_padding=True).batch(np.array([0]), torch.device("cpu"))
    assert states.shape == (1, 1, 6)


def test_padding_is_kept_for_a_network_that_attends_to_it(
    undisturbed: Any, trained: Any, processes: Any, tmp_path: Path
) -> None:
    in_small_shards(trained, tmp_path)
    shutil.copytree(undisturbed[0], tmp_path / "runs" / "tiny", dirs_exist_ok=True)
    workshop = type(trained)(tmp_path)
    states = workshop.pipeline("t2i.mask_padding=false").states()
    stale = {name for name, status in states.items() if status.state == "stale"}
    assert "text" in stale
    assert "latents" not in stale
    arguments = (*ENCODE, "--set", "t2i.mask_padding=false")
    code, output = processes.run(tmp_path, ("caption", "tiny.toml"), arguments)
    assert code == 0, output
    cut, whole = (TextSet(run / "text") for run in (undisturbed[0], tmp_path / "runs" / "tiny"))
    numbers = np.arange(21)
    (some, mask), (every, same) = (texts.batch(numbers, torch.device("cpu")) for texts in (cut, whole))
    assert torch.equal(mask, same)
    assert torch.equal(every[mask == 1], some[mask == 1])
    assert (every[mask == 0].abs().sum(-1) > 1e-3).all()  # what comes behind the words, as the encoder has it


def waken(network: torch.nn.Module) -> torch.nn.Module:
    """Away from its zeros, so that everything that is seen shows in the output."""
    torch.manual_seed(derive(0, "waken", 0))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def test_network_sees_the_same_of_cut_states(undisturbed: Any) -> None:
    torch.manual_seed(0)
    network = waken(UNet(2, (8, 8), 1, (1,), context_dim=6, num_heads=2, time_dim=8, norm_groups=4))
    x_t, t = torch.randn(4, 2, 8, 8), torch.tensor([1.0, 5.0, 50.0, 500.0])
    texts = [TextSet(undisturbed[0] / "text", cut_padding=cut) for cut in (True, False)]
    numbers = np.array([0, 1, 2, 4])
    cut, whole = (each.batch(numbers, torch.device("cpu")) for each in texts)
    assert cut[0].shape[1] < whole[0].shape[1]
    with torch.no_grad():
        torch.testing.assert_close(network(x_t, t, *cut), network(x_t, t, *whole), atol=1e-5, rtol=0)
        other = texts[1].batch(numbers[::-1].copy(), torch.device("cpu"))
        assert (network(x_t, t, *other) - network(x_t, t, *whole)).abs().max() > 1e-2


def test_trained_encoder_sees_the_same_of_cut_captions(trained: Any) -> None:
    pipeline = trained.pipeline()
    encoder = pipeline.registry.build("text_encoder", pipeline.recipe.text.table(), where="[text]")
    tokenizer = encoder.build_tokenizer(list(CAPTIONS))
    torch.manual_seed(0)
    module = encoder.load_module(tokenizer)
    network = waken(build_text_to_image(pipeline.recipe, pipeline.recipe.vae.latent_channels, encoder, module))
    x_t, t = torch.randn(5, 2, 8, 8), torch.linspace(1, 900, 5)
    cut, whole = (
        TextSet(trained.run / "text", cut_padding=cut).batch(np.arange(5), torch.device("cpu")) for cut in (True, False)
    )
    assert cut[0].shape[1] < whole[0].shape[1] == 16
    with torch.no_grad():
        torch.testing.assert_close(network(x_t, t, *cut), network(x_t, t, *whole), atol=1e-5, rtol=0)


def test_out_of_memory_halves_the_batch(
    trained: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder = load_autoencoder(trained.pipeline().recipe, trained.run / "vae")
    encode, room = autoencoder.encode, 20

    def in_little_memory(pixels: torch.Tensor) -> Any:
        if len(pixels) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(pixels)

    monkeypatch.setattr(autoencoder, "encode", in_little_memory)
    pixels = torch.rand(BATCH, 3, 16, 16) * 2 - 1
    encoder = _Encoder(autoencoder, torch.device("cpu"), Reporter())
    with torch.no_grad():
        mean, std = encoder(pixels)
        assert capsys.readouterr().out.splitlines() == [
            "encode: out of memory; continuing with 32 pictures at a time",
            "encode: out of memory; continuing with 16 pictures at a time",
        ]
        encoder(pixels)
        assert capsys.readouterr().out == ""  # it is not tried again
        expected = encode(pixels)
        np.testing.assert_allclose(mean, expected.mean.numpy(), atol=1e-6)
        np.testing.assert_allclose(std, expected.std.numpy(), rtol=1e-5)
        room = 0
        with pytest.raises(LdmkitError, match=r"out of memory with one picture of 16x16 pixels"):
            encoder(pixels)

"""Which precision and memory layout a network gets, and that the layout changes its numbers by rounding alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldmkit.errors import LdmkitError
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.recipe.training import DiTTraining, Training, UNetTraining
from ldmkit.training.device import cpu_compiler_works, environment, memory_format, resolve_precision
from ldmkit.training.engine import Engine


def test_engines_of_one_process_differ_in_precision() -> None:
    """Each network computes in its own engine's and gives float32, in whatever order they were made and are called."""
    engines, seen = {}, {}
    for precision in ("fp32", "bf16", "fp32 again"):
        engine = Engine("unet", UNetTraining(steps=8, precision=precision[:4].strip()), num_samples=32, seed=0)
        network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        network[0].register_forward_hook(
            lambda _module, _inputs, output, key=precision: seen.update({key: output.dtype})
        )
        engines[precision] = engine, engine.add("model", network)
    for engine, model in reversed(list(engines.values())):
        assert model(torch.ones(1, 2, device=engine.device)).dtype == torch.float32
    assert seen == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp32 again": torch.float32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in fp16")
def test_half_precision_that_needs_a_gpu() -> None:
    with pytest.raises(LdmkitError, match=r'precision = "fp16" needs a GPU'):
        resolve_precision("fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU compiles every long run")
@pytest.mark.parametrize(
    ("section", "shapes", "compiler", "expected"),
    [
        (DiTTraining(use="dit", steps=2000, batch_size=60, patch_size=2), 1, True, True),
        (DiTTraining(use="dit", steps=2000, batch_size=60, patch_size=1), 1, True, True),
        (DiTTraining(use="dit", steps=1999, batch_size=60, patch_size=2), 1, True, False),
        (DiTTraining(use="dit", steps=2000, batch_size=59, patch_size=2), 1, True, False),
        (DiTTraining(use="dit", steps=2000, batch_size=60, patch_size=3), 1, True, False),
        (DiTTraining(use="dit", steps=2000, batch_size=60), 2, True, False),
        (DiTTraining(use="dit", steps=2000, batch_size=60), 1, False, False),
        (DiTTraining(use="dit", steps=2000, batch_size=60, compile="off"), 1, True, False),
        (DiTTraining(use="dit", steps=3, compile="on"), 2, False, True),
        (UNetTraining(steps=50000), 1, True, False),
    ],
)
def test_what_a_cpu_compiles(
    section: Training, shapes: int, compiler: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldmkit.training.engine.cpu_compiler_works", lambda: compiler)
    """By itself what takes three million tokens: of 10 x 10 latents 25 a picture in patches of 2, 9 in patches of 3."""
    tokens, buckets = section.num_tokens(10, 10), np.arange(32) % shapes
    engine = Engine("unet", section, num_samples=32, seed=0, buckets=buckets, num_tokens=tokens)
    assert engine.compiles is expected


def test_a_missing_compiler_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with torch._inductor.config.patch(fx_graph_cache=False):
        assert not cpu_compiler_works.__wrapped__()


def test_checkpoints_keep_their_words_for_precision() -> None:
    """Those of runs made before say `no`, and are compared with."""
    assert [environment(precision)["precision"] for precision in ("fp32", "bf16", "fp16")] == ["no", "bf16", "fp16"]


@pytest.mark.parametrize(
    ("device", "half", "size", "expected"),
    [
        ("cpu", False, 32, torch.channels_last),
        ("cpu", False, 64, torch.channels_last),
        ("cpu", False, 65, torch.contiguous_format),
        ("cpu", True, 256, torch.channels_last),
        ("cuda", False, 256, torch.channels_last),
    ],
)
def test_layout_by_device_precision_and_size(device: str, half: bool, size: int, expected: torch.memory_format) -> None:
    assert memory_format(torch.device(device), half=half, size=size) is expected


def test_a_layout_changes_nothing_but_rounding() -> None:
    torch.manual_seed(0)
    network = AutoencoderKL(channels=(8, 8, 16), latent_channels=2, norm_groups=4).double().eval()
    pixels = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        expected = network.decode(network.encode(pixels).mean)
        found = network.to(memory_format=torch.channels_last)
        laid_out = found.decode(found.encode(pixels.to(memory_format=torch.channels_last)).mean)
    assert found.decoder.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(laid_out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("num_samples", "batch_size", "parts"), [(13, 6, 3), (7, 12, 2), (9, 2, 1)])
@pytest.mark.parametrize("count", [1, 2])
def test_processes_together_see_every_sample_once_an_epoch(
    num_samples: int, batch_size: int, parts: int, count: int
) -> None:
    """Also where neither batches nor processes divide an epoch: none is lost, none comes twice."""
    section, shares = UNetTraining(steps=8, batch_size=batch_size, grad_accumulation=parts), []
    for rank in range(count):
        engine = Engine("unet", section, num_samples=num_samples, seed=0)
        engine.processes = SimpleNamespace(num_processes=count, process_index=rank)  # type: ignore[assignment]
        steps = [[engine.positions(step)[part] for part, _ in engine.micro_batches()] for step in range(num_samples)]
        shares.append(np.array(steps).reshape(num_samples, -1))  # (steps, batch_size / count)
    epochs = np.concatenate(shares, axis=1).reshape(-1, num_samples)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_samples), (batch_size, 1)))

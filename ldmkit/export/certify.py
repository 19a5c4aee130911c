"""Whole pictures by the bundle against torch, and the pictures that another machine's are compared with."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ldmkit.components.registry import Registry
from ldmkit.diffusion.process import make_schedule
from ldmkit.diffusion.torch_sampling import draw_latents
from ldmkit.errors import LdmkitError
from ldmkit.export.graph import save_graph
from ldmkit.export.half import rounded_as_on_gpu
from ldmkit.export.networks import Network
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.generate import to_pictures
from ldmkit.runtime.manifest import (
    GRAPHS,
    TEXT_ENCODER,
    UNET,
    UNET_T2I,
    VAE_DECODER,
    WEIGHTS,
    Golden,
    Trajectory,
    file_entry,
    write_manifest,
)
from ldmkit.runtime.pictures import grid
from ldmkit.runtime.verify import psnr

MIN_PSNR = {"fp32": 45.0, "fp16-weights": 40.0, "fp16": 40.0}
"""dB between the bundle's pictures and torch's in float32, below which an export fails"""
GOLDEN_PSNR = {"fp32": 40.0, "fp16-weights": 40.0, "fp16": 37.0}
"""dB between the golden pictures here and there. Where float16 rounds otherwise, two errors of its own kind add up."""
STEPS = 20
SEEDS = (0, 1, 2, 3)


def certify(bundle: Bundle, networks: dict[str, Network], prompts: Sequence[str]) -> dict[str, Trajectory]:
    """Draws the same pictures by the bundle and by torch with each U-Net, at the bundle's own sampler and guidance.

    `prompts` are drawn in turn. Raises LdmkitError where a picture differs by more than the bundle's precision allows.
    """
    manifest, found = bundle.manifest, {}
    steps = min(STEPS, manifest.schedule.num_timesteps)
    for name in (name for name in (UNET, UNET_T2I) if name in networks):
        words = (prompts or ["a picture"]) if name == UNET_T2I else [""]
        asked = [words[k % len(words)] for k in range(len(SEEDS))]
        by_bundle = bundle.generate(asked, seed=SEEDS[0], steps=steps)
        by_torch = draw_by_torch(bundle, networks, asked, SEEDS, steps=steps)
        colours = [np.array([np.asarray(each, dtype=np.int16) for each in side]) for side in (by_bundle, by_torch)]
        trajectory = found[name] = Trajectory(
            sampler=manifest.defaults.sampler,
            steps=steps,
            guidance_scale=manifest.defaults.guidance_scale if name == UNET_T2I else 1,
            seeds=SEEDS,
            psnr=min(map(psnr, by_bundle, by_torch)),
            min_psnr=MIN_PSNR[manifest.precision],
            max_difference=int(np.abs(colours[0] - colours[1]).max()),
        )
        if trajectory.psnr < trajectory.min_psnr:
            least, way = trajectory.min_psnr, "another opset in [export]"
            if manifest.precision != "fp32":
                more = " or fp16-weights" if manifest.precision == "fp16" else ""
                way = f"`ldmkit export onnx --precision fp32`{more}"
            raise LdmkitError(
                f"{name}: after {steps} steps its pictures differ from torch's, PSNR {trajectory.psnr:.1f} dB where "
                f"{manifest.precision} must reach {least:g}. Try {way}"
            )
    return found


@contextmanager
def rounded_bundle(bundle: Bundle) -> Iterator[Bundle]:
    """The bundle of `to_half`'s graphs as a GPU would draw from it: see `rounded_as_on_gpu`."""
    import onnx

    with TemporaryDirectory(prefix=".", suffix=".rounded", dir=bundle.folder.parent) as temporary:
        folder = Path(temporary)
        for name in bundle.manifest.files:
            if name in GRAPHS:
                save_graph(rounded_as_on_gpu(onnx.load(bundle.folder / name)), folder / name)
            elif name not in WEIGHTS.values():
                shutil.copyfile(bundle.folder / name, folder / name)
        files = {path.name: file_entry(path) for path in sorted(folder.iterdir())}
        write_manifest(folder, bundle.manifest.model_copy(update={"files": files}))
        yield Bundle.load(folder, provider="cpu")


@torch.inference_mode()
def draw_by_torch(
    bundle: Bundle, networks: dict[str, Network], prompts: list[str], seeds: Sequence[int], *, steps: int
) -> list[Image.Image]:
    """What `bundle.generate` draws, one picture a prompt, all of them empty or none, by the modules in `networks`."""
    manifest = bundle.manifest
    latent, defaults = manifest.latent, manifest.defaults
    table = {"use": defaults.sampler, "steps": steps, **defaults.sampler_options}
    sources = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]

    def randn_like(x: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([source.standard_normal(x.shape[1:]) for source in sources]))

    text = None
    name = UNET
    if prompts[0] or UNET not in networks:
        name, encoder = UNET_T2I, networks[TEXT_ENCODER].module
        text = (_encode_prompts(bundle, encoder, prompts), _encode_prompts(bundle, encoder, [""] * len(prompts)))
    network = networks[name].module
    # float64 between the network's calls, as in the runtime.
    latents = draw_latents(
        lambda x_t, t, *text: network(x_t.float(), t, *text),
        randn_like(torch.empty(len(seeds), latent.channels, latent.height, latent.width)),
        sampler=Registry.load().build("sampler", table, where="sampler"),
        schedule=make_schedule(**manifest.schedule.model_dump()),
        prediction=manifest.prediction,
        randn_like=randn_like,
        text=text,
        guidance_scale=defaults.guidance_scale if prompts[0] else 1,
    )
    return to_pictures(networks[VAE_DECODER].module(latents.float()).numpy())


def _encode_prompts(bundle: Bundle, encoder: nn.Module, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """States (B, L, D) and mask (B, L) of the prompts."""
    encodings = bundle.tokenizer.encode_batch(prompts)
    ids, mask = (torch.tensor([getattr(one, key) for one in encodings]) for key in ("ids", "attention_mask"))
    return encoder(ids, mask), mask


def draw_golden(bundle: Bundle, prompts: Sequence[str]) -> tuple[Golden, Image.Image]:
    """One picture with a prompt and one without, as far as the bundle draws either, so that every graph takes part."""
    manifest = bundle.manifest
    asked = ([prompts[0]] if prompts and bundle.draws_text else []) + [""]
    golden = Golden(
        prompts=tuple(asked),
        seed=0,
        steps=min(STEPS, manifest.schedule.num_timesteps),
        guidance_scale=manifest.defaults.guidance_scale,
        sampler=manifest.defaults.sampler,
        min_psnr=GOLDEN_PSNR[manifest.precision],
    )
    pictures = bundle.generate(asked, seed=golden.seed, steps=golden.steps)
    return golden, grid(pictures, columns=len(pictures), gap=0)

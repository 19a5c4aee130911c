"""Seconds a denoising step: a bundle against torch, and against diffusers' way of looping in torch.

python -m benchmarks.drawing.step DIR [--batches 1 --batches 4] [--rounds 7] [--steps 20]

DIR as `benchmarks.original.bundle` writes it: the seed's text U-Net with the same random weights on all sides, DDIM,
guidance in one doubled batch, sampler included. torch: inference mode, our sampler on its tensors. diffusers:
`DDIMScheduler` and the loop of its pipeline for Stable Diffusion, under no_grad.
"""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.command import run
from benchmarks.original.bundle import GUIDANCE, PROMPT
from benchmarks.turns import Contender, Turn, print_ratio, print_timings, take_turns

PRELOAD = ("torch", "diffusers", "ldmkit.runtime.generate", "ldmkit_samplers", "benchmarks.original.networks")
PER_WALK = 20


def bundle(turn: Turn, folder: Path, batch: int) -> None:
    """Walks so long that no decoder comes between the steps that are timed."""
    from ldmkit.runtime.bundle import Bundle

    opened = Bundle.load(folder / "bundle", provider="cpu")
    while True:
        opened.generate(PROMPT, n=batch, steps=1000, batch_size=batch, on_step=lambda _: turn())


def in_torch(turn: Turn, folder: Path, batch: int) -> None:
    """Our sampler on torch's tensors."""
    import torch
    from ldmkit_samplers import DDIM

    from ldmkit.diffusion.process import make_schedule

    unet, context = _unet(folder), torch.randn(2 * batch, 77, 768)
    schedule = make_schedule("linear")

    def denoise(x_t: torch.Tensor, t: float) -> torch.Tensor:
        turn()
        cond, uncond = unet(torch.cat([x_t, x_t]), torch.full((2 * batch,), t), context).chunk(2)
        eps = uncond + GUIDANCE * (cond - uncond)
        return (x_t - float(schedule.sigma(t)) * eps) / float(schedule.alpha(t))

    with torch.inference_mode():
        while True:
            DDIM(steps=PER_WALK).sample(denoise, torch.randn(batch, 4, 32, 32), schedule, torch.randn_like)


def in_diffusers(turn: Turn, folder: Path, batch: int) -> None:
    """The loop of diffusers' StableDiffusionPipeline."""
    import torch
    from diffusers import DDIMScheduler

    unet, context = _unet(folder), torch.randn(2 * batch, 77, 768)
    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    scheduler = DDIMScheduler(**betas, timestep_spacing="trailing", clip_sample=False)
    with torch.no_grad():
        while True:
            scheduler.set_timesteps(PER_WALK)
            latents = torch.randn(batch, 4, 32, 32) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                turn()
                latent_model_input = scheduler.scale_model_input(torch.cat([latents] * 2), t)
                noise_pred = unet(latent_model_input, t.expand(2 * batch), context)
                noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
                noise_pred = noise_pred_uncond + GUIDANCE * (noise_pred_text - noise_pred_uncond)
                latents = scheduler.step(noise_pred, t, latents, return_dict=False)[0]


def _unet(folder: Path) -> Any:
    import torch

    from benchmarks.original.networks import TextUNet

    unet = TextUNet().eval()
    unet.load_state_dict(torch.load(folder / "torch" / "unet.pth", weights_only=True))
    return unet


def main(folder: Path, *, batches: list[int] = [1, 4], rounds: int = 7, steps: int = 20) -> None:  # noqa: B006 - read only
    for batch in batches:
        contenders: dict[str, Contender] = {
            "bundle": (bundle, (folder, batch)),
            "torch": (in_torch, (folder, batch)),
            "diffusers": (in_diffusers, (folder, batch)),
        }
        print(f"batch {batch}")
        timings = take_turns(contenders, rounds=rounds, steps=steps, preload=PRELOAD)
        print_timings(timings, batch=batch)
        print(f"time of the bundle / torch: {1 / statistics.median(timings['bundle'].ratios(timings['torch'])):.2f}")
        print_ratio(timings, "bundle", "diffusers")


if __name__ == "__main__":
    run(main)

"""Seconds a denoising step: a bundle against torch, and against diffusers' way of looping in torch.

python benchmarks/draw_step.py DIR [--batches 1 4] [--rounds 7] [--steps 20]     DIR as seed_bundle.py writes it

The seed's text U-Net with the same random weights on all sides, DDIM, guidance in one doubled batch, sampler included.
torch: inference mode, our sampler on its tensors. diffusers: `DDIMScheduler` and the loop of its pipeline for Stable
Diffusion, under no_grad. unguided: torch at guidance 1, a single batch: a step of the seed's own 1000-step DDPM.
"""

import argparse
from pathlib import Path

from seed_bundle import GUIDANCE, PROMPT
from turns import Turn, print_ratio, print_table, take_turns

PRELOAD = ("torch", "diffusers", "ldmkit.runtime.generate", "ldmkit_samplers", "seed_networks")
PER_WALK = 20


def bundle(turn: Turn, folder: Path, batch: int) -> None:
    """Walks on and on; every step is a call of `turn`."""
    from ldmkit.runtime.bundle import Bundle
    from ldmkit.runtime.generate import draw_latents, network_of
    from ldmkit.runtime.request import DrawRequest, each_prompt
    from ldmkit.runtime.settings import resolve

    opened = Bundle.load(folder / "bundle", provider="cpu")
    settings = resolve(opened, DrawRequest(each_prompt(PROMPT, n=batch), steps=PER_WALK))
    network = network_of(opened, settings.pictures, settings)
    while True:
        draw_latents(opened, settings, network, settings.pictures, None, lambda call, x0: turn())


def in_torch(turn: Turn, folder: Path, batch: int, guidance: float) -> None:
    """Our sampler on torch's tensors."""
    import torch
    from ldmkit_samplers import DDIM

    from ldmkit.diffusion.process import make_schedule

    unet, context = _unet(folder), torch.randn(2 * batch, 77, 768)
    schedule = make_schedule("linear")

    def denoise(x_t: torch.Tensor, t: float) -> torch.Tensor:
        turn()
        if guidance == 1:
            eps = unet(x_t, torch.full((batch,), t), context[:batch])
        else:
            cond, uncond = unet(torch.cat([x_t, x_t]), torch.full((2 * batch,), t), context).chunk(2)
            eps = uncond + guidance * (cond - uncond)
        return (x_t - float(schedule.sigma(t)) * eps) / float(schedule.alpha(t))  # type: ignore[no-any-return] # a module's call is Any

    with torch.inference_mode():
        while True:
            DDIM(steps=PER_WALK).sample(denoise, torch.randn(batch, 4, 32, 32), schedule, torch.randn_like)


def in_diffusers(turn: Turn, folder: Path, batch: int) -> None:
    """The loop of diffusers' StableDiffusionPipeline."""
    import torch
    from diffusers import DDIMScheduler

    unet, context = _unet(folder), torch.randn(2 * batch, 77, 768)
    scheduler = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing", clip_sample=False
    )
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


def _unet(folder: Path):  # type: ignore[no-untyped-def] # torch is imported in the contenders alone
    import torch
    from seed_networks import TextUNet

    unet = TextUNet().eval()
    unet.load_state_dict(torch.load(folder / "torch" / "unet.pth", weights_only=True))
    return unet


def main() -> None:
    """Prints a table and ratios for each batch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="of benchmarks/seed_bundle.py")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="steps a round (20)")
    chosen = parser.parse_args()
    for batch in chosen.batches:
        contenders = {
            "bundle": (bundle, (chosen.folder, batch)),
            "torch": (in_torch, (chosen.folder, batch, GUIDANCE)),
            "diffusers": (in_diffusers, (chosen.folder, batch)),
            "torch unguided": (in_torch, (chosen.folder, batch, 1.0)),
        }
        timings = take_turns(contenders, rounds=chosen.rounds, steps=chosen.steps, preload=PRELOAD)
        print(f"batch {batch}")
        print_table(timings, batch=batch)
        ours, theirs = timings["bundle"], timings["torch"]
        print(f"time of the bundle / torch: {1 / ours.speedup(theirs)[0]:.2f}")
        print_ratio("bundle to diffusers", ours, timings["diffusers"])
        calls = 1000 / 20
        faster = ours.speedup(timings["torch unguided"])[0] * calls
        print(f"20 guided steps against 1000 of the seed's DDPM in torch: {faster:.0f} times as fast, decoder left out")


if __name__ == "__main__":
    main()

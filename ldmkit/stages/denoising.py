"""What `train-unet` and `train-t2i` share: the denoising loss, its held-out value and the sample grids."""

from functools import partial
from typing import Any

import numpy as np
import torch

from ldmkit.diffusion import add_noise, draw_timesteps, loss_weight, make_schedule, target
from ldmkit.randomness import derive
from ldmkit.recipe.sections import UNetTraining
from ldmkit.stages.context import StageContext
from ldmkit.stages.drawing import Text, draw_latents
from ldmkit.stages.ema import emas_of
from ldmkit.stages.latent_set import LatentSet
from ldmkit.stages.networks import load_autoencoder
from ldmkit.stages.plots import grid
from ldmkit.stages.training import Metrics, Trainer

MAX_HELD_OUT = 512
"""held-out latents that an evaluation looks at"""
NUM_PREVIEWS = 16


class DenoisingTask:
    """One U-Net learning to denoise cached latents, Ho et al. 2020, alg. 1. Subclasses bring the text."""

    def __init__(
        self,
        context: StageContext,
        trainer: Trainer,
        section: UNetTraining,
        network: torch.nn.Module,
        latents: LatentSet,
        train: np.ndarray,
        held_out: np.ndarray,
    ) -> None:
        network.to(memory_format=torch.channels_last)
        self.trainer = trainer
        self.recipe = context.recipe
        self.latents = latents
        self.train = train
        self.held_out = held_out[:MAX_HELD_OUT]
        self.schedule = make_schedule(**self.recipe.diffusion.schedule_options())
        self.sampler = context.registry.build("sampler", self.recipe.sampler.table(), where="[sampler]")
        self.autoencoder = load_autoencoder(self.recipe, context.folder("vae"))
        self.emas = emas_of(network, section.ema_decays, trainer.device)
        self.memory: dict[str, Any] = {}
        if trainer.compiles:
            network.compile()  # in place: the keys of the state dict stay as they are
        optimizer = trainer.optimizer(network.parameters(), section.learning_rate)
        self.model, self.optimizer = trainer.accelerator.prepare(network, optimizer)
        self.modules: dict[str, torch.nn.Module] = {"model": network}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"model": self.optimizer}
        self.learning_rates = {"model": section.learning_rate}

    def text(self, indices: np.ndarray, step: int | None) -> Text:
        """Text of these pictures; with a step, that step's caption dropout is applied to the whole batch."""
        return ()

    def preview_text(self) -> tuple[Text, Text] | None:
        """(prompts, empty prompts) of the sample grids; None draws without text."""
        return None

    def train_step(self, step: int) -> dict[str, torch.Tensor]:
        trainer, diffusion = self.trainer, self.recipe.diffusion
        indices = self.train[trainer.positions(step)]
        mirrored = trainer.uniform("flip", step) < (0.5 if self.recipe.data.flip else 0.0)
        t = draw_timesteps(trainer.uniform("timestep", step), self.schedule, diffusion.timesteps)
        noise = trainer.noise("noise", step, self.latents.shape)
        posterior_noise = trainer.noise("posterior", step, self.latents.shape)
        text = self.text(indices, step)
        self.model.train()
        total = torch.zeros((), device=trainer.device)
        for part, last in trainer.micro_batches():
            x0 = self.latents.batch(indices[part], mirrored[part], posterior_noise[part])
            with trainer.exchange(self.model, last=last):
                loss = self._loss(self.model, x0, t[part], noise[part], tuple(x[part] for x in text))
                trainer.check_finite(loss, partial(self._suspects, indices[part], x0))
                trainer.backward(loss)
            total = total + loss.detach() / trainer.section.grad_accumulation
        norm = trainer.step_optimizer(
            self.optimizer, self.model.parameters(), lambda: [self.latents.keys[i] for i in indices]
        )
        return {"loss": total, "grad_norm": norm}

    def _suspects(self, indices: np.ndarray, x0: torch.Tensor) -> list[str]:
        """Names of the pictures whose latents are not finite, or else of all."""
        bad = (~torch.isfinite(x0)).flatten(1).any(1).cpu().numpy()
        return [self.latents.keys[i] for i in (indices[bad] if bad.any() else indices)]

    def _loss(
        self, network: torch.nn.Module, x0: torch.Tensor, t: np.ndarray, noise: torch.Tensor, text: Text
    ) -> torch.Tensor:
        """Weighted mean squared error of the prediction."""
        diffusion = self.recipe.diffusion
        alpha, sigma = (
            torch.from_numpy(np.asarray(f(t), dtype=np.float32)).to(x0.device)[:, None, None, None]
            for f in (self.schedule.alpha, self.schedule.sigma)
        )
        x_t = add_noise(x0, noise, alpha, sigma)
        with self.trainer.accelerator.autocast():
            output = network(x_t, torch.from_numpy(t.astype(np.float32)).to(x0.device), *text)
        error = (output.float() - target(diffusion.prediction, x0, noise, alpha, sigma)) ** 2
        weight = loss_weight(
            diffusion.weighting,
            diffusion.prediction,
            alpha,
            sigma,
            min_snr_gamma=diffusion.min_snr_gamma,
            p2_k=diffusion.p2_k,
            p2_gamma=diffusion.p2_gamma,
        )
        loss: torch.Tensor = (weight * error).mean()
        return loss

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """Held-out loss at fixed noise and evenly spread timesteps, raw and averaged weights."""
        if not len(self.held_out):
            return {}
        networks = {"": self.modules["model"]} | {f"_{name}": ema.module for name, ema in self.emas.items()}
        count = len(self.held_out)
        t = draw_timesteps((np.arange(count) + 0.5) / count, self.schedule, "uniform")
        metrics: Metrics = {}
        for suffix, network in networks.items():
            network.eval()
            generator = torch.Generator(self.trainer.device).manual_seed(derive(self.trainer.seed, "held-out", 0))
            total = 0.0
            for i in range(0, count, 128):
                indices = self.held_out[i : i + 128]
                x0 = self.latents.batch(indices, np.zeros(len(indices), bool), None).to(self.trainer.device)
                noise = torch.randn(x0.shape, generator=generator, device=x0.device)
                text = self.text(indices, None)
                total += float(self._loss(network, x0, t[i : i + 128], noise, text)) * len(indices)
            metrics[f"held_out_loss{suffix}"] = total / count
        return metrics

    def judge(self, step: int, metrics: Metrics) -> list[str]:
        return []

    @torch.no_grad()
    def draw(self, step: int) -> dict[str, torch.Tensor]:
        """Grids of raw and averaged weights from the same noise."""
        networks = {"raw": self.modules["model"]} | {name: ema.module for name, ema in self.emas.items()}
        return {name: grid(self._sample(network), columns=4) for name, network in networks.items()}

    def _sample(self, network: torch.nn.Module) -> torch.Tensor:
        """(16, 3, H, W) pixels at fixed seeds."""
        device = self.trainer.device
        network.eval()
        generator = torch.Generator(device).manual_seed(derive(self.trainer.seed, "preview", 0))

        def randn_like(x: torch.Tensor) -> torch.Tensor:
            return torch.randn(x.shape, generator=generator, device=device)

        x_T = torch.randn((NUM_PREVIEWS, *self.latents.shape), generator=generator, device=device)  # noqa: N806 - the field's name
        latents = draw_latents(
            network,
            x_T,
            sampler=self.sampler,
            schedule=self.schedule,
            prediction=self.recipe.diffusion.prediction,
            randn_like=randn_like,
            text=self.preview_text(),
            guidance_scale=self.recipe.sampler.guidance_scale,
            autocast=self.trainer.accelerator.autocast,
        )
        mean, std = self.latents.channel_mean.to(device), self.latents.channel_std.to(device)
        pixels: torch.Tensor = self.autoencoder.to(device).decode(latents * std + mean)
        return pixels

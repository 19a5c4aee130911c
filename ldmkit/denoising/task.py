"""What `train-unet` and `train-t2i` share: the denoising loss, its held-out value and the sample grids."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch

from ldmkit.caches.sets import LatentSet
from ldmkit.data.buckets import of_one_bucket
from ldmkit.denoising.conditioning import Conditioning
from ldmkit.denoising.neighbours import Neighbours
from ldmkit.diffusion.process import NoiseSchedule, add_noise, target
from ldmkit.diffusion.torch_sampling import Text, draw_latents
from ldmkit.diffusion.weighting import draw_timesteps, loss_weight
from ldmkit.models.autoencoder import Autoencoder
from ldmkit.recipe.sections import Diffusion
from ldmkit.run.randomness import derive, numpy_generator
from ldmkit.run.workspace import Workspace
from ldmkit.training.ema import emas_of
from ldmkit.training.engine import Engine
from ldmkit.training.plots import grid
from ldmkit.training.task import Metrics

MAX_HELD_OUT = 512
"""held-out latents that an evaluation looks at, a random choice of more"""
MIN_EVALUATED = 128
"""pairs of a held-out picture and a timestep that an evaluation looks at, at least: 32 in each quarter"""
NUM_PREVIEWS = 16


class DenoisingLoss:
    """Weighted mean squared error of what a network predicts, in float32 whatever it computes in within `autocast`."""

    def __init__(
        self, diffusion: Diffusion, schedule: NoiseSchedule, autocast: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self.diffusion = diffusion
        self.schedule = schedule
        self.autocast = autocast

    def __call__(
        self, network: torch.nn.Module, x0: torch.Tensor, t: np.ndarray, noise: torch.Tensor, text: Text
    ) -> torch.Tensor:
        """(B,) losses of the pictures `x0` (B, C, h, w) at the timesteps `t` (B,)."""
        diffusion = self.diffusion
        alpha, sigma = (
            torch.from_numpy(np.asarray(f(t), dtype=np.float32)).to(x0.device)[:, None, None, None]
            for f in (self.schedule.alpha, self.schedule.sigma)
        )
        x_t = add_noise(x0, noise, alpha, sigma)
        with self.autocast():
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
            velocity_floor=diffusion.velocity_floor,
        )
        losses: torch.Tensor = (weight * error).flatten(1).mean(1)
        return losses


class DenoisingTask:
    """One network learning to denoise cached latents under a conditioning, Ho et al. 2020, alg. 1."""

    def __init__(
        self,
        workspace: Workspace,
        engine: Engine,
        network: torch.nn.Module,
        conditioning: Conditioning,
        latents: LatentSet,
        train: np.ndarray,
        held_out: np.ndarray,
        *,
        schedule: NoiseSchedule,
        autoencoder: Autoencoder,
    ) -> None:
        """`train`, `held_out`: indices of pictures in `latents`, which the `autoencoder` decodes in sample grids."""
        recipe = workspace.recipe
        network.to(memory_format=torch.channels_last)
        self.engine = engine
        self.recipe = recipe
        self.conditioning = conditioning
        self.latents = latents
        self.train = train
        # Shuffled: pictures are in the order of their names, which often go by subject.
        self.held_out = numpy_generator(engine.seed, "held-out-order", 0).permutation(held_out)[:MAX_HELD_OUT]
        self.previewed = np.resize((self.held_out if len(self.held_out) else train)[:NUM_PREVIEWS], NUM_PREVIEWS)
        """(16,) pictures whose conditioning the sample grids have"""
        self.neighbours = Neighbours(latents, train, self.held_out, seed=engine.seed, device=engine.device)
        if len(self.neighbours.train) < self.neighbours.num_train:
            workspace.reporter.line(
                f"{engine.name}: samples are compared with {len(self.neighbours.train):,} of the "
                f"{self.neighbours.num_train:,} "
                "training pictures, chosen at random"
            )
        self.loss = DenoisingLoss(recipe.diffusion, schedule, engine.autocast)
        self.memory: dict[str, Any] = {}
        self.modules: dict[str, torch.nn.Module] = {"model": network}
        self.emas = emas_of(network, engine.section.ema_decays, engine.device)
        self.model = engine.add("model", network)
        self.sampler = workspace.registry.build("sampler", recipe.sampler.table(), where="[sampler]")
        self.autoencoder = autoencoder

    def train_step(self, step: int) -> dict[str, torch.Tensor]:
        engine = self.engine
        indices = self.train[engine.positions(step)]
        shape = self.latents.shape_of(self.latents.buckets[indices[0]])
        noise, posterior_noise = engine.noise("noise", step, shape), engine.noise("posterior", step, shape)
        diffusion, u = self.recipe.diffusion, engine.uniform("timestep", step)
        t = draw_timesteps(u, self.loss.schedule, diffusion.timesteps, logit_mean=diffusion.logit_mean)
        mirrored = engine.uniform("flip", step) < (0.5 if self.recipe.data.flip else 0.0)
        with engine.clock.waiting():
            text = self.conditioning.batch(indices, step)
        self.model.train()
        total = torch.zeros((), device=engine.device)
        for part, last in engine.micro_batches():
            with engine.clock.waiting():
                x0 = self.latents.batch(indices[part], mirrored[part], posterior_noise[part])
            with engine.exchange(self.model, last=last):
                loss = self.loss(self.model, x0, t[part], noise[part], tuple(x[part] for x in text)).mean()
                engine.check_finite(loss, partial(self._suspects, indices[part], x0))
                engine.backward(loss)
            total = total + loss.detach() / engine.section.grad_accumulation
        return {"loss": total, "grad_norm": engine.step("model", partial(self.latents.names, indices))}

    def _suspects(self, indices: np.ndarray, x0: torch.Tensor) -> list[str]:
        """Names of the pictures whose latents are not finite, or else of all."""
        bad = (~torch.isfinite(x0)).flatten(1).any(1).cpu().numpy()
        return self.latents.names(indices[bad] if bad.any() else indices)

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """Held-out loss at fixed noise and evenly spread timesteps; how near the newest grid is to training pictures.

        held_out_loss: raw weights; held_out_loss_ema, ...: averages. held_out_loss_t1 .. _t4: the first average's, or
        else the raw weights', within each quarter of the timesteps, t1 the least noisy. All weighted as in training.
        The neighbours' metrics: see `Neighbours.compare`.
        """
        metrics: Metrics = dict(self.memory.get("neighbours", {}))
        if len(self.held_out):
            networks = {"": self.modules["model"]} | {f"_{name}": ema.module for name, ema in self.emas.items()}
            with torch.compiler.set_stance("force_eager"):  # else it would be compiled once more, without gradients
                losses = {suffix: self._held_out_losses(network) for suffix, network in networks.items()}
            metrics |= {f"held_out_loss{suffix}": float(found.mean()) for suffix, found in losses.items()}
            quarters = np.array_split(losses[next((f"_{name}" for name in self.emas), "")], 4)
            metrics |= {f"held_out_loss_t{i}": float(quarter.mean()) for i, quarter in enumerate(quarters, 1)}
        return metrics

    def _held_out_losses(self, network: torch.nn.Module) -> np.ndarray:
        """(N,) losses of held-out pictures at timesteps that rise evenly from 0 to T; few pictures come several times.

        A picture that comes k times comes once in each k-th of the timesteps.
        """
        repeats = -(-MIN_EVALUATED // len(self.held_out))
        pictures = np.tile(self.held_out, repeats)
        t = draw_timesteps((np.arange(len(pictures)) + 0.5) / len(pictures), self.loss.schedule, "uniform")
        generator = torch.Generator(self.engine.device).manual_seed(derive(self.engine.seed, "held-out", 0))
        network.eval()
        losses = np.empty(len(pictures))
        for places in of_one_bucket(self.latents.buckets[pictures], 128):
            indices = pictures[places]
            x0 = self.latents.batch(indices, np.zeros(len(indices), bool), None).to(self.engine.device)
            noise = torch.randn(x0.shape, generator=generator, device=x0.device)
            text = self.conditioning.batch(indices, None)
            losses[places] = self.loss(network, x0, t[places], noise, text).cpu().numpy()
        return losses

    def review(self, step: int, metrics: Metrics) -> list[str]:
        """Warns of memorised samples, again only where they have become more."""
        line = self.neighbours.warning(metrics, NUM_PREVIEWS)
        if line is None or metrics["neighbour_copies"] <= self.memory.get("copies_told", 0.0):
            return []
        self.memory["copies_told"] = metrics["neighbour_copies"]
        return [line]

    @torch.no_grad()
    def draw(self, step: int) -> dict[str, torch.Tensor]:
        """Grids of raw and averaged weights from the same noise.

        `neighbours` shows the samples of the weights that later stages use, each with its nearest training picture on
        its right; their distances are kept for the next evaluation.
        """
        networks = {"raw": self.modules["model"]} | {name: ema.module for name, ema in self.emas.items()}
        with torch.compiler.set_stance("force_eager"):
            latents = {name: self._sample(network) for name, network in networks.items()}
        pixels = {name: self._decode(samples) for name, samples in latents.items()}
        first = next(iter(self.emas), "raw")
        distances, nearest = self.neighbours.nearest(latents[first])
        self.memory["neighbours"] = self.neighbours.compare(distances)
        pairs = torch.stack([pixels[first], self._decode(nearest)], dim=1).flatten(0, 1)
        grids = {name: grid(samples, columns=4) for name, samples in pixels.items()}
        return grids | {"neighbours": grid(pairs, columns=8)}

    def _sample(self, network: torch.nn.Module) -> torch.Tensor:
        """(16, C, h, w) normalised latents at fixed seeds."""
        device = self.engine.device
        network.eval()
        generator = torch.Generator(device).manual_seed(derive(self.engine.seed, "preview", 0))

        def randn_like(x: torch.Tensor) -> torch.Tensor:
            return torch.randn(x.shape, generator=generator, device=device)

        x_T = torch.randn((NUM_PREVIEWS, *self.latents.shape), generator=generator, device=device)  # noqa: N806 - the field's name
        return draw_latents(
            network,
            x_T,
            sampler=self.sampler,
            schedule=self.loss.schedule,
            prediction=self.recipe.diffusion.prediction,
            randn_like=randn_like,
            text=self.conditioning.previews(self.previewed),
            guidance_scale=self.recipe.sampler.guidance_scale,
            autocast=self.engine.autocast,
        )

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) normalised latents to (B, 3, H, W) pixels."""
        device = self.engine.device
        mean, std = self.latents.channel_mean.to(device), self.latents.channel_std.to(device)
        pixels: torch.Tensor = self.autoencoder.to(device).decode(latents.to(device) * std + mean)
        return pixels

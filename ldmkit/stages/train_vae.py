"""Stage `train-vae`: pictures -> `vae/`. The composite loss of Rombach et al. 2021, app. G."""

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from ldmkit.atomic import write_json
from ldmkit.components import AdversarialLoss, Reconstruction
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.stages.adaptive_weight import adaptive_weight
from ldmkit.stages.context import StageContext
from ldmkit.stages.ema import emas_of
from ldmkit.stages.networks import build_autoencoder
from ldmkit.stages.picture_batches import picture_batches
from ldmkit.stages.plots import grid
from ldmkit.stages.training import Metrics, Trainer

MAX_HELD_OUT = 256
"""held-out pictures that an evaluation looks at"""


def train_vae(context: StageContext) -> Metrics:
    """Trains the autoencoder; returns its last held-out metrics."""
    recipe = context.recipe
    train, held_out = context.split()
    trainer = Trainer(context, context.parts["vae"], recipe.vae, num_samples=len(train), seed=recipe.seed)
    torch.manual_seed(trainer.seed)  # the networks' first weights
    task = VaeTask(context, trainer, train, held_out)
    write_json(context.folder("vae") / "config.json", recipe.vae.network())
    return trainer.fit(task)


class VaeTask:
    """The autoencoder, its losses and, for an adversarial one, the discriminator with its own optimizer."""

    def __init__(self, context: StageContext, trainer: Trainer, train: np.ndarray, held_out: np.ndarray) -> None:
        self.trainer = trainer
        self.recipe = context.recipe
        self.section = context.recipe.vae
        self.pictures = context.index.pictures()
        self.train = train
        self.held_out = held_out[:MAX_HELD_OUT]

        autoencoder = build_autoencoder(context.recipe).to(memory_format=torch.channels_last)  # a fifth faster
        self.latent_channels = autoencoder.latent_channels
        self.latent_size = context.recipe.data.size // autoencoder.downsample
        self.terms: dict[str, Any] = {
            name: context.registry.build("loss", loss.table(), where=f"[vae.losses.{name}]")
            for name, loss in self.section.losses.items()
        }
        self.emas = emas_of(autoencoder, self.section.ema_decays, trainer.device)
        self.memory: dict[str, Any] = {}
        if trainer.compiles:
            autoencoder.compile()  # in place: the keys of the state dict stay as they are
        optimizer = trainer.optimizer(autoencoder.parameters(), self.section.learning_rate)
        self.autoencoder = autoencoder
        self.model, self.optimizer = trainer.accelerator.prepare(autoencoder, optimizer)
        self.modules: dict[str, torch.nn.Module] = {"model": autoencoder}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"model": self.optimizer}
        self.learning_rates = {"model": self.section.learning_rate}
        for name, term in self.terms.items():
            if isinstance(term, AdversarialLoss):
                discriminator = term.discriminator
                optimizer = trainer.optimizer(discriminator.parameters(), self.section.discriminator_learning_rate)
                term.discriminator, optimizer = trainer.accelerator.prepare(discriminator, optimizer)
                self.modules[f"discriminator_{name}"] = discriminator
                self.optimizers[f"discriminator_{name}"] = optimizer
                self.learning_rates[f"discriminator_{name}"] = self.section.discriminator_learning_rate
        self._pixels: Iterator[torch.Tensor] | None = None

    def train_step(self, step: int) -> dict[str, torch.Tensor]:
        trainer = self.trainer
        pixels = self._next_pixels(step)
        noise = trainer.noise("posterior", step, (self.latent_channels, self.latent_size, self.latent_size))
        flip = torch.from_numpy(trainer.uniform("flip", step) < (0.5 if self.recipe.data.flip else 0.0))
        active = {name: term for name, term in self.terms.items() if self._has_started(name, step)}
        scalars: dict[str, torch.Tensor] = {}
        reconstructions = []
        self.model.train()
        parts = list(trainer.micro_batches())
        first = parts[0][0].start
        for part, last in parts:
            own = pixels[part.start - first : part.stop - first].to(trainer.device, non_blocking=True)
            mirrored = flip[part].to(trainer.device)[:, None, None, None]
            target = torch.where(mirrored, own.flip(-1), own)
            with trainer.exchange(self.model, last=last):
                with trainer.accelerator.autocast():
                    output, posterior = self.model(target, noise[part])
                # Losses in fp32 whatever the networks run in: LPIPS and exp(logvar) overflow in half precision.
                reconstruction = Reconstruction(
                    target, output.float(), posterior.mean.float(), posterior.logvar.float()
                )
                loss = self._generator_loss(active, reconstruction, scalars, share=len(own) / len(pixels))
                trainer.check_finite(loss, partial(self._names, step, part))
                trainer.backward(loss)
            reconstructions.append(reconstruction)
        scalars["grad_norm"] = trainer.step_optimizer(
            self.optimizer, self.model.parameters(), lambda: self._names(step)
        )
        for name, term in active.items():
            if isinstance(term, AdversarialLoss):
                self._step_discriminator(step, name, term, reconstructions, scalars)
        return scalars

    def _generator_loss(
        self,
        active: dict[str, Any],
        reconstruction: Reconstruction,
        scalars: dict[str, torch.Tensor],
        *,
        share: float,
    ) -> torch.Tensor:
        """Weighted sum of the terms; adds `share` times each to `scalars`."""

        def note(name: str, value: torch.Tensor) -> None:
            scalars[name] = scalars.get(name, torch.zeros((), device=value.device)) + share * value.detach()

        total = torch.zeros((), device=reconstruction.target.device)
        for name, term in active.items():
            if not isinstance(term, AdversarialLoss):
                value = term(reconstruction)
                note(name, value)
                total = total + self.section.losses[name].weight * value
        for name, term in active.items():
            if isinstance(term, AdversarialLoss):
                term.discriminator.requires_grad_(False)  # this pass trains the autoencoder alone
                value = term(reconstruction)
                last_layer = self.autoencoder.decoder.conv_out.weight
                weight = adaptive_weight(total, value, last_layer, self.section.max_adaptive_weight)
                note(name, value)
                note(f"{name}_adaptive_weight", weight)
                total = total + self.section.losses[name].weight * weight * value
        note("loss", total)
        return total

    def _step_discriminator(
        self,
        step: int,
        name: str,
        term: AdversarialLoss,
        reconstructions: list[Reconstruction],
        scalars: dict[str, torch.Tensor],
    ) -> None:
        term.discriminator.requires_grad_(True)
        trainer, key = self.trainer, f"{name}_discriminator"
        parts = zip(reconstructions, trainer.micro_batches(), strict=True)
        for reconstruction, (part, last) in parts:
            with trainer.exchange(term.discriminator, last=last):
                loss = term.discriminator_loss(reconstruction)
                trainer.check_finite(loss, partial(self._names, step, part), what=f"loss of {key}")
                trainer.backward(loss)
            share = loss.detach() / len(reconstructions)
            scalars[key] = scalars.get(key, torch.zeros((), device=loss.device)) + share
        trainer.step_optimizer(
            self.optimizers[f"discriminator_{name}"], term.discriminator.parameters(), lambda: self._names(step)
        )

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        if not len(self.held_out):
            return {}
        networks = {"" if name == "raw" else f"_{name}": network for name, network in self._networks().items()}
        metrics: Metrics = {}
        for suffix, network in networks.items():
            network.eval()
            psnr, loss = 0.0, 0.0
            for batch in self._held_out_pixels():
                target = batch.to(self.trainer.device)
                posterior = network.encode(target)
                output = network.decode(posterior.mean)
                reconstruction = Reconstruction(target, output, posterior.mean, posterior.logvar)
                for name, term in self.terms.items():
                    if not isinstance(term, AdversarialLoss):
                        loss += self.section.losses[name].weight * float(term(reconstruction)) * len(batch)
                one = peak_signal_noise_ratio(
                    output.clamp(-1, 1), target, data_range=2.0, dim=(1, 2, 3), reduction="sum"
                )
                psnr += float(one)
            metrics[f"held_out_loss{suffix}"] = loss / len(self.held_out)
            metrics[f"held_out_psnr{suffix}"] = psnr / len(self.held_out)
        return metrics

    def judge(self, step: int, metrics: Metrics) -> list[str]:
        return []

    @torch.no_grad()
    def draw(self, step: int) -> dict[str, torch.Tensor]:
        chosen = (self.held_out if len(self.held_out) else self.train)[:8]
        target = next(picture_batches(self.pictures, self._single_process(), [chosen])).to(self.trainer.device)
        networks = self._networks()
        rows = [target]
        for network in networks.values():
            network.eval()
            rows.append(network.decode(network.encode(target).mean))
        return {"original_" + "_".join(networks): grid(torch.cat(rows), columns=len(chosen))}

    def _networks(self) -> dict[str, AutoencoderKL]:
        averaged = {name: cast(AutoencoderKL, average.module) for name, average in self.emas.items()}
        return {"raw": self.autoencoder, **averaged}

    def _held_out_pixels(self) -> Iterator[torch.Tensor]:
        batches = [self.held_out[i : i + 32] for i in range(0, len(self.held_out), 32)]
        return picture_batches(self.pictures, self._single_process(), batches)

    def _single_process(self) -> Any:
        # Starting workers takes longer than decoding a few pictures.
        return self.recipe.data.model_copy(update={"num_workers": 0})

    def _next_pixels(self, step: int) -> torch.Tensor:
        """This process's share of the step's pictures; steps are asked for in order."""
        if self._pixels is None:
            parts = [part for part, _ in self.trainer.micro_batches()]
            own = slice(parts[0].start, parts[-1].stop)
            orders = (self.train[self.trainer.positions(s)][own] for s in range(step, self.trainer.num_steps))
            self._pixels = picture_batches(self.pictures, self.recipe.data, orders)
        return next(self._pixels)

    def _has_started(self, name: str, step: int) -> bool:
        loss = self.section.losses[name]
        return step >= max(loss.start_step, loss.start_epoch * len(self.train) // self.section.batch_size)

    def _names(self, step: int, part: slice = slice(None)) -> list[str]:
        return [self.pictures[i].key for i in self.train[self.trainer.positions(step)][part]]

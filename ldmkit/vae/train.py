"""Stage `train-vae`: pictures -> `vae/`. The composite loss of Rombach et al. 2021, app. G."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from ldmkit.atomic import write_json
from ldmkit.components.protocols import AdversarialLoss, Reconstruction
from ldmkit.data.batches import picture_batches
from ldmkit.errors import LdmkitError
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.build import build_autoencoder
from ldmkit.run.workspace import Workspace
from ldmkit.training.ema import emas_of
from ldmkit.training.engine import memory_format
from ldmkit.training.loop import Trainer
from ldmkit.training.plots import grid
from ldmkit.training.task import Metrics
from ldmkit.training.warm_start import load_start
from ldmkit.vae.adaptive_weight import adaptive_weight
from ldmkit.vae.gan_guard import LossGuard
from ldmkit.vae.metrics import reconstruction_metrics

MAX_HELD_OUT = 256
"""held-out pictures that an evaluation looks at"""


def train_vae(workspace: Workspace) -> Metrics:
    """Trains the autoencoder; returns its last held-out metrics."""
    recipe = workspace.recipe
    train, held_out = workspace.split()
    trainer = Trainer(workspace, workspace.parts["vae"], recipe.vae, num_samples=len(train), seed=recipe.seed)
    torch.manual_seed(trainer.seed)  # the networks' first weights
    task = VaeTask(workspace, trainer, train, held_out)
    write_json(workspace.folder("vae") / "config.json", recipe.vae.network())
    return trainer.fit(task)


class VaeTask:
    """The autoencoder, its losses and, for an adversarial one, the discriminator with its own optimizer."""

    def __init__(self, workspace: Workspace, trainer: Trainer, train: np.ndarray, held_out: np.ndarray) -> None:
        self.trainer = trainer
        self.recipe = workspace.recipe
        self.section = workspace.recipe.vae
        self.pictures = workspace.index.pictures()
        self.train = train
        self.held_out = held_out[:MAX_HELD_OUT]

        layout = memory_format(
            trainer.device,
            half=trainer.accelerator.mixed_precision != "no",
            size=self.recipe.data.size // self.section.patch_size,
        )
        autoencoder = build_autoencoder(workspace.recipe).to(memory_format=layout)
        load_start(workspace, "vae", autoencoder)
        self.latent_channels = autoencoder.latent_channels
        self.latent_size = workspace.recipe.data.size // autoencoder.downsample
        self.terms: dict[str, Any] = {
            name: workspace.registry.build("loss", loss.table(), where=f"[vae.losses.{name}]")
            for name, loss in self.section.losses.items()
        }
        self.memory: dict[str, Any] = {}
        self.guard = self._guard()
        self.emas = emas_of(autoencoder, self.section.ema_decays, trainer.device)
        best = deepcopy(autoencoder).requires_grad_(False) if self.guard.adversarial else None  # in main memory
        if trainer.compiles:
            autoencoder.compile()  # in place: the keys of the state dict stay as they are
        optimizer = trainer.optimizer(autoencoder.parameters(), self.section.learning_rate)
        self.autoencoder = autoencoder
        self.model, self.optimizer = trainer.accelerator.prepare(autoencoder, optimizer)
        self.modules: dict[str, torch.nn.Module] = {"model": autoencoder}
        if best is not None:
            self.modules["best"] = best
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
        with trainer.waiting():
            pixels = self._next_pixels(step)
        noise = trainer.noise("posterior", step, (self.latent_channels, self.latent_size, self.latent_size))
        flip = torch.from_numpy(trainer.uniform("flip", step) < (0.5 if self.recipe.data.flip else 0.0))
        found = {name: self.guard.weight(name, step) for name in self.terms}
        weights = {name: weight for name, weight in found.items() if weight is not None}
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
                made = (output.float(), posterior.mean.float(), posterior.logvar.float())
                # The losses see leaves: their own networks are gone through once, and their gradients at the
                # autoencoder's outputs are all that it needs.
                leaves = tuple(value.detach().requires_grad_() for value in made)
                reconstruction = Reconstruction(target, *leaves)
                loss, gradients = self._generator_loss(
                    weights, reconstruction, made[0], scalars, share=len(own) / len(pixels)
                )
                trainer.check_finite(loss, partial(self._names, step, part))
                trainer.backward(sum((a * b).sum() for a, b in zip(made, gradients, strict=True)))
            reconstructions.append(reconstruction)
        scalars["grad_norm"] = trainer.step_optimizer(
            self.optimizer, self.model.parameters(), lambda: self._names(step)
        )
        for name, weight in weights.items():
            if name in self.guard.adversarial:
                scalars[f"{name}_weight"] = torch.tensor(weight, device=trainer.device)
                self._step_discriminator(step, name, reconstructions, scalars)
        return scalars

    def _generator_loss(
        self,
        weights: Mapping[str, float],
        reconstruction: Reconstruction,
        output: torch.Tensor,
        scalars: dict[str, torch.Tensor],
        *,
        share: float,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Weighted sum of the terms, detached, and its gradients at the reconstruction's output, mean and logvar.

        `output`: the decoder's, with its graph. Adds `share` times each term to `scalars`.
        """

        def note(name: str, value: torch.Tensor) -> None:
            scalars[name] = scalars.get(name, torch.zeros((), device=value.device)) + share * value.detach()

        leaves = [reconstruction.output, reconstruction.mean, reconstruction.logvar]
        total = sum(leaf.sum() * 0 for leaf in leaves)  # before any term counts, there is a gradient of zeros
        for name, weight in weights.items():
            if name not in self.guard.adversarial:
                value = self.terms[name](reconstruction)
                note(name, value)
                total = total + weight * value
        gradients = list(torch.autograd.grad(total, leaves))
        total = total.detach()
        if any(name in self.guard.adversarial for name in weights):
            note("loss_reconstruction", total)  # what the held-out loss compares with
        for name, weight in weights.items():
            if name in self.guard.adversarial:
                term = self.terms[name]
                term.discriminator.requires_grad_(False)  # this pass trains the autoencoder alone
                value = term(reconstruction)
                (gradient,) = torch.autograd.grad(value, reconstruction.output)
                last_layer = self.autoencoder.decoder.get_parameter("conv_out.weight")
                adaptive = adaptive_weight(output, gradients[0], gradient, last_layer, self.section.max_adaptive_weight)
                note(name, value)
                note(f"{name}_adaptive_weight", adaptive)
                gradients[0] = gradients[0] + weight * adaptive * gradient
                total = total + weight * adaptive * value.detach()
        note("loss", total)
        return total, gradients

    def _step_discriminator(
        self, step: int, name: str, reconstructions: list[Reconstruction], scalars: dict[str, torch.Tensor]
    ) -> None:
        """One step of the term's discriminator on what the autoencoder made in this step."""
        trainer, term = self.trainer, self.terms[name]
        term.discriminator.requires_grad_(True)
        sums: dict[str, torch.Tensor] = {}
        parts = zip(reconstructions, trainer.micro_batches(), strict=True)
        for reconstruction, (part, last) in parts:
            with trainer.exchange(term.discriminator, last=last):
                found = term.discriminator_loss(reconstruction)
                loss = found.loss if found.penalty is None else found.loss + found.penalty
                trainer.check_finite(loss, partial(self._names, step, part), what=f"loss of {name}_discriminator")
                trainer.backward(loss)
            values = {"discriminator": found.loss, "logits_real": found.real, "logits_fake": found.fake}
            if found.penalty is not None:
                values["penalty"] = found.penalty
            for key, value in values.items():
                sums[key] = sums.get(key, 0) + value.detach() / len(reconstructions)
        trainer.step_optimizer(
            self.optimizers[f"discriminator_{name}"], term.discriminator.parameters(), lambda: self._names(step)
        )
        scalars |= {f"{name}_{key}": value for key, value in sums.items()}
        watched = torch.stack([sums[key] for key in ("discriminator", "logits_real", "logits_fake")]).tolist()
        self.guard.note(name, loss=watched[0], real=watched[1], fake=watched[2])

    def evaluate(self) -> Metrics:
        if not len(self.held_out):
            return {}
        metrics: Metrics = {}
        for name, network in self._networks().items():
            found = reconstruction_metrics(
                network,
                self._held_out_pixels(),
                terms=self.terms,
                losses=self.section.losses,
                device=self.trainer.device,
            )
            suffix = "" if name == "raw" else f"_{name}"
            metrics |= {f"held_out_{key}{suffix}": value for key, value in found.items()}
        return metrics

    def judge(self, step: int, metrics: Metrics) -> list[str]:
        judged = self.guard.judge(step, metrics)
        if judged.is_best:
            self.modules["best"].load_state_dict(self.autoencoder.state_dict())
        if judged.go_back:
            best = self.modules["best"].state_dict()
            for network in self._networks().values():
                network.load_state_dict(best)
            # Its moments are those of the way that went wrong: the first steps would take it again.
            self.optimizer.state.clear()
        return judged.lines

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

    def _guard(self) -> LossGuard:
        """Raises LdmkitError where the losses cannot be guarded or balanced as the recipe says."""
        losses = self.section.losses
        adversarial = [name for name, term in self.terms.items() if isinstance(term, AdversarialLoss)]
        if len(adversarial) == len(losses):
            raise LdmkitError("[vae.losses] needs a loss beside the adversarial one, which is weighed against it")
        for name in losses:
            if losses[name].start_on_plateau and name not in adversarial:
                raise LdmkitError(
                    f"[vae.losses.{name}] start_on_plateau = true is for adversarial losses, and "
                    f"{losses[name].use} is none; give it a start_step or start_epoch"
                )
        size = self.section.batch_size
        earliest = {
            name: max(loss.start_step, loss.start_epoch * len(self.train) // size) for name, loss in losses.items()
        }
        return LossGuard(
            losses, adversarial=adversarial, earliest=earliest, settings=self.section.guard, memory=self.memory
        )

    def _names(self, step: int, part: slice = slice(None)) -> list[str]:
        return [self.pictures[i].key for i in self.train[self.trainer.positions(step)][part]]

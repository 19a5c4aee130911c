"""Stage `train-vae`: pictures -> `vae/`. The composite loss of Rombach et al. 2021, app. G."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from ldmkit.atomic import write_json
from ldmkit.components.protocols import Reconstruction
from ldmkit.data.batches import picture_batches
from ldmkit.data.buckets import of_one_bucket
from ldmkit.data.prepared import prepared_pictures
from ldmkit.errors import LdmkitError
from ldmkit.models.autoencoder import Autoencoder
from ldmkit.models.pretrained import build
from ldmkit.recipe.sections import size_misfits
from ldmkit.run.checkpoint import save_weights
from ldmkit.run.grow import write_contents
from ldmkit.run.networks import read_pretrained
from ldmkit.run.pretrained import CONFIG
from ldmkit.run.workspace import Workspace
from ldmkit.training.device import memory_format
from ldmkit.training.ema import emas_of
from ldmkit.training.engine import Engine
from ldmkit.training.loop import train
from ldmkit.training.plots import grid
from ldmkit.training.task import Metrics
from ldmkit.training.warm_start import load_start
from ldmkit.vae.adversarial import adaptive_weight, build_guard
from ldmkit.vae.metrics import reconstruction_metrics

MAX_HELD_OUT = 256
"""held-out pictures that an evaluation looks at"""


def train_vae(workspace: Workspace) -> Metrics:
    """Trains the autoencoder, or takes the pretrained one and tunes its decoder; returns its last held-out metrics.

    Raises LdmkitError where a pretrained one cannot be had, or the recipe's sizes do not fit it.
    """
    recipe, split, folder = workspace.recipe, workspace.split(), workspace.folder("vae")
    network = None
    if recipe.vae.pretrained:
        config, network = read_pretrained(recipe)
        if found := list(size_misfits(recipe, network.downsample)):
            raise LdmkitError("\n".join(found))
        write_json(folder / CONFIG, config)
        if not recipe.vae.tune_decoder_steps:
            save_weights(folder / "model.safetensors", network.state_dict())
            return {}
        network.encoder.requires_grad_(False)
    if workspace.parts["vae"].inputs["pictures"] == workspace.index.hash:  # else a kept one comes from its checkpoint
        write_contents(folder, workspace.index)
    engine = Engine(
        "vae", recipe.vae, num_samples=len(split[0]), seed=recipe.seed, buckets=workspace.buckets()[split[0]]
    )
    torch.manual_seed(engine.seed)  # the networks' first weights
    if network is None:
        network = build(recipe.vae.network())
        write_json(folder / CONFIG, recipe.vae.network())
        load_start(workspace, "vae", network)
    task = VaeTask(workspace, engine, network, *split)
    return train(workspace, engine, task)


class VaeTask:
    """The autoencoder, its losses and, for an adversarial one, the discriminator with its own optimizer."""

    def __init__(
        self, workspace: Workspace, engine: Engine, network: Autoencoder, train: np.ndarray, held_out: np.ndarray
    ) -> None:
        """`train`, `held_out`: positions of pictures in the workspace's index."""
        self.engine = engine
        self.section = section = workspace.recipe.vae
        self.data = workspace.recipe.data
        self.pictures = prepared_pictures(workspace.index, self.data, workspace.run_dir, workspace.reporter)
        self.train = train
        self.held_out = held_out[:MAX_HELD_OUT]
        self.buckets = workspace.buckets()
        half, size = engine.precision != "fp32", max(map(max, self.data.shapes)) // section.patch_size
        self.autoencoder = network.to(memory_format=memory_format(engine.device, half=half, size=size))
        self.terms: dict[str, Any] = {
            name: workspace.registry.build("loss", loss.table(), where=f"[vae.losses.{name}]")
            for name, loss in section.losses.items()
        }
        self.memory: dict[str, Any] = {}
        self.guard = build_guard(section, self.terms, len(train), self.memory)
        self.modules: dict[str, torch.nn.Module] = {"model": network}
        self.emas = emas_of(network, section.ema_decays, engine.device)
        if self.guard.adversarial:
            self.modules["best"] = deepcopy(network).requires_grad_(False)  # in main memory
        self.model = engine.add("model", network)
        for name in self.guard.adversarial:
            discriminator = self.modules[f"discriminator_{name}"] = self.terms[name].discriminator
            self.terms[name].discriminator = engine.add(
                f"discriminator_{name}", discriminator, section.discriminator_learning_rate
            )
        self._pixels: Iterator[torch.Tensor] | None = None

    def train_step(self, step: int) -> dict[str, torch.Tensor]:
        engine = self.engine
        with engine.clock.waiting():
            pixels = self._next_pixels(step)
        sides = (side // self.autoencoder.downsample for side in pixels.shape[2:])
        noise = engine.noise("posterior", step, (self.autoencoder.latent_channels, *sides))
        flip = torch.from_numpy(engine.uniform("flip", step) < (0.5 if self.data.flip else 0.0))
        found = {name: self.guard.weight(name, step) for name in self.terms}
        weights = {name: weight for name, weight in found.items() if weight is not None}
        scalars: dict[str, torch.Tensor] = {}
        reconstructions = []
        self.model.train()
        parts = list(engine.micro_batches())
        first = parts[0][0].start
        for part, last in parts:
            own = pixels[part.start - first : part.stop - first].to(engine.device, non_blocking=True)
            mirrored = flip[part].to(engine.device)[:, None, None, None]
            target = torch.where(mirrored, own.flip(-1), own)
            with engine.exchange(self.model, last=last):
                with engine.autocast():
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
                engine.check_finite(loss, partial(self._names, step, part))
                engine.backward(sum((a * b).sum() for a, b in zip(made, gradients, strict=True)))
            reconstructions.append(reconstruction)
        scalars["grad_norm"] = engine.step("model", lambda: self._names(step))
        for name, weight in weights.items():
            if name in self.guard.adversarial:
                scalars[f"{name}_weight"] = torch.tensor(weight, device=engine.device)
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
                at, most = self.autoencoder.last_layer, self.section.max_adaptive_weight
                adaptive = adaptive_weight(output, gradients[0], gradient, at, most)
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
        engine, term = self.engine, self.terms[name]
        term.discriminator.requires_grad_(True)
        sums: dict[str, torch.Tensor] = {}
        parts = zip(reconstructions, engine.micro_batches(), strict=True)
        for reconstruction, (part, last) in parts:
            with engine.exchange(term.discriminator, last=last):
                found = term.discriminator_loss(reconstruction)
                loss = found.loss if found.penalty is None else found.loss + found.penalty
                engine.check_finite(loss, partial(self._names, step, part), what=f"loss of {name}_discriminator")
                engine.backward(loss)
            values = {"discriminator": found.loss, "logits_real": found.real, "logits_fake": found.fake}
            if found.penalty is not None:
                values["penalty"] = found.penalty
            for key, value in values.items():
                sums[key] = sums.get(key, 0) + value.detach() / len(reconstructions)
        engine.step(f"discriminator_{name}", lambda: self._names(step))
        scalars |= {f"{name}_{key}": value for key, value in sums.items()}
        watched = torch.stack([sums[key] for key in ("discriminator", "logits_real", "logits_fake")]).tolist()
        self.guard.note(name, loss=watched[0], real=watched[1], fake=watched[2])

    def evaluate(self) -> Metrics:
        if not len(self.held_out):
            return {}
        metrics: Metrics = {}
        batches = [self.held_out[places] for places in of_one_bucket(self.buckets[self.held_out], 32)]
        options: dict[str, Any] = {"terms": self.terms, "losses": self.section.losses, "device": self.engine.device}
        for name, network in self._networks().items():
            found = reconstruction_metrics(network, self._few(*batches), **options)
            suffix = "" if name == "raw" else f"_{name}"
            metrics |= {f"held_out_{key}{suffix}": value for key, value in found.items()}
        return metrics

    def review(self, step: int, metrics: Metrics) -> list[str]:
        """Keeps the best weights, or goes back to them, as the guard decides."""
        decision = self.guard.review(step, metrics)
        if decision.is_best:
            self.modules["best"].load_state_dict(self.autoencoder.state_dict())
        if decision.go_back:
            best = self.modules["best"].state_dict()
            for network in self._networks().values():
                network.load_state_dict(best)
            # Its moments are those of the way that went wrong: the first steps would take it again.
            self.engine.optimizers["model"].state.clear()
        return decision.lines

    @torch.no_grad()
    def draw(self, step: int) -> dict[str, torch.Tensor]:
        chosen = self.held_out if len(self.held_out) else self.train
        chosen = chosen[self.buckets[chosen] == self.buckets[chosen[0]]][:8]  # one shape fits into a grid
        target = next(self._few(chosen)).to(self.engine.device)
        networks = self._networks()
        rows = [target]
        for network in networks.values():
            network.eval()
            rows.append(network.decode(network.encode(target).mean))
        return {"original_" + "_".join(networks): grid(torch.cat(rows), columns=len(chosen))}

    def _networks(self) -> dict[str, Autoencoder]:
        averaged = {name: cast(Autoencoder, average.module) for name, average in self.emas.items()}
        return {"raw": self.autoencoder, **averaged}

    def _few(self, *batches: np.ndarray) -> Iterator[torch.Tensor]:
        """Pixels (B, 3, H, W) of so few pictures that starting workers would take longer than decoding them."""
        return picture_batches(self.pictures, self.data.model_copy(update={"num_workers": 0}), batches)

    def _next_pixels(self, step: int) -> torch.Tensor:
        """This process's share of the step's pictures; steps are asked for in order."""
        if self._pixels is None:
            parts = [part for part, _ in self.engine.micro_batches()]
            own = slice(parts[0].start, parts[-1].stop)
            orders = (self.train[self.engine.positions(s)][own] for s in range(step, self.engine.num_steps))
            self._pixels = picture_batches(self.pictures, self.data, orders)
        return next(self._pixels)

    def _names(self, step: int, part: slice = slice(None)) -> list[str]:
        return [self.pictures[i].key for i in self.train[self.engine.positions(step)][part]]

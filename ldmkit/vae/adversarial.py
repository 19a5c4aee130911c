"""When each term of the autoencoder's loss counts and how much, and what balances and guards the adversarial ones."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ldmkit.components.protocols import AdversarialLoss
from ldmkit.errors import LdmkitError
from ldmkit.recipe.training import GanGuard, Vae, VaeLoss

WON = 0.01
"""mean loss of a discriminator (seed or hinge form) below which it has nothing left to learn: its logits lie beyond
4.6, or every margin of the hinge is kept, and what it passes on no longer depends on what is wrong"""
LOST = 0.05
"""difference of the mean logits of pictures and reconstructions below which a discriminator sees none: as a
probability they differ by about 0.01"""


def adaptive_weight(
    output: torch.Tensor,
    reconstruction_gradient: torch.Tensor,
    generator_gradient: torch.Tensor,
    last_layer_weight: torch.Tensor,
    max_weight: float,
) -> torch.Tensor:
    """Adaptive weight of the generator's loss, Esser et al. 2021, eq. 7 (delta = 1e-4).

    The ratio of the two losses' gradient norms at the decoder's last layer, in [0, max_weight]; a scalar without
    gradient. Both losses come as their gradients at the decoder's `output` (B, 3, H, W), from which the last layer is
    one convolution away: so neither LPIPS nor the discriminator is gone through again. The output's graph is kept.
    """

    def norm(gradient: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.autograd.grad(output, last_layer_weight, gradient, retain_graph=True)[0].norm()
        return found

    weight = norm(reconstruction_gradient) / (norm(generator_gradient) + 1e-4)
    return weight.clamp(0, max_weight).detach()


@dataclass(frozen=True)
class Decision:
    """What follows from an evaluation."""

    lines: list[str]
    """for the user"""
    is_best: bool = False
    """the weights are the best so far: keep them"""
    go_back: bool = False
    """the best weights are to be loaded again"""


class LossGuard:
    """Starts, ramps and lowers the terms of the loss; all it remembers is in `memory`, as JSON values.

    An evaluation is the best so far where held_out_psnr / max_psnr_drop - held_out_lpips / max_lpips_rise is largest:
    both metrics in units of what may be lost of them, without which an LPIPS that the adversarial term improves
    would lead back to weights from before it did. So the weights gone back to are within both margins.
    """

    def __init__(
        self,
        losses: Mapping[str, VaeLoss],
        *,
        adversarial: Collection[str],
        earliest: Mapping[str, int],
        settings: GanGuard,
        memory: dict[str, Any],
    ) -> None:
        """`earliest`: optimizer step before which a term does not count; `adversarial`: the names of such terms."""
        self.losses = losses
        self.adversarial = adversarial
        self.earliest = earliest
        self.settings = settings
        self.memory = memory
        if adversarial:
            memory.update(
                started={},  # term -> step at which a plateau was seen
                factors={},  # term -> factor left after going back
                ramps={},  # term -> step at which the ramp began again
                psnr=[],  # of every evaluation
                best=None,
                judged=0,  # step of the last evaluation
                interval={},  # term -> [number, sum of loss, of real logits, of fake logits] since then
                collapsed={},  # term -> "won", "lost" or ""
            )

    def start(self, name: str) -> int | None:
        """Optimizer step from which the term counts, None where a plateau is waited for."""
        if not self.losses[name].start_on_plateau:
            return self.earliest[name]
        started: int | None = self.memory["started"].get(name)
        return started

    def weight(self, name: str, step: int) -> float | None:
        """Factor of the term in this optimizer step, rising from 0 at its start; None before that."""
        start, loss = self.start(name), self.losses[name]
        if start is None or step < start:
            return None
        weight = loss.weight
        if name in self.adversarial:
            weight *= self.memory["factors"].get(name, 1.0)
            start = self.memory["ramps"].get(name, start)
        return weight * min(1.0, (step - start) / loss.ramp_steps) if loss.ramp_steps else weight

    def note(self, name: str, *, loss: float, real: float, fake: float) -> None:
        """Remembers the discriminator's loss and mean logits of one step, for the next evaluation."""
        sums = self.memory["interval"].setdefault(name, [0, 0.0, 0.0, 0.0])
        self.memory["interval"][name] = [a + b for a, b in zip(sums, (1, loss, real, fake), strict=True)]

    def review(self, step: int, metrics: Mapping[str, float]) -> Decision:
        """What follows from the evaluation after `step` steps; asked once for each, with the raw weights' metrics."""
        if not self.adversarial:
            return Decision([])
        lines = self._collapsed(step)
        if "held_out_psnr" not in metrics:
            return Decision(lines)
        active = [name for name in self.adversarial if (self.weight(name, step - 1) or 0) > 0]
        quality = self._quality(metrics)
        best = self.memory["best"]
        if best and active and (worse := [key for key in quality if best["quality"][key] - quality[key] > 1]):
            return Decision([*lines, self._lower(step, metrics, active, worse)], go_back=True)
        lines += self._start(step, metrics["held_out_psnr"])
        score = sum(quality.values())
        is_best = bool(quality) and (best is None or score > best["score"])
        if best and active:  # while the adversarial term counts, neither may slip from the best there was of it
            quality = {key: max(value, best["quality"][key]) for key, value in quality.items()}
            best["quality"] = quality
        if is_best:
            self.memory["best"] = {"step": step, "score": score, "quality": quality}
        return Decision(lines, is_best=is_best)

    def _quality(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics that are watched, higher is better, in units of their margins."""
        margins = {"held_out_psnr": self.settings.max_psnr_drop, "held_out_lpips": -self.settings.max_lpips_rise}
        return {key: metrics[key] / margin for key, margin in margins.items() if margin and key in metrics}

    def _lower(self, step: int, metrics: Mapping[str, float], active: list[str], worse: list[str]) -> str:
        """Lowers the weights of the active terms and ramps them in again; returns what is said about it."""
        best, parts = self.memory["best"], []
        for key in worse:
            if key == "held_out_psnr":
                value = best["quality"][key] * self.settings.max_psnr_drop
                parts.append(f"held-out PSNR is {metrics[key]:.2f} dB, {value - metrics[key]:.2f} below the best")
            else:
                value = -best["quality"][key] * self.settings.max_lpips_rise
                parts.append(f"held-out LPIPS is {metrics[key]:.4f}, {metrics[key] - value:.4f} above the best")
        for name in active:
            self.memory["factors"][name] = self.memory["factors"].get(name, 1.0) * self.settings.weight_factor
            self.memory["ramps"][name] = step
        weights = [f"{name} is now {self.losses[name].weight * self.memory['factors'][name]:.3g}" for name in active]
        return (
            f"{' and '.join(parts)}: back to the weights of step {best['step']}; the weight of {', of '.join(weights)}"
        )

    def _start(self, step: int, psnr: float) -> list[str]:
        """Starts the terms that wait for a plateau, if this is one."""
        history, number = self.memory["psnr"], self.settings.plateau_evaluations
        history.append(psnr)
        if len(history) <= number:
            return []
        gain = max(history[-number:]) - max(history[:-number])
        if gain > 0 and gain >= self.settings.plateau_psnr:
            return []
        waiting = [name for name in self.adversarial if self.start(name) is None and step >= self.earliest[name]]
        self.memory["started"].update(dict.fromkeys(waiting, step))
        evaluations = "the last evaluation" if number == 1 else f"the last {number} evaluations"
        return [f"{name} starts: held-out PSNR gained {gain:.2f} dB in {evaluations}" for name in waiting]

    def _collapsed(self, step: int) -> list[str]:
        """What is said of each discriminator that has won or lost since the last evaluation, once each time.

        Only one that has won is warned of: where it has lost, the decoder may have kept up with it. One that saw no
        difference in all of a training took reconstructions' KID from 264 to 194 (docs/results.md).
        """
        since, self.memory["judged"] = self.memory["judged"], step
        interval, self.memory["interval"] = self.memory["interval"], {}
        lines = []
        for name, (number, *sums) in interval.items():
            loss, real, fake = (total / number for total in sums)
            start = self.start(name)
            assert start is not None
            if start >= since:  # it has only begun to learn
                continue
            state = "won" if loss < WON else "lost" if abs(real - fake) < LOST else ""
            if state and state != self.memory["collapsed"].get(name):
                logits = f"mean logits {real:.2f} of pictures, {fake:.2f} of reconstructions"
                lines.append(
                    f"warning: the discriminator of {name} has won (loss {loss:.4f}; {logits}) and no longer says "
                    "what to improve: lower vae.discriminator_learning_rate or regularize it"
                    if state == "won"
                    else f"the discriminator of {name} sees no difference ({logits}): as it should be where the "
                    "reconstructions are sharp; where not, raise vae.discriminator_learning_rate or widen it"
                )
            self.memory["collapsed"][name] = state
        return lines


def build_guard(section: Vae, terms: Mapping[str, Any], num_train: int, memory: dict[str, Any]) -> LossGuard:
    """The guard over the terms of the recipe's loss, built by name.

    Raises LdmkitError where the losses cannot be guarded or balanced as the recipe says.
    """
    losses = section.losses
    adversarial = [name for name, term in terms.items() if isinstance(term, AdversarialLoss)]
    if len(adversarial) == len(losses):
        raise LdmkitError("[vae.losses] needs a loss beside the adversarial one, which is weighed against it")
    for name, loss in losses.items():
        if loss.start_on_plateau and name not in adversarial:
            raise LdmkitError(
                f"[vae.losses.{name}] start_on_plateau = true is for adversarial losses, and {loss.use} is none; "
                "give it a start_step or start_epoch"
            )
    earliest = section.earliest_steps(num_train)
    return LossGuard(losses, adversarial=adversarial, earliest=earliest, settings=section.guard, memory=memory)

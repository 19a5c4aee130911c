"""The weight that balances the adversarial loss with the others."""

import torch


def adaptive_weight(
    reconstruction_loss: torch.Tensor, generator_loss: torch.Tensor, last_layer_weight: torch.Tensor, max_weight: float
) -> torch.Tensor:
    """Adaptive weight of the generator's loss, Esser et al. 2021, eq. 7 (delta = 1e-4).

    The ratio of the two losses' gradient norms at the decoder's last layer, in [0, max_weight]; a scalar
    without gradient. Both graphs are kept for the backward pass that follows.
    """
    (reconstruction_gradient,) = torch.autograd.grad(reconstruction_loss, last_layer_weight, retain_graph=True)
    (generator_gradient,) = torch.autograd.grad(generator_loss, last_layer_weight, retain_graph=True)
    weight: torch.Tensor = reconstruction_gradient.norm() / (generator_gradient.norm() + 1e-4)
    return weight.clamp(0, max_weight).detach()

"""The weight that balances the adversarial loss with the others."""

import torch


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

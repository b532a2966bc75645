"""Bayesian layers: a factorized Gaussian posterior over the weights, sampled by local reparameterization.

A layer owns its posterior and its prior: `layer(x)` gives pre-activations and `layer.kl()` the KL of its weights. A
whole network is switched with `set_mode`, and its KL is `kl(net)`.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.priors import NoPrior

VARIANCE_FLOOR = 1e-12  # keeps the square root's gradient finite where no input pixel is on


class BayesConv2d(nn.Module):
    """A 2-D convolution with the posterior q(w) = N(w | mean, exp(var)) on each weight; the bias is a point estimate.

    In the mode "stoch" the pre-activations are sampled (Kingma, Salimans & Welling 2015, section 2.3),

        m = conv(x, mean) + bias,   v = conv(x^2, exp(var)),   output = m + sqrt(v + 1e-12) * eps,

    and in the mode "det" the output is m.

    Parameters
    ----------
    in_channels, out_channels, kernel_size : as in `torch.nn.Conv2d`.
    log_variance : initial value of every log variance (option `logvarinit`).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, log_variance: float = -10.0):
        super().__init__()
        self.mean = nn.Conv2d(in_channels, out_channels, kernel_size)
        self.var = nn.ParameterDict({"weight": torch.full_like(self.mean.weight, log_variance)})
        self.prior = NoPrior()
        self.mode: Literal["stoch", "det"] = "stoch"

    def forward(self, x: Tensor) -> Tensor:
        """Pre-activations (n, out, h - k + 1, w - k + 1) for images x of shape (n, in, h, w)."""
        if self.mode == "det":
            return self.mean(x)
        m, deviation = self.moments(x)
        return m + deviation * torch.randn_like(m)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the pre-activations under the posterior, each of the output's shape."""
        v = nn.functional.conv2d(x.square(), self.var["weight"].exp())
        return self.mean(x), (v + VARIANCE_FLOOR).sqrt()

    def kl(self) -> Tensor:
        """KL(q || prior) of the layer's weights, a scalar in nats; an estimate where the prior samples."""
        return self.prior.kl(self.mean.weight, self.var["weight"])


def bayesian_layers(net: nn.Module) -> list[BayesConv2d]:
    """The Bayesian layers of a network, in order."""
    return [module for module in net.modules() if isinstance(module, BayesConv2d)]


def set_mode(net: nn.Module, mode: Literal["stoch", "det"]) -> None:
    """Let every Bayesian layer sample ("stoch") or use the posterior's mean ("det")."""
    for layer in bayesian_layers(net):
        layer.mode = mode


def sample_outputs(layers: Sequence[nn.Module], x: Tensor, samples: int) -> Iterator[Tensor]:
    """Outputs of a chain of layers for `samples` draws of their Bayesian ones, as that many calls would give.

    All up to the first Bayesian layer's mean and deviation does not depend on the draw and is computed once, so a
    deterministic chain, or one in the mode "det", gives the same output `samples` times.
    """
    for i, layer in enumerate(layers):
        if isinstance(layer, BayesConv2d) and layer.mode == "stoch":
            m, deviation = layer.moments(x)
            rest = nn.Sequential(*layers[i + 1 :])
            for _ in range(samples):
                yield rest(torch.randn_like(m).mul_(deviation).add_(m))
            return
        x = layer(x)
    for _ in range(samples):
        yield x


def kl(net: nn.Module) -> Tensor:
    """KL(q || prior) summed over all Bayesian layers, a differentiable scalar in nats."""
    return sum(layer.kl() for layer in bayesian_layers(net))

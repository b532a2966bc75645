"""Bayesian layers: a factorized Gaussian posterior over the weights, sampled by local reparameterization.

A layer owns its posterior and its prior: `layer(x)` gives pre-activations and `layer.kl()` the KL of its weights. For
a whole network, `set_mode` switches between noise, means and draws of the weights, `kl(net)` is the KL, and `predict`
averages draws. `bayesianize` turns the convs of any network into Bayesian ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.priors import DeepWeightPrior, NoPrior, NormalPrior, Prior, log_square
from models.vae import KernelVAE

VARIANCE_FLOOR = 1e-12  # keeps the square root's gradient finite where all inputs are 0
W_ALPHA_INIT = -2.0

Mode = Literal["stoch", "det", "weights"]


def noise_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise of x's shape and layout, from torch's global generator unless `generator` is given.

    The noise is drawn in contiguous order: in channels_last torch draws one value at a time, ten times as slowly.
    """
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_like(x.permute(0, 2, 3, 1)).normal_(generator=generator).permute(0, 3, 1, 2)
    return torch.empty_like(x).normal_(generator=generator)


class BayesLayer(nn.Module):
    """A linear map with the posterior q(w) = N(w | mean, variance) on each weight; the bias is a point estimate.

    In the mode "stoch" the pre-activations are sampled (Kingma, Salimans & Welling 2015, section 2.3); for a conv

        m = conv(x, mean) + bias,   v = conv(x^2, variance),   output = m + sqrt(v + 1e-12) * eps,

    and in the mode "det" the output is m. In the mode "weights" a call draws the weights once, for all its inputs: one
    conv instead of two and the noise. The layer `mean`, of torch, holds the posterior's mean and the bias.

    Parameters
    ----------
    args, options : as of torch's layer.
    log_variance : initial value of every log variance, which is the parameter `var.weight` (option `logvarinit`).
    truncated : whether the variance is alpha * mean^2, with alpha = sigmoid(w_alpha) in (0, 1) per weight; the
        parameter `w_alpha` starts at -2 ("bayes-mtrunca").
    """

    mean_class: type[nn.Conv2d | nn.Linear]

    def __init__(self, *args, log_variance: float = -10.0, truncated: bool = False, **options):
        super().__init__()
        self._set_posterior(self.mean_class(*args, **options), log_variance, truncated)

    @classmethod
    def of(cls, mean: nn.Module, log_variance: float = -10.0) -> "BayesLayer":
        """The Bayesian layer whose posterior has the weights of torch's layer `mean` as means; it contains `mean`."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._set_posterior(mean, log_variance, False)
        return layer.train(mean.training)

    def _set_posterior(self, mean: nn.Module, log_variance: float, truncated: bool) -> None:
        self.mean = mean
        self.truncated = truncated
        if truncated:
            self.w_alpha = nn.Parameter(torch.full_like(mean.weight, W_ALPHA_INIT))
        else:
            self.var = nn.ParameterDict({"weight": torch.full_like(mean.weight, log_variance)})
        self.prior: Prior = NoPrior()
        self.mode: Mode = "stoch"

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's linear map of x with these weights."""
        raise NotImplementedError

    def log_variance(self) -> Tensor:
        """Log variance of the posterior, of the weights' shape."""
        if self.truncated:
            return F.logsigmoid(self.w_alpha) + log_square(self.mean.weight)
        return self.var["weight"]

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pre-activations for inputs x, with the shapes of the layer `mean`; noise from `generator`, else torch's."""
        if self.mode == "det":
            return self.mean(x)
        if self.mode == "weights":
            mean = self.mean.weight
            weight = torch.addcmul(mean, (0.5 * self.log_variance()).exp(), noise_like(mean, generator))
            return self.linear_map(x, weight, self.mean.bias)
        m, deviation = self.moments(x)
        return torch.addcmul(m, deviation, noise_like(m, generator))

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the pre-activations under the posterior, each of the output's shape."""
        v = self.linear_map(x.square(), self.log_variance().exp())
        # In float16 the floor would be 0, so there it is the square of the rounding error of 1.
        limits = torch.finfo(v.dtype)
        return self.mean(x), (v + (VARIANCE_FLOOR if limits.tiny < VARIANCE_FLOOR else limits.eps**2)).sqrt()

    def kl(self) -> Tensor:
        """KL(q || prior) of the layer's weights, a scalar in nats; an estimate where the prior samples."""
        dtype = torch.promote_types(self.mean.weight.dtype, torch.float32)
        return self.prior.kl(self.mean.weight.to(dtype), self.log_variance().to(dtype))


class BayesConv2d(BayesLayer):
    """A Bayesian `torch.nn.Conv2d`."""

    mean_class = nn.Conv2d

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolution of x (n, in, h, w), padded as `mean` pads: of x^2 the padding is that of x, squared."""
        if weight.stride() != self.mean.weight.stride():
            # torch's operations forget that the weights of one input channel are stored channels last. The output would
            # then have the other layout, which takes a max-pool ten times as long.
            weight = weight.to(memory_format=torch.channels_last)
        return self.mean._conv_forward(x, weight, bias)


class BayesLinear(BayesLayer):
    """A Bayesian `torch.nn.Linear`."""

    mean_class = nn.Linear

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Product of x (n, in) with the weights."""
        return F.linear(x, weight, bias)


def bayesian_layers(net: nn.Module) -> list[BayesLayer]:
    """The Bayesian layers of a network, in order."""
    return [module for module in net.modules() if isinstance(module, BayesLayer)]


def set_mode(net: nn.Module, mode: Mode) -> None:
    """Let every Bayesian layer add noise to pre-activations ("stoch"), use the mean ("det"), or draw its "weights".

    Raises ValueError for another mode.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode: found {mode!r}, expected one of {', '.join(get_args(Mode))}")
    for layer in bayesian_layers(net):
        layer.mode = mode


def variance_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The parameters that give the posterior's variances: log variances, or `w_alpha` of a truncated posterior."""
    return [layer.w_alpha if layer.truncated else layer.var["weight"] for layer in bayesian_layers(net)]


@torch.no_grad()
def relative_deviations(net: nn.Module) -> dict[str, Tensor]:
    """How far the posterior's deviations are from 0 and from the prior's, as scalars by the layer's name.

    "<layer>/dev_to_mean" is the median over the weights of deviation / |mean|, and "<layer>/dev_to_prior" the median of
    deviation / deviation under the prior, for a prior that has one.
    """
    found = {}
    for name, layer in net.named_modules():
        if isinstance(layer, BayesLayer):
            deviation = (0.5 * layer.log_variance().float()).exp()
            # A log has finite values only, also of weights of 0.
            ratio = (deviation / layer.mean.weight.float().abs()).median()
            found[f"{name}/dev_to_mean"] = ratio.clamp(max=torch.finfo(ratio.dtype).max)
            if (expected := layer.prior.deviation()) is not None:
                found[f"{name}/dev_to_prior"] = (deviation / expected).median()
    return found


def run_layers(layers: Sequence[nn.Module], x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Output of a chain of layers, with noise and dropout from `generator`, or from torch's global one."""
    for layer in layers:
        if isinstance(layer, BayesLayer):
            x = layer(x, generator)
        elif isinstance(layer, nn.Dropout) and layer.training and generator:  # torch's own takes no generator
            kept = torch.empty_like(x).bernoulli_(1 - layer.p, generator=generator)
            x = x * kept / max(1 - layer.p, 1e-30)
        else:
            x = layer(x)
    return x


def sample_outputs(
    layers: Sequence[nn.Module], x: Tensor, samples: int, generator: torch.Generator | None = None
) -> Iterator[Tensor]:
    """Yield outputs of a chain of layers for `samples` draws, distributed as in separate calls.

    The layers before the first random one, and mean and deviation of a Bayesian one, do not depend on the draw and are
    computed once. Random layers are Bayesian ones that are not in the mode "det", and dropout in training mode. A chain
    without one gives the same output `samples` times. Noise and dropout come from `generator`, or from torch's global
    one.
    """
    for i, layer in enumerate(layers):
        if isinstance(layer, BayesLayer) and layer.mode == "stoch":
            m, deviation = layer.moments(x)
            for _ in range(samples):
                noise = noise_like(m, generator)
                h = torch.addcmul(m, deviation, noise, out=None if torch.is_grad_enabled() else noise)
                yield run_layers(layers[i + 1 :], h, generator)
            return
        drawn = isinstance(layer, BayesLayer) and layer.mode == "weights"
        if drawn or (isinstance(layer, nn.Dropout) and layer.training):
            for _ in range(samples):
                yield run_layers(layers[i:], x, generator)
            return
        x = layer(x)
    for _ in range(samples):
        yield x


def kl_terms(net: nn.Module) -> dict[str, Tensor]:
    """KL(q || prior) of each Bayesian layer by its name in the network, each a differentiable scalar in nats."""
    return {name: module.kl() for name, module in net.named_modules() if isinstance(module, BayesLayer)}


def kl(net: nn.Module) -> Tensor:
    """KL(q || prior) summed over all Bayesian layers, a differentiable scalar in nats; 0 without Bayesian layers."""
    zero = next(net.parameters(), torch.zeros(())).new_zeros(())
    return sum(kl_terms(net).values(), zero)


@torch.no_grad()
def bayesianize(
    net: nn.Module,
    priors: Mapping[int, KernelVAE],
    *,
    scale: float = 1.0,
    kernels: int = 0,
    draw: bool = False,
    log_variance: float = -10.0,
) -> nn.Module:
    """Turn every `torch.nn.Conv2d` of a network into a Bayesian layer, and return the network.

    The layers are replaced in the network itself, and keep the options, weights, device and precision of their convs.
    What is no conv stays as it is. A conv that is itself the network is returned as a Bayesian layer.

    Parameters
    ----------
    priors : VAEs by kernel size (see `utils.load_vae`): the deep weight prior of convs with k x k kernels. The other
        convs have the prior N(0, scale^2). Classes derived from `torch.nn.Conv2d` stay as they are, and so do convs
        whose weight or bias is computed from other parameters at each call, as by `torch.nn.utils.spectral_norm`.
    scale : standard deviation of the weights under that prior, above 0.
    kernels : drawn per layer and estimate of the KL; 0 takes all.
    draw : whether kernels of the deep weight prior, decoded at evenly spread codes, become the posterior's means where
        there is a VAE. Otherwise the means are the weights of the convs.
    log_variance : initial log variance of every weight.

    Raises
    ------
    ValueError : a VAE is of another kernel size than its key, the scale is not above 0, two convs share their weights,
        or the network has no conv.
    """
    if not scale > 0:
        raise ValueError(f"scale: found {scale}, expected a number above 0")
    for k, vae in priors.items():
        if vae.kernel_dim != k:
            raise ValueError(
                f"priors: found a VAE of {vae.kernel_dim}x{vae.kernel_dim} kernels for {k}, expected {k}x{k}"
            )
    convs = [m for m in net.modules() if type(m) is nn.Conv2d and {"weight", "bias"} <= m._parameters.keys()]
    inside = {id(layer.mean) for layer in bayesian_layers(net)}
    layers = {conv: BayesConv2d.of(conv, log_variance) for conv in convs if id(conv) not in inside}
    if not layers:
        raise ValueError("net: found no torch.nn.Conv2d, expected one")
    if len({id(conv.weight) for conv in layers}) < len(layers):
        raise ValueError("net: found convs that share their weights, expected one module for them")
    for conv, layer in layers.items():
        height, width = conv.kernel_size
        vae = priors.get(height) if height == width else None
        layer.prior = DeepWeightPrior(vae, kernels=kernels) if vae else NormalPrior(scale)
        layer.prior.to(conv.weight)
        if vae and draw:
            n = conv.weight.shape[0] * conv.weight.shape[1]
            conv.weight.copy_(vae.sample_means(n, even=True).view_as(conv.weight))
    for module in list(net.modules()):
        for name, child in list(module._modules.items()):
            if child in layers:
                module._modules[name] = layers[child]
    return layers.get(net, net)


@torch.no_grad()
def predict(net: nn.Module, x: Tensor, samples: int) -> Tensor:
    """Probabilities (samples, n, classes) of images x by draws of the weights, from a network that returns logits.

    In a sample each call of a layer draws its weights once, for all images. The mean over samples is the predictive
    distribution. The network is in eval mode meanwhile; its mode and those of its layers are then as before.
    """
    modes = {layer: layer.mode for layer in bayesian_layers(net)}
    training = {module: module.training for module in net.modules()}
    set_mode(net, "weights")
    net.eval()
    try:
        return torch.stack([net(x).softmax(1) for _ in range(samples)])
    finally:
        for layer, mode in modes.items():
            layer.mode = mode
        for module, mode in training.items():
            module.training = mode

"""Builders of networks, initializations, priors and VAEs from names in `models.configs` and plain values."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.bayes import BayesConv2d, BayesLayer, bayesian_layers
from models.configs import INITS, MODELS, PRIORS, VAES, imported
from models.flow import KernelFlow
from models.network import ConvNet
from models.priors import NormalPrior
from models.vae import BLOCK, KernelVAE

# The objects that a conv layer's initialization and prior need, by name in `models.configs.SOURCES`.
Sources = Mapping[str, Any]


def build_network(
    model: str, net_cfg: str, hid_dim: Sequence[int] = (32, 64), model_size: float = 1.0, n_classes: int = 10, **options
) -> ConvNet:
    """A network with random weights.

    Parameters
    ----------
    model, net_cfg : a name in `models.configs.MODELS`, and one of its configurations.
    hid_dim, model_size : channels of the convs, or a factor of them; each model uses one of the two.
    n_classes : number of logits.
    options : `do`, `log_variance` and `bayesian_classifier` of `ConvNet`.
    """
    row = MODELS[model]
    return imported(row.builds)(net_cfg, row.widths(hid_dim, model_size), n_classes, model, **options)


def build_vae(kernel_dim: int, z_dim: int, hidden_dim: int, var: float | Literal["train"] = "train") -> KernelVAE:
    """A VAE of kernel_dim x kernel_dim kernels, with random weights; the other parameters as of `KernelVAE`."""
    return imported(VAES[kernel_dim])(z_dim, hidden_dim, var)


def conv_layers(net: ConvNet) -> list[nn.Conv2d | BayesConv2d]:
    """The conv layers of a network's `features`, Bayesian or not, in order."""
    return [layer for layer in net.features if isinstance(layer, nn.Conv2d | BayesConv2d)]


def conv_weight(layer: nn.Conv2d | BayesConv2d) -> nn.Parameter:
    """The weights (out, in, k, k) of a conv; of a Bayesian one the means of the posterior."""
    return layer.mean.weight if isinstance(layer, BayesLayer) else layer.weight


# --- initializations: n kernels (n, 1, k, k) of a conv layer ------------------------------------------------------


def decoded_kernels(n: int, vae: KernelVAE) -> Tensor:
    return vae.sample_means(n)


def evenly_decoded_kernels(n: int, vae: KernelVAE) -> Tensor:
    return vae.sample_means(n, even=True)


def flow_kernels(n: int, flow: KernelFlow) -> Tensor:
    return flow.sample(n)


def real_kernels(n: int, filters: Tensor) -> Tensor:
    """n kernels drawn at random from `filters`, without replacement if `filters` has at least n."""
    found = len(filters)
    rows = torch.randperm(found)[:n] if found >= n else torch.randint(found, (n,))
    return filters[rows.to(filters.device)]


def reconstructed_kernels(n: int, vae: KernelVAE, filters: Tensor) -> Tensor:
    """`real_kernels`, reconstructed by the means of the encoder and the decoder."""
    kernels = real_kernels(n, filters)
    return torch.cat([vae.decode(vae.encode(block)[0])[0] for block in kernels.split(BLOCK)])


@torch.no_grad()
def init_network(
    net: nn.Module, inits: Sequence[str], sources: Sequence[Sources], convs: Sequence[nn.Module] | None = None
) -> None:
    """Initialize all layers Xavier normal, then each conv layer by its entry in `inits`.

    Parameters
    ----------
    inits : a name in `models.configs.INITS` for each conv layer, in order; layers past the end stay Xavier normal.
    sources : for each conv layer the objects that its initialization needs.
    convs : the conv layers, by default those of a `ConvNet`.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
    for i, (name, layer, source) in enumerate(zip(inits, convs or conv_layers(net), sources, strict=False), 1):
        init = INITS[name]
        if init.builds:
            weight = conv_weight(layer)
            n = weight.shape[0] * weight.shape[1]
            if "filters" in init.needs and len(source["filters"]) < n:
                print(f"conv {i}: {len(source['filters'])} kernels to choose {n} from, drawn with replacement")
            kernels = imported(init.builds)(n, **{need: source[need] for need in init.needs})
            weight.copy_(kernels.view_as(weight))


@torch.no_grad()
def scale_as_xavier(convs: Iterable[nn.Conv2d | nn.ConvTranspose2d]) -> None:
    """Scale the weight of each conv to the root mean square of Xavier's: (2 / (fan in + fan out))^0.5 (Glorot & Bengio
    2010). Without batch norms the scale of the kernels is that of the outputs."""
    for conv in convs:
        weight = conv.weight
        fans = sum(weight.shape[:2]) * weight[0, 0].numel()
        weight *= (2 / fans) ** 0.5 / weight.square().mean().sqrt()


# --- priors -------------------------------------------------------------------------------------------------------


def set_priors(net: ConvNet, names: Sequence[str], sources: Sequence[Sources], options: Mapping[str, Any]) -> None:
    """Give each Bayesian conv layer its prior, on the layer's device, and Bayesian layers of the classifier N(0, S^2).

    S is the option `classifier_lamb`, or `lamb` if that is None.

    Parameters
    ----------
    names, sources : for each conv layer, in order, a name in `models.configs.PRIORS` and the objects that it needs.
    options : values of command-line options; a prior's class gets those that its row in `PRIORS` names.

    Raises
    ------
    ValueError : names the layer whose prior cannot be built.
    """
    options = {**options, "truncated": net.config.truncated}
    for i, (layer, name, source) in enumerate(zip(conv_layers(net), names, sources, strict=True), 1):
        if isinstance(layer, BayesLayer):
            row = PRIORS[name]
            arguments = {need: source[need] for need in row.needs}
            arguments |= {argument: options[option] for argument, option in row.options.items()}
            try:
                layer.prior = imported(row.builds)(**arguments).to(conv_weight(layer).device)
            except ValueError as error:
                raise ValueError(f"prior {name!r} of conv {i}: {error}") from None
    for layer in bayesian_layers(net.classifier):
        layer.prior = NormalPrior(options["classifier_lamb"] or options["lamb"])

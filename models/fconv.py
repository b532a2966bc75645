"""The two-convolution network of the paper's MNIST experiments (Atanov et al. 2019, section 5.1)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.bayes import BayesConv2d, sample_outputs
from models.configs import KERNEL_SIZES, NET_CONFIGS


class FConv(nn.Module):
    """conv 7x7, LeakyReLU, max-pool, conv 5x5, LeakyReLU, max-pool, linear: 28x28 grey images to class logits.

    Parameters
    ----------
    net_cfg : which convs are Bayesian, and whether there is dropout before each max-pool (`models.configs`).
    hid_dim : channels of the two convs.
    n_classes : number of logits.
    do : the two dropout probabilities of "vanilla-do".
    log_variance : initial log variance of the Bayesian convs.
    """

    def __init__(
        self,
        net_cfg: str = "vanilla",
        hid_dim: Sequence[int] = (32, 64),
        n_classes: int = 10,
        do: Sequence[float] = (),
        log_variance: float = -10.0,
    ):
        super().__init__()
        config = NET_CONFIGS["fconv"][net_cfg]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = (1, *hid_dim)
        for i, (size, bayesian) in enumerate(zip(KERNEL_SIZES["fconv"], config.bayesian, strict=True)):
            shape = (channels[i], channels[i + 1], size)
            layers[f"conv{i + 1}"] = BayesConv2d(*shape, log_variance) if bayesian else nn.Conv2d(*shape)
            layers[f"relu{i + 1}"] = nn.LeakyReLU(0.01)
            if config.dropout:
                layers[f"do{i + 1}"] = nn.Dropout(do[i])
            layers[f"mp{i + 1}"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(9 * hid_dim[1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, n_classes) for images (n, 1, 28, 28) with pixels in [0, 1]."""
        return self.classifier(self.features(x).flatten(1))

    def sample_logits(self, x: Tensor, samples: int) -> Tensor:
        """Logits (samples, n, n_classes) of that many draws of the weights, as so many calls in mode "stoch" give."""
        return torch.stack([self.classifier(h.flatten(1)) for h in sample_outputs(list(self.features), x, samples)])

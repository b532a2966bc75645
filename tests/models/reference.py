"""Formulas that the tests of models/ compare with, written out without the code under test, and random layers."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models.bayes import BayesConv2d
from models.build import build_vae
from models.priors import DeepWeightPrior


def reference_network(state, name, x, layers):
    """Apply the layers (kind, index, padding) of a state dict to x in float64, each followed by the ELU's formula."""
    for kind, index, padding in layers:
        weight, bias = state[f"{name}.{index}.weight"].double(), state[f"{name}.{index}.bias"].double()
        x = F.conv2d(x, weight, bias, padding=padding) if kind == "conv" else F.conv_transpose2d(x, weight, bias)
        x = torch.where(x > 0, x, torch.exp(torch.clamp(x, max=0)) - 1)
    return x


# By kernel size: the encoder's and the decoder's layers as (kind, index, padding), and the names of the four heads.
LAYERS = {
    3: (
        [("conv", 0, 1), ("conv", 2, 1), ("conv", 4, 0)],
        [("conv", 0, 0), ("convT", 2, 0), ("conv", 4, 0)],
        ("fc_mu", "fc_sigma", "fc_mu.0", "fc_var.0"),
    ),
    7: (
        [("conv", 0, 0), ("conv", 2, 0), ("conv", 4, 0)],
        [("convT", 0, 0), ("convT", 2, 0), ("convT", 4, 0)],
        ("fc_mu", "fc_var", "fc_mu", "fc_var"),
    ),
    5: (
        [("conv", 0, 1), ("conv", 2, 1), ("conv", 4, 0), ("conv", 6, 0)],
        [("conv", 0, 0), ("convT", 2, 0), ("convT", 4, 0), ("conv", 6, 0)],
        ("fc_mu", "fc_sigma", "fc_mu.0", "fc_var.0"),
    ),
}


def reference_dwp_kl(state, k, mean, log_variance, eps_w, eps_z):
    """KL_aux in nats of kernels (n, 1, k, k) for given noise, written out in float64 from the formula of the paper."""
    encoder, decoder, (enc_mu, enc_var, dec_mu, dec_var) = LAYERS[k]

    def head(part, name, h):
        return F.conv2d(h, state[f"{part}.{name}.weight"].double(), state[f"{part}.{name}.bias"].double())

    mean, variance = mean.double(), log_variance.double().exp()
    w = mean + variance.sqrt() * eps_w.double()
    h = reference_network(state, "encoder.features", w, encoder)
    m, s = head("encoder", enc_mu, h), torch.log1p(head("encoder", enc_var, h).exp())
    z = m + s.sqrt() * eps_z.double()
    h = reference_network(state, "decoder.decoder", z, decoder)
    mu, var = head("decoder", dec_mu, h), torch.log1p(head("decoder", dec_var, h).exp())
    entropy = (0.5 * torch.log(2 * math.pi * math.e * variance)).sum()
    kl = (0.5 * (s + m**2 - 1 - torch.log(s))).sum()
    log_p = (-0.5 * torch.log(2 * math.pi * var) - (w - mu) ** 2 / (2 * var)).sum()
    return -entropy + kl - log_p


def dwp_layer(k, kernels=0, samples=1, channels=(3, 4)):
    """A Bayesian conv of k x k kernels with random means and variances under the deep weight prior of a random VAE."""
    torch.manual_seed(0)
    vae = build_vae(k, 2, 8).requires_grad_(False)
    layer = BayesConv2d(*channels, k)
    with torch.no_grad():
        layer.mean.weight.normal_(0, 0.5)
        layer.var["weight"].uniform_(-6, -1)
    layer.prior = DeepWeightPrior(vae, samples, kernels)
    return layer


def vae_state(prior):
    """The state dict of the VAE that a deep weight prior holds, with the names of a VAE."""
    return nn.ModuleDict({"encoder": prior.reverse, "decoder": prior.decoder}).state_dict()


def monte_carlo(draw, n):
    """Mean of n calls of `draw`, and its standard error."""
    values = np.array([draw() for _ in range(n)])
    return values.mean(), values.std(ddof=1) / math.sqrt(n)


# Options of convs with 3x3 kernels, 2 input and 4 output channels.
CONVS = [
    {"padding": 2, "padding_mode": mode, "bias": bias, "stride": stride}
    for mode, bias, stride in (
        ("circular", True, 1),
        ("reflect", False, 2),
        ("replicate", True, 1),
        ("zeros", False, 2),
    )
]
CONVS += [{"padding": "same", "padding_mode": "circular"}, {"dilation": 2, "padding": 1, "groups": 2}]

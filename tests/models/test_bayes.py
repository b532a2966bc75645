"""Bayesian layers: outputs against those of sampled weights, and KLs against closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.bayes import BayesConv2d, BayesLinear, sample_outputs, set_mode
from models.priors import LogUniformPrior, NormalPrior


def test_local_reparameterization_has_the_moments_of_sampled_weights():
    torch.manual_seed(0)
    layer = BayesConv2d(2, 3, 3, log_variance=-2.0)
    with torch.no_grad():
        layer.var["weight"].uniform_(-3, -1)
    x, n = torch.randn(1, 2, 6, 6), 20000
    with torch.no_grad():
        ours = torch.cat([layer(x) for _ in range(n)])
        deviation = (0.5 * layer.var["weight"]).exp()
        weights = [layer.mean.weight + deviation * torch.randn_like(deviation) for _ in range(n)]
        sampled = torch.cat([F.conv2d(x, w, layer.mean.bias) for w in weights])
        spread = sampled.std(0)
        assert ((ours.mean(0) - sampled.mean(0)).abs() < 5 * spread * math.sqrt(2 / n)).all()
        assert ((ours.var(0) / sampled.var(0) - 1).abs() < 5 * 2 / math.sqrt(n)).all()
        set_mode(layer, "det")
        torch.testing.assert_close(layer(x), F.conv2d(x, layer.mean.weight, layer.mean.bias))


def test_samples_of_layers_that_are_not_bayesian():
    assert [out.shape for out in sample_outputs([torch.nn.Flatten()], torch.rand(3, 1, 28, 28), 2)] == [(3, 784)] * 2


def test_gradients_of_a_black_image_are_finite():
    layer = BayesConv2d(1, 2, 7)
    layer(torch.zeros(1, 1, 28, 28)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


@pytest.mark.parametrize(
    "make, apply, shape",
    [
        (
            lambda: BayesConv2d(4, 6, 3, stride=2, padding=1, groups=2),
            lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1, groups=2),
            (1, 4, 7, 7),
        ),
        (lambda: BayesConv2d(2, 3, 3, truncated=True), F.conv2d, (1, 2, 6, 6)),
        (lambda: BayesLinear(8, 4, log_variance=-2.0), F.linear, (3, 8)),
    ],
    ids=["conv-options", "truncated", "linear"],
)
def test_outputs_have_the_moments_of_sampled_weights(make, apply, shape):
    torch.manual_seed(0)
    layer, x, n = make(), torch.randn(shape), 10000
    with torch.no_grad():
        if not layer.truncated:
            layer.var["weight"].uniform_(-3, -1)
        ours = torch.stack([layer(x) for _ in range(n)])
        deviation = (0.5 * layer.log_variance()).exp()
        weights = [layer.mean.weight + deviation * torch.randn_like(deviation) for _ in range(n)]
        sampled = torch.stack([apply(x, w, layer.mean.bias) for w in weights])
        spread = sampled.std(0)
        assert ((ours.mean(0) - sampled.mean(0)).abs() < 5 * spread * math.sqrt(2 / n)).all()
        assert ((ours.var(0) / sampled.var(0) - 1).abs() < 10 / math.sqrt(n)).all()


def test_the_truncated_posterior():
    """alpha = sigmoid(w_alpha) per weight starts at sigmoid(-2); the KL is the cubic in alpha, for any mean."""
    torch.manual_seed(0)
    layer = BayesConv2d(2, 3, 5, truncated=True).double()
    layer.prior = LogUniformPrior(truncated=True)
    assert set(layer.state_dict()) == {"mean.weight", "mean.bias", "w_alpha"}
    alpha = 1 / (1 + math.exp(2))
    cubic = -0.5 * math.log(alpha) - 1.16145124 * alpha + 1.50204118 * alpha**2 - 0.58629921 * alpha**3
    assert layer.kl().item() == pytest.approx(150 * cubic, rel=1e-9)
    (gradient,) = torch.autograd.grad(layer.kl(), layer.mean.weight)
    assert gradient.abs().max() < 1e-6
    np.testing.assert_allclose(layer.log_variance().exp().detach(), alpha * layer.mean.weight.detach() ** 2, rtol=1e-6)


def test_the_kl_of_a_linear_layer_is_torchs():
    layer = BayesLinear(5, 3, log_variance=-1.0)
    layer.prior = NormalPrior(0.5)
    q = torch.distributions.Normal(layer.mean.weight, (0.5 * layer.var["weight"]).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 0.5)).sum()
    torch.testing.assert_close(layer.kl(), expected)

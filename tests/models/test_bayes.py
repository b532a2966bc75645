"""Bayesian layers: outputs against those of sampled weights, and KLs against closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.bayes import (
    BayesConv2d,
    BayesLinear,
    kl,
    relative_deviations,
    sample_outputs,
    set_mode,
    variance_parameters,
)
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


@pytest.mark.parametrize(
    "make, shape", [(lambda: BayesConv2d(2, 3, 3), (5, 2, 6, 6)), (lambda: BayesLinear(8, 4), (5, 8))]
)
def test_draws_of_the_weights(make, shape):
    """Their outputs have the moments of noise on pre-activations; one draw is the same for every image of a call."""
    torch.manual_seed(0)
    layer, x, n = make(), torch.randn(shape), 20000
    with torch.no_grad():
        layer.var["weight"].uniform_(-3, -1)
        m, deviation = layer.moments(x)
        set_mode(layer, "weights")
        draws = torch.stack([layer(x) for _ in range(n)])
        assert ((draws.mean(0) - m).abs() < 5 * deviation / math.sqrt(n)).all()
        assert ((draws.std(0) / deviation - 1).abs() < 5 / math.sqrt(2 * n)).all()
        twice, (again,) = layer(torch.cat([x, x])), sample_outputs([layer], x, 1, torch.Generator().manual_seed(3))
        torch.testing.assert_close(twice[:5], twice[5:])
        torch.testing.assert_close(again, layer(x, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("truncated", [False, True])
def test_convs_of_one_input_channel_keep_the_layout_of_their_weights(truncated):
    layer = BayesConv2d(1, 3, 5, truncated=truncated).to(memory_format=torch.channels_last)
    for mode in ("det", "stoch", "weights"):
        set_mode(layer, mode)
        assert layer(torch.rand(2, 1, 9, 9))[:1].stride()[1:] == (1, 15, 3), mode
    assert [moment.stride()[1:] for moment in layer.moments(torch.rand(2, 1, 9, 9))] == [(1, 15, 3)] * 2


def test_draws_of_the_weights_of_a_network():
    """Each draw is of all layers, and other draws are independent of it."""
    torch.manual_seed(0)
    layers = [BayesConv2d(1, 2, 3, log_variance=-1.0), torch.nn.Flatten(), BayesLinear(32, 3, log_variance=-1.0)]
    net = torch.nn.Sequential(*layers)
    set_mode(net, "weights")
    x = torch.rand(4, 1, 6, 6)
    a, b = sample_outputs(layers, x, 2)
    assert not torch.allclose(a, b)
    assert (a == torch.stack(list(sample_outputs(layers, x, 1)))).logical_not().any()


def regression_posterior(lr_var: float) -> tuple[torch.Tensor, ...]:
    """Means and log variances that 1,000 steps of Adam give a linear regression, and the best ones in closed form.

    y = X w + N(0, s^2) and w ~ N(0, 1) have the precision P = X'X / s^2 + I. Among factorized Gaussians the one closest
    to the posterior has the posterior's mean and the variances 1 / P_ii (Bishop 2006, eq. 10.12-10.15).
    """
    torch.manual_seed(0)
    n, d, s = 40, 6, 0.3
    x = torch.randn(n, d, dtype=torch.float64)
    y = x @ (0.4 * torch.rand(d, dtype=torch.float64) - 0.2) + s * torch.randn(n, dtype=torch.float64)
    precision = x.T @ x / s**2 + torch.eye(d)
    best = torch.linalg.solve(precision, x.T @ y / s**2), -precision.diagonal().log()

    layer = BayesLinear(d, 1, bias=False).double()
    layer.prior = NormalPrior(1.0)
    torch.nn.init.zeros_(layer.mean.weight)
    variances = variance_parameters(layer)
    optimizer = torch.optim.Adam([{"params": [layer.mean.weight]}, {"params": variances}])
    steps = 1000
    for t in range(steps):
        for group, rate in zip(optimizer.param_groups, (1e-3, lr_var), strict=True):
            group["lr"] = rate * (1 - t / steps)
        optimizer.zero_grad()
        ((y - layer(x)[:, 0]).square().sum() / (2 * s**2) + kl(layer)).backward()
        optimizer.step()
    return layer.mean.weight[0].detach(), layer.log_variance()[0].detach(), *best


def test_a_rate_of_their_own_fits_the_variances():
    means, log_variances, best_means, best_log_variances = regression_posterior(lr_var=0.02)
    deviations = (0.5 * best_log_variances).exp()
    assert ((means - best_means).abs() < 0.2 * deviations).all()
    assert ((log_variances - best_log_variances).abs() < 0.15).all()


def test_with_the_published_rate_variances_stay_near_their_start():
    """Adam moves a parameter by at most about the sum of the rates, here 0.5; -10 is 4 from the posterior's."""
    means, log_variances, best_means, best_log_variances = regression_posterior(lr_var=1e-3)
    deviations = (0.5 * best_log_variances).exp()
    assert ((means - best_means).abs() < 0.2 * deviations).all()
    assert (log_variances < -9.4).all() and (best_log_variances > -7).all()


def test_relative_deviations():
    net = torch.nn.Sequential(BayesConv2d(1, 2, 3, log_variance=-2.0), BayesLinear(3, 3, log_variance=-4.0))
    net[0].prior = NormalPrior(0.5)
    with torch.no_grad():
        net[0].mean.weight.fill_(-0.25)
        net[1].mean.weight.copy_(torch.arange(1.0, 10.0).view(3, 3))
    expected = {
        "0/dev_to_mean": math.exp(-1) / 0.25,
        "0/dev_to_prior": math.exp(-1) / 0.5,
        "1/dev_to_mean": math.exp(-2) / 5,
    }
    found = {name: value.item() for name, value in relative_deviations(net).items()}
    assert found == pytest.approx(expected)
    torch.nn.init.zeros_(net[0].mean.weight)
    assert relative_deviations(net)["0/dev_to_mean"].isfinite()


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

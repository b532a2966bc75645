"""The bounds of the deep weight prior's KL against integrals by quadrature, for VAEs of a single weight."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from models.priors import DeepWeightPrior
from tests.models.reference import monte_carlo


class Function(nn.Module):
    """A function as a module without parameters."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


class TanhVAE:
    """A VAE of 1x1 kernels with one code, whose integrals a quadrature gives: p(w|z) = N(tanh(z), 0.1 + 0.05 z^2)."""

    kernel_dim = 1
    encoder = Function(lambda w: (0.8 * w, 0.3 + 0.1 * torch.sigmoid(w)))
    decoder = Function(lambda z: (torch.tanh(z), 0.1 + 0.05 * z**2))


def test_the_mean_of_the_kl_is_the_integral():
    mean, variance = 0.7, 0.2**2

    def inner(w):
        m, s = 0.8 * w, 0.3 + 0.1 / (1 + math.exp(-w))
        r = stats.norm(m, math.sqrt(s))

        def integrand(z):
            log_p = stats.norm.logpdf(w, math.tanh(z), math.sqrt(0.1 + 0.05 * z * z))
            return r.pdf(z) * (r.logpdf(z) - stats.norm.logpdf(z) - log_p)

        return integrate.quad(integrand, m - 8 * math.sqrt(s), m + 8 * math.sqrt(s))[0]

    q = stats.norm(mean, math.sqrt(variance))
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    expectation = sum(wt * inner(mean + math.sqrt(variance) * x) for x, wt in zip(nodes, weights, strict=True))
    bound = expectation / math.sqrt(2 * math.pi) - q.entropy()

    # The true KL, with p(w) by quadrature over z, is below the bound.
    def evidence(w):
        return integrate.quad(
            lambda z: stats.norm.pdf(z) * stats.norm.pdf(w, math.tanh(z), math.sqrt(0.1 + 0.05 * z * z)), -9, 9
        )[0]

    log_p = [math.log(evidence(mean + math.sqrt(variance) * x)) for x in nodes]
    true_kl = -q.entropy() - float(np.dot(weights, log_p)) / math.sqrt(2 * math.pi)
    assert true_kl < bound

    torch.manual_seed(0)
    shape = (200, 500, 1, 1)
    prior = DeepWeightPrior(TanhVAE())
    draws = [prior.kl(torch.full(shape, mean), torch.full(shape, math.log(variance))).item() / 1e5 for _ in range(20)]
    error = np.std(draws, ddof=1) / math.sqrt(len(draws))
    assert abs(np.mean(draws) - bound) < 4 * error
    assert 4 * error < 0.02 * abs(bound - true_kl) + 0.005


class LinearEncoder(nn.Module):
    """r(z|w) = N(a w + b, exp(c)), far from the posterior of `LinearVAE` before training."""

    def __init__(self):
        super().__init__()
        self.abc = nn.Parameter(torch.tensor([0.2, 0.5, -0.5]))

    def forward(self, w):
        a, b, c = self.abc
        return a * w + b, c.exp().expand_as(w)


class LinearVAE:
    """A VAE of 1x1 kernels with one code, whose integrals a quadrature gives: p(w|z) = N(1.5 z, 0.2 + 0.1 z^2)."""

    kernel_dim = 1
    decoder = Function(lambda z: (1.5 * z, 0.2 + 0.1 * z**2))

    def __init__(self):
        self.encoder = LinearEncoder().requires_grad_(False)


MEAN, LOG_VARIANCE = 0.7, math.log(0.3**2)


def true_kl():
    """KL(q || p) per weight under `LinearVAE`, with p(w) by quadrature over z."""
    q = stats.norm(MEAN, math.exp(LOG_VARIANCE / 2))

    def log_p(w):
        joint = lambda z: stats.norm.pdf(z) * stats.norm.pdf(w, 1.5 * z, math.sqrt(0.2 + 0.1 * z * z))  # noqa: E731
        return math.log(integrate.quad(joint, -9, 9, limit=200)[0])

    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    values = [log_p(MEAN + math.exp(LOG_VARIANCE / 2) * x) for x in nodes]
    return -q.entropy() - float(np.dot(weights, values)) / math.sqrt(2 * math.pi)


def estimate(prior, n=20):
    """KL per weight under a prior: mean and standard error over n calls for 10,000 kernels each."""
    mean, log_variance = torch.full((100, 100, 1, 1), MEAN), torch.full((100, 100, 1, 1), LOG_VARIANCE)
    with torch.no_grad():
        return monte_carlo(lambda: prior.kl(mean, log_variance).item() / 1e4, n)


def test_the_bounds_are_in_order():
    torch.manual_seed(0)
    priors = [DeepWeightPrior(LinearVAE())]
    priors += [DeepWeightPrior(LinearVAE(), bound="iwae", iwae_samples=s) for s in (1, 2, 4, 16, 256)]
    bounds = [estimate(prior) for prior in priors]
    # One importance sample is KL_aux with KL(r || p) sampled.
    assert abs(bounds[0][0] - bounds[1][0]) < 4 * math.hypot(bounds[0][1], bounds[1][1])
    for (high, a), (low, b) in itertools.pairwise(bounds[1:]):
        assert high - low > 4 * math.hypot(a, b)
    exact = true_kl()
    assert abs(bounds[-1][0] - exact) < 4 * bounds[-1][1] + 0.01
    assert all(value > exact - 4 * error for value, error in bounds)


def test_training_the_reverse_model_closes_the_gap():
    torch.manual_seed(0)
    vae = LinearVAE()
    prior = DeepWeightPrior(vae, reverse="train")
    assert set(prior.parameters()) == set(prior.reverse.parameters()) and not list(DeepWeightPrior(vae).parameters())
    exact = true_kl()
    before, error = estimate(prior)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.02)
    mean, log_variance = torch.full((20, 20, 1, 1), MEAN), torch.full((20, 20, 1, 1), LOG_VARIANCE)
    for _ in range(600):
        optimizer.zero_grad()
        (prior.kl(mean, log_variance) / 400).backward()
        optimizer.step()
    after, error = estimate(prior, 100)
    assert before - exact > 0.2 and -4 * error < after - exact < 0.1 * (before - exact)
    # The training changed a copy of the encoder.
    assert vae.encoder.abc.tolist() == pytest.approx([0.2, 0.5, -0.5])
    assert estimate(DeepWeightPrior(vae))[0] == pytest.approx(before, rel=0.05)

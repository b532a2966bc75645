"""Priors with closed forms or approximations: the KL against torch's, quadrature and Monte Carlo."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from models.build import build_vae
from models.flow import KernelFlow
from models.priors import (
    DeepWeightPrior,
    FlowPrior,
    GaussPrior,
    LogUniformPrior,
    NoPrior,
    NormalPrior,
    SampledNormalPrior,
)
from tests.models.reference import monte_carlo


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_normal_kl_is_torchs(scale):
    mean, log_variance = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, scale)).sum()
    torch.testing.assert_close(NormalPrior(scale).kl(mean, log_variance), expected)
    assert NoPrior().kl(mean, log_variance) == 0


def test_gauss_is_the_normal_with_the_kernels_covariance():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((9, 9)) / 3
    samples = rng.standard_normal((5000, 9)) @ factor.T + 0.3
    prior = GaussPrior(torch.from_numpy(samples).view(-1, 1, 3, 3))
    np.testing.assert_allclose(prior.centre, samples.mean(0))
    np.testing.assert_allclose(prior.covariance, np.cov(samples.T), rtol=1e-10)
    assert np.abs(prior.covariance.numpy() - factor @ factor.T).max() < 0.1

    mean, log_variance = torch.randn(4, 2, 3, 3, dtype=torch.double), torch.randn(4, 2, 3, 3, dtype=torch.double) - 2
    q = torch.distributions.MultivariateNormal(mean.reshape(8, 9), torch.diag_embed(log_variance.exp().reshape(8, 9)))
    p = torch.distributions.MultivariateNormal(torch.from_numpy(samples.mean(0)), torch.from_numpy(np.cov(samples.T)))
    expected = torch.distributions.kl_divergence(q, p).sum()
    assert prior.kl(mean, log_variance).item() == pytest.approx(expected.item(), rel=1e-9)
    found, error = monte_carlo(lambda: (q.log_prob(w := q.sample()) - p.log_prob(w)).sum().item(), 2000)
    assert abs(found - expected.item()) < 4 * error


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("kernels", [0, 3])
def test_sampled_normal_kl_has_the_closed_forms_mean(scale, kernels):
    torch.manual_seed(0)
    mean, log_variance = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5) - 1
    expected = NormalPrior(scale).kl(mean, log_variance).item()
    prior = SampledNormalPrior(scale, samples=2, kernels=kernels)
    found, error = monte_carlo(lambda: prior.kl(mean, log_variance).item(), 2000)
    assert abs(found - expected) < 4 * error < 0.1 * expected


def log_uniform_kl(alpha):
    """KL(N(1, alpha) || log-uniform) up to a constant, by quadrature: -0.5 log alpha + E log |w|."""
    pdf = stats.norm(1, math.sqrt(alpha)).pdf
    edges = [1 - 12 * math.sqrt(alpha), -0.5, 0, 0.5, 1 + 12 * math.sqrt(alpha)]
    parts = zip(sorted(edges)[:-1], sorted(edges)[1:], strict=True)
    expectation = sum(
        integrate.quad(lambda w: pdf(w) * math.log(abs(w)) if w else 0, a, b, limit=200)[0] for a, b in parts
    )
    return expectation - 0.5 * math.log(alpha)


@pytest.mark.parametrize("truncated, alphas", [(True, (0.01, 0.1, 0.5, 0.9)), (False, (0.01, 0.3, 2.0, 30.0))])
def test_log_uniform_kl_is_the_integral(truncated, alphas):
    """Differences of the KL between alphas are good to 0.05 nats; the KL is known up to a constant alone."""
    mean = torch.tensor([[[[0.7]]]], dtype=torch.double)
    prior = LogUniformPrior(truncated)
    found = np.array([prior.kl(mean, torch.log(a * mean**2)).item() for a in map(torch.tensor, alphas)])
    expected = np.array([log_uniform_kl(a) for a in alphas])
    difference = found - expected
    assert np.ptp(difference) < 0.05, difference
    assert np.ptp(expected) > 1


def test_log_uniform_kl_of_a_large_variance_and_the_formula():
    mean = torch.full((1, 1, 1, 1), 0.5, dtype=torch.double)
    assert LogUniformPrior().kl(mean, torch.log(1e9 * mean**2)).item() == pytest.approx(0, abs=1e-6)
    for alpha in (0.05, 0.4, 3.0):
        sigmoid = 1 / (1 + math.exp(-(1.87320 + 1.48695 * math.log(alpha))))
        expected = 0.63576 * (1 - sigmoid) + 0.5 * math.log(1 + 1 / alpha)
        assert LogUniformPrior().kl(mean, torch.log(alpha * mean**2)).item() == pytest.approx(expected, rel=1e-6)


def test_deviations_under_the_priors():
    """Against the deviation of many samples, which some priors estimate from few; others have no deviation."""
    torch.manual_seed(0)
    vae, flow, filters = build_vae(5, 2, 4), KernelFlow(3, 8, 2), torch.randn(500, 1, 3, 3) * torch.rand(3, 3)
    flow.standardize(filters)
    with torch.no_grad():
        samples = {DeepWeightPrior(vae): vae.sample(100000), FlowPrior(flow): flow.sample(100000)}
    samples |= {GaussPrior(filters): filters, SampledNormalPrior(0.3): 0.3 * torch.randn(100000)}
    before = torch.get_rng_state()
    for prior, drawn in samples.items():
        torch.testing.assert_close(prior.deviation(), drawn.std(0).squeeze(), rtol=0.1, atol=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert NoPrior().deviation() is None and LogUniformPrior().deviation() is None

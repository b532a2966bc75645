"""The flow's density against the change of variables and its samples; the KL of the prior of a flow."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from models.flow import KernelFlow
from models.priors import FlowPrior
from tests.models.reference import monte_carlo


@pytest.fixture
def flow():
    """A frozen flow over 3x3 kernels in float64, with random weights."""
    torch.manual_seed(0)
    flow = KernelFlow(3, 8, 3).double()
    flow.standardize(torch.randn(50, 1, 3, 3).double() * torch.linspace(0.5, 2, 9).view(3, 3) + 0.2)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow.requires_grad_(False)


def test_the_density_is_the_change_of_variables(flow):
    """log p(w) = log N(u(w) | 0, I) + log |det du/dw|, the Jacobian by autograd."""
    w = torch.randn(4, 1, 3, 3).double()

    def to_noise(x):
        return flow.flow().transform((x - flow.centre) / flow.scale)

    for kernel, found in zip(w, flow.log_prob(w), strict=True):
        x = kernel.flatten()
        u = to_noise(x)
        jacobian = torch.autograd.functional.jacobian(to_noise, x)
        expected = stats.norm.logpdf(u.numpy()).sum() + np.linalg.slogdet(jacobian.numpy())[1]
        assert found.item() == pytest.approx(expected, rel=1e-9)


def test_samples_follow_the_density(flow):
    torch.manual_seed(1)
    samples = flow.sample(4000)
    noise = flow.flow().transform((samples.flatten(1) - flow.centre) / flow.scale).numpy()
    for column in noise.T:
        assert stats.kstest(column, "norm").pvalue > 1e-4
    assert np.abs(np.cov(noise.T) - np.eye(9)).max() < 0.1


def test_the_mean_of_the_priors_kl(flow):
    """The KL that `FlowPrior` samples has the mean of log q(w) - log p(w) over draws of w."""
    torch.manual_seed(0)
    mean, log_variance = 0.5 * torch.randn(2, 2, 3, 3).double(), torch.full((2, 2, 3, 3), -3.0).double()
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    w = q.sample((2000,))
    log_p = flow.log_prob(w.view(-1, 1, 3, 3)).view(2000, -1).sum(1)
    ratios = q.log_prob(w).flatten(1).sum(1) - log_p
    expected, spread = ratios.mean().item(), ratios.std().item() / math.sqrt(2000)
    prior, copies = FlowPrior(flow), [t.repeat(1, 100, 1, 1) for t in (mean, log_variance)]
    found, error = monte_carlo(lambda: prior.kl(*copies).item() / 100, 20)
    assert abs(found - expected) < 4 * math.hypot(spread, error)

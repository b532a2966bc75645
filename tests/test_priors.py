"""Priors as distributions: samples against densities, KL against closed forms, quadrature and Monte Carlo."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from torch import nn

from models.bayes import BayesConv2d, BayesLinear
from models.flow import KernelFlow
from models.priors import (
    DeepWeightPrior,
    FlowPrior,
    GaussPrior,
    LogUniformPrior,
    NormalPrior,
    SampledNormalPrior,
)
from models.vae import VAES


def monte_carlo(draw, n):
    """Mean of n values and its standard error."""
    values = np.array([draw() for _ in range(n)])
    return values.mean(), values.std(ddof=1) / math.sqrt(n)


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_gauss_is_the_normal_with_the_kernels_covariance():
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((9, 9)) / 3
    samples = rng.standard_normal((5000, 9)) @ factor.T + 0.3
    prior = GaussPrior(torch.from_numpy(samples).view(-1, 1, 3, 3))
    np.testing.assert_allclose(prior.mean, samples.mean(0))
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
    """Both approximations are good to 0.05 nats; only differences matter, the constant is free."""
    mean = torch.tensor([[[[0.7]]]], dtype=torch.double)
    prior = LogUniformPrior(truncated)
    found = np.array([prior.kl(mean, torch.log(a * mean**2)).item() for a in map(torch.tensor, alphas)])
    expected = np.array([log_uniform_kl(a) for a in alphas])
    difference = found - expected
    assert np.ptp(difference) < 0.05, difference
    assert np.ptp(expected) > 1


def test_log_uniform_kl_at_infinity_and_the_formulas():
    mean = torch.full((1, 1, 1, 1), 0.5, dtype=torch.double)
    assert LogUniformPrior().kl(mean, torch.log(1e9 * mean**2)).item() == pytest.approx(0, abs=1e-6)
    for alpha in (0.05, 0.4, 3.0):
        sigmoid = 1 / (1 + math.exp(-(1.87320 + 1.48695 * math.log(alpha))))
        expected = 0.63576 * (1 - sigmoid) + 0.5 * math.log(1 + 1 / alpha)
        assert LogUniformPrior().kl(mean, torch.log(alpha * mean**2)).item() == pytest.approx(expected, rel=1e-6)


def test_the_truncated_posterior():
    """alpha = sigmoid(w_alpha) per weight, starting at sigmoid(-2); its KL is the cubic, free of the mean."""
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


# --- flows and VAEs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def flow():
    torch.manual_seed(0)
    flow = KernelFlow(3, 8, 3).double()
    flow.standardize(torch.randn(50, 1, 3, 3).double() * torch.linspace(0.5, 2, 9).view(3, 3) + 0.2)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow.requires_grad_(False)


def test_flow_density_is_the_change_of_variables(flow):
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


def test_flow_samples_follow_its_density(flow):
    torch.manual_seed(1)
    samples = flow.sample(4000)
    noise = flow.flow().transform((samples.flatten(1) - flow.centre) / flow.scale).numpy()
    for column in noise.T:
        assert stats.kstest(column, "norm").pvalue > 1e-4
    assert np.abs(np.cov(noise.T) - np.eye(9)).max() < 0.1


def test_flow_kl_in_the_mean(flow):
    torch.manual_seed(0)
    mean, log_variance = 0.5 * torch.randn(2, 2, 3, 3).double(), torch.full((2, 2, 3, 3), -3.0).double()
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())

    def log_ratio():
        w = q.sample()
        return (q.log_prob(w).sum() - flow.log_prob(w.view(4, 1, 3, 3)).sum()).item()

    expected, spread = monte_carlo(log_ratio, 2000)
    found, error = monte_carlo(lambda: FlowPrior(flow).kl(mean, log_variance).item(), 2000)
    assert abs(found - expected) < 4 * math.hypot(spread, error)


@pytest.mark.parametrize("k", VAES)
def test_vae_samples_follow_its_density(k):
    """The marginal of one weight, by quadrature over a one-dimensional code, against samples."""
    torch.manual_seed(k)
    vae = VAES[k](1, 4).double().requires_grad_(False)
    for parameter in vae.decoder.parameters():
        parameter.mul_(2)
    samples = vae.sample(2000)
    assert samples.shape == (2000, 1, k, k)
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    means, variances = vae.decode(torch.from_numpy(nodes).view(-1, 1, 1, 1))
    for i, j in ((0, 0), (k // 2, 1)):
        m, s = means[:, 0, i, j].numpy(), variances[:, 0, i, j].sqrt().numpy()

        def cdf(w, m=m, s=s):
            return (stats.norm.cdf((np.asarray(w)[..., None] - m) / s) * weights).sum(-1) / math.sqrt(2 * math.pi)

        assert stats.kstest(samples[:, 0, i, j].numpy(), cdf).pvalue > 1e-4


STRUCTURE = {
    3: (
        {"features.0": (5, 1, 3, 3), "features.2": (5, 5, 3, 3), "features.4": (10, 5, 3, 3)},
        {"fc_mu": (2, 10, 1, 1), "fc_sigma": (2, 10, 1, 1)},
        {"decoder.0": (10, 2, 1, 1), "decoder.2": (10, 5, 3, 3), "decoder.4": (5, 5, 1, 1)},
    ),
    16: (
        {f"features.{i}": (b, a, 3, 3) for i, a, b in ((1, 1, 5), (5, 5, 10), (9, 10, 10), (13, 10, 10))},
        {"fc_mu": (2, 10, 1, 1), "fc_sigma": (2, 10, 1, 1)},
        {
            "decoder.0": (10, 2, 1, 1),
            "decoder.2": (10, 10, 4, 4),
            "decoder.4": (10, 10, 4, 4),
            "decoder.6": (10, 5, 4, 4),
        },
    ),
}


@pytest.mark.parametrize("k", STRUCTURE)
def test_names_and_shapes_of_the_vaes_without_published_weights(k):
    features, heads, decoder = STRUCTURE[k]
    expected = {f"encoder.{name}.weight": shape for name, shape in (features | heads).items()}
    expected |= {f"decoder.{name}.weight": shape for name, shape in decoder.items()}
    expected |= {f"decoder.{name}.weight": (1, 5, 1, 1) for name in ("fc_mu.0", "fc_var.0")}
    state = VAES[k](2, 5).state_dict()
    assert {name: tuple(v.shape) for name, v in state.items() if name.endswith("weight")} == expected
    assert set(state) == {name for key in expected for name in (key, key.replace("weight", "bias"))}


def test_the_16x16_encoder_is_pad_conv_pool_elu():
    torch.manual_seed(0)
    vae = VAES[16](2, 3).double()
    h = w = torch.randn(4, 1, 16, 16).double()
    state = vae.state_dict()
    for i in (1, 5, 9, 13):
        padded = torch.from_numpy(np.pad(h.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect"))
        h = F.conv2d(padded, state[f"encoder.features.{i}.weight"], state[f"encoder.features.{i}.bias"])
        h = h.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
        h = torch.where(h > 0, h, h.exp() - 1)
    expected = (h[:, :, 0, 0] @ state["encoder.fc_mu.weight"][:, :, 0, 0].T) + state["encoder.fc_mu.bias"]
    torch.testing.assert_close(vae.encode(w)[0][:, :, 0, 0], expected)


# --- the bounds -------------------------------------------------------------------------------------------------------


class TinyEncoder(nn.Module):
    """r(z|w) = N(a w + b, exp(c)), poor to begin with."""

    def __init__(self):
        super().__init__()
        self.abc = nn.Parameter(torch.tensor([0.2, 0.5, -0.5]))

    def forward(self, w):
        a, b, c = self.abc
        return a * w + b, c.exp().expand_as(w)


class TinyVAE:
    """1x1 kernels and one code, so that quadrature does every integral: p(w|z) = N(1.5 z, 0.2 + 0.1 z^2)."""

    kernel_dim = 1

    def __init__(self):
        self.encoder = TinyEncoder().requires_grad_(False)

    @staticmethod
    def decoder(z):
        return 1.5 * z, 0.2 + 0.1 * z**2


MEAN, LOG_VARIANCE = 0.7, math.log(0.3**2)


def true_kl():
    """KL(q || p) per weight, p(w) by quadrature over z."""
    q = stats.norm(MEAN, math.exp(LOG_VARIANCE / 2))

    def log_p(w):
        joint = lambda z: stats.norm.pdf(z) * stats.norm.pdf(w, 1.5 * z, math.sqrt(0.2 + 0.1 * z * z))  # noqa: E731
        return math.log(integrate.quad(joint, -9, 9, limit=200)[0])

    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    values = [log_p(MEAN + math.exp(LOG_VARIANCE / 2) * x) for x in nodes]
    return -q.entropy() - float(np.dot(weights, values)) / math.sqrt(2 * math.pi)


def estimate(prior, n=20):
    """KL per weight under a prior: mean and standard error over n calls of 10,000 kernels."""
    mean, log_variance = torch.full((100, 100, 1, 1), MEAN), torch.full((100, 100, 1, 1), LOG_VARIANCE)
    with torch.no_grad():
        return monte_carlo(lambda: prior.kl(mean, log_variance).item() / 1e4, n)


def test_the_bounds_are_in_order():
    torch.manual_seed(0)
    bounds = [estimate(DeepWeightPrior(TinyVAE(), z_samples=s)) for s in (0, 1, 2, 4, 16, 256)]
    # One importance sample is KL_aux with KL(r || p) sampled.
    assert abs(bounds[0][0] - bounds[1][0]) < 4 * math.hypot(bounds[0][1], bounds[1][1])
    for (high, a), (low, b) in itertools.pairwise(bounds[1:]):
        assert high - low > 4 * math.hypot(a, b)
    exact = true_kl()
    assert abs(bounds[-1][0] - exact) < 4 * bounds[-1][1] + 0.01
    assert all(value > exact - 4 * error for value, error in bounds)


def test_training_the_reverse_model_closes_the_gap():
    torch.manual_seed(0)
    vae = TinyVAE()
    prior = DeepWeightPrior(vae, train_reverse=True)
    assert prior.reverse_model() is prior.reverse and DeepWeightPrior(vae).reverse_model() is None
    exact = true_kl()
    before, error = estimate(prior)
    optimizer = torch.optim.Adam(prior.reverse_model().parameters(), lr=0.02)
    mean, log_variance = torch.full((20, 20, 1, 1), MEAN), torch.full((20, 20, 1, 1), LOG_VARIANCE)
    for _ in range(600):
        optimizer.zero_grad()
        (prior.kl(mean, log_variance) / 400).backward()
        optimizer.step()
    after, error = estimate(prior, 100)
    assert before - exact > 0.2 and -4 * error < after - exact < 0.1 * (before - exact)
    # What was loaded is untouched.
    assert vae.encoder.abc.tolist() == pytest.approx([0.2, 0.5, -0.5])
    assert estimate(DeepWeightPrior(vae))[0] == pytest.approx(before, rel=0.05)


def test_the_importance_weighted_bound_is_the_formula():
    vae = VAES[3](2, 4).double().requires_grad_(False)
    w = torch.randn(3, 1, 3, 3).double()
    torch.manual_seed(2)
    found = DeepWeightPrior(vae, z_samples=5).cross_entropy(w).item()
    torch.manual_seed(2)
    eps = torch.randn(15, 2, 1, 1, dtype=torch.double).view(3, 5, 2)
    expected = 0.0
    for i in range(3):
        m, s = (t.view(-1).numpy() for t in vae.encode(w[i : i + 1]))
        terms = []
        for j in range(5):
            z = m + np.sqrt(s) * eps[i, j].numpy()
            mu, var = (t.view(-1).numpy() for t in vae.decode(torch.from_numpy(z).view(1, 2, 1, 1)))
            log_p = stats.norm.logpdf(w[i].numpy().ravel(), mu, np.sqrt(var)).sum()
            terms.append(log_p + stats.norm.logpdf(z).sum() - stats.norm.logpdf(z, m, np.sqrt(s)).sum())
        expected -= math.log(np.mean(np.exp(terms)))
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_prior_of_another_kernel_size_raises():
    layer = BayesConv2d(1, 2, 7)
    layer.prior = DeepWeightPrior(VAES[5](2, 4))
    with pytest.raises(ValueError, match="5x5"):
        layer.kl()


# --- Bayesian layers --------------------------------------------------------------------------------------------------


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


def test_a_bayesian_linear_layers_kl_is_torchs():
    layer = BayesLinear(5, 3, log_variance=-1.0)
    layer.prior = NormalPrior(0.5)
    q = torch.distributions.Normal(layer.mean.weight, (0.5 * layer.var["weight"]).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 0.5)).sum()
    torch.testing.assert_close(layer.kl(), expected)

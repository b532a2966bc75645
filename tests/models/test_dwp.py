"""The deep weight prior's KL and its gradients against formulas written out in float64 and finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import utils
from models import priors
from models.bayes import BayesConv2d
from models.build import build_vae
from models.priors import BLOCK, DeepWeightPrior
from tests.models.reference import LAYERS, dwp_layer, reference_dwp_kl, vae_state


@pytest.mark.parametrize("k", LAYERS)
@pytest.mark.parametrize("kernels", [0, 5])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_kl_is_the_formula(k, kernels, samples):
    layer = dwp_layer(k, kernels, samples)
    state = vae_state(layer.prior)
    mean, log_variance = (p.detach().reshape(-1, 1, k, k) for p in (layer.mean.weight, layer.var["weight"]))
    n = len(mean)
    torch.manual_seed(1)
    found = layer.kl()
    torch.manual_seed(1)
    entropy = (0.5 * (math.log(2 * math.pi * math.e) + log_variance.double())).sum()
    total = -entropy
    for _ in range(samples):
        drawn = torch.randperm(n)[:kernels] if kernels else torch.arange(n)
        eps_w, eps_z = torch.randn(len(drawn), 1, k, k), torch.randn(len(drawn), 2, 1, 1)
        part = reference_dwp_kl(state, k, mean[drawn], log_variance[drawn], eps_w, eps_z)
        part_entropy = (0.5 * (math.log(2 * math.pi * math.e) + log_variance[drawn].double())).sum()
        total = total + (part + part_entropy) * n / len(drawn) / samples
    assert found.item() == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize("k", LAYERS)
@pytest.mark.parametrize("precision, value_error, gradient_error", [("fp32", 1e-5, 1e-4), ("bf16", 5e-3, 2e-2)])
def test_precision_of_the_kl(k, precision, value_error, gradient_error):
    """Value and gradients of two blocks of kernels, the second not full, are near the formula's in float64."""
    layer = dwp_layer(k, channels=(35, 30))
    state = vae_state(layer.prior)
    parameters = [layer.mean.weight, layer.var["weight"]]
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        value = layer.kl()
    found = torch.autograd.grad(value, parameters)
    torch.manual_seed(1)
    doubles = [p.detach().reshape(-1, 1, k, k).double().requires_grad_() for p in parameters]
    noise = [(torch.randn(n, 1, k, k), torch.randn(n, 2, 1, 1)) for n in (BLOCK, 1050 - BLOCK)]
    eps_w, eps_z = (torch.cat(parts) for parts in zip(*noise, strict=True))
    expected = reference_dwp_kl(state, k, *doubles, eps_w, eps_z)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(expected.item(), rel=value_error)
    for gradient, true in zip(found, torch.autograd.grad(expected, doubles), strict=True):
        assert (gradient.view_as(true) - true).norm() < gradient_error * true.norm()


def test_the_kl_under_published_vaes_is_the_formula(published):
    for k in (7, 5):
        vae = utils.load_vae(published / f"vae{k}x{k}")
        w = utils.load_kernels(published / f"conv{k}x{k}" / "test.npy")[:64]
        log_variance = torch.full_like(w, -6.0)
        torch.manual_seed(3)
        found = DeepWeightPrior(vae).kl(w.view(8, 8, k, k), log_variance.view(8, 8, k, k))
        torch.manual_seed(3)
        noise = torch.randn_like(w), torch.randn(64, vae.z_dim, 1, 1)
        assert found.item() == pytest.approx(
            reference_dwp_kl(vae.state_dict(), k, w, log_variance, *noise).item(), rel=1e-5
        )


@pytest.mark.parametrize("reverse", ["frozen", "train"])
def test_blocks_change_neither_value_nor_gradients(monkeypatch, reverse):
    """With blocks of two kernels, each with noise of its own, value and gradients are the formula's for all kernels."""
    monkeypatch.setattr(priors, "BLOCK", 2)
    layer = dwp_layer(5, channels=(1, 5)).double()
    prior = layer.prior = DeepWeightPrior(build_vae(5, 2, 8).double().requires_grad_(False), reverse=reverse)
    mean, log_variance = layer.mean.weight, layer.var["weight"]
    torch.manual_seed(1)
    found = layer.kl()
    torch.manual_seed(1)
    noise = [[torch.randn(n, *s, dtype=torch.double) for s in ((1, 5, 5), (2, 1, 1))] for n in (2, 2, 1)]
    eps_w, eps_z = (torch.cat(parts) for parts in zip(*noise, strict=True))
    state = dict(nn.ModuleDict({"encoder": prior.reverse, "decoder": prior.decoder}).named_parameters())
    expected = reference_dwp_kl(state, 5, mean.view(5, 1, 5, 5), log_variance.view(5, 1, 5, 5), eps_w, eps_z)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    leaves = [mean, log_variance, *(prior.reverse.parameters() if reverse == "train" else ())]
    for a, b in zip(torch.autograd.grad(3 * found, leaves), torch.autograd.grad(3 * expected, leaves), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("k", LAYERS)
def test_gradients_are_finite_differences(k):
    layer = dwp_layer(k, channels=(1, 2)).double()
    layer.prior.decoder.double()
    layer.prior.reverse.double()
    rng = np.random.default_rng(0)
    for parameter in (layer.mean.weight, layer.var["weight"]):
        direction = torch.from_numpy(rng.standard_normal(parameter.shape))
        torch.manual_seed(5)
        (gradient,) = torch.autograd.grad(layer.kl(), parameter)
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(step * direction)
                torch.manual_seed(5)
                values.append(layer.kl().item())
                parameter.add_(-step * direction)
        assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def test_subsampled_kl_is_unbiased_in_value_and_gradient():
    layer, all_kernels = dwp_layer(5, kernels=3), dwp_layer(5, kernels=0)

    def draws(layer, n):
        torch.manual_seed(7)
        pairs = []
        for _ in range(n):
            kl = layer.kl()
            (gradient,) = torch.autograd.grad(kl, layer.var["weight"])
            pairs.append((kl.item(), gradient.sum().item()))
        return np.array(pairs)

    few, full = draws(layer, 800), draws(all_kernels, 400)
    error = np.sqrt(few.var(0, ddof=1) / len(few) + full.var(0, ddof=1) / len(full))
    assert (np.abs(few.mean(0) - full.mean(0)) < 4 * error).all()
    assert (error < 0.2 * np.abs(full.mean(0))).all()


def test_the_importance_weighted_bound_is_the_formula():
    vae = build_vae(3, 2, 4).double().requires_grad_(False)
    w = torch.randn(3, 1, 3, 3).double()
    torch.manual_seed(2)
    found = DeepWeightPrior(vae, bound="iwae", iwae_samples=5).cross_entropy(w).item()
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
    layer.prior = DeepWeightPrior(build_vae(5, 2, 4))
    with pytest.raises(ValueError, match="5x5"):
        layer.kl()

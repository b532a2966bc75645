"""The mathematics against something independent of the code under test."""

import argparse
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from torch import nn

import utils
from models import priors
from models.bayes import BayesConv2d, sample_outputs, set_mode
from models.configs import MODELS
from models.fconv import FConv
from models.layers import ELU, Conv2d, ConvTranspose2d
from models.priors import BLOCK, DeepWeightPrior, NoPrior, NormalPrior
from models.vae import VAES


def reference_network(state, name, x, modules):
    """Apply ELU layers (kind, index, padding) of a state dict in float64, the ELU by its formula."""
    for kind, index, padding in modules:
        weight, bias = state[f"{name}.{index}.weight"].double(), state[f"{name}.{index}.bias"].double()
        x = F.conv2d(x, weight, bias, padding=padding) if kind == "conv" else F.conv_transpose2d(x, weight, bias)
        x = torch.where(x > 0, x, torch.exp(torch.clamp(x, max=0)) - 1)
    return x


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
    """KL_aux in nats, written out in float64 from DESIGN's formula, for kernels (n, 1, k, k) and given noise."""
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
    torch.manual_seed(0)
    vae = VAES[k](2, 8).requires_grad_(False)
    layer = BayesConv2d(*channels, k)
    with torch.no_grad():
        layer.mean.weight.normal_(0, 0.5)
        layer.var["weight"].uniform_(-6, -1)
    layer.prior = DeepWeightPrior(vae, samples, kernels)
    return layer


def vae_state(prior):
    return nn.ModuleDict({"encoder": prior.reverse, "decoder": prior.decoder}).state_dict()


@pytest.mark.parametrize("k", LAYERS)
@pytest.mark.parametrize("kernels", [0, 5])
@pytest.mark.parametrize("samples", [1, 3])
def test_dwp_kl_is_the_formula(k, kernels, samples):
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


def test_elu_is_torchs_in_value_and_gradient():
    x = torch.cat([torch.linspace(-90, 90, 20001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, -200.0])]).requires_grad_()
    ours, theirs = ELU()(x), F.elu(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1.2e-7)
    weights = torch.randn_like(x)
    found, expected = (torch.autograd.grad(y, x, weights)[0] for y in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1.2e-7 * weights.abs().max().item())
    assert torch.autograd.gradcheck(ELU(), torch.randn(50, dtype=torch.double, requires_grad=True))


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-14), (torch.float32, 3e-6)])
@pytest.mark.parametrize(
    "cls, side",
    [(Conv2d, 5), (Conv2d, 3), (ConvTranspose2d, 3), (ConvTranspose2d, 1)],
)
def test_convs_of_small_maps_are_torchs(cls, side, dtype, error):
    """In value and every gradient, whichever way they are computed; the expected ones directly in float64."""
    torch.manual_seed(0)
    layer = cls(8, 16, 3).to(dtype).to(memory_format=torch.channels_last)
    x = torch.randn(7, 8, side, side, dtype=dtype).requires_grad_()
    function = F.conv_transpose2d if layer.transposed else F.conv2d
    leaves = [x, layer.weight, layer.bias]
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    found, expected = layer(x), function(*doubles)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, leaves, upstream.to(dtype))
    for a, b in zip((found, *gradients), (expected, *torch.autograd.grad(expected, doubles, upstream)), strict=True):
        assert (a - b).norm() < error * b.norm()


@pytest.mark.parametrize("k", LAYERS)
@pytest.mark.parametrize("precision, value_error, gradient_error", [("fp32", 1e-5, 1e-4), ("bf16", 5e-3, 2e-2)])
def test_precision_of_the_dwp_kl(k, precision, value_error, gradient_error):
    """Value and gradients against the formula's in float64; several blocks, and a last one that is not full."""
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


def test_dwp_kl_with_published_vaes(published):
    for k in (7, 5):
        vae = utils.load_vae(published / f"vae{k}x{k}")
        w = utils.load_kernels(published / f"conv{k}x{k}" / "test.npy", "test")[:64]
        log_variance = torch.full_like(w, -6.0)
        torch.manual_seed(3)
        found = DeepWeightPrior(vae).kl(w.view(8, 8, k, k), log_variance.view(8, 8, k, k))
        torch.manual_seed(3)
        noise = torch.randn_like(w), torch.randn(64, vae.z_dim, 1, 1)
        assert found.item() == pytest.approx(
            reference_dwp_kl(vae.state_dict(), k, w, log_variance, *noise).item(), rel=1e-5
        )


@pytest.mark.parametrize("reverse", [False, True])
def test_blocks_change_neither_value_nor_gradients(monkeypatch, reverse):
    """The noise of two kernels is drawn at a time, and the formula's value and gradients are those of all at once."""
    monkeypatch.setattr(priors, "BLOCK", 2)
    layer = dwp_layer(5, channels=(1, 5)).double()
    prior = layer.prior = DeepWeightPrior(VAES[5](2, 8).double().requires_grad_(False), train_reverse=reverse)
    mean, log_variance = layer.mean.weight, layer.var["weight"]
    torch.manual_seed(1)
    found = layer.kl()
    torch.manual_seed(1)
    noise = [[torch.randn(n, *s, dtype=torch.double) for s in ((1, 5, 5), (2, 1, 1))] for n in (2, 2, 1)]
    eps_w, eps_z = (torch.cat(parts) for parts in zip(*noise, strict=True))
    state = {name: p for part in ("reverse", "decoder") for name, p in named(getattr(prior, part), part)}
    expected = reference_dwp_kl(state, 5, mean.view(5, 1, 5, 5), log_variance.view(5, 1, 5, 5), eps_w, eps_z)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    leaves = [mean, log_variance, *(prior.reverse.parameters() if reverse else ())]
    for a, b in zip(torch.autograd.grad(3 * found, leaves), torch.autograd.grad(3 * expected, leaves), strict=True):
        torch.testing.assert_close(a, b)


def named(module, part):
    prefix = "encoder" if part == "reverse" else part
    return [(f"{prefix}.{name}", p) for name, p in module.named_parameters()]


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


class TinyVAE:
    """1x1 kernels and one code, so that quadrature does every integral: p(w|z) = N(tanh(z), 0.1 + 0.05 z^2)."""

    kernel_dim = 1

    @staticmethod
    def encoder(w):
        return 0.8 * w, 0.3 + 0.1 * torch.sigmoid(w)

    @staticmethod
    def decoder(z):
        return torch.tanh(z), 0.1 + 0.05 * z**2


def test_dwp_kl_in_the_mean_is_the_integral():
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
    prior = DeepWeightPrior(TinyVAE())
    draws = [prior.kl(torch.full(shape, mean), torch.full(shape, math.log(variance))).item() / 1e5 for _ in range(20)]
    error = np.std(draws, ddof=1) / math.sqrt(len(draws))
    assert abs(np.mean(draws) - bound) < 4 * error
    assert 4 * error < 0.02 * abs(bound - true_kl) + 0.005


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


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_normal_kl_is_torchs(scale):
    mean, log_variance = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, scale)).sum()
    torch.testing.assert_close(NormalPrior(scale).kl(mean, log_variance), expected)
    assert NoPrior().kl(mean, log_variance) == 0


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


def test_gradient_is_finite_where_the_input_is_dark():
    layer = BayesConv2d(1, 2, 7)
    layer(torch.zeros(1, 1, 28, 28)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_sample_logits_has_the_distribution_of_single_calls():
    torch.manual_seed(0)
    net = FConv("bayes", (4, 6), log_variance=-3.0).eval()
    x, n = torch.rand(3, 1, 28, 28), 4000
    with torch.no_grad():
        together, single = net.sample_logits(x, n), torch.stack([net(x) for _ in range(n)])
        spread = single.std(0)
        assert (spread > 0.01).all()
        assert ((together.mean(0) - single.mean(0)).abs() < 5 * spread * math.sqrt(2 / n)).all()
        assert ((together.var(0) / single.var(0) - 1).abs() < 10 / math.sqrt(n)).all()
        for image in range(3):
            assert stats.ks_2samp(together[:, image, 0].numpy(), single[:, image, 0].numpy()).pvalue > 1e-4
        set_mode(net, "det")
        torch.testing.assert_close(net.sample_logits(x, 2)[1], net(x))
        vanilla = list(nn.Sequential(nn.Flatten()))
        assert [out.shape for out in sample_outputs(vanilla, x, 2)] == [(3, 784)] * 2


def test_predictions_do_not_depend_on_threads_nor_on_those_of_others():
    net = FConv("bayes", (4, 6), log_variance=-3.0).eval()
    data = utils.DataSet(torch.randint(256, (730, 1, 28, 28), dtype=torch.uint8), torch.zeros(730, dtype=torch.int64))
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3, 3):
            torch.set_num_threads(n)
            torch.manual_seed(5)
            found.append(utils.predict(lambda x, generator: net.sample_logits(x, 3, generator), data, 500))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    assert [b.shape for b in found[0]] == [(3, 100, 10)] * 7 + [(3, 30, 10)] and not found[0][0].requires_grad
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)
    assert torch.equal(torch.cat(found[2], 1), torch.cat(found[3], 1))
    # Batches of equal images differ by their noise, and so do samples.
    same = utils.DataSet(data.images[:1].expand(200, -1, -1, -1), data.labels[:200])
    first, second = utils.predict(lambda x, generator: net.sample_logits(x, 3, generator), same, 100)
    assert not torch.isclose(first, second).all(2).any() and not torch.isclose(first[0], first[1]).all(1).any()
    set_mode(net, "det")
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(utils.predict(lambda x, _: net(x), data, 100)), net(data.batch(...)[0]))
    with pytest.raises(ZeroDivisionError):
        utils.predict(lambda x, _: 1 / 0, data, 100)


@pytest.mark.parametrize("model", MODELS)
def test_the_pixels_cut_off_are_those_without_a_gradient(model):
    args = argparse.Namespace(net_cfg="vanilla", hid_dim=[3, 4, 5], model_size=0.02, n_classes=10)
    net = utils.NETWORKS[model](args).double()
    x = torch.rand(64, *MODELS[model].image_shape, dtype=torch.float64, requires_grad=True)
    whole = net.classifier(net.features(x).flatten(1))
    parameters = list(net.parameters())
    weights = torch.randn_like(whole)
    image_gradient, *gradients = torch.autograd.grad((whole * weights).sum(), [x, *parameters])
    for axis in (2, 3):
        used = image_gradient.abs().transpose(0, axis).flatten(1).sum(1).nonzero()
        assert used.max() + 1 == net.used_side
    torch.testing.assert_close(net(x), whole)
    torch.testing.assert_close(torch.autograd.grad((net(x) * weights).sum(), parameters), tuple(gradients))


def test_published_vaes_elbo(published):
    for k, nats in ((7, 49.6), (5, 52.6)):
        vae = utils.load_vae(published / f"vae{k}x{k}")
        w = utils.load_kernels(published / f"conv{k}x{k}" / "test.npy", "test")
        torch.manual_seed(0)
        repeats = 10 if k == 7 else 1
        with torch.no_grad():
            elbo = torch.cat([vae.elbo(b).elbo for _ in range(repeats) for b in w.split(2048)]).mean().item()
        assert elbo == pytest.approx(nats, abs=0.5)

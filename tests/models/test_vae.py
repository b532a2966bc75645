"""The kernel VAEs: names and shapes of the parameters, samples against the density, the published VAEs' ELBO."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import utils
from models.build import build_vae
from models.configs import VAES


def test_names_and_shapes_are_the_published_ones(published):
    for k, z_dim, hidden_dim in ((7, 2, 32), (5, 4, 64)):
        state = torch.load(published / f"vae{k}x{k}" / "vae_params.torch", map_location="cpu", weights_only=True)
        ours = build_vae(k, z_dim, hidden_dim).state_dict()
        assert {name: v.shape for name, v in ours.items()} == {name: v.shape for name, v in state.items()}


# Weights of encoder.features, of the encoder's heads and of decoder.decoder, for z_dim 2 and hidden_dim 5.
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
    state = build_vae(k, 2, 5).state_dict()
    assert {name: tuple(v.shape) for name, v in state.items() if name.endswith("weight")} == expected
    assert set(state) == {name for key in expected for name in (key, key.replace("weight", "bias"))}


def test_the_16x16_encoder_is_pad_conv_pool_elu():
    torch.manual_seed(0)
    vae = build_vae(16, 2, 3).double()
    h = w = torch.randn(4, 1, 16, 16).double()
    state = vae.state_dict()
    for i in (1, 5, 9, 13):
        padded = torch.from_numpy(np.pad(h.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect"))
        h = F.conv2d(padded, state[f"encoder.features.{i}.weight"], state[f"encoder.features.{i}.bias"])
        h = h.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
        h = torch.where(h > 0, h, h.exp() - 1)
    expected = (h[:, :, 0, 0] @ state["encoder.fc_mu.weight"][:, :, 0, 0].T) + state["encoder.fc_mu.bias"]
    torch.testing.assert_close(vae.encode(w)[0][:, :, 0, 0], expected)


@pytest.mark.parametrize("k", VAES)
def test_samples_follow_the_density(k):
    """Samples of two weights follow their marginals, by quadrature over the one-dimensional code."""
    torch.manual_seed(k)
    vae = build_vae(k, 1, 4).double().requires_grad_(False)
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


@pytest.mark.parametrize("n", [32, 4096])
def test_even_codes(n):
    """In each dimension each of n intervals of equal probability has one code, in an order that the seed draws."""
    vae = build_vae(5, z_dim=3, hidden_dim=2)
    orders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        codes = vae._even_codes(n)
        assert codes.shape == (n, 3, 1, 1) and codes.isfinite().all()
        intervals = np.floor(stats.norm.cdf(codes.flatten(1).double().numpy()) * n)
        assert (np.sort(intervals, 0) == np.arange(n)[:, None]).all()
        orders.append(intervals[:, 0])
        torch.manual_seed(seed)
        kernels = vae.sample_means(n, even=True)
        torch.testing.assert_close(kernels, vae.decode(codes)[0])
        # Of two dimensions, too: an integral of a product is estimated better than by independent codes.
        assert abs(codes[:, 0] * codes[:, 1]).mean() > 0 and abs((codes[:, 0] * codes[:, 1]).mean()) < 0.5 / math.sqrt(
            n
        )
        # Neighbours in a Sobol sequence lie in different halves.
        halves = (intervals[::2, 0] < n / 2) == (intervals[1::2, 0] < n / 2)
        assert 0.2 < halves.mean() < 0.8
    assert (orders[0] != orders[1]).any()


def test_the_elbo_of_the_published_vaes(published):
    """The test ELBO in nats per kernel is that of the published VAEs, within half a nat."""
    for k, nats in ((7, 49.6), (5, 52.6)):
        vae = utils.load_vae(published / f"vae{k}x{k}")
        w = utils.load_kernels(published / f"conv{k}x{k}" / "test.npy")
        torch.manual_seed(0)
        repeats = 10 if k == 7 else 1
        with torch.no_grad():
            elbo = torch.cat([vae.elbo(b).elbo for _ in range(repeats) for b in w.split(2048)]).mean().item()
        assert elbo == pytest.approx(nats, abs=0.5)

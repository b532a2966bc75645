"""The image VAE: its ELBO against torch's distributions, its shapes, and the initialization of its four convs."""

import pytest
import torch
from torch import distributions as dist

from models.build import build_vae, init_network, scale_as_xavier
from models.image_vae import KERNEL_SIZES, ImageVAE


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return ImageVAE([3, 4], 5).double()


def test_the_elbo(vae):
    """The terms of one draw of z, with the likelihood of grey pixels as the mean over pixels drawn from them."""
    x = torch.rand(6, 1, 28, 28, dtype=torch.float64)
    torch.manual_seed(1)
    elbo, ll, kl = vae.elbo(x)
    mean, log_variance = vae.encoder(x).split(5, 1)
    posterior = dist.Normal(mean, (log_variance / 2).exp())
    torch.manual_seed(1)
    p = dist.Bernoulli(logits=vae.decoder(posterior.rsample()))
    expected = x * p.log_prob(torch.ones(())) + (1 - x) * p.log_prob(torch.zeros(()))
    torch.testing.assert_close(ll, expected.sum((1, 2, 3)))
    torch.testing.assert_close(kl, dist.kl_divergence(posterior, dist.Normal(0, 1)).sum(1))
    torch.testing.assert_close(elbo, ll - kl)


def test_the_maps(vae):
    """The sides of the decoder's maps, and that each pixel of an upsampled map is the nearest of the smaller one."""
    maps, x = [], torch.randn(2, 5, dtype=torch.float64)
    for layer in vae.decoder:
        x = layer(x)
        maps.append(x)
    sides = [tuple(m.shape[1:]) for m in maps[1:]]
    assert list(dict.fromkeys(sides)) == [(4, 3, 3), (4, 7, 7), (3, 11, 11), (3, 22, 22), (1, 28, 28)]
    nearest = torch.arange(7) * 3 // 7
    assert torch.equal(maps[3], maps[2][:, :, nearest][..., nearest])


def test_every_conv_is_initialized(vae):
    convs = vae.convs()
    assert [conv.kernel_size for conv in convs] == [(k, k) for k in KERNEL_SIZES]
    filters = [torch.randn(12, 1, k, k) for k in KERNEL_SIZES]
    source = build_vae(7, 2, 4)
    init_network(
        vae, ["vae", "filters", "filters", "filters"], [{"vae": source}, *({"filters": f} for f in filters[1:])], convs
    )
    for conv, kernels in zip(convs[1:], filters[1:], strict=True):
        found = conv.weight.detach().flatten(0, 1).unsqueeze(1).float()
        assert all(any(torch.equal(w, kernel) for kernel in kernels) for w in found)
    codes = torch.cartesian_prod(*[torch.linspace(-5, 5, 300)] * 2)[..., None, None]
    decoded = source.decode(codes)[0].flatten(1)
    distances = torch.cdist(convs[0].weight.detach().flatten(1).float(), decoded).min(1).values
    assert distances.max() < 0.05 * decoded.std(0).norm()


def test_the_scale_of_xavier(vae):
    """Each conv has the root mean square of many draws of torch's Xavier, and the directions of its kernels."""
    convs = vae.convs()
    before = [conv.weight.detach().mul_(k).clone() for k, conv in enumerate(convs, 2)]
    scale_as_xavier(convs)
    for conv, old in zip(convs, before, strict=True):
        weight = conv.weight.detach()
        drawn = torch.stack([torch.nn.init.xavier_normal_(torch.empty_like(weight)) for _ in range(300)])
        assert weight.square().mean().sqrt().item() == pytest.approx(drawn.square().mean().sqrt().item(), rel=0.05)
        torch.testing.assert_close(weight / weight.norm(), old / old.norm())

"""Variational autoencoders over convolution kernels: the generative model behind the deep weight prior.

A kernel w (1, k, k) has a latent code z ~ N(0, I) and the likelihood p(w|z) = N(w | mu(z), var(z)); the encoder gives
the approximate posterior r(z|w) = N(z | m(w), s(w)). Architectures and parameter names are those of the paper's code
(Atanov et al., "The Deep Weight Prior", ICLR 2019, section 4 and appendix), so state dicts are interchangeable.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import ELU, Conv2d, ConvTranspose2d, with_elu

BLOCK = 1024  # kernels per pass: enough to amortize loading the weights, few enough for a cache


class Elbo(NamedTuple):
    """A one-sample ELBO and its two terms, each of shape (n,), in nats per kernel."""

    elbo: Tensor
    ll: Tensor
    kl: Tensor


def gaussian_log_prob(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Elementwise log N(x | mean, variance) in nats, in the broadcast shape of the arguments."""
    return -0.5 * ((x - mean).square() / variance + variance.log() + math.log(2 * math.pi))


def kl_to_standard_normal(mean: Tensor, variance: Tensor) -> Tensor:
    """Elementwise KL(N(mean, variance) || N(0, 1)) in nats."""
    return 0.5 * (mean.square() + variance - variance.log() - 1)


def sample_gaussian(mean: Tensor, variance: Tensor) -> Tensor:
    """One reparameterized sample of N(mean, variance) per element."""
    return mean + variance.sqrt() * torch.randn_like(mean)


def full_precision(x: Tensor) -> torch.autocast:
    """The context in which modules compute in x's own precision, whatever context of autocast is around it."""
    return torch.autocast(x.device.type, torch.bfloat16, enabled=False)


class Encoder(nn.Module):
    """r(z|w): features, then two 1x1 convolutions. The variance head's name differs between kernel sizes."""

    def __init__(self, features: nn.Sequential, width: int, z_dim: int, variance_head: Literal["fc_var", "fc_sigma"]):
        super().__init__()
        self.features = features
        self.fc_mu = Conv2d(width, z_dim, 1)
        self.variance_head = variance_head
        self.add_module(variance_head, Conv2d(width, z_dim, 1))

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        # The first convolution and the heads compute in w's precision. Rounded to bfloat16, a small kernel moves so far
        # in the latent space that the gradient of the KL is a quarter off; the rest in bfloat16 costs 1% to 3%.
        with full_precision(w):
            h = self.features[:2](w)
        h = self.features[2:](h)
        with full_precision(w):
            h = h.to(w.dtype)
            return self.fc_mu(h), F.softplus(getattr(self, self.variance_head)(h))


class Decoder(nn.Module):
    """p(w|z): `decoder`, then two 1x1 convolutions; `var` fixes the variance and leaves its head unused."""

    def __init__(self, decoder: nn.Sequential, fc_mu: nn.Module, fc_var: nn.Module, var: float | Literal["train"]):
        super().__init__()
        self.decoder = decoder
        self.fc_mu = fc_mu
        self.fc_var = fc_var
        self.var = var

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        h = self.decoder(z)
        with full_precision(z):
            h = h.to(z.dtype)
            mean = self.fc_mu(h)
            return mean, F.softplus(self.fc_var(h)) if self.var == "train" else torch.full_like(mean, self.var)


class KernelVAE(nn.Module):
    """A VAE over k x k kernels.

    A subclass sets `kernel_dim` and makes the layers of the two networks before their heads: `features(h, d)`, from a
    kernel to d channels of one pixel, and `layers(z_dim, h, d)`, from a code to h channels of k x k pixels.

    Parameters
    ----------
    z_dim : size of the latent code.
    hidden_dim : width h of the networks; layers have h or d = 2h channels.
    var : "train" for a decoder that predicts the variance of each weight, or one fixed positive variance.
    """

    kernel_dim: int
    variance_head = "fc_sigma"  # its name in the encoder

    def __init__(self, z_dim: int, hidden_dim: int, var: float | Literal["train"] = "train"):
        super().__init__()
        self.z_dim = z_dim
        h, d = hidden_dim, 2 * hidden_dim
        self.encoder = Encoder(self.features(h, d), d, z_dim, self.variance_head)
        self.decoder = Decoder(self.layers(z_dim, h, d), self.decoder_head(h), self.decoder_head(h), var)
        self.to(memory_format=torch.channels_last)

    def decoder_head(self, h: int) -> nn.Module:
        """The mean's or the variance's head, whose published names have an index, as in `fc_mu.0`."""
        return nn.Sequential(Conv2d(h, 1, 1))

    def encode(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of r(z|w), each (n, z_dim, 1, 1), for kernels w of shape (n, 1, k, k)."""
        return self.encoder(w)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(w|z), each (n, 1, k, k), for codes z of shape (n, z_dim, 1, 1)."""
        return self.decoder(z)

    def elbo(self, w: Tensor) -> Elbo:
        """log p(w|z) - KL(r(z|w) || p(z)) with one z ~ r(z|w) per kernel (Kingma & Welling 2014, eq. 10).

        `w` has the shape (n, 1, k, k); every term has the shape (n,), in nats per kernel.
        """
        z_mean, z_variance = self.encode(w)
        w_mean, w_variance = self.decode(sample_gaussian(z_mean, z_variance))
        ll = gaussian_log_prob(w, w_mean, w_variance).sum((1, 2, 3))
        kl = kl_to_standard_normal(z_mean, z_variance).sum((1, 2, 3))
        return Elbo(ll - kl, ll, kl)

    def sample(self, n: int) -> Tensor:
        """n kernels (n, 1, k, k) drawn from p(w) = ∫ p(w|z) p(z) dz."""
        return sample_gaussian(*self.decode(self._sample_codes(n)))

    def sample_means(self, n: int, even: bool = False) -> Tensor:
        """Decoder means (n, 1, k, k) at n codes drawn from N(0, I): kernels of the prior without their noise.

        The codes are independent, or `even`: quasi-random, so that a few kernels cover the prior better, and their
        choice depends less on the seed.
        """
        codes = self._even_codes(n) if even else self._sample_codes(n)
        return torch.cat([self.decode(block)[0] for block in codes.split(BLOCK)])

    def _sample_codes(self, n: int) -> Tensor:
        weight = self.encoder.fc_mu.weight
        return torch.randn(n, self.z_dim, 1, 1, device=weight.device, dtype=weight.dtype)

    def _even_codes(self, n: int) -> Tensor:
        """The quantiles of N(0, 1) at the coordinates of a scrambled Sobol sequence (Matousek 1998), in random order.

        Consecutive points of the sequence cover the space. In its own order the kernels of each filter would do so, and
        the filters would compute much the same.
        """
        engine = torch.quasirandom.SobolEngine(self.z_dim, scramble=True, seed=int(torch.randint(2**31, ())))
        points = engine.draw(n, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        return torch.special.ndtri(points)[torch.randperm(n)][..., None, None].to(self.encoder.fc_mu.weight)


class VAE7x7(KernelVAE):
    """7x7 kernels: three unpadded 3x3 convolutions down to 1x1, three transposed ones back."""

    kernel_dim = 7
    variance_head = "fc_var"

    def features(self, h, d):
        return with_elu(Conv2d(1, h, 3), Conv2d(h, d, 3), Conv2d(d, d, 3))

    def layers(self, z_dim, h, d):
        return with_elu(ConvTranspose2d(z_dim, d, 3), ConvTranspose2d(d, d, 3), ConvTranspose2d(d, h, 3))

    def decoder_head(self, h):
        return Conv2d(h, 1, 1)  # published without an index


class VAE5x5(KernelVAE):
    """5x5 kernels: two padded and two unpadded 3x3 convolutions; 1x1 convolutions at both ends of the decoder."""

    kernel_dim = 5

    def features(self, h, d):
        return with_elu(Conv2d(1, h, 3, padding=1), Conv2d(h, h, 3, padding=1), Conv2d(h, d, 3), Conv2d(d, d, 3))

    def layers(self, z_dim, h, d):
        return with_elu(Conv2d(z_dim, d, 1), ConvTranspose2d(d, d, 3), ConvTranspose2d(d, d, 3), Conv2d(d, h, 1))


class VAE3x3(KernelVAE):
    """3x3 kernels: two padded convolutions and an unpadded one; one transposed convolution between 1x1 ones."""

    kernel_dim = 3

    def features(self, h, d):
        return with_elu(Conv2d(1, h, 3, padding=1), Conv2d(h, h, 3, padding=1), Conv2d(h, d, 3))

    def layers(self, z_dim, h, d):
        return with_elu(Conv2d(z_dim, d, 1), ConvTranspose2d(d, h, 3), Conv2d(h, h, 1))


class VAE16x16(KernelVAE):
    """16x16 kernels: four convolutions with max-pools down to 1x1, three strided transposed ones back."""

    kernel_dim = 16

    def features(self, h, d):
        layers = []
        for inputs, outputs in ((1, h), (h, d), (d, d), (d, d)):
            layers += [nn.ReflectionPad2d(1), Conv2d(inputs, outputs, 3), nn.MaxPool2d(2), ELU()]
        return nn.Sequential(*layers)

    def layers(self, z_dim, h, d):
        return with_elu(
            Conv2d(z_dim, d, 1),
            ConvTranspose2d(d, d, 4, stride=2),
            ConvTranspose2d(d, d, 4, stride=2, padding=1),
            ConvTranspose2d(d, h, 4, stride=2, padding=1),
        )

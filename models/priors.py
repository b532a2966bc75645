"""Priors over the kernels of a convolution and their KL divergence from a factorized Gaussian posterior.

A prior has one method, `kl(mean, log_variance)`: KL(q || p) in nats, summed over all weights of a layer, for
q(w) = N(w | mean, exp(log_variance)) with both arguments of shape (out, in, k, k).
"""

import math

import torch
from torch import Tensor

from models.vae import KernelVAE, gaussian_log_prob, kl_to_standard_normal, sample_gaussian


def gaussian_entropy(log_variance: Tensor) -> Tensor:
    """Entropy in nats, a scalar, of a factorized Gaussian with these log variances."""
    return 0.5 * (log_variance + math.log(2 * math.pi * math.e)).sum()


class NoPrior:
    """No KL term: the posterior follows the likelihood alone."""

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Zero, whatever the posterior."""
        return mean.new_zeros(())


class NormalPrior:
    """N(0, scale^2) for every weight, with the closed-form KL of two Gaussians.

    Parameters
    ----------
    scale : standard deviation of the prior, positive (option `lamb`).
    """

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """KL(q || N(0, scale^2)), a scalar in nats; the KL does not change when both are divided by the scale."""
        return kl_to_standard_normal(mean / self.scale, log_variance.exp() / self.scale**2).sum()


class DeepWeightPrior:
    """The deep weight prior: each k x k kernel is an independent draw from a VAE's p(w) = ∫ p(w|z) p(z) dz.

    KL(q||p) has no closed form. With the VAE's encoder as the auxiliary reverse model r(z|w), its upper bound is

        KL_aux = -H[q] + E_{w~q} [ KL(r(z|w) || p(z)) - E_{z~r(z|w)} log p(w|z) ]

    (Atanov et al. 2019, section 3), estimated without bias from `samples` reparameterized w's with one z each. H[q] is
    exact. The VAE is not changed; gradients reach the posterior alone.

    Parameters
    ----------
    vae : a frozen VAE (see `utils.load_vae`) of the layer's kernel size, on the layer's device.
    samples : number of w's per call (option `dwp_samples`).
    kernels : how many kernels a call draws, without replacement, for the expectation, whose estimate is scaled up to
        all of them (option `kl_kernels`); 0 takes all.
    """

    def __init__(self, vae: KernelVAE, samples: int = 1, kernels: int = 0):
        self.vae = vae
        self.samples = samples
        self.kernels = kernels

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """An estimate of KL_aux, a scalar in nats.

        The order of the draws for each w: the kernels (where not all), the noise of w, the noise of z.
        """
        k = self.vae.kernel_dim
        kernels = mean.reshape(-1, 1, k, k), log_variance.reshape(-1, 1, k, k)
        cross_entropy = sum(self._cross_entropy(*kernels) for _ in range(self.samples)) / self.samples
        return cross_entropy - gaussian_entropy(log_variance)

    def _cross_entropy(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """One-sample estimate of the expectation in KL_aux, for kernels of shape (n, 1, k, k)."""
        n = len(mean)
        scale = 1.0
        if 0 < self.kernels < n:
            drawn = torch.randperm(n, device=mean.device)[: self.kernels]
            mean, log_variance = mean[drawn], log_variance[drawn]
            scale = n / self.kernels
        w = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        z_mean, z_variance = self.vae.encode(w)
        w_mean, w_variance = self.vae.decode(sample_gaussian(z_mean, z_variance))
        kl = kl_to_standard_normal(z_mean, z_variance).sum()
        return scale * (kl - gaussian_log_prob(w, w_mean, w_variance).sum())

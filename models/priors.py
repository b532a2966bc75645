"""Priors over the kernels of a layer and their KL divergence from a factorized Gaussian posterior.

A prior implements `kl(mean, log_variance)`: KL(q || p) in nats, summed over all weights of a layer, for
q(w) = N(w | mean, exp(log_variance)). Both arguments have the shape of the layer's weights, (out, in, k, k) for a conv.
`models.configs.PRIORS` lists the command-line options of each prior.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.flow import KernelFlow
from models.vae import BLOCK, KernelVAE, gaussian_log_prob, kl_to_standard_normal, sample_gaussian

SQUARE_FLOOR = 1e-16  # keeps the log of a weight of 0 finite
SPREAD_FLOOR = 1e-8  # smallest accepted variance of kernels in a direction, relative to the largest

Reverse = Literal["frozen", "train"]
Bound = Literal["elbo", "iwae"]


def gaussian_entropy(log_variance: Tensor) -> Tensor:
    """Entropy in nats, a scalar, of a factorized Gaussian with these log variances."""
    return 0.5 * (log_variance.sum() + log_variance.numel() * math.log(2 * math.pi * math.e))


def log_square(mean: Tensor) -> Tensor:
    """log(mean^2), elementwise, finite at 0."""
    return (mean.square() + SQUARE_FLOOR).log()


class Prior(nn.Module):
    """Base class of the priors. A prior is a submodule of its layer, so `.to()`, copies and pickles of it include both.

    Only what is trained is in `parameters()` and in the state dict. A prior computes in float32 at least: in a layer of
    float16 or bfloat16 its tensors stay float32, since sums over all weights exceed the range of float16.

    Parameters
    ----------
    frozen : parts that are never trained, by name. The prior has copies of them, which are no submodules.
    """

    def __init__(self, **frozen: nn.Module):
        super().__init__()
        self.frozen = {name: copy.deepcopy(part).requires_grad_(False) for name, part in frozen.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Prior":
        def at_least_float32(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return tensor.to(found.device) if found.dtype in (torch.float16, torch.bfloat16) else found

        for part in self.frozen.values():
            part._apply(at_least_float32)
        return super()._apply(at_least_float32, recurse)

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """KL(q || p), a scalar in nats; an estimate for a `SampledPrior`."""
        raise NotImplementedError

    def deviation(self) -> Tensor | None:
        """Standard deviation of each weight under the prior, a scalar or (k, k); None of a prior that has none."""
        return None


class NoPrior(Prior):
    """No KL term: the posterior follows the likelihood alone."""

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Zero for every posterior."""
        return mean.new_zeros(())


class NormalPrior(Prior):
    """N(0, scale^2) for every weight, with the closed-form KL of two Gaussians; `scale` is the option `lamb`."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """KL(q || N(0, scale^2)), a scalar in nats; the KL does not change when both are divided by the scale."""
        return kl_to_standard_normal(mean / self.scale, log_variance.exp() / self.scale**2).sum()

    def deviation(self) -> Tensor:
        """The scale."""
        return torch.tensor(self.scale)


class LogUniformPrior(Prior):
    """p(log |w|) = const, an improper prior. The KL depends on alpha = variance / mean^2, up to a constant.

    Parameters
    ----------
    truncated : whether alpha is kept below 1; then the KL is the cubic of Kingma, Salimans & Welling 2015 (appendix C),

            -0.5 log alpha - 1.16145124 alpha + 1.50204118 alpha^2 - 0.58629921 alpha^3,

        else the approximation of Molchanov, Ashukha & Vetrov 2017 (eq. 14) for any alpha, which falls to 0,

            0.63576 (1 - sigmoid(1.87320 + 1.48695 log alpha)) + 0.5 log(1 + 1 / alpha).
    """

    def __init__(self, truncated: bool = False):
        super().__init__()
        self.truncated = truncated

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """KL(q || p) up to a constant per weight, a scalar in nats."""
        log_alpha = log_variance - log_square(mean)
        if self.truncated:
            alpha = log_alpha.exp()
            cubic = -1.16145124 * alpha + 1.50204118 * alpha.square() - 0.58629921 * alpha**3
            return (cubic - 0.5 * log_alpha).sum()
        gate = torch.sigmoid(-(1.87320 + 1.48695 * log_alpha))
        return (0.63576 * gate + 0.5 * nn.functional.softplus(-log_alpha)).sum()


class GaussPrior(Prior):
    """A Gaussian with full covariance over the k*k weights of a kernel, fitted to kernels; closed-form KL.

    This prior is the baseline for the deep weight prior, which also models higher moments.

    Parameters
    ----------
    filters : kernels (n, 1, k, k); their mean and covariance (with n - 1) are the prior's. Raises ValueError where the
        covariance is singular.
    """

    def __init__(self, filters: Tensor):
        super().__init__()
        w = filters.flatten(1).double()
        covariance = torch.atleast_2d(w.T.cov())
        spread = torch.linalg.eigvalsh(covariance)
        if not spread[0] > SPREAD_FLOOR * spread[-1]:
            raise ValueError(f"{len(w)} kernels do not spread in all {w.shape[1]} directions")
        factor = torch.linalg.cholesky(covariance)
        self.log_det = 2 * factor.diagonal().log().sum().item()
        # Whitening, transposed: rows of weights times this have covariance I.
        eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        whitening = torch.linalg.solve_triangular(factor, eye, upper=False).T
        for name, value in (("centre", w.mean(0)), ("covariance", covariance), ("whitening", whitening)):
            self.register_buffer(name, value.to(filters.dtype), persistent=False)

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """KL(q || N(m, S)) = 0.5 [tr(S^-1 V) + (mean - m)' S^-1 (mean - m) - k^2 + log det S - log det V], summed."""
        mean, log_variance = mean.flatten(2).flatten(0, 1), log_variance.flatten(2).flatten(0, 1)
        white = ((mean - self.centre) @ self.whitening).square().sum()
        trace = (log_variance.exp() @ self.whitening.square().sum(1)).sum()
        return 0.5 * (trace + white + len(mean) * self.log_det - log_variance.sum() - mean.numel())

    def deviation(self) -> Tensor:
        """The square root of the covariance's diagonal, (k, k)."""
        deviation = self.covariance.diagonal().sqrt()
        return deviation.view(math.isqrt(len(deviation)), -1)


class KnownGradients(torch.autograd.Function):
    """A scalar `value` as a function of `tensors`, with `gradients` that have been computed before."""

    @staticmethod
    def forward(ctx, value: Tensor, gradients: Sequence[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return (None, None, *(g * gradient for g in ctx.gradients))


class SampledPrior(Prior):
    """A prior whose KL is estimated: KL = -H[q] - E_{w~q} log p(w), with the entropy exact and w reparameterized.

    A subclass implements `cross_entropy`, exactly or as an upper bound.

    Parameters
    ----------
    samples : number of w's per call (option `dwp_samples`).
    kernels : number of kernels drawn without replacement for each w (option `kl_kernels`); 0 takes all. The
        expectation over the drawn kernels is scaled up to all kernels.
    """

    def __init__(self, samples: int = 1, kernels: int = 0, **frozen: nn.Module):
        super().__init__(**frozen)
        self.samples = samples
        self.kernels = kernels

    def cross_entropy(self, w: Tensor) -> Tensor:
        """-log p(w), summed over the kernels w of shape (n, 1, k, k), a scalar in nats."""
        raise NotImplementedError

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """An unbiased estimate of the KL, or of the bound that `cross_entropy` implies; a scalar in nats.

        Each w draws random numbers in this order: the kernels (unless all are taken), then for each block of `BLOCK`
        kernels the noise of w and the numbers that `cross_entropy` draws.
        """
        estimates = [self._estimate(mean, log_variance) for _ in range(self.samples)]
        return sum(estimates) / self.samples - gaussian_entropy(log_variance)

    def _estimate(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """One-sample estimate of the cross entropy.

        The gradients of a block are computed with its value, and its graph is freed. So the memory beyond that of the
        gradients does not grow with the number of kernels, and the values of a block stay in the cache.
        """
        mean, log_variance = (p.flatten(0, 1).unsqueeze(1) for p in (mean, log_variance))
        scale = 1.0
        if 0 < self.kernels < len(mean):
            drawn = torch.randperm(len(mean), device=mean.device)[: self.kernels]
            scale = len(mean) / self.kernels
            mean, log_variance = mean[drawn], log_variance[drawn]

        def block_value(mean: Tensor, log_variance: Tensor) -> Tensor:
            return self.cross_entropy(mean + (0.5 * log_variance).exp() * torch.randn_like(mean))

        blocks = [slice(start, start + BLOCK) for start in range(0, len(mean), BLOCK)]
        if not torch.is_grad_enabled():
            return scale * sum(block_value(mean[block], log_variance[block]) for block in blocks)
        parameters = [p for p in self.parameters() if p.requires_grad]
        # Allocated before the blocks, so that the blocks' memory is not fragmented.
        of_mean, of_log_variance = torch.empty_like(mean), torch.empty_like(log_variance)
        of_parameters = [torch.zeros_like(p) for p in parameters]
        total = mean.new_zeros(())
        for block in blocks:
            leaves = [t[block].detach().requires_grad_() for t in (mean, log_variance)]
            value = block_value(*leaves)
            total += value.detach()
            of_mean[block], of_log_variance[block], *found = torch.autograd.grad(value, [*leaves, *parameters])
            for whole, gradient in zip(of_parameters, found, strict=True):
                whole += gradient
        gradients = [of_mean, of_log_variance, *of_parameters]
        return scale * KnownGradients.apply(total, gradients, mean, log_variance, *parameters)


class SampledNormalPrior(SampledPrior):
    """N(0, scale^2) for every weight, its KL by sampling; `scale` is the option `lamb`."""

    def __init__(self, scale: float = 1.0, samples: int = 1, kernels: int = 0):
        super().__init__(samples, kernels)
        self.scale = scale

    def cross_entropy(self, w: Tensor) -> Tensor:
        """-log N(w | 0, scale^2), summed, in nats."""
        variance = torch.full((), self.scale**2, dtype=w.dtype, device=w.device)
        return -gaussian_log_prob(w, torch.zeros_like(variance), variance).sum()

    def deviation(self) -> Tensor:
        """The scale."""
        return torch.tensor(self.scale)


class FlowPrior(SampledPrior):
    """A normalizing flow (see `utils.load_flow`) over kernels of the layer's size; its density is exact."""

    def __init__(self, flow: KernelFlow, samples: int = 1, kernels: int = 0):
        super().__init__(samples, kernels, flow=flow)

    def cross_entropy(self, w: Tensor) -> Tensor:
        """-log p(w) under the flow, summed, in nats."""
        return -self.frozen["flow"].log_prob(w).sum()

    @torch.no_grad()
    def deviation(self) -> Tensor:
        """The deviation (k, k) over `BLOCK` samples, which are the same in each call."""
        flow = copy.deepcopy(self.frozen["flow"]).cpu()
        with torch.random.fork_rng([]):  # on the CPU, so that the generators of other devices stay as they are
            torch.default_generator.manual_seed(0)
            deviation = flow.sample(BLOCK).std(0)[0]
        return deviation.to(self.frozen["flow"].scale.device)


class DeepWeightPrior(SampledPrior):
    """The deep weight prior: each k x k kernel is an independent draw from a VAE's p(w) = ∫ p(w|z) p(z) dz.

    KL(q||p) has no closed form. With the VAE's encoder as the auxiliary reverse model r(z|w), its upper bounds are

        KL_aux     = -H[q] + E_{w~q} [ KL(r(z|w) || p(z)) - E_{z~r(z|w)} log p(w|z) ]
        KL_iwae(S) = -H[q] - E_{w~q} E_{z_1..z_S ~ r(z|w)} log 1/S sum_s p(w|z_s) p(z_s) / r(z_s|w)

    (Atanov et al. 2019, section 3; Burda et al. 2016), estimated without bias from `samples` reparameterized w's. The
    decoder is never changed.

    Parameters
    ----------
    vae : a VAE (see `utils.load_vae`) of the layer's kernel size.
    samples, kernels : as of `SampledPrior`.
    reverse : "frozen" for r = the frozen encoder itself, "train" for a copy of the encoder that takes gradients.
    bound : "elbo" for KL_aux with one z per w, "iwae" for KL_iwae.
    iwae_samples : S of KL_iwae, which falls to KL(q||p) as S grows.

    Raises ValueError for another `reverse` or `bound`.
    """

    def __init__(
        self,
        vae: KernelVAE,
        samples: int = 1,
        kernels: int = 0,
        reverse: Reverse = "frozen",
        bound: Bound = "elbo",
        iwae_samples: int = 8,
    ):
        for name, value, kind in (("reverse", reverse, Reverse), ("bound", bound, Bound)):
            if value not in get_args(kind):
                raise ValueError(f"{name}: found {value!r}, expected {' or '.join(get_args(kind))}")
        super().__init__(samples, kernels, encoder=vae.encoder, decoder=vae.decoder)
        self.trained_reverse = copy.deepcopy(vae.encoder).requires_grad_() if reverse == "train" else None
        self.kernel_dim = vae.kernel_dim
        self.z_samples = iwae_samples if bound == "iwae" else 0  # 0 of KL_aux

    @property
    def reverse(self) -> nn.Module:
        """r(z|w)."""
        return self.trained_reverse or self.frozen["encoder"]

    @property
    def decoder(self) -> nn.Module:
        """p(w|z)."""
        return self.frozen["decoder"]

    @torch.no_grad()
    def deviation(self) -> Tensor:
        """The deviation (k, k) by the law of total variance, over `BLOCK` codes z that are the same in each call."""
        weight = next(self.decoder.parameters())
        code, _ = self.reverse(weight.new_zeros(1, 1, self.kernel_dim, self.kernel_dim))
        z = torch.randn(BLOCK, *code.shape[1:], generator=torch.Generator().manual_seed(0))
        mean, variance = self.decoder(z.to(weight))
        return (mean.var(0) + variance.mean(0)).sqrt()[0]

    def cross_entropy(self, w: Tensor) -> Tensor:
        """An estimate of an upper bound of -log p(w), summed, in nats. Raises ValueError for another kernel size."""
        if w.shape[2:] != (self.kernel_dim, self.kernel_dim):
            raise ValueError(f"kernels of {tuple(w.shape[2:])} under a prior of {self.kernel_dim}x{self.kernel_dim}")
        z_mean, z_variance = self.reverse(w)
        if not self.z_samples:
            w_mean, w_variance = self.decoder(sample_gaussian(z_mean, z_variance))
            return kl_to_standard_normal(z_mean, z_variance).sum() - gaussian_log_prob(w, w_mean, w_variance).sum()
        n, s = len(w), self.z_samples
        z_mean, z_variance, w = (t.repeat_interleave(s, 0) for t in (z_mean, z_variance, w))
        z = sample_gaussian(z_mean, z_variance)
        w_mean, w_variance = self.decoder(z)
        log_p = gaussian_log_prob(w, w_mean, w_variance).flatten(1).sum(1)
        log_p_z = gaussian_log_prob(z, torch.zeros_like(z), torch.ones_like(z))
        log_ratio = log_p_z - gaussian_log_prob(z, z_mean, z_variance)
        log_weights = (log_p + log_ratio.flatten(1).sum(1)).view(n, s)
        return -(log_weights.logsumexp(1) - math.log(s)).sum()

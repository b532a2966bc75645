"""Normalizing flows over convolution kernels: a prior whose density is exact, for comparison with the VAEs."""

import torch
import zuko
from torch import Tensor, nn

from models.vae import Elbo


class KernelFlow(nn.Module):
    """A masked autoregressive flow (Papamakarios et al. 2017) over the k*k weights of a kernel, by `zuko`.

    Kernels are standardized per weight, by `centre` and `scale`, before the transforms.

    Parameters
    ----------
    kernel_dim : k.
    hidden_dim : width of the two hidden layers of each transform's network.
    transforms : number of affine autoregressive transforms.
    """

    def __init__(self, kernel_dim: int, hidden_dim: int, transforms: int):
        super().__init__()
        self.kernel_dim = kernel_dim
        d = kernel_dim**2
        self.register_buffer("centre", torch.zeros(d))
        self.register_buffer("scale", torch.ones(d))
        self.flow = zuko.flows.MAF(d, transforms=transforms, hidden_features=(hidden_dim, hidden_dim), randperm=True)

    @torch.no_grad()
    def standardize(self, w: Tensor) -> None:
        """Set `centre` and `scale` to the mean and deviation of kernels (n, 1, k, k), n > 1."""
        self.centre.copy_(w.flatten(1).mean(0))
        self.scale.copy_(w.flatten(1).std(0).clamp(min=1e-6))

    def log_prob(self, w: Tensor) -> Tensor:
        """log p(w), of shape (n,), in nats per kernel, for kernels w of shape (n, 1, k, k)."""
        return self.flow().log_prob((w.flatten(1) - self.centre) / self.scale) - self.scale.log().sum()

    def sample(self, n: int) -> Tensor:
        """n kernels (n, 1, k, k) drawn from the flow."""
        w = self.flow().sample((n,)) * self.scale + self.centre
        return w.view(n, 1, self.kernel_dim, self.kernel_dim)

    def elbo(self, w: Tensor) -> Elbo:
        """The exact log p(w) in the form of a VAE's ELBO, with a KL term of 0; each of shape (n,), in nats."""
        ll = self.log_prob(w)
        return Elbo(ll, ll, torch.zeros_like(ll))

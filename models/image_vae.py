"""The VAE over images of the paper's convergence experiment (Atanov et al. 2019, section 5.3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.build import conv_layers
from models.fconv import FConv
from models.vae import Elbo, kl_to_standard_normal, sample_gaussian

KERNEL_SIZES = (7, 5, 5, 7)  # of the four convs: the encoder's, then the decoder's


class ImageVAE(nn.Module):
    """p(x|z) of Bernoulli pixels of 28x28 grey images, z ~ N(0, I), and the approximate posterior r(z|x).

    The encoder is an fconv whose classifier gives the means and log variances of r(z|x). The decoder is linear to 3x3
    maps, upsampling (nearest) to 7x7, a transposed 5x5 conv to 11x11, upsampling to 22x22, a transposed 7x7 conv.

    Parameters
    ----------
    hid_dim : channels of the two convs of the encoder, and of the decoder in reverse.
    z_dim : size of the code z.
    """

    def __init__(self, hid_dim: Sequence[int] = (64, 128), z_dim: int = 40):
        super().__init__()
        first, second = hid_dim
        self.encoder = FConv("vanilla", [first, second], 2 * z_dim)
        self.decoder = nn.Sequential(
            nn.Linear(z_dim, second * 9),
            nn.Unflatten(1, (second, 3, 3)),
            nn.LeakyReLU(0.01),
            nn.Upsample(7),
            nn.ConvTranspose2d(second, first, 5),
            nn.LeakyReLU(0.01),
            nn.Upsample(22),
            nn.ConvTranspose2d(first, 1, 7),
        )
        self.decoder.to(memory_format=torch.channels_last)

    def convs(self) -> list[nn.Module]:
        """The four convs, with kernels of `KERNEL_SIZES`."""
        return [*conv_layers(self.encoder), *(m for m in self.decoder if isinstance(m, nn.ConvTranspose2d))]

    def elbo(self, x: Tensor) -> Elbo:
        """The ELBO with one z per image, and its terms, each (n,), in nats, of images (n, 1, 28, 28) in [0, 1].

        A grey pixel x counts as the mean of a Bernoulli variable: its log-likelihood is x log p + (1 - x) log(1 - p).
        """
        moments = self.encoder(x)
        mean, log_variance = moments.to(torch.promote_types(moments.dtype, torch.float32)).chunk(2, 1)
        variance = log_variance.exp()
        logits = self.decoder(sample_gaussian(mean, variance)).to(mean.dtype)
        ll = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
        kl = kl_to_standard_normal(mean, variance).sum(1)
        return Elbo(ll - kl, ll, kl)

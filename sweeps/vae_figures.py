"""What a kernel VAE has learnt, as figures and numbers: reconstructions, samples, latent space, KL and test ELBO.

The random numbers come from torch's global generator: call `torch.manual_seed` first to repeat a result.
"""

import copy
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import utils
from models.priors import DeepWeightPrior, NormalPrior
from models.vae import KernelVAE
from runs.errors import UserError
from sweeps import plots

VARIANCES = [10 ** (i / 2) for i in range(-12, 1)]  # of the posterior, in `kl_rows`
BATCH = 1024  # kernels


@torch.no_grad()
def test_elbo(vae: KernelVAE, kernels: Tensor, samples: int) -> tuple[float, float]:
    """The mean ELBO of kernels (n, 1, k, k), in nats per kernel, and its standard error over the kernels.

    The ELBO of a kernel is the mean over `samples` draws of z.
    """
    draws = [torch.cat([vae.elbo(w).elbo for w in kernels.split(BATCH)]).double() for _ in range(samples)]
    elbo = torch.stack(draws).mean(0)
    return elbo.mean().item(), elbo.std().item() / len(elbo) ** 0.5


def noise_like(kernels: Tensor) -> Tensor:
    """Gaussian noise in the shape (n, 1, k, k) of the kernels, each with the norm of its kernel."""
    noise = torch.randn_like(kernels)
    return noise * (kernels.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)


@torch.no_grad()
def kl_rows(vae: KernelVAE, kernels: Tensor, samples: int) -> list[dict]:
    """The KL of q(w) = N(kernel, variance) per kernel, in nats, under the deep weight prior and under N(0, 1).

    One row for each of `VARIANCES`, for the kernels (n, 1, k, k) and for noise of the same norms. Columns: kernels
    ("real" or "noise"), posterior_variance, kl_dwp (the mean of `samples` estimates of the bound KL_aux), kl_dwp_error
    (its standard error), kl_normal. `samples` is at least 2.
    """
    rows = []
    for kind, w in (("real", kernels), ("noise", noise_like(kernels))):
        for variance in VARIANCES:
            log_variance = torch.full_like(w, math.log(variance))
            draws = [DeepWeightPrior(vae).kl(w, log_variance).item() / len(w) for _ in range(samples)]
            rows.append(
                {
                    "kernels": kind,
                    "posterior_variance": variance,
                    "kl_dwp": statistics.fmean(draws),
                    "kl_dwp_error": statistics.stdev(draws) / math.sqrt(samples),
                    "kl_normal": NormalPrior().kl(w, log_variance).item() / len(w),
                }
            )
    return rows


@torch.no_grad()
def vae_figures(
    vae: KernelVAE, kernels: Tensor, samples: int
) -> tuple[dict[str, Figure], list[dict[str, float | str]]]:
    """Figures of a VAE by file name, to be saved with `tight`: reconstructions, samples, KL; and the rows of `kl_rows`.

    Parameters
    ----------
    vae : of k x k kernels. It stays as it is; a copy computes in double precision.
    kernels : test kernels (n, 1, k, k), the first of which are drawn. Raises ValueError if one of them is zero.
    samples : estimates for each KL of the deep weight prior, at least 2.
    """
    vae, kernels = copy.deepcopy(vae).double(), kernels.double()  # the bound overflows float32 at large variances
    if kernels.flatten(1).norm(dim=1).min() == 0:
        raise ValueError("found a kernel of zeros, expected pruned kernels")
    k, shown = vae.kernel_dim, kernels[: plots.COLUMNS]
    reconstructions = vae.decode(vae.encode(shown)[0])[0]
    drawn, means = vae.sample(plots.COLUMNS), vae.sample_means(plots.COLUMNS)
    rows = kl_rows(vae, kernels, samples)
    figures = {
        "reconstructions.png": plots.plot_rows(
            {"kernel": shown, "reconstruction": reconstructions}, f"{k}x{k} test kernels and their reconstructions"
        ),
        "samples.png": plots.plot_rows(
            {"real": shown, "samples of p(w)": drawn, "means of p(w|z)": means}, f"{k}x{k}: real kernels and samples"
        ),
        "kl.png": plots.plot_kl(rows),
    }
    return figures, rows


def kernel_figures(conv_folder: str | Path, vae_folder: str | Path | None = None) -> dict[str, Figure]:
    """Figures by file name: a grid of the kernels in `train.npy`, and the latent space of their VAE, if one is given.

    Parameters
    ----------
    conv_folder : folder with train.npy and test.npy.
    vae_folder : folder of a VAE of the same kernel size with z_dim 2. Raises UserError for another VAE.
    """
    kernels = utils.load_kernels(Path(conv_folder, "train.npy"))
    k = kernels.shape[-1]
    figures = {f"kernels{k}x{k}.png": plots.plot_grid(kernels, 8, 20)}
    if vae_folder:
        vae = utils.load_vae(vae_folder)
        if (vae.z_dim, vae.kernel_dim) != (2, k):
            raise UserError(
                f"{vae_folder}: found z_dim {vae.z_dim} and {vae.kernel_dim}x{vae.kernel_dim}, expected 2 and {k}x{k}"
            )
        test_kernels = utils.load_kernels(Path(conv_folder, "test.npy"), k)
        figures[f"latent{k}x{k}.png"] = plots.plot_latent_space(vae, test_kernels)
    return figures


def save_all(figures: Mapping[str, Figure], folder: str | Path, tight: bool = False) -> list[Path]:
    """Write figures by file name into a folder as PNG, with `tight` without margins, and return their paths."""
    paths = [Path(folder, name) for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        plots.save(figure, path, tight)
    return paths

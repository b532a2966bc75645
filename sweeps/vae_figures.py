"""What a kernel VAE has learnt, as figures and numbers: reconstructions, samples, latent space, KL and test ELBO.

The random numbers come from torch's global generator: call `torch.manual_seed` first to repeat a result.
"""

import copy
import math
import statistics
from argparse import ArgumentTypeError
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import utils
from models.priors import DeepWeightPrior, NormalPrior
from models.vae import KernelVAE
from runs.errors import UserError
from runs.types import POSITIVE
from sweeps import plots

VARIANCES = [10 ** (i / 2) for i in range(-12, 1)]  # of the posterior, in `kl_rows`
KL_COLUMNS = ("kernels", "posterior_variance", "kl_dwp", "kl_dwp_error", "kl_normal")
BATCH = 1024  # kernels


def load_kernels_for(vae_folder: str | Path, file: str | Path) -> Tensor:
    """The kernels (n, 1, k, k) of an npy file as the VAE in a folder learns kernels: scaled to its `--norm`, if any.

    Raises UserError where a file is missing or invalid, or the kernel sizes differ.
    """
    params = utils.load_params(vae_folder, "vae", "z_dim")
    norm = params.get("norm")
    try:
        norm = norm and POSITIVE(str(norm))
    except ArgumentTypeError as error:
        raise UserError(f"{Path(vae_folder) / 'params.yaml'}: norm: {error}") from None
    return utils.load_kernels(file, params["kernel_dim"], norm)


@torch.no_grad()
def test_elbo(vae: KernelVAE, kernels: Tensor, samples: int) -> tuple[float, float]:
    """The mean ELBO of kernels (n, 1, k, k), in nats per kernel, and its standard error over the kernels.

    The ELBO of a kernel is the mean over `samples` draws of z.
    """
    draws = [torch.cat([vae.elbo(w).elbo for w in kernels.split(BATCH)]).double() for _ in range(samples)]
    elbo = torch.stack(draws).mean(0)
    return elbo.mean().item(), elbo.std().item() / len(elbo) ** 0.5


@torch.no_grad()
def kl_rows(vae: KernelVAE, kernels: Tensor, samples: int) -> list[dict[str, float | str]]:
    """The KL of q(w) = N(kernel, variance) per kernel, in nats, under the deep weight prior and under N(0, 1).

    One row for each of `VARIANCES`, for the kernels (n, 1, k, k) and for Gaussian noise of the same norms, with the
    columns `KL_COLUMNS`. kl_dwp is the mean of `samples` >= 2 estimates of the bound KL_aux, kl_dwp_error its error.
    """
    rows, noise, prior = [], torch.randn_like(kernels), DeepWeightPrior(vae)
    noise *= (kernels.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    for kind, w in (("real", kernels), ("noise", noise)):
        for variance in VARIANCES:
            log_variance = torch.full_like(w, math.log(variance))
            draws = [prior.kl(w, log_variance).item() / len(w) for _ in range(samples)]
            error = statistics.stdev(draws) / math.sqrt(samples)
            normal = NormalPrior().kl(w, log_variance).item() / len(w)
            values = (kind, variance, statistics.fmean(draws), error, normal)
            rows.append(dict(zip(KL_COLUMNS, values, strict=True)))
    return rows


@torch.no_grad()
def vae_figures(vae: KernelVAE, kernels: Tensor, samples: int) -> tuple[dict[str, Figure], list[dict]]:
    """Figures of a VAE by file name, to be saved with `tight`: reconstructions, samples, KL; and the rows of `kl_rows`.

    `kernels` are test kernels (n, 1, k, k), the first of which are drawn. Raises ValueError if one of them is zero.
    `samples` >= 2 is the number of estimates of each KL.
    """
    vae, kernels = copy.deepcopy(vae).double(), kernels.double()  # the bound overflows float32 at large variances
    if kernels.flatten(1).norm(dim=1).min() == 0:
        raise ValueError("found a kernel of zeros, expected pruned kernels")
    k, shown = vae.kernel_dim, kernels[: plots.COLUMNS]
    pairs = {"kernel": shown, "reconstruction": vae.decode(vae.encode(shown)[0])[0]}
    drawn, means = vae.sample(plots.COLUMNS), vae.sample_means(plots.COLUMNS)
    samples_of_w = {"real": shown, "samples of p(w)": drawn, "means of p(w|z)": means}
    rows = kl_rows(vae, kernels, samples)
    figures = {
        "reconstructions.png": plots.plot_rows(pairs, f"{k}x{k} test kernels and their reconstructions"),
        "samples.png": plots.plot_rows(samples_of_w, f"{k}x{k}: real kernels and samples"),
        "kl.png": plots.plot_kl(rows),
    }
    return figures, rows


def kernel_figures(conv_folder: str | Path, name: str = "") -> dict[str, Figure]:
    """A grid of the kernels in `train.npy`, as a figure by its file name, which ends in `name`, by default their size.

    Raises UserError where the file is missing or invalid.
    """
    kernels = utils.load_kernels(Path(conv_folder, "train.npy"))
    k = kernels.shape[-1]
    return {f"kernels{name or f'{k}x{k}'}.png": plots.plot_grid(kernels, 8, 20)}


def latent_figures(vae: KernelVAE, kernels: Tensor, name: str = "") -> dict[str, Figure]:
    """The latent space of a VAE with kernels (n, 1, k, k), as a figure by its file name, as of `kernel_figures`.

    Raises ValueError for another z_dim than 2.
    """
    if vae.z_dim != 2:
        raise ValueError(f"found z_dim {vae.z_dim}, expected 2")
    k = vae.kernel_dim
    return {f"latent{name or f'{k}x{k}'}.png": plots.plot_latent_space(vae, kernels)}


def save_all(figures: Mapping[str, Figure], folder: str | Path, tight: bool = False) -> list[Path]:
    """Write figures by file name into a folder as PNG, with `tight` without margins, and return their paths."""
    for name, figure in figures.items():
        plots.save(figure, Path(folder, name), tight)
    return [Path(folder, name) for name in figures]

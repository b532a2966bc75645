"""Draw a grid of kernels, and the latent space of their VAE with the kernels it decodes at chosen points.

python -m experiments.plot_kernels --conv data/fconv/conv7x7 --vae data/fconv/vae7x7 --out data/fconv/figures
"""

from pathlib import Path

import matplotlib
import numpy as np
import torch

import utils
from runs import Parser, UserError, command, write_whole

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

COLORS = "RdBu_r"
LATENT_RANGE = 2.4  # decoded kernels are drawn at codes between minus and plus this
LATENT_STEPS = 7


def kernel_image(kernel: torch.Tensor) -> np.ndarray:
    """A kernel (1, k, k) as (k, k), scaled so that its largest weight is 1 in absolute value and zero stays zero."""
    return (kernel[0] / kernel.abs().max().clamp_min(1e-12)).numpy()


def plot_grid(kernels: torch.Tensor, rows: int, columns: int, seed: int = 0) -> plt.Figure:
    """Kernels drawn at random from (n, 1, k, k), each on its own scale."""
    figure, axes = plt.subplots(rows, columns, figsize=(0.5 * columns, 0.5 * rows + 0.5))
    drawn = np.random.default_rng(seed).permutation(len(kernels))
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < len(drawn):
            axis.imshow(kernel_image(kernels[drawn[i]]), cmap=COLORS, vmin=-1, vmax=1)
    k = kernels.shape[-1]
    figure.suptitle(f"{min(rows * columns, len(kernels))} of {len(kernels)} source kernels, {k}x{k}; red > 0, blue < 0")
    return figure


@torch.no_grad()
def plot_latent_space(vae, kernels: torch.Tensor) -> plt.Figure:
    """Posterior means of the kernels in a 2-D latent space, and decoder means at a grid of codes over it."""
    means = vae.encode(kernels)[0].flatten(1).numpy()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.5))
    left.scatter(*means.T, s=8, alpha=0.5, c=kernels.flatten(1).norm(dim=1), cmap="viridis")
    left.set(title=f"mean of r(z|w) of {len(kernels)} test kernels (color: norm)", xlabel="z1", ylabel="z2")
    ticks = np.linspace(-LATENT_RANGE, LATENT_RANGE, LATENT_STEPS)
    for z1 in ticks:
        for z2 in ticks:
            mean = vae.decode(torch.tensor([z1, z2]).float().view(1, 2, 1, 1))[0][0]
            picture = plt.get_cmap(COLORS)(0.5 + 0.5 * kernel_image(mean))
            right.add_artist(
                AnnotationBbox(OffsetImage(picture, zoom=5, interpolation="nearest"), (z1, z2), frameon=False)
            )
    right.set(title="decoder mean at these codes", xlabel="z1", ylabel="z2")
    for axis in (left, right):
        axis.set(xlim=(-1.2 * LATENT_RANGE, 1.2 * LATENT_RANGE), ylim=(-1.2 * LATENT_RANGE, 1.2 * LATENT_RANGE))
    figure.tight_layout()
    return figure


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--conv", type=Path, required=True, help="folder with train.npy and test.npy")
    parser.add_argument("--vae", type=Path, help="folder of a VAE of these kernels with z_dim 2")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    args = parser.parse_args(argv)

    kernels = utils.load_kernels(args.conv / "train.npy", "--conv")
    k = kernels.shape[-1]
    figures = {f"kernels{k}x{k}.png": plot_grid(kernels, 8, 20)}
    if args.vae:
        vae = utils.load_vae(args.vae, what="--vae")
        if (vae.z_dim, vae.kernel_dim) != (2, k):
            raise UserError(
                f"--vae: found z_dim {vae.z_dim} and {vae.kernel_dim}x{vae.kernel_dim}, expected 2 and {k}x{k}"
            )
        figures[f"latent{k}x{k}.png"] = plot_latent_space(vae, utils.load_kernels(args.conv / "test.npy", "--conv", k))
    for name, figure in figures.items():
        with write_whole(args.out / name) as file:
            figure.savefig(file, dpi=110, format="png")
        print(args.out / name)


if __name__ == "__main__":
    main()

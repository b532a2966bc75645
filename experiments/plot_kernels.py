"""Draw a grid of kernels, and the latent space of their VAE with the kernels it decodes at chosen points.

python -m experiments.plot_kernels --conv data/fconv/conv7x7 --vae data/fconv/vae7x7 --out data/fconv/figures
"""

from pathlib import Path

from runs import Parser, UserError, command


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--conv", type=Path, required=True, help="folder with train.npy and test.npy")
    parser.add_argument("--vae", type=Path, help="folder of a VAE of these kernels with z_dim 2")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    args = parser.parse_args(argv)
    # After the arguments, so that a mistake in them answers at once.
    import utils
    from experiments.plots import plot_grid, plot_latent_space, save

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
        save(figure, args.out / name)
        print(args.out / name)


if __name__ == "__main__":
    main()

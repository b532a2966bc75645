"""Draw sets of kernels below each other, each above samples of its VAE.

    python -m experiments.compare_kernels --out kernels7x7.png --set "the paper's" published/conv7x7 published/vae7x7 \
        --set ours data/fconv/conv7x7 data/fconv/vae7x7

Each `--set` has a name, a folder with a test.npy, and the folder of a VAE. Every kernel has its own scale.
"""

from pathlib import Path

from runs.errors import UserError, one_line_errors, user_error
from runs.options import Parser
from runs.types import SEED


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    help = "a name, a folder of kernels, and one of their VAE"
    parser.add_argument("--set", nargs=3, action="append", required=True, metavar=("NAME", "CONV", "VAE"), help=help)
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="the picture")
    parser.add_argument("--seed", type=SEED, default=0, help="seed of the choice of kernels, and of the samples")
    args = parser.parse_args(argv)
    # After the arguments, so that a mistake in them is answered at once.
    import torch

    import utils
    from sweeps.plots import COLUMNS, plot_rows, save

    names = [name for name, *_ in args.set]
    if len(set(names)) < len(names):
        raise UserError(f"--set: found the names {', '.join(names)}, expected each once")
    rows, k = {}, None
    for name, conv, folder in args.set:
        with user_error("--set:"):
            vae = utils.load_vae(folder)
            if k and vae.kernel_dim != k:
                raise UserError(f"{folder}: found {vae.kernel_dim}x{vae.kernel_dim} kernels, expected {k}x{k}")
            k = vae.kernel_dim
            kernels = utils.load_kernels(Path(conv, "test.npy"), k)
        torch.manual_seed(args.seed)
        rows[f"{name}: kernels"] = kernels[torch.randperm(len(kernels))[:COLUMNS]]
        rows[f"{name}: samples"] = vae.sample_means(COLUMNS, even=True)
    save(plot_rows(rows, f"{k}x{k} kernels, and means of p(w|z) of their VAEs"), args.out, tight=True)


if __name__ == "__main__":
    main()

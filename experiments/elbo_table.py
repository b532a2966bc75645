"""Test ELBOs of VAEs on sets of kernels: which VAE explains which kernels.

    python -m experiments.elbo_table --vaes data/fconv/vae5x5 other/vae5x5 --data data/fconv/conv5x5 other/conv5x5

One row per VAE and one column per set: the mean ELBO of the kernels in its test.npy, over `--samples` draws of z, in
nats per kernel, and in brackets its standard error over the kernels. A VAE of scaled kernels (`--norm`) is given them
scaled, so its ELBO is not comparable with those of others.
"""

from pathlib import Path

from runs.errors import UserError, one_line_errors, user_error
from runs.options import Parser
from runs.types import SEED, WHOLE


@one_line_errors
def main(argv: list[str] | None = None) -> list[list]:
    """Print the table, and return its rows: the folder of a VAE, then mean and standard error for each set."""
    parser = Parser(__doc__)
    parser.add_argument("--vaes", nargs="+", required=True, metavar="DIR", help="folders of VAEs of one kernel size")
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR", help="folders with a test.npy of that size")
    parser.add_argument("--samples", type=WHOLE, default=10, help="draws of z per kernel")
    parser.add_argument("--seed", type=SEED, default=0, help="seed of the draws")
    args = parser.parse_args(argv)
    # After the arguments, so that a mistake in them is answered at once.
    import tabulate
    import torch

    import utils
    from sweeps.vae_figures import load_kernels_for, test_elbo

    with user_error("--vaes"):
        vaes = [utils.load_vae(path) for path in args.vaes]
    sizes = sorted({vae.kernel_dim for vae in vaes})
    if len(sizes) > 1:
        raise UserError(f"--vaes: found VAEs of {' and '.join(map(str, sizes))}, expected one kernel size")
    with user_error("--data"):
        sets = [[load_kernels_for(vae, Path(path, "test.npy")) for path in args.data] for vae in args.vaes]
    torch.manual_seed(args.seed)
    elbos = [[test_elbo(vae, kernels, args.samples) for kernels in own] for vae, own in zip(vaes, sets, strict=True)]
    texts = [[f"{mean:.2f} ({error:.2f})" for mean, error in row] for row in elbos]
    print("test ELBO in nats per kernel (standard error)")
    table = [[path, *row] for path, row in zip(args.vaes, texts, strict=True)]
    print(tabulate.tabulate(table, ["VAE", *args.data], tablefmt="github"))
    return [[path, *(value for elbo in row for value in elbo)] for path, row in zip(args.vaes, elbos, strict=True)]


if __name__ == "__main__":
    main()

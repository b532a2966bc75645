"""Test ELBOs of VAEs on kernel sets: which model explains which kernels.

    python -m experiments.elbo_table --vaes data/fconv/vae5x5 other/vae5x5 --data data/fconv/conv5x5 other/conv5x5

One row per VAE, one column per set: the mean ELBO of its test.npy in nats per kernel, over all kernels and `--samples`
draws of z, and in brackets its standard error over kernels.
"""

from pathlib import Path

from runs import Parser, UserError, command, number


@command
def main(argv: list[str] | None = None) -> list[list]:
    parser = Parser(__doc__)
    parser.add_argument("--vaes", nargs="+", required=True, metavar="DIR", help="folders of VAEs of one kernel size")
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR", help="folders with a test.npy of that size")
    parser.add_argument("--samples", type=number(int, 1), default=10, help="draws of z per kernel")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=0, help="seed of the draws")
    args = parser.parse_args(argv)
    # After the arguments, so that a mistake in them answers at once.
    import tabulate
    import torch

    import utils

    vaes = [utils.load_vae(path, what="--vaes") for path in args.vaes]
    sizes = sorted({vae.kernel_dim for vae in vaes})
    if len(sizes) > 1:
        raise UserError(f"--vaes: found VAEs of {' and '.join(map(str, sizes))}, expected one kernel size")
    sets = [utils.load_kernels(Path(path, "test.npy"), "--data", sizes[0]) for path in args.data]
    torch.manual_seed(args.seed)
    table = []
    with torch.no_grad():
        for path, vae in zip(args.vaes, vaes, strict=True):
            row: list = [path]
            for kernels in sets:
                draws = [
                    torch.cat([vae.elbo(w).elbo for w in kernels.split(1024)]).double() for _ in range(args.samples)
                ]
                elbo = torch.stack(draws).mean(0)
                row += [elbo.mean().item(), elbo.std().item() / len(elbo) ** 0.5]
            table.append(row)
    cells = [[row[0], *(f"{row[i]:.2f} ({row[i + 1]:.2f})" for i in range(1, len(row), 2))] for row in table]
    print("test ELBO in nats per kernel (standard error)")
    print(tabulate.tabulate(cells, ["VAE", *args.data], tablefmt="github"))
    return table


if __name__ == "__main__":
    main()

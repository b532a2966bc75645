"""What a kernel VAE has learnt: reconstructions, samples, and its KL against a standard normal prior's.

    python -m experiments.vae_stats --vae data/fconv/vae5x5 --data data/fconv/conv5x5 [--out logs/vae-stats]

The KL of q(w) = N(kernel, variance) is taken per kernel under the deep weight prior (the bound KL_aux, by sampling) and
under N(0, 1), over a range of posterior variances, for real test kernels and for Gaussian noise of the same norms. A
VAE of scaled kernels (`--norm`) is given them scaled. The command writes reconstructions.png, samples.png, kl.png and
kl.csv.
"""

from pathlib import Path

from runs.directory import ROOT
from runs.errors import one_line_errors, user_error
from runs.log import write_csv
from runs.options import Parser
from runs.types import SEED, WHOLE, number_type


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--vae", type=Path, required=True, help="folder of a VAE")
    parser.add_argument("--data", type=Path, required=True, help="folder with test.npy, kernels of the VAE's size")
    parser.add_argument("--out", type=Path, default=ROOT / "logs" / "vae-stats", help="folder for pictures and CSV")
    parser.add_argument("--kernels", type=WHOLE, default=1000, help="at most this many test kernels are used")
    help = "draws for each KL under the deep weight prior"
    parser.add_argument("--samples", type=number_type(int, 2), default=10, help=help)
    parser.add_argument("--seed", type=SEED, default=0, help="seed of every random number")
    args = parser.parse_args(argv)
    # After the arguments, so that a mistake in them is answered at once.
    import torch

    import utils
    from sweeps.vae_figures import load_kernels_for, save_all, vae_figures

    with user_error("--vae"):
        vae = utils.load_vae(args.vae)
    file = args.data / "test.npy"
    with user_error("--data"):
        kernels = load_kernels_for(args.vae, file)
    torch.manual_seed(args.seed)
    drawn = kernels[torch.randperm(len(kernels))[: args.kernels]]
    with user_error(f"--data {file}:"):
        figures, rows = vae_figures(vae, drawn, args.samples)
    save_all(figures, args.out, tight=True)
    write_csv(args.out / "kl.csv", rows)
    print(f"{', '.join(figures)}, kl.csv in {args.out}")


if __name__ == "__main__":
    main()

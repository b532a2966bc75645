"""What a kernel VAE has learnt: reconstructions, samples, and its KL against a standard normal prior's.

    python -m experiments.vae_stats --vae data/fconv/vae5x5 --data data/fconv/conv5x5 [--out logs/vae-stats]

The KL of q(w) = N(kernel, variance) is taken per kernel under the deep weight prior (KL_aux, by sampling) and under
N(0, 1), over a range of posterior variances, for real test kernels and for Gaussian noise of the same norms. Writes
reconstructions.png, samples.png, kl.png and kl.csv.
"""

import csv
import io
import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from runs import ROOT, Parser, UserError, command, number, write_whole

if TYPE_CHECKING:
    import torch

    from models.vae import KernelVAE

VARIANCES = [10 ** (i / 2) for i in range(-12, 1)]


def noise_like(kernels: "torch.Tensor") -> "torch.Tensor":
    """Gaussian noise in the shape (n, 1, k, k) of the kernels, each with the norm of its kernel."""
    import torch

    noise = torch.randn_like(kernels)
    return noise * (kernels.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)


def kl_rows(vae: "KernelVAE", kernels: "torch.Tensor", samples: int) -> list[dict[str, float | str]]:
    """Mean KL in nats per kernel under both priors, with the standard error of the first over `samples` draws."""
    import torch

    from models.priors import DeepWeightPrior, NormalPrior

    rows = []
    for what, w in (("real", kernels), ("noise", noise_like(kernels))):
        for variance in VARIANCES:
            log_variance = torch.full_like(w, math.log(variance))
            draws = [DeepWeightPrior(vae).kl(w, log_variance).item() / len(w) for _ in range(samples)]
            rows.append(
                {
                    "kernels": what,
                    "posterior_variance": variance,
                    "kl_dwp": statistics.fmean(draws),
                    "kl_dwp_error": statistics.stdev(draws) / math.sqrt(samples),
                    "kl_normal": NormalPrior().kl(w, log_variance).item() / len(w),
                }
            )
    return rows


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--vae", type=Path, required=True, help="folder of a VAE")
    parser.add_argument("--data", type=Path, required=True, help="folder with test.npy, kernels of that size")
    parser.add_argument("--out", type=Path, default=ROOT / "logs" / "vae-stats", help="folder for pictures and CSV")
    parser.add_argument("--kernels", type=number(int, 1), default=1000, help="at most this many test kernels are used")
    parser.add_argument("--samples", type=number(int, 2), default=10, help="draws per KL of the deep weight prior")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=0, help="seed of every random number")
    args = parser.parse_args(argv)
    # After the arguments, so that a mistake in them answers at once.
    import torch

    import utils
    from experiments.plots import COLUMNS, plot_kl, plot_rows, save

    vae = utils.load_vae(args.vae, what="--vae").double()  # the bound overflows float32 at large variances
    kernels = utils.load_kernels(args.data / "test.npy", "--data", vae.kernel_dim).double()
    torch.manual_seed(args.seed)
    kernels = kernels[torch.randperm(len(kernels))[: args.kernels]]
    if kernels.flatten(1).norm(dim=1).min() == 0:
        raise UserError(f"--data: {args.data / 'test.npy'} has a kernel of zeros, expected pruned kernels")
    shown = kernels[:COLUMNS]
    with torch.no_grad():
        reconstructions = vae.decode(vae.encode(shown)[0])[0]
        samples, means = vae.sample(COLUMNS), vae.sample_means(COLUMNS)
        rows = kl_rows(vae, kernels, args.samples)

    k = vae.kernel_dim
    figures = {
        "reconstructions.png": plot_rows(
            {"kernel": shown, "reconstruction": reconstructions}, f"{k}x{k} test kernels and their reconstructions"
        ),
        "samples.png": plot_rows(
            {"real": shown, "samples of p(w)": samples, "means of p(w|z)": means}, f"{k}x{k}: real kernels and samples"
        ),
        "kl.png": plot_kl(rows),
    }
    for name, figure in figures.items():
        save(figure, args.out / name, tight=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with write_whole(args.out / "kl.csv") as file:
        file.write(text.getvalue().encode())
    print(f"{', '.join(figures)}, kl.csv in {args.out}")


if __name__ == "__main__":
    main()

"""What a kernel VAE has learnt: reconstructions, samples, and its KL against a standard normal prior's.

    python -m experiments.vae_stats --vae data/fconv/vae5x5 --data data/fconv/conv5x5 [--out logs/vae-stats]

The KL of q(w) = N(kernel, variance) is taken per kernel under the deep weight prior (KL_aux, by sampling) and under
N(0, 1), over a range of posterior variances, for real test kernels and for Gaussian noise of the same norms. Writes
reconstructions.png, samples.png, kl.png and kl.csv.
"""

import csv
import io
from pathlib import Path

import matplotlib
import numpy as np
import torch

import utils
from experiments.plot_kernels import COLORS, kernel_image
from models.priors import DeepWeightPrior, NormalPrior
from runs import ROOT, Parser, UserError, command, number, write_whole

matplotlib.use("Agg")
import matplotlib.pyplot as plt

VARIANCES = np.logspace(-6, 0, 13)
COLUMNS = 16  # kernels in a row of the pictures


def plot_rows(rows: dict[str, torch.Tensor], title: str) -> plt.Figure:
    """Rows of kernels (n, 1, k, k) by name, each kernel on its own scale."""
    figure, axes = plt.subplots(
        len(rows), COLUMNS, figsize=(0.55 * COLUMNS + 1.5, 0.6 * len(rows) + 0.6), squeeze=False
    )
    for line, (name, kernels) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.axis("off")
        for axis, kernel in zip(line, kernels, strict=False):
            axis.imshow(kernel_image(kernel), cmap=COLORS, vmin=-1, vmax=1)
        line[0].text(-0.3, 0.5, name, ha="right", va="center", transform=line[0].transAxes)
    figure.suptitle(title)
    return figure


def noise_like(kernels: torch.Tensor) -> torch.Tensor:
    """Gaussian noise in the shape (n, 1, k, k) of the kernels, each with the norm of its kernel."""
    noise = torch.randn_like(kernels)
    return noise * (kernels.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)


@torch.no_grad()
def kl_rows(vae, kernels: torch.Tensor, samples: int) -> list[dict[str, float | str]]:
    """Mean KL in nats per kernel under both priors, with the standard error of the first over `samples` draws."""
    rows = []
    for what, w in (("real", kernels), ("noise", noise_like(kernels))):
        for variance in VARIANCES:
            log_variance = torch.full_like(w, float(np.log(variance)))
            draws = [DeepWeightPrior(vae).kl(w, log_variance).item() / len(w) for _ in range(samples)]
            rows.append(
                {
                    "kernels": what,
                    "posterior_variance": float(variance),
                    "kl_dwp": float(np.mean(draws)),
                    "kl_dwp_error": float(np.std(draws, ddof=1) / np.sqrt(samples)),
                    "kl_normal": NormalPrior().kl(w, log_variance).item() / len(w),
                }
            )
    return rows


def plot_kl(rows: list[dict[str, float | str]]) -> plt.Figure:
    """KL against the posterior's variance: color for the prior, line for the kind of kernels."""
    figure, axis = plt.subplots(figsize=(6.5, 4))
    for prior, label, color in (("kl_dwp", "deep weight prior", "C0"), ("kl_normal", "N(0, 1)", "C1")):
        for what, line in (("real", "-"), ("noise", ":")):
            mine = [row for row in rows if row["kernels"] == what]
            x, y = [row["posterior_variance"] for row in mine], [row[prior] for row in mine]
            axis.plot(x, y, line, color=color, label=f"{label}, {what} kernels")
    axis.set(xscale="log", xlabel="posterior variance of each weight", ylabel="KL, nats per kernel")
    # Far from any kernel the encoder extrapolates and the bound is astronomical.
    axis.set_ylim(0, 1.2 * max(row["kl_normal"] for row in rows))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    return figure


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
        with write_whole(args.out / name) as file:
            figure.savefig(file, dpi=110, format="png", bbox_inches="tight")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with write_whole(args.out / "kl.csv") as file:
        file.write(text.getvalue().encode())
    print(f"{', '.join(figures)}, kl.csv in {args.out}")


if __name__ == "__main__":
    main()

"""The exact KL's time and memory from 10^3 to 10^6 kernels: a table and benchmarks/growth.png.

python -m benchmarks.growth [--most 1000000]
"""

from pathlib import Path

import numpy as np
import tabulate
import torch
from tqdm import tqdm

from benchmarks.comparisons import random_vae
from benchmarks.measure import SIDES, Comparison, in_new_process, seconds_and_memory
from benchmarks.textbook import dwp_kl, textbook_copy
from models.priors import DeepWeightPrior
from runs.errors import one_line_errors
from runs.options import Parser
from runs.types import number_type


def compare_kl(n: int) -> Comparison:
    """Value and gradients of the KL of n 5x5 kernels."""
    vae = random_vae(5)
    textbook_vae = textbook_copy(vae)
    mean, log_variance = torch.zeros(n, 1, 5, 5), torch.full((n, 1, 5, 5), -8.0)
    parameters = [mean.requires_grad_(), log_variance.requires_grad_()]
    DeepWeightPrior(vae).kl(mean[:512], log_variance[:512])  # loads the libraries and starts the threads
    return Comparison(
        f"KL of {n} 5x5 kernels",
        lambda: torch.autograd.grad(DeepWeightPrior(vae).kl(*parameters), parameters),
        lambda: torch.autograd.grad(dwp_kl(textbook_vae, *parameters), parameters),
    )


@one_line_errors
def main(argv: list[str] | None = None) -> list[list]:
    """Print the table, write the picture, and return the table's rows: kernels, side, seconds, MB."""
    parser = Parser(__doc__)
    parser.add_argument("--most", type=number_type(int, 1000), default=10**6, help="kernels at the end of our curve")
    help = "kernels at the end of the textbook's curve, which needs gigabytes"
    parser.add_argument("--most_textbook", type=number_type(int, 1000), default=10**5, help=help)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "growth.png", help="the picture")
    args = parser.parse_args(argv)

    counts = [int(n) for n in np.geomspace(1000, args.most, 2 * round(np.log10(args.most / 1000)) + 1)]
    jobs = [(n, side) for n in counts for side in SIDES if side == "ours" or n <= args.most_textbook]
    table = [
        [n, side, *in_new_process(seconds_and_memory, side, compare_kl, n)]
        for n, side in tqdm(jobs, desc="sizes", disable=None)
    ]
    columns = ("seconds", "MB added at the peak")
    print(tabulate.tabulate(table, ["5x5 kernels", "", *columns], floatfmt=".3g"))

    from sweeps.plots import Curve, plot_panels, save

    panels = {name: [] for name in columns}
    for side in SIDES:
        n, _, *values = zip(*(row for row in table if row[1] == side), strict=True)
        for curves, y in zip(panels.values(), values, strict=True):
            curves.append(Curve(side, n, y))
    save(plot_panels(panels, "5x5 kernels", "the exact KL and its gradients", log=True), args.out)
    print(args.out)
    return table


if __name__ == "__main__":
    main()

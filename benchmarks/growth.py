"""The exact KL's time and memory from 10^3 to 10^6 kernels: a table and benchmarks/growth.png.

python -m benchmarks.growth [--most 1000000]
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import tabulate
import torch
from tqdm import tqdm

from benchmarks.__main__ import SIDES, Row, added_memory, vae
from benchmarks.textbook import dwp_kl, plain
from models.priors import DeepWeightPrior
from runs import Parser, command, number


def measure(side: str, n: int) -> tuple[float, float]:
    """Seconds and added MB at the peak of value and gradients of the KL of n 5x5 kernels, in a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.growth", "--measure", side, str(n)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    time, memory = map(float, done.stdout.split()[-2:])
    return time, memory


@command
def main(argv: list[str] | None = None) -> list[list[float]]:
    parser = Parser(__doc__)
    parser.add_argument("--most", type=number(int, 1000), default=10**6, help="kernels at the end of the curve")
    parser.add_argument(
        "--most_textbook", type=number(int, 1000), default=10**5, help="the same for the textbook's, which takes GBs"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "growth.png", help="the picture")
    parser.add_argument("--measure", nargs=2, default=[], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        side, n = args.measure[0], int(args.measure[1])
        model = vae(5, quick=False)
        mean, log_variance = torch.zeros(n, 1, 5, 5), torch.full((n, 1, 5, 5), -8.0)
        parameters = [mean.requires_grad_(), log_variance.requires_grad_()]
        old = plain(model)
        row = Row(
            f"KL of {n} 5x5 kernels",
            lambda: torch.autograd.grad(DeepWeightPrior(model).kl(*parameters), parameters),
            lambda: torch.autograd.grad(dwp_kl(old, *parameters), parameters),
        )
        DeepWeightPrior(model).kl(mean[:512], log_variance[:512])  # libraries are loaded, threads are started
        time = []
        memory = added_memory(lambda: time.append(row.call(side)))
        print(time[0], memory)
        return []

    counts = [int(n) for n in np.geomspace(1000, args.most, 2 * round(np.log10(args.most / 1000)) + 1)]
    jobs = [(n, side) for n in counts for side in SIDES if side == "ours" or n <= args.most_textbook]
    table = [[n, side, *measure(side, n)] for n, side in tqdm(jobs, desc="sizes", disable=None)]
    print(tabulate.tabulate(table, ["5x5 kernels", "", "seconds", "MB added at the peak"], floatfmt=".3g"))

    from experiments.plots import Curve, plot_panels, save

    def curves(column: int) -> list[Curve]:
        mine = {side: [row for row in table if row[1] == side] for side in SIDES}
        return [Curve(side, [row[0] for row in rows], [row[column] for row in rows]) for side, rows in mine.items()]

    panels = {"seconds": curves(2), "MB added at the peak": curves(3)}
    save(plot_panels(panels, "5x5 kernels", "the exact KL and its gradients", log=True), args.out)
    print(args.out)
    return table


if __name__ == "__main__":
    main()

"""The deep weight prior against a standard normal one on 50 MNIST images: a table and a picture.

    python -m experiments.demo [--epochs 1000] [--split 0] [--out logs/demo]

Two runs of train-bnn.py, side by side with half of the processors each. They have the same initialization (kernels from
the VAEs), classifier, images and epochs. Only the prior of the convs differs.
"""

import os
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tabulate
from tqdm import tqdm

from experiments.bnn_runs import ENSEMBLE, bnn_arguments, train_bnn
from runs.directory import ROOT
from runs.errors import one_line_errors
from runs.log import Row, table_text
from runs.options import Parser
from runs.types import WHOLE, number_type
from sweeps.scales import FEW_IMAGES

VAES = [str(ROOT / "data" / "fconv" / f"vae{k}x{k}") for k in (7, 5)]
PRIORS = {"deep weight prior": "vae", "standard normal": "sn"}
EVALUATIONS = 2  # of each run, beside that of the first epoch
ACCURACIES = {"ensemble": ENSEMBLE, "one sample": "samp_test_acc", "mean network": "det_test_acc"}  # columns of the log


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--epochs", type=WHOLE, default=1000, help="epochs of both runs")
    parser.add_argument("--split", type=number_type(int, 0, 2**32 - 1), default=0, help="data_split_seed of both runs")
    help = "kernels per layer drawn each step for the KL"
    parser.add_argument("--kl_kernels", type=number_type(int, 0), default=256, help=help)
    parser.add_argument("--out", type=Path, default=ROOT / "logs" / "demo", help="folder for the picture")
    args = parser.parse_args(argv)

    eval_freq = max(1, args.epochs // EVALUATIONS)
    threads = max(1, (os.cpu_count() or 2) // len(PRIORS))
    evaluated = {1, args.epochs, *range(eval_freq, args.epochs + 1, eval_freq)}  # epochs
    count = len(evaluated) * len(PRIORS)
    with tqdm(total=count, desc="evaluations", disable=None) as bar, ThreadPoolExecutor(len(PRIORS)) as pool:

        def train(prior: str) -> list[Row]:
            """Train a network under a prior, print each row of its log, and return all rows."""
            arguments = bnn_arguments(VAES, args.split, args.kl_kernels, args.epochs, eval_freq, prior)
            rows = []
            for row in train_bnn([*arguments, *FEW_IMAGES.split()], threads):
                tqdm.write(textwrap.indent(table_text(row, header=not rows), f"{prior:3} | "))
                bar.update()
                rows.append(row)
            return rows

        logs = dict(zip(PRIORS, pool.map(train, PRIORS.values()), strict=True))

    table = [[label, *(rows[-1][c] for c in (*ACCURACIES.values(), "test_nll"))] for label, rows in logs.items()]
    headers = ["prior", *(f"accuracy, {name}" for name in ACCURACIES), "NLL (nats)"]
    print(f"\nMNIST, 50 images (split {args.split}), {args.epochs} epochs, 10,000 test images")
    print(tabulate.tabulate(table, headers, floatfmt=".4f"))

    from sweeps.plots import Curve, plot_panels, save

    panels = {}
    for ylabel, column in (("test accuracy of the ensemble", ENSEMBLE), ("its NLL, nats per image", "test_nll")):
        curves = {label: zip(*((row["t"], row[column]) for row in rows), strict=True) for label, rows in logs.items()}
        panels[ylabel] = [Curve(label, *curve) for label, curve in curves.items()]
    picture = args.out / "learning-curves.png"
    save(plot_panels(panels, "epoch", "MNIST from 50 images"), picture)
    print(f"learning curves: {picture}")


if __name__ == "__main__":
    main()

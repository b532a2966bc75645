"""The deep weight prior against a standard normal one on 50 MNIST images: a table and a picture.

    python -m experiments.demo [--epochs 1000] [--split 0] [--out logs/demo]

Two runs of train-bnn.py with the same initialization (kernels from the VAEs), classifier, split and epochs, which
differ in the prior of the convs alone, side by side with half the processors each.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tabulate
from tqdm import tqdm

from experiments.bnn_runs import ENSEMBLE, command_line, is_row, train
from experiments.scales import FEW_IMAGES
from runs import ROOT, Parser, command, number

VAES = [str(ROOT / "data" / "fconv" / f"vae{k}x{k}") for k in (7, 5)]
PRIORS = {"deep weight prior": "vae", "standard normal": "sn"}
EVALUATIONS = 2


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--epochs", type=number(int, 1), default=1000, help="epochs of both runs")
    parser.add_argument("--split", type=number(int, 0, 2**32 - 1), default=0, help="data_split_seed")
    parser.add_argument("--kl_kernels", type=number(int, 0), default=256, help="kernels per layer and step")
    parser.add_argument("--out", type=Path, default=ROOT / "logs" / "demo", help="folder for the picture")
    args = parser.parse_args(argv)

    eval_freq = max(1, args.epochs // EVALUATIONS)
    threads = max(1, (os.cpu_count() or 2) // len(PRIORS))
    rows_each = len({1, args.epochs} | set(range(eval_freq, args.epochs + 1, eval_freq)))
    with tqdm(total=rows_each * len(PRIORS), desc="evaluations", disable=None) as bar, ThreadPoolExecutor() as pool:

        def run(prior: str) -> list[dict[str, float]]:
            """The log of a run under that prior, whose table is shown as it grows."""

            def show(line: str) -> None:
                tqdm.write(f"{prior:3} | {line}")
                bar.update(is_row(line))

            line = command_line(VAES, args.split, args.kl_kernels, args.epochs, eval_freq, prior)
            return train([*line, *FEW_IMAGES.split()], threads, show=show)[0]

        logs = dict(zip(PRIORS, pool.map(run, PRIORS.values()), strict=True))

    columns = {"ensemble": ENSEMBLE, "one sample": "samp_test_acc", "mean network": "det_test_acc"}
    table = [[prior, *(rows[-1][c] for c in columns.values()), rows[-1]["test_nll"]] for prior, rows in logs.items()]
    headers = ["prior", *(f"accuracy, {name}" for name in columns), "NLL (nats)"]
    print(f"\nMNIST, 50 images (split {args.split}), {args.epochs} epochs, 10,000 test images")
    print(tabulate.tabulate(table, headers, floatfmt=".4f"))

    from experiments.plots import Curve, plot_panels, save

    panels = {
        label: [Curve(prior, [row["t"] for row in rows], [row[column] for row in rows]) for prior, rows in logs.items()]
        for label, column in (
            ("test accuracy of the ensemble", columns["ensemble"]),
            ("its NLL, nats per image", "test_nll"),
        )
    }
    save(plot_panels(panels, "epoch", "MNIST from 50 images"), args.out / "learning-curves.png")
    print(f"learning curves: {args.out / 'learning-curves.png'}")


if __name__ == "__main__":
    main()

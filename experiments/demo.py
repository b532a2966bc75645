"""The deep weight prior against a standard normal one on 50 MNIST images: a table and a picture.

    python -m experiments.demo [--epochs 1000] [--split 0] [--out logs/demo]

Two runs of train-bnn.py with the same initialization (kernels from the VAEs), classifier, split and epochs, which
differ in the prior of the convs alone, side by side with half the processors each.
"""

import argparse
import csv
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tabulate
from tqdm import tqdm

from runs import ROOT, Parser, UserError, command, number

FCONV = ROOT / "data" / "fconv"
PRIORS = {"deep weight prior": "vae", "standard normal": "sn"}
EVALUATIONS = 2
ENS = 10


def train(prior: str, args: argparse.Namespace, bar: tqdm) -> list[dict[str, float]]:
    """Run train-bnn.py under one prior, showing its table as it grows, and return its log. Raises UserError."""
    kind = PRIORS[prior]
    vaes = [str(FCONV / f"vae{k}x{k}") for k in (7, 5)]
    command_line = [sys.executable, str(ROOT / "train-bnn.py"), "--data", "mnist", "--num_examples", "50"]
    command_line += ["--data_split_seed", str(args.split), "--epochs", str(args.epochs), "--net_cfg", "bayes"]
    command_line += ["--hid_dim", "32", "128", "--vae_list", *vaes, "--init_list", "vae", "vae"]
    command_line += ["--prior_list", kind, kind, "--classifier_prior", "sn"]
    command_line += ["--kl_kernels", str(args.kl_kernels), "--ens", str(ENS)]
    command_line += ["--eval_freq", str(max(1, args.epochs // EVALUATIONS)), "--tmp"]
    threads = str(max(1, (os.cpu_count() or 2) // len(PRIORS)))
    process = subprocess.Popen(
        command_line, env=os.environ | {"OMP_NUM_THREADS": threads}, stdout=subprocess.PIPE, text=True
    )
    root = None
    for line in process.stdout:
        if line.startswith("run directory: "):
            root = Path(line.removeprefix("run directory: ").strip())
        else:
            tqdm.write(f"{kind:3} | {line.rstrip()}")
            bar.update(line.strip()[:1].isdigit())
    if process.wait() or root is None:
        raise UserError(f"train-bnn.py --prior_list {kind} {kind} ended with exit code {process.returncode}")
    with open(root / "train-bnn.py-logs.csv") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--epochs", type=number(int, 1), default=1000, help="epochs of both runs")
    parser.add_argument("--split", type=number(int, 0, 2**32 - 1), default=0, help="data_split_seed")
    parser.add_argument("--kl_kernels", type=number(int, 0), default=256, help="kernels per layer and step")
    parser.add_argument("--out", type=Path, default=ROOT / "logs" / "demo", help="folder for the picture")
    args = parser.parse_args(argv)

    rows_each = len({1, args.epochs} | set(range(0, args.epochs + 1, max(1, args.epochs // EVALUATIONS))) - {0})
    with tqdm(total=rows_each * len(PRIORS), desc="evaluations", disable=None) as bar, ThreadPoolExecutor() as pool:
        logs = dict(zip(PRIORS, pool.map(lambda prior: train(prior, args, bar), PRIORS), strict=True))

    columns = {"ensemble": f"ens[{ENS}]_test_acc", "one sample": "samp_test_acc", "mean network": "det_test_acc"}
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

"""What whole runs of train-bnn.py on 50 MNIST images take and reach: runs in processes of their own."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from runs import ROOT, UserError

ENS = 10
ENSEMBLE = f"ens[{ENS}]_test_acc"  # the log's column


def command_line(
    vae_list: Sequence[str], split: int, kl_kernels: int, epochs: int, eval_freq: int, prior: str = "vae"
) -> list[str]:
    """The README's Bayesian network on few images, for a CPU: kernels start from the VAEs, `prior` is the convs'."""
    argv = [sys.executable, str(ROOT / "train-bnn.py"), "--data", "mnist", "--num_examples", "50"]
    argv += ["--data_split_seed", str(split), "--net_cfg", "bayes", "--hid_dim", "32", "128", "--ens", str(ENS)]
    argv += ["--vae_list", *vae_list, "--init_list", "vae", "vae", "--prior_list", prior, prior]
    return [*argv, "--kl_kernels", str(kl_kernels), "--epochs", str(epochs), "--eval_freq", str(eval_freq), "--tmp"]


def is_row(line: str) -> bool:
    """Whether a line of a run's output is a row of its table."""
    return line.strip()[:1].isdigit()


def train(
    argv: list[str], threads: int, target: float = 1.0, show: Callable[[str], object] = str
) -> tuple[list[dict[str, float]], float]:
    """The log of that run, and the seconds from the process's start to the first row at the target, or to the end.

    The target is an accuracy of the ensemble; at the target the process is stopped. `show` is called with each line of
    the run's table. Raises UserError where it fails.
    """
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    rows: list[dict[str, float]] = []
    root = None
    for line in process.stdout:
        if line.startswith("run directory: "):
            root = Path(line.removeprefix("run directory: ").strip())
            continue
        show(line.rstrip())
        if is_row(line):  # the log is on the disk before its row is printed
            with open(root / "train-bnn.py-logs.csv") as file:
                rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
            if rows[-1][ENSEMBLE] >= target:
                seconds = time.perf_counter() - start
                process.kill()
                process.communicate()
                return rows, seconds
    error = process.communicate()[1]
    if process.returncode:
        raise UserError(f"train-bnn.py ended with exit code {process.returncode}: {error.strip()}")
    return rows, time.perf_counter() - start

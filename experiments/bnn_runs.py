"""Runs of train-bnn.py on 50 MNIST images, each in a process of its own."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from runs.directory import ROOT
from runs.errors import UserError
from runs.log import Row, read_rows

SCRIPT = "train-bnn.py"
SAMPLES = 10  # in the ensemble
ENSEMBLE = f"ens[{SAMPLES}]_test_acc"  # the column of the log with the ensemble's accuracy
POLL_SECONDS = 0.05  # between two looks at a log


def bnn_arguments(vae_list: Sequence[str], split: int, kl_kernels: int, epochs: int, eval_freq: int) -> list[str]:
    """The arguments of the README's Bayesian network, made fast for a CPU: 50 images, and a KL of `kl_kernels` kernels.

    The initial kernels come from the VAEs of 7x7 and 5x5 kernels in `vae_list`, which are the prior.
    """
    options = f"--data mnist --num_examples 50 --data_split_seed {split} --net_cfg bayes --hid_dim 32 128"
    options += f" --ens {SAMPLES} --init_list vae vae --prior_list vae vae --kl_kernels {kl_kernels}"
    return [*f"{options} --epochs {epochs} --eval_freq {eval_freq} --vae_list".split(), *vae_list]


def train_bnn(arguments: Sequence[str], threads: int, folder: str | Path) -> Iterator[Row]:
    """Run train-bnn.py with arguments such as `bnn_arguments`, and yield each row of its log when the row is written.

    The process computes with this number of threads and writes its run into `folder`, an empty one. It starts with the
    first row that is requested, and closing the iterator kills it. Raises UserError with the last line on stderr if the
    run fails.
    """
    command = [sys.executable, str(ROOT / SCRIPT), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "DWP_PATH": str(folder)}
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            rows, running = [], True
            while running:
                running = process.poll() is None  # before the log is read, so that the last row is not missed
                for log in Path(folder).glob(f"exman-{SCRIPT}/runs/*/{SCRIPT}-logs.csv"):
                    seen, rows = len(rows), read_rows(log)
                    yield from rows[seen:]
                if running:
                    time.sleep(POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            stderr.seek(0)
            last_line = (stderr.read().decode(errors="replace").strip() or "nothing on stderr").splitlines()[-1]
            raise UserError(f"{SCRIPT}: exit code {process.returncode}: {last_line}")

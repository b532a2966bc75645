"""Seconds of train-bnn.py, as a whole process, until an accuracy on 10,000 test images, trained on 50.

    python -m benchmarks.time_to_accuracy --vae_list data/fconv/vae7x7 data/fconv/vae5x5 [--target 0.8]

Measured from the start of the process to the first evaluation whose ensemble reaches the target. The evaluations are
part of that time.
"""

import contextlib
import os
import statistics
import tempfile
import time

from experiments.bnn_runs import ENSEMBLE, bnn_arguments, train_bnn
from runs.errors import UserError, one_line_errors
from runs.options import Parser
from runs.types import WHOLE, number_type


@one_line_errors
def main(argv: list[str] | None = None) -> list[float]:
    """Measure, print and return the seconds of each run."""
    parser = Parser(__doc__)
    parser.add_argument("--vae_list", nargs=2, required=True, metavar="DIR", help="VAEs of 7x7 and 5x5 kernels")
    parser.add_argument("--target", type=number_type(float, 0, 1), default=0.8, help="accuracy of the ensemble")
    parser.add_argument("--split", type=number_type(int, 0, 2**32 - 1), default=0, help="data_split_seed")
    parser.add_argument("--kl_kernels", type=number_type(int, 0), default=128, help="kernels per layer and step")
    parser.add_argument("--epochs", type=WHOLE, default=600, help="epochs of the schedule")
    parser.add_argument("--eval_freq", type=WHOLE, default=100, help="epochs between evaluations")
    parser.add_argument("--repeats", type=WHOLE, default=3, help="number of runs")
    args = parser.parse_args(argv)

    arguments = bnn_arguments(args.vae_list, args.split, args.kl_kernels, args.epochs, args.eval_freq)
    times = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.closing(train_bnn(arguments, os.cpu_count() or 1, folder)) as rows,
        ):
            for row in rows:
                accuracy = row[ENSEMBLE]
                if accuracy >= args.target:
                    break
            else:
                raise UserError(f"--target: {args.target:g} is not reached, {accuracy:.4f} after {args.epochs} epochs")
            times.append(time.perf_counter() - start)
        print(f"accuracy {accuracy:.4f} in epoch {row['t']} after {times[-1]:.1f} s")
    print(f"median {statistics.median(times):.1f} s, {min(times):.1f} to {max(times):.1f}, n = {len(times)}")
    return times


if __name__ == "__main__":
    main()

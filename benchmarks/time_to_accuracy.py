"""Seconds of train-bnn.py, as a whole process, to an accuracy on 10,000 test images from 50.

    python -m benchmarks.time_to_accuracy --vae_list data/fconv/vae7x7 data/fconv/vae5x5 [--target 0.8]

From the start of the process to the first evaluation whose ensemble reaches the target, evaluations included.
"""

import os
import statistics

from experiments.bnn_runs import ENSEMBLE, command_line, train
from runs import Parser, UserError, command, number


@command
def main(argv: list[str] | None = None) -> list[float]:
    parser = Parser(__doc__)
    parser.add_argument("--vae_list", nargs=2, required=True, metavar="DIR", help="VAEs of 7x7 and 5x5 kernels")
    parser.add_argument("--target", type=number(float, 0, 1), default=0.8, help="accuracy of the ensemble")
    parser.add_argument("--split", type=number(int, 0, 2**32 - 1), default=0, help="data_split_seed")
    parser.add_argument("--kl_kernels", type=number(int, 0), default=128, help="kernels per layer and step")
    parser.add_argument("--epochs", type=number(int, 1), default=600, help="epochs of the schedule")
    parser.add_argument("--eval_freq", type=number(int, 1), default=100, help="epochs between evaluations")
    parser.add_argument("--repeats", type=number(int, 1), default=3, help="runs")
    args = parser.parse_args(argv)

    line = command_line(args.vae_list, args.split, args.kl_kernels, args.epochs, args.eval_freq)
    times = []
    for _ in range(args.repeats):
        rows, seconds = train(line, os.cpu_count() or 1, args.target)
        accuracy = rows[-1][ENSEMBLE]
        if accuracy < args.target:
            raise UserError(f"--target: {args.target:g} is not reached, {accuracy:.4f} after {args.epochs} epochs")
        times.append(seconds)
        print(f"accuracy {accuracy:.4f} in epoch {rows[-1]['t']:.0f} after {seconds:.1f} s")
    print(f"median {statistics.median(times):.1f} s, {min(times):.1f} to {max(times):.1f}, n = {len(times)}")
    return times


if __name__ == "__main__":
    main()

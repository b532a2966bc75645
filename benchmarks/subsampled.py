"""Accuracy and NLL against the kernels drawn per step, at equal epochs and at equal time: a table and subsampled.png.

    python -m benchmarks.subsampled --vae_list data/fconv/vae7x7 data/fconv/vae5x5

Runs of train-bnn.py on 50 MNIST images. Equal time is that of `--epochs` epochs with the fastest number of kernels: the
seconds of a step are measured first, without an evaluation, and every run gets as many epochs as fit into that time.
"""

import os
import statistics
import tempfile
import timeit
from pathlib import Path

import tabulate
from tqdm.contrib.concurrent import thread_map

from experiments.bnn_runs import ENSEMBLE, SAMPLES, bnn_arguments, train_bnn
from runs.errors import one_line_errors, user_error
from runs.log import Row
from runs.options import Parser
from runs.types import WHOLE, number_type

WARM_UP, STEPS = 2, 8


def step_seconds(vae_list: list[str], kl_kernels: int) -> float:
    """Median seconds of a training step on 50 images, in this process with one thread. Raises UserError."""
    import torch

    import utils
    from benchmarks.comparisons import bnn_step, dwp_network, random_images

    torch.set_num_threads(1)
    with user_error("--vae_list"):
        net = dwp_network([utils.load_vae(path) for path in vae_list], kl_kernels)
    step = bnn_step(net, *random_images(50).batch(slice(None)))
    return statistics.median(timeit.repeat(step, number=1, repeat=WARM_UP + STEPS)[WARM_UP:])


def last_row(arguments: list[str]) -> Row:
    """Train a network with one thread, and return the last row of the log."""
    with tempfile.TemporaryDirectory() as folder:
        *_, row = train_bnn(arguments, 1, folder)
    return row


@one_line_errors
def main(argv: list[str] | None = None) -> list[list]:
    """Print the table, write the picture, and return the table's rows."""
    parser = Parser(__doc__)
    parser.add_argument("--vae_list", nargs=2, required=True, metavar="DIR", help="VAEs of 7x7 and 5x5 kernels")
    counts = {"type": number_type(int, 0), "nargs": "+"}
    help = "kernels per layer drawn each step, to compare; 0 is all"
    parser.add_argument("--kernels", **counts, default=[128, 256, 512, 1024, 0], help=help)
    parser.add_argument("--splits", **counts, default=[0, 1, 2], help="data_split_seeds")
    parser.add_argument("--epochs", type=WHOLE, default=600, help="of the runs at equal epochs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "subsampled.png", help="the picture")
    args = parser.parse_args(argv)

    seconds = {n: step_seconds(args.vae_list, n) for n in args.kernels}  # of a step, which is an epoch
    fastest = min(seconds.values())
    settings = []  # what is equal, number of kernels, epochs
    for n in args.kernels:
        settings += [("epochs", n, args.epochs), ("time", n, max(1, round(args.epochs * fastest / seconds[n])))]
    # Settings with the same epochs share their trainings. The longest training starts first.
    trainings = {(n, epochs, split) for _, n, epochs in settings for split in args.splits}
    longest_first = sorted(trainings, key=lambda training: -training[1] * seconds[training[0]])
    arguments = [bnn_arguments(args.vae_list, split, n, epochs, epochs) for n, epochs, split in longest_first]
    found = thread_map(last_row, arguments, max_workers=os.cpu_count(), desc="runs", disable=None)
    rows = dict(zip(longest_first, found, strict=True))

    table = []
    for kind, n, epochs in settings:
        moments = []
        for column in (ENSEMBLE, "test_nll"):
            values = [rows[n, epochs, split][column] for split in args.splits]
            moments += [statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else float("nan")]
        table.append([kind, n or "all", epochs, epochs * seconds[n], *moments])
    headers = ["equal", "kernels", "epochs", "training, s", "accuracy", "std", "NLL, nats", "std"]
    print(f"n = {len(args.splits)} splits; 50 images; {SAMPLES} samples; one thread")
    formats = ("", "", "", ".0f", ".4f", ".4f", ".3f", ".3f")
    print(tabulate.tabulate(table, headers, tablefmt="github", floatfmt=formats))

    from sweeps.plots import Curve, plot_panels, save

    panels = {"test accuracy of the ensemble": [], "its NLL, nats per image": []}
    for kind in ("epochs", "time"):
        _, n, _, _, *moments = zip(*(row for row in table if row[0] == kind), strict=True)
        for curves, y, spread in zip(panels.values(), moments[::2], moments[1::2], strict=True):
            curves.append(Curve(f"equal {kind}", [str(x) for x in n], y, spread))
    save(plot_panels(panels, "kernels per layer and step"), args.out)
    print(args.out)
    return table


if __name__ == "__main__":
    main()

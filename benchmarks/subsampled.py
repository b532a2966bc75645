"""Accuracy and NLL against the kernels drawn per step, at equal epochs and at equal time: a table and subsampled.png.

    python -m benchmarks.subsampled --vae_list data/fconv/vae7x7 data/fconv/vae5x5

train-bnn.py on 50 MNIST images. Equal time is that of `--epochs` epochs with the fewest kernels: the seconds of a step
are measured first, without an evaluation, and every other run gets as many epochs as fit.
"""

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tabulate
from tqdm import tqdm

from experiments.bnn_runs import ENS, ENSEMBLE, command_line, train
from runs import Parser, command, number

WARM_UP, STEPS = 2, 8


def step_seconds(vae_list: list[str], kl_kernels: int) -> float:
    """Median seconds of a training step on 50 images, in this process with one thread."""
    import torch

    import utils
    from models.bayes import kl
    from models.fconv import FConv
    from models.priors import DeepWeightPrior

    torch.set_num_threads(1)
    net = FConv("bayes", (32, 128))
    for layer, path in zip(utils.conv_layers(net), vae_list, strict=True):
        layer.prior = DeepWeightPrior(utils.load_vae(path, what="--vae_list"), kernels=kl_kernels)
    optimizer = torch.optim.Adam(net.parameters())
    x, y = torch.rand(50, 1, 28, 28), torch.randint(10, (50,))
    times = []
    for _ in range(WARM_UP + STEPS):
        start = time.perf_counter()
        loss = 50 * torch.nn.functional.cross_entropy(net(x), y) + kl(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])


@command
def main(argv: list[str] | None = None) -> list[list]:
    parser = Parser(__doc__)
    parser.add_argument("--vae_list", nargs=2, required=True, metavar="DIR", help="VAEs of 7x7 and 5x5 kernels")
    parser.add_argument("--kernels", type=number(int, 0), nargs="+", default=[128, 256, 512, 1024, 0], help="0 is all")
    parser.add_argument("--splits", type=number(int, 0), nargs="+", default=[0, 1, 2], help="data_split_seeds")
    parser.add_argument("--epochs", type=number(int, 1), default=600, help="of the runs at equal epochs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "subsampled.png", help="the picture")
    args = parser.parse_args(argv)

    seconds = {n: step_seconds(args.vae_list, n) for n in args.kernels}
    fastest = min(seconds.values())
    jobs = []
    for n in args.kernels:
        fitting = max(1, round(args.epochs * fastest / seconds[n]))
        jobs += [("epochs", n, args.epochs, split) for split in args.splits]
        jobs += [("time", n, fitting, split) for split in args.splits]
    # Where both are the same number of epochs, they are the same run.
    runs_ = sorted({job[1:] for job in jobs}, key=lambda run: -run[1] * seconds[run[0]])
    with tqdm(total=len(runs_), desc="runs", disable=None) as bar, ThreadPoolExecutor(os.cpu_count()) as pool:

        def last_row(run: tuple[int, int, int]) -> dict[str, float]:
            n, epochs, split = run
            row = train(command_line(args.vae_list, split, n, epochs, epochs), 1)[0][-1]
            bar.update()
            return row

        rows = dict(zip(runs_, pool.map(last_row, runs_), strict=True))

    table = []
    for kind, n, epochs in dict.fromkeys(job[:3] for job in jobs):
        mine = [rows[n, epochs, split] for split in args.splits]
        accuracy, nll = ([row[column] for row in mine] for column in (ENSEMBLE, "test_nll"))
        spread = [statistics.stdev(values) if len(values) > 1 else float("nan") for values in (accuracy, nll)]
        means = statistics.fmean(accuracy), statistics.fmean(nll)
        table.append([kind, n or "all", epochs, epochs * seconds[n], means[0], spread[0], means[1], spread[1]])
    headers = ["equal", "kernels", "epochs", "training, s", "accuracy", "std", "NLL, nats", "std"]
    print(f"n = {len(args.splits)} splits; 50 images; {ENS} samples; one thread")
    print(
        tabulate.tabulate(table, headers, tablefmt="github", floatfmt=("", "", "", ".0f", ".4f", ".4f", ".3f", ".3f"))
    )

    from experiments.plots import Curve, plot_panels, save

    def curves(column: int) -> list[Curve]:
        found = []
        for kind in ("epochs", "time"):
            mine = [row for row in table if row[0] == kind]
            y, spread = [row[column] for row in mine], [row[column + 1] for row in mine]
            found.append(Curve(f"equal {kind}", [str(row[1]) for row in mine], y, spread))
        return found

    panels = {"test accuracy of the ensemble": curves(4), "its NLL, nats per image": curves(6)}
    save(plot_panels(panels, "kernels per layer and step"), args.out)
    print(args.out)
    return table


if __name__ == "__main__":
    main()

"""Learning MNIST from 50 images with the VAEs and without: a table and a picture.

    python -m experiments.demo [--epochs 300] [--split 0] [--out logs/demo]

Two runs of train-bnn.py, side by side with half of the processors each, on the same images. The first network has what
the VAEs give: it starts from kernels that they decode, and they are the prior of its convs. The second has neither: it
starts from Xavier's random kernels, under a normal prior. Each has the settings that `experiments.few_shot` chose for
it on letters. The table has the mean network, and the mean of 30 draws of the weights. The picture has learning curves
of the mean networks on 1,000 of the test images, the kernels of the first conv before and after training, and the
probabilities of six test digits: three random ones, and the three that the first network is the least sure of.
"""

import os
import shlex
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import tabulate
from tqdm import tqdm

from experiments.bnn_runs import SCRIPT, train_bnn
from experiments.methods import METHODS, SAMPLES
from runs.directory import ROOT
from runs.errors import one_line_errors
from runs.log import Row, table_text
from runs.options import Parser
from runs.types import WHOLE, number_type

if TYPE_CHECKING:
    import matplotlib.pyplot as plt
    from torch import Tensor

    from utils import DataSet

# By label: a method, and the settings that experiments.few_shot chose for it (RESULTS.md).
NETWORKS = {
    "deep weight prior": ("dwp", "--kl_weight 0.003 --classifier_lamb 0.0548 --lr 0.003"),
    "without the VAEs": ("sn-xavier", "--kl_weight 0.01 --classifier_lamb 0.1 --lamb 0.3"),
}
EXAMPLES = 50  # images to learn from
EVALUATIONS = 20  # of each run
WATCHED = 1000  # test images of the learning curves
SHOWN = 3  # digits of each kind


def digits_shown(log_p: "Tensor", split: int) -> list[int]:
    """Indices of test digits: random ones, and those with the largest entropy of log probabilities (n, n_classes)."""
    import numpy as np

    from models.metrics import entropy

    least_sure = entropy(log_p).argsort(descending=True, stable=True)[:SHOWN].tolist()
    others = np.setdiff1d(np.arange(len(log_p)), least_sure)
    return [*np.random.default_rng(split).choice(others, SHOWN, replace=False).tolist(), *least_sure]


def draw(
    logs: Mapping[str, Sequence[Row]],
    kernels: Mapping[str, "Tensor"],
    log_p: Mapping[str, "Tensor"],
    test: "DataSet",
    split: int,
) -> "plt.Figure":
    """The picture: from the runs' logs, the kernels (n, 1, k, k) of their first convs before and after training, and
    the log probabilities (n, n_classes) of test images."""
    from sweeps.plots import CYCLE, draw_tiles, plt

    figure = plt.figure(figsize=(12, 9), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1.1, 0.6, 1))
    figure.suptitle(f"MNIST from {EXAMPLES} images (split {split})")
    panels = {"test accuracy": "det_test_acc", "test NLL, nats per image": "det/nll"}
    for axis, (ylabel, column) in zip(top.subplots(1, 2), panels.items(), strict=True):
        for label, rows in logs.items():
            axis.plot([row["t"] for row in rows], [row[column] for row in rows], marker=".", label=label)
        axis.set(xlabel="epoch", ylabel=ylabel, title=f"mean networks, {WATCHED} test images")
        axis.grid(alpha=0.3)
        axis.legend()
    middle.suptitle("kernels of the first conv", fontsize=12)
    for axis, (label, own) in zip(middle.subplots(1, len(kernels)), kernels.items(), strict=True):
        draw_tiles(axis, own, 8)
        axis.set_title(label, fontsize=10)
    shown = digits_shown(next(iter(log_p.values())), split)
    for i, (index, (image, bars)) in enumerate(zip(shown, bottom.subplots(2, len(shown)).T, strict=True)):
        kind = "random" if i < SHOWN else "least sure"
        image.imshow(test.images[index, 0].numpy(), cmap="gray")
        image.set_title(f"{kind}: {test.labels[index]}", fontsize=10)
        image.axis("off")
        for j, own in enumerate(log_p.values()):
            classes = range(own.shape[1])
            bars.bar([c + 0.4 * j - 0.2 for c in classes], own[index].exp().tolist(), 0.4, color=CYCLE[j])
        bars.set(ylim=(0, 1), xticks=list(classes), yticks=(0, 1))
        bars.tick_params(labelsize=7)
        if not i:
            bars.set_ylabel("probability")
    return figure


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--epochs", type=WHOLE, default=300, help="epochs of both runs")
    parser.add_argument("--split", type=number_type(int, 0, 2**32 - 1), default=0, help="data_split_seed of the images")
    parser.add_argument("--out", type=Path, default=ROOT / "logs" / "demo", help="folder for the picture")
    args = parser.parse_args(argv)

    eval_freq = max(1, args.epochs // EVALUATIONS)
    threads = max(1, (os.cpu_count() or 2) // len(NETWORKS))
    evaluated = {1, args.epochs, *range(eval_freq, args.epochs + 1, eval_freq)}  # epochs
    import utils
    from experiments.subsets import write_npz
    from models.metrics import ensemble_log_probs, scores
    from runs.checkpoint import load_state

    train_set, test = utils.load_data("mnist")
    chosen = train_set[utils.few_shot_split(train_set.labels, EXAMPLES, args.split)]
    with (
        tqdm(total=len(evaluated) * len(NETWORKS), desc="evaluations", disable=None) as bar,
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(len(NETWORKS)) as pool,
    ):
        data = Path(folder, "data.npz")
        write_npz(data, chosen, test[:WATCHED])
        task = f"--data {shlex.quote(str(data))} --epochs {args.epochs} --eval_freq {eval_freq} --draws 1"

        def train(label: str) -> list[Row]:
            """Train a network, print each row of its log, and return all rows."""
            method, setting = NETWORKS[label]
            rows = []
            arguments = shlex.split(f"{METHODS[method].shared} {setting} {task}")
            for row in train_bnn(arguments, threads, Path(folder, method)):
                tqdm.write(textwrap.indent(table_text(row, header=not rows), f"{method:9} | "))
                bar.update()
                rows.append(row)
            return rows

        logs = dict(zip(NETWORKS, pool.map(train, NETWORKS), strict=True))

        log_p, kernels, table = {}, {}, []
        for label, (method, _) in NETWORKS.items():
            (root,) = Path(folder, method).glob(f"exman-{SCRIPT}/runs/*")
            net, _ = utils.load_network(root)
            log_p[label] = ensemble_log_probs(utils.predict_log_probs(net, test, "weights", SAMPLES, 500))
            found = scores(log_p[label], test.labels)
            mean = utils.predict_log_probs(net, test, "det", 1, 500)[0]
            table.append([label, scores(mean, test.labels)["acc"], found["acc"], found["nll"], found["ece"]])
            states = (load_state(root / "init_kernels.torch"), utils.shown_kernels(net.state_dict()))
            for state, when in zip(states, ("before", "after"), strict=True):
                kernels[f"{label}, {when}"] = next(iter(state.values()))
    print(f"\nMNIST, {EXAMPLES} images (split {args.split}), {args.epochs} epochs, {len(test.labels):,} test images")
    headers = ["network", "accuracy, mean network", f"accuracy, {SAMPLES} draws", "NLL (nats)", "ECE"]
    print(tabulate.tabulate(table, headers, floatfmt=".4f"))

    from sweeps.plots import save

    picture = args.out / "demo.png"
    save(draw(logs, kernels, log_p, test, args.split), picture)
    print(f"picture: {picture}")


if __name__ == "__main__":
    main()

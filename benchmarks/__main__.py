"""Measure this code against a textbook one, in alternation in one process.

    python -m benchmarks [--quick] [--rows WORD ...] [--repeats 5]

Prints a table of medians with the speed-up and the peak memory of either side (its own process, above what is resident
before). `--quick` runs everything once on tiny sizes, to see that it runs; its times mean nothing.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import tabulate
import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks import textbook
from models.bayes import kl, set_mode
from models.fconv import FConv
from models.priors import DeepWeightPrior
from models.vae import VAES
from runs import Parser, UserError, command, number
from utils import DataSet

ENS = 10


class Row(NamedTuple):
    """One computation, done by this code and by the textbook's."""

    name: str
    ours: Callable[[], object]
    textbook: Callable[[], object]


def vae(k: int, quick: bool):
    """The README's VAE of that kernel size, frozen, with random weights."""
    torch.manual_seed(k)
    z_dim, hidden_dim = {7: (2, 32), 5: (4, 64)}[k]
    return VAES[k](z_dim, 4 if quick else hidden_dim).eval().requires_grad_(False)


def bnn(quick: bool, kl_kernels: int = 0) -> FConv:
    """The README's Bayesian network under deep weight priors."""
    torch.manual_seed(0)
    net = FConv("bayes", (2, 4) if quick else (32, 128))
    for layer, k in ((net.features.conv1, 7), (net.features.conv2, 5)):
        layer.prior = DeepWeightPrior(vae(k, quick), kernels=kl_kernels)
    return net


def images(n: int) -> DataSet:
    """Random images and labels in MNIST's shape."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return DataSet(pixels, torch.randint(10, (n,), generator=generator))


def kl_row(k: int, quick: bool, kl_kernels: int = 0) -> Row:
    """Value and gradients of a layer's KL."""
    layer = getattr(bnn(quick, kl_kernels).features, f"conv{1 if k == 7 else 2}")
    plain = textbook.plain(vae(k, quick))
    parameters = [layer.mean.weight, layer.var["weight"]]
    n = layer.mean.weight.shape[0] * layer.mean.weight.shape[1]
    name = f"KL of {n} {k}x{k} kernels" + (f", {kl_kernels} drawn" if kl_kernels else "")
    return Row(
        name,
        lambda: torch.autograd.grad(layer.kl(), parameters),
        lambda: torch.autograd.grad(textbook.layer_kl(layer, plain), parameters),
    )


def step_row(quick: bool) -> Row:
    """A step of train-bnn.py on 50 images."""
    net = bnn(quick)
    old = textbook.plain(net)
    vaes = [textbook.plain(vae(k, quick)) for k in (7, 5)]
    optimizer, old_optimizer = (torch.optim.Adam(x.parameters()) for x in (net, old))
    x, y = images(50).batch(slice(None))

    def ours():
        loss = 50 * F.cross_entropy(net(x), y) + kl(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Row("training step, 50 images", ours, lambda: textbook.bnn_step(old, vaes, old_optimizer, x, y))


def evaluation_row(quick: bool) -> Row:
    """An evaluation of train-bnn.py, as it is in the script."""
    net, data = bnn(quick).eval(), images(50 if quick else 10000)
    old = textbook.plain(net)

    @torch.no_grad()
    def ours():
        for x, _ in data.batches(100, ""):
            set_mode(net, "det")
            net(x)
            set_mode(net, "stoch")
            F.log_softmax(net.sample_logits(x, ENS), 2).logsumexp(0)

    images_ = textbook.Images(*data)
    return Row(
        f"evaluation, {len(data.labels)} images, {ENS} samples", ours, lambda: textbook.evaluate(old, images_, ENS)
    )


def vae_row(k: int, n: int, quick: bool) -> Row:
    """An epoch of train-vae.py."""
    model = vae(k, quick).requires_grad_(True)
    old = textbook.plain(model)
    optimizer, old_optimizer = (torch.optim.Adam(x.parameters()) for x in (model, old))
    kernels = 0.05 * torch.randn(n, 1, k, k)

    def ours():
        for index in torch.randperm(n).split(128):
            optimizer.zero_grad()
            (-model.elbo(kernels[index]).elbo.mean()).backward()
            optimizer.step()

    return Row(f"VAE epoch, {n} {k}x{k} kernels", ours, lambda: textbook.vae_epoch(old, old_optimizer, kernels))


def net_row(hid: tuple[int, int], n: int, quick: bool) -> Row:
    """A pass of train-net.py over n images in batches of 256."""
    hid, n = ((2, 4), 300) if quick else (hid, n)
    net, data = FConv("vanilla", hid), images(n)
    old = textbook.plain(net)
    optimizer, old_optimizer = (torch.optim.Adam(x.parameters()) for x in (net, old))

    def ours():
        for index in torch.randperm(n).split(256):
            textbook.net_step(net, optimizer, *data.batch(index))

    images_ = textbook.Images(*data)
    return Row(
        f"source network {hid[0]}/{hid[1]}, {n} images", ours, lambda: textbook.net_epoch(old, old_optimizer, images_)
    )


# Each makes its row, for tiny sizes where `quick`.
ROWS: list[Callable[[bool], Row]] = [
    lambda quick: kl_row(7, quick),
    lambda quick: kl_row(5, quick),
    lambda quick: kl_row(5, quick, 4 if quick else 512),
    step_row,
    evaluation_row,
    lambda quick: vae_row(7, 64 if quick else 1769, quick),
    lambda quick: vae_row(5, 64 if quick else 8192, quick),
    lambda quick: net_row((256, 512), 256, quick),
    lambda quick: net_row((16, 32), 60000, quick),
]


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_memory(row: int, side: str, quick: bool) -> float:
    """MB that one call adds to the resident memory at its peak, in a process of its own."""
    argv = [sys.executable, "-m", "benchmarks", "--peak", str(row), side, *(["--quick"] if quick else [])]
    return float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()[-1])


def resident() -> float:
    """Largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


@command
def main(argv: list[str] | None = None) -> list[list]:
    parser = Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once: a check, not a measurement")
    parser.add_argument("--rows", nargs="*", default=[], help="only rows whose name has one of these words in it")
    parser.add_argument("--repeats", type=number(int, 1), default=5, help="measurements of either side of each row")
    parser.add_argument("--peak", nargs=2, default=[], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.peak:
        row = ROWS[int(args.peak[0])](args.quick)
        before = resident()
        getattr(row, args.peak[1])()
        print(max(0.0, resident() - before))
        return []
    rows = {i: make(args.quick) for i, make in enumerate(ROWS)}
    rows = {i: row for i, row in rows.items() if not args.rows or any(word in row.name for word in args.rows)}
    if not rows:
        raise UserError(f"--rows: found no row with {' or '.join(args.rows)} in its name")

    repeats = 1 if args.quick else args.repeats
    table = []
    for i, row in tqdm(rows.items(), desc="rows", disable=None):
        if not args.quick:
            row.ours(), row.textbook()
        times = [(seconds(row.textbook), seconds(row.ours)) for _ in range(repeats)]
        old, new = (statistics.median(side) for side in zip(*times, strict=True))
        memory = [peak_memory(i, side, args.quick) for side in ("textbook", "ours")]
        table.append([row.name, old, new, old / new, *memory])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {os.cpu_count()} CPUs")
    headers = ["", "textbook, s", "ours, s", "times faster", "textbook, MB", "ours, MB"]
    print(tabulate.tabulate(table, headers, tablefmt="github", floatfmt=("", ".4f", ".4f", ".1f", ".0f", ".0f")))
    return table


if __name__ == "__main__":
    main()

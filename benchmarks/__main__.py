"""Measure this code against a textbook one, in alternation in one process.

    python -m benchmarks [--quick] [--rows WORD ...] [--repeats 5]

Prints a table of medians with the speed-up, and the peak memory of either side: of one call in a process of its own,
above what is resident before (Linux). Then the rates of the exact KL and of this machine. `--quick` runs everything
once on tiny sizes, to see that it runs; its times mean nothing.
"""

import argparse
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import tabulate
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks import textbook
from models.bayes import kl, set_mode
from models.fconv import FConv
from models.priors import DeepWeightPrior
from models.vae import VAES
from runs import Parser, UserError, command, number
from utils import DataSet, autocast, keep_freed_memory, predict

SIDES = ("textbook", "ours")
ENS = 10
CPU = torch.device("cpu")
# Bytes up to which glibc, left to itself, comes to keep freed memory in a process that frees large pieces.
OWN_THRESHOLDS = (64 * 2**20, 32 * 2**20)


class Row(NamedTuple):
    """One computation, done by this code and by the textbook's."""

    name: str
    ours: Callable[[], object]
    textbook: Callable[[], object]

    def call(self, side: str) -> float:
        """Seconds of one call of a side; only ours keeps all freed memory, as the scripts do."""
        keep_freed_memory(*(() if side == "ours" else OWN_THRESHOLDS))
        return seconds(getattr(self, side))


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


def kl_row(k: int, quick: bool, kl_kernels: int = 0, precision: str = "fp32") -> Row:
    """Value and gradients of a layer's KL."""
    layer = getattr(bnn(quick, kl_kernels).features, f"conv{1 if k == 7 else 2}")
    plain = textbook.plain(vae(k, quick))
    parameters = [layer.mean.weight, layer.var["weight"]]
    n = layer.mean.weight.shape[0] * layer.mean.weight.shape[1]
    options = f", {kl_kernels} drawn" if kl_kernels else f", {precision}"

    def ours():
        with autocast(precision, CPU):
            value = layer.kl()
        return torch.autograd.grad(value, parameters)

    return Row(
        f"KL of {n} {k}x{k} kernels{options}",
        ours,
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

    def ours():
        set_mode(net, "det")
        predict(lambda x, _: net(x), data, len(data.labels))
        set_mode(net, "stoch")
        logits = predict(lambda x, generator: net.sample_logits(x, ENS, generator), data, len(data.labels))
        F.log_softmax(torch.cat(logits, 1), 2).logsumexp(0)

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


def net_row(hid: tuple[int, int], n: int, quick: bool, precision: str = "fp32") -> Row:
    """A pass of train-net.py over n images in batches of 256."""
    hid, n = ((2, 4), 300) if quick else (hid, n)
    net, data = FConv("vanilla", hid), images(n)
    old = textbook.plain(net)
    optimizer, old_optimizer = (torch.optim.Adam(x.parameters()) for x in (net, old))

    def ours():
        for index in torch.randperm(n).split(256):
            x, y = data.batch(index)
            with autocast(precision, CPU):
                loss = F.cross_entropy(net(x), y) + 0.001 * sum(p.square().sum() for p in net.features.parameters())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    images_ = textbook.Images(*data)
    return Row(
        f"source network {hid[0]}/{hid[1]}, {n} images, {precision}",
        ours,
        lambda: textbook.net_epoch(old, old_optimizer, images_),
    )


# Each makes its row, for tiny sizes where `quick`.
ROWS: list[Callable[[bool], Row]] = [
    lambda quick: kl_row(7, quick),
    lambda quick: kl_row(5, quick),
    lambda quick: kl_row(5, quick, precision="bf16"),
    lambda quick: kl_row(5, quick, 4 if quick else 512),
    step_row,
    evaluation_row,
    lambda quick: vae_row(7, 64 if quick else 1769, quick),
    lambda quick: vae_row(5, 64 if quick else 8192, quick),
    lambda quick: net_row((256, 512), 256, quick, "bf16"),
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


def status(field: str) -> float:
    """A memory size of this process in MB, from Linux's table of it; NaN elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def added_memory(function: Callable[[], object]) -> float:
    """MB that a call adds to the resident memory at its peak; NaN where the system does not say."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        return math.nan
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def rates(quick: bool) -> dict[str, float]:
    """GFLOP/s of the exact KL of conv2, and of a large convolution and matrix product on this machine.

    The KL's are those of the textbook's direct convolutions; ours takes fewer for the same value.
    """
    row = kl_row(5, quick)
    size = 64 if quick else 2048
    a, b = torch.rand(2, size, size)
    # As many channels as the VAE has, on maps large enough that borders and calls do not count.
    shape = (2, 128, 8, 8) if quick else (32, 128, 32, 32)
    x = torch.rand(shape).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.rand(128, 128, 3, 3).to(memory_format=torch.channels_last)

    def conv():
        y = F.conv2d(x, weight, padding=1)
        torch.autograd.grad(y, x, y)

    def product():
        return a @ b

    keep_freed_memory()
    found = {}
    work = (
        ("KL of 4,096 5x5 kernels", row.ours, row.textbook),
        ("convolution 128 to 128, 3x3", conv, conv),
        ("product of 2,048^2", product, product),
    )
    for name, function, counted in work:
        with FlopCounterMode(display=False) as counter:
            counted()
        times = [seconds(function) for _ in range(1 if quick else 8)][-7:]
        found[name] = counter.get_total_flops() / statistics.median(times) / 1e9
    return found


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
        print(added_memory(lambda: row.call(args.peak[1])))
        return []
    rows = {i: make(args.quick) for i, make in enumerate(ROWS)}
    rows = {i: row for i, row in rows.items() if not args.rows or any(word in row.name for word in args.rows)}
    if not rows:
        raise UserError(f"--rows: found no row with {' or '.join(args.rows)} in its name")

    repeats = 1 if args.quick else args.repeats
    table = []
    for i, row in tqdm(rows.items(), desc="rows", disable=None):
        warm_up = 0 if args.quick else 1
        times = [[row.call(side) for side in SIDES] for _ in range(warm_up + repeats)][warm_up:]
        old, new = (statistics.median(side) for side in zip(*times, strict=True))
        memory = [peak_memory(i, side, args.quick) for side in SIDES]
        table.append([row.name, old, new, old / new, *memory])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {os.cpu_count()} CPUs")
    headers = ["", "textbook, s", "ours, s", "times faster", "textbook, MB", "ours, MB"]
    print(tabulate.tabulate(table, headers, tablefmt="github", floatfmt=("", ".4f", ".4f", ".1f", ".0f", ".0f")))
    kl_rate, conv_rate, product_rate = rates(args.quick).values()
    print(f"\nfp32 GFLOP/s: exact KL of conv2 {kl_rate:.0f}")
    print(f"a large convolution {conv_rate:.0f}, of which the KL reaches {kl_rate / conv_rate:.0%}")
    print(f"a large matrix product {product_rate:.0f}, of which the KL reaches {kl_rate / product_rate:.0%}")
    return table


if __name__ == "__main__":
    main()

"""The computations that `python -m benchmarks` measures, by this code and by the textbook's."""

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import textbook
from benchmarks.measure import Comparison, wall_time
from models.bayes import kl, set_mode
from models.build import build_vae
from models.fconv import FConv
from models.priors import DeepWeightPrior
from models.vae import KernelVAE
from runs.device import autocast, keep_freed_memory
from utils import DataSet, predict

SAMPLES = 10  # in the ensemble
CPU = torch.device("cpu")
WIDTHS = (32, 128)  # channels of the README's Bayesian network
TINY_WIDTHS = (2, 4)  # of every network with `quick`


def random_vae(k: int, quick: bool = False) -> KernelVAE:
    """The README's VAE of k x k kernels, frozen, with random weights; a narrow one with `quick`."""
    torch.manual_seed(k)
    z_dim, hidden_dim = {7: (2, 32), 5: (4, 64)}[k]
    return build_vae(k, z_dim, 4 if quick else hidden_dim).eval().requires_grad_(False)


def random_bnn(quick: bool = False, kl_kernels: int = 0) -> FConv:
    """The README's Bayesian network under deep weight priors of `random_vae`; a narrow one with `quick`."""
    torch.manual_seed(0)
    net = FConv("bayes", TINY_WIDTHS if quick else WIDTHS)
    for layer, k in ((net.features.conv1, 7), (net.features.conv2, 5)):
        layer.prior = DeepWeightPrior(random_vae(k, quick), kernels=kl_kernels)
    return net


def random_images(n: int) -> DataSet:
    """n random images and labels in MNIST's shape."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return DataSet(pixels, torch.randint(10, (n,), generator=generator))


def adam_pair(ours: nn.Module, textbook_module: nn.Module) -> list[torch.optim.Adam]:
    """An optimizer for each of two modules."""
    return [torch.optim.Adam(module.parameters()) for module in (ours, textbook_module)]


def compare_kl(k: int, quick: bool, kl_kernels: int = 0, precision: str = "fp32") -> Comparison:
    """Value and gradients of the KL of the conv layer with k x k kernels; with `kl_kernels`, ours draws that many."""
    layer = getattr(random_bnn(quick, kl_kernels).features, f"conv{1 if k == 7 else 2}")
    textbook_vae = textbook.textbook_copy(random_vae(k, quick))
    parameters = [layer.mean.weight, layer.var["weight"]]
    n = layer.mean.weight.shape[0] * layer.mean.weight.shape[1]

    def ours():
        with autocast(precision, CPU):
            value = layer.kl()
        return torch.autograd.grad(value, parameters)

    return Comparison(
        f"KL of {n} {k}x{k} kernels, {f'{kl_kernels} drawn' if kl_kernels else precision}",
        ours,
        lambda: torch.autograd.grad(textbook.layer_kl(layer, textbook_vae), parameters),
        precision,
    )


def compare_points(quick: bool) -> Comparison:
    """The exact KL of conv2 with `models.layers.through_points`, and in the textbook's place without it.

    Without it the VAE's transposed convolution of 3x3 maps is direct, and everything else is as in ours.
    """
    layer = random_bnn(quick).features.conv2
    decoder = layer.prior.decoder.decoder  # a convolution of 1x1 maps, then transposed ones of 1x1 and of 3x3 maps
    decoder[4].__class__ = nn.ConvTranspose2d  # with the same parameters
    parameters = [layer.mean.weight, layer.var["weight"]]

    def direct():
        keep_freed_memory()  # as ours does
        return torch.autograd.grad(layer.kl(), parameters)

    return Comparison("exact KL with products at points, and direct", compare_kl(5, quick).ours, direct)


def compare_step(quick: bool) -> Comparison:
    """A step of train-bnn.py on 50 images."""
    net = random_bnn(quick)
    textbook_net = textbook.textbook_copy(net)
    textbook_vaes = [textbook.textbook_copy(random_vae(k, quick)) for k in (7, 5)]
    optimizer, textbook_optimizer = adam_pair(net, textbook_net)
    x, y = random_images(50).batch(slice(None))

    def ours():
        loss = 50 * F.cross_entropy(net(x), y) + kl(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Comparison(
        "training step, 50 images",
        ours,
        lambda: textbook.bnn_step(textbook_net, textbook_vaes, textbook_optimizer, x, y),
    )


def compare_evaluation(quick: bool) -> Comparison:
    """An evaluation of train-bnn.py."""
    net, data = random_bnn(quick).eval(), random_images(50 if quick else 10000)
    textbook_net, textbook_data = textbook.textbook_copy(net), textbook.ImageDataset(*data)

    def ours():
        set_mode(net, "det")
        predict(lambda x, _: net(x), data, len(data.labels))
        set_mode(net, "stoch")
        logits = predict(lambda x, generator: net.sample_logits(x, SAMPLES, generator), data, len(data.labels))
        F.log_softmax(torch.cat(logits, 1), 2).logsumexp(0)

    return Comparison(
        f"evaluation, {len(data.labels)} images, {SAMPLES} samples",
        ours,
        lambda: textbook.evaluate(textbook_net, textbook_data, SAMPLES),
    )


def compare_vae_epoch(k: int, n: int, quick: bool) -> Comparison:
    """An epoch of train-vae.py on n random kernels."""
    n = 64 if quick else n
    model = random_vae(k, quick).requires_grad_(True)
    textbook_model = textbook.textbook_copy(model)
    optimizer, textbook_optimizer = adam_pair(model, textbook_model)
    kernels = 0.05 * torch.randn(n, 1, k, k)

    def ours():
        for index in torch.randperm(n).split(128):
            optimizer.zero_grad()
            (-model.elbo(kernels[index]).elbo.mean()).backward()
            optimizer.step()

    return Comparison(
        f"VAE epoch, {n} {k}x{k} kernels",
        ours,
        lambda: textbook.vae_epoch(textbook_model, textbook_optimizer, kernels),
    )


def compare_net_epoch(widths: tuple[int, int], n: int, quick: bool, precision: str = "fp32") -> Comparison:
    """An epoch of train-net.py on n images in batches of 256, for a network of these widths."""
    widths, n = (TINY_WIDTHS, 300) if quick else (widths, n)
    net, data = FConv("vanilla", widths), random_images(n)
    textbook_net, textbook_data = textbook.textbook_copy(net), textbook.ImageDataset(*data)
    optimizer, textbook_optimizer = adam_pair(net, textbook_net)

    def ours():
        for index in torch.randperm(n).split(256):
            x, y = data.batch(index)
            with autocast(precision, CPU):
                loss = F.cross_entropy(net(x), y) + 0.001 * sum(p.square().sum() for p in net.features.parameters())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return Comparison(
        f"source network {widths[0]}/{widths[1]}, {n} images, {precision}",
        ours,
        lambda: textbook.net_epoch(textbook_net, textbook_optimizer, textbook_data),
        precision,
    )


# Functions of `quick`, which makes everything tiny, in the order of the table.
COMPARISONS: list[Callable[[bool], Comparison]] = [
    lambda quick: compare_kl(7, quick),
    lambda quick: compare_kl(5, quick),
    lambda quick: compare_kl(5, quick, precision="bf16"),
    lambda quick: compare_kl(5, quick, kl_kernels=4 if quick else 512),
    compare_points,
    compare_step,
    compare_evaluation,
    lambda quick: compare_vae_epoch(7, 1769, quick),
    lambda quick: compare_vae_epoch(5, 8192, quick),
    lambda quick: compare_net_epoch((256, 512), 256, quick, precision="bf16"),
    lambda quick: compare_net_epoch((16, 32), 60000, quick),
]


def flop_rates(quick: bool) -> tuple[float, float, float]:
    """GFLOP/s in fp32 of the exact KL of conv2, of a large convolution, and of a large matrix product.

    The operations of the KL are those of the textbook's direct convolutions; ours needs fewer for the same value.
    """
    exact_kl = compare_kl(5, quick)
    size = 64 if quick else 2048
    a, b = torch.rand(2, size, size)
    # As many channels as the VAE has, on maps so large that borders and the cost of a call do not matter.
    shape = (2, 128, 8, 8) if quick else (32, 128, 32, 32)
    x = torch.rand(shape).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.rand(128, 128, 3, 3).to(memory_format=torch.channels_last)

    def convolution():
        y = F.conv2d(x, weight, padding=1)
        torch.autograd.grad(y, x, y)

    def product():
        return a @ b

    def rate(timed: Callable[[], object], counted: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter:
            counted()
        times = [wall_time(timed) for _ in range(1 if quick else 8)][-7:]
        return counter.get_total_flops() / statistics.median(times) / 1e9

    keep_freed_memory()
    return rate(exact_kl.ours, exact_kl.textbook), rate(convolution, convolution), rate(product, product)

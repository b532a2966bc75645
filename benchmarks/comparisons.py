"""The computations that `python -m benchmarks` measures, by this code and by the textbook's."""

import statistics
import timeit
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18

from benchmarks import textbook
from benchmarks.measure import Comparison
from benchmarks.textbook import ImageDataset, take_step, textbook_copy
from models.bayes import Mode, bayesian_layers, bayesianize, kl, set_mode
from models.build import build_vae
from models.fconv import FConv
from models.priors import DeepWeightPrior
from models.vae import KernelVAE
from runs.device import autocast, keep_freed_memory
from utils import DataSet, predict, predict_log_probs

SAMPLES = 10  # in the ensemble
CPU = torch.device("cpu")
WIDTHS = (32, 128)  # channels of the README's Bayesian network
TINY_WIDTHS = (2, 4)  # of every network with `quick`


def random_vae(k: int, quick: bool = False) -> KernelVAE:
    """The README's VAE of 7x7 or 5x5 kernels, data/fconv's of 3x3: frozen, random weights, narrow with `quick`."""
    torch.manual_seed(k)
    z_dim, hidden_dim = {7: (2, 32), 5: (4, 64), 3: (2, 16)}[k]
    return build_vae(k, z_dim, 4 if quick else hidden_dim).eval().requires_grad_(False)


def dwp_network(vaes: Sequence[KernelVAE], kl_kernels: int = 0, widths: Sequence[int] = WIDTHS) -> FConv:
    """The README's Bayesian network, random, under the deep weight priors of VAEs of 7x7 and 5x5 kernels."""
    torch.manual_seed(0)
    net = FConv("bayes", widths)
    for layer, vae in zip((net.features.conv1, net.features.conv2), vaes, strict=True):
        layer.prior = DeepWeightPrior(vae, kernels=kl_kernels)
    return net


def random_bnn(quick: bool = False, kl_kernels: int = 0) -> FConv:
    """`dwp_network` of `random_vae`s; a narrow one with `quick`."""
    return dwp_network([random_vae(k, quick) for k in (7, 5)], kl_kernels, TINY_WIDTHS if quick else WIDTHS)


def random_images(n: int) -> DataSet:
    """n random images and labels in MNIST's shape."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return DataSet(pixels, torch.randint(10, (n,), generator=generator))


def bnn_step(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A step of train-bnn.py on images x with labels y, which are the whole data set."""
    optimizer = Adam(net.parameters())
    return lambda: take_step(optimizer, len(x) * F.cross_entropy(net(x), y) + kl(net))


def compare_kl(quick: bool, k: int, kl_kernels: int = 0, precision: str = "fp32") -> Comparison:
    """Value and gradients of the KL of the conv layer with k x k kernels; with `kl_kernels`, ours draws that many."""
    drawn = min(kl_kernels, 4) if quick else kl_kernels
    features = random_bnn(quick, drawn).features
    layer, vae = features.conv1 if k == 7 else features.conv2, textbook_copy(random_vae(k, quick))
    parameters = [layer.mean.weight, layer.var["weight"]]

    def ours():
        with autocast(precision, CPU):
            value = layer.kl()
        return torch.autograd.grad(value, parameters)

    name = f"KL of {parameters[0].shape[:2].numel()} {k}x{k} kernels, {f'{drawn} drawn' if drawn else precision}"
    return Comparison(name, ours, lambda: torch.autograd.grad(textbook.layer_kl(layer, vae), parameters), precision)


def compare_points(quick: bool) -> Comparison:
    """The exact KL of conv2, ours with `models.layers.through_points` and, in the textbook's place, without it."""
    layer = random_bnn(quick).features.conv2
    decoder = layer.prior.decoder.decoder  # a convolution of 1x1 maps, then transposed ones of 1x1 and of 3x3 maps
    decoder[4].__class__ = nn.ConvTranspose2d  # a direct convolution, with the same parameters

    def direct():
        keep_freed_memory()  # as ours does
        return torch.autograd.grad(layer.kl(), [layer.mean.weight, layer.var["weight"]])

    return Comparison("exact KL with products at points, and direct", compare_kl(quick, 5).ours, direct)


def compare_step(quick: bool) -> Comparison:
    """A step of train-bnn.py on 50 images."""
    net, batch = random_bnn(quick), random_images(50).batch(slice(None))
    textbook_net, vaes = textbook_copy(net), [textbook_copy(random_vae(k, quick)) for k in (7, 5)]
    theirs = partial(textbook.bnn_step, textbook_net, vaes, Adam(textbook_net.parameters()), *batch)
    return Comparison("training step, 50 images", bnn_step(net, *batch), theirs)


def compare_evaluation(quick: bool) -> Comparison:
    """An evaluation of train-bnn.py."""
    net, data = random_bnn(quick).eval(), random_images(50 if quick else 10000)
    n = len(data.labels)

    def ours():
        set_mode(net, "det")
        predict(lambda x, _: net(x), data, n)
        set_mode(net, "stoch")
        logits = predict(lambda x, generator: net.sample_logits(x, SAMPLES, generator), data, n)
        F.log_softmax(torch.cat(logits, 1), 2).logsumexp(0)

    theirs = partial(textbook.evaluate, textbook_copy(net), ImageDataset(*data), SAMPLES)
    return Comparison(f"evaluation, {n} images, {SAMPLES} samples", ours, theirs)


def compare_draws(quick: bool) -> Comparison:
    """Predictions by draws of the weights and, in the textbook's place, of the pre-activations; both are ours."""
    net, data = random_bnn(quick).eval(), random_images(50 if quick else 10000)
    n = len(data.labels)

    def by(mode: Mode) -> Callable[[], Tensor]:
        return lambda: predict_log_probs(net, data, mode, SAMPLES, n)

    return Comparison(f"{n} images, {SAMPLES} draws: noise, weights", by("weights"), by("stoch"))


def compare_own_network(quick: bool) -> Comparison:
    """The KL of a Bayesian resnet18 with its gradients and, in the textbook's place, a whole step; both are ours."""
    torch.manual_seed(0)
    images, kernels, side = (2, 4, 32) if quick else (32, 4096, 224)
    vaes = {k: random_vae(k, quick) for k in (3, 7)}
    net = bayesianize(resnet18(num_classes=3), vaes, kernels=kernels)
    weights = [p for layer in bayesian_layers(net) for p in (layer.mean.weight, layer.var["weight"])]
    x, y = torch.rand(images, 3, side, side), torch.arange(images) % 3
    name = f"resnet18, kernels={kernels}: step, its KL"
    return Comparison(name, lambda: torch.autograd.grad(kl(net), weights), bnn_step(net, x, y))


def compare_vae_epoch(quick: bool, k: int, n: int) -> Comparison:
    """An epoch of train-vae.py on n random kernels."""
    n = 64 if quick else n
    vae = random_vae(k, quick).requires_grad_(True)
    optimizer, textbook_vae = Adam(vae.parameters()), textbook_copy(vae)
    kernels = 0.05 * torch.randn(n, 1, k, k)

    def ours():
        for index in torch.randperm(n).split(128):
            take_step(optimizer, -vae.elbo(kernels[index]).elbo.mean())

    theirs = partial(textbook.vae_epoch, textbook_vae, Adam(textbook_vae.parameters()), kernels)
    return Comparison(f"VAE epoch, {n} {k}x{k} kernels", ours, theirs)


def compare_net_epoch(quick: bool, widths: tuple[int, int], n: int, precision: str = "fp32") -> Comparison:
    """An epoch of train-net.py on n images in batches of 256, for a network of these widths."""
    widths, n = (TINY_WIDTHS, 300) if quick else (widths, n)
    net, data = FConv("vanilla", widths), random_images(n)
    optimizer, textbook_net = Adam(net.parameters()), textbook_copy(net)

    def ours():
        for index in torch.randperm(n).split(256):
            x, y = data.batch(index)
            with autocast(precision, CPU):
                loss = F.cross_entropy(net(x), y) + 0.001 * sum(p.square().sum() for p in net.features.parameters())
            take_step(optimizer, loss)

    theirs = partial(textbook.net_epoch, textbook_net, Adam(textbook_net.parameters()), ImageDataset(*data))
    return Comparison(f"source network {widths[0]}/{widths[1]}, {n} images, {precision}", ours, theirs, precision)


# Functions of `quick`, which makes everything tiny, in the order of the table.
COMPARISONS: list[Callable[[bool], Comparison]] = [
    partial(compare_kl, k=7),
    partial(compare_kl, k=5),
    partial(compare_kl, k=5, precision="bf16"),
    partial(compare_kl, k=5, kl_kernels=512),
    compare_points,
    compare_step,
    compare_evaluation,
    compare_draws,
    compare_own_network,
    partial(compare_vae_epoch, k=7, n=1769),
    partial(compare_vae_epoch, k=5, n=8192),
    partial(compare_net_epoch, widths=(256, 512), n=256, precision="bf16"),
    partial(compare_net_epoch, widths=(16, 32), n=60000),
]


def flop_rates(quick: bool) -> tuple[float, float, float]:
    """GFLOP/s in fp32 of the exact KL of conv2, of a large convolution, and of a large matrix product.

    The operations of the KL are those of the textbook's direct convolutions; ours needs fewer for the same value.
    """
    exact_kl = compare_kl(quick, 5)
    a, b = torch.rand(2, *[64 if quick else 2048] * 2)
    # As many channels as the VAE has, on maps so large that borders and the cost of a call do not matter.
    shape = (2, 128, 8, 8) if quick else (32, 128, 32, 32)
    x = torch.rand(shape).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.rand(128, 128, 3, 3).to(memory_format=torch.channels_last)

    def convolution():
        y = F.conv2d(x, weight, padding=1)
        torch.autograd.grad(y, x, y)

    def rate(timed: Callable[[], object], counted: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter:
            counted()
        times = timeit.repeat(timed, number=1, repeat=1 if quick else 8)[-7:]
        return counter.get_total_flops() / statistics.median(times) / 1e9

    keep_freed_memory()
    return rate(exact_kl.ours, exact_kl.textbook), rate(convolution, convolution), rate(lambda: a @ b, lambda: a @ b)

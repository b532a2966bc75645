"""This project's computations as a textbook writes them: the baseline of the benchmarks.

NCHW layout, torch's own ELU, `torch.distributions`, one pass over all kernels, a DataLoader that loads images and
kernels one by one, and an evaluation that repeats the full pass for each sample.
"""

import copy

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from models.bayes import BayesConv2d
from models.layers import ELU, Conv2d, ConvTranspose2d
from models.vae import KernelVAE


def textbook_copy(module: nn.Module) -> nn.Module:
    """A copy of a module in NCHW layout, with torch's own layers in place of those of `models.layers`."""
    module = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ELU):
                setattr(parent, name, nn.ELU())
            elif isinstance(child, Conv2d | ConvTranspose2d):
                child.__class__ = type(child).__base__  # torch's own class, with the same parameters
    return module


class ImageDataset(Dataset):
    """Grey images (n, 1, h, w) of uint8 and labels (n,), one by one through PIL, as in torchvision's MNIST."""

    def __init__(self, images: Tensor, labels: Tensor):
        from torchvision.transforms.functional import to_tensor  # takes seconds, so only for a row that needs it

        self.images, self.labels, self.to_tensor = images, labels, to_tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.to_tensor(Image.fromarray(self.images[i, 0].numpy())), int(self.labels[i])


def negative_elbo(vae: KernelVAE, w: Tensor) -> Tensor:
    """The sum of the negative ELBOs of kernels w (n, 1, k, k), with one z each, in nats."""
    z_mean, z_variance = vae.encode(w)
    r = Normal(z_mean, z_variance.sqrt())
    w_mean, w_variance = vae.decode(r.rsample())
    return kl_divergence(r, Normal(0.0, 1.0)).sum() - Normal(w_mean, w_variance.sqrt()).log_prob(w).sum()


def dwp_kl(vae: KernelVAE, mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL_aux of kernels with these posterior moments, each (n, 1, k, k), in one pass: a scalar in nats."""
    q = Normal(mean, (0.5 * log_variance).exp())
    return negative_elbo(vae, q.rsample()) - q.entropy().sum()


def layer_kl(layer: BayesConv2d, vae: KernelVAE) -> Tensor:
    """KL_aux of a Bayesian conv under the deep weight prior of a VAE: a scalar in nats."""
    k = vae.kernel_dim
    return dwp_kl(vae, layer.mean.weight.reshape(-1, 1, k, k), layer.var["weight"].reshape(-1, 1, k, k))


def pre_activations(layer: BayesConv2d | nn.Conv2d, x: Tensor, sample: bool) -> Tensor:
    """Pre-activations of a conv for inputs x; of a Bayesian one sampled by local reparameterization, or their means."""
    if isinstance(layer, nn.Conv2d):
        return layer(x)
    m = layer.mean(x)
    if not sample:
        return m
    v = F.conv2d(x**2, layer.var["weight"].exp())
    return Normal(m, (v + 1e-12).sqrt()).rsample()


def forward(net: nn.Module, x: Tensor, sample: bool = True) -> Tensor:
    """Logits (n, n_classes) of an fconv for images x (n, 1, 28, 28)."""
    for layer in (net.features.conv1, net.features.conv2):
        x = F.max_pool2d(F.leaky_relu(pre_activations(layer, x, sample), 0.01), 2)
    return net.classifier(x.flatten(1))


def evaluate(net: nn.Module, data: Dataset, samples: int) -> Tensor:
    """Accuracies (3,) of mean network, one sample and ensemble, in `samples` + 2 passes over the data."""
    loader = DataLoader(data, batch_size=500)
    passes = []
    with torch.no_grad():
        for sample in (False, *[True] * (samples + 1)):
            passes.append(torch.cat([F.softmax(forward(net, x, sample), 1) for x, _ in loader]))
    labels = torch.cat([y for _, y in loader])
    predictions = (passes[0], passes[1], torch.stack(passes[2:]).mean(0))
    return torch.stack([(p.argmax(1) == labels).float().mean() for p in predictions])


def take_step(optimizer: Optimizer, loss: Tensor) -> None:
    """One step of the optimizer on a loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def bnn_step(net: nn.Module, vaes: list[KernelVAE], optimizer: Optimizer, x: Tensor, y: Tensor) -> None:
    """One step on the objective of a Bayesian fconv whose data set is one batch."""
    layers = (net.features.conv1, net.features.conv2)
    kl = sum(layer_kl(layer, vae) for layer, vae in zip(layers, vaes, strict=True))
    take_step(optimizer, len(x) * F.cross_entropy(forward(net, x), y) + kl)


def vae_epoch(vae: KernelVAE, optimizer: Optimizer, kernels: Tensor) -> None:
    """One epoch of a VAE in batches of 128 kernels."""
    for w in DataLoader(kernels, batch_size=128, shuffle=True):
        take_step(optimizer, negative_elbo(vae, w) / len(w))


def net_epoch(net: nn.Module, optimizer: Optimizer, data: Dataset) -> None:
    """One epoch of a source network in batches of 256 images."""
    for x, y in DataLoader(data, batch_size=256, shuffle=True):
        l2 = sum(p.pow(2).sum() for p in net.features.parameters())
        take_step(optimizer, F.cross_entropy(forward(net, x), y) + 0.001 * l2)

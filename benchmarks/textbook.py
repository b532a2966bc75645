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
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_tensor

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
            for ours, torch_class in ((Conv2d, nn.Conv2d), (ConvTranspose2d, nn.ConvTranspose2d)):
                if isinstance(child, ours):
                    child.__class__ = torch_class  # with the same parameters
    return module


class ImageDataset(Dataset):
    """Grey images (n, 1, h, w) of uint8 and labels (n,), one by one through PIL, as in torchvision's MNIST."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return to_tensor(Image.fromarray(self.images[i, 0].numpy(), mode="L")), int(self.labels[i])


class KernelDataset(Dataset):
    """Kernels (n, 1, k, k), one by one."""

    def __init__(self, kernels: Tensor):
        self.kernels = kernels

    def __len__(self) -> int:
        return len(self.kernels)

    def __getitem__(self, i: int) -> Tensor:
        return self.kernels[i]


def dwp_kl(vae: KernelVAE, mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL_aux of kernels with these posterior moments, each (n, 1, k, k), in one pass: a scalar in nats."""
    q = Normal(mean, (0.5 * log_variance).exp())
    w = q.rsample()
    z_mean, z_variance = vae.encode(w)
    r = Normal(z_mean, z_variance.sqrt())
    w_mean, w_variance = vae.decode(r.rsample())
    cross_entropy = kl_divergence(r, Normal(0.0, 1.0)).sum() - Normal(w_mean, w_variance.sqrt()).log_prob(w).sum()
    return cross_entropy - q.entropy().sum()


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
    for i in (1, 2):
        x = pre_activations(getattr(net.features, f"conv{i}"), x, sample)
        x = F.max_pool2d(F.leaky_relu(x, 0.01), 2)
    return net.classifier(x.flatten(1))


def evaluate(net: nn.Module, data: Dataset, samples: int, batch: int = 500) -> Tensor:
    """Accuracies (3,) of mean network, one sample and ensemble, in `samples` + 2 passes over the data."""
    loader = DataLoader(data, batch_size=batch)
    passes = []
    with torch.no_grad():
        for sample in (False, *[True] * (samples + 1)):
            passes.append(torch.cat([F.softmax(forward(net, x, sample), 1) for x, _ in loader]))
    labels = torch.cat([y for _, y in loader])
    predictions = (passes[0], passes[1], torch.stack(passes[2:]).mean(0))
    return torch.stack([(p.argmax(1) == labels).float().mean() for p in predictions])


def bnn_step(net: nn.Module, vaes: list[KernelVAE], optimizer, x: Tensor, y: Tensor) -> Tensor:
    """One step on the objective of a Bayesian fconv whose data set is one batch; returns the loss in nats."""
    loss = len(x) * F.cross_entropy(forward(net, x), y)
    loss = loss + sum(layer_kl(getattr(net.features, f"conv{i}"), vae) for i, vae in enumerate(vaes, 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def vae_epoch(vae: KernelVAE, optimizer, kernels: Tensor, batch: int = 128) -> float:
    """One epoch of a VAE; returns the mean ELBO in nats per kernel."""
    total = 0.0
    for w in DataLoader(KernelDataset(kernels), batch_size=batch, shuffle=True):
        z_mean, z_variance = vae.encode(w)
        r = Normal(z_mean, z_variance.sqrt())
        w_mean, w_variance = vae.decode(r.rsample())
        elbo = Normal(w_mean, w_variance.sqrt()).log_prob(w).sum() - kl_divergence(r, Normal(0.0, 1.0)).sum()
        optimizer.zero_grad()
        (-elbo / len(w)).backward()
        optimizer.step()
        total += elbo.item()
    return total / len(kernels)


def net_step(net: nn.Module, optimizer, x: Tensor, y: Tensor, l2: float = 0.001) -> Tensor:
    """One step of a source network; returns the loss."""
    loss = F.cross_entropy(forward(net, x), y) + l2 * sum(p.pow(2).sum() for p in net.features.parameters())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def net_epoch(net: nn.Module, optimizer, data: Dataset, batch: int = 256) -> float:
    """One epoch of a source network; returns the last loss."""
    for x, y in DataLoader(data, batch_size=batch, shuffle=True):
        loss = net_step(net, optimizer, x, y).item()
    return loss

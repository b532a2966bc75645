"""The entries of `torch.hub.load(<folder or repository>, NAME)`: the shipped VAEs, and the prior on any network.

import torch

prior = torch.hub.load(folder, "deep_weight_prior", 7, source="local")  # of a `models.bayes.BayesConv2d`
net = torch.hub.load(folder, "bayesianize", torchvision.models.resnet18(), source="local")

A program that has imported its own module `utils` gets an ImportError, because Python keeps one module of each name.
"""

from os.path import realpath as _realpath
from typing import Any

from torch import nn

import utils as _utils
from models import bayes as _bayes
from models.priors import DeepWeightPrior
from models.vae import KernelVAE
from runs.directory import ROOT

_found = str(getattr(_utils, "__file__", None))  # a folder without __init__.py is a module without a file
if _realpath(_found) != str(ROOT / "utils.py"):
    raise ImportError(f"utils: found {_found}, expected {ROOT / 'utils.py'}: give yours another name")

dependencies = ["torch", "numpy", "yaml", "filelock", "tqdm", "zuko"]
SIZES = (7, 5, 3)  # of the kernels of the shipped VAEs


def _shipped_vae(k: int) -> KernelVAE:
    return _utils.load_vae(ROOT / "data" / "fconv" / f"vae{k}x{k}")


def vae7x7() -> KernelVAE:
    """The shipped VAE of 7x7 kernels, frozen."""
    return _shipped_vae(7)


def vae5x5() -> KernelVAE:
    """The shipped VAE of 5x5 kernels, frozen."""
    return _shipped_vae(5)


def vae3x3() -> KernelVAE:
    """The shipped VAE of 3x3 kernels, frozen."""
    return _shipped_vae(3)


def deep_weight_prior(kernel_dim: int, **options: Any) -> DeepWeightPrior:
    """The deep weight prior of the shipped VAE of kernel_dim x kernel_dim kernels; `options` as of the class."""
    return DeepWeightPrior(_shipped_vae(kernel_dim), **options)


def bayesianize(net: nn.Module, **options: Any) -> nn.Module:
    """`models.bayes.bayesianize` with the shipped VAEs of 7x7, 5x5 and 3x3 kernels; `options` as of that function."""
    return _bayes.bayesianize(net, {k: _shipped_vae(k) for k in SIZES}, **options)

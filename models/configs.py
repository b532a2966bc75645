"""Tables of priors, initializations, networks, VAEs and data sets by name, with their needs and builders.

A name is registered here once, as a row of a table. Classes and functions are given as "module:name" and imported at
their first use. So this file does not import torch, and errors in arguments appear at once.
"""

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


def imported(name: str) -> Any:
    """The class or function that "module:name" names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Choice(NamedTuple):
    """A prior, or an initialization, of a conv layer.

    builds : "module:name" of the class or function to call with the objects in `needs` and the arguments in `options`.
    needs : names of `SOURCES`; the option `<name>_list` of each must have an entry for the layer.
    options : for each further argument of the builder, the command-line option that gives its value.
    """

    builds: str
    needs: tuple[str, ...] = ()
    options: Mapping[str, str] = {}


# Files that an initialization or a prior may need; the option `<name>_list` gives one path per conv layer.
SOURCES = {"vae": "VAE", "flow": "flow", "filters": "npy file of kernels"}

SAMPLED = {"samples": "dwp_samples", "kernels": "kl_kernels"}  # options of every prior with a sampled KL

PRIORS: dict[str, Choice] = {
    "sn": Choice("models.priors:NormalPrior", options={"scale": "lamb"}),
    "sn-mc": Choice("models.priors:SampledNormalPrior", options={"scale": "lamb", **SAMPLED}),
    "loguniform": Choice("models.priors:LogUniformPrior", options={"truncated": "truncated"}),
    "vae": Choice(
        "models.priors:DeepWeightPrior",
        needs=("vae",),
        options={**SAMPLED, "reverse": "reverse", "bound": "bound", "iwae_samples": "iwae_samples"},
    ),
    "flow": Choice("models.priors:FlowPrior", needs=("flow",), options=SAMPLED),
    "gauss": Choice("models.priors:GaussPrior", needs=("filters",)),
    "no": Choice("models.priors:NoPrior"),
}

INITS: dict[str, Choice] = {
    "xavier": Choice(""),  # the initial state of every layer, so it has no builder
    "vae": Choice("models.build:decoded_kernels", needs=("vae",)),
    "vae-qmc": Choice("models.build:evenly_decoded_kernels", needs=("vae",)),
    "flow": Choice("models.build:flow_kernels", needs=("flow",)),
    "filters": Choice("models.build:real_kernels", needs=("filters",)),
    "recon": Choice("models.build:reconstructed_kernels", needs=("vae", "filters")),
    "pretrained": Choice(""),  # one file fills the whole network, so no layer has a builder
}

# The VAEs by kernel size.
VAES: dict[int, str] = {
    3: "models.vae:VAE3x3",
    5: "models.vae:VAE5x5",
    7: "models.vae:VAE7x7",
    16: "models.vae:VAE16x16",
}

# The data sets; each function takes the folder of data sets and returns the training and the test part.
DATA_SETS: dict[str, str] = {
    "mnist": "data.mnist:load",
    "not-mnist": "data.not_mnist:load",
    "not-mnist5": "data.not_mnist:letters_a_to_e",
    "not-mnist5-rest": "data.not_mnist:letters_f_to_j",
    "cifar": "data.colour:cifar",
    "cifar100": "data.colour:cifar100",
    "svhn": "data.colour:svhn",
    "cifar5": "data.colour:cifar5",
    "cifar5-rest": "data.colour:cifar5_rest",
}


N_CLASSES = {"cifar100": 100}  # of a data set; the others have 10, or fewer of 10


class NetConfig(NamedTuple):
    """A configuration of a model, chosen by the option `net_cfg`.

    bayesian : for each conv in order, whether it is Bayesian.
    truncated : whether the posterior's variance is alpha * mean^2 with alpha in (0, 1), not free ("mtrunca").
    dropout : whether the network has dropout ("do").
    hidden : False if the classifier omits its hidden layer ("nofc"); without effect in models that have none.
    """

    bayesian: tuple[bool, ...]
    truncated: bool
    dropout: bool
    hidden: bool


class Model(NamedTuple):
    """A network: its class, and its layers up to the classifier.

    builds : "module:name" of the subclass of `models.network.ConvNet`.
    image_shape : channels, height and width of the images.
    kernel_sizes : of the convs, in order.
    pools : for each conv, whether a 2x2 max-pool follows.
    net_cfgs : names of the configurations.
    batch_norm : whether a batch norm follows each conv.
    channels : of the convs at `model_size` 1; empty where `hid_dim` gives them.
    scaled : how many of these channels, from the first on, `model_size` multiplies.
    """

    builds: str
    image_shape: tuple[int, int, int]
    kernel_sizes: tuple[int, ...]
    pools: tuple[bool, ...]
    net_cfgs: tuple[str, ...]
    batch_norm: bool = False
    channels: tuple[int, ...] = ()
    scaled: int = 0

    @property
    def least_batch(self) -> int:
        """Images in the smallest batch that the network can be trained on: a batch norm needs a variance."""
        return 2 if self.batch_norm else 1

    def config(self, net_cfg: str) -> NetConfig:
        """The configuration of this name: "bayes" has a digit per conv, 1 for Bayesian, or no digits for all convs."""
        digits = re.sub(r"\D", "", net_cfg) or "1" * len(self.kernel_sizes)
        bayesian = tuple(net_cfg.startswith("bayes") and digit == "1" for digit in digits)
        return NetConfig(bayesian, "trunca" in net_cfg, net_cfg.endswith("-do"), not net_cfg.endswith("-nofc"))

    def sides(self) -> tuple[int, int]:
        """The number of an image's first rows (and columns) that the logits depend on, and the rows of the last map.

        A max-pool ignores the last row and column of a map of odd size, so the logits do not depend on the last pixels.
        With a batch norm, whose mean includes every pixel, the logits depend on all of them.
        """
        layers = list(zip(self.kernel_sizes, self.pools, strict=True))
        last = self.image_shape[1]
        for k, pool in layers:
            last = (last - k + 1) // (2 if pool else 1)
        used = last
        for k, pool in reversed(layers):
            used = used * (2 if pool else 1) + k - 1
        return self.image_shape[1] if self.batch_norm else used, last

    def widths(self, hid_dim: Sequence[int], model_size: float) -> list[int]:
        """The channels of the convs: `hid_dim`, or those of this network at that `model_size`, rounded down."""
        if not self.channels:
            return list(hid_dim)
        return [int(c * model_size) if i < self.scaled else c for i, c in enumerate(self.channels)]


MODELS: dict[str, Model] = {
    "fconv": Model(
        builds="models.fconv:FConv",
        image_shape=(1, 28, 28),
        kernel_sizes=(7, 5),
        pools=(True, True),
        net_cfgs=("vanilla", "vanilla-do", "bayes", "bayes-1-0", "bayes-mtrunca"),
    ),
    "fconv3x3": Model(
        builds="models.fconv:FConv",
        image_shape=(1, 28, 28),
        kernel_sizes=(3, 3, 3),
        pools=(True, True, False),
        net_cfgs=("vanilla", "bayes"),
    ),
    "cifarnet": Model(
        builds="models.cifarnet:CIFARNet",
        image_shape=(3, 32, 32),
        kernel_sizes=(7, 5, 5, 5),
        pools=(True, False, False, False),
        batch_norm=True,
        channels=(128, 256, 256, 512),
        scaled=3,
        net_cfgs=(
            *("vanilla", "bayes", "bayes1110", "bayes1100", "bayes1000"),
            *("bayes-mtrunca", "bayes1100-mtrunca", "bayes1000-mtrunca"),
        ),
    ),
    "cifarnetnew": Model(
        builds="models.cifarnet:CIFARNetNew",
        image_shape=(3, 32, 32),
        kernel_sizes=(7, 5, 5),
        pools=(True, False, False),
        channels=(128, 256, 256),
        scaled=3,
        net_cfgs=(
            *("vanilla", "vanilla-nofc", "vanilla-do", "bayes", "bayes111", "bayes111-nofc"),
            *("bayes110", "bayes100", "bayes100-nofc", "bayes111-mutrunca"),
        ),
    ),
    "cifarnet3x3": Model(
        builds="models.cifarnet:CIFARNetNew",
        image_shape=(3, 32, 32),
        kernel_sizes=(3, 3, 3),
        pools=(True, True, False),
        channels=(128, 256, 256),
        scaled=3,
        net_cfgs=("vanilla", "bayes"),
    ),
}

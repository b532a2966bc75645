"""What can be named on a command line, without importing torch: arguments are checked against this in an instant."""

import re
from typing import NamedTuple


class NetConfig(NamedTuple):
    """One `--net_cfg` of a model.

    bayesian : for each conv in order, whether it is Bayesian.
    truncated : whether the posterior's variance is alpha * mean^2 with alpha in (0, 1), not free ("mtrunca").
    dropout : whether there is dropout ("do").
    hidden : whether the classifier has its hidden layer, where the model has one (not with "nofc").
    """

    bayesian: tuple[bool, ...]
    truncated: bool
    dropout: bool
    hidden: bool


def parse_config(name: str, convs: int) -> NetConfig:
    """What a configuration's name spells: after "bayes" one digit per conv, 1 for Bayesian, or none for all convs."""
    digits = re.sub(r"\D", "", name) or "1" * convs
    bayesian = tuple(name.startswith("bayes") and digit == "1" for digit in digits)
    return NetConfig(bayesian, "trunca" in name, name.endswith("-do"), not name.endswith("-nofc"))


class Model(NamedTuple):
    """The layers of a network up to its classifier.

    image_shape : channels, height and width of the images.
    kernel_sizes : of the convs, in order.
    pools : for each conv, whether a 2x2 max-pool follows.
    batch_norm : whether a batch norm follows each conv.
    channels : of the convs at `model_size` 1; empty where `hid_dim` gives them.
    scaled : how many of these channels, from the first on, `model_size` multiplies.
    net_cfgs : names of the configurations.
    """

    image_shape: tuple[int, int, int]
    kernel_sizes: tuple[int, ...]
    pools: tuple[bool, ...]
    batch_norm: bool
    channels: tuple[int, ...]
    scaled: int
    net_cfgs: tuple[str, ...]

    def config(self, net_cfg: str) -> NetConfig:
        """The configuration of that name."""
        return parse_config(net_cfg, len(self.kernel_sizes))

    def used_side(self) -> int:
        """How many rows and columns of an image the logits depend on, from the first on.

        A max-pool leaves out the last row and column of an odd map, and with them pixels that nothing else sees. A
        batch norm sees them all in its mean.
        """
        if self.batch_norm:
            return self.image_shape[1]
        layers = list(zip(self.kernel_sizes, self.pools, strict=True))
        side = self.image_shape[1]
        for k, pool in layers:
            side = (side - k + 1) // (2 if pool else 1)
        for k, pool in reversed(layers):
            side = side * (2 if pool else 1) + k - 1
        return side

    def widths(self, model_size: float) -> list[int]:
        """The channels at that `model_size`."""
        return [round(c * model_size) if i < self.scaled else c for i, c in enumerate(self.channels)]


MODELS: dict[str, Model] = {
    "fconv": Model(
        image_shape=(1, 28, 28),
        kernel_sizes=(7, 5),
        pools=(True, True),
        batch_norm=False,
        channels=(),
        scaled=0,
        net_cfgs=("vanilla", "vanilla-do", "bayes", "bayes-1-0", "bayes-mtrunca"),
    ),
    "fconv3x3": Model(
        image_shape=(1, 28, 28),
        kernel_sizes=(3, 3, 3),
        pools=(True, True, False),
        batch_norm=False,
        channels=(),
        scaled=0,
        net_cfgs=("vanilla", "bayes"),
    ),
    "cifarnet": Model(
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
        image_shape=(3, 32, 32),
        kernel_sizes=(7, 5, 5),
        pools=(True, False, False),
        batch_norm=False,
        channels=(128, 256, 256),
        scaled=3,
        net_cfgs=(
            *("vanilla", "vanilla-nofc", "vanilla-do", "bayes111", "bayes111-nofc"),
            *("bayes110", "bayes100", "bayes100-nofc", "bayes111-mutrunca"),
        ),
    ),
}

# Kernel sizes that `models.vae` has a VAE for.
VAE_KERNEL_SIZES = (3, 5, 7, 16)

# Each prior and initialization of a conv layer, and the lists that must have an entry for that layer.
PRIOR_NEEDS: dict[str, tuple[str, ...]] = {
    "sn": (),
    "sn-mc": (),
    "loguniform": (),
    "vae": ("vae_list",),
    "flow": ("flow_list",),
    "gauss": ("filters_list",),
    "no": (),
}
INIT_NEEDS: dict[str, tuple[str, ...]] = {
    "xavier": (),
    "vae": ("vae_list",),
    "flow": ("flow_list",),
    "filters": ("filters_list",),
    "recon": ("vae_list", "filters_list"),
    "pretrained": (),
}

DATA_SETS = ("mnist", "not-mnist", "cifar", "cifar100", "svhn", "cifar5", "cifar5-rest")

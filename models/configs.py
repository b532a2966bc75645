"""What the networks look like, without importing torch: command lines are checked against this in an instant."""

from typing import NamedTuple


class NetConfig(NamedTuple):
    """One `--net_cfg` of a model: which conv layers are Bayesian, and whether it has dropout."""

    bayesian: tuple[bool, ...]
    dropout: bool = False


# Kernel sizes of the conv layers, in order.
KERNEL_SIZES: dict[str, tuple[int, ...]] = {"fconv": (7, 5)}

# The digits of a configuration's name say which convs are Bayesian.
NET_CONFIGS: dict[str, dict[str, NetConfig]] = {
    "fconv": {
        "vanilla": NetConfig((False, False)),
        "vanilla-do": NetConfig((False, False), dropout=True),
        "bayes": NetConfig((True, True)),
        "bayes-1-0": NetConfig((True, False)),
    }
}

# Kernel sizes that `models.vae` has a VAE for.
VAE_KERNEL_SIZES = (5, 7)

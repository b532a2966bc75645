"""The two-convolution network of the paper's MNIST experiments (Atanov et al. 2019, section 5.1), and a 3x3 one."""

from collections.abc import Sequence

from models.network import ConvNet


class FConv(ConvNet):
    """conv 7x7, LeakyReLU, max-pool, conv 5x5, LeakyReLU, max-pool, linear: 28x28 grey images to class logits.

    Parameters
    ----------
    net_cfg : which convs are Bayesian, and whether there is dropout before each max-pool (`models.configs`).
    hid_dim : channels of the two convs.
    n_classes : number of logits.
    do : the two dropout probabilities of "vanilla-do".
    options : `log_variance` and `bayesian_classifier` of `ConvNet`.
    """

    def __init__(
        self,
        net_cfg: str = "vanilla",
        hid_dim: Sequence[int] = (32, 64),
        n_classes: int = 10,
        do: Sequence[float] = (),
        **options,
    ):
        super().__init__("fconv", net_cfg, hid_dim, do, **options)
        self.classifier = self.linear(9 * hid_dim[1], n_classes)


class FConv3x3(ConvNet):
    """Three 3x3 convs, the kernels of today's networks: LeakyReLU after each, max-pool after the first two, linear.

    28x28 grey images to class logits. Parameters as of `FConv`, with three channels and without dropout.
    """

    def __init__(self, net_cfg: str = "vanilla", hid_dim: Sequence[int] = (32, 64, 64), n_classes: int = 10, **options):
        super().__init__("fconv3x3", net_cfg, hid_dim, **options)
        self.classifier = self.linear(9 * hid_dim[-1], n_classes)

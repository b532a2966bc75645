"""The networks of the paper's MNIST experiments (Atanov et al. 2019, section 5.1): convs and a linear classifier."""

from collections.abc import Sequence

from models.network import ConvNet


class FConv(ConvNet):
    """Convs with LeakyReLU and max-pools, then one linear layer: 28x28 grey images to class logits.

    The model "fconv" has the layers conv 7x7, max-pool, conv 5x5, max-pool. The model "fconv3x3" has three 3x3 convs,
    with a max-pool after each of the first two.

    Parameters
    ----------
    net_cfg : which convs are Bayesian, and whether dropout precedes each max-pool (`models.configs`).
    channels : of the convs (option `hid_dim`).
    n_classes : number of logits.
    model : "fconv" or "fconv3x3".
    options : `do`, `log_variance` and `bayesian_classifier` of `ConvNet`.
    """

    def __init__(
        self,
        net_cfg: str = "vanilla",
        channels: Sequence[int] = (32, 64),
        n_classes: int = 10,
        model: str = "fconv",
        **options,
    ):
        super().__init__(model, net_cfg, channels, **options)
        self.classifier = self.linear(self.feature_size, n_classes)

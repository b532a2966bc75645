"""The networks of the paper's MNIST experiments (Atanov et al. 2019, section 5.1): convs and a linear classifier."""

from torch import nn

from models.network import ConvNet


class FConv(ConvNet):
    """Convs with LeakyReLU and max-pools, then one linear layer: 28x28 grey images to class logits.

    The model "fconv" has the layers conv 7x7, max-pool, conv 5x5, max-pool. The model "fconv3x3" has three 3x3 convs,
    with a max-pool after each of the first two.
    """

    default_model = "fconv"

    def build_classifier(self, linear, inputs, n_classes) -> nn.Module:
        return linear(inputs, n_classes)

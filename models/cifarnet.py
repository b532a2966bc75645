"""The networks of the paper's experiments on 32x32 colour images (Atanov et al. 2019, section 5.2)."""

from collections import OrderedDict

from torch import nn

from models.network import ConvNet


class CIFARNet(ConvNet):
    """Four convs (7x7, then 5x5) down to one pixel, each with batch norm; a classifier with one hidden layer."""

    default_model = "cifarnet"

    def build_classifier(self, linear, inputs, n_classes) -> nn.Module:
        hidden = OrderedDict(fc1=linear(inputs, 512), bn1=nn.BatchNorm1d(512), relu1=nn.LeakyReLU(0.01))
        return nn.Sequential(hidden | {"linear": linear(512, n_classes)})


class CIFARNetNew(ConvNet):
    """Three convs without batch norm, and a hidden layer unless "nofc".

    The model "cifarnetnew" has a 7x7 conv and two of 5x5, down to 5x5 pixels. The model "cifarnet3x3", which is not the
    paper's, has three 3x3 convs, with a max-pool after each of the first two, down to 4x4 pixels.

    "vanilla-do" has dropout of 0.5 before the hidden layer and of 0.2 before the last.
    """

    default_model = "cifarnetnew"

    def build_classifier(self, linear, inputs, n_classes) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if self.config.dropout:
            layers["do1"] = nn.Dropout(0.5)
        if self.config.hidden:
            layers["fc1"] = linear(inputs, 512)
            layers["relu1"] = nn.LeakyReLU(0.01)
            inputs = 512
        if self.config.dropout:
            layers["do2"] = nn.Dropout(0.2)
        layers["linear"] = linear(inputs, n_classes)
        return nn.Sequential(layers)

"""The networks of the paper's experiments on 32x32 colour images (Atanov et al. 2019, section 5.2)."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from models.configs import MODELS
from models.network import ConvNet


class CIFARNet(ConvNet):
    """Four convs (7x7, then 5x5) down to one pixel, each with batch norm; a classifier with one hidden layer.

    Parameters
    ----------
    net_cfg : which convs are Bayesian (`models.configs`).
    channels : of the convs; option `model_size` is a factor of the first three of 128, 256, 256, 512.
    n_classes : number of logits.
    model : name in `models.configs.MODELS`.
    options : `log_variance` and `bayesian_classifier` of `ConvNet`.
    """

    def __init__(
        self,
        net_cfg: str = "vanilla",
        channels: Sequence[int] = MODELS["cifarnet"].channels,
        n_classes: int = 10,
        model: str = "cifarnet",
        **options,
    ):
        super().__init__(model, net_cfg, channels, **options)
        self.classifier = nn.Sequential(
            OrderedDict(
                fc1=self.linear(self.feature_size, 512),
                bn1=nn.BatchNorm1d(512),
                relu1=nn.LeakyReLU(0.01),
                linear=self.linear(512, n_classes),
            )
        )


class CIFARNetNew(ConvNet):
    """Three convs (7x7, then 5x5) without batch norm down to 5x5 pixels; a hidden layer unless "nofc".

    "vanilla-do" has dropout of 0.5 before the hidden layer and of 0.2 before the last. Parameters as of `CIFARNet`;
    `model_size` multiplies the channels 128, 256, 256 of every conv.
    """

    def __init__(
        self,
        net_cfg: str = "vanilla",
        channels: Sequence[int] = MODELS["cifarnetnew"].channels,
        n_classes: int = 10,
        model: str = "cifarnetnew",
        **options,
    ):
        super().__init__(model, net_cfg, channels, **options)
        inputs = self.feature_size
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if self.config.dropout:
            layers["do1"] = nn.Dropout(0.5)
        if self.config.hidden:
            layers["fc1"] = self.linear(inputs, 512)
            layers["relu1"] = nn.LeakyReLU(0.01)
            inputs = 512
        if self.config.dropout:
            layers["do2"] = nn.Dropout(0.2)
        layers["linear"] = self.linear(inputs, n_classes)
        self.classifier = nn.Sequential(layers)

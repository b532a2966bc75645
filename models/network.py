"""The base class of the networks: convs as in `models.configs`, then a classifier from the subclass."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from models.bayes import BayesConv2d, BayesLinear, sample_outputs
from models.configs import MODELS


class ConvNet(nn.Module):
    """`features`: per conv, in order, batch norm (where the model has it), LeakyReLU, dropout, max-pool.

    Without dropout the max-pool comes before the LeakyReLU; the result is the same. Pixels that no logit depends on are
    cut off first. Of fconv's 28 rows and columns these are 2, which saves 17% of the work of conv1 and 27% of conv2's.

    A subclass builds the classifier.

    Parameters
    ----------
    net_cfg : the model's configuration: which convs are Bayesian, and with which posterior.
    channels : of the convs, in order.
    n_classes : number of logits.
    model : a name in `models.configs.MODELS`, by default the subclass's own.
    do : dropout probability after each conv, or empty for no dropout.
    log_variance : initial log variance of the Bayesian layers.
    bayesian_classifier : whether the classifier's linear layers are Bayesian.
    """

    default_model: str

    def __init__(
        self,
        net_cfg: str,
        channels: Sequence[int],
        n_classes: int = 10,
        model: str = "",
        do: Sequence[float] = (),
        log_variance: float = -10.0,
        bayesian_classifier: bool = False,
    ):
        super().__init__()
        spec = MODELS[model or self.default_model]
        self.config = spec.config(net_cfg)
        self.image_shape = spec.image_shape
        self.used_side, last_side = spec.sides()
        bayes_conv = partial(BayesConv2d, log_variance=log_variance, truncated=self.config.truncated)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        shapes = zip((spec.image_shape[0], *channels), channels, spec.kernel_sizes, strict=False)
        for i, (shape, bayesian, pool) in enumerate(zip(shapes, self.config.bayesian, spec.pools, strict=True), 1):
            layers[f"conv{i}"] = (bayes_conv if bayesian else nn.Conv2d)(*shape)
            if spec.batch_norm:
                layers[f"bn{i}"] = nn.BatchNorm2d(shape[1])
            activation = {f"relu{i}": nn.LeakyReLU(0.01)}
            pooling = {f"mp{i}": nn.MaxPool2d(2)} if pool else {}
            if do:
                layers.update(activation | {f"do{i}": nn.Dropout(do[i - 1])} | pooling)
            else:  # LeakyReLU commutes with the max-pool. After the pool it has a quarter of the values.
                layers.update(pooling | activation)
        # CPUs and GPUs convolve and pool fastest in this layout. A state dict does not depend on the layout.
        self.features = nn.Sequential(layers).to(memory_format=torch.channels_last)
        linear = partial(BayesLinear, log_variance=log_variance) if bayesian_classifier else nn.Linear
        self.classifier = self.build_classifier(linear, channels[-1] * last_side**2, n_classes)

    def build_classifier(self, linear: Callable[[int, int], nn.Module], inputs: int, n_classes: int) -> nn.Module:
        """The module from flattened features (n, inputs) to logits (n, n_classes); `linear` makes its linear layers."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, n_classes) for images (n, channels, height, width) with pixels in [0, 1]."""
        return self.classifier(self.extract(x))

    def extract(self, x: Tensor) -> Tensor:
        """The classifier's inputs, flattened (n, features), for images x."""
        return self.features(self.used_pixels(x)).flatten(1)

    def used_pixels(self, x: Tensor) -> Tensor:
        """The part of the images x that the logits depend on. Raises ValueError for images of another shape."""
        if tuple(x.shape[1:]) != self.image_shape:  # cropped, larger images would pass as others
            raise ValueError(f"x: found images of {tuple(x.shape[1:])}, expected {self.image_shape}")
        return x[..., : self.used_side, : self.used_side]

    def sample_logits(self, x: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Logits (samples, n, n_classes) of `samples` draws, distributed as those of single calls in the mode "stoch".

        Noise and dropout come from `generator`, or from torch's global generator.
        """
        classifier = self.classifier if isinstance(self.classifier, nn.Sequential) else [self.classifier]
        layers = [*self.features, nn.Flatten(), *classifier]
        return torch.stack(list(sample_outputs(layers, self.used_pixels(x), samples, generator)))

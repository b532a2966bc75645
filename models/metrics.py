"""Scores of predicted probabilities: accuracy, NLL, calibration error and Brier score."""

import math

import torch.nn.functional as F
from torch import Tensor

BINS = 15  # of confidences, as Guo et al. 2017


def ensemble_log_probs(log_p: Tensor) -> Tensor:
    """Log of the mean over the first dimension of exp(log_p): (samples, n, n_classes) to (n, n_classes)."""
    return log_p.logsumexp(0) - math.log(len(log_p))


def scores(log_p: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of log probabilities (n, n_classes) for labels (n,), means over the images.

    "acc": share of images whose label has the largest probability. "nll": -log p(label), in nats. "ece": expected
    calibration error, |accuracy - confidence| of each of 15 bins of equal width, weighted by the bin's images (Guo et
    al. 2017, "On Calibration of Modern Neural Networks", eq. 3). "brier": sum over classes of (p - [class is the
    label])^2, from 0 to 2 (Brier 1950).
    """
    from torchmetrics.functional.classification import multiclass_calibration_error  # imports slowly

    p = log_p.exp().clamp(max=1)
    below_1 = p.clamp(max=1 - 1e-7)  # torchmetrics gives a confidence of 1 a bin of its own
    n_classes = p.shape[1]
    return {
        "acc": (log_p.argmax(1) == labels).float().mean().item(),
        "nll": F.nll_loss(log_p, labels).item(),
        "ece": multiclass_calibration_error(below_1, labels, n_classes, n_bins=BINS).item(),
        "brier": (p - F.one_hot(labels, n_classes)).square().sum(1).mean().item(),
    }


def entropy(log_p: Tensor) -> Tensor:
    """Entropy (...,) in nats of log probabilities (..., n_classes)."""
    return -(log_p.exp() * log_p.clamp(min=-1e4)).sum(-1)

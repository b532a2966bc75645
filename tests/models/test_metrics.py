"""Scores of predictions, against their formulas in numpy and against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from models.metrics import ensemble_log_probs, scores


@pytest.fixture
def predictions():
    torch.manual_seed(0)
    return torch.log_softmax(3 * torch.randn(500, 4), 1), torch.randint(4, (500,))


def test_scores(predictions):
    log_p, labels = predictions
    p, y = log_p.double().softmax(1).numpy(), labels.numpy()
    confidence, right = p.max(1), p.argmax(1) == y
    bins = np.ceil(confidence * 15)  # the bin (0, 1/15] is 1
    gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    # scikit-learn's Brier score is for two classes in older versions: the sum over one class against the rest.
    brier = sum(brier_score_loss(y == c, p[:, c]) for c in range(4))
    expected = {"acc": accuracy_score(y, p.argmax(1)), "nll": log_loss(y, p), "ece": sum(gaps), "brier": brier}
    assert scores(log_p, labels) == pytest.approx(expected, rel=1e-5)


def test_scores_of_certain_predictions():
    log_p = torch.tensor([[0.0, -200.0], [-200.0, 0.0]])
    assert scores(log_p, torch.tensor([0, 1])) == pytest.approx({"acc": 1, "nll": 0, "ece": 0, "brier": 0}, abs=1e-6)
    assert scores(log_p, torch.tensor([1, 0])) == pytest.approx({"acc": 0, "nll": 200, "ece": 1, "brier": 2})


def test_the_calibration_error_of_certain_and_nearly_certain_predictions():
    """Both are in the last of 15 bins, where 95 of 100 are right and the mean confidence is 0.975."""
    p = torch.tensor([1.0] * 50 + [0.95] * 50)
    labels = torch.tensor([0] * 45 + [1] * 5 + [0] * 50)
    log_p = torch.stack([p, 1 - p], 1).clamp(min=1e-30).log()
    assert scores(log_p, labels)["ece"] == pytest.approx(0.025, abs=1e-6)


def test_an_ensemble_is_the_mean_of_probabilities(predictions):
    log_p = torch.stack([predictions[0], predictions[0].flip(1)])
    torch.testing.assert_close(ensemble_log_probs(log_p).exp(), log_p.exp().mean(0))

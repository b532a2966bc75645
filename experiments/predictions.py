"""Predictions of finished runs, which are kept in files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.methods import Prediction
from runs.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor, nn

    from utils import DataSet


class Predictions(NamedTuple):
    """Predictions of images: log probabilities (n, n_classes), and the mean entropy (n,) of a draw's distribution."""

    log_p: "Tensor"
    aleatoric: "Tensor"

    @classmethod
    def of_draws(cls, log_p: "Tensor") -> "Predictions":
        """The mean of the probabilities of draws, given by their logs (draws, n, n_classes)."""
        from models.metrics import ensemble_log_probs, entropy

        return cls(ensemble_log_probs(log_p), entropy(log_p).mean(0))

    def uncertainty(self) -> dict[str, "Tensor"]:
        """Entropy of the predictions and its two parts, (n,) each in nats.

        "aleatoric": the mean entropy of a draw's distribution, of noise in the data. "mutual_information": the rest,
        between label and weights, which more data would reduce (Houlsby et al. 2011).
        """
        from models.metrics import entropy

        total = entropy(self.log_p)
        mutual = (total - self.aleatoric).clamp(min=0)
        return {"entropy": total, "aleatoric": self.aleatoric, "mutual_information": mutual}


Predicted = dict[str, Predictions]  # by the name of the images


def predict_run(root: Path, prediction: Prediction, sets: dict[str, "DataSet"], path: Path) -> Predicted:
    """The predictions of a run for each set of images; read from `path` if it has those of these images, and written
    there otherwise."""
    import torch

    import utils
    from runs.checkpoint import fingerprint
    from runs.device import choose_device

    made_of = fingerprint([str((prediction.mode, prediction.samples)), *(t for data in sets.values() for t in data)])
    arrays: dict[str, np.ndarray] = {}
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    if str(arrays.get("made_of")) != made_of:
        arrays = {"made_of": np.array(made_of)}
        device = choose_device("auto")
        net, params = utils.load_network(root, device)
        net.train(prediction.dropout)
        for name, data in sets.items():
            torch.manual_seed(params["seed"])  # of dropout
            moved = utils.DataSet(*(t.to(device) for t in data))
            kind = (prediction.mode, prediction.samples)
            log_p = utils.predict_log_probs(net, moved, *kind, params["test_bs"], seed=params["seed"]).cpu()
            parts = Predictions.of_draws(log_p)
            arrays |= {f"{name}/{part}": values.numpy() for part, values in parts._asdict().items()}
        with atomic_write(path) as file:
            np.savez_compressed(file, **arrays)
    load = {part: [torch.from_numpy(arrays[f"{name}/{part}"]) for name in sets] for part in Predictions._fields}
    return {name: Predictions(*values) for name, *values in zip(sets, *load.values(), strict=True)}


def predict_networks(
    nets: Sequence["nn.Module"], data: "DataSet", samples: int, batch_size: int, seed: int = 0
) -> list[Predictions]:
    """The predictions of networks, each from its own seed, counted up from `seed`: a Bayesian one averages `samples`
    draws of its weights; another one, or without samples, is the mean network."""
    import utils
    from models.bayes import bayesian_layers

    found = []
    for i, net in enumerate(nets):
        kind = ("weights", samples) if samples and bayesian_layers(net) else ("det", 1)
        log_p = utils.predict_log_probs(net, data, *kind, batch_size, seed=seed + i).cpu()
        found.append(Predictions.of_draws(log_p))
    return found


def combined(members: Sequence[Predictions]) -> Predictions:
    """The predictions of an ensemble: the means of its members' probabilities and entropies; each counts once."""
    import torch

    from models.metrics import ensemble_log_probs

    log_p, aleatoric = (torch.stack(values) for values in zip(*members, strict=True))
    return Predictions(ensemble_log_probs(log_p), aleatoric.mean(0))


def ensemble(members: Sequence[Predicted]) -> Predicted:
    """The predictions of an ensemble for each set of images."""
    return {name: combined([member[name] for member in members]) for name in members[0]}

"""Uncertainty: shifts, temperatures, ensembles, AUROC and rejection against their definitions, and a comparison."""

import numpy as np
import pytest
import torch

from experiments import protocol, uncertainty
from experiments.methods import METHODS, PREDICTIONS, Method
from experiments.predictions import Predictions
from experiments.uncertainty import FOREIGN
from tests.conftest import network_argv
from tests.experiments.conftest import mean_and_spread
from utils import DataSet, load_data


def test_shifts_of_images():
    images = torch.randint(256, (3, 1, 28, 28), generator=torch.Generator().manual_seed(1)).byte()
    assert torch.equal(uncertainty.shifted(images, "rotation", 90), torch.rot90(images, 1, (2, 3)))
    grey = torch.full_like(images, 100)
    assert torch.equal(uncertainty.shifted(grey, "blur", 2.5), grey)
    point = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    point[..., 14, 14] = 255
    expected = 255 / (2 * np.pi * 1.5**2)  # of a normal density
    assert uncertainty.shifted(point, "blur", 1.5)[0, 0, 14, 14].item() == pytest.approx(expected, abs=1)
    noise = uncertainty.shifted(grey.repeat(100, 1, 1, 1), "noise", 0.1).float() - 100
    assert noise.std().item() == pytest.approx(25.5, rel=0.01) and abs(noise.mean().item()) < 0.2


def test_the_best_temperature():
    """Logits ±a of which a share c is right have the least NLL where sigmoid(a / T) = c."""
    logits = torch.tensor([[3.0, 0.0]]).repeat(100, 1)
    labels = torch.tensor([0] * 80 + [1] * 20)
    expected = 3 / np.log(0.8 / 0.2)
    found = uncertainty.best_temperature([logits.log_softmax(1)] * 2, labels)
    assert found == pytest.approx(expected, rel=1e-4)
    own = {"test": Predictions(logits.log_softmax(1), torch.zeros(100))}
    scaled = uncertainty.scaled(own, found)["test"]
    assert scaled.log_p.exp()[0].tolist() == pytest.approx([0.8, 0.2], rel=1e-4)
    assert scaled.uncertainty()["mutual_information"].abs().max() < 1e-6


def test_an_ensemble_of_draws():
    """The draws of all members together have the same mean and the same uncertainties."""
    draws = torch.randn(2, 5, 8, 3, dtype=torch.float64).log_softmax(3)  # members, draws, images, classes
    members = [Predictions((p := own.exp().mean(0)).log(), -(own.exp() * own).sum(2).mean(0)) for own in draws]
    found = uncertainty.ensemble([{"test": own} for own in members])["test"]
    p = draws.flatten(0, 1).exp()
    mean = p.mean(0)
    entropy = -(mean * mean.log()).sum(1)
    assert torch.allclose(found.log_p.exp(), mean)
    assert torch.allclose(found.uncertainty()["entropy"], entropy)
    divergence = (p * (p.log() - mean.log())).sum(2).mean(0)  # mutual information as a mean KL
    assert torch.allclose(found.uncertainty()["mutual_information"], divergence)


def test_what_is_measured():
    """AUROC as the share of pairs in order, ties as a half; rejection by sorting."""
    generator = torch.Generator().manual_seed(2)
    log_p = (3 * torch.randn(40, 3, generator=generator)).log_softmax(1)
    foreign = torch.randn(30, 3, generator=generator).log_softmax(1)
    labels = torch.randint(3, (40,), generator=generator)
    sets = {"test": DataSet(torch.zeros(40, 1, 1, 1), labels), FOREIGN: DataSet(torch.zeros(30, 1, 1, 1), labels)}
    predicted = {"test": Predictions(log_p, torch.zeros(40)), FOREIGN: Predictions(foreign, torch.zeros(30))}
    found = uncertainty.measure(predicted, sets)
    own, other = (-(p.exp() * p).sum(1) for p in (log_p, foreign))
    pairs = (other[:, None] > own).double() + 0.5 * (other[:, None] == own).double()
    assert found["auroc/entropy"] == pytest.approx(pairs.mean().item(), abs=1e-6)
    right = (log_p.argmax(1) == labels)[own.argsort()].double()
    for share in (0, 0.25, 0.9):
        assert found[f"rejected/{share:g}"] == pytest.approx(right[: round((1 - share) * 40)].mean().item())
    fewer = predicted | {"test": Predictions(log_p[:38], torch.zeros(38))}
    confidence, accuracy = uncertainty.reliability([fewer], labels[:38])
    top, hit = log_p[:38].exp().amax(1), (log_p[:38].argmax(1) == labels[:38]).double()
    bins = top.argsort().tensor_split([37 * k // 15 + 1 for k in range(1, 15)])  # two or three images in each
    assert accuracy == pytest.approx([hit[b].mean().item() for b in bins])
    assert confidence == pytest.approx([top[b].mean().item() for b in bins])


def test_a_comparison(run_experiment, small_inputs, monkeypatch, sandbox):
    """Scores are those of the runs' logs, and predictions that exist are read."""
    shape = " ".join(network_argv(small_inputs, "fconv", "vanilla", "vae")[2:])
    dropout = f"{shape} --net_cfg vanilla-do --do 0.5 0.5 --ens 2"
    methods = {
        "l2": Method("train-net.py", shape, ["--lr 0.1"], "network", epochs=2),
        "dropout": Method("train-net.py", dropout, ["--lr 0.01"], "dropout", epochs=2),
    }
    monkeypatch.setattr(protocol, "METHODS", methods)
    fewer = PREDICTIONS["dropout"]._replace(samples=2, tuning="")
    monkeypatch.setitem(PREDICTIONS, "dropout", fewer)
    monkeypatch.setattr(uncertainty, "SHIFTS", {"rotation": (15, 30, 45)})
    part = uncertainty.SCALES["smoke"]["10"]._replace(
        splits=(0, 1), methods=tuple(methods), ensembles=("l2",), scaled=("l2",), tune_splits=(7,)
    )
    rows, logs = run_experiment(uncertainty, lambda small: {"10": part})
    assert [row[0] for row in rows[:5]] == ["method", "l2", "dropout", "l2, temperature", "2 x l2"]
    last = [log[-1] for log in logs[3:]]  # after a tuning run of each method, and that of the temperature
    own = [row["test_nll"] for row in last[:2]]
    assert mean_and_spread(rows[1][2]) == pytest.approx([np.mean(own), np.std(own, ddof=1)], abs=6e-4)
    assert rows[1][6] == "" and rows[2][6] != "", "a deterministic network has no mutual information"
    runs = sandbox / "logs" / "exman-train-net.py" / "runs"
    files = sorted((sandbox / "logs" / "uncertainty-smoke" / "predictions").iterdir())
    assert len(files) == 2 + 2 + 4 + 1
    monkeypatch.setattr("utils.predict_log_probs", None)
    file = next(file for file in files if file.name.startswith("dropout-"))
    root = runs / file.stem.removeprefix("dropout-")
    sets = uncertainty.evaluated_sets(load_data("not-mnist")[1], part.subset)
    with pytest.raises(TypeError):  # images that the file does not have are predicted
        uncertainty.predict_run(root, fewer, {"test": sets["unchanged"]}, file)
    found = uncertainty.predict_run(root, fewer, sets, file)
    assert list(found) == ["test", FOREIGN, "unchanged", "rotation 15", "rotation 30", "rotation 45"]
    assert found["test"].log_p.exp().sum(1).numpy() == pytest.approx(1, abs=1e-5)


def test_the_methods_of_all_scales():
    for parts in uncertainty.SCALES.values():
        for part in parts.values():
            assert {*part.methods, *part.ensembles} <= set(METHODS) and set(part.scaled) <= set(part.methods)

"""Active learning: which images each strategy picks, and a whole experiment on small data."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import active, protocol
from experiments.methods import Method
from experiments.predictions import Predictions
from runs.files import read_yaml
from tests.conftest import network_argv
from tests.experiments.conftest import mean_and_spread
from utils import load_data


def test_what_the_strategies_pick():
    """Three images: noise that all draws agree on, draws that are sure of different classes, and a sure image."""
    draws = torch.tensor([[[0.5, 0.5], [0.99, 0.01], [0.999, 0.001]], [[0.5, 0.5], [0.1, 0.9], [0.999, 0.001]]])
    mean, aleatoric = draws.mean(0), -(draws * draws.log()).sum(2).mean(0)
    predictions = Predictions(mean.log(), aleatoric)
    assert active.picked("entropy", predictions, [], 2, 0) == [0, 1]
    assert active.picked("mutual_information", predictions, [], 1, 0) == [1]
    assert active.picked("mutual_information", predictions, [1], 1, 0) != [1]
    many = Predictions(torch.zeros(1000, 2), torch.zeros(1000))
    first, again, other = (active.picked("random", many, [5, 7], 500, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 500 and not {5, 7} & set(first)
    assert np.mean(first) == pytest.approx(499.5, abs=4 * 289 / 500**0.5)


def test_an_experiment(run_experiment, small_inputs, monkeypatch, sandbox):
    shape = " ".join(network_argv(small_inputs, "fconv", "vanilla", "vae")[2:])
    shared = f"{shape} --net_cfg vanilla-do --do 0.5 0.5 --ens 2"
    methods = {"dropout": Method("train-net.py", shared, ["--lr 0.01"], "dropout", epochs=2)}
    monkeypatch.setattr(protocol, "METHODS", methods)
    part = active.SCALES["smoke"]["mnist"]._replace(numbers=(10, 13, 16), shown=(10, 16), data="not-mnist")
    rows, _ = run_experiment(active, lambda small: {"mnist": part})
    assert [row[1] for row in rows] == ["images picked by", "mutual information", "entropy", "random"]
    assert len({row[2] for row in rows[1:]}) == 1, "all strategies start from the same networks"
    with open(sandbox / "out" / "active.csv", newline="") as file:
        stored = list(csv.DictReader(file))
    for row in rows[1:]:
        for n, cell in ((10, row[2]), (16, row[3])):
            own = [
                float(r["acc"]) for r in stored if r["strategy"].replace("_", " ") == row[1] and int(r["labels"]) == n
            ]
            assert mean_and_spread(cell) == pytest.approx([np.mean(own), np.std(own, ddof=1)], abs=0.0006)
    runs = [read_yaml(path) for path in sorted(sandbox.glob("logs/exman-train-net.py/runs/*/params.yaml"))[1:]]
    assert len(runs) == 2 + 2 * 3 * 2, "networks of the first images are trained once"
    learnt = {}
    for params in runs:
        with np.load(params["data"]) as file:
            images, labels = file["train_images"], file["train_labels"]
        assert len(images) == len({image.tobytes() for image in images})
        learnt.setdefault(len(labels), []).append((images, labels))
    assert {n: len(found) for n, found in learnt.items()} == {10: 2, 13: 6, 16: 6}
    assert all(sorted(labels) == list(range(10)) for _, labels in learnt[10])
    for images, _ in learnt[16]:  # what is labelled stays labelled
        assert any((images[:13] == before).all() for before, _ in learnt[13])
    # The first networks' entropies of the pool, in numpy, and the images that have the largest ones.
    train = load_data("not-mnist")[0].images
    pool = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: part.pool], 0].numpy()
    for params, (images, _) in zip(runs, learnt[10], strict=False):
        file = sandbox / "logs" / "active-smoke" / "predictions" / f"dropout-{Path(params['root']).name}.npz"
        with np.load(file) as arrays:
            log_p = arrays["pool/log_p"]
        entropy = -(np.exp(log_p) * log_p).sum(1)
        known = [any((image == one).all() for one in images) for image in pool]
        best = pool[np.argsort(-np.where(known, -1, entropy), kind="stable")[:3]]
        assert any((after[10:] == best).all() for after, _ in learnt[13])

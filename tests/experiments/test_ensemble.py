"""The ensemble of runs, against averaged probabilities of networks that are loaded by hand."""

import re

import numpy as np
import pytest
import torch

import utils
from experiments import ensemble
from models.bayes import set_mode
from models.metrics import ensemble_log_probs, scores
from tests.conftest import network_argv


@pytest.fixture
def runs(small_inputs, script, capsys):
    """A run of a network, and one of a Bayesian network with a noisy posterior and a prior in its state dict."""
    net = script("train-net.py").main(network_argv(small_inputs, "fconv", "vanilla", "xavier"))
    argv = [*network_argv(small_inputs, "fconv", "bayes", "vae"), "--prior", "vae", "--reverse", "train", "--ens", "3"]
    bnn = script("train-bnn.py").main([*argv, "--logvarinit", "-3", "--classifier_prior", "sn"])
    capsys.readouterr()
    return net, bnn


def test_a_loaded_network_predicts_as_at_the_end_of_its_run(runs):
    for run in runs:
        net, params = utils.load_network(run.root)
        _, test = utils.load_data(params["data"])
        if "bnn" in run.script:
            p = ensemble_log_probs(utils.predict_log_probs(net, test, "weights", 3, 500, seed=run.args.seed))
            expected = {score: run.rows[-1][f"draws/{score}"] for score in ("acc", "nll", "ece", "brier")}
        else:
            p = utils.predict_log_probs(net, test, "det", 1, 500)[0]
            expected = {score: run.rows[-1][f"test_{score}"] for score in ("acc", "nll")}
        found = scores(p, test.labels)
        assert {score: found[score] for score in expected} == pytest.approx(expected, rel=1e-5)


def test_the_ensemble_is_the_mean_of_the_probabilities(runs, capsys):
    ensemble.main([*(str(run.root) for run in runs), "--samples", "0"])
    out = capsys.readouterr().out
    p, labels = [], None
    for run in runs:
        net, _ = utils.load_network(run.root)
        set_mode(net, "det")
        _, test = utils.load_data("not-mnist")
        labels = test.labels
        with torch.no_grad():
            p.append(net(test.images.float() / 255).double().softmax(1).numpy())
    mean = np.mean(p, 0)
    expected = [(mean.argmax(1) == labels.numpy()).mean(), -np.log(mean[np.arange(len(labels)), labels]).mean()]
    last = re.search(r"ensemble of 2 +(\S+) +(\S+)", out)
    assert [float(x) for x in last.groups()] == pytest.approx(expected, abs=1e-4)
    assert str(runs[0].root) in out and str(runs[1].root) in out


def test_draws_of_the_weights_are_averaged(runs, capsys):
    """The more draws, the less one differs from others; a network without a posterior has none."""
    ensemble.main([str(runs[1].root), "--samples", "3"])
    found = [float(x) for x in re.search(r"ensemble of 1 +(.*)", capsys.readouterr().out)[1].split()]
    net, _ = utils.load_network(runs[1].root)
    _, test = utils.load_data("not-mnist")
    p = ensemble_log_probs(utils.predict_log_probs(net, test, "weights", 3, 500))
    assert found == pytest.approx(list(scores(p, test.labels).values()), abs=1e-4)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "params.yaml: found a NoneType"),
        ("model: fconv\n", "params.yaml: found no arguments of a network: KeyError('net_cfg')"),
        ("model: x\n", "found no arguments of a network"),
        (
            "model: fconv\nnet_cfg: vanilla\nhid_dim: [99999999, 99999999]\nmodel_size: 1\nn_classes: 10\n",
            "model.torch",
        ),
        (
            "model: fconv\nnet_cfg: vanilla\nhid_dim: [2, 3]\nmodel_size: 1\nn_classes: 10\ndata: x\n",
            "params.yaml: --data x",
        ),
        ("model: fconv\nnet_cfg: vanilla\nhid_dim: [2, 3]\nmodel_size: 1\nn_classes: 10\ndata: [mnist]\n", "['mnist']"),
        (
            "model: fconv\nnet_cfg: vanilla\nhid_dim: [2, 3]\nmodel_size: 1\nn_classes: 10\ndata: svhn\n",
            "found fconv with 10 classes, expected one for images of (3, 32, 32) with 10",
        ),
    ],
)
def test_what_is_no_run(text, expected, runs, capsys):
    (runs[0].root / "params.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        ensemble.main([str(runs[0].root)])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and expected in err and len(err.splitlines()) == 1


def test_runs_on_different_data(runs, small_inputs, script, capsys):
    other = script("train-net.py").main(network_argv(small_inputs, "cifarnet", "vanilla", "xavier", 1))
    with pytest.raises(SystemExit):
        ensemble.main([str(runs[0].root), str(other.root)])
    assert "found the data sets not-mnist of" in capsys.readouterr().err

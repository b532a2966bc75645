"""train-net.py, end to end on small data: log, files, penalties, frozen convs, and networks made from a trained one."""

import math

import numpy as np
import pytest
import torch

import utils
from models.configs import MODELS
from models.fconv import FConv
from runs.checkpoint import load_pretrained
from runs.directory import dwp_path
from tests.conftest import SMALL, network_argv, read_log

COLUMNS = [
    "t",
    "loss",
    "train_nll",
    "test_nll",
    "train_acc",
    "test_acc",
    "lr",
    "sec",
    "l2_norm",
    "dwp_reg",
    "test/ece",
    "test/brier",
]


@pytest.mark.parametrize("net_cfg", ["vanilla", "vanilla-do"])
def test_train_net_then_a_bayesian_network_from_it(script, sandbox, net_cfg):
    do = ["--do", "0.2", "0.3"] if "do" in net_cfg else []
    run = script("train-net.py").main([*SMALL, "--net_cfg", net_cfg, "--l2", "0.01", *do])
    row = read_log(run.root)[-1]
    draws = [f"draws/{score}" for score in ("acc", "nll", "ece", "brier")] if net_cfg == "vanilla-do" else []
    assert list(row) == [*COLUMNS, *draws]
    state = torch.load(run.root / "model.torch", weights_only=True)
    features = [value for name, value in state.items() if name.startswith("features.")]
    assert row["l2_norm"] == pytest.approx(sum(v.double().square().sum().item() for v in features), rel=1e-5)

    still = script("train-net.py").main(
        [*SMALL, "--net_cfg", net_cfg, "--l2", "0.01", *do, "--lr", "1e-12", "--resume", str(run.root)]
    )
    still_row = read_log(still.root)[-1]
    l2_term = still_row["loss"] - still_row["train_nll"]
    assert l2_term == pytest.approx(0.01 * still_row["l2_norm"], rel=1e-4)
    opts = [torch.load(r.root / "opt.torch", weights_only=True) for r in (run, still)]
    assert [opt["state"][0]["step"] for opt in opts] == [4, 8]  # the optimizer continues from its state

    net = FConv("bayes-1-0", (3, 4))
    load_pretrained(net, str(run.root / "model.torch"))
    torch.testing.assert_close(net.features.conv1.mean.weight, state["features.conv1.weight"])
    torch.testing.assert_close(net.classifier.bias, state["classifier.bias"])
    assert (net.features.conv1.var["weight"] == -10).all()
    argv = ["--init_list", "pretrained", "--pretrained", str(run.root / "model.torch"), "--net_cfg", "bayes-1-0"]
    script("train-bnn.py").main([*SMALL, *argv, "--ens", "2"])


def test_a_frozen_feature_extractor(small_inputs, script, tmp_path):
    """`--rfe 1` trains the classifier and the batch norms; what comes from a checkpoint stays in the convs."""
    module = script("train-net.py")
    first = module.main(network_argv(small_inputs, "cifarnet", "vanilla", "xavier", 1))
    argv = [*network_argv(small_inputs, "cifarnet", "vanilla", "pretrained"), "--rfe", "1"]
    argv[argv.index("--pretrained") + 1] = str(first.root / "model.torch")
    second = module.main(argv)
    a, b = (torch.load(run.root / "model.torch", weights_only=True) for run in (first, second))
    changed = {name for name in a if not torch.equal(a[name], b[name])}
    assert not any(".conv" in name for name in changed)
    assert {"features.bn1.weight", "features.bn4.bias", "classifier.fc1.weight", "classifier.linear.bias"} <= changed


def test_features_of_frozen_convs_are_computed_once(small_inputs, script, monkeypatch):
    """The numbers are those of a network that computes them in every step: one with a dropout of probability 0."""
    calls = []
    monkeypatch.setattr(utils, "features_of", lambda *args, f=utils.features_of: calls.append(1) or f(*args))
    runs = []
    for more in (["vanilla"], ["vanilla-do", "--do", "0", "0"]):
        argv = network_argv(small_inputs, "fconv", more[0], "vae", 3)
        runs.append(script("train-net.py").main([*argv, *more[1:], "--rfe", "1", "--l2", "0.1", "--lr", "0.1"]))
    assert len(calls) == 2  # training and test images of the first run
    for once, always in zip(*(run.rows for run in runs), strict=True):
        assert {**once, "sec": 0} == pytest.approx({name: always[name] for name in once} | {"sec": 0}, rel=1e-4)
    assert runs[0].rows[-1]["train_nll"] < runs[0].rows[0]["train_nll"]


def test_fastconv_counts_steps(small_inputs, script):
    argv = network_argv(small_inputs, "fconv", "vanilla", "xavier", 5)
    run = script("train-net.py").main([*argv, "--fastconv", "1", "--eval_freq", "4"])
    assert [row["t"] for row in run.rows] == [1, 4, 8, 10]  # 5 epochs of 2 steps
    run = script("train-net.py").main([*argv, "--eval_freq", "4"])
    assert [row["t"] for row in run.rows] == [1, 4, 5]
    run = script("train-net.py").main([*argv, "--eval_freq", "0"])
    assert [row["t"] for row in run.rows] == [5] and (run.root / "model.torch").exists()


def test_dwp_reg_is_added_to_the_loss(small_inputs, script):
    argv = [*network_argv(small_inputs, "fconv", "vanilla", "vae"), "--lr", "1e-12", "--bs", "20", "--l2", "0.1"]
    row = script("train-net.py").main([*argv, "--dwp_reg", "0.01", "--dwp_samples", "50"]).rows[-1]
    rest = row["loss"] - row["train_nll"] - 0.1 * row["l2_norm"]
    assert rest == pytest.approx(0.01 * row["dwp_reg"], rel=0.02)


def test_the_classifiers_prior_is_added_to_the_loss(small_inputs, script):
    argv = [*network_argv(small_inputs, "fconv", "vanilla", "vae"), "--lr", "1e-12", "--bs", "20"]
    run = script("train-net.py").main([*argv, "--classifier_lamb", "0.2"])
    state = torch.load(run.root / "model.torch", weights_only=True)
    weights = torch.cat([state[f"classifier.{name}"].double().flatten() for name in ("weight", "bias")])
    prior = torch.distributions.Normal(0, 0.2)  # its -log density, less that of weights of 0
    penalty = (prior.log_prob(torch.zeros(())) - prior.log_prob(weights)).sum().item() / 20
    assert run.rows[-1]["loss"] - run.rows[-1]["train_nll"] == pytest.approx(penalty, rel=1e-4)


@pytest.mark.parametrize("name", ["train-net.py", "train-bnn.py"])
def test_the_convs_of_a_trained_network_for_other_classes(name, small_inputs, script):
    first = script("train-net.py").main(
        [*network_argv(small_inputs, "fconv", "vanilla", "xavier"), "--n_classes", "12"]
    )
    net_cfg = "vanilla" if name == "train-net.py" else "bayes"
    argv = ["--lr", "1e-12", *network_argv(small_inputs, "fconv", net_cfg, "pretrained")]
    argv[argv.index("--pretrained") + 1] = str(first.root / "model.torch")
    with pytest.raises(SystemExit):
        script(name).main(argv)
    second = script(name).main([*argv, "--pretrained_classifier", "0"])
    a, b = (utils.get_kernels(torch.load(run.root / "model.torch", weights_only=True)) for run in (first, second))
    for conv in ("7x7-1", "5x5-2"):
        torch.testing.assert_close(a[conv], b[conv])
    with pytest.raises(SystemExit):  # without a file
        script(name).main([*argv[: argv.index("--init_list")], "--pretrained_classifier", "0"])


def test_a_last_image_alone_under_batch_norm(small_inputs, script, tmp_path, capsys):
    """A batch of one image has no variance, so it is joined to the batch before it: 20 images in batches of 19."""
    argv = network_argv(small_inputs, "cifarnet", "vanilla", "xavier", 3)
    for size, steps in (("19", 3), ("6", 12)):
        run = script("train-net.py").main([*argv, "--bs", size, "--fastconv", "1"])
        assert run.step == run.rows[-1]["t"] == steps and all(math.isfinite(row["loss"]) for row in run.rows)
    with pytest.raises(SystemExit) as stop:
        script("train-net.py").main([*argv, "--bs", "1"])
    assert stop.value.code == 2 and "--bs: found 1, expected at least 2 for cifarnet" in capsys.readouterr().err
    images, labels = np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.uint8)
    np.savez(tmp_path / "one.npz", train_images=images, train_labels=labels)
    runs = sum(1 for _ in dwp_path().rglob("params.yaml"))
    with pytest.raises(SystemExit) as stop:
        script("train-net.py").main([*argv, "--data", str(tmp_path / "one.npz")])
    message = "--data: found 1 training image, expected 2 or more for cifarnet"
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert sum(1 for _ in dwp_path().rglob("params.yaml")) == runs


def test_model_size_cuts_off_as_published(script):
    args = script("train-net.py").parse(["--model", "cifarnet", "--model_size", "0.7"])
    assert MODELS["cifarnet"].widths([], args.model_size) == [89, 179, 179, 512]

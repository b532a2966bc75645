"""train-bnn.py, end to end on small data: log, files, objective, and runs that start from other runs."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import utils
from models.fconv import FConv
from tests.conftest import SMALL, network_argv, read_log, without_times

COLUMNS = ["t", "train_nll", "KL", "train_loss", "test_nll", "test_loss", "train_acc"]
COLUMNS += ["det_test_acc", "samp_test_acc", "ens[3]_test_acc", "lr", "sec"]
SCORES = [*(f"det/{s}" for s in ("nll", "ece", "brier")), "ensemble/ece", "ensemble/brier"]
SCORES += [f"draws/{s}" for s in ("acc", "nll", "ece", "brier")]


def vae_argv(vae_folder, prior):
    """VAEs as initialization of both convs, and one prior for both."""
    return ["--vae_list", vae_folder(7), vae_folder(5), "--init_list", "vae", "vae", "--prior_list", prior, prior]


@pytest.mark.parametrize("prior", ["sn", "vae", "no"])
def test_train_bnn(script, sandbox, vae_folder, prior):
    argv = [*SMALL, *vae_argv(vae_folder, prior), "--num_examples", "20", "--ens", "3", "--kl_kernels", "5"]
    run = script("train-bnn.py").main(argv)
    rows = read_log(run.root)
    kinds = ["dev_to_mean"] if prior == "no" else ["dev_to_mean", "dev_to_prior"]
    layers = [f"features.{layer}/{kind}" for layer in ("conv1", "conv2") for kind in kinds]
    assert list(rows[0]) == [*COLUMNS, *SCORES, *layers] and [row["t"] for row in rows] == [1, 2]
    last = rows[-1]
    assert all(np.isfinite(list(last.values())))
    assert last["train_loss"] == pytest.approx(20 * last["train_nll"] + last["KL"], rel=1e-5)
    assert last["test_loss"] == pytest.approx(20 * last["test_nll"] + last["KL"], rel=1e-5)
    assert last["lr"] == pytest.approx(1e-3 / 2)

    state = torch.load(run.root / "model.torch", weights_only=True)
    assert {"features.conv1.mean.weight", "features.conv2.mean.bias", "features.conv2.var.weight"} < state.keys()
    assert "classifier.weight" in state and len(state) == 8
    params = yaml.safe_load((run.root / "params.yaml").read_text())
    assert params["hid_dim"] == [3, 4] and params["root"] == str(run.root) and params["id"] == 1
    base = sandbox / "logs" / "exman-train-bnn.py"
    assert run.root.parent == base / "runs"
    assert yaml.safe_load((base / "index" / f"{run.root.name}.yaml").read_text()) == params
    header = (run.root / "train-bnn.py-logs.out").read_text().split("\n")[0]
    assert header.split() == COLUMNS, "the scores would make the printed table too wide"


def test_the_objective_is_n_times_nll_plus_kl(script, sandbox):
    """Adam's first moment after one step is a tenth of the gradient, here written out on the whole data set."""
    shape = ["--epochs", "1", "--bs", "60", "--logvarinit", "-50", "--lamb", "0.5"]
    run = script("train-bnn.py").main([*SMALL, *shape, "--lr", "1e-12", "--ens", "1"])
    net = FConv("bayes", (3, 4)).double()
    net.load_state_dict(torch.load(run.root / "model.torch", weights_only=True))
    train, _ = utils.load_data("not-mnist")
    nll = torch.nn.functional.cross_entropy(net(train.images.double() / 255), train.labels, reduction="sum")
    kl = 0.0
    for layer in (net.features.conv1, net.features.conv2):
        q = torch.distributions.Normal(layer.mean.weight, (0.5 * layer.var["weight"]).exp())
        kl = kl + torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 0.5)).sum()
    (nll + kl).backward()
    moments = torch.load(run.root / "opt.torch", weights_only=True)["state"]
    for i, (name, parameter) in enumerate(net.named_parameters()):
        expected = 0.1 * parameter.grad
        error = (moments[i]["exp_avg"] - expected).norm() / expected.norm()
        assert error < 1e-2, name


def test_the_dwp_run_learns(script, sandbox, vae_folder):
    argv = [*SMALL, *vae_argv(vae_folder, "vae"), "--epochs", "60", "--lr", "0.01", "--eval_freq", "60", "--ens", "3"]
    rows = read_log(script("train-bnn.py").main(argv).root)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["ens[3]_test_acc"] > 0.5 > rows[0]["ens[3]_test_acc"]


def test_warm_start_and_config(script, sandbox, capsys):
    first = script("train-bnn.py").main([*SMALL, "--ens", "2", "--name", "first"])
    with open(first.root / "params.yaml", "a") as file:
        file.write("gpu_id: '3'\nverbose: 1\n")
    second = script("train-bnn.py").main(
        ["--config", str(first.root / "params.yaml"), "--resume", str(first.root), "--epochs", "1", "--lr", "1e-12"]
    )
    assert capsys.readouterr().err.endswith("ignored, not options of this script: gpu_id, verbose\n")
    a, b = (torch.load(run.root / "model.torch", weights_only=True) for run in (first, second))
    torch.testing.assert_close(a, b)
    assert second.root != first.root and len(read_log(second.root)) == 1


SHAPES = {
    "features.conv1.mean.weight": (3, 1, 7, 7),
    "features.conv1.mean.bias": (3,),
    "features.conv1.var.weight": (3, 1, 7, 7),
    "features.conv2.mean.weight": (4, 3, 5, 5),
    "features.conv2.mean.bias": (4,),
    "features.conv2.var.weight": (4, 3, 5, 5),
    "classifier.weight": (10, 36),
    "classifier.bias": (10,),
}
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "maximize": False, "foreach": None}


def test_a_run_directory_of_an_older_version_starts_a_run(script, sandbox, vae_folder, monkeypatch):
    """Its params.yaml has `prior_list: []`, paths relative to the folder it was started in, and no environment."""
    root = sandbox / "logs" / "exman-train-bnn.py" / "runs" / "000001-2019-02-20-10-00-00"
    root.mkdir(parents=True)
    vaes = [f"./{Path(vae_folder(k)).relative_to(sandbox)}" for k in (7, 5)]
    params = {"bs": 32, "data": "not-mnist", "ens": 3, "epochs": 2, "hid_dim": [3, 4], "init_list": [], "lr": 0.001}
    params |= {"num_examples": 20, "prior": "vae", "prior_list": [], "pretrained": "", "resume": "", "tmp": False}
    params |= {"vae_list": vaes, "root": "logs/exman-train-bnn.py/runs/x", "time": "2019-02-20-10-00-00", "id": 1}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "train-bnn.py-logs.csv").write_text("t,train_nll\n1,2.3\n2,2.2\n")
    (root / "train-bnn.py-logs.out").write_text("  t    train_nll\n---  -----------\n  1          2.3\n")
    model = {name: torch.full(shape, -5.0 if ".var." in name else 0.01) for name, shape in SHAPES.items()}
    moments = [{"exp_avg": torch.zeros(shape), "exp_avg_sq": torch.ones(shape)} for shape in SHAPES.values()]
    state = {i: {"step": torch.tensor(4.0), **moment} for i, moment in enumerate(moments)}
    group = {"lr": 0.001, **ADAM, "capturable": False, "differentiable": False, "params": list(state)}
    torch.save(model, root / "model.torch")
    torch.save({"state": state, "param_groups": [group]}, root / "opt.torch")

    monkeypatch.chdir(sandbox)
    argv = ["--config", str(root / "params.yaml"), "--resume", str(root.relative_to(sandbox)), "--lr", "1e-12"]
    run = script("train-bnn.py").main([*argv, "--device", "cpu"])
    assert run.root.name.startswith("000002-") and run.args.priors == ["vae", "vae"] and not run.args.prior_list
    assert run.args.resume == str(root) and run.args.vae_list == [vae_folder(7), vae_folder(5)]
    assert [row["t"] for row in read_log(run.root)] == [1, 2]
    trained = torch.load(run.root / "model.torch", weights_only=True)
    assert {name: tuple(value.shape) for name, value in trained.items()} == SHAPES
    torch.testing.assert_close(trained, model)
    steps = [moment["step"] for moment in torch.load(run.root / "opt.torch", weights_only=True)["state"].values()]
    assert steps == [6] * len(SHAPES)


def test_same_seed_same_numbers(script, sandbox, vae_folder):
    argv = [*SMALL, *vae_argv(vae_folder, "vae"), "--ens", "2", "--kl_kernels", "4"]
    a, b = (read_log(script("train-bnn.py").main(argv).root) for _ in range(2))
    assert without_times(a) == without_times(b)


def test_milestones_and_kl_weight(small_inputs, script):
    argv = [*network_argv(small_inputs, "fconv", "bayes", "xavier", 4), "--milestones", "2", "3", "--gamma", "0.1"]
    run = script("train-bnn.py").main([*argv, "--kl_weight", "0.25", "--ens", "2"])
    assert [row["lr"] for row in run.rows] == pytest.approx([1e-3, 1e-4, 1e-5, 1e-5])
    row = run.rows[-1]
    assert row["train_loss"] == pytest.approx(20 * row["train_nll"] + 0.25 * row["KL"])


def test_the_rate_of_the_variances(small_inputs, script):
    """One step of Adam moves a parameter by its rate, or not at all where its gradient is 0."""
    argv = [*network_argv(small_inputs, "fconv", "bayes", "xavier", 1), "--bs", "20", "--ens", "1", "--lamb", "0.5"]
    run = script("train-bnn.py").main([*argv, "--lr_var", "0.25", "--classifier_prior", "sn", "--classifier_lamb", "2"])
    state = torch.load(run.root / "model.torch", weights_only=True)
    for layer in ("features.conv1", "features.conv2", "classifier"):
        torch.testing.assert_close(state[f"{layer}.var.weight"], torch.full_like(state[f"{layer}.var.weight"], -9.75))
    last, deviation = run.rows[-1], math.exp(-9.75 / 2)
    assert last["lr"] == 1e-3 and last["features.conv1/dev_to_prior"] == pytest.approx(deviation / 0.5)
    assert last["classifier/dev_to_prior"] == pytest.approx(deviation / 2)


def test_a_truncated_posterior_has_the_rate_too(small_inputs, script):
    argv = [*network_argv(small_inputs, "fconv", "bayes-mtrunca", "xavier", 1), "--bs", "20", "--ens", "1"]
    run = script("train-bnn.py").main([*argv, "--lr_var", "0.25", "--prior", "loguniform"])
    w_alpha = torch.load(run.root / "model.torch", weights_only=True)["features.conv1.w_alpha"]
    torch.testing.assert_close((w_alpha + 2).abs(), torch.full_like(w_alpha, 0.25))


def test_without_noise_all_predictions_are_the_mean_networks(small_inputs, script):
    argv = [*network_argv(small_inputs, "fconv", "bayes", "xavier", 1), "--logvarinit", "-50", "--ens", "2"]
    row = script("train-bnn.py").main(argv).rows[-1]
    for score, published in (("nll", "test_nll"), ("ece", "ensemble/ece"), ("brier", "ensemble/brier")):
        assert row[f"det/{score}"] == pytest.approx(row[published], rel=1e-4) == row[f"draws/{score}"]
    assert row["draws/acc"] == row["det_test_acc"]


def test_a_trained_reverse_model_is_saved_and_resumed(small_inputs, script):
    argv = [*network_argv(small_inputs, "fconv", "bayes", "vae"), "--prior", "vae", "--reverse", "train", "--ens", "2"]
    before = (small_inputs / "vae7" / "vae_params.torch").read_bytes()
    first = script("train-bnn.py").main([*argv, "--bound", "iwae", "--iwae_samples", "2", "--classifier_prior", "sn"])
    assert (small_inputs / "vae7" / "vae_params.torch").read_bytes() == before
    model = torch.load(first.root / "model.torch", weights_only=True)
    assert {"classifier.mean.weight", "classifier.var.weight"} <= model.keys()
    trained = {name: value for name, value in model.items() if ".prior." in name}
    start = utils.load_vae(small_inputs / "vae7").encoder.state_dict()
    prefix = "features.conv1.prior.trained_reverse"
    assert all(not torch.equal(trained[f"{prefix}.{name}"], value) for name, value in start.items())
    assert len(trained) > len(start) and not any("decoder" in name for name in model)
    again = script("train-bnn.py").main(
        [*argv, "--classifier_prior", "sn", "--lr", "1e-12", "--resume", str(first.root)]
    )
    resumed = torch.load(again.root / "model.torch", weights_only=True)
    torch.testing.assert_close({name: resumed[name] for name in trained}, trained)


def test_cifarnetnew_with_deep_weight_priors(small_inputs, script):
    argv = [*network_argv(small_inputs, "cifarnetnew", "bayes111", "vae"), "--model_size", "0.125", "--prior", "vae"]
    run = script("train-bnn.py").main([*argv, "--kl_kernels", "64", "--epochs", "8", "--lr", "0.01", "--ens", "2"])
    assert run.rows[-1]["train_loss"] < run.rows[0]["train_loss"]
    state = torch.load(run.root / "model.torch", weights_only=True)
    assert state["features.conv1.mean.weight"].shape == (16, 3, 7, 7)

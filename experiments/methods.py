"""The methods that `experiments.few_shot` compares, each with the same number of settings to choose from."""

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from runs.directory import ROOT

FCONV = shlex.quote(str(ROOT / "data" / "fconv"))
VAES = f"--vae_list {FCONV}/vae7x7 {FCONV}/vae5x5"
KERNELS = f"--filters_list {FCONV}/conv7x7/train.npy {FCONV}/conv5x5/train.npy"
SHAPE = f"--model fconv --hid_dim 32 128 {VAES} --init_list vae vae"
BNN = f"{SHAPE} --net_cfg bayes --classifier_prior sn --epochs 1000 --eval_freq 1000 --kl_kernels 256 --ens 30"
NET = f"{SHAPE} --eval_freq 1000000"

# The scores of a prediction by their columns in the log: of train-bnn.py the mean network's, those of an ensemble with
# noise on pre-activations and of one of draws of the weights; of train-net.py the network's.
PREDICTIONS = {
    "train-bnn.py": {
        "mean network": {"acc": "det_test_acc", "nll": "det/nll", "ece": "det/ece"},
        "noise": {"acc": "ens[30]_test_acc", "nll": "test_nll", "ece": "ensemble/ece"},
        "draws": {"acc": "draws/acc", "nll": "draws/nll", "ece": "draws/ece"},
    },
    "train-net.py": {
        "network": {"acc": "test_acc", "nll": "test_nll", "ece": "test/ece"},
        "dropout": {"acc": "draws/acc", "nll": "draws/nll", "ece": "draws/ece"},
    },
}
# The mode of Bayesian layers and the number of samples of each prediction.
SAMPLED = {"mean network": ("det", 1), "noise": ("stoch", 30), "draws": ("weights", 30), "network": ("det", 1)}
SAMPLED |= {"dropout": ("det", 30)}
# KL weights, each with the deviation of the classifier's prior that keeps the weight of the classifier's penalty at 1.
KL_WEIGHTS = ("1 --classifier_lamb 1", "0.1 --classifier_lamb 0.3", "0.01 --classifier_lamb 0.1")
RATES = ("", "--lr_var 0.02")


def bayesian_settings(*more: str) -> list[str]:
    """Settings of each KL weight: with the two rates of the variances, and with the larger rate and each of `more`."""
    weights = [f"--kl_weight {weight}" for weight in KL_WEIGHTS]
    return [f"{weight} {rate}".strip() for weight in weights for rate in (*RATES, *(f"{RATES[1]} {m}" for m in more))]


class Method(NamedTuple):
    """A method of the comparison.

    script : name of the script.
    shared : the arguments of all trials; `{flow7x7}` and so on stand for the run directories of SOURCES.
    settings : further arguments to choose from.
    ensemble : whether an ensemble of networks with different seeds is reported as well.
    """

    script: str
    shared: str
    settings: Sequence[str]
    ensemble: bool = False


# Runs on the source domain that some methods start from, by name: a script and its arguments.
SOURCES = {
    "flow7x7": (
        "train-vae.py",
        f"--kind flow --kernel_dim 7 --hidden_dim 64 --num_epochs 300 --data_dir {FCONV}/conv7x7",
    ),
    "flow5x5": (
        "train-vae.py",
        f"--kind flow --kernel_dim 5 --hidden_dim 64 --num_epochs 100 --data_dir {FCONV}/conv5x5",
    ),
    "narrow": (
        "train-net.py",
        "--data not-mnist --hid_dim 32 128 --l2 0.001 --bs 64 --lr 0.003 --epochs 8 --eval_freq 8",
    ),
    "wide": (
        "train-net.py",
        "--data not-mnist --hid_dim 256 512 --l2 0.001 --bs 64 --lr 0.003 --epochs 4 --eval_freq 4",
    ),
}
TUNED = "--epochs 300 --eval_freq 1000000 --init_list pretrained --pretrained"
FINE_TUNING = [f"{how} --lr {lr}" for how in ("", "--l2 0.001", "--rfe 1") for lr in ("0.0001", "0.0003", "0.001")]

METHODS = {
    "dwp": Method("train-bnn.py", f"{BNN} --prior vae", bayesian_settings("--logvarinit -7"), ensemble=True),
    "frozen": Method(
        "train-net.py",
        f"{NET} --rfe 1",
        [f"--lr {lr} --epochs {epochs}" for lr in ("0.0003", "0.001", "0.003") for epochs in (300, 1000, 3000)],
        ensemble=True,
    ),
    "map": Method(
        "train-net.py",
        f"{NET} --epochs 1000",
        [f"--dwp_reg {w} --lr {lr}" for w in ("0.00001", "0.0001", "0.001") for lr in ("0.0003", "0.001", "0.003")],
        ensemble=True,
    ),
    "no": Method("train-bnn.py", f"{BNN} --prior no", bayesian_settings("--logvarinit -7")),
    "sn": Method("train-bnn.py", f"{BNN} --prior sn", bayesian_settings("--lamb 0.1")),
    "gauss": Method("train-bnn.py", f"{BNN} {KERNELS} --prior gauss", bayesian_settings("--logvarinit -7")),
    "loguniform": Method("train-bnn.py", f"{BNN} --prior loguniform", bayesian_settings("--logvarinit -7")),
    "l2": Method(
        "train-net.py",
        f"{NET} --epochs 1000",
        [f"--l2 {w} --lr {lr}" for w in ("0.001", "0.01", "0.1") for lr in ("0.0003", "0.001", "0.003")],
    ),
    "flow": Method(
        "train-bnn.py",
        f"{BNN} --prior flow --flow_list {{flow7x7}} {{flow5x5}}",
        bayesian_settings("--logvarinit -7"),
    ),
    "dropout": Method(
        "train-net.py",
        f"{NET} --epochs 1000 --net_cfg vanilla-do --ens 30",
        [f"--do {p} {p} --lr {lr}" for p in ("0.1", "0.3", "0.5") for lr in ("0.0003", "0.001", "0.003")],
    ),
    "narrow": Method("train-net.py", f"--hid_dim 32 128 {TUNED} {{narrow}}/model.torch", FINE_TUNING),
    "wide": Method("train-net.py", f"--hid_dim 256 512 {TUNED} {{wide}}/model.torch", FINE_TUNING),
}

"""The methods that experiments compare, each with the same number of settings to choose from."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

from runs.directory import ROOT

FCONV, CIFAR = (shlex.quote(str(ROOT / "data" / name)) for name in ("fconv", "cifar"))


def listed(option: str, form: str, names: Sequence[str]) -> str:
    """The option with a path for each name, which stands for `{}` in the form."""
    return f"--{option}_list {' '.join(map(form.format, names))}"


VAES = listed("vae", f"{FCONV}/vae{{}}", ("7x7", "5x5"))
KERNELS = listed("filters", f"{FCONV}/conv{{}}/train.npy", ("7x7", "5x5"))
SHAPE = f"--model fconv --hid_dim 32 128 {VAES} --init_list vae vae --eval_freq 0"
CONVS3X3 = ("3x3-1", "3x3", "3x3")  # names of the kernels of fconv3x3's convs: the first conv has a VAE of its own
VAES3X3 = listed("vae", f"{FCONV}/vae{{}}", CONVS3X3)
SHAPE3X3 = f"--model fconv3x3 --hid_dim 32 64 64 {VAES3X3} --init_list vae vae vae --eval_freq 0"
KERNELS3X3 = listed("filters", f"{FCONV}/conv{{}}/train.npy", CONVS3X3)
CIFARNET = ("7x7", "5x5-2", "5x5-3", "5x5-4")  # names of the kernels of cifarnet's convs
CIFARNETNEW = CIFARNET[:3]
VAES_COLOUR = listed("vae", f"{CIFAR}/vae{{}}", CIFARNETNEW)
SHAPE_COLOUR = f"--model cifarnetnew --model_size 0.25 {VAES_COLOUR} --init_list vae vae vae --eval_freq 0"
KERNELS_COLOUR = listed("filters", f"{CIFAR}/conv{{}}/train.npy", CIFARNETNEW)
BATCH = 256  # images, the default of the scripts
SAMPLES = 30  # of a predictive distribution
BNN = f"{SHAPE} --net_cfg bayes --classifier_prior sn --lr_var 0.06 --kl_kernels 1024"
BNN += f" --ens 1 --draws {SAMPLES}"
NET = f"{SHAPE} --classifier_lamb 1"


class Prediction(NamedTuple):
    """A prediction of a network.

    mode, samples : the mode of Bayesian layers, and the number of samples whose probabilities are averaged.
    columns : the columns of its scores in the run's log.
    dropout : whether the dropout is on.
    tuning : further arguments of the runs whose accuracy chooses a setting: a third of the samples, in a third of the
        time. The NLL chooses by all samples, because fewer would disfavour wide posteriors.
    """

    mode: str
    samples: int
    columns: Mapping[str, str]
    dropout: bool = False
    tuning: str = ""


DRAWS = {score: f"draws/{score}" for score in ("acc", "nll", "ece", "brier")}
PREDICTIONS = {
    "draws": Prediction("weights", SAMPLES, DRAWS, tuning=f"--draws {SAMPLES // 3}"),
    "network": Prediction("det", 1, {"acc": "test_acc", "nll": "test_nll", "ece": "test/ece", "brier": "test/brier"}),
    "dropout": Prediction("det", SAMPLES, DRAWS, dropout=True, tuning=f"--ens {SAMPLES // 3}"),
}


class Method(NamedTuple):
    """A method of the comparison.

    script : name of the script.
    shared : the arguments of all trials.
    settings : further arguments to choose from.
    prediction : a name in PREDICTIONS.
    ensemble : whether an ensemble of networks with different seeds is reported as well.
    data : the data set of the reported tasks.
    tune_data : that of the tasks that choose the setting.
    epochs : of a training on one batch of images.

    In `shared`, `{flow7x7}` and so on stand for the run directories of SOURCES. In `data` and `tune_data`, `{cifar10}`
    stands for CIFAR-10, and `{cifar100}` for tasks of CIFAR-100.
    """

    script: str
    shared: str
    settings: Sequence[str]
    prediction: str
    ensemble: bool = False
    data: str = "mnist"
    tune_data: str = "not-mnist"
    epochs: int = 300

    @property
    def predicts_by(self) -> Prediction:
        """Its prediction."""
        return PREDICTIONS[self.prediction]

    def epochs_of(self, num_examples: int) -> int:
        """The epochs of a training on this many images, which has as many steps as one on a single batch."""
        return -(-self.epochs // math.ceil(num_examples / BATCH))

    def arguments(self, num_examples: int, sources: Mapping[str, str]) -> str:
        """The arguments of all trials on this many images, with the run directories of SOURCES."""
        return f"{self.shared.format(**sources)} --epochs {self.epochs_of(num_examples)}"


def with_kernels(method: Method, folder: str) -> Method:
    """The method with the VAEs and kernels of another folder in place of data/fconv; itself if it uses none of them, or
    a flow, which has learnt those of data/fconv."""
    if "{flow" in method.shared or ("--init_list xavier" in method.shared and "--prior vae" not in method.shared):
        return method
    return method._replace(shared=method.shared.replace(f"{FCONV}/", f"{shlex.quote(folder)}/"))


def grid(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Each of the first arguments with each of the second."""
    return [f"{a} {b}".strip() for a, b in product(first, second)]


def options(name: str, *values: float) -> list[str]:
    """An option with each of these values."""
    return [f"--{name} {value:g}" for value in values]


# KL weights, each with the deviation of the classifier's prior at which the weighted penalty of the classifier's means
# is that of N(0, 1) without a weight.
KL_WEIGHTS = [f"--kl_weight {w:g} --classifier_lamb {w**0.5:.3g}" for w in (0.001, 0.003, 0.01)]
RATES = options("lr", 0.003, 0.01, 0.03)
BAYESIAN = grid(KL_WEIGHTS, RATES)

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
        "--data {data} --hid_dim 32 128 --l2 0.001 --bs 64 --lr 0.003 --epochs 8 --eval_freq 8",
    ),
    "wide": (
        "train-net.py",
        "--data {data} --hid_dim 256 512 --l2 0.001 --bs 64 --lr 0.003 --epochs 4 --eval_freq 4",
    ),
}
TUNED = "--eval_freq 0 --classifier_lamb 1 --init_list pretrained --pretrained_classifier 0 --pretrained"
FINE_TUNING = grid(("", "--l2 0.001", "--rfe 1"), options("lr", 0.0003, 0.001, 0.003))

METHODS = {
    "dwp": Method("train-bnn.py", f"{BNN} --prior vae", BAYESIAN, "draws", ensemble=True),
    "frozen": Method(
        "train-net.py",
        f"{SHAPE} --rfe 1",
        grid(options("classifier_lamb", 1, 3, 10), RATES),
        "network",
        ensemble=True,
        epochs=1000,
    ),
    "map": Method(
        "train-net.py",
        NET,
        grid(options("dwp_reg", 0.00002, 0.0002, 0.002), RATES),
        "network",
        ensemble=True,
    ),
    "no": Method("train-bnn.py", f"{BNN} --prior no", BAYESIAN, "draws"),
    "sn": Method(
        "train-bnn.py", f"{BNN} --prior sn --lr 0.01", grid(KL_WEIGHTS, options("lamb", 0.03, 0.1, 0.3)), "draws"
    ),
    "gauss": Method("train-bnn.py", f"{BNN} {KERNELS} --prior gauss", BAYESIAN, "draws"),
    "loguniform": Method("train-bnn.py", f"{BNN} --prior loguniform", BAYESIAN, "draws"),
    "flow": Method("train-bnn.py", f"{BNN} --prior flow --flow_list {{flow7x7}} {{flow5x5}}", BAYESIAN, "draws"),
    "l2": Method("train-net.py", NET, grid(options("l2", 0.0001, 0.001, 0.01), RATES), "network", ensemble=True),
    "dropout": Method(
        "train-net.py",
        f"{NET} --net_cfg vanilla-do --ens {SAMPLES}",
        grid([f"--do {p} {p}" for p in (0.3, 0.5, 0.7)], RATES),
        "dropout",
    ),
    "narrow": Method(
        "train-net.py",
        f"--hid_dim 32 128 {TUNED} {{narrow}}/model.torch",
        FINE_TUNING,
        "network",
        tune_data="not-mnist5",
    ),
    "wide": Method(
        "train-net.py",
        f"--hid_dim 256 512 {TUNED} {{wide}}/model.torch",
        FINE_TUNING,
        "network",
        tune_data="not-mnist5",
    ),
}


def with_init(method: Method, init: str, more: str = "") -> Method:
    """The method with all convs initialized in another way than with kernels that VAEs decode, and more arguments."""
    shared = re.sub(r"--init_list( vae)+", lambda found: found[0].replace(" vae", f" {init}"), method.shared)
    return method._replace(shared=f"{shared} {more}".strip())


def with_network(method: Method, shape: str, kernels: str, more: str = "") -> Method:
    """The method on another network, given by the options of the network and its VAEs, and of its source kernels; and
    more arguments."""
    assert SHAPE in method.shared
    return method._replace(shared=f"{method.shared.replace(SHAPE, shape).replace(KERNELS, kernels)} {more}".strip())


# On a network of three convs of 3x3 kernels.
METHODS |= {
    f"{name}-3x3": with_network(METHODS[name], SHAPE3X3, KERNELS3X3)
    for name in ("dwp", "frozen", "map", "no", "sn", "gauss", "l2")
}
# With the codes of the initial kernels spread evenly.
METHODS |= {f"{name}-qmc": with_init(METHODS[name], "vae-qmc") for name in ("dwp", "frozen")}
# From Xavier's kernels.
METHODS |= {f"{name}-xavier": with_init(METHODS[name], "xavier") for name in ("sn", "frozen", "sn-3x3", "frozen-3x3")}
# What is compared unless methods are named: neither the network of 3x3 kernels nor, below, augmented images.
DEFAULT = [name for name in METHODS if "3x3" not in name]
# With images that are shifted, rotated and scaled a little in each step.
for name in ("dwp", "frozen", "map", "no", "sn", "gauss", "loguniform", "flow", "l2", "dropout", "narrow", "wide"):
    METHODS[f"{name}-aug"] = METHODS[name]._replace(shared=f"{METHODS[name].shared} --aug affine")
# On colour images, which are cropped and flipped at random: CIFAR-10, under VAEs of CIFAR-100's kernels.
CLASSIFICATION = ("dwp", "loguniform", "sn", "gauss", "no", "l2", "frozen")
METHODS |= {
    f"{name}-colour": with_network(METHODS[name], SHAPE_COLOUR, KERNELS_COLOUR, "--aug 1")._replace(
        data="{cifar10}", tune_data="{cifar100}"
    )
    for name in CLASSIFICATION
}
# The same from Xavier's kernels, and from source kernels instead of those that the VAEs decode.
METHODS |= {
    f"{name}-xavier": with_init(METHODS[name], "xavier") for name in ("dwp-aug", "sn-aug", "l2-aug", "l2-colour")
}
METHODS["l2-aug-filters"] = with_init(METHODS["l2-aug"], "filters", KERNELS)

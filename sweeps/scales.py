"""The scales of `sweeps.pipeline`: the arguments of each stage.

In the arguments of networks `{source}` stands for the source data set, `{bs}` for the images of a batch, and `{epochs}`
for the epochs that have the scale's steps on the source data set.
"""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

STEPS = 18_000  # of a source network, after which the norms of its kernels have two peaks (RESULTS.md)


class Sweep(NamedTuple):
    """The arguments of a sweep of one of the scripts."""

    grid: str  # options with the values to try, as before `--` in `python -m sweeps`
    shared: str  # the arguments of all trials; `{vae7x7}` stands for the folder of the 7x7 VAE, and so on


class Kernels(NamedTuple):
    """The kernels of one size or conv."""

    nets: Sequence[str]  # names of the sweeps of source networks
    min_norm: float  # kernels of at least this norm are kept


class Vae(NamedTuple):
    """The VAEs of one name."""

    kernels: str  # the name of the kernels that they learn
    shared: str  # the arguments of train-vae.py
    seeds: str = "--seed 42"


class Ranking(NamedTuple):
    """VAEs of several seeds to be ranked as priors: those of the same place in their sweeps are one candidate."""

    vaes: Sequence[str]  # the name of the VAEs of each conv
    network: str  # the arguments of train-net.py


class Scale(NamedTuple):
    """The pipeline at one scale."""

    nets: dict[str, Sweep]  # sweeps of train-net.py by name
    kernels: dict[str, Kernels]  # by name: "5x5" are those of all convs of this size, "5x5-2" those of conv 2
    vaes: dict[str, Vae]  # by name
    rankings: Mapping[str, Ranking] = {}  # by name; of VAEs that no ranking has, the first is taken
    bnns: Mapping[str, Sweep] = {}  # sweeps of train-bnn.py by name
    by: str = "num_examples prior_list"  # the arguments of train-bnn.py by which the results are grouped
    figure_kernels: int = 1000  # at most, in the VAE's figures
    figure_samples: int = 10  # estimates of each KL there
    source: str = "not-mnist"  # data set of the source networks, unless another is named
    bs: int = 32  # images of a batch of a source network
    steps: int = STEPS  # of a source network, at least

    def places(self, source: str, n: int) -> dict[str, str]:
        """What `{source}`, `{bs}` and `{epochs}` stand for, with a source data set of n training images."""
        epochs = math.ceil(self.steps / math.ceil(n / self.bs))
        return {"source": source, "bs": str(self.bs), "epochs": str(epochs)}

    def stages(self, places: Mapping[str, str]) -> Iterator[tuple[str, str, str, list[str]]]:
        """The stages that need images: name, script, grid and the arguments of all trials, as of a `Sweep`."""
        for name, (grid, shared) in self.nets.items():
            yield f"nets-{name}", "train-net.py", grid, filled(shared, places)
        for name, (_, network) in self.rankings.items():
            yield f"rank-{name}", "train-net.py", "", filled(network, places)
        for name, (grid, shared) in self.bnns.items():
            yield f"bnns-{name}", "train-bnn.py", grid, filled(shared, places)


def filled(shared: str, places: Mapping[str, str]) -> list[str]:
    """The words of a stage's arguments, with what `{source}` and so on stand for."""
    return [word.format(**places) for word in shlex.split(shared)]


FCONV = "--data {source} --model fconv --net_cfg vanilla --l2 0.001"
FCONV3X3 = "--data {source} --model fconv3x3 --net_cfg vanilla --l2 0.001"
SEEDS = "--seed 1..5"  # of VAEs that are ranked
RANKING = "--data {source} --num_examples 50 --classifier_lamb 3"
LAPTOP_VAE = "--lr_schedule linear --eval_freq 20"
EPOCHS_200, EPOCHS_30 = "--num_epochs 200 --batch_size 32", "--num_epochs 30 --batch_size 128"
BNN = "--model fconv --net_cfg bayes --vae_list {vae7x7} {vae5x5} --init_list vae vae"
PRIORS = "--prior_list 'vae vae' 'sn sn'"
# The settings that experiments.few_shot chose for each prior, with augmented images (RESULTS.md).
FEW_IMAGES = "--aug affine --classifier_prior sn --lr_var 0.06 --kl_kernels 1024 --epochs 300 --eval_freq 0"
FEW_IMAGES += " --ens 1 --draws 30"
CHOSEN = {
    "vae": "--kl_weight 0.001 --classifier_lamb 0.0316 --lr 0.01",
    "sn": "--kl_weight 0.001 --classifier_lamb 0.0316 --lamb 0.1 --lr 0.01",
}
FEW_TASKS = "--num_examples 50 100 --data_split_seed 0..4"

SMOKE_BNN = f"{BNN} --data {{source}} --num_examples 20 --hid_dim 3 4 --epochs 2 --ens 2"
SMOKE_RANKING = "--data {source} --num_examples 20 --hid_dim 3 4 --classifier_lamb 3"
LAPTOP_NET = "--bs {bs} --lr 0.002 --precision auto --epochs {epochs} --eval_freq 0"
COLOUR_NET = f"--data {{source}} --net_cfg vanilla --model_size 0.25 --l2 0.001 {LAPTOP_NET}"
COLOUR_VAE = f"--z_dim 4 --var train {LAPTOP_VAE}"
COLOUR_RANKING = "--data {source} --model_size 0.25 --num_examples 500 --classifier_lamb 0.3"
LAPTOP_BNN = f"{BNN} {FEW_IMAGES} --data mnist --hid_dim 32 128"
PAPER_BNN = f"{BNN} --data mnist --hid_dim 32 128 --epochs 10000 --eval_freq 100"

SCALES = {
    # Every stage with its smallest arguments, as a test of the pipeline. The VAEs are no useful priors.
    "smoke": Scale(
        nets={"all": Sweep("--seed 1..2", f"{FCONV} --hid_dim 4 6 --num_examples 50 --epochs 2 --bs 25")},
        kernels={"7x7": Kernels(["all"], 0), "5x5": Kernels(["all"], 0)},
        vaes={
            "7x7": Vae("7x7", "--hidden_dim 4 --z_dim 2 --num_epochs 3", "--seed 1..3"),
            "5x5": Vae("5x5", "--hidden_dim 4 --z_dim 3 --num_epochs 3", "--seed 1..3"),
        },
        rankings={"fconv": Ranking(["7x7", "5x5"], SMOKE_RANKING)},
        bnns={"all": Sweep(f"{PRIORS} --data_split_seed 0..1", SMOKE_BNN)},
        figure_kernels=20,
        figure_samples=2,
    ),
    # The kernels and VAEs of data/fconv; its README gives the reasons for these arguments.
    "laptop": Scale(
        nets={
            # Narrow networks, long trained, are a cheap source of converged kernels.
            "fconv": Sweep("--seed 1..80", f"{FCONV} --hid_dim 64 32 {LAPTOP_NET}"),
            "3x3": Sweep(
                "--seed 301..306", f"{FCONV3X3} --hid_dim 32 64 64 --bs 64 --lr 0.003 --epochs 8 --eval_freq 8"
            ),
            "3x3-1": Sweep("--seed 301..308", f"{FCONV3X3} --hid_dim 32 64 64 {LAPTOP_NET}"),
        },
        kernels={
            "7x7": Kernels(["fconv"], 0.2),
            "5x5": Kernels(["fconv"], 0.1),
            "3x3": Kernels(["3x3"], 0.1),
            "3x3-1": Kernels(["3x3-1"], 0.03),
        },
        vaes={
            "7x7": Vae("7x7", f"--hidden_dim 32 --z_dim 2 {EPOCHS_200} --var train {LAPTOP_VAE}", SEEDS),
            "5x5": Vae("5x5", f"--hidden_dim 16 --z_dim 2 {EPOCHS_30} --var 0.0015 {LAPTOP_VAE}", SEEDS),
            # For the whole KL, under which posteriors of kernels of many norms become one kernel near zero.
            "7x7-scaled": Vae(
                "7x7", f"--norm 1 --hidden_dim 32 --z_dim 4 {EPOCHS_200} --var train {LAPTOP_VAE}", SEEDS
            ),
            "5x5-scaled": Vae(
                "5x5", f"--norm 0.25 --hidden_dim 16 --z_dim 2 {EPOCHS_30} --var train {LAPTOP_VAE}", SEEDS
            ),
            "3x3": Vae(
                "3x3", f"--hidden_dim 16 --z_dim 2 --num_epochs 100 --batch_size 128 --var 0.0002 {LAPTOP_VAE}", SEEDS
            ),
            # The first conv's kernels are edges: three directions have 98% of their variance.
            "3x3-1": Vae(
                "3x3-1", f"--hidden_dim 16 --z_dim 2 --num_epochs 400 --batch_size 32 --var train {LAPTOP_VAE}", SEEDS
            ),
        },
        rankings={
            "fconv": Ranking(["7x7", "5x5"], f"{RANKING} --hid_dim 32 128"),
            "fconv-scaled": Ranking(["7x7-scaled", "5x5-scaled"], f"{RANKING} --hid_dim 32 128"),
            "fconv3x3": Ranking(["3x3-1", "3x3", "3x3"], f"{RANKING} --model fconv3x3 --hid_dim 32 64 64"),
        },
        bnns={
            prior: Sweep(FEW_TASKS, f"{LAPTOP_BNN} --prior_list {prior} {prior} {chosen}")
            for prior, chosen in CHOSEN.items()
        },
    ),
    # The kernels and VAEs of data/cifar; its README gives the reasons for these arguments.
    "cifar": Scale(
        nets={
            "cifarnet": Sweep("--seed 1..5", f"{COLOUR_NET} --model cifarnet"),
            "cifarnet3x3": Sweep("--seed 1..4", f"{COLOUR_NET} --model cifarnet3x3"),
        },
        kernels={
            "7x7": Kernels(["cifarnet"], 0.02),
            "5x5-2": Kernels(["cifarnet"], 0.02),
            "5x5-3": Kernels(["cifarnet"], 0.02),
            "5x5-4": Kernels(["cifarnet"], 0.035),
            "3x3-1": Kernels(["cifarnet3x3"], 0.05),
            "3x3-2": Kernels(["cifarnet3x3"], 0.05),
            "3x3-3": Kernels(["cifarnet3x3"], 0.05),
        },
        vaes={
            "7x7": Vae("7x7", f"{COLOUR_VAE} --hidden_dim 32 --num_epochs 400 --batch_size 32", SEEDS),
            "5x5-2": Vae("5x5-2", f"{COLOUR_VAE} --hidden_dim 16 --num_epochs 100 --batch_size 128", SEEDS),
            "5x5-3": Vae("5x5-3", f"{COLOUR_VAE} --hidden_dim 16 --num_epochs 80 --batch_size 128", SEEDS),
            "5x5-4": Vae("5x5-4", f"{COLOUR_VAE} --hidden_dim 16 --num_epochs 30 --batch_size 128", "--seed 1"),
            "3x3-1": Vae("3x3-1", f"{COLOUR_VAE} --hidden_dim 16 --num_epochs 800 --batch_size 32", SEEDS),
            "3x3-2": Vae("3x3-2", f"{COLOUR_VAE} --hidden_dim 16 --num_epochs 120 --batch_size 32", SEEDS),
            "3x3-3": Vae("3x3-3", f"{COLOUR_VAE} --hidden_dim 16 --num_epochs 80 --batch_size 32", SEEDS),
        },
        rankings={
            "cifarnetnew": Ranking(["7x7", "5x5-2", "5x5-3"], f"{COLOUR_RANKING} --model cifarnetnew"),
            "cifarnet3x3": Ranking(["3x3-1", "3x3-2", "3x3-3"], f"{COLOUR_RANKING} --model cifarnet3x3"),
        },
        source="cifar100",
        bs=64,
    ),
    # The paper's networks, VAEs and epochs.
    "paper": Scale(
        nets={"all": Sweep("--seed 0..99", f"{FCONV} --bs 256 --hid_dim 256 512")},
        kernels={"7x7": Kernels(["all"], 0.2), "5x5": Kernels(["all"], 0.13)},
        vaes={
            "7x7": Vae("7x7", "--hidden_dim 32 --z_dim 2 --num_epochs 300"),
            "5x5": Vae("5x5", "--hidden_dim 64 --z_dim 4 --num_epochs 300"),
        },
        bnns={"all": Sweep(f"{PRIORS} --num_examples 50 100 --data_split_seed 0..9", PAPER_BNN)},
    ),
}

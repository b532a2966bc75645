"""Learning from few images: every method with settings chosen on the source domain, then compared on MNIST.

    python -m experiments.few_shot [--num_examples 50 100] [--methods dwp sn frozen] [--out DIR] [-- --cpus 1]

1. Each method has the same number of settings. Each setting is trained on few-shot tasks of notMNIST, whose test images
   are of other typefaces (`--tune_splits`). The setting and prediction with the largest mean accuracy are chosen, and
   written with all others to `settings.yaml`. MNIST's labels choose nothing.
2. Each method is trained on MNIST with its chosen settings, for all `--splits` and `--seeds`.
3. `results.csv`: per method the mean accuracy, NLL and ECE with the standard error over splits, and the paired
   difference of each method from the first one with its standard error. `differences.png` draws the differences.

Runs are trials of sweeps: the same command continues a stopped one, and skips what is finished. After `--` come the
options of sweeps.
"""

import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from runs.directory import ROOT, dwp_path
from runs.errors import UserError, one_line_errors, require_packages
from runs.files import atomic_write, write_yaml
from runs.log import csv_text, read_rows
from runs.options import SEED, WHOLE, Parser, number_type
from sweeps.cluster import Resources, add_resource_options, checked_resources, run_sweep
from sweeps.trials import find_script, make_trial

FCONV = ROOT / "data" / "fconv"
VAES = f"--vae_list {FCONV / 'vae7x7'} {FCONV / 'vae5x5'}"
KERNELS = f"--filters_list {FCONV / 'conv7x7' / 'train.npy'} {FCONV / 'conv5x5' / 'train.npy'}"
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
    "train-net.py": {"network": {"acc": "test_acc", "nll": "test_nll", "ece": "test/ece"}},
}
# KL weights, each with the deviation of the classifier's prior that keeps the weight of the classifier's penalty at 1.
KL_WEIGHTS = ("1 --classifier_lamb 1", "0.1 --classifier_lamb 0.3", "0.01 --classifier_lamb 0.1")
RATES = ("", "--lr_var 0.02")


def bayesian_settings(*more: str) -> list[str]:
    """Settings of each KL weight: with the two rates of the variances, and with the larger rate and each of `more`."""
    weights = [f"--kl_weight {weight}" for weight in KL_WEIGHTS]
    return [f"{weight} {rate}".strip() for weight in weights for rate in (*RATES, *(f"{RATES[1]} {m}" for m in more))]


class Method(NamedTuple):
    """A method of the comparison: a script, the arguments of all its trials, and the settings to choose from."""

    script: str
    shared: str
    settings: Sequence[str]


METHODS = {
    "dwp": Method("train-bnn.py", f"{BNN} --prior vae", bayesian_settings("--logvarinit -7")),
    "frozen": Method(
        "train-net.py",
        f"{NET} --rfe 1",
        [f"--lr {lr} --epochs {epochs}" for lr in ("0.0003", "0.001", "0.003") for epochs in (300, 1000, 3000)],
    ),
    "map": Method(
        "train-net.py",
        f"{NET} --epochs 1000",
        [f"--dwp_reg {w} --lr {lr}" for w in ("0.00001", "0.0001", "0.001") for lr in ("0.0003", "0.001", "0.003")],
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
}

Score = dict[str, float]
Scores = dict[tuple[str, str], list[Score]]  # of each task, by setting and prediction


def trained(
    name: str, methods: dict[str, Sequence[str]], tasks: Sequence[str], resources: Resources, command: str
) -> dict[str, Scores]:
    """Train each method with each of its settings on each task, as one sweep per script; scores by method.

    Raises as `run_sweep`.
    """
    found: dict[str, Scores] = {method: {} for method in methods}
    for script in dict.fromkeys(METHODS[method].script for method in methods):
        own = [(method, setting, task) for method in methods for setting in methods[method] for task in tasks]
        own = [(method, setting, task) for method, setting, task in own if METHODS[method].script == script]
        words = [f"{METHODS[method].shared} {setting} {task}" for method, setting, task in own]
        trials = [make_trial(find_script(script), shlex.split(line), line) for line in words]
        roots = run_sweep(f"{name}-{Path(script).stem}", trials, resources, command)
        for (method, setting, _), root in zip(own, roots, strict=True):
            last = read_rows(root / f"{script}-logs.csv")[-1]
            for prediction, columns in PREDICTIONS[script].items():
                scores = {score: last[column] for score, column in columns.items()}
                found[method].setdefault((setting, prediction), []).append(scores)
    return found


def mean_scores(scores: Sequence[Score]) -> Score:
    """The mean of each score."""
    return {name: statistics.fmean(row[name] for row in scores) for name in scores[0]}


def by_split(scores: Sequence[Score], splits: int) -> list[Score]:
    """Means over the seeds of each split, of scores whose seed varies fastest."""
    seeds = len(scores) // splits
    return [mean_scores(scores[i * seeds : (i + 1) * seeds]) for i in range(splits)]


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean of independent values; NaN of a single one."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def result_rows(num_examples: int, scores: dict[str, list[Score]]) -> list[dict[str, Any]]:
    """A row per method, from its scores by split: means, standard errors, and paired differences from the first method.

    The splits are the independent units: t has n - 1 degrees of freedom, and `interval` is half of the 95% interval.
    """
    from scipy import stats

    first = next(iter(scores.values()))
    rows = []
    for method, own in scores.items():
        row: dict[str, Any] = {"num_examples": num_examples, "method": method, "splits": len(own)}
        for name in ("acc", "nll", "ece"):
            row[name] = statistics.fmean(s[name] for s in own)
            row[f"{name}_se"] = standard_error([s[name] for s in own])
        differences = [a["acc"] - b["acc"] for a, b in zip(first, own, strict=True)]
        row["lead"], row["lead_se"] = statistics.fmean(differences), standard_error(differences)
        row["lead_interval"] = row["lead_se"] * stats.t.ppf(0.975, len(own) - 1)
        rows.append(row)
    return rows


def plot_differences(rows: Sequence[dict[str, Any]], first: str, path: Path) -> None:
    """Draw the lead of the first method over each other one, with the 95% interval: a panel per number of images."""
    from sweeps.plots import Curve, plot_panels, save

    panels = {}
    for n in dict.fromkeys(row["num_examples"] for row in rows):
        own = [row for row in rows if row["num_examples"] == n and row["method"] != first]
        columns = ([row[name] for row in own] for name in ("method", "lead", "lead_interval"))
        panels[f"accuracy: {first} minus method, {n} images"] = [Curve("mean and 95% interval over splits", *columns)]
    save(plot_panels(panels, "method"), path)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    own, sweep_words = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--num_examples", type=WHOLE, nargs="+", default=[50, 100], help="numbers of training images")
    add("--methods", choices=tuple(METHODS), nargs="+", default=list(METHODS), help="the first is compared with each")
    splits = number_type(int, 0, 2**32 - 1)
    add("--tune_splits", type=splits, nargs="+", default=list(range(100, 106)), help="splits of the source tasks")
    add("--splits", type=splits, nargs="+", default=list(range(10)), help="splits of MNIST")
    add("--seeds", type=SEED, nargs="+", default=[42, 43, 44], help="seeds of each split of MNIST")
    add("--out", type=Path, help="folder of the results, by default $DWP_PATH/few-shot")
    args = parser.parse_args(own)
    sweep_parser = Parser("")
    add_resource_options(sweep_parser)
    resources = checked_resources(sweep_parser.parse_args(sweep_words))
    for option in ("num_examples", "methods", "tune_splits", "splits", "seeds"):
        if len(set(getattr(args, option))) < len(getattr(args, option)):
            raise UserError(f"--{option}: found a value twice, expected it once")
    require_packages("few_shot", "ray")
    import tabulate

    out = (args.out or dwp_path() / "few-shot").absolute()
    command = f"python -m experiments.few_shot {shlex.join(argv)}"
    settings: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for n in args.num_examples:
        tasks = [f"--data not-mnist --num_examples {n} --data_split_seed {k} --seed 42" for k in args.tune_splits]
        all_settings = {method: METHODS[method].settings for method in args.methods}
        tuned = trained(f"few-shot-{n}-tune", all_settings, tasks, resources, command)
        chosen = {}
        for method, found in tuned.items():
            means = {choice: mean_scores(scores) for choice, scores in found.items()}
            chosen[method] = max(means, key=lambda choice: means[choice]["acc"])
            tried = [f"{setting} ({prediction}): {score}" for (setting, prediction), score in means.items()]
            settings[f"{n} images, {method}"] = " | ".join(chosen[method])
            settings[f"{n} images, {method}, tried"] = tried
        # Before the first run on MNIST.
        write_yaml(out / "settings.yaml", {"command": command, "tune_splits": args.tune_splits, **settings})
        tasks = [
            f"--data mnist --num_examples {n} --data_split_seed {k} --seed {seed}"
            for k in args.splits
            for seed in args.seeds
        ]
        one = {method: [setting] for method, (setting, _) in chosen.items()}
        results = trained(f"few-shot-{n}", one, tasks, resources, command)
        scores = {method: by_split(results[method][choice], len(args.splits)) for method, choice in chosen.items()}
        rows += result_rows(n, scores)
        with atomic_write(out / "results.csv") as file:
            file.write(csv_text(rows).encode())
    plot_differences(rows, args.methods[0], out / "differences.png")
    print(tabulate.tabulate(rows, "keys", floatfmt=".4f"))
    print(f"results: {out}")


if __name__ == "__main__":
    main()

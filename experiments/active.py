"""Which image to label next: accuracy against labels, by uncertainty and at random.

    python -m experiments.active --scale smoke|laptop|paper [--settings FILE.yaml] [--out DIR] [--report FILE.md]
        [-- --cpus 1]

A network learns from a few labelled images of MNIST, predicts the unlabelled ones of a pool, and the images that a
strategy picks get their labels: those with the largest mutual information of label and weights (Houlsby et al. 2011),
those with the largest entropy, or random ones. Then a new network is trained, and so on. The methods have the settings
that `experiments.few_shot` chooses on letters; with one seed all strategies start from the same images and networks.

The figure has means and standard deviations over seeds. The table also has the mean accuracy over all numbers of
labels, and its paired difference from that of random images with half of the 95% interval (Student's t over seeds).
`active.csv` has the accuracies of all networks.
Predictions are kept in $DWP_PATH/active-<scale>, so a stopped experiment continues.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.paper import Experiment, difference_text, mean_curve, mean_text, parse, write_report
from experiments.predictions import Predictions, predict_run
from experiments.protocol import tune_experiment
from experiments.subsets import stored_npz
from runs.errors import one_line_errors
from runs.log import write_csv

STRATEGIES = ("mutual_information", "entropy", "random")
Chain = tuple[str, str, int]  # method, strategy, seed


class Part(NamedTuple):
    """An experiment.

    numbers : of labels, of the first network to the last.
    pool, test : images at most.
    shown : numbers of labels in the table.
    tune_splits, letters : of the tasks that choose settings.
    """

    numbers: Sequence[int] = range(20, 201, 10)
    seeds: Sequence[int] = range(5)
    methods: Sequence[str] = ("dwp-aug", "sn-aug")
    pool: int = 2000
    test: int = 2000
    shown: Sequence[int] = (20, 50, 100, 200)
    tune_splits: Sequence[int] = range(100, 106)
    letters: int = 50
    data: str = "mnist"


SCALES = {
    "smoke": {"mnist": Part((20, 30), (0, 1), ("dropout",), 50, 50, (20, 30), (100,), 10)},
    "laptop": {"mnist": Part()},
    "paper": {"mnist": Part(pool=10**6, test=10**6)},
}


def picked(strategy: str, predictions: Predictions, labelled: Sequence[int], n: int, seed: int) -> list[int]:
    """The n images of the pool, by index, that a strategy labels next; `labelled` are those that have labels."""
    values = (
        np.random.default_rng([seed, len(labelled)]).random(len(predictions.log_p))
        if strategy == "random"
        else predictions.uncertainty()[strategy].numpy()
    )
    left = np.setdiff1d(np.arange(len(values)), labelled)
    return left[np.argsort(-values[left], kind="stable")[:n]].tolist()


def run_chains(experiment: Experiment, part: Part) -> tuple[dict[Chain, list[float]], list[Path]]:
    """The accuracies of each chain by number of labels, and the run directories."""
    import torch

    import utils

    sweeps, chosen = tune_experiment(experiment, part.methods, part.letters, part.tune_splits)
    sources = sweeps.train_sources(part.methods, "not-mnist")
    pool, test = (
        data[torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))[:most]]
        for data, most in zip(utils.load_data(part.data), (part.pool, part.test), strict=True)
    )
    sets = {"pool": pool, "test": test}
    starts = {seed: utils.few_shot_split(pool.labels, part.numbers[0], seed).tolist() for seed in part.seeds}
    labelled = {
        (method, strategy, seed): starts[seed]
        for method in part.methods
        for strategy in STRATEGIES
        for seed in part.seeds
    }
    accuracies: dict[Chain, list[float]] = {chain: [] for chain in labelled}
    found: list[Path] = []
    for number, following in zip(part.numbers, [*part.numbers[1:], None], strict=True):
        for name in part.methods:
            method, lines = sweeps.methods[name], {}
            for chain, index in labelled.items():
                if chain[0] == name:
                    file = stored_npz(experiment.kept / "labelled", pool[list(index)])
                    task = f"--data {shlex.quote(str(file))} --seed {chain[2]}"
                    lines[chain] = f"{method.arguments(number, sources)} {chosen[name].setting} {task}"
            distinct = list(dict.fromkeys(lines.values()))  # strategies start from the same images
            roots = experiment.run(f"{name}-{number}", method.script, distinct)
            found += roots
            folder = experiment.kept / "predictions"
            each = [predict_run(root, method.predicts_by, sets, folder / f"{name}-{root.name}.npz") for root in roots]
            predicted = dict(zip(distinct, each, strict=True))
            for chain, line in lines.items():
                own = predicted[line]
                accuracies[chain].append((own["test"].log_p.argmax(1) == test.labels).double().mean().item())
                if following:
                    more = picked(chain[1], own["pool"], labelled[chain], following - number, chain[2])
                    labelled[chain] = [*labelled[chain], *more]
    return accuracies, found


def table_of(part: Part, accuracies: dict[Chain, list[float]]) -> list[list[str]]:
    """The table, with its headers."""
    shown = [list(part.numbers).index(number) for number in part.shown]
    rows = [["method", "images picked by", *(f"{n} labels" for n in part.shown), "mean", "mean minus that of random"]]
    for method in part.methods:
        means = {s: [float(np.mean(accuracies[method, s, seed])) for seed in part.seeds] for s in STRATEGIES}
        for strategy, own in means.items():
            interval = difference_text(own, means["random"], 3) if strategy != "random" else ""
            cells = [mean_text([accuracies[method, strategy, seed][i] for seed in part.seeds], 3) for i in shown]
            rows.append([method, strategy.replace("_", " "), *cells, mean_text(own, 3), interval])
    return rows


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    experiment = parse("active", __doc__, SCALES, argv, data=("settings",))
    panels: dict[str, list[Any]] = {}
    rows: list[dict[str, Any]] = []
    tables: dict[str, list[list[str]]] = {}
    roots: list[Path] = []
    for name in experiment.parts:
        part = SCALES[experiment.scale][name]
        accuracies, own = run_chains(experiment, part)
        roots += own
        for (method, strategy, seed), values in accuracies.items():
            chain = {"method": method, "strategy": strategy, "seed": seed}
            rows += [chain | {"labels": n, "acc": value} for n, value in zip(part.numbers, values, strict=True)]
        tables["Accuracy on test images, mean ± standard deviation over seeds (n):"] = table_of(part, accuracies)
        for method in part.methods:
            values = {s: zip(*(accuracies[method, s, seed] for seed in part.seeds), strict=True) for s in STRATEGIES}
            panels[f"{method}: test accuracy"] = [
                mean_curve(strategy.replace("_", " "), list(part.numbers), list(own))
                for strategy, own in values.items()
            ]
    write_csv(experiment.out / "active.csv", rows)
    write_report(experiment, tables, roots, panels, "labels", bands=True)


if __name__ == "__main__":
    main()

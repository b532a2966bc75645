"""The paper's figure of classification: accuracy, NLL and ECE on MNIST against the number of training images.

    python -m experiments.classification --scale smoke|laptop|paper [--out DIR] [--report FILE.md] [-- --cpus 1]

Two blocks: *as we would run it*, the methods of `experiments.few_shot` with images that are augmented in each step, and
with the settings that it chooses on tasks of 50 letters, for all numbers of images; and *as published*: 10,000 epochs,
no temperature, no prior of the classifier, no augmentation, the published rates, and an ensemble of 10 samples of the
network. All start from kernels that the VAEs of data/fconv decode and learn from the same images. The figure,
`classification.png` and `.pdf`, has means and standard errors over splits, whose seeds are averaged first; values of
the paper's figure are dashed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.few_shot import Score, by_split, read_score, tune_experiment
from experiments.methods import SHAPE
from experiments.paper import Experiment, mean_text, parse, published, write_report
from runs.errors import one_line_errors
from runs.log import read_rows

if TYPE_CHECKING:
    from sweeps.plots import Curve

TITLES = {"ours": "As we would run it", "published": "As published"}
SCORES = {"acc": "test accuracy", "nll": "NLL, nats per image", "ece": "ECE"}
BNN = f"{SHAPE} --epochs 10000 --ens 10"
ENSEMBLE = {"acc": "ens[10]_test_acc", "nll": "test_nll", "ece": "ensemble/ece"}
NETWORK = {"acc": "test_acc", "nll": "test_nll", "ece": "test/ece"}
# By name a script, arguments, and the columns of the log with the scores.
AS_PUBLISHED = {
    "dwp": ("train-bnn.py", f"{BNN} --net_cfg bayes --prior vae", ENSEMBLE),
    "loguniform": ("train-bnn.py", f"{BNN} --net_cfg bayes-mtrunca --prior loguniform", ENSEMBLE),
    "sn": ("train-bnn.py", f"{BNN} --net_cfg bayes --prior sn", ENSEMBLE),
    "deterministic": ("train-net.py", f"{SHAPE} --epochs 10000", NETWORK),
}


class Ours(NamedTuple):
    """Methods as we would run them.

    splits : by the number of images.
    seeds : of each split.
    methods : names in `experiments.methods`.
    tune_splits, letters : of the tasks that choose their settings.
    """

    splits: Mapping[int, Sequence[int]]
    seeds: Sequence[int]
    methods: Sequence[str]
    tune_splits: Sequence[int] = range(100, 106)
    letters: int = 50


class Theirs(NamedTuple):
    """Methods as published, with the seed 42: splits by the number of images, and more options of Bayesian networks."""

    splits: Mapping[int, Sequence[int]]
    options: str = ""


METHODS = ("dwp-aug", "loguniform-aug", "sn-aug", "gauss-aug", "no-aug", "l2-aug", "frozen-aug")
SIZES = (50, 100, 200, 500, 1000)
# By scale and part.
SCALES = {
    "smoke": {"ours": Ours({10: (0, 1)}, (42,), ("frozen-aug", "l2-aug"), (100,), 10)},
    "laptop": {
        "ours": Ours({n: range(10 if n < 200 else 5) for n in SIZES}, (42, 43), METHODS),
        "published": Theirs({50: range(5)}, "--kl_kernels 512"),
    },
    "paper": {
        "ours": Ours(dict.fromkeys(SIZES, range(10)), (42, 43, 44), METHODS),
        "published": Theirs(dict.fromkeys(SIZES, range(10))),
    },
}
Results = dict[str, dict[int, list[Score]]]  # scores of each split by method and number of images


def run_ours(experiment: Experiment, part: Ours) -> tuple[Results, list[Path]]:
    """The results of methods with their chosen settings, and the run directories. Writes settings.yaml."""
    sweeps, chosen = tune_experiment(experiment, part.methods, part.letters, part.tune_splits)
    settings = {name: [own.setting] for name, own in chosen.items()}
    results: Results = {name: {} for name in part.methods}
    roots = []
    for n, splits in part.splits.items():
        for name, found in sweeps.train(str(n), settings, n, splits, part.seeds).items():
            results[name][n] = by_split([read_score(name, root) for root in found], len(splits))
            roots += found
    return results, roots


def run_theirs(experiment: Experiment, part: Theirs) -> tuple[Results, list[Path]]:
    """The results of methods as published, and the run directories."""
    results: Results = {name: {} for name in AS_PUBLISHED}
    roots = []
    for name, (script, shared, columns) in AS_PUBLISHED.items():
        more = part.options if script == "train-bnn.py" else ""
        for n, splits in part.splits.items():
            lines = [f"{shared} {more} --data mnist --num_examples {n} --data_split_seed {k} --seed 42" for k in splits]
            found = experiment.run(f"{name}-{n}", script, lines)
            last = [read_rows(root / f"{script}-logs.csv")[-1] for root in found]
            results[name][n] = [{score: row[column] for score, column in columns.items()} for row in last]
            roots += found
    return results, roots


def published_accuracies(method: str) -> dict[str, float]:
    """The published accuracies, by the number of images, of a method of `experiments.methods` or AS_PUBLISHED."""
    name = method.removesuffix("-aug")
    return published("classification", "mnist", {"l2": "deterministic"}.get(name, name))


def block(results: Results) -> list[list[str]]:
    """A table with its headers: per method and number of images, mean ± std (n) over splits, and published values."""
    rows = [["method", "images", *SCORES.values(), "published accuracy"]]
    for method, by_size in results.items():
        paper = published_accuracies(method)
        for n, splits in by_size.items():
            scores = [mean_text([split[name] for split in splits], 3) for name in SCORES]
            rows.append([method, str(n), *scores, f"{paper[str(n)]:g}" if str(n) in paper else ""])
    return rows


def panels_of(results: Results, title: str) -> dict[str, list["Curve"]]:
    """A panel of the figure for each score, with the published accuracies."""
    from sweeps.plots import Curve
    from sweeps.tables import summary

    panels: dict[str, list[Curve]] = {label: [] for label in SCORES.values()}
    for method, by_size in results.items():
        paper = published_accuracies(method)
        for score, label in SCORES.items():
            found = [summary([split[score] for split in own]) for own in by_size.values()]
            errors = [point["std"] / point["n"] ** 0.5 for point in found]
            points = [(str(n), paper[str(n)]) for n in by_size if score == "acc" and str(n) in paper]
            curve = Curve(method, [str(n) for n in by_size], [point["mean"] for point in found], errors, points)
            panels[label].append(curve)
    return {f"{label}, {title.lower()}": curves for label, curves in panels.items()}


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    experiment = parse("classification", __doc__, SCALES, argv)
    tables, panels, roots = {}, {}, []
    for name in experiment.parts:
        part = SCALES[experiment.scale][name]
        results, own = run_ours(experiment, part) if isinstance(part, Ours) else run_theirs(experiment, part)
        tables[f"{TITLES[name]}:"] = block(results)
        panels |= panels_of(results, TITLES[name])
        roots += own
    from sweeps.plots import plot_panels, save

    save(plot_panels(panels, "training images"), experiment.out / "classification.png", vector=True)
    write_report(experiment, tables, roots)


if __name__ == "__main__":
    main()

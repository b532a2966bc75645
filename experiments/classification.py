"""The paper's figure of classification: accuracy, NLL and ECE on MNIST against the number of training images.

    python -m experiments.classification --scale smoke|laptop|paper [--out DIR] [--report FILE.md] [-- --cpus 1]

Two blocks: *as we would run it*, the methods of `experiments.few_shot` with the settings that it chooses on tasks of 50
letters, for all numbers of images; and *as published*: 10,000 epochs, no temperature, no prior of the classifier, the
published rates, and an ensemble of 10 samples of the network. All start from kernels that the VAEs of data/fconv decode
and learn from the same images. The figure, `classification.png` and `.pdf`, has means and standard errors over splits,
whose seeds are averaged first; values of the paper's figure are dashed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.few_shot import Score, Sweeps, by_split, read_score, tune
from experiments.methods import SHAPE
from experiments.paper import mean_text, parse, published, write_report
from runs.errors import one_line_errors
from runs.log import read_rows

SCORES = {"acc": "test accuracy", "nll": "NLL, nats per image", "ece": "ECE"}
# The published names of methods, by those of `experiments.methods` and of AS_PUBLISHED.
PUBLISHED = {
    "dwp": "dwp",
    "loguniform": "loguniform",
    "sn": "sn",
    "l2": "deterministic",
    "deterministic": "deterministic",
}
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


class Scale(NamedTuple):
    """The runs of a scale.

    splits : by the number of images, of the methods as we would run them.
    seeds : of each split.
    methods : names in `experiments.methods`.
    tune_splits, letters : of the tasks that choose their settings.
    published_splits : as `splits`, of the published methods, whose seed is 42.
    published_options : further arguments of the published Bayesian networks.
    """

    splits: Mapping[int, Sequence[int]]
    seeds: Sequence[int]
    methods: Sequence[str]
    tune_splits: Sequence[int] = range(100, 106)
    letters: int = 50
    published_splits: Mapping[int, Sequence[int]] = {}
    published_options: str = ""


METHODS = ("dwp", "loguniform", "sn", "gauss", "no", "l2", "frozen")
SIZES = (50, 100, 200, 500, 1000)
SCALES = {
    "smoke": Scale({10: (0, 1)}, (42,), ("frozen", "l2"), (100,), 10),
    "laptop": Scale(
        {n: range(10 if n < 200 else 5) for n in SIZES},
        (42, 43),
        METHODS,
        published_splits={50: range(5)},
        published_options="--kl_kernels 512",
    ),
    "paper": Scale(
        dict.fromkeys(SIZES, range(10)), (42, 43, 44), METHODS, published_splits=dict.fromkeys(SIZES, range(10))
    ),
}


def block(results: Mapping[str, Mapping[int, list[Score]]], sizes: Sequence[int]) -> list[list[str]]:
    """A table with its headers: per method and number of images, mean ± std (n) over splits, and published values."""
    rows = [["method", "images", *SCORES.values(), "published accuracy"]]
    for method, by_size in results.items():
        paper = published("classification", "mnist", PUBLISHED.get(method, ""))
        for n in sizes:
            if n in by_size:
                scores = [mean_text([split[name] for split in by_size[n]], 3) for name in SCORES]
                rows.append([method, str(n), *scores, f"{paper[str(n)]:g}" if str(n) in paper else ""])
    return rows


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    experiment = parse("classification", __doc__, SCALES, argv)
    scale, roots = SCALES[experiment.scale], []
    sweeps = Sweeps(experiment.resources, experiment.command)
    settings = {
        name: [found[0]] for name, found in tune(sweeps, scale.methods, scale.letters, scale.tune_splits, "acc").items()
    }
    ours: dict[str, dict[int, list[Score]]] = {name: {} for name in scale.methods}
    for n, splits in scale.splits.items():
        for name, found in sweeps.train(str(n), settings, n, splits, scale.seeds).items():
            ours[name][n] = by_split([read_score(name, root) for root in found], len(splits))
            roots += found
    theirs: dict[str, dict[int, list[Score]]] = {name: {} for name in AS_PUBLISHED if scale.published_splits}
    for name in theirs:
        script, shared, columns = AS_PUBLISHED[name]
        more = scale.published_options if script == "train-bnn.py" else ""
        for n, splits in scale.published_splits.items():
            lines = [f"{shared} {more} --data mnist --num_examples {n} --data_split_seed {k} --seed 42" for k in splits]
            found = experiment.run(f"published-{name}-{n}", script, lines)
            last = [read_rows(root / f"{script}-logs.csv")[-1] for root in found]
            theirs[name][n] = [{score: row[column] for score, column in columns.items()} for row in last]
            roots += found
    draw(ours, scale, experiment.out)
    tables = {"As we would run it:": block(ours, list(scale.splits))}
    if theirs:
        tables["As published:"] = block(theirs, list(scale.published_splits))
    write_report(experiment, tables, roots)


def draw(results: Mapping[str, Mapping[int, list[Score]]], scale: Scale, out: Path) -> None:
    """The figure of the methods as we would run them, with the published curves."""
    from sweeps.plots import Curve, plot_panels, save
    from sweeps.tables import summary

    panels: dict[str, list[Curve]] = {label: [] for label in SCORES.values()}
    for method, by_size in results.items():
        paper = published("classification", "mnist", PUBLISHED.get(method, ""))
        for score, label in SCORES.items():
            found = [summary([split[score] for split in own]) for own in by_size.values()]
            errors = [point["std"] / point["n"] ** 0.5 for point in found]
            points = [(str(n), paper[str(n)]) for n in by_size if score == "acc" and str(n) in paper]
            curve = Curve(method, [str(n) for n in by_size], [point["mean"] for point in found], errors, points)
            panels[label].append(curve)
    save(plot_panels(panels, "training images"), out / "classification.png", vector=True)


if __name__ == "__main__":
    main()

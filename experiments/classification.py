"""The paper's figure of classification: accuracy, NLL and ECE against the number of training images.

    python -m experiments.classification --scale smoke|laptop|paper [--parts ours published ...] [--vaes DIR]
        [--settings FILE.yaml] [--cifar10 NAME] [--cifar100 NAME] [--out DIR] [--report FILE.md] [-- --cpus 1]

Two blocks: *as we would run it*, the methods of `experiments.few_shot` with images that are augmented in each step, and
with the settings that it chooses on tasks of 50 letters, for all numbers of images; and *as published*: 10,000 epochs,
no temperature, no prior of the classifier, no augmentation, the published rates, and an ensemble of 10 samples of the
network. The second block has the four methods of the paper's figure, at scale laptop for 50 images; the part
`published-dwp` has the deep weight prior alone, for more. There is no published setting of `gauss`, `no` or `frozen`.
`deterministic` is a network without a prior and without l2; its published values stand beside `l2` as well.

An fconv learns MNIST, and in the parts `ours-cifar10` and `published-cifar10` a cifarnetnew CIFAR-10. There the
settings are chosen on tasks of 50 images of ten classes of CIFAR-100, which the networks that gave the kernels had
learnt too. All methods but `l2-aug-xavier` and `l2-colour-xavier`, ordinary networks that start from random kernels,
start from kernels that the VAEs of data/fconv or data/cifar decode, and learn from the same images. In the parts
`published` and `published-dwp` the VAEs are those of data/fconv/scaled, of scaled kernels, whose posteriors do not
collapse under the whole KL (RESULTS.md). There `--vaes` names others, such as the paper's own: vae7x7 and vae5x5 in a
folder, each with `params.yaml` and `vae_params.torch`. As published the KL is of all kernels at scale paper, and of 512
drawn ones at scale laptop.

A report has the parts of one command. The tables and the figure, `classification.png` and `.pdf`, have means and
standard errors over splits, whose seeds are averaged first, and the tables paired differences from the first method;
values of the paper's figure are hollow and dashed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data.idx import of_classes
from data.split import few_shot
from experiments.methods import CIFARNETNEW, CLASSIFICATION, FCONV, METHODS, PREDICTIONS, SHAPE, SHAPE_COLOUR
from experiments.paper import (
    CIFAR,
    Experiment,
    difference_text,
    load_images,
    parse,
    published,
    require_files,
    write_report,
)
from experiments.protocol import Score, by_split, read_score, read_settings, tune_experiment
from experiments.subsets import stored_npz
from runs.errors import UserError, one_line_errors, user_error
from runs.log import log_path, read_rows
from sweeps.tables import standard_error, summary

if TYPE_CHECKING:
    from sweeps.plots import Curve

TITLES = {
    "ours": "As we would run it",
    "published": "As published",
    "published-dwp": "As published, the deep weight prior",
    "ours-cifar10": "As we would run it, CIFAR-10",
    "published-cifar10": "As published, CIFAR-10",
}
SCORES = {"acc": "test accuracy", "nll": "NLL, nats per image", "ece": "ECE"}
ENSEMBLE = {"acc": "ens[10]_test_acc", "nll": "test_nll", "ece": "ensemble/ece"}


class Target(NamedTuple):
    """A data set that networks learn.

    name : in the published values.
    data : the option `--data` of the runs as published, where `{cifar10}` stands for the option's value.
    network : the options of the network and of its VAEs, where `{vaes}` stands for the option's value.
    truncated : the configuration with a truncated variance.
    """

    name: str
    data: str
    network: str
    truncated: str


MNIST = Target("mnist", "mnist", SHAPE.replace(f"{FCONV}/", "{vaes}/"), "bayes-mtrunca")
CIFAR10 = Target("cifar10", "{cifar10}", SHAPE_COLOUR, "bayes111-mutrunca")


def as_published(target: Target) -> dict[str, tuple[str, str, Mapping[str, str]]]:
    """By name a script, arguments, and the columns of the log with the scores."""
    bnn = f"{target.network} --epochs 10000 --ens 10"
    return {
        "dwp": ("train-bnn.py", f"{bnn} --net_cfg bayes --prior vae", ENSEMBLE),
        "loguniform": ("train-bnn.py", f"{bnn} --net_cfg {target.truncated} --prior loguniform", ENSEMBLE),
        "sn": ("train-bnn.py", f"{bnn} --net_cfg bayes --prior sn", ENSEMBLE),
        "deterministic": ("train-net.py", f"{target.network} --epochs 10000", PREDICTIONS["network"].columns),
    }


class Ours(NamedTuple):
    """Methods as we would run them.

    splits : by the number of images.
    seeds : of each split.
    methods : names in `experiments.methods`.
    tune_splits, letters : of the tasks that choose their settings; for CIFAR-10 these are images of CIFAR-100.
    target : what the networks learn.
    """

    splits: Mapping[int, Sequence[int]]
    seeds: Sequence[int]
    methods: Sequence[str]
    tune_splits: Sequence[int] = range(100, 106)
    letters: int = 50
    target: Target = MNIST


class Theirs(NamedTuple):
    """Methods as published, with the seed 42.

    splits : by the number of images.
    options : more options of Bayesian networks.
    target : what the networks learn.
    methods : names in `as_published`.
    """

    splits: Mapping[int, Sequence[int]]
    options: str = ""
    target: Target = MNIST
    methods: Sequence[str] = ("dwp", "loguniform", "sn", "deterministic")


# The last is the ordinary network, with nothing of the VAEs.
GREY, COLOUR = ([*(f"{name}-{kind}" for name in CLASSIFICATION), f"l2-{kind}-xavier"] for kind in ("aug", "colour"))
SIZES, COLOUR_SIZES = (50, 100, 200, 500, 1000), (50, 200, 500)
CLASSES = range(0, 100, 10)  # of CIFAR-100, in the tasks that choose settings: apple, bowl, chair, dolphin, ..., train
# By scale and part.
SCALES = {
    "smoke": {"ours": Ours({10: (0, 1)}, (42,), ("frozen-aug", "l2-aug"), (100,), 10)},
    "laptop": {
        "ours": Ours({n: range(10 if n < 200 else 5) for n in SIZES}, (42, 43), GREY),
        "published": Theirs({50: range(5)}, "--kl_kernels 512"),
        "published-dwp": Theirs(
            {50: range(5), 100: range(3), 200: range(3), 500: range(2), 1000: range(1)},
            "--kl_kernels 512",
            methods=("dwp",),
        ),
        "ours-cifar10": Ours(dict.fromkeys(COLOUR_SIZES, range(3)), (42, 43), COLOUR, target=CIFAR10),
    },
    "paper": {
        "ours": Ours(dict.fromkeys(SIZES, range(10)), (42, 43, 44), GREY),
        "published": Theirs(dict.fromkeys(SIZES, range(10))),
        "ours-cifar10": Ours(dict.fromkeys(COLOUR_SIZES, range(10)), (42, 43, 44), COLOUR, target=CIFAR10),
        "published-cifar10": Theirs(dict.fromkeys(COLOUR_SIZES, range(10)), target=CIFAR10),
    },
}
Results = dict[str, dict[int, list[Score]]]  # scores of each split by method and number of images


def task_file(experiment: Experiment) -> Path:
    """An npz file of the images of ten classes of CIFAR-100, written if it does not exist."""
    import torch

    import utils

    parts = [
        utils.DataSet(*map(torch.from_numpy, of_classes((part.images.numpy(), part.labels.numpy()), CLASSES)))
        for part in load_images(experiment, "cifar100", 100)
    ]
    return stored_npz(experiment.kept / "tasks", *parts)


def with_tasks(experiment: Experiment) -> Experiment:
    """The experiment with tasks of CIFAR-100 in its place, where a part needs them.

    Checks the images, VAEs and kernels of the parts of CIFAR-10, before the first run. Raises UserError.
    """
    require_files([CIFAR / file.format(name) for name in CIFARNETNEW for file in ("vae{}", "conv{}/train.npy")])
    train, _ = load_images(experiment, "cifar10", 10)
    largest = max(n for name in experiment.parts for n in SCALES[experiment.scale][name].splits if "cifar10" in name)
    with user_error(f"--cifar10 {experiment.data['cifar10']}, of which a part learns from {largest} images:"):
        few_shot(train.labels.numpy(), largest, 0)
    if "ours-cifar10" not in experiment.parts:
        return experiment
    return experiment._replace(data={**experiment.data, "cifar100": str(task_file(experiment))})


def check_vaes(folder: str) -> None:
    """Check the VAEs of the parts as published, before the first run. Raises UserError."""
    import utils

    for name, size in (("vae7x7", 7), ("vae5x5", 5)):
        with user_error("--vaes:"):
            vae = utils.load_vae(Path(folder, name))
        if vae.kernel_dim != size:
            found = f"{vae.kernel_dim}x{vae.kernel_dim}"
            raise UserError(f"--vaes {folder}: {name} is a VAE of {found} kernels, expected {size}x{size}")


def run_ours(experiment: Experiment, part: Ours, part_name: str) -> tuple[Results, list[Path]]:
    """The results of the methods of a part of this name with their chosen settings, and all run directories.

    Writes settings.yaml, or settings-cifar10.yaml.
    """
    suffix = part_name.removeprefix("ours")
    sweeps, chosen = tune_experiment(experiment, part.methods, part.letters, part.tune_splits, suffix)
    settings = {name: [own.setting] for name, own in chosen.items()}
    results: Results = {name: {} for name in part.methods}
    for n, splits in part.splits.items():
        for name, found in sweeps.train(str(n), settings, n, splits, part.seeds).items():
            results[name][n] = by_split([read_score(sweeps.methods[name], root) for root in found], len(splits))
    return results, sweeps.roots


def run_theirs(experiment: Experiment, part: Theirs, part_name: str) -> tuple[Results, list[Path]]:
    """The results of the methods of a part of this name as published, and the run directories."""
    methods = as_published(part.target)
    results: Results = {method: {} for method in part.methods}
    roots, sweeps = [], part_name.removesuffix("-dwp")  # the sweeps of both parts are the same
    for method in part.methods:
        script, shared, columns = methods[method]
        task = f"{shared} --data {part.target.data} {part.options if script == 'train-bnn.py' else ''}"
        for n, splits in part.splits.items():
            lines = [f"{task} --num_examples {n} --data_split_seed {k} --seed 42" for k in splits]
            found = experiment.run(f"{sweeps}-{method}-{n}", script, lines)
            last = [read_rows(log_path(root, script))[-1] for root in found]
            results[method][n] = [{score: row[column] for score, column in columns.items()} for row in last]
            roots += found
    return results, roots


def published_accuracies(method: str, data: str) -> dict[str, float]:
    """The published accuracies, by the number of images, of a method of `experiments.methods` or `as_published`.

    The paper's figure has no method that starts from random kernels.
    """
    if method.endswith("-xavier"):
        return {}
    name = method.split("-")[0]
    return published("classification", data, {"l2": "deterministic"}.get(name, name))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of values, and its standard error."""
    found = summary(list(values))
    return found["mean"], standard_error(found)


def block(results: Results, data: str) -> list[list[str]]:
    """A table with its headers, per method and number of images, and the published accuracies.

    It has the paired differences of the first method's accuracies from the others', with half of their 95% interval.
    """
    first = next(iter(results))
    headers = [f"{label}: mean ± standard error (n)" for label in SCORES.values()]
    headers += [f"accuracy of {first} minus this, ± half of the 95% interval", "published accuracy"]
    rows = [["method", "images", *headers]]
    for method, by_size in results.items():
        paper = published_accuracies(method, data)
        for n, splits in by_size.items():
            found = [mean_and_error([split[name] for split in splits]) for name in SCORES]
            scores = [f"{mean:.3f} ± {error:.3f} ({len(splits)})" for mean, error in found]
            accuracies = ([split["acc"] for split in own] for own in (results[first][n], splits))
            paired = difference_text(*accuracies, 4) if method != first else ""
            rows.append([method, str(n), *scores, paired, f"{paper[str(n)]:g}" if str(n) in paper else ""])
    return rows


def panels_of(results: Results, title: str, data: str) -> dict[str, list["Curve"]]:
    """A panel of the figure for each score, with the published accuracies."""
    from sweeps.plots import Curve

    panels: dict[str, list[Curve]] = {label: [] for label in SCORES.values()}
    for method, by_size in results.items():
        paper = published_accuracies(method, data)
        for score, label in SCORES.items():
            found = [mean_and_error([split[score] for split in own]) for own in by_size.values()]
            points = [(str(n), paper[str(n)]) for n in by_size if score == "acc" and str(n) in paper]
            panels[label].append(Curve(method, [str(n) for n in by_size], *zip(*found, strict=True), points))
    return {f"{label},\n{title[0].lower()}{title[1:]}": curves for label, curves in panels.items()}


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    experiment = parse("classification", __doc__, SCALES, argv, data=("cifar10", "cifar100", "vaes", "settings"))
    chosen = {name: SCALES[experiment.scale][name] for name in experiment.parts}
    if path := experiment.data["settings"]:
        for part in (part for part in chosen.values() if isinstance(part, Ours)):
            read_settings(path, part.letters, {name: METHODS[name] for name in part.methods})
    if any(part.target is CIFAR10 for part in chosen.values()):
        experiment = with_tasks(experiment)
    if any(isinstance(part, Theirs) and part.target is MNIST for part in chosen.values()):
        check_vaes(experiment.data["vaes"])
    tables, panels, roots = {}, {}, []
    for name, part in chosen.items():
        run = run_ours if isinstance(part, Ours) else run_theirs
        results, own = run(experiment, part, name)
        tables[f"{TITLES[name]}:"] = block(results, part.target.name)
        panels |= panels_of(results, TITLES[name], part.target.name)
        roots += own
    caption = "Bars: one standard error over splits. Hollow and dashed: read off the paper's figure."
    write_report(experiment, tables, roots, panels, "training images", caption, rows=len(tables))


if __name__ == "__main__":
    main()

"""Learning from few images: every method with settings chosen on the source domain, then compared on MNIST.

    python -m experiments.few_shot [--num_examples 50 100] [--methods dwp sn frozen] [--out DIR] [-- --cpus 1]

1. Each method has the same number of settings and one kind of prediction. Each setting is trained on few-shot tasks of
   notMNIST, whose test images are of other typefaces (`--tune_splits`, `--tune_examples`). The setting with the best
   mean accuracy or NLL (`--choose_by`) is chosen, and written to `settings.yaml`; `tried.csv` has the scores of all. A
   setting is not chosen if the loss of one of its runs became infinite or NaN. No label of MNIST chooses the
   setting of a method. Accuracies that choose are those of a third of the samples of a prediction. `--settings` takes
   what an earlier command chose on as many letters.
2. Each method is trained on MNIST with its chosen setting, for all `--splits` and `--seeds`.
3. `results.csv`: per method and score (accuracy, NLL, ECE) the mean and its standard error over splits, and the paired
   difference of the first method minus this one with its standard error and half of its 95% interval. Ensembles are
   compared with the first ensemble. `differences.png` draws the differences. `runs.csv` has the scores of each run, and
   `by_split.csv` those of each split, means over the seeds, so that the results of two commands can be paired.

What the comparison leaves open: the kernels, VAEs, flows and source networks are one set, so the intervals do not
include how these vary, and an interval is for one difference alone. All splits have the same seeds, and the intervals
hold for these: `experiments.seeds` has those for new seeds. The kernels come from networks trained on all ten
letters, so a method that uses them chooses its settings on letters that its kernels have seen. The fine-tuned networks
start from one trained on the letters F-J and choose on A-E; for MNIST they start from one of A-J. The same tasks of
letters, with frozen kernels, chose the VAEs in data/fconv.

`--against` compares other VAEs, such as those of another training: each method that uses the VAEs or kernels of
data/fconv is run with theirs too, with settings chosen for them in the same way, as the method "<method> of <folder>".

Runs are trials of sweeps: the same command continues a stopped one, and skips what is finished. After `--` come the
options of sweeps.
"""

import shlex
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from experiments.methods import DEFAULT, METHODS, Method, with_kernels
from experiments.paper import READ, make_folder
from experiments.predictions import ensemble, predict_run
from experiments.protocol import Chosen, Score, Sweeps, by_split, read_score, tune, write_settings
from runs.directory import dwp_path
from runs.errors import UserError, one_line_errors, require_packages
from runs.log import write_csv
from runs.options import Parser
from runs.types import SEED, WHOLE, number_type, path_type
from sweeps.cluster import parse_resources
from sweeps.grid import split_command
from sweeps.tables import standard_error, summary

PANELS = {"acc": ("accuracy, points", 100), "nll": ("NLL, nats", 1), "ece": ("ECE, points", 100)}  # with factors


def ensemble_score(name: str, method: Method, roots: Sequence[Path]) -> Score:
    """The scores on test images of the mean of the probabilities of the networks of a method of this name.

    Their predictions are kept in $DWP_PATH/predictions.
    """
    import utils
    from models.metrics import scores

    params = utils.load_network(roots[0])[1]
    test = utils.check_test_data(params, *utils.load_run_data(params))
    kind, folder = method.predicts_by, dwp_path() / "predictions"
    members = [predict_run(root, kind, {"test": test}, folder / f"{name}-{root.name}.npz") for root in roots]
    return scores(ensemble(members)["test"].log_p, test.labels)


def result_rows(num_examples: int, scores: dict[str, list[Score]]) -> list[dict[str, Any]]:
    """A row per method, from its scores by split: means, standard errors, and paired differences from the first method.

    Ensembles are compared with the first ensemble. The splits are the independent units. An interval is half of the 95%
    interval by Student's t with n - 1 degrees of freedom.
    """
    rows = []
    for method, own in scores.items():
        first = next(name for name in scores if name.startswith("ensemble") == method.startswith("ensemble"))
        row: dict[str, Any] = {"num_examples": num_examples, "method": method, "splits": len(own), "first": first}
        for name in ("acc", "nll", "ece"):
            found = summary([s[name] for s in own])
            row |= {name: found["mean"], f"{name}_se": standard_error(found)}
            found = summary([a[name] - b[name] for a, b in zip(scores[first], own, strict=True)])
            row |= {f"{name}_difference": found["mean"], f"{name}_difference_se": standard_error(found)}
            row[f"{name}_difference_interval"] = found["high"] - found["mean"]
        rows.append(row)
    return rows


def plot_differences(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the first method's scores minus those of each other one, with 95% intervals: a row per number of images."""
    from sweeps.plots import Curve, plot_intervals, save

    panels = {}
    numbers = dict.fromkeys(row["num_examples"] for row in rows)
    for n in numbers:
        own = [row for row in rows if row["num_examples"] == n and row["method"] != row["first"] == rows[0]["first"]]
        for score, (label, factor) in PANELS.items():
            names = (f"{score}_difference", f"{score}_difference_interval")
            points = [[factor * row[name] for row in own] for name in names]
            panels[f"{n} images: {label}"] = Curve("", [row["method"] for row in own], *points)
    save(plot_intervals(panels, f"{rows[0]['first']} minus the method", len(numbers)), path)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    own, sweep_words = split_command(argv)
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--num_examples", type=WHOLE, nargs="+", default=[50, 100], help="numbers of training images")
    choices = tuple(name for name, row in METHODS.items() if row.data == "mnist")
    add("--methods", choices=choices, nargs="+", default=list(DEFAULT), help="the first is compared with each")
    help = "folders like data/fconv: the methods that use its VAEs or kernels are also run with those of these"
    add("--against", type=path_type, nargs="+", default=[], metavar="DIR", help=help)
    splits = number_type(int, 0, 2**32 - 1)
    add(
        "--tune_splits",
        type=splits,
        nargs="+",
        default=list(range(100, 106)),
        help="data_split_seed of the tasks of letters",
    )
    add("--tune_examples", type=WHOLE, help="number of letters in a task, by default that of num_examples")
    add("--splits", type=splits, nargs="+", default=list(range(10)), help="data_split_seed of MNIST")
    add("--seeds", type=SEED, nargs="+", default=[42, 43, 44], help="seeds of each split of MNIST")
    add(
        "--ensemble",
        type=number_type(int, 0),
        default=5,
        help="networks in an ensemble, whose seeds count up from the first of seeds; 0: none",
    )
    kind, metavar, default, _, help = READ["settings"]
    add("--settings", type=kind, metavar=metavar, default=default, help=help)
    add("--choose_by", choices=("acc", "nll"), default="acc", help="score that chooses a setting: its mean over tasks")
    add("--out", type=Path, help="folder of the results, by default $DWP_PATH/few-shot-<choose_by>")
    args = parser.parse_args(own)
    resources = parse_resources(sweep_words)
    for option in ("num_examples", "methods", "tune_splits", "splits", "seeds"):
        if len(set(getattr(args, option))) < len(getattr(args, option)):
            raise UserError(f"--{option}: found a value twice, expected it once")
    require_packages("few_shot", "ray")
    methods = {name: METHODS[name] for name in args.methods}
    for folder in args.against:
        for named in args.methods:
            other = with_kernels(METHODS[named], folder)
            if other != METHODS[named]:
                name = f"{named} of {Path(folder).name}"
                if name in methods:
                    raise UserError(f"--against: found {name} twice, expected folders of different names")
                for word in shlex.split(other.shared):  # before other methods are trained for hours
                    if word.startswith(f"{folder}/") and not Path(word).exists():
                        raise UserError(f"--against {folder}: found no {word}, expected it for {named}")
                methods[name] = other
    import tabulate

    out = (args.out or dwp_path() / f"few-shot-{args.choose_by}").absolute()
    make_folder(out, args.settings)
    sweeps = Sweeps(resources, f"python -m experiments.few_shot {shlex.join(argv)}", methods=methods)
    tuned: dict[int, dict[str, Chosen]] = {}
    rows: list[dict[str, Any]] = []
    run_rows: list[dict[str, Any]] = []
    split_rows: list[dict[str, Any]] = []
    for n in args.num_examples:
        letters = args.tune_examples or n
        tuned[letters] = tune(sweeps, list(methods), letters, args.tune_splits, args.choose_by, args.settings)
        write_settings(out, sweeps.command, args.tune_splits, tuned)  # before the first run on MNIST
        chosen = {name: [own.setting] for name, own in tuned[letters].items()}
        results = sweeps.train(str(n), chosen, n, args.splits, args.seeds)
        scores = {name: [read_score(methods[name], root) for root in roots] for name, roots in results.items()}
        by_method = {name: by_split(own, len(args.splits)) for name, own in scores.items()}
        for name, own in scores.items():
            for (split, seed), score in zip(product(args.splits, args.seeds), own, strict=True):
                task = {"num_examples": n, "method": name, "data_split_seed": split, "seed": seed}
                run_rows.append(task | score)
        write_csv(out / "runs.csv", run_rows)
        more = {name: setting for name, setting in chosen.items() if args.ensemble and methods[name].ensemble}
        members = range(args.seeds[0], args.seeds[0] + args.ensemble)
        for name, roots in sweeps.train(f"{n}-ensembles", more, n, args.splits, members).items():
            groups = [roots[i : i + args.ensemble] for i in range(0, len(roots), args.ensemble)]
            found = [ensemble_score(name, methods[name], group) for group in groups]
            by_method[f"ensemble of {args.ensemble}: {name}"] = found
        rows += result_rows(n, by_method)
        write_csv(out / "results.csv", rows)
        for name, own in by_method.items():
            for split, score in zip(args.splits, own, strict=True):
                numbers = {key: score[key] for key in PANELS}
                split_rows.append({"num_examples": n, "method": name, "data_split_seed": split, **numbers})
        write_csv(out / "by_split.csv", split_rows)
    plot_differences(rows, out / "differences.png")
    print(tabulate.tabulate(rows, "keys", floatfmt=".4f"))
    print(f"results: {out}")


if __name__ == "__main__":
    main()

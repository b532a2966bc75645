"""Learning from few images: every method with settings chosen on the source domain, then compared on MNIST.

    python -m experiments.few_shot [--num_examples 50 100] [--methods dwp sn frozen] [--out DIR] [-- --cpus 1]

1. Each method has the same number of settings. Each setting is trained on few-shot tasks of notMNIST, whose test images
   are of other typefaces (`--tune_splits`). The setting and prediction with the largest mean accuracy are chosen, and
   written with all others to `settings.yaml`. No label of MNIST chooses a setting here. Two things were chosen earlier
   on MNIST's training labels: the decoder variances of the VAEs in data/fconv, and the range of the grid.
2. Each method is trained on MNIST with its chosen settings, for all `--splits` and `--seeds`.
3. `results.csv`: per method the mean accuracy, NLL and ECE with the standard error over splits, and `first_minus_this`,
   the paired difference in accuracy of the first method minus this one, with its standard error and half of its 95%
   interval. An interval is for one difference alone, and for these test images. `differences.png` draws them.

Runs are trials of sweeps: the same command continues a stopped one, and skips what is finished. After `--` come the
options of sweeps.
"""

import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.methods import METHODS, PREDICTIONS, SAMPLED, SOURCES
from runs.directory import dwp_path
from runs.errors import UserError, one_line_errors, require_packages
from runs.files import write_yaml
from runs.log import read_rows, write_csv
from runs.options import SEED, WHOLE, Parser, number_type
from sweeps.cluster import Resources, parse_resources, run_sweep
from sweeps.grid import split_command
from sweeps.tables import summary
from sweeps.trials import find_script, make_trial

Score = dict[str, float]


class Sweeps:
    """The sweeps of a comparison, with the resources of their trials and the command that continues them."""

    def __init__(self, resources: Resources, command: str):
        self.resources = resources
        self.command = command
        self.sources: dict[str, str] = {}  # run directories, quoted, by name in SOURCES

    def run(self, name: str, script: str, lines: Sequence[str]) -> list[Path]:
        """The run directories of trials of a script, given by their arguments. Raises as `run_sweep`."""
        trials = [make_trial(find_script(script), shlex.split(line), line) for line in lines]
        return run_sweep(f"few-shot-{name}", trials, self.resources, self.command)

    def train_sources(self, methods: Sequence[str]) -> None:
        """Train the runs of SOURCES that the methods start from."""
        for name, (script, line) in SOURCES.items():
            if any(f"{{{name}}}" in METHODS[method].shared for method in methods):
                self.sources[name] = shlex.quote(str(self.run(name, script, [line])[0]))

    def train(self, name: str, settings: dict[str, Sequence[str]], tasks: Sequence[str]) -> dict[str, list[Path]]:
        """Train each method with each of its settings on each task, one sweep per script.

        Returns the run directories of each method; the task varies fastest.
        """
        found: dict[str, list[Path]] = {method: [] for method in settings}
        shared = {method: METHODS[method].shared.format(**self.sources) for method in settings}
        for script in dict.fromkeys(METHODS[method].script for method in settings):
            own = [(m, s, t) for m in settings if METHODS[m].script == script for s in settings[m] for t in tasks]
            lines = [f"{shared[method]} {setting} {task}" for method, setting, task in own]
            for (method, *_), root in zip(own, self.run(f"{name}-{Path(script).stem}", script, lines), strict=True):
                found[method].append(root)
        return found


def read_scores(method: str, root: Path) -> dict[str, Score]:
    """The scores of a finished run, by prediction."""
    script = METHODS[method].script
    last = read_rows(root / f"{script}-logs.csv")[-1]
    return {
        prediction: {score: last[column] for score, column in columns.items()}
        for prediction, columns in PREDICTIONS[script].items()
        if set(columns.values()) <= last.keys()
    }


def choose(
    method: str, settings: Sequence[str], roots: Sequence[Path]
) -> tuple[dict[tuple[str, str], Score], str, str]:
    """The mean scores of each setting and prediction over the tasks, and those with the largest accuracy."""
    tasks = len(roots) // len(settings)
    means: dict[tuple[str, str], Score] = {}
    for i, setting in enumerate(settings):
        runs = [read_scores(method, root) for root in roots[i * tasks : (i + 1) * tasks]]
        means |= {(setting, prediction): mean_scores([run[prediction] for run in runs]) for prediction in runs[0]}
    return means, *max(means, key=lambda choice: means[choice]["acc"])


def ensemble_scores(roots: Sequence[Path], prediction: str) -> Score:
    """The scores of the mean of the networks' probabilities on MNIST's test images."""
    import torch

    import utils
    from models.metrics import ensemble_log_probs, scores

    mode, samples = SAMPLED[prediction]
    loaded = [utils.load_network(root) for root in roots]
    _, test = utils.load_data(loaded[0][1]["data"])
    members = []
    with torch.inference_mode():
        for net, params in loaded:
            net.train(prediction == "dropout")
            log_p = utils.predict_log_probs(net, test, mode, samples, params["test_bs"], seed=params["seed"])
            members.append(ensemble_log_probs(log_p))
    return scores(ensemble_log_probs(torch.stack(members)), test.labels)


def mnist_tasks(n: int, splits: Sequence[int], seeds: Sequence[int]) -> list[str]:
    """The arguments of the tasks that are reported, with n images; the seed varies fastest."""
    return [f"--data mnist --num_examples {n} --data_split_seed {k} --seed {seed}" for k in splits for seed in seeds]


def mean_scores(scores: Sequence[Score]) -> Score:
    """The mean of each score."""
    return {name: statistics.fmean(row[name] for row in scores) for name in scores[0]}


def by_split(scores: Sequence[Score], splits: int) -> list[Score]:
    """Means over the seeds of each split, of scores whose seed varies fastest."""
    seeds = len(scores) // splits
    return [mean_scores(scores[i * seeds : (i + 1) * seeds]) for i in range(splits)]


def result_rows(num_examples: int, scores: dict[str, list[Score]]) -> list[dict[str, Any]]:
    """A row per method, from its scores by split: means, standard errors, and paired differences from the first method.

    The splits are the independent units. `difference_interval` is half of the 95% interval by Student's t with n - 1
    degrees of freedom.
    """
    first = next(iter(scores.values()))
    rows = []
    for method, own in scores.items():
        row: dict[str, Any] = {"num_examples": num_examples, "method": method, "splits": len(own)}
        for name in ("acc", "nll", "ece"):
            found = summary([s[name] for s in own])
            row |= {name: found["mean"], f"{name}_se": found["std"] / len(own) ** 0.5}
        found = summary([a["acc"] - b["acc"] for a, b in zip(first, own, strict=True)])
        row |= {"first_minus_this": found["mean"], "difference_se": found["std"] / len(own) ** 0.5}
        row["difference_interval"] = found["high"] - found["mean"]
        rows.append(row)
    return rows


def plot_differences(rows: Sequence[dict[str, Any]], first: str, path: Path) -> None:
    """Draw the first method's accuracy minus each other one's, with 95% intervals: a panel per number of images."""
    from sweeps.plots import Curve, plot_panels, save

    panels = {}
    for n in dict.fromkeys(row["num_examples"] for row in rows):
        own = [row for row in rows if row["num_examples"] == n and row["method"] != first]
        columns = ([row[name] for row in own] for name in ("method", "first_minus_this", "difference_interval"))
        panels[f"accuracy: {first} minus method, {n} images"] = [Curve("mean and 95% interval over splits", *columns)]
    save(plot_panels(panels, "method"), path)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    own, sweep_words = split_command(argv)
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--num_examples", type=WHOLE, nargs="+", default=[50, 100], help="numbers of training images")
    add("--methods", choices=tuple(METHODS), nargs="+", default=list(METHODS), help="the first is compared with each")
    splits = number_type(int, 0, 2**32 - 1)
    add("--tune_splits", type=splits, nargs="+", default=list(range(100, 106)), help="splits of the source tasks")
    add("--splits", type=splits, nargs="+", default=list(range(10)), help="splits of MNIST")
    add("--seeds", type=SEED, nargs="+", default=[42, 43, 44], help="seeds of each split of MNIST")
    add("--ensemble", type=number_type(int, 0), default=5, help="networks in an ensemble of a method; 0: no ensembles")
    add("--out", type=Path, help="folder of the results, by default $DWP_PATH/few-shot")
    args = parser.parse_args(own)
    resources = parse_resources(sweep_words)
    for option in ("num_examples", "methods", "tune_splits", "splits", "seeds"):
        if len(set(getattr(args, option))) < len(getattr(args, option)):
            raise UserError(f"--{option}: found a value twice, expected it once")
    require_packages("few_shot", "ray")
    import tabulate

    out = (args.out or dwp_path() / "few-shot").absolute()
    sweeps = Sweeps(resources, f"python -m experiments.few_shot {shlex.join(argv)}")
    sweeps.train_sources(args.methods)
    settings: dict[str, Any] = {"command": sweeps.command, "tune_splits": args.tune_splits}
    rows: list[dict[str, Any]] = []
    for n in args.num_examples:
        tasks = [f"--data not-mnist --num_examples {n} --data_split_seed {k} --seed 42" for k in args.tune_splits]
        tuned = sweeps.train(f"{n}-tune", {method: METHODS[method].settings for method in args.methods}, tasks)
        chosen = {}
        for method, roots in tuned.items():
            means, *chosen[method] = choose(method, METHODS[method].settings, roots)
            settings[f"{n} images, {method}"] = " | ".join(chosen[method])
            settings[f"{n} images, {method}, tried"] = [f"{' | '.join(key)}: {score}" for key, score in means.items()]
        write_yaml(out / "settings.yaml", settings)  # before the first run on MNIST
        one = {method: [setting] for method, (setting, _) in chosen.items()}
        results = sweeps.train(str(n), one, mnist_tasks(n, args.splits, args.seeds))
        by_method = {
            method: by_split([read_scores(method, root)[chosen[method][1]] for root in roots], len(args.splits))
            for method, roots in results.items()
        }
        more = {method: setting for method, setting in one.items() if args.ensemble and METHODS[method].ensemble}
        seeds = range(args.seeds[0], args.seeds[0] + args.ensemble)
        for method, roots in sweeps.train(f"{n}-ensembles", more, mnist_tasks(n, args.splits, seeds)).items():
            groups = [roots[i : i + args.ensemble] for i in range(0, len(roots), args.ensemble)]
            by_method[f"{args.ensemble} x {method}"] = [ensemble_scores(group, chosen[method][1]) for group in groups]
        rows += result_rows(n, by_method)
        write_csv(out / "results.csv", rows)
    plot_differences(rows, args.methods[0], out / "differences.png")
    print(tabulate.tabulate(rows, "keys", floatfmt=".4f"))
    print(f"results: {out}")


if __name__ == "__main__":
    main()

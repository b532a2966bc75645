"""The protocol of comparisons: settings are chosen on few-shot tasks of the source domain, and then used unchanged."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.methods import METHODS, SOURCES, Method
from experiments.paper import Experiment
from runs.errors import NOT_FINITE, UserError, user_error
from runs.files import read_yaml, write_yaml
from runs.log import log_path, read_rows, write_csv
from sweeps.cluster import Resources, run_lines
from sweeps.tables import mean_scores

Score = dict[str, float]
TUNE_SEEDS = (42,)  # of the runs that choose a setting
TASKS = "chosen on tasks of {} images"  # a key of settings.yaml, which has the settings of methods by name


class Sweeps:
    """The sweeps of a comparison, with the resources of their trials and the command that continues them.

    `data` are the data sets that `{cifar10}` and `{cifar100}` stand for in the methods. `methods` has those to compare
    by name, METHODS by default.
    """

    def __init__(
        self,
        resources: Resources,
        command: str,
        name: str = "few-shot",
        data: Mapping[str, str] | None = None,
        methods: Mapping[str, Method] | None = None,
    ):
        self.name = name
        self.resources = resources
        self.command = command
        self.data = {place: shlex.quote(name) for place, name in (data or {}).items()}
        self.methods = methods or METHODS
        self.sources: dict[str, str] = {}  # run directories, quoted, by arguments
        self.roots: list[Path] = []  # the run directories of all trials that finished

    def run(self, name: str, script: str, lines: Sequence[str], accepted: str = "") -> list[Path | None]:
        """The run directories of trials of a script, given by their arguments. As `run_lines`."""
        found = run_lines(f"{self.name}-{name}", script, lines, self.resources, self.command, accepted)
        self.roots += [root for root in found if root]
        return found

    def train_sources(self, methods: Sequence[str], data: str) -> dict[str, str]:
        """Train the runs of SOURCES that the methods start from, once each; their directories, quoted, by name."""
        found = {}
        for name, (script, template) in SOURCES.items():
            if any(f"{{{name}}}" in self.methods[method].shared for method in methods):
                line = template.format(data=data)
                if line not in self.sources:
                    (root,) = self.run(f"{name}-{data}", script, [line])
                    self.sources[line] = shlex.quote(str(root))
                found[name] = self.sources[line]
        return found

    def train(
        self,
        name: str,
        settings: Mapping[str, Sequence[str]],
        n: int,
        splits: Sequence[int],
        seeds: Sequence[int],
        tuning: str = "",
    ) -> dict[str, list[Path | None]]:
        """Train each method with each of its settings on tasks of n images: all splits and seeds. One sweep per script.

        Returns the run directories of each method; the seed varies fastest, then the split. Runs for `tuning` by a
        score, "acc" or "nll", are on the source domain, and there is None for a run whose loss became infinite or NaN.
        """
        tasks = [f"--num_examples {n} --data_split_seed {split} --seed {seed}" for split in splits for seed in seeds]
        found: dict[str, list[Path | None]] = {method: [] for method in settings}
        sources = self.train_sources(list(settings), "not-mnist5-rest" if tuning else "not-mnist")
        for script in dict.fromkeys(self.methods[method].script for method in settings):
            methods, lines = [], []
            for method in (method for method in settings if self.methods[method].script == script):
                row = self.methods[method]
                fewer = row.predicts_by.tuning if tuning == "acc" else ""
                data = (row.tune_data if tuning else row.data).format(**self.data)
                more = f"--data {data} {fewer}".strip()
                shared = row.arguments(n, sources)
                own = [f"{shared} {setting} {task} {more}" for setting in settings[method] for task in tasks]
                methods, lines = methods + [method] * len(own), lines + own
            roots = self.run(f"{name}-{Path(script).stem}", script, lines, NOT_FINITE if tuning else "")
            for method, root in zip(methods, roots, strict=True):
                found[method].append(root)
        return found


def read_score(method: Method, root: Path) -> Score:
    """The scores of a finished run by the method's prediction."""
    last = read_rows(log_path(root, method.script))[-1]
    return {score: last[column] for score, column in method.predicts_by.columns.items()}


class Chosen(NamedTuple):
    """The setting of a method that is best on some tasks, and the mean scores of each that was tried.

    A setting with a failed run has no score, and is not chosen. None was tried where a file gave the setting.
    """

    setting: str
    tried: Mapping[str, Score | None] = {}


def choose(name: str, method: Method, roots: Sequence[Path | None], by: str) -> Chosen:
    """The best setting of a method of this name by the mean of the score `by` over the tasks.

    `roots` are the runs of each setting on each task; the task varies fastest. Raises UserError where no setting has
    all.
    """
    tasks, means = len(roots) // len(method.settings), {}
    for i, setting in enumerate(method.settings):
        own = roots[i * tasks : (i + 1) * tasks]
        means[setting] = mean_scores([read_score(method, root) for root in own]) if all(own) else None
    finished = [setting for setting in means if means[setting]]
    if not finished:
        raise UserError(f"--methods: found no setting of {name} whose runs all finished, expected one")
    best = (max if by == "acc" else min)(finished, key=lambda setting: means[setting][by])
    return Chosen(best, means)


def read_settings(path: str, letters: int, methods: Mapping[str, Method]) -> dict[str, Chosen]:
    """The settings of methods for tasks of that many letters, from a file of `write_settings`.

    A method that the file does not name is left out. Raises UserError.
    """
    with user_error("--settings:"):
        stored = read_yaml(path)
    key = TASKS.format(letters)
    own = stored.get(key)
    if not isinstance(own, dict):
        raise UserError(f"--settings {path}: found {', '.join(map(repr, stored))}, expected {key!r}")
    found = {name: Chosen(own[name]) for name in methods if name in own}
    for name, (setting, _) in found.items():
        if setting not in methods[name].settings:
            expected = "one of its settings in experiments/methods.py"
            raise UserError(f"--settings {path}: found {setting!r} for {name}, expected {expected}")
    return found


def tune(
    sweeps: Sweeps, methods: Sequence[str], letters: int, splits: Sequence[int], by: str, path: str = ""
) -> dict[str, Chosen]:
    """For each method the setting that is best on tasks of that many letters, or that a settings.yaml has."""
    named = {name: sweeps.methods[name] for name in methods}
    given = read_settings(path, letters, named) if path else {}
    settings = {name: method.settings for name, method in named.items() if name not in given}
    tuned = sweeps.train(f"{letters}-tune", settings, letters, splits, TUNE_SEEDS, tuning=by)
    chosen = given | {name: choose(name, named[name], roots, by) for name, roots in tuned.items()}
    return {name: chosen[name] for name in methods}


def write_settings(
    out: Path, command: str, splits: Sequence[int], chosen: Mapping[int, Mapping[str, Chosen]], suffix: str = ""
) -> None:
    """Write what a command chose, by the number of letters in a task and the method: settings<suffix>.yaml.

    tried<suffix>.csv has the mean scores of all settings that were tried, empty where a run failed.
    """
    settings: dict[str, Any] = {"command": command, "tune_splits": list(splits)}
    rows = []
    for letters, methods in chosen.items():
        settings[TASKS.format(letters)] = {name: own.setting for name, own in methods.items()}
        for name, own in methods.items():
            columns = next((list(scores) for scores in own.tried.values() if scores), [])
            for setting, scores in own.tried.items():
                row = {"tune_examples": letters, "method": name, "setting": setting}
                rows.append(row | (scores or dict.fromkeys(columns, "")))
    write_yaml(out / f"settings{suffix}.yaml", settings)
    if rows:
        write_csv(out / f"tried{suffix}.csv", rows)


def tune_experiment(
    experiment: Experiment, methods: Sequence[str], letters: int, splits: Sequence[int], suffix: str = ""
) -> tuple[Sweeps, dict[str, Chosen]]:
    """The sweeps of an experiment, and for each method the setting with the best accuracy on tasks of that many
    letters, or images of another source domain. Writes them by `write_settings`."""
    name = f"{experiment.name}-{experiment.scale}{suffix}"
    sweeps = Sweeps(experiment.resources, experiment.command, name, experiment.data)
    chosen = tune(sweeps, methods, letters, splits, "acc", experiment.data["settings"])
    write_settings(experiment.out, experiment.command, splits, {letters: chosen}, suffix)
    return sweeps, chosen


def by_split(scores: Sequence[Score], splits: int) -> list[Score]:
    """Means over the seeds of each split, of scores whose seed varies fastest."""
    seeds = len(scores) // splits
    return [mean_scores(scores[i * seeds : (i + 1) * seeds]) for i in range(splits)]

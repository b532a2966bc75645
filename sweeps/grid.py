"""The trials of a sweep: made from a grid of arguments, and listed in `$DWP_PATH/sweeps/<name>/sweep.yaml`."""

import itertools
import math
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from runs.directory import ROOT, dwp_path
from runs.errors import UserError, user_error
from runs.files import read_yaml, write_yaml
from sweeps.trials import SCRIPTS, Trial, make_trial

MAX_TRIALS = 100_000
MAX_SWEEP = 100_000_000  # bytes of a sweep.yaml

Options = Sequence[tuple[str, list[str]]]  # options of a command line, each with the words after it


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line before `--`, and those after it."""
    end = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:end]), list(argv[end + 1 :])


def split_options(words: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The words before the first option, and each option with the words after it."""
    first, options = [], []
    for word in words:
        if word.startswith("--"):
            option, *value = word.split("=", 1)
            options.append((option, value))
        else:
            (options[-1][1] if options else first).append(word)
    return first, options


def values_of(option: str, words: Sequence[str]) -> list[list[str]]:
    """The values to try of an option, each a list of words. Raises UserError.

    A word `a..b` is a range, an existing path is one word, and any other word is split as a shell splits it.
    """
    values = []
    for word in words:
        ends = re.fullmatch(r"(\d+)\.\.(\d+)", word)
        low, high = map(int, ends.groups()) if ends else (0, 0)
        if not low <= high < low + MAX_TRIALS:
            raise UserError(f"{option}: found {word}, expected a range from low to high, of at most {MAX_TRIALS}")
        try:
            split = [word] if os.path.exists(word) else shlex.split(word)
            values += [[str(i)] for i in range(low, high + 1)] if ends else [split]
        except ValueError as error:
            raise UserError(f"{option}: found {word!r} ({error}), expected words") from None
    if not values:
        raise UserError(f"{option}: found no value, expected the values to try")
    return values


def grid_file(path: str) -> list[tuple[str, list[str]]]:
    """The options in a YAML file of lines like `seed: 0..99` or `prior_list: [vae vae, sn sn]`. Raises UserError."""
    with user_error("--grid"):
        content = read_yaml(path, as_text=True)
    for name, value in content.items():
        if isinstance(value, dict) or value is None:
            raise UserError(f"--grid {path}: {name}: found {value}, expected a value or a list of values")
    lists = {name: value if isinstance(value, list) else [value] for name, value in content.items()}
    return [(f"--{name}", list(map(str, values))) for name, values in lists.items()]


def make_trials(script: str, grid: Options, shared: Sequence[str]) -> list[Trial]:
    """The trials of a script, given by its absolute path: a grid, whose last option varies fastest.

    `shared` are the arguments of all trials. Raises UserError for a trial that the script refuses, and for two trials
    with the same key.
    """
    names = [option for option, _ in grid]
    shared_names = [option for option, _ in split_options(shared)[1]]
    for i, name in enumerate(names):
        if name in names[:i] or name in shared_names:
            raise UserError(f"{name}: found twice, expected it once, in the grid or after --")
    if "--continue" in (*names, *shared_names):
        raise UserError("--continue: found in a sweep, which continues interrupted runs by itself")
    values = [values_of(option, words) for option, words in grid]
    count = math.prod(map(len, values))
    if count > MAX_TRIALS:
        raise UserError(f"SCRIPT: found a grid of {count} trials, expected at most {MAX_TRIALS}")
    trials: dict[str, Trial] = {}
    for combination in itertools.product(*values):
        own = [word for name, value in zip(names, combination, strict=True) for word in (name, *value)]
        trial = make_trial(script, [*shared, *own], shlex.join(own))
        if trial.key in trials:
            first = trials[trial.key].label
            raise UserError(f"{trial.label}: found twice, as {first} too, expected trials that differ")
        trials[trial.key] = trial
    return list(trials.values())


def write_sweep(name: str, trials: Sequence[Trial]) -> None:
    """Write the trials of a sweep to its `sweep.yaml`, and print the folder."""
    first, folder = trials[0], dwp_path() / "sweeps" / name
    shared = first.argv[: len(first.argv) - len(shlex.split(first.label))]
    content = {"script": first.script_name, "cwd": first.cwd, "shared": shlex.join(shared)}
    write_yaml(folder / "sweep.yaml", content | {"trials": {trial.key: trial.label for trial in trials}})
    print(f"sweep: {folder}", flush=True)


def read_sweep(folder: str | Path) -> list[Trial]:
    """The trials in a sweep's folder. Raises UserError where its `sweep.yaml` is missing or damaged."""
    file = Path(folder, "sweep.yaml")
    content = read_yaml(file, limit=MAX_SWEEP)
    script, cwd, shared, labels = (content.get(name) for name in ("script", "cwd", "shared", "trials"))
    words = [script, cwd, shared, *(itertools.chain(*labels.items()) if isinstance(labels, dict) else [None])]
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"{file}: found no sweep, expected script, cwd, shared and trials, all of them text")
    base = Path(os.path.abspath(folder)).parent.parent / f"exman-{Path(script).name}"
    script = str(ROOT / script) if script in SCRIPTS else script
    with user_error(f"{file}: expected arguments as a shell takes them, found"):
        argvs = {key: (*shlex.split(shared), *shlex.split(label)) for key, label in labels.items()}
    return [Trial(script, argv, labels[key], key, base, cwd) for key, argv in argvs.items()]


def last_sweep(name: str = "") -> Path:
    """The folder of the sweep with this name; without a name, of the sweep that was started last. Raises UserError."""
    folder = dwp_path() / "sweeps"
    found = [file for file in folder.glob("*/sweep.yaml") if name in ("", file.parent.name)]
    if not found:
        raise UserError(f"--status: found no sweep {name or '*'} in {folder}, expected one")
    return max(found, key=lambda file: file.stat().st_mtime).parent

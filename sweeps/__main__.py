r"""Run a script over a grid of arguments on all of a machine, or of a Ray cluster; stop it, and go on.

    python -m experiments.sweep train-net.py --seed 0..99 -- --data not-mnist --bs 256 --hid_dim 256 512 --l2 0.001
    python -m experiments.sweep train-bnn.py --data_split_seed 0..9 --prior_list "vae vae" "sn sn" -- --num_examples 50

Before `--` stands the grid: options with the values to try, each a word, a range `a..b` (both ends included), or
words in quotes for an option that takes several. After it stands what all trials share. A trial is known by its
arguments: one that is finished is skipped, one that was interrupted goes on from its checkpoint. The options here:
"""

import hashlib
import itertools
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import tabulate
import yaml

import runs
from experiments import cluster
from experiments.trials import SCRIPTS, Trial, dwp_path, find_script, make_trial
from runs import Parser, Stopped, UserError, command, number, read_yaml, write_whole

MOST_TRIALS = 100_000


# --- the grid -----------------------------------------------------------------------------------------------------


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
    """The values to try of an option, each a list of words. Raises UserError."""
    values = []
    for word in words:
        ends = re.fullmatch(r"(\d+)\.\.(\d+)", word)
        low, high = map(int, ends.groups()) if ends else (0, 0)
        if not low <= high < low + MOST_TRIALS:
            raise UserError(f"{option}: found {word}, expected a range from low to high, of at most {MOST_TRIALS}")
        try:
            values += [[str(i)] for i in range(low, high + 1)] if ends else [shlex.split(word)]
        except ValueError as error:
            raise UserError(f"{option}: found {word!r} ({error}), expected words") from None
    if not values:
        raise UserError(f"{option}: found no value, expected those to try")
    return values


def grid_file(path: str) -> list[tuple[str, list[str]]]:
    """Options and words of a YAML file: `seed: 0..99`, `lr: [1e-3, 1e-4]`, `prior_list: [vae vae, sn sn]`."""
    content = read_yaml(path, f"--grid {path}")
    for name, value in content.items():
        if isinstance(value, dict) or value is None:
            raise UserError(f"--grid {path}: {name}: found {value}, expected a value or a list of values")
    return [
        (f"--{name}", [str(v) for v in (value if isinstance(value, list) else [value])])
        for name, value in content.items()
    ]


def make_trials(script: str, grid: Sequence[tuple[str, list[str]]], shared: Sequence[str]) -> list[Trial]:
    """The trials of a grid, the last option varying fastest. Raises UserError for any that its script refuses."""
    names = [option for option, _ in grid]
    shared_names = [option for option, _ in split_options(shared)[1]]
    for i, name in enumerate(names):
        if name in names[:i] or name in shared_names:
            raise UserError(f"{name}: found twice, expected it once, in the grid or after --")
    for name in (*names, *shared_names):
        if name == "--continue":
            raise UserError(f"{name}: found in a sweep, which goes on with its runs by itself")
    values = [values_of(option, words) for option, words in grid]
    count = 1
    for some in values:
        count *= len(some)
    if count > MOST_TRIALS:
        raise UserError(f"SCRIPT: found a grid of {count} trials, expected at most {MOST_TRIALS}")
    trials: dict[str, Trial] = {}
    for combination in itertools.product(*values):
        own = [word for name, value in zip(names, combination, strict=True) for word in (name, *value)]
        trial = make_trial(script, [*shared, *own], shlex.join(own))
        if trial.key in trials:
            first = trials[trial.key].label
            raise UserError(f"{trial.label}: found twice, as {first} too, expected trials that differ")
        trials[trial.key] = trial
    return list(trials.values())


# --- the folder of a sweep ----------------------------------------------------------------------------------------


def write_sweep(name: str, trials: Sequence[Trial]) -> None:
    """Write which trials a sweep has, in `$DWP_PATH/sweeps/<name>/sweep.yaml`, and print the folder."""
    first, folder = trials[0], dwp_path() / "sweeps" / name
    shared = first.argv[: len(first.argv) - len(shlex.split(first.label))]
    content = {"script": first.script_name, "cwd": first.cwd, "shared": shlex.join(shared)}
    with write_whole(folder / "sweep.yaml") as file:
        labels = {trial.key: trial.label for trial in trials}
        file.write(yaml.safe_dump(content | {"trials": labels}, sort_keys=False, width=10**6).encode())
    print(f"sweep: {folder}", flush=True)


def read_sweep(folder: str | Path) -> list[Trial]:
    """The trials of a sweep's folder; `trial.record()["root"]` is the run directory of each. Raises UserError."""
    file = Path(folder, "sweep.yaml")
    content = read_yaml(file, str(file))
    script, cwd, shared, trials = (content.get(name) for name in ("script", "cwd", "shared", "trials"))
    words = [script, cwd, shared, *([*trials, *trials.values()] if isinstance(trials, dict) else [None])]
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"{file}: found no sweep, expected script, cwd, shared and trials, all of them text")
    base = Path(os.path.abspath(folder)).parent.parent / f"exman-{Path(script).name}"
    script = str(runs.ROOT / script) if script in SCRIPTS else script
    try:
        argv = {key: (*shlex.split(shared), *shlex.split(label)) for key, label in trials.items()}
    except ValueError as error:
        raise UserError(f"{file}: {error}, expected arguments as a shell takes them") from None
    return [Trial(script, argv[key], label, key, base, cwd) for key, label in trials.items()]


def sweep_roots(folder: str | Path) -> list[Path]:
    """The run directories of a sweep's trials that are finished. Raises UserError."""
    records = [trial.record() for trial in read_sweep(folder)]
    return [Path(record["root"]) for record in records if record["state"] == "finished" and record["root"]]


def print_status(trials: Sequence[Trial]) -> None:
    """A table of trials: state, epoch of epochs, the metric's last value, and the run directory or the error."""
    rows, counts = [], {}
    for trial in trials:
        record = trial.record()
        counts[record["state"]] = counts.get(record["state"], 0) + 1
        progress = trial.progress(record["root"]) if record["root"] else {}
        epoch = f"{progress['epoch']} of {progress['epochs']}" if {"epoch", "epochs"} <= set(progress) else ""
        what = record["error"] or record["root"]
        rows.append([trial.label, record["state"], epoch, trial.metric(record["root"]), what])
    print(tabulate.tabulate(rows, ["trial", "state", "epoch", "metric", "run directory or error"]))
    print(f"{len(trials)} trials: {', '.join(f'{n} {state}' for state, n in counts.items())}")


# --- the command --------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str]):
    """The sweep's own options, its grid as options with their words, and what the trials share."""
    own, shared = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = Parser(__doc__)
    parser.add_argument(
        "script", metavar="SCRIPT", nargs="?", default="", help="train-net.py, ..., or any Python script"
    )
    parser.add_argument("--grid", metavar="FILE.yaml", default="", help="a file of options with the values to try")
    parser.add_argument("--cpus", type=number(float, 0, open_low=True), default=1.0, help="CPUs of each trial")
    parser.add_argument("--gpus", type=number(float, 0), default=0.0, help="GPUs of each trial; 0.25: four share one")
    parser.add_argument("--retries", type=number(int, 0), default=1, help="times that a failed trial is tried again")
    parser.add_argument(
        "--address", metavar="HOST:PORT", default="", help="a running Ray cluster, in place of one on this machine"
    )
    parser.add_argument("--name", default="", help="of the sweep's folder in $DWP_PATH/sweeps")
    parser.add_argument("--dry-run", action="store_true", help="print the trials and what is done, and start nothing")
    parser.add_argument(
        "--status", action="store_true", help="print how far each trial is: of SCRIPT's, --name's or the last sweep"
    )
    ours = {option for action in parser._actions for option in action.option_strings}
    first, options = split_options(own)
    words = [word for option, values in options if option in ours for word in (option, *values)]
    args = parser.parse_args([*first, *words])
    args.options = [(option, values) for option, values in options if option not in ours]
    args.shared = shared
    if args.address and not re.fullmatch(r".+:\d+", args.address):
        raise UserError(f"--address: found {args.address!r}, expected HOST:PORT of a Ray cluster")
    if args.gpus > 1 and args.gpus != int(args.gpus):
        raise UserError(f"--gpus: found {args.gpus:g}, expected a whole number or one below 1")
    if args.name and not re.fullmatch(r"[\w.-]*\w[\w.-]*", args.name):
        raise UserError(
            f"--name: found {args.name!r}, expected the name of a folder: letters, digits, '-', '_' and '.'"
        )
    if not args.script and not args.status:
        raise UserError("SCRIPT: found none, expected the script to run")
    if not args.script and (args.options or args.shared or args.grid):
        raise UserError("SCRIPT: found a grid without it, expected the script to run")
    return args


def last_sweep(name: str) -> Path:
    """The folder of the sweep with that name, or of the one started last."""
    files = [dwp_path() / "sweeps" / name / "sweep.yaml"] if name else dwp_path().glob("sweeps/*/sweep.yaml")
    found = sorted((file for file in files if file.is_file()), key=lambda file: file.stat().st_mtime)
    if not found:
        raise UserError(f"--status: found no sweep {name or '*'} in {dwp_path() / 'sweeps'}, expected one")
    return found[-1].parent


@command
def main(argv: list[str] | None = None) -> list[Path]:
    """Run a sweep, and return the run directories of its trials, in their order; exit code 1 where one failed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse(argv)
    if args.status and not args.script:
        print_status(read_sweep(last_sweep(args.name)))
        return []
    script = find_script(args.script)
    trials = make_trials(script, [*(grid_file(args.grid) if args.grid else []), *args.options], args.shared)
    if args.status or args.dry_run:
        print_status(trials)
        return []
    keys = "".join(trial.key for trial in trials).encode()
    name = args.name or f"{Path(script).stem}-{hashlib.sha256(keys).hexdigest()[:8]}"
    open_trials = [trial for trial in trials if trial.record()["state"] != "finished"]
    if open_trials:
        errors = run_trials(args, name, trials, open_trials, argv)
    else:
        write_sweep(name, trials)
        errors = {}
    for trial in trials:
        if trial.key in errors:
            print(f"failed: {trial.label}: {errors[trial.key]} ({trial.file('err')})", file=sys.stderr)
    print(f"{len(trials) - len(errors)} of {len(trials)} trials are finished")
    if errors:
        sys.exit(1)
    return [Path(root) for trial in trials if (root := trial.record()["root"])]


def run_trials(
    args, name: str, trials: Sequence[Trial], open_trials: Sequence[Trial], argv: Sequence[str]
) -> dict[str, str]:
    """Run the trials that are not finished, and return the errors of those that failed, by key."""
    from tqdm import tqdm

    data_root = os.path.abspath(runs.data_root())
    with cluster.signals() as received, cluster.connected(args.address) as ray:
        nodes = cluster.nodes_for(ray, args.cpus, args.gpus)
        if args.address:
            cluster.check_nodes(ray, nodes, trials[0], data_root)
        write_sweep(name, trials)
        initial = len(trials) - len(open_trials)
        with tqdm(total=len(trials), initial=initial, desc="trials", smoothing=0, disable=None) as bar:
            resources = (args.cpus, args.gpus)
            errors = cluster.drive(ray, open_trials, bar, received, *resources, args.retries, data_root)
        if received:
            number_ = received[0]
            go_on = f"go on with: python -m experiments.sweep {shlex.join(argv)}"
            done = sum(trial.record()["state"] == "finished" for trial in trials)  # a bar that is off does not count
            raise Stopped(number_, f"stopped, {done} of {len(trials)} trials are finished; {go_on}")
    return errors


if __name__ == "__main__":
    main()

r"""Run a script over a grid of arguments, on all cores of a machine or on a Ray cluster.

    python -m sweeps train-net.py --seed 0..99 -- --data not-mnist --bs 256 --hid_dim 256 512 --l2 0.001
    python -m sweeps train-bnn.py --data_split_seed 0..9 --prior_list "vae vae" "sn sn" -- --num_examples 50 \
        --hid_dim 32 128 --vae_list data/fconv/vae7x7 data/fconv/vae5x5 --init_list vae vae

The grid stands before `--`: options with the values to try. A value is a word, a range `a..b` (both ends included), or,
for an option that takes several words, these words in quotes. The arguments of all trials stand after `--`. A trial is
a script plus arguments; the arguments identify it. Finished trials are skipped, and interrupted ones continue from
their checkpoint. The options of this command:
"""

import hashlib
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import tabulate

from runs.errors import UserError, one_line_errors
from runs.options import Parser
from sweeps.cluster import add_resource_options, checked_resources, run_sweep
from sweeps.grid import grid_file, last_sweep, make_trials, read_sweep, split_command, split_options
from sweeps.trials import Trial, find_script


def print_status(trials: Sequence[Trial]) -> None:
    """Print a table of trials: state, epoch, last value of the metric, and the run directory or the error."""
    rows = []
    for trial in trials:
        record = trial.record()
        state, root = record["state"], record["root"]
        progress = trial.progress(root)
        epoch = f"{progress['epoch']} of {progress['epochs']}" if {"epoch", "epochs"} <= set(progress) else ""
        rows.append([trial.label, state, epoch, trial.metric(root), record["error"] or root])
    counts = Counter(state for _, state, *_ in rows)
    print(tabulate.tabulate(rows, ["trial", "state", "epoch", "metric", "run directory or error"]))
    print(f"{len(trials)} trials: {', '.join(f'{n} {state}' for state, n in counts.items())}")


@one_line_errors
def main(argv: list[str] | None = None) -> list[Path]:
    """Run a sweep, and return the run directories of its trials, in order. The exit code is 1 if a trial failed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    own, shared = split_command(argv)
    parser = Parser(__doc__)
    add = parser.add_argument
    add("script", metavar="SCRIPT", nargs="?", default="", help="train-net.py, ..., or any Python script")
    add("--grid", metavar="FILE.yaml", default="", help="a file of options with the values to try")
    add_resource_options(parser)
    add("--name", default="", help="name of the sweep's folder in $DWP_PATH/sweeps")
    add("--dry-run", action="store_true", help="print the trials and their states, and start nothing")
    help = "print the state of each trial: of SCRIPT's, --name's or the last sweep"
    add("--status", action="store_true", help=help)
    known = {option for action in parser._actions for option in action.option_strings}
    first, options = split_options(own)
    words = [word for option, values in options if option in known for word in (option, *values)]
    args = parser.parse_args([*first, *words])
    grid = [(option, values) for option, values in options if option not in known]
    resources = checked_resources(args)
    if args.name and not re.fullmatch(r"[\w.-]*\w[\w.-]*", args.name):
        raise UserError(f"--name: found {args.name!r}, expected a folder's name: letters, digits, '-', '_' and '.'")
    if not args.script and not args.status:
        raise UserError("SCRIPT: found none, expected the script to run")
    if not args.script and (grid or shared or args.grid):
        raise UserError("SCRIPT: found a grid without it, expected the script to run")

    if not args.script:
        print_status(read_sweep(last_sweep(args.name)))
        return []
    script = find_script(args.script)
    trials = make_trials(script, [*(grid_file(args.grid) if args.grid else []), *grid], shared)
    if args.status or args.dry_run:
        print_status(trials)
        return []
    keys = "".join(trial.key for trial in trials).encode()
    name = args.name or f"{Path(script).stem}-{hashlib.sha256(keys).hexdigest()[:8]}"
    return run_sweep(name, trials, resources, f"python -m sweeps {shlex.join(argv)}")


if __name__ == "__main__":
    sys.argv[0] = "python -m sweeps"  # the name in the help and in messages
    main()

"""How much time `python -m sweeps` adds: two trainings side by side, and a hundred trials that only sleep.

    python -m benchmarks.sweep [--rows side sleep]

`side`: seconds of two trainings of train-vae.py with one thread each: one after the other, side by side as processes,
and side by side in a sweep. `sleep`: seconds of a sweep of trials that sleep for one second, two at a time, against the
seconds that they sleep. The time of a sweep is that of its trials, without the start and the end of Ray.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from runs.directory import ROOT
from runs.errors import UserError, one_line_errors
from runs.options import Parser
from runs.types import WHOLE, number_type
from sweeps.cluster import Resources, connected, run_trials
from sweeps.grid import make_trials
from sweeps.trials import THREADS, find_script


def process_seconds(commands: list[list[str]]) -> float:
    """Seconds of these commands, run side by side with one thread each."""
    start, environment = time.perf_counter(), os.environ | dict.fromkeys(THREADS, "1")
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for command in commands]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise UserError(f"{' '.join(commands[0])}: exit codes {codes}, expected 0")
    return time.perf_counter() - start


def sweep_seconds(script: str, option: str, values: str, shared: list[str], cpus: float = 1.0) -> float:
    """Seconds of the trials of a sweep with `cpus` processors each, once Ray has started.

    `values` are those to try of `option`; `shared` are the arguments of all trials.
    """
    trials = make_trials(find_script(script), [(option, [values])], shared)
    with connected("") as ray, tqdm(total=len(trials), disable=True) as bar:
        start = time.perf_counter()
        errors = run_trials(ray, trials, bar, [], Resources(cpus, gpus=0, retries=0, address=""))
        seconds = time.perf_counter() - start
    if errors:
        raise UserError(f"{len(errors)} of {len(trials)} trials failed: {next(iter(errors.values()))}")
    return seconds


def compare_trainings(folder: str, epochs: int) -> dict[str, float]:
    """Print the seconds of two trainings on kernels written into `folder`, and return their ratios."""
    kernels = np.random.default_rng(0).standard_normal((4096, 1, 5, 5)).astype(np.float32)
    for part in ("train", "test"):
        np.save(Path(folder, f"{part}.npy"), kernels)
    options = ["--kernel_dim", "5", "--z_dim", "4", "--hidden_dim", "16", "--data_dir", folder]
    options += ["--num_epochs", str(epochs), "--eval_freq", "1000"]
    commands = [[sys.executable, str(ROOT / "train-vae.py"), *options, "--seed", seed] for seed in ("0", "1")]
    in_turn, side_by_side = sum(process_seconds([command]) for command in commands), process_seconds(commands)
    in_sweep = sweep_seconds("train-vae.py", "--seed", "0..1", options)
    times = f"{in_turn:.1f} s in turn, {side_by_side:.1f} s side by side, {in_sweep:.1f} s in a sweep"
    print(f"two trainings: {times}")
    kinds = {"processes": side_by_side, "sweep": in_sweep}
    return {f"{kind}: times faster side by side": in_turn / seconds for kind, seconds in kinds.items()}


def compare_sleep(folder: str, trials: int) -> dict[str, float]:
    """Print the seconds of a sweep of trials that sleep, with a script written into `folder`; return their ratio."""
    script = Path(folder, "sleep.py")
    script.write_text("import time\n\ntime.sleep(1)\n")
    seconds = sweep_seconds(str(script), "--trial", f"1..{trials}", [], cpus=(os.cpu_count() or 1) / 2)
    least = (trials + 1) // 2
    print(f"{trials} trials that sleep 1 s, two at a time: {seconds:.2f} s, at least {least}")
    return {"sleep: seconds against the least": seconds / least}


@one_line_errors
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print each measurement, and print and return the medians of their ratios by name."""
    parser = Parser(__doc__)
    rows = ("side", "sleep")
    parser.add_argument("--rows", nargs="+", choices=rows, default=[*rows], help="what to measure")
    parser.add_argument("--epochs", type=WHOLE, default=40, help="epochs of each training")
    help = "number of trials that sleep, two at a time"
    parser.add_argument("--trials", type=number_type(int, 2), default=100, help=help)
    parser.add_argument("--repeats", type=WHOLE, default=3, help="number of measurements of each row")
    args = parser.parse_args(argv)

    found: list[dict[str, float]] = []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DWP_PATH"] = str(Path(folder, "logs"))  # a new one, where no trial is finished
            ratios = compare_trainings(folder, args.epochs) if "side" in args.rows else {}
            found.append(ratios | (compare_sleep(folder, args.trials) if "sleep" in args.rows else {}))
    medians = {}
    for name in found[0]:
        values = [ratios[name] for ratios in found]
        medians[name] = statistics.median(values)
        print(f"{name}: {medians[name]:.3f} (median; {min(values):.3f} to {max(values):.3f}, n = {len(values)})")
    return medians


if __name__ == "__main__":
    main()

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

from runs.directory import ROOT
from runs.errors import UserError, one_line_errors
from runs.options import WHOLE, Parser, number_type
from sweeps.cluster import Resources, connected, run_trials
from sweeps.grid import make_trials
from sweeps.trials import THREADS, find_script


def write_random_kernels(folder: str) -> None:
    """Write train.npy and test.npy, each with 4,096 random 5x5 kernels, into a folder."""
    kernels = np.random.default_rng(0).standard_normal((4096, 1, 5, 5)).astype(np.float32)
    for part in ("train", "test"):
        np.save(Path(folder, f"{part}.npy"), kernels)


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
    from tqdm import tqdm

    trials = make_trials(find_script(script), [(option, [values])], shared)
    with connected("") as ray, tqdm(total=len(trials), disable=True) as bar:
        start = time.perf_counter()
        errors = run_trials(ray, trials, bar, [], Resources(cpus, gpus=0, retries=0, address=""))
        seconds = time.perf_counter() - start
    if errors:
        raise UserError(f"{len(errors)} of {len(trials)} trials failed: {next(iter(errors.values()))}")
    return seconds


def training_seconds(folder: str, epochs: int) -> tuple[float, float, float]:
    """Seconds of two trainings: one after the other, side by side as processes, and side by side in a sweep.

    The kernels to train on are written into `folder`.
    """
    write_random_kernels(folder)
    options = ["--kernel_dim", "5", "--z_dim", "4", "--hidden_dim", "16", "--data_dir", folder]
    options += ["--num_epochs", str(epochs), "--eval_freq", "1000"]
    commands = [[sys.executable, str(ROOT / "train-vae.py"), *options, "--seed", seed] for seed in ("0", "1")]
    in_turn = sum(process_seconds([command]) for command in commands)
    return in_turn, process_seconds(commands), sweep_seconds("train-vae.py", "--seed", "0..1", options)


def sleeping_seconds(folder: str, trials: int, cpus: float) -> float:
    """Seconds of a sweep of trials that sleep for one second; their script is written into `folder`."""
    script = Path(folder, "sleep.py")
    script.write_text("import time\n\ntime.sleep(1)\n")
    return sweep_seconds(str(script), "--trial", f"1..{trials}", [], cpus)


@one_line_errors
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print each measurement, and print and return the medians of their ratios by name."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--rows", nargs="+", choices=("side", "sleep"), default=["side", "sleep"], help="what to measure"
    )
    parser.add_argument("--epochs", type=WHOLE, default=40, help="epochs of each training")
    parser.add_argument(
        "--trials", type=number_type(int, 2), default=100, help="number of trials that sleep, two at a time"
    )
    parser.add_argument("--repeats", type=WHOLE, default=3, help="number of measurements of each row")
    args = parser.parse_args(argv)

    ratios: dict[str, list[float]] = {}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DWP_PATH"] = str(Path(folder, "logs"))  # a new one, where no trial is finished
            if "side" in args.rows:
                in_turn, side_by_side, in_sweep = training_seconds(folder, args.epochs)
                print(
                    f"two trainings: {in_turn:.1f} s in turn, {side_by_side:.1f} s side by side, "
                    f"{in_sweep:.1f} s in a sweep"
                )
                ratios.setdefault("processes: times faster side by side", []).append(in_turn / side_by_side)
                ratios.setdefault("sweep: times faster side by side", []).append(in_turn / in_sweep)
            if "sleep" in args.rows:
                seconds = sleeping_seconds(folder, args.trials, (os.cpu_count() or 1) / 2)
                least = (args.trials + 1) // 2
                print(f"{args.trials} trials that sleep 1 s, two at a time: {seconds:.2f} s, at least {least}")
                ratios.setdefault("sleep: seconds against the least", []).append(seconds / least)
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    for name, values in ratios.items():
        print(f"{name}: {medians[name]:.3f} (median; {min(values):.3f} to {max(values):.3f}, n = {len(values)})")
    return medians


if __name__ == "__main__":
    main()

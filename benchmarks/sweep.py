"""What experiments.sweep makes of a machine: two trainings side by side, and a hundred trials that only sleep.

python -m benchmarks.sweep [--rows side sleep]

`side`: seconds of two trainings of train-vae.py side by side, one thread each, against one after the other, the
processes alone and by a sweep. `sleep`: seconds of a sweep of trials that sleep for one, two at a time, from the moment
its Ray is up, against the seconds they sleep.
"""

import io
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np

from experiments import cluster, sweep
from experiments.trials import THREADS
from runs import ROOT, Parser, command, number


def kernels(folder: str) -> None:
    """Write 5x5 kernels to train a VAE on."""
    values = np.random.default_rng(0).standard_normal((4096, 1, 5, 5)).astype(np.float32)
    for part in ("train", "test"):
        np.save(Path(folder, f"{part}.npy"), values)


def processes(argvs: list[list[str]]) -> float:
    """Seconds of these commands, started at once, with one thread each."""
    start, environment = time.perf_counter(), os.environ | dict.fromkeys(THREADS, "1")
    running = [subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL) for argv in argvs]
    codes = [process.wait() for process in running]
    if any(codes):
        raise subprocess.CalledProcessError(max(codes), argvs[0])
    return time.perf_counter() - start


@contextmanager
def timing(times: list[float]):
    """Let the next sweep note when its Ray is up and when its trials have ended."""
    drive = cluster.drive

    def timed(*args):
        start = time.perf_counter()
        errors = drive(*args)
        times.append(time.perf_counter() - start)
        return errors

    cluster.drive = timed
    try:
        yield
    finally:
        cluster.drive = drive


def swept(argv: list[str]) -> float:
    """Seconds of a sweep's trials, without the start and end of its Ray."""
    times: list[float] = []
    with timing(times), redirect_stdout(io.StringIO()):
        sweep.main(argv)
    return times[0]


def side_by_side(folder: str, epochs: int) -> tuple[float, float, float]:
    """Seconds of two trainings one after the other, side by side, and side by side in a sweep."""
    kernels(folder)
    options = ["--kernel_dim", "5", "--z_dim", "4", "--hidden_dim", "16", "--data_dir", folder]
    options += ["--num_epochs", str(epochs), "--eval_freq", "1000"]
    argvs = [[sys.executable, str(ROOT / "train-vae.py"), *options, "--seed", str(seed)] for seed in (0, 1)]
    serial = sum(processes([argv]) for argv in argvs)
    return serial, processes(argvs), swept(["train-vae.py", "--seed", "0..1", "--", *options])


def sleeping(folder: str, trials: int, cpus: float) -> float:
    """Seconds of a sweep of trials of one second."""
    script = Path(folder, "sleep.py")
    script.write_text("import time\n\ntime.sleep(1)\n")
    return swept([str(script), "--trial", f"1..{trials}", "--cpus", f"{cpus:g}"])


@command
def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = Parser(__doc__)
    parser.add_argument(
        "--rows", nargs="+", choices=("side", "sleep"), default=["side", "sleep"], help="what to measure"
    )
    parser.add_argument("--epochs", type=number(int, 1), default=40, help="epochs of each training")
    parser.add_argument("--trials", type=number(int, 2), default=100, help="trials that sleep, two at a time")
    parser.add_argument("--repeats", type=number(int, 1), default=3, help="times that each is measured")
    args = parser.parse_args(argv)

    ratios: dict[str, list[float]] = {}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DWP_PATH"] = str(Path(folder, "logs"))  # so that no trial is done already
            if "side" in args.rows:
                serial, alone, in_sweep = side_by_side(folder, args.epochs)
                print(f"two trainings: {serial:.1f} s in turn, {alone:.1f} s side by side, {in_sweep:.1f} s in a sweep")
                ratios.setdefault("processes: times faster side by side", []).append(serial / alone)
                ratios.setdefault("sweep: times faster side by side", []).append(serial / in_sweep)
            if "sleep" in args.rows:
                seconds, least = sleeping(folder, args.trials, (os.cpu_count() or 1) / 2), -(-args.trials // 2)
                print(f"{args.trials} trials that sleep 1 s, two at a time: {seconds:.2f} s, at least {least}")
                ratios.setdefault("sleep: seconds against the least", []).append(seconds / least)
    for name, values in ratios.items():
        print(f"{name}: {np.median(values):.3f} (median; {min(values):.3f} to {max(values):.3f}, n = {len(values)})")
    return {name: float(np.median(values)) for name, values in ratios.items()}


if __name__ == "__main__":
    main()

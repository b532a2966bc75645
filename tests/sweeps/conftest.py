"""Fixtures and helpers of the tests of sweeps: scripts, run directories, tables, processes, and held trainings."""

import contextlib
import csv
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from runs.directory import ROOT
from sweeps import collect
from sweeps.grid import read_sweep
from sweeps.trials import Trial, make_trial
from tests.conftest import HANG, until

MARK = "DWP_TEST_SWEEP"  # an environment variable of all processes that a test starts, which inherit it
EPOCHS = 6  # of the trainings that are held


@pytest.fixture(scope="module", autouse=True)
def interrupts():
    """SIGINT and SIGHUP are not ignored, as in the background or under nohup; processes inherit that."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.fixture
def other_script(sandbox):
    """`other_script(text)` writes other.py, which is none of the project's scripts, and returns its path."""

    def write(text: str) -> str:
        path = sandbox / "other.py"
        path.write_text(f"import os, pathlib, signal, sys, time\n{text}\n")
        return str(path)

    return write


def trial_of(script: str, *argv: str) -> Trial:
    """The trial of a script with these arguments."""
    return make_trial(script, argv, shlex.join(argv))


@pytest.fixture
def write_run(sandbox):
    """`write_run("train-net.py", 1, rows, **arguments)` is a run directory in the true format, without a training."""

    def write(script: str, number: int, rows: list[dict], state: str | None = "finished", **arguments) -> Path:
        root = sandbox / "logs" / f"exman-{script}" / "runs" / f"{number:06d}-2026-01-01-00-00-00"
        root.mkdir(parents=True)
        params = {**arguments, "root": str(root), "time": "2026-01-01", "id": number, "environment": {"script": script}}
        (root / "params.yaml").write_text(yaml.safe_dump(params))
        if state:
            (root / "state.yaml").write_text(yaml.safe_dump({"state": state, "epoch": 2, "epochs": 2}))
        with open(root / f"{script}-logs.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["t"])
            writer.writeheader()
            writer.writerows(rows)
        return root

    return write


def collected(argv: list, out: Path) -> list[list[dict[str, str]]]:
    """The rows, as text, of both tables that `sweeps.collect` writes into the folder `out`."""
    collect.main([*map(str, argv), "--out", str(out)])
    texts = ((out / f"{name}.csv").read_text() for name in ("runs", "groups"))
    return [list(csv.DictReader(io.StringIO(text, newline=""))) for text in texts]


# --- processes of sweeps ----------------------------------------------------------------------------------------------


def wait_until(condition, process=None):
    """`until`, with longer pauses: they leave the processors to the processes that are waited for."""
    return until(lambda: condition() or time.sleep(0.2), process)


def command_lines():
    """The words of the command lines of the living processes, by pid."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and (line := (folder / "cmdline").read_bytes()):  # empty when it has ended
                found[int(folder.name)] = line.decode(errors="replace").split("\0")
    return found


def marked(mark):
    """Command lines of the living processes that have the mark, by pid."""
    found = {}
    for pid, words in command_lines().items():
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in Path("/proc", str(pid), "environ").read_bytes().split(b"\0"):
                found[pid] = " ".join(words)
    return found


def kill_marked(mark):
    """Kill the processes that have the mark, until there is none."""

    def none_left():
        pids = marked(mark)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait_until(none_left)


def parent(pid):
    """The pid of the process that started this one."""
    return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])


def listening(pids):
    """The local addresses, in hex, at which processes accept TCP connections."""
    sockets = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for file in Path("/proc", str(pid), "fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.add(os.readlink(file))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def start(argv, mark, **env):
    """Start `python -m sweeps` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "sweeps", *argv],
        cwd=ROOT,
        env=os.environ | {MARK: mark} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process):
    """The exit code, stdout and stderr of a process at its end."""
    out, err = process.communicate(timeout=HANG)
    return process.returncode, out, err


def held_trainings(folder):
    """The running trials of a sweep, with their records, that have a checkpoint: they are held, or will be at once."""
    trials = read_sweep(folder) if (folder / "sweep.yaml").exists() else []
    found = [(trial, trial.record()) for trial in trials]
    return [
        (trial, record)
        for trial, record in found
        if record["state"] == "running" and Path(record["root"], "checkpoint.torch").exists()
    ]


# --- trainings that are held ------------------------------------------------------------------------------------------

# Every Python process reads it at its start. A training is held where it writes its second checkpoint, until the file
# $DWP_PATH/released exists or a signal arrives.
SITECUSTOMIZE = """
import os, pathlib, select, signal, sys
replace = os.replace
def held_replace(source, target):
    released = pathlib.Path(os.environ["DWP_PATH"], "released")
    if str(target).endswith("checkpoint-before.torch"):
        while not released.exists() and not select.select([reader], [], [], 0.05)[0]:
            pass
    replace(source, target)
if "".join(sys.orig_argv[1:2]).endswith("train-vae.py"):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    os.replace = held_replace
"""


@pytest.fixture(scope="module")
def holding(tmp_path_factory):
    """The environment in which trainings are held."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture
def small_vae(kernel_folder):
    """The options of a small VAE: it writes checkpoints after epochs 1, 2, 4 and 6."""
    argv = ["--kernel_dim", "5", "--z_dim", "2", "--hidden_dim", "4", "--eval_freq", "2", "--device", "cpu"]
    return [*argv, "--num_epochs", str(EPOCHS), "--data_dir", kernel_folder(5)]

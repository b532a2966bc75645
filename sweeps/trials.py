"""A trial is a script plus arguments, which identify it. It runs as a process, and a record tells its state.

Records are `$DWP_PATH/exman-<script>/trials/<key>.yaml`, beside the output of the trial's last process (`.out`, `.err`)
and the trial's lock (`.lock`). They belong to no sweep, so that sweeps share the trials that they have in common. Does
not import torch or Ray.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from runs.directory import ROOT, dwp_path, is_locked, script_folder
from runs.errors import UserError
from runs.files import read_yaml, write_yaml
from runs.log import log_path, read_rows
from runs.options import ADDED, NOT_IDENTIFYING
from runs.signals import STOP_SIGNALS


class Script(NamedTuple):
    """One of the project's scripts."""

    metric: str  # a column of its log, or the start of one
    weights: str  # its file of weights


SCRIPTS = {
    "train-net.py": Script("test_acc", "model.torch"),
    "train-vae.py": Script("test_elbo", "vae_params.torch"),
    "train-bnn.py": Script("ens[", "model.torch"),
    "experiments/train-image-vae.py": Script("test_elbo", "model.torch"),
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # environment variables
POLL = 0.01  # seconds between two checks whether a process has ended
load_script = functools.cache(runpy.run_path)  # the names that a script defines
# Ends the process group $0 when standard input is closed without a line, that is when the worker has died. The group
# gets SIGTERM and, as a checkpoint takes time, SIGKILL only after a minute.
WATCHDOG = """
read -r done && exit
kill -TERM "-$0"
seconds=0
while sleep 1 && [ $((seconds += 1)) -lt 60 ]; do kill -0 "-$0" 2>/dev/null || exit; done
kill -KILL "-$0"
"""


def find_script(name: str) -> str:
    """The absolute path of a script; the project's own are found from any folder. Raises UserError."""
    path = ROOT / name if name in SCRIPTS else Path(name).resolve()
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"SCRIPT: found {name!r}, expected {', '.join(SCRIPTS)} or the file of another Python script")
    return str(path)


@dataclass(frozen=True)
class Trial:
    """A script plus arguments."""

    script: str  # absolute path
    argv: tuple[str, ...]
    label: str  # the arguments that differ between the trials of a sweep
    key: str  # a hash of script and arguments
    base: Path  # $DWP_PATH/exman-<script>
    cwd: str  # working directory of the process

    @property
    def in_project(self) -> bool:
        """Whether the script is one of `SCRIPTS`, which make run directories and accept `--continue`."""
        return Path(self.script) in [ROOT / name for name in SCRIPTS]

    @property
    def script_name(self) -> str:
        """The name by which `find_script` finds the script, from any folder and in a copy of the project."""
        return str(Path(self.script).relative_to(ROOT)) if self.in_project else self.script

    def file(self, suffix: str) -> Path:
        """The path of the trial's file with this suffix: yaml, out, err or lock."""
        return self.base / "trials" / f"{self.key}.{suffix}"

    def printed_root(self) -> str:
        """The run directory that the last process printed on a line of its output, or "" if none."""
        with contextlib.suppress(FileNotFoundError), open(self.file("out"), "rb") as file:
            if line := re.search(rb"^run directory: (.*)\n", file.read(100_000), re.MULTILINE):
                return line[1].strip().decode(errors="replace")
        return ""

    def record(self) -> dict[str, Any]:
        """The trial's `state`, `root` (the run directory or ""), `attempts` and `error` (the last one or "").

        The state is waiting, running, interrupted, failed or finished. Of a project's script, a run whose own state is
        finished is finished, and a trial whose run directory was deleted is waiting. Raises UserError if damaged.
        """
        path, record = self.file("yaml"), {"state": "waiting", "root": "", "attempts": 0, "error": ""}
        if path.exists():
            stored = read_yaml(path)
            if any(type(stored.get(name)) is not type(value) for name, value in record.items()):
                raise UserError(f"{path}: found {stored}, expected a trial's state, root, attempts and error")
            record = {name: stored[name] for name in record}
        root = record["root"] or self.printed_root()
        record["root"] = str(self.base / root) if root else ""
        if self.in_project:
            if not Path(record["root"], "params.yaml").is_file():
                record |= {"root": "", "state": "waiting" if record["state"] == "finished" else record["state"]}
            elif self.progress(record["root"]).get("state") == "finished":
                record |= {"state": "finished", "error": ""}
        if record["state"] == "running" and not is_locked(self.file("lock")):
            record["state"] = "interrupted"
        return record

    def write_record(self, record: dict[str, Any]) -> None:
        """Write the record. Its run directory is stored relative to `base`, so that $DWP_PATH can be moved."""
        root = record["root"]
        if Path(root).is_relative_to(self.base):
            root = str(Path(root).relative_to(self.base))
        arguments = {"script": self.script_name, "arguments": shlex.join(self.argv)}
        write_yaml(self.file("yaml"), record | {"root": root} | arguments)

    def progress(self, root: str) -> dict[str, Any]:
        """The content of the run's state.yaml: `state`, `epoch`, `epochs`; empty before the run's first epoch."""
        state = Path(root, "state.yaml")
        return read_yaml(state) if root and state.is_file() else {}

    def metric(self, root: str) -> str:
        """Name and last value of the metric in the run's log, or "" if there is none yet. Raises UserError."""
        log = log_path(root, self.script)
        rows = read_rows(log) if self.in_project and root and log.is_file() else []
        metric = SCRIPTS[self.script_name].metric if rows else ""
        values = [f"{k} {v:.4g}" for row in rows[-1:] for k, v in row.items() if k.startswith(metric)]
        return values[0] if values else ""


def make_trial(script: str, argv: Sequence[str], label: str) -> Trial:
    """The trial of a script that `find_script` found.

    One of the project's scripts parses the arguments: order, spelling, defaults and the options in `NOT_IDENTIFYING` do
    not change the trial's key, and a path in the project or in $DWP_PATH counts from there, so that both folders can be
    moved. Another script's arguments identify a trial as they are written, with the working directory. Raises the
    script's own UserError.
    """
    trial = Trial(script, tuple(argv), label, "", script_folder(script), os.getcwd())
    identity = [script, list(argv), trial.cwd]
    if trial.in_project:
        args = vars(load_script(script)["parse"](argv)).items()
        given = {name: value for name, value in args if name not in NOT_IDENTIFYING}
        identity = [trial.script_name, {n: v for n, v in given.items() if v is not None or n not in ADDED}]
    text = json.dumps(identity, sort_keys=True)
    for name, folder in (("$DWP_PATH", dwp_path()), ("$PROJECT", ROOT)):
        text = text.replace(json.dumps(f"{folder}/")[:-1], f'"{name}/')
    digest = hashlib.sha256(text.encode())
    return replace(trial, key=digest.hexdigest()[:16])


def line_trials(script: str, lines: Sequence[str]) -> list[Trial]:
    """The trials of a script, by its name, from their arguments as lines of a shell. Raises UserError."""
    return [make_trial(find_script(script), shlex.split(line), line) for line in lines]


def last_line(path: Path, code: int) -> str:
    """The last line of a file of error output; if the file is empty, how the process ended with this return code."""
    lines = path.read_bytes()[-10_000:].decode(errors="replace").split("\n")
    end = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), f"{end}, nothing on stderr")


def run_process(
    trial: Trial, argv: Sequence[str], env: dict[str, str], lock: IO, stop: threading.Event
) -> tuple[int, bool]:
    """Run the process of a trial to its end. Returns its return code, and whether it got SIGTERM because of `stop`.

    The process inherits the trial's `lock`, and holds it until it ends. A watchdog ends the process if this one dies.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | env
    with open(trial.file("out"), "wb") as out, open(trial.file("err"), "wb") as err:
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err, "pass_fds": [lock.fileno()]}
        process = subprocess.Popen(argv, cwd=trial.cwd, env=env, start_new_session=True, **streams)
    watchdog = subprocess.Popen(["sh", "-c", WATCHDOG, str(process.pid)], stdin=subprocess.PIPE, start_new_session=True)
    while process.poll() is None and not stop.is_set():
        time.sleep(POLL)
    terminated = process.returncode is None
    if terminated:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended
            os.killpg(process.pid, signal.SIGTERM)
    code = process.wait()
    watchdog.communicate(b"\n")
    return code, terminated


def run_trial(trial: Trial, env: dict[str, str], stop: threading.Event) -> dict[str, Any]:
    """Run a trial's process to its end, from its checkpoint if it has one, and return the trial's record.

    If another process runs the trial, nothing is done and the `state` is busy. `env` is added to the environment of the
    process. When `stop` is set, the process gets SIGTERM, after which a project's script writes a checkpoint.
    """
    trial.file("lock").parent.mkdir(parents=True, exist_ok=True)
    with open(trial.file("lock"), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return {"state": "busy"}
        record = trial.record()
        if record["state"] == "finished" or stop.is_set():
            return record
        continues = trial.in_project and record["root"]
        arguments = ["--continue", record["root"]] if continues else trial.argv
        record |= {"state": "running", "attempts": record["attempts"] + 1, "error": ""}
        record["root"] = record["root"] if continues else ""
        trial.write_record(record)
        code, terminated = run_process(trial, [sys.executable, trial.script, *arguments], env, lock, stop)
        if code == 0:
            record["state"] = "finished"
        elif terminated or any(code in (-number, 128 + number) for number in STOP_SIGNALS):
            record["state"] = "interrupted"
        else:
            record |= {"state": "failed", "error": last_line(trial.file("err"), code)}
        root = record["root"] or trial.printed_root()
        record["root"] = str(Path(trial.cwd, root)) if root else ""
        trial.write_record(record)
        return record

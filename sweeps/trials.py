"""A trial: a script with its arguments, known by them, run as a process, and a record of how far it is.

Records are `$DWP_PATH/exman-<script>/trials/<key>.yaml`, beside the trial's last output (`.out`, `.err`) and its lock.
They belong to no sweep, so overlapping sweeps share what is finished. Does not import torch or Ray.
"""

import contextlib
import csv
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

import runs
from runs import UserError, read_yaml, write_whole

SCRIPTS = ("train-net.py", "train-vae.py", "train-bnn.py")
# Of a script's arguments, those that its results do not depend on, and those that are files or folders.
NOT_COUNTED = ("name", "tmp", "config", "continue_run", "checkpoint_freq", "tensorboard")
PATHS = ("data_dir", "train", "test", "vae_list", "flow_list", "filters_list", "pretrained", "resume", "resume_vae")
PATHS += ("resume_opt",)
METRICS = {"train-net.py": "test_acc", "train-vae.py": "test_elbo", "train-bnn.py": "ens["}  # or what starts so
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ROOT_LINE = b"run directory: "
STOPS = (signal.SIGINT, signal.SIGTERM)
POLL = 0.01  # seconds between two looks at a process
# Ends the process group $0 when standard input ends without a line, which is when who started both has died. A script
# of ours needs the time for its checkpoint; what does not end in a minute is killed.
WATCHDOG = """
read -r done && exit
kill -TERM "-$0"
seconds=0
while sleep 1 && [ $((seconds += 1)) -lt 60 ]; do kill -0 "-$0" 2>/dev/null || exit; done
kill -KILL "-$0"
"""


def dwp_path() -> Path:
    """The folder of run directories, $DWP_PATH or logs/, as an absolute path."""
    return Path(os.path.abspath(os.environ.get("DWP_PATH") or runs.ROOT / "logs"))


@functools.cache
def parser_of(script: str) -> Callable[[Sequence[str]], Any]:
    """`parse(argv)` of one of the project's scripts."""
    spec = importlib.util.spec_from_file_location(script.replace("-", "_").removesuffix(".py"), script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parse


def find_script(name: str) -> str:
    """Its absolute path; one of ours is found from any folder. Raises UserError where there is no such file."""
    path = runs.ROOT / name if name in SCRIPTS else Path(name).resolve()
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"SCRIPT: found {name!r}, expected {', '.join(SCRIPTS)} or the file of another Python script")
    return str(path)


@contextlib.contextmanager
def hold(path: Path) -> Iterator[int | None]:
    """Hold the lock of a trial, as a file descriptor; None where another process holds it.

    A child that the descriptor is passed to holds it too: no second process starts while the first one's child lives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        lock = None
    try:
        yield lock
    finally:
        if lock is not None:
            os.close(lock)


def held(path: Path) -> bool:
    """Whether a process holds that lock."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(lock)


@dataclass(frozen=True)
class Trial:
    """A script (absolute path), its arguments, the key that they have, and the folders it belongs to."""

    script: str
    argv: tuple[str, ...]
    label: str  # the arguments in which it differs from the other trials of its sweep
    key: str
    base: Path  # $DWP_PATH/exman-<script>
    cwd: str

    @property
    def ours(self) -> bool:
        """Whether its script is one of this project's, which has run directories and goes on with --continue."""
        return Path(self.script) in [runs.ROOT / name for name in SCRIPTS]

    @property
    def script_name(self) -> str:
        """What `find_script` finds it by, from any folder and in a copy of the project."""
        return Path(self.script).name if self.ours else self.script

    def file(self, suffix: str) -> Path:
        return self.base / "trials" / f"{self.key}.{suffix}"

    def printed_root(self) -> str:
        """The run directory that its last process named on stdout, or nothing."""
        try:
            with open(self.file("out"), "rb") as file:
                lines = [line for line in file.read(100_000).splitlines(keepends=True) if line.startswith(ROOT_LINE)]
        except FileNotFoundError:
            return ""
        whole = bool(lines) and lines[0].endswith(b"\n")
        return lines[0].removeprefix(ROOT_LINE).strip().decode(errors="replace") if whole else ""

    def record(self) -> dict[str, Any]:
        """`state` (waiting, running, interrupted, failed, finished), `root` (run directory or ""), `attempts`, `error`.

        A run of ours that says it is finished is, whatever was written of it here; one that was deleted starts again.
        Raises UserError where the record is none.
        """
        path, record = self.file("yaml"), {"state": "waiting", "root": "", "attempts": 0, "error": ""}
        if path.exists():
            read = read_yaml(path, str(path))
            if any(type(read.get(name)) is not type(value) for name, value in record.items()):
                raise UserError(f"{path}: found {read}, expected a trial's state, root, attempts and error")
            record = {name: read[name] for name in record}
        root = record["root"] or self.printed_root()
        record["root"] = str(self.base / root) if root else ""
        if self.ours:
            if not Path(record["root"], "params.yaml").is_file():
                record |= {"root": "", "state": "waiting" if record["state"] == "finished" else record["state"]}
            elif self.progress(record["root"]).get("state") == "finished":
                record |= {"state": "finished", "error": ""}
        if record["state"] == "running" and not held(self.file("lock")):
            record["state"] = "interrupted"
        return record

    def write(self, record: dict[str, Any]) -> None:
        """Write the record, whole, with the run directory relative to the script's folder, which may then be moved."""
        root = record["root"]
        if root and Path(root).is_relative_to(self.base):
            root = str(Path(root).relative_to(self.base))
        content = record | {"root": root, "script": self.script_name, "arguments": shlex.join(self.argv)}
        with write_whole(self.file("yaml")) as file:
            file.write(yaml.safe_dump(content, sort_keys=False, width=10**6).encode())

    def progress(self, root: str) -> dict[str, Any]:
        """What the run says of itself: `state`, `epoch`, `epochs`; nothing before it has begun."""
        state = Path(root, "state.yaml")
        return read_yaml(state, str(state)) if state.is_file() else {}

    def metric(self, root: str) -> str:
        """The last value of the metric in the run's log, with its name; nothing before there is one."""
        prefix = METRICS.get(Path(self.script).name)
        if not (self.ours and root):
            return ""
        try:
            with open(Path(root, f"{Path(self.script).name}-logs.csv"), newline="") as file:
                rows = list(csv.DictReader(file))
        except FileNotFoundError:
            return ""
        return next((f"{k} {float(v):.4g}" for k, v in (rows[-1] if rows else {}).items() if k.startswith(prefix)), "")


def make_trial(script: str, argv: Sequence[str], label: str) -> Trial:
    """The trial of a script that `find_script` found.

    Arguments of ours are parsed by the script itself, so order, spelling and defaults written out do not matter; of
    another script they count as they are. Raises the script's own UserError.
    """
    cwd = os.getcwd()
    trial = Trial(script, tuple(argv), label, "", dwp_path() / f"exman-{Path(script).name}", cwd)
    if trial.ours:
        args = {k: v for k, v in vars(parser_of(script)(argv)).items() if k not in NOT_COUNTED}
        for name in PATHS:
            value = args.get(name)
            if value:
                args[name] = list(map(os.path.abspath, value)) if isinstance(value, list) else os.path.abspath(value)
        identity = [trial.script_name, args]
    else:
        identity = [script, list(argv), cwd]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    return replace(trial, key=digest.hexdigest()[:16])


def last_line(path: Path, code: int) -> str:
    """The last line of an error output, or how its process ended where it has none."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 10_000))
        lines = file.read().decode(errors="replace").split("\n")
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), f"{how}, nothing on stderr")


def run(trial: Trial, env: dict[str, str], stop: threading.Event) -> dict[str, Any]:
    """Run a trial's process to its end, or go on with it, and return its record.

    `state` is busy where it runs elsewhere. `env` is set in its environment. When `stop` is set the process gets
    SIGTERM, which makes a script of ours write a checkpoint. It does not outlive this process: a watchdog ends it.
    """
    with hold(trial.file("lock")) as lock:
        if lock is None:
            return {"state": "busy"}
        record = trial.record()
        if record["state"] == "finished" or stop.is_set():
            return record
        go_on = trial.ours and record["root"]
        argv = [sys.executable, trial.script, *(["--continue", record["root"]] if go_on else trial.argv)]
        record |= {"state": "running", "attempts": record["attempts"] + 1, "error": ""}
        if not go_on:
            record["root"] = ""
        trial.write(record)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with open(trial.file("out"), "wb") as out, open(trial.file("err"), "wb") as err:
            process = subprocess.Popen(
                argv,
                cwd=trial.cwd,
                env=inherited | env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                pass_fds=[lock],
            )
        watchdog = subprocess.Popen(
            ["sh", "-c", WATCHDOG, str(process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        asked = False
        while process.poll() is None:
            if stop.is_set() and not asked:
                asked = True
                with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended
                    os.killpg(process.pid, signal.SIGTERM)
            time.sleep(POLL)
        watchdog.communicate(b"\n")

        code = process.returncode
        if code == 0:
            record["state"] = "finished"
        elif asked or code in [-number for number in STOPS] + [128 + number for number in STOPS]:
            record["state"] = "interrupted"
        else:
            record |= {"state": "failed", "error": last_line(trial.file("err"), code)}
        root = record["root"] or trial.printed_root()
        record["root"] = str(Path(trial.cwd, root)) if root else ""
        trial.write(record)
        return record

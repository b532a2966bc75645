"""Locations of runs and data sets: folders set by environment variables, and one directory per run."""

import contextlib
import datetime
import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from runs.errors import UserError
from runs.files import write_yaml
from runs.options import NOT_STORED, RUN_KEYS

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent  # the project's folder


def data_root() -> Path:
    """The folder of data sets: $DATA_ROOT, by default the project's data/."""
    return Path(os.environ.get("DATA_ROOT") or ROOT / "data")


def dwp_path() -> Path:
    """The folder of run directories, as an absolute path: $DWP_PATH, by default the project's logs/."""
    return Path(os.path.abspath(os.environ.get("DWP_PATH") or ROOT / "logs"))


def script_folder(script: str) -> Path:
    """The folder of all runs of a script: `$DWP_PATH/exman-<script>`."""
    return dwp_path() / f"exman-{Path(script).name}"


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock on this file."""
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


def environment(script: str, device: "torch.device") -> dict[str, Any]:
    """The software and hardware of a run: script, git commit, torch version, number of threads, device, processor."""
    import torch

    from runs.device import processor_name

    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "script": script,
        "commit": commit,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "processor": processor_name(device),
    }


def make_run_directory(
    script: str, arguments: dict[str, Any], device: "torch.device", inputs: dict[str, str], tmp: bool
) -> Path:
    """Create `runs/<number>-<time>/` (`tmp/...` with `tmp`) with a params.yaml, linked in index/ if that is possible.

    `inputs` are hashes of what the run reads. A file lock gives simultaneous launches different numbers. Raises
    UserError if the folder cannot be written.
    """
    base = script_folder(script)
    root: Path | None = None
    try:
        for folder in ("runs", "tmp"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now()
        with FileLock(base / ".lock"):
            used = [int(p.name[:6]) for d in ("runs", "tmp") for p in (base / d).iterdir() if p.name[:6].isdigit()]
            number = max(used, default=0) + 1
            root = base / ("tmp" if tmp else "runs") / f"{number:06d}-{now:%Y-%m-%d-%H-%M-%S}"
            root.mkdir()
        own = (str(root), now.isoformat(timespec="seconds"), number, environment(script, device), inputs)
        params = {name: value for name, value in arguments.items() if name not in NOT_STORED}
        write_yaml(root / "params.yaml", params | dict(zip(RUN_KEYS, own, strict=False)))
    except (OSError, UserError) as error:
        if root:
            with contextlib.suppress(OSError):
                shutil.rmtree(root)
        if isinstance(error, UserError):
            raise
        raise UserError(f"DWP_PATH: cannot make a run directory in {base}: {error.strerror}") from None
    link = base / "index" / f"{root.name}.yaml"
    with contextlib.suppress(OSError):  # a folder that cannot be written, or a file system without symbolic links
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(root / "params.yaml", link.parent))
    return root

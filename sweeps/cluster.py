"""Trials as Ray tasks, on a Ray that is started on this machine alone or on a running cluster."""

import contextlib
import hashlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import runs
from experiments.trials import STOPS, THREADS, Trial, dwp_path, run
from runs import UserError

MOST_LOST = 20  # times in which a trial's worker may die before the trial counts as failed: it may be what kills it
LOOK_EVERY = 0.2  # seconds
AGAIN_AFTER = 1.0  # seconds until a trial that another process runs, or whose worker died, is tried again
CHECK_WITHIN = 60.0  # seconds a node has to answer
OBJECT_STORE = 100_000_000  # bytes; nothing large goes through Ray


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """The numbers of the SIGINTs and SIGTERMs that arrive, which do nothing else."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in STOPS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """The `ray` module, connected to the cluster at `address`, or to a Ray that lives as long as the context.

    Raises UserError where Ray is not installed or the cluster cannot be reached.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("Ray is not installed, expected it for a sweep: pip install -r requirements-sweep.txt")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    folder = None
    if address:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"--address: {address} cannot be reached: {error}, expected a Ray cluster") from None
    else:
        # Read when Ray is imported: its ports are bound to 127.0.0.1 alone, and ask for a token.
        os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if not address:
        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: sockets are in it
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "_temp_dir": folder}
        options["object_store_memory"] = OBJECT_STORE
    try:
        try:
            with mock.patch.object(signal, "signal"):  # Ray's handler of SIGTERM would leave some of its processes
                ray.init(address or "local", **options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
            what = f"--address: {address}" if address else "Ray"
            raise UserError(f"{what}: {error}, expected one that answers, and its token") from None
        yield ray
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def nodes_for(ray: ModuleType, cpus: float, gpus: float) -> list[dict[str, Any]]:
    """The nodes that can run a trial. Raises UserError where there is none."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    for option, name, asked in (("--cpus", "CPU", cpus), ("--gpus", "GPU", gpus)):
        most = max((node["Resources"].get(name, 0) for node in alive), default=0)
        if asked > most:
            raise UserError(f"{option}: found {asked:g}, expected at most the {most:g} of a node")
    fit = [n for n in alive if n["Resources"].get("CPU", 0) >= cpus and n["Resources"].get("GPU", 0) >= gpus]
    if not fit:
        raise UserError(f"--cpus, --gpus: found {cpus:g} and {gpus:g}, expected no more than one node has")
    return fit


def digest(script: str) -> str:
    """A hash of the project's code and of a script."""
    files = sorted(file for pattern in ("*.py", "models/*.py", "experiments/*.py") for file in runs.ROOT.glob(pattern))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in (*files, Path(script)))).hexdigest()


def check_nodes(ray: ModuleType, nodes: Sequence[dict[str, Any]], trial: Trial, data_root: str) -> None:
    """Check, by a task on each node, that it has the same DWP_PATH, DATA_ROOT and code. Raises UserError."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nonce = secrets.token_hex(8)
    folder = dwp_path() / "sweeps" / f".check-{nonce}"
    expected, script, cwd, root = digest(trial.script), trial.script, trial.cwd, str(runs.ROOT)
    data = os.listdir(data_root) if os.path.isdir(data_root) else []

    def look(node: str) -> str:
        """What is amiss on this node; a function within one, so that Ray sends its code."""
        try:
            (folder / node).write_text((folder / "nonce").read_text())
        except OSError as error:
            return f"DWP_PATH {folder.parent.parent}: {error.strerror}, expected the folder that the others have"
        missing = [name for name in data if not os.path.exists(os.path.join(data_root, name))]
        if missing:
            return f"DATA_ROOT {data_root}: found no {missing[0]}, expected it as where the sweep starts"
        if not os.path.isdir(cwd):
            return f"{cwd}: found no such folder, expected the one the sweep was started in"
        try:
            from experiments.cluster import digest as digest_there

            found = digest_there(script)
        except (ImportError, OSError) as error:
            return f"{root}: {error}, expected the project's code and packages"
        return "" if found == expected else f"{root}: found other code, expected that of where the sweep starts"

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    try:
        folder.mkdir(parents=True)
        (folder / "nonce").write_text(nonce)
        for node in nodes:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name, ref = node["NodeManagerAddress"], task.options(scheduling_strategy=where).remote(node["NodeID"])
            try:
                amiss = ray.get(ref, timeout=CHECK_WITHIN)
            except ray.exceptions.RayError as error:
                amiss = str(error)
            answer = folder / node["NodeID"]
            if not amiss and not (answer.is_file() and answer.read_text() == nonce):
                amiss = f"DWP_PATH {dwp_path()}: what it writes is not seen here, expected a shared folder"
            if amiss:
                raise UserError(f"--address: node {name}: {amiss}")
    except OSError as error:
        raise UserError(f"DWP_PATH: {folder}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_here(trial: Trial, env: dict[str, str]) -> dict[str, Any]:
    """A task: a trial in this worker, which `ray.cancel` stops."""
    stop = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    try:
        return run(trial, env, stop)
    finally:
        signal.signal(signal.SIGINT, before)


def outcome(ray: ModuleType, ref: Any) -> dict[str, Any]:
    """The record a task ended with; `state` is lost where its worker or node died."""
    try:
        return ray.get(ref)
    except ray.exceptions.TaskCancelledError:
        return {"state": "interrupted"}
    except ray.exceptions.RayTaskError as error:
        return {"state": "failed", "error": " ".join(str(error.cause).split())}
    except ray.exceptions.RayError as error:
        return {"state": "lost", "error": f"its worker died {MOST_LOST} times: {str(error).strip().splitlines()[0]}"}


def drive(
    ray: ModuleType,
    trials: Sequence[Trial],
    bar: Any,
    received: list[int],
    cpus: float,
    gpus: float,
    retries: int,
    data_root: str,
) -> dict[str, str]:
    """Run the trials until all are finished or failed, and return the errors of those that failed, by key.

    `bar` is a tqdm bar of finished trials. After a signal in `received` the trials are asked to stop, and waited for;
    after a second one they are not waited for.
    """
    env = dict.fromkeys(THREADS, str(max(1, int(cpus)))) | {"DWP_PATH": str(dwp_path()), "DATA_ROOT": data_root}
    if not gpus:
        env["CUDA_VISIBLE_DEVICES"] = ""
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(run_here)
    later = [(0.0, trial) for trial in trials]  # trials with the time from which they are to be submitted
    refs: dict[Any, Trial] = {}
    failures, lost, errors = dict.fromkeys((t.key for t in trials), 0), dict.fromkeys((t.key for t in trials), 0), {}
    stopping = False
    while (refs or later) and len(received) < 2:
        if received and not stopping:
            stopping = True
            later.clear()
            for ref in refs:
                ray.cancel(ref)
        now = time.monotonic()
        refs |= {task.remote(trial, env): trial for due, trial in later if due <= now}
        later = [(due, trial) for due, trial in later if due > now]
        ready = ray.wait(list(refs), num_returns=len(refs), timeout=LOOK_EVERY)[0] if refs else []
        if not refs:
            time.sleep(LOOK_EVERY)
        for ref in ready:
            trial = refs.pop(ref)
            record = outcome(ray, ref)
            state, again = record["state"], time.monotonic() + AGAIN_AFTER
            if state == "finished":
                bar.update()
            elif stopping:
                continue
            elif state == "busy":
                later.append((again, trial))
            elif state == "failed":
                failures[trial.key] += 1
                if failures[trial.key] <= retries:
                    later.append((0.0, trial))
                else:
                    errors[trial.key] = record["error"]
            else:  # its worker, its node or the script was stopped, not by us
                lost[trial.key] += 1
                if lost[trial.key] < MOST_LOST:
                    later.append((again, trial))
                else:
                    errors[trial.key] = record.get("error") or f"it was stopped {MOST_LOST} times, not by the sweep"
        used = ray.cluster_resources().get("CPU", 0) - ray.available_resources().get("CPU", 0)  # of others, too
        bar.set_postfix_str(f"{min(len(refs), round(used / cpus))} running, {len(errors)} failed")
    return errors

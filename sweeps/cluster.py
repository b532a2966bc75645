"""Trials as Ray tasks, on a Ray that is started on this machine alone or on a running cluster."""

import contextlib
import hashlib
import os
import re
import secrets
import shlex
import signal
import socket
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from runs.directory import ROOT, data_root, dwp_path
from runs.errors import Stopped, UserError, require_packages
from runs.options import Parser
from runs.signals import stop_signals
from runs.types import POSITIVE, number_type
from sweeps.grid import write_sweep
from sweeps.inputs import check_trials
from sweeps.trials import THREADS, Trial, line_trials, run_trial

MAX_LOST = 20  # a trial whose worker died this often has failed, because the trial may be the cause
WAIT_SECONDS = 0.2  # between two checks of the tasks and signals
RETRY_SECONDS = 1.0  # between two attempts of a trial that is running elsewhere, or whose worker died
CHECK_SECONDS = 60.0  # in which a node must answer
OBJECT_STORE = 100_000_000  # bytes; nothing large goes through Ray
CODE = ("*.py", "data/*.py", "models/*.py", "runs/*.py", "sweeps/*.py")  # all that a trial can run


class Resources(NamedTuple):
    """CPUs and GPUs of each trial, retries of a failed trial, and the HOST:PORT of a Ray cluster, or ""."""

    cpus: float
    gpus: float
    retries: int
    address: str


def add_resource_options(parser: Parser) -> None:
    """Add the options that `checked_resources` reads."""
    add = parser.add_argument
    add("--cpus", type=POSITIVE, default=1.0, help="CPUs of each trial")
    add("--gpus", type=number_type(float, 0), default=0.0, help="GPUs of each trial; 0.25: four trials share one")
    add("--retries", type=number_type(int, 0), default=1, help="further attempts of a failed trial")
    help = "a running Ray cluster, instead of a Ray on this machine"
    add("--address", metavar="HOST:PORT", default="", help=help)


def checked_resources(args: Namespace) -> Resources:
    """The values of the resource options, checked. Raises UserError."""
    if args.address and not re.fullmatch(r".+:\d+", args.address):
        raise UserError(f"--address: found {args.address!r}, expected HOST:PORT of a Ray cluster")
    if args.gpus > 1 and args.gpus != int(args.gpus):
        raise UserError(f"--gpus: found {args.gpus:g}, expected a whole number or one below 1")
    return Resources(args.cpus, args.gpus, args.retries, args.address)


def parse_resources(words: Sequence[str]) -> Resources:
    """The resources in the words after the `--` of a command that runs sweeps. Raises UserError for other options."""
    parser = Parser("")
    add_resource_options(parser)
    args, others = parser.parse_known_args(words)
    if others:
        raise UserError(f"--: found {shlex.join(others)}, expected --cpus, --gpus, --retries or --address of a sweep")
    return checked_resources(args)


def check_ray(address: str) -> None:
    """Raises UserError where Ray is not installed, or nothing listens at `address`, a cluster's or "" for none."""
    require_packages("sweeps", "ray")
    if address:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"--address: {address} cannot be reached: {error}, expected a Ray cluster") from None


@contextlib.contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """The `ray` module, connected to the cluster at `address`, or to a Ray that lives as long as the context.

    Raises UserError where Ray does not answer; `check_ray` comes first.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    with contextlib.ExitStack() as stack:
        if not address:
            # Ray reads these when it is imported: its ports are bound to 127.0.0.1 alone and require a token.
            os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            # A short path, because Ray's sockets are in it.
            folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
            options |= {
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
                "object_store_memory": OBJECT_STORE,
            }
            options["_temp_dir"] = stack.enter_context(folder)
        import ray

        handler = signal.getsignal(signal.SIGTERM)
        stack.callback(ray.shutdown)
        # Ray's processes inherit the mask, so a terminal that closes does not kill them under the trials.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            ray.init(address or "local", **options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
            label = f"--address: {address}" if address else "Ray"
            raise UserError(f"{label}: {error}, expected a Ray that answers, and its token") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if signal.getsignal(signal.SIGTERM) is not handler:  # Ray's own handler leaves some of its processes alive
            signal.signal(signal.SIGTERM, handler)
        yield ray


def nodes_for(ray: ModuleType, cpus: float, gpus: float) -> list[dict[str, Any]]:
    """The nodes that have enough CPUs and GPUs for a trial. Raises UserError if no node has."""
    nodes = [(n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0), n) for n in ray.nodes() if n["Alive"]]
    fit = [node for node_cpus, node_gpus, node in nodes if node_cpus >= cpus and node_gpus >= gpus]
    if not fit:
        sizes = sorted({(node_cpus, node_gpus) for node_cpus, node_gpus, _ in nodes})
        found = ", ".join(f"{node_cpus:g} and {node_gpus:g}" for node_cpus, node_gpus in sizes)
        raise UserError(f"--cpus, --gpus: found {cpus:g} and {gpus:g}, expected at most those of a node: {found}")
    return fit


def code_digest(script: str) -> str:
    """A hash of the project's code and of a script. Raises OSError."""
    files = sorted(file for pattern in CODE for file in ROOT.glob(pattern))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in (*files, Path(script)))).hexdigest()


def check_nodes(ray: ModuleType, nodes: Sequence[dict[str, Any]], trial: Trial, data_folder: str) -> None:
    """Check, by a task on each node, that it has the same DWP_PATH, DATA_ROOT and code. Raises UserError."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    parent, script, cwd, expected = dwp_path() / "sweeps", trial.script, trial.cwd, code_digest(trial.script)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        shared = tempfile.TemporaryDirectory(prefix=".check-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"DWP_PATH: {parent}: cannot be written: {error.strerror}") from None
    folder = Path(shared.name)
    data = os.listdir(data_folder) if os.path.isdir(data_folder) else []

    def problem_on_node(node: str) -> str:
        """What this node lacks, or ""; a nested function, because Ray sends the code of nested functions to nodes."""
        try:
            (folder / node).touch()
        except OSError as error:
            return f"DWP_PATH {parent.parent}: {error.strerror}, expected the folder that the other nodes have"
        missing = [name for name in data if not os.path.exists(os.path.join(data_folder, name))]
        if missing:
            return f"DATA_ROOT {data_folder}: found no {missing[0]}, expected the data of the machine of the sweep"
        if not os.path.isdir(cwd):
            return f"{cwd}: found no such folder, expected the working directory of the sweep"
        try:
            from sweeps.cluster import code_digest as digest_on_node

            found = digest_on_node(script)
        except (ImportError, OSError) as error:
            return f"{ROOT}: {error}, expected the project's code and packages"
        return "" if found == expected else f"{ROOT}: found other code, expected that of the machine of the sweep"

    task = ray.remote(num_cpus=0, max_retries=0)(problem_on_node)
    with shared:
        for node in nodes:
            on_node = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            try:
                problem = ray.get(on_node.remote(node["NodeID"]), timeout=CHECK_SECONDS)
            except ray.exceptions.RayError as error:
                problem = str(error)
            if not problem and not (folder / node["NodeID"]).exists():
                problem = f"DWP_PATH {dwp_path()}: its files do not appear here, expected a shared folder"
            if problem:
                raise UserError(f"--address: node {node['NodeManagerAddress']}: {problem}")


def run_in_worker(trial: Trial, env: dict[str, str]) -> dict[str, Any]:
    """A Ray task: run a trial in this worker until `ray.cancel`, and return its record."""
    stop = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    try:
        return run_trial(trial, env, stop)
    finally:
        signal.signal(signal.SIGINT, previous)


def result(ray: ModuleType, ref: Any) -> dict[str, Any]:
    """The record that a task returned; its `state` is lost if the worker or node of the task died."""
    try:
        return ray.get(ref)
    except ray.exceptions.TaskCancelledError:
        return {"state": "interrupted"}
    except ray.exceptions.RayTaskError as error:
        return {"state": "failed", "error": " ".join(str(error.cause).split()) or repr(error.cause)}
    except ray.exceptions.RayError as error:
        return {"state": "lost", "error": f"its worker died {MAX_LOST} times: {str(error).strip().splitlines()[0]}"}


def run_trials(
    ray: ModuleType, trials: Sequence[Trial], bar: Any, received: list[int], resources: Resources
) -> dict[str, str]:
    """Run trials until each is finished or failed, and return the errors of the failed ones, by key.

    `bar` is a tqdm bar, which counts the finished trials. After a stop signal in `received` the trials are stopped and
    waited for.
    """
    env = dict.fromkeys(THREADS, str(max(1, int(resources.cpus))))
    env |= {"DWP_PATH": str(dwp_path()), "DATA_ROOT": os.path.abspath(data_root())}
    env |= {} if resources.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=0)(run_in_worker)
    waiting = [(0.0, trial) for trial in trials]  # each with the time from which it may be submitted
    refs: dict[Any, Trial] = {}
    attempts, errors, stopping = Counter(), {}, False
    while refs or waiting:
        if received and not stopping:
            stopping, waiting = True, []
            for ref in refs:
                ray.cancel(ref)
        now = time.monotonic()
        refs |= {task.remote(trial, env): trial for start, trial in waiting if start <= now}
        waiting = [(start, trial) for start, trial in waiting if start > now]
        ready = ray.wait(list(refs), num_returns=len(refs), timeout=WAIT_SECONDS)[0] if refs else []
        if not refs:
            time.sleep(WAIT_SECONDS)
        for ref in ready:
            trial, record = refs.pop(ref), result(ray, ref)
            state = record["state"]
            if state == "finished":
                bar.update()
            elif stopping:
                continue
            elif state == "busy":
                waiting.append((time.monotonic() + RETRY_SECONDS, trial))
            else:
                own = state == "failed"  # else it was lost with its worker or node, or interrupted by another process
                attempts[trial.key, own] += 1
                if attempts[trial.key, own] < (resources.retries + 1 if own else MAX_LOST):
                    waiting.append((0.0 if own else time.monotonic() + RETRY_SECONDS, trial))
                else:
                    errors[trial.key] = record.get("error") or f"interrupted {MAX_LOST} times, not by the sweep"
        used = ray.cluster_resources().get("CPU", 0) - ray.available_resources().get("CPU", 0)  # by all sweeps
        bar.set_postfix_str(f"{min(len(refs), round(used / resources.cpus))} running, {len(errors)} failed")
    return errors


def run_unfinished(
    name: str, trials: Sequence[Trial], resources: Resources, received: list[int], accepted: str
) -> dict[str, str]:
    """Run the unfinished trials of a sweep, on a Ray if there are any; the errors of the failed ones, by key.

    One that failed before with an error that is accepted is not run again.
    """
    from tqdm import tqdm

    records = [(trial, trial.record()) for trial in trials]
    errors = {
        trial.key: record["error"]
        for trial, record in records
        if record["state"] == "failed" and accepted and accepted in record["error"]
    }
    unfinished = [trial for trial, record in records if record["state"] != "finished" and trial.key not in errors]
    if unfinished:
        check_ray(resources.address)
    check_trials(records)
    if not unfinished:
        write_sweep(name, trials)
        return errors
    with connected(resources.address) as ray:
        nodes = nodes_for(ray, resources.cpus, resources.gpus)
        if resources.address:
            check_nodes(ray, nodes, trials[0], os.path.abspath(data_root()))
        write_sweep(name, trials)
        initial = len(trials) - len(unfinished)
        with tqdm(total=len(trials), initial=initial, desc="trials", smoothing=0, disable=None) as bar:
            return errors | run_trials(ray, unfinished, bar, received, resources)


def run_sweep(
    name: str, trials: Sequence[Trial], resources: Resources, command: str, accepted: str = ""
) -> list[Path | None]:
    """Run the trials of a sweep that are not finished, and return the run directories of all, in order.

    `name` is that of the sweep's folder in $DWP_PATH/sweeps. A trial of a script that makes no run directory, or one
    that failed, has None. Failed trials are named on stderr. Raises UserError where Ray cannot be used, or what trials
    learn from is missing or has changed since they began, Stopped after a stop signal, with the `command` that
    continues the sweep, and SystemExit with code 1 where a trial failed, unless `accepted` is given and is a part of
    its error.
    """
    errors: dict[str, str] = {}
    with stop_signals() as received:
        try:
            errors = run_unfinished(name, trials, resources, received, accepted)
        except (Stopped, SystemError):  # Ray's functions turn the Stopped of a second signal into a SystemError
            if len(received) < 2:
                raise
    if received:
        done = sum(trial.record()["state"] == "finished" for trial in trials)  # a disabled bar does not count
        message = f"stopped, {done} of {len(trials)} trials are finished; continue with: {command}"
        raise Stopped(received[0], message)
    for trial in trials:
        if trial.key in errors:
            print(f"failed: {trial.label}: {errors[trial.key]} ({trial.file('err')})", file=sys.stderr)
    print(f"{len(trials) - len(errors)} of {len(trials)} trials are finished")
    if any(not accepted or accepted not in error for error in errors.values()):
        sys.exit(1)
    roots = [trial.record()["root"] if trial.key not in errors else "" for trial in trials]
    return [Path(root) if root else None for root in roots]


def run_lines(
    name: str, script: str, lines: Sequence[str], resources: Resources, command: str, accepted: str = ""
) -> list[Path | None]:
    """The run directories of trials of a script, given by its name, from their arguments as lines of a shell. As
    `run_sweep`."""
    return run_sweep(name, line_trials(script, lines), resources, command, accepted)

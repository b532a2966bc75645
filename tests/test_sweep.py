"""Sweeps: the grid, what a trial is known by, and trials that are stopped, killed, lost with their node, or fail."""

import contextlib
import importlib.util
import os
import random
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import runs
from experiments import cluster, sweep, trials
from tests.test_bad_input import PARSERS
from tests.test_runs import assert_same_end

NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or not Path("/proc/self/environ").exists(),
    reason="Ray is not installed (requirements-sweep.txt), or there is no /proc to find its processes in",
)
VAE = ["--kernel_dim", "5", "--z_dim", "2", "--hidden_dim", "4", "--eval_freq", "2", "--device", "cpu"]
EPOCHS = 300


@pytest.fixture
def kernels(sandbox):
    """The options of a small VAE, with its kernels."""
    array = 0.2 * np.random.default_rng(0).standard_normal((300, 1, 5, 5)).astype(np.float32)
    for part in ("train", "test"):
        np.save(sandbox / f"{part}.npy", array)
    return [*VAE, "--num_epochs", str(EPOCHS), "--data_dir", str(sandbox)]


def until(condition, seconds=150.0):
    """Wait for what a condition returns when it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)
    return found


# --- the grid ---------------------------------------------------------------------------------------------------------

NET = str(runs.ROOT / "train-net.py")
GRIDS = [
    (["--seed", "3..5"], ["--seed 3", "--seed 4", "--seed 5"]),
    (["--seed", "0..1", "7"], ["--seed 0", "--seed 1", "--seed 7"]),
    (["--seed=4..4"], ["--seed 4"]),
    (["--lr", "1e-3", "0.1", "--seed", "1..2"], [f"--lr {a} --seed {b}" for a in ("1e-3", "0.1") for b in (1, 2)]),
    (["--hid_dim", "3 4", "5 6"], ["--hid_dim 3 4", "--hid_dim 5 6"]),
    (["--milestones", "", "2 3"], ["--milestones", "--milestones 2 3"]),
    ([], [""]),
]


@pytest.mark.parametrize("words, labels", GRIDS)
def test_the_grid(words, labels, sandbox):
    first, options = sweep.split_options(words)
    found = sweep.make_trials(NET, options, ["--epochs", "2"])
    assert not first and [trial.label for trial in found] == labels
    assert [trial.argv for trial in found] == [("--epochs", "2", *label.split()) for label in labels]
    assert len({trial.key for trial in found}) == len(labels)


def test_the_grid_in_a_file(sandbox, capsys):
    file = sandbox / "grid.yaml"
    file.write_text("seed: 0..1\nhid_dim: [3 4, 5 6]\nlr: 1e-3\n")
    sweep.main(["train-net.py", "--grid", str(file), "--bs", "8", "16", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    seeds = [f"--seed {s} --hid_dim {h} --lr 1e-3 --bs {b}" for s in (0, 1) for h in ("3 4", "5 6") for b in (8, 16)]
    assert [line.split("  waiting")[0].strip() for line in lines[2:-1]] == seeds
    assert lines[-1] == "8 trials: 8 waiting"
    assert not (sandbox / "logs").exists()


def test_what_a_trial_is_known_by(sandbox, monkeypatch):
    def key(*argv, script="train-bnn.py"):
        return trials.make_trial(trials.find_script(script), argv, "").key

    base = key("--seed", "1", "--lr", "0.01", "--hid_dim", "3", "4", "--vae_list", "x/y", "z", "--init_list", "vae")
    same = [
        "--vae_list",
        f"{os.getcwd()}/x/y/",
        f"{os.getcwd()}/x/../z",
        "--hid_dim",
        "3",
        "4",
        "--lr=1e-2",
        "--init_list",
        "vae",
    ]
    for more in (
        ["--seed", "1"],
        ["--seed", "1", "--ens", "10"],  # a default, written out
        ["--seed", "1", "--name", "x", "--tmp", "--checkpoint_freq", "3"],
    ):
        assert key(*same, *more) == base
    for more in (["--seed", "2"], ["--seed", "1", "--ens", "11"], ["--seed", "1", "--hid_dim", "4", "3"]):
        assert key(*same, *more) != base
    assert key("--seed", "1") != key("--seed", "1", script="train-net.py")
    monkeypatch.chdir(sandbox)
    assert key(*same, "--seed", "1") == base, "the script and absolute paths are found from any folder"
    assert key("--vae_list", "x", "z") != base

    (sandbox / "other.py").write_text("")
    assert key("--a", "1", script="other.py") != key("--a", "1.0", script="other.py")


def test_every_path_among_the_options_is_known():
    """A relative path means another file in another folder."""
    options = [a for name in trials.SCRIPTS for a in PARSERS[name]._actions if a.dest not in trials.NOT_COUNTED]
    assert {a.dest for a in options if a.metavar in ("DIR", "FILE", "NPY", "RUN_DIR")} == set(trials.PATHS)


# --- one trial, without Ray -------------------------------------------------------------------------------------------


def other_script(sandbox, text):
    """A script that is none of ours, as the trial of arguments."""
    path = sandbox / "other.py"
    path.write_text(f"import os, pathlib, signal, sys, time\n{text}\n")
    return lambda *argv: trials.make_trial(str(path), argv, shlex.join(argv))


def test_a_trial_runs_once(sandbox):
    trial = other_script(sandbox, "print('run directory: here'); print(sys.argv[1:], os.environ['OMP_NUM_THREADS'])")(
        "1"
    )
    assert trial.record()["state"] == "waiting"
    for _ in range(2):
        record = trials.run(trial, {"OMP_NUM_THREADS": "3"}, threading.Event())
        assert record == {"state": "finished", "root": f"{os.getcwd()}/here", "attempts": 1, "error": ""}
        assert trial.record() == record
    assert trial.file("out").read_text() == "run directory: here\n['1'] 3\n"


@pytest.mark.parametrize(
    "text, error",
    [
        ("sys.exit('first\\n  last line ')", "last line"),
        ("raise ValueError('some\\nthing')", "thing"),
        ("sys.exit(3)", "exit code 3, nothing on stderr"),
        ("os.kill(os.getpid(), 9)", "ended by signal 9, nothing on stderr"),
        ("os.write(2, b'\\xff' * 10**6)", ""),
    ],
)
def test_a_trial_that_fails(sandbox, text, error):
    trial = other_script(sandbox, text)("1")
    record = trials.run(trial, {}, threading.Event())
    assert (record["state"], record["error"]) == ("failed" if error else "finished", error)
    assert trials.run(trial, {}, threading.Event())["attempts"] == (2 if error else 1)


def test_a_trial_that_is_stopped(sandbox):
    trial = other_script(sandbox, "time.sleep(60)")("1")
    stop = threading.Event()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    assert trials.run(trial, {}, stop)["state"] == "interrupted"
    assert trial.record()["state"] == "interrupted" and not trials.held(trial.file("lock"))


def test_a_run_that_finished_counts_whatever_its_record_says(script, sandbox, kernels, capsys):
    run = script("train-vae.py").main([*kernels, "--num_epochs", "1", "--seed", "3"])
    argv = ["train-vae.py", "--seed", "3", "--", *kernels, "--num_epochs", "1"]
    (trial,) = sweep.make_trials(trials.find_script("train-vae.py"), [("--seed", ["3"])], argv[4:])
    record = {"state": "running", "root": "", "attempts": 1, "error": ""}
    trial.write(record)
    assert trial.record()["state"] == "interrupted"
    trial.file("out").write_text(f"run directory: {run.root}")  # its line is not yet whole
    assert trial.record()["root"] == ""
    trial.file("out").write_text(f"run directory: {run.root}\n 1 2 3")
    assert trial.record() == {**record, "state": "finished", "root": str(run.root)}
    capsys.readouterr()
    assert sweep.main([*argv[:3], "--name", "one", *argv[3:]]) == [run.root], "without a Ray"
    assert sweep.sweep_roots(sandbox / "logs" / "sweeps" / "one") == [run.root]
    assert capsys.readouterr().out.endswith("1 of 1 trials are finished\n")
    sweep.main(["--status"])
    assert f"finished  1 of 1   test_elbo {run.rows[-1]['test_elbo']:.4g}" in capsys.readouterr().out

    trial.write(trial.record())
    (sandbox / "logs").rename(sandbox / "moved")
    root = sandbox / "moved" / "exman-train-vae.py" / "runs" / run.root.name
    assert sweep.sweep_roots(sandbox / "moved" / "sweeps" / "one") == [root]
    (sandbox / "moved").rename(sandbox / "logs")
    for path in run.root.iterdir():
        path.unlink()
    assert trial.record() == {**record, "state": "waiting"}, "a deleted run starts again"


@pytest.mark.parametrize("text", ["", "nope", "state: 3\n", "state: x\nroot: []\nattempts: 1\nerror: ''\n"])
def test_a_record_that_is_none(sandbox, capsys, text):
    (trial,) = sweep.make_trials(NET, [("--seed", ["3"])], [])
    trial.file("yaml").parent.mkdir(parents=True)
    trial.file("yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        sweep.main(["train-net.py", "--seed", "3", "--dry-run"])
    assert stop.value.code == 2 and str(trial.file("yaml")) in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "script: 3\n", "script: x\ncwd: y\nshared: '\"'\ntrials: {a: b}\n"])
def test_a_sweep_that_is_none(sandbox, capsys, text):
    (sandbox / "logs" / "sweeps" / "x").mkdir(parents=True)
    (sandbox / "logs" / "sweeps" / "x" / "sweep.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        sweep.main(["--status"])
    assert stop.value.code == 2 and "sweeps/x/sweep.yaml" in capsys.readouterr().err


RUN_ONE = """
import sys, threading
from experiments import trials
trials.WATCHDOG = trials.WATCHDOG.replace("-lt 60", "-lt 3")
trials.run(trials.make_trial(sys.argv[1], (), ""), {}, threading.Event())
"""


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_trial_does_not_outlive_its_worker(sandbox, stubborn):
    """It gets SIGTERM, SIGKILL where that does not end it, and until it has ended nobody else runs it."""
    text = f"""
if {stubborn}:
    signal.signal(signal.SIGTERM, lambda *_: pathlib.Path({str(sandbox)!r}, "asked").touch())
pathlib.Path({str(sandbox)!r}, "pid").write_text(f"{{os.getpid()}}\\n")
while True:
    time.sleep(0.1)
"""
    trial = other_script(sandbox, text)()
    worker = subprocess.Popen([sys.executable, "-c", RUN_ONE, str(sandbox / "other.py")], cwd=os.getcwd())
    until(lambda: (sandbox / "pid").exists() and (sandbox / "pid").read_text().endswith("\n"))
    assert trials.run(trial, {}, threading.Event()) == {"state": "busy"}
    assert trial.record()["state"] == "running"
    worker.kill()
    worker.wait()
    if stubborn:
        until((sandbox / "asked").exists)
        assert trials.run(trial, {}, threading.Event()) == {"state": "busy"}
    until(lambda: not trials.held(trial.file("lock")))
    assert trial.record()["state"] == "interrupted" and trial.record()["attempts"] == 1
    until(lambda: not Path("/proc", (sandbox / "pid").read_text().strip()).exists(), 10)


def test_without_ray(sandbox, capsys, monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        sweep.main(["train-net.py", "--seed", "0..3"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1
    assert "pip install -r requirements-sweep.txt" in err and not (sandbox / "logs").exists()


# --- on a Ray of its own ----------------------------------------------------------------------------------------------

MARK = "DWP_TEST_SWEEP"  # set in the environment of all that a test starts, and inherited


def marked(mark):
    """Command lines of the living processes that have the mark, by pid."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def parent(pid):
    return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])


def listening(pids):
    """The local addresses, in hex, at which processes accept TCP connections."""
    sockets = set()
    for pid in pids:
        for file in Path("/proc", str(pid), "fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(file))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def start(argv, mark, **env):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *argv],
        cwd=runs.ROOT,
        env=os.environ | {MARK: mark} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def with_checkpoint(folder):
    """The running trials of a sweep, with their records, that have a checkpoint and are not nearly done."""
    if not (folder / "sweep.yaml").exists():
        return []
    found = [(trial, trial.record()) for trial in sweep.read_sweep(folder)]
    return [
        (trial, record)
        for trial, record in found
        if record["state"] == "running"
        and Path(record["root"], "checkpoint.torch").exists()
        and trial.progress(record["root"])["epoch"] < EPOCHS * 0.7
    ]


def test_a_stopped_sweep_counts_the_finished_trials(sandbox, monkeypatch, capsys):
    other_script(sandbox, "")

    def drive(ray, trials, bar, received, *more):
        trials[1].write({"state": "finished", "root": "", "attempts": 1, "error": ""})
        bar.update()
        received.append(signal.SIGINT)
        return {}

    monkeypatch.setattr(cluster, "connected", contextlib.nullcontext)
    monkeypatch.setattr(cluster, "nodes_for", lambda *more: [])
    monkeypatch.setattr(cluster, "drive", drive)
    with pytest.raises(SystemExit) as stop:
        sweep.main([str(sandbox / "other.py"), "--seed", "0..2"])
    assert stop.value.code == 130 and "stopped, 1 of 3 trials are finished; " in capsys.readouterr().err


@NEEDS_RAY
def test_ctrl_c_and_go_on(sandbox, kernels):
    mark, folder = secrets.token_hex(8), sandbox / "logs" / "sweeps" / "both"
    process = start(["train-vae.py", "--seed", "0..1", "--name", "both", "--cpus", "0.5", "--", *kernels], mark)
    until(lambda: process.poll() is not None or len(with_checkpoint(folder)) == 2)
    processes = marked(mark)
    assert listening(processes) <= {"0100007F", "0000000000000000FFFF00000100007F"}, "127.0.0.1, or that in IPv6"
    (gcs,) = (pid for pid, line in processes.items() if "gcs_server" in line.split(" ")[0])
    environment = Path("/proc", str(gcs), "environ").read_bytes().split(b"\0")
    assert b"RAY_AUTH_MODE=token" in environment
    temporary = Path(next(word for word in processes[gcs].split() if word.startswith("--log_dir=/tmp/ray-"))[10:])
    assert temporary.exists()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130 and len(err.splitlines()) == 1, err
    assert "0 of 2 trials are finished; go on with: " in err
    until(lambda: not marked(mark), 10)
    assert not temporary.parent.parent.exists()
    records = [trial.record() for trial in sweep.read_sweep(folder)]
    for record in records:
        assert record["state"] == "interrupted" and record["attempts"] == 1
        assert yaml.safe_load(Path(record["root"], "state.yaml").read_text())["state"] == "stopped"

    command = shlex.split(err.split("go on with: ")[1])
    assert command[:3] == ["python", "-m", "experiments.sweep"]
    process = start(command[3:], mark)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and out.endswith("2 of 2 trials are finished\n") and not err
    for trial, record in zip(sweep.read_sweep(folder), records, strict=True):
        assert trial.record() == {**record, "state": "finished", "attempts": 2}
    assert len(list((sandbox / "logs" / "exman-train-vae.py" / "runs").iterdir())) == 2
    until(lambda: not marked(mark), 10)


# --- on a cluster -----------------------------------------------------------------------------------------------------


class Nodes:
    """A Ray cluster of three nodes of one CPU each on this machine."""

    def __init__(self):
        self.mark = secrets.token_hex(8)
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        port = self.address.split(":")[1]
        assert self.node("--head", "--port", port, "--include-dashboard=false", ip="127.0.0.1").wait(60) == 0
        for i in (2, 3):  # one after the other: two at once take the same names for their sockets
            assert self.node("--address", self.address, ip=f"127.0.0.{i}").wait(60) == 0

    def node(self, *argv, ip, before=()):
        ray = [Path(sys.executable).with_name("ray"), "start", "--node-ip-address", ip, "--temp-dir", self.folder]
        more = ["--num-cpus", "1", "--num-gpus", "0", "--object-store-memory", "80000000"]
        return subprocess.Popen(
            [*before, *ray, *more, *argv],
            env=os.environ | self.env | {MARK: self.mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def raylets(self):
        return {pid: line for pid, line in marked(self.mark).items() if line.split(" ")[0].endswith("/raylet")}

    def sweep(self, *argv):
        return start(["--address", self.address, *argv], self.mark, **self.env)

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            for pid in self.raylets():
                os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(AssertionError):
            until(lambda: not self.raylets(), 10)
        for pid in marked(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not marked(self.mark), 10)
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def nodes(request):
    found = Nodes.__new__(Nodes)
    request.addfinalizer(lambda: found.end())
    found.__init__()
    return found


@NEEDS_RAY
def test_trials_that_fail_are_tried_again_and_reported(nodes, sandbox):
    text = f"""
seed, here = sys.argv[2], pathlib.Path({str(sandbox)!r})
if seed == "1" and not (here / "mended").exists():
    sys.exit("no luck")
if seed == "2" and not (here / "tried").exists():
    (here / "tried").touch()
    sys.exit("not yet")
if seed == "3" and not (here / "stopped").exists():
    (here / "stopped").touch()
    os.kill(os.getpid(), signal.SIGTERM)
"""
    other_script(sandbox, text)
    argv = [str(sandbox / "other.py"), "--seed", "0..3", "--name", "failing", "--retries", "2"]
    process = nodes.sweep(*argv)
    out, err = process.communicate(timeout=90)
    (trial,) = (t for t in sweep.read_sweep(sandbox / "logs" / "sweeps" / "failing") if t.label == "--seed 1")
    assert process.returncode == 1 and out.endswith("3 of 4 trials are finished\n")
    assert err == f"failed: --seed 1: no luck ({trial.file('err')})\n"
    attempts = [t.record()["attempts"] for t in sweep.read_sweep(sandbox / "logs" / "sweeps" / "failing")]
    assert attempts == [1, 3, 2, 2], "the last one was stopped, which is no failure"
    (sandbox / "mended").touch()
    process = nodes.sweep(*argv)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0 and out.endswith("4 of 4 trials are finished\n") and not err
    assert [t.record()["attempts"] for t in sweep.read_sweep(sandbox / "logs" / "sweeps" / "failing")] == [1, 4, 2, 2]


@NEEDS_RAY
def test_sweeps_that_share_trials(nodes, sandbox):
    """At the same time: each trial runs once."""
    other_script(sandbox, f"time.sleep(0.5); open({str(sandbox / 'ended')!r}, 'a').write(sys.argv[2] + '\\n')")
    sweeps = [nodes.sweep(str(sandbox / "other.py"), "--seed", seeds) for seeds in ("0..3", "2..5")]
    for process in sweeps:
        out, err = process.communicate(timeout=90)
        assert process.returncode == 0 and out.endswith("4 of 4 trials are finished\n") and not err
    assert sorted(map(int, (sandbox / "ended").read_text().split())) == list(range(6))


@NEEDS_RAY
@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="needs the right to mount",
)
@pytest.mark.parametrize(
    "hidden, expected", [("logs", "DWP_PATH "), ("data", "DATA_ROOT "), ("code", f"{runs.ROOT}: ")]
)
def test_a_node_that_does_not_share_what_it_must(nodes, sandbox, hidden, expected):
    """A node at which another file system covers a folder is found before anything starts."""
    (sandbox / "logs").mkdir()
    other_script(sandbox, "")
    folder = {"logs": sandbox / "logs", "data": sandbox / "data", "code": runs.ROOT / "models"}[hidden]
    before = set(nodes.raylets())
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(folder)]
    assert nodes.node("--address", nodes.address, ip="127.0.0.4", before=mount).wait(60) == 0
    try:
        process = nodes.sweep(str(sandbox / "other.py"), "--seed", "0..3")
        err = process.communicate(timeout=90)[1]
    finally:
        (raylet,) = set(nodes.raylets()) - before
        os.kill(raylet, signal.SIGTERM)
        until(lambda: raylet not in nodes.raylets())
    assert process.returncode == 2 and len(err.splitlines()) == 1, err
    assert f"--address: node 127.0.0.4: {expected}" in err
    assert not list((sandbox / "logs").rglob("*.yaml"))


@NEEDS_RAY
def test_a_cluster_that_loses_a_node_and_a_worker(nodes, sandbox, kernels, script, capsys, monkeypatch, request):
    """24 trials in two sweeps at once, four of them trainings: those that are hit go on, the others do not notice."""
    text = f"""
time.sleep(0.5)
with open({str(sandbox / "ended")!r}, "a") as file:
    file.write(sys.argv[2] + "\\n")
import random
print(random.Random(sys.argv[2]).random())
"""
    other_script(sandbox, text)
    folder = sandbox / "logs" / "sweeps" / "real"
    sweeps = [nodes.sweep("train-vae.py", "--seed", "0..3", "--name", "real", "--", *kernels)]

    def victims(*spared):
        """Trainings with their record, the pid of their process, of the worker above and of the raylet above that."""
        processes = marked(nodes.mark)
        for trial, record in with_checkpoint(folder):
            for pid, line in processes.items():
                if trial not in spared and f"{trial.label} " in line + " " and "/train-vae.py" in line:
                    with contextlib.suppress(OSError):  # it has just ended
                        worker = parent(pid)
                        yield trial, record, pid, worker, parent(worker)

    def not_on_head():
        others = {
            pid for pid, line in nodes.raylets().items() if re.search(r"--node_ip_address=127\.0\.0\.[23]\b", line)
        }
        return next((found for found in victims() if found[-1] in others), None)

    first, record, pid, _, raylet = until(not_on_head)
    sweeps.append(nodes.sweep(str(sandbox / "other.py"), "--seed", "0..19"))
    sweep.main(["--status", "--name", "real"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(first.label))
    assert "running" in line and f" of {EPOCHS} " in line and record["root"] in line
    assert re.search(r"test_elbo -?\d", line)
    os.kill(raylet, signal.SIGTERM)
    until(lambda: raylet not in nodes.raylets() and not Path("/proc", str(pid)).exists())
    second, _, pid, worker, _ = until(lambda: next(victims(first), None))
    os.kill(worker, signal.SIGKILL)

    for process in sweeps:
        err = process.communicate(timeout=120)[1]
        assert process.returncode == 0 and not err, err
    until(lambda: not [line for line in marked(nodes.mark).values() if str(sandbox) in line], 10)
    assert sorted(map(int, (sandbox / "ended").read_text().split())) == list(range(20))
    (short,) = (f for f in (sandbox / "logs" / "sweeps").iterdir() if f.name.startswith("other-"))
    for trial in sweep.read_sweep(short):
        assert trial.record()["state"] == "finished" and trial.record()["attempts"] == 1
        assert float(trial.file("out").read_text()) == random.Random(trial.argv[1]).random()

    real = sweep.read_sweep(folder)
    roots = sweep.sweep_roots(folder)
    assert len(set(roots)) == 4 == len(list((sandbox / "logs" / "exman-train-vae.py" / "runs").iterdir()))
    assert first.record()["attempts"] == second.record()["attempts"] == 2 and first.record()["root"] == record["root"]
    other = next(trial for trial in real if trial not in (first, second))
    monkeypatch.setenv("DWP_PATH", str(sandbox / "by-hand"))
    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(1)
    for trial in (first, second, other):
        by_hand = script("train-vae.py").main(list(trial.argv))
        assert_same_end(by_hand.root, Path(trial.record()["root"]))

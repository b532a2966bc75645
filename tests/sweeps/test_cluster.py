"""Sweeps on Ray: stopped, with trials that fail or are shared, on nodes that differ, and with a node and worker lost.

What a test catches in the middle of a training is held there, so that no test depends on the speed of the machine.
"""

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
from pathlib import Path

import pytest
import torch
import yaml

from runs.directory import ROOT
from sweeps import cluster
from sweeps.__main__ import main
from sweeps.grid import read_sweep
from sweeps.trials import find_script, make_trial
from tests.conftest import HANG, assert_same_end
from tests.sweeps.conftest import (
    EPOCHS,
    MARK,
    end,
    held_trainings,
    kill_marked,
    listening,
    marked,
    parent,
    start,
    wait_until,
)

NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or not Path("/proc/self/environ").exists(),
    reason="Ray is not installed (requirements-sweep.txt), or there is no /proc to find its processes in",
)


# --- without Ray ------------------------------------------------------------------------------------------------------


def test_without_ray(without_package, refusal):
    without_package("ray")
    err = refusal("sweeps.__main__", ["train-net.py", "--seed", "0..3"])
    assert "the package ray is not installed" in err and "pip install -r requirements-sweep.txt" in err


@pytest.mark.parametrize("signals", [1, 2])
def test_a_stopped_sweep_counts_the_finished_trials(signals, sandbox, other_script, monkeypatch, capsys):
    """After the first signal the trials are waited for; a second one ends the sweep in the middle of that."""

    def run_trials(ray, trials, bar, received, resources):
        trials[1].write_record({"state": "finished", "root": "", "attempts": 1, "error": ""})
        bar.update()
        for _ in range(signals):
            signal.raise_signal(signal.SIGINT)
        assert signals == len(received) == 1
        return {}

    monkeypatch.setattr(cluster, "connected", contextlib.nullcontext)
    monkeypatch.setattr(cluster, "nodes_for", lambda *more: [])
    monkeypatch.setattr(cluster, "run_trials", run_trials)
    with pytest.raises(SystemExit) as stop:
        main([other_script(""), "--seed", "0..2"])
    assert stop.value.code == 130 and "stopped, 1 of 3 trials are finished; " in capsys.readouterr().err


def test_failures_that_a_sweep_accepts(sandbox, other_script, monkeypatch, capsys):
    """Their trials have no run directory, also where an earlier attempt made one; others end the command."""

    def run_trials(ray, trials, bar, received, resources):
        for trial in trials:
            trial.write_record({"state": "finished", "root": str(sandbox / "run"), "attempts": 1, "error": ""})
        return {trials[1].key: "no luck"}

    monkeypatch.setattr(cluster, "connected", contextlib.nullcontext)
    monkeypatch.setattr(cluster, "nodes_for", lambda *more: [])
    monkeypatch.setattr(cluster, "run_trials", run_trials)
    script = find_script(str(other_script("")))
    for accepted in ("luck", "another", ""):
        trials = [make_trial(script, [accepted, str(i)], f"--seed {i}") for i in range(3)]
        if accepted == "luck":
            roots = cluster.run_sweep("x", trials, cluster.Resources(1, 0, 1, ""), "", accepted)
            assert roots == [sandbox / "run", None, sandbox / "run"]
            trials[1].write_record({"state": "failed", "root": "", "attempts": 2, "error": "no luck"})
            with monkeypatch.context() as again:  # nothing is run a second time
                again.setattr(cluster, "run_trials", None)
                assert cluster.run_sweep("x", trials, cluster.Resources(1, 0, 1, ""), "", accepted) == roots
        else:
            with pytest.raises(SystemExit) as stop:
                cluster.run_sweep("x", trials, cluster.Resources(1, 0, 1, ""), "", accepted)
            assert stop.value.code == 1
        assert f"failed: --seed 1: no luck ({trials[1].file('err')})" in capsys.readouterr().err


# --- on a Ray of its own ----------------------------------------------------------------------------------------------


@NEEDS_RAY
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_stopped_sweep_continues(number, sandbox, small_vae, holding, request):
    """Stopped by Ctrl-C, or by a terminal that closes: then its output fails as well."""
    mark, folder = secrets.token_hex(8), sandbox / "logs" / "sweeps" / "both"
    request.addfinalizer(lambda: kill_marked(mark))
    argv = ["train-vae.py", "--seed", "0..1", "--name", "both", "--cpus", "0.5", "--", *small_vae]
    process = start(argv, mark, **holding)
    wait_until(lambda: len(held_trainings(folder)) == 2, process)
    processes = marked(mark)
    assert listening(processes) <= {"0100007F", "0000000000000000FFFF00000100007F"}, "127.0.0.1, or that in IPv6"
    (gcs,) = (pid for pid, line in processes.items() if "gcs_server" in line.split(" ")[0])
    environment = Path("/proc", str(gcs), "environ").read_bytes().split(b"\0")
    assert b"RAY_AUTH_MODE=token" in environment
    temporary = Path(next(word for word in processes[gcs].split() if word.startswith("--log_dir=/tmp/ray-"))[10:])
    assert temporary.exists()
    if number == signal.SIGHUP:
        process.stdout.close()
        process.stderr.close()
    os.killpg(process.pid, number)
    if number == signal.SIGINT:
        code, _, err = end(process)
        assert len(err.splitlines()) == 1 and "0 of 2 trials are finished; continue with: " in err, err
        command = shlex.split(err.split("continue with: ")[1])
        assert command[:3] == ["python", "-m", "sweeps"]
        argv = command[3:]
    else:
        code = process.wait(timeout=HANG)
    assert code == 128 + number
    wait_until(lambda: not marked(mark))
    assert not temporary.parent.parent.exists()
    records = [trial.record() for trial in read_sweep(folder)]
    for record in records:
        assert record["state"] == "interrupted" and record["attempts"] == 1
        assert yaml.safe_load(Path(record["root"], "state.yaml").read_text())["state"] == "stopped"

    (sandbox / "logs" / "released").touch()
    process = start(argv, mark, **holding)
    if number == signal.SIGHUP:
        process.stdout.close()
        process.stderr.close()
        assert process.wait(timeout=HANG) == 0
    else:
        code, out, err = end(process)
        assert code == 0 and out.endswith("2 of 2 trials are finished\n") and not err
    for trial, record in zip(read_sweep(folder), records, strict=True):
        assert trial.record() == {**record, "state": "finished", "attempts": 2}
    assert len(list((sandbox / "logs" / "exman-train-vae.py" / "runs").iterdir())) == 2
    wait_until(lambda: not marked(mark))


# --- on a cluster -----------------------------------------------------------------------------------------------------


class Nodes:
    """A Ray cluster of three nodes of one CPU each on this machine, whose trainings are held."""

    def __init__(self, holding):
        self.mark = secrets.token_hex(8)
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        self.address = ""
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        self.env |= holding

    def start(self):
        for tries_left in (2, 1, 0):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            self.address = f"127.0.0.1:{port}"
            try:
                self.start_node("--head", "--port", str(port), "--include-dashboard=false", ip="127.0.0.1")
                break
            except subprocess.CalledProcessError:  # another process took the port, or Ray reserves it
                if not tries_left:
                    raise
        for i in (2, 3):  # one after the other: two at once take the same names for their sockets
            self.start_node("--address", self.address, ip=f"127.0.0.{i}")

    def start_node(self, *argv, ip, before=()):
        ray = [Path(sys.executable).with_name("ray"), "start", "--node-ip-address", ip, "--temp-dir", self.folder]
        more = ["--num-cpus", "1", "--num-gpus", "0", "--object-store-memory", "80000000"]
        env = os.environ | self.env | {MARK: self.mark}
        subprocess.run([*before, *ray, *more, *argv], env=env, stdout=subprocess.DEVNULL, check=True, timeout=HANG)

    def raylets(self):
        return {pid: line for pid, line in marked(self.mark).items() if line.split(" ")[0].endswith("/raylet")}

    def end_raylet(self, pid):
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: pid not in self.raylets())

    def sweep(self, *argv):
        return start(["--address", self.address, *argv], self.mark, **self.env)

    def end(self):
        for pid in self.raylets():  # at SIGTERM they end their agents, which hide their environment
            self.end_raylet(pid)
        kill_marked(self.mark)
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def nodes(holding):
    found = Nodes(holding)
    try:
        found.start()
        yield found
    finally:
        found.end()


@NEEDS_RAY
def test_trials_that_fail_are_tried_again_and_reported(nodes, sandbox, other_script):
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
    argv = [other_script(text), "--seed", "0..3", "--name", "failing", "--retries", "2"]
    code, out, err = end(nodes.sweep(*argv))
    trials = read_sweep(sandbox / "logs" / "sweeps" / "failing")
    assert code == 1 and out.endswith("3 of 4 trials are finished\n")
    assert err == f"failed: --seed 1: no luck ({trials[1].file('err')})\n"
    attempts = [trial.record()["attempts"] for trial in trials]
    assert attempts == [1, 3, 2, 2], "the last one was stopped, which is no failure"
    (sandbox / "mended").touch()
    code, out, err = end(nodes.sweep(*argv))
    assert code == 0 and out.endswith("4 of 4 trials are finished\n") and not err
    assert [trial.record()["attempts"] for trial in trials] == [1, 4, 2, 2]


@NEEDS_RAY
def test_sweeps_that_share_trials(nodes, sandbox, other_script):
    """At the same time: each trial runs once. A shared one, 2, runs until those of both sweeps have ended."""
    text = f"""
ended = pathlib.Path({str(sandbox / "ended")!r})
while sys.argv[2] == "2" and len(ended.read_text().split()) < 5:
    time.sleep(0.05)
with open(ended, "a") as file:
    file.write(sys.argv[2] + "\\n")
"""
    path = other_script(text)
    (sandbox / "ended").touch()
    for process in [nodes.sweep(path, "--seed", seeds) for seeds in ("0..3", "2..5")]:
        code, out, err = end(process)
        assert code == 0 and out.endswith("4 of 4 trials are finished\n") and not err
    assert sorted(map(int, (sandbox / "ended").read_text().split())) == list(range(6))


@NEEDS_RAY
def test_a_second_signal_ends_a_sweep_without_its_trials(nodes, sandbox, other_script):
    """They do not end after the first one."""
    text = f"""
here = pathlib.Path({str(sandbox)!r})
signal.signal(signal.SIGTERM, lambda *_: (here / "asked").touch())
(here / "started").touch()
while not (here / "end").exists():
    time.sleep(0.05)
"""
    process = nodes.sweep(other_script(text), "--seed", "0")
    wait_until((sandbox / "started").exists, process)
    process.send_signal(signal.SIGINT)
    wait_until((sandbox / "asked").exists, process)
    process.send_signal(signal.SIGINT)
    code, _, err = end(process)
    assert code == 130 and len(err.splitlines()) == 1 and "0 of 1 trials are finished; continue with: " in err, err
    (sandbox / "end").touch()
    wait_until(lambda: not [line for line in marked(nodes.mark).values() if str(sandbox) in line])


@NEEDS_RAY
@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="needs the right to mount",
)
@pytest.mark.parametrize("hidden, expected", [("logs", "DWP_PATH "), ("data", "DATA_ROOT "), ("code", f"{ROOT}: ")])
def test_a_node_that_does_not_share_what_it_must(nodes, sandbox, other_script, hidden, expected):
    """A node at which another file system covers a folder is found before anything starts."""
    (sandbox / "logs").mkdir()
    folder = {"logs": sandbox / "logs", "data": sandbox / "data", "code": ROOT / "models"}[hidden]
    before = set(nodes.raylets())
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(folder)]
    nodes.start_node("--address", nodes.address, ip="127.0.0.4", before=mount)
    try:
        code, _, err = end(nodes.sweep(other_script(""), "--seed", "0..3"))
    finally:
        (raylet,) = set(nodes.raylets()) - before
        nodes.end_raylet(raylet)
    assert code == 2 and len(err.splitlines()) == 1, err
    assert f"--address: node 127.0.0.4: {expected}" in err
    assert not list((sandbox / "logs").rglob("*.yaml"))


def processes_of(nodes, trials):
    """By trial, the pids of its process, of the worker above it and of the raylet above that."""
    pids = {line: pid for pid, line in marked(nodes.mark).items() if "/train-vae.py" in line}
    found = {}
    for trial in trials:
        (pid,) = (pid for line, pid in pids.items() if f"{trial.label} " in f"{line} ")
        found[trial] = pid, parent(pid), parent(parent(pid))
    return found


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@NEEDS_RAY
def test_a_cluster_that_loses_a_node_and_a_worker(
    nodes, sandbox, small_vae, other_script, script, capsys, monkeypatch, one_thread
):
    """Of 24 trials in two sweeps at once, four of them trainings: the two that are hit continue, and no other one."""
    text = f"""
with open({str(sandbox / "ended")!r}, "a") as file:
    file.write(sys.argv[2] + "\\n")
import random
print(random.Random(sys.argv[2]).random())
"""
    real, other = (sandbox / "logs" / "sweeps" / name for name in ("real", "other"))
    sweeps = [nodes.sweep("train-vae.py", "--seed", "0..3", "--name", "real", "--", *small_vae)]
    wait_until(lambda: len(held_trainings(real)) == 3, sweeps[0])  # one on each node
    records = dict(held_trainings(real))
    processes = processes_of(nodes, records)
    sweeps.append(nodes.sweep(other_script(text), "--seed", "0..19", "--name", "other"))
    wait_until((other / "sweep.yaml").exists, sweeps[1])
    # The head has another address: Ray replaces 127.0.0.1.
    not_head = [pid for pid, line in nodes.raylets().items() if re.search(r"--node_ip_address=127\.0\.0\.[23]\b", line)]
    first, second = (trial for trial in records if processes[trial][-1] in not_head)

    main(["--status", "--name", "real"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(first.label))
    assert "running" in line and f" of {EPOCHS} " in line and records[first]["root"] in line
    assert re.search(r"test_elbo -?\d", line)
    (pid, _, raylet), (other_pid, worker, _) = processes[first], processes[second]
    nodes.end_raylet(raylet)
    os.kill(worker, signal.SIGKILL)
    # Until their watchdogs have ended them, released trainings would finish at the first attempt.
    wait_until(lambda: not {pid, other_pid} & marked(nodes.mark).keys())
    (sandbox / "logs" / "released").touch()

    for process in sweeps:
        code, _, err = end(process)
        assert code == 0 and not err, err
    wait_until(lambda: not [line for line in marked(nodes.mark).values() if str(sandbox) in line])
    assert sorted(map(int, (sandbox / "ended").read_text().split())) == list(range(20))
    for trial in read_sweep(other):
        assert trial.record()["state"] == "finished" and trial.record()["attempts"] == 1
        assert float(trial.file("out").read_text()) == random.Random(trial.argv[1]).random()

    attempts = {trial: trial.record()["attempts"] for trial in read_sweep(real)}
    roots = {trial: Path(trial.record()["root"]) for trial in attempts}
    assert {trial for trial, n in attempts.items() if n == 2} == {first, second} and sum(attempts.values()) == 6
    assert len(set(roots.values())) == 4 == len(list((sandbox / "logs" / "exman-train-vae.py" / "runs").iterdir()))
    assert [str(roots[trial]) for trial in records] == [record["root"] for record in records.values()]
    monkeypatch.setenv("DWP_PATH", str(sandbox / "by-hand"))
    for trial in roots:
        by_hand = script("train-vae.py").main(list(trial.argv))
        assert_same_end(by_hand.root, roots[trial])

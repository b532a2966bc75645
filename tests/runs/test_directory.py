"""Run directories: one for each launch, whatever runs at the same moment."""

import multiprocessing
import subprocess
import sys
import time
from argparse import Namespace

import pytest
import torch
from filelock import FileLock

from runs.directory import ROOT
from runs.loop import Run
from tests.conftest import HANG, SCRIPTS, SMALL

ARGS = Namespace(tmp=False, continue_run=None, config=None, x=1)


def launch(barrier):
    barrier.wait()
    Run("train-net.py", ARGS, torch.device("cpu"), {})


def test_fifty_launches_at_once(sandbox):
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(50)
    processes = [fork.Process(target=launch, args=(barrier,)) for _ in range(50)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 50
    base = sandbox / "logs" / "exman-train-net.py"
    numbers = sorted(int(p.name[:6]) for p in (base / "runs").iterdir())
    assert numbers == list(range(1, 51)) and len(list((base / "index").iterdir())) == 50


def hold(path, held):
    FileLock(path).acquire()
    held.set()
    time.sleep(HANG)


def test_a_lock_ends_with_the_process_that_held_it(sandbox):
    fork = multiprocessing.get_context("fork")
    base = sandbox / "logs" / "exman-train-net.py"
    base.mkdir(parents=True)
    held = fork.Event()
    process = fork.Process(target=hold, args=(base / ".lock", held))
    process.start()
    assert held.wait(HANG)
    process.kill()
    process.join()
    assert Run("train-net.py", ARGS, torch.device("cpu"), {}).root.name.startswith("000001-")


def test_as_processes(sandbox):
    """Help, a mistake and two launches at once, with no terminal: no progress bar, two numbers."""
    for name in SCRIPTS:
        done = subprocess.run([sys.executable, ROOT / name, "--help"], capture_output=True, text=True, check=True)
        assert "default" in done.stdout and "run:" in done.stdout
    done = subprocess.run([sys.executable, ROOT / "train-bnn.py", "--bs", "0"], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not done.stdout
    start = [sys.executable, ROOT / "train-net.py", *SMALL, "--epochs", "1"]
    both = [subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0] and [err for _, err in outputs] == ["", ""]
    names = sorted(p.name for p in (sandbox / "logs" / "exman-train-net.py" / "runs").iterdir())
    assert [name[:7] for name in names] == ["000001-", "000002-"]


def test_a_folder_that_cannot_be_made(script, sandbox, monkeypatch, capsys):
    (sandbox / "file").write_text("")
    monkeypatch.setenv("DWP_PATH", str(sandbox / "file"))
    with pytest.raises(SystemExit):
        script("train-net.py").main(SMALL)
    assert "DWP_PATH: cannot make a run directory" in capsys.readouterr().err
